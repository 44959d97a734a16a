"""The search's memory: which settings were drawn, and what came of each; an Optuna study.

It lies in an SQLite file, of which only the process that leads the search reads and writes: workers
talk to that process alone. SQLite's transactions survive a kill at any instant; Optuna's journal
file does not, as the next line is appended to one that was cut short.

Trials are numbered from 1. The number stays when a trial that was stopped is begun again, though
Optuna counts that as another. Each draw has a seed of its own, made of the search's and the
number: a search that was stopped and resumed draws what it would have drawn.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adrec.errors import ConfigError
from adrec.tuning.config import Judge, TuneConfig
from adrec.tuning.space import Space, grid, holds_all, is_listable
from adrec.tuning.trial import Draw, Ending, Outcome

try:
    import optuna
except ImportError as error:
    raise ConfigError(
        "tuning needs the library Optuna, which is not installed: pip install 'adrec[tune]'"
    ) from error
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

_REDRAWS = 20  # of settings that were tried before; the later half are not the sampler's
_KEPT = ("metric", "value", "epoch", "epochs", "minutes")
_FEWEST = 4  # trials that importance can be told from
_ENDINGS: Mapping[TrialState, Ending] = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass
class _Running:
    trial: optuna.Trial
    reported: int = 0


class Study:
    """Draws settings and remembers what came of them."""

    def __init__(
        self, path: Path, config: TuneConfig, space: Space, judge: Judge, now: Mapping[str, Any]
    ) -> None:
        """Open the study, or begin it.

        Args:
            path: the SQLite file.
            config: how the search goes.
            space: fitted to the settings; see `fit_space`.
            judge: which way the metric is better.
            now: the values that the settings have; tried first where the space holds them.

        Raises:
            ConfigError: a grid of a range without a step.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._config, self._space = config, space
        self._points = grid(space, config.seed) if config.sampler == "grid" else None
        self._first = dict(now) if holds_all(space, now) else None
        median = optuna.pruners.MedianPruner(n_startup_trials=config.prune_after)
        self._storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        self._study = optuna.create_study(
            storage=self._storage,
            study_name="adrec",
            direction=judge.direction,
            pruner=median if config.prune else optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        self._running: dict[int, _Running] = {}
        self._take_up()

    @property
    def limit(self) -> int:
        """How many trials there will be, unless the space holds fewer."""
        trials = self._config.trials
        return trials if self._points is None else min(trials, len(self._points))

    def draw(self) -> Draw | None:
        """Settings that no trial has had; None once there are enough trials, or none is left."""
        for attempt in range(_REDRAWS + 1):
            waiting = self._of(TrialState.WAITING)
            if not waiting:
                number = self._free_number()
                if number > self.limit:
                    return None
                if attempt < _REDRAWS:
                    self._plan(number)
                elif not self._plan_untried(number):
                    return None
            else:
                number = min(trial.user_attrs["number"] for trial in waiting)
            self._study.sampler = self._sampler(number, attempt)
            trial = self._study.ask(_distributions(self._space))
            number = trial.user_attrs.get("number", number)
            if self._points is None and self._is_known(trial):
                self._study.tell(trial, state=TrialState.FAIL)  # never begun: it has no number
                continue
            trial.set_user_attr("number", number)
            self._running[number] = _Running(trial)
            return Draw(number, self._decoded(trial.params))
        return None

    def report(self, number: int, values: Sequence[float]) -> bool:
        """Note a running trial's metric after each epoch so far.

        Returns:
            Whether it had better stop.
        """
        running = self._running[number]
        for epoch in range(running.reported, len(values)):
            running.trial.report(values[epoch], epoch)
        running.reported = max(running.reported, len(values))
        return running.trial.should_prune()

    def finish(self, outcome: Outcome) -> None:
        """End a running trial."""
        trial = self._running.pop(outcome.number).trial
        for name in _KEPT:
            trial.set_user_attr(name, getattr(outcome, name))
        if outcome.ending == "failed":
            trial.set_user_attr("problem", outcome.problem)
            self._study.tell(trial, state=TrialState.FAIL)
        elif outcome.ending == "pruned":
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, outcome.value)

    def outcomes(self) -> list[Outcome]:
        """What came of each trial that has ended, by number."""
        found = [
            Outcome(
                number=trial.user_attrs["number"],
                ending=_ENDINGS[trial.state],
                settings=self._decoded(trial.params),
                problem=trial.user_attrs.get("problem"),
                **{name: trial.user_attrs[name] for name in _KEPT},
            )
            for trial in self._of(*_ENDINGS)
            if _counts(trial)
        ]
        return sorted(found, key=lambda outcome: outcome.number)

    def importance(self) -> dict[str, float]:
        """Share of the metric's variance that each setting accounts for, the largest first.

        By fANOVA (Hutter et al. 2014) over the trials that ran to their end; {} of too few.
        """
        ended = self._of(TrialState.COMPLETE)
        if len(ended) < _FEWEST or len({trial.value for trial in ended}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(self._study, evaluator=evaluator))

    def close(self) -> None:
        """Let go of the file."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _take_up(self) -> None:
        """Begin again what ran when an earlier run was stopped; its checkpoints are there."""
        for trial in self._of(TrialState.RUNNING):
            self._study.tell(trial.number, state=TrialState.FAIL)
            number = trial.user_attrs.get("number")
            if number is not None and "problem" not in trial.user_attrs:
                self._study.enqueue_trial(trial.params, user_attrs={"number": number})

    def _plan(self, number: int) -> None:
        """Where settings are not to be drawn: the next of a grid; first of all, those given."""
        planned = self._first if number == 1 else None
        if self._points is not None:
            planned = self._points[number - 1]
        if planned is not None:
            self._enqueue(number, planned)

    def _plan_untried(self, number: int) -> bool:
        """Where chance finds nothing new: the first that is, if the space can be listed."""
        if not is_listable(self._space):
            return False
        tried = {_point(trial.params) for trial in self._of(*TrialState) if _counts(trial)}
        for point in grid(self._space, self._config.seed):
            if _point({path: self._encoded(path, value) for path, value in point.items()}) in tried:
                continue
            self._enqueue(number, point)
            return True
        return False

    def _enqueue(self, number: int, settings: Mapping[str, Any]) -> None:
        params = {path: self._encoded(path, value) for path, value in settings.items()}
        self._study.enqueue_trial(params, user_attrs={"number": number})

    def _sampler(self, number: int, attempt: int) -> optuna.samplers.BaseSampler:
        sequence = np.random.SeedSequence([self._config.seed, number, attempt])
        seed = int(sequence.generate_state(1)[0])
        if self._config.sampler == "tpe" and attempt < _REDRAWS // 2:
            return optuna.samplers.TPESampler(seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)

    def _free_number(self) -> int:
        taken = {t.user_attrs.get("number") for t in self._of(*TrialState) if _counts(t)}
        return next(number for number in range(1, len(taken) + 2) if number not in taken)

    def _is_known(self, trial: optuna.Trial) -> bool:
        others = (t for t in self._of(*TrialState) if t.number != trial.number and _counts(t))
        return any(_point(other.params) == _point(trial.params) for other in others)

    def _of(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states)

    def _encoded(self, path: str, value: Any) -> Any:
        """A value as Optuna keeps it: a choice as JSON, as it may be a list."""
        choices = self._space[path].choices
        if choices is None:
            return value
        return json.dumps(next(choice for choice in choices if choice == value))

    def _decoded(self, params: Mapping[str, Any]) -> dict[str, Any]:
        is_choice = {path: found.choices is not None for path, found in self._space.items()}
        return {path: json.loads(v) if is_choice[path] else v for path, v in params.items()}


def _counts(trial: FrozenTrial) -> bool:
    """Whether it is one of the numbered trials: not one that was stopped, or never begun."""
    if "number" not in trial.user_attrs:
        return False
    return trial.state != TrialState.FAIL or "problem" in trial.user_attrs


def _point(params: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
    """Parameters to compare by: steps of a range are sums, which round differently."""
    return frozenset(
        (path, round(value, 12) if isinstance(value, float) else value)
        for path, value in params.items()
    )


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {}
    for path, one in space.items():
        if one.choices is not None:
            texts = [json.dumps(choice) for choice in one.choices]
            found[path] = optuna.distributions.CategoricalDistribution(texts)
            continue
        assert one.low is not None
        assert one.high is not None
        if one.whole:
            ends = int(one.low), int(one.high)
            step = int(one.step or 1)
            found[path] = optuna.distributions.IntDistribution(*ends, log=one.log, step=step)
        else:
            found[path] = optuna.distributions.FloatDistribution(
                one.low, one.high, log=one.log, step=one.step
            )
    return found
