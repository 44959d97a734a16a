"""A search: the log is prepared once, then trial after trial trains one stage and is judged.

    remember       what the search is of; another one in the same folder is refused
    prepare        the log; for rankers, the two-tower that their embeddings start from
    search         draw settings, train, ask after each epoch, note what came of it
    write_results  the best settings, all trials, two plots

Trials train on the training period and are judged on the validation period. The test period is
left for `adrec evaluate`, once, with the settings that were chosen.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import torch

from adrec import pipeline
from adrec.config import RunConfig
from adrec.errors import ConfigError
from adrec.keys import alone
from adrec.progress import Advance, Progress
from adrec.stages import train_two_tower
from adrec.tuning.config import Judge, TuneConfig
from adrec.tuning.crew import Crew, ctrl_c_later
from adrec.tuning.folder import discard, remember
from adrec.tuning.results import Tuned, write_plots, write_so_far
from adrec.tuning.space import Space, current, fit_space
from adrec.tuning.study import Study
from adrec.tuning.trial import Draw, Ending, Outcome, labels, shown
from adrec.tuning.worker import FOLDERS, Message, Setup, forget_weights

_LIVES = 2  # a worker may be killed once for what another process did to the memory


def tune(
    config: RunConfig,
    search: TuneConfig,
    space: Space,
    out: Path,
    *,
    source: str = "space",
    progress: Progress | None = None,
    resume: bool = True,
) -> Tuned:
    """Search for better settings of one stage, or go on with a search that was stopped.

    With workers it starts processes, so a script calls it under `if __name__ == "__main__":`.

    Args:
        config: the settings that trials start from.
        search: how the search goes.
        space: what is tried.
        out: the search's folder. It can be a run's: the prepared log and the two-tower are the
            ones that `pipeline.run` would make there.
        source: where the space is from, for errors.
        progress: told what is going on.
        resume: take up what an earlier run left; else start afresh.

    Returns:
        All trials, the best of them, and how much each setting matters.

    Raises:
        ConfigError: a space that the settings do not take, a folder with another search, or no
            trial came to its end.
        KeyboardInterrupt: after Ctrl-C, once running trials have written a checkpoint.
    """
    progress = progress or Progress()
    space = fit_space(space, config, search.stage, source=source)
    judge = Judge.of(search, space)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out, "tune"):
        if not resume:
            discard(out)
        remember(out, config, search, space, judge)
        now = current(space, config)
        with closing(Study(out / "study.db", search, space, judge, now)) as study:
            setup = _prepare(config, search, space, out, progress, resume)
            run = _Search(study, setup, search, judge, space, out, progress)
            try:
                run.go()
            except KeyboardInterrupt as stopped:
                raise KeyboardInterrupt("tuning stopped; the same command goes on") from stopped
            tuned = run.tuned(study.importance())
    if tuned.best is None:
        problems = [outcome.problem for outcome in tuned.outcomes if outcome.problem]
        why = f"; the last: {problems[-1]}" if problems else ""
        raise ConfigError(f"no trial came to its end{why}")
    write_plots(out, tuned)
    return tuned


def _prepare(
    config: RunConfig,
    search: TuneConfig,
    space: Space,
    out: Path,
    progress: Progress,
    resume: bool,
) -> Setup:
    """What all trials have in common, made once."""
    dataset = pipeline.prepare_log(config, out, progress=progress, resume=resume)
    tower = None
    starts = config.ranker.start_from_two_tower or "ranker.start_from_two_tower" in space
    if search.stage == "ranker" and starts:
        folder = out / "training"
        train_two_tower(config, dataset, folder, progress=progress, resume=resume)
        tower = folder / FOLDERS["two_tower"] / "best" / "model.safetensors"
    return Setup(
        config=config,
        stage=search.stage,
        dataset=dataset.directory,
        tower=tower,
        folder=out / "trials",
        threads=max(1, torch.get_num_threads() // search.workers),
    )


class _Search:
    """The trials, from the first that is missing to the last."""

    def __init__(
        self,
        study: Study,
        setup: Setup,
        search: TuneConfig,
        judge: Judge,
        space: Space,
        out: Path,
        progress: Progress,
    ) -> None:
        self._study, self._setup, self._judge, self._out = study, setup, judge, out
        self._workers, self._progress = search.workers, progress
        self._now = current(space, setup.config)
        self._short = labels(list(space))
        self._deaths: Counter[int] = Counter()
        minutes = search.timeout_minutes
        self._until = None if minutes is None else time.monotonic() + 60 * minutes

    def go(self) -> None:
        """Run trials until there are enough, none is left, or time is up."""
        limit, ended = self._study.limit, len(self._study.outcomes())
        if ended >= limit:
            self._progress.say(f"tuning: all {ended} trials have run already")
        tracked = self._progress.track("tuning", limit, "trials", done=ended)
        with tracked as advance, Crew(self._setup, self._workers) as crew:
            while True:
                with ctrl_c_later():
                    self._fill(crew)
                if not crew.running:
                    break
                heard = crew.listen()
                with ctrl_c_later():
                    self._hear(crew, advance, *heard)
        missing = limit - len(self._study.outcomes())
        if missing > 0 and self._is_late():
            self._progress.say(f"tuning: time is up, {missing} trials are left for another time")
        elif missing > 0:
            self._progress.say("tuning: the space has nothing that was not tried")

    def tuned(self, importance: Mapping[str, float]) -> Tuned:
        """What came of the trials so far."""
        outcomes = self._study.outcomes()
        best: Outcome | None = None
        for outcome in outcomes:
            if outcome.ending == "done" and outcome.value is not None:
                than = None if best is None else best.value
                best = outcome if self._judge.better(outcome.value, than) else best
        return Tuned(
            config=self._setup.config,
            judge=self._judge,
            outcomes=tuple(outcomes),
            best=best,
            importance=dict(importance),
        )

    def _is_late(self) -> bool:
        return self._until is not None and time.monotonic() >= self._until

    def _fill(self, crew: Crew) -> None:
        while crew.has_room and not self._is_late():
            draw = self._study.draw()
            if draw is None:
                return
            crew.begin(draw)

    def _hear(self, crew: Crew, advance: Advance, draw: Draw, message: Message) -> None:
        number = draw.number
        if message.kind == "died":
            self._deaths[number] += 1
            if self._deaths[number] < _LIVES:
                self._progress.say(f"trial {number}: {message.problem}; begun again")
                crew.begin(draw)
                return
        values = self._judge.values(message.history) if message.history else []
        worse = self._study.report(number, values)
        if message.kind == "epoch":
            crew.answer(draw, go_on=not worse)
            advance(0, f"trial {number} epoch {len(values)}: {values[-1]:.4f}")
            return
        self._study.finish(self._outcome(draw, message, values))
        forget_weights(self._setup, number)
        tuned = self.tuned({})
        write_so_far(self._out, tuned)
        self._progress.say(self._line(tuned, number))
        advance(1, "" if tuned.best is None else f"best {tuned.best.value:.4f}")

    def _outcome(self, draw: Draw, message: Message, values: list[float]) -> Outcome:
        value = values[message.best_epoch] if values else None
        problem = message.problem
        if problem is None and (value is None or not math.isfinite(value)):
            problem = f"the metric is {value}"
        ending: Ending = "pruned" if message.kind == "pruned" else "done"
        return Outcome(
            number=draw.number,
            ending="failed" if problem is not None else ending,
            settings=draw.settings,
            metric=self._judge.name(message.history) if values else None,
            value=None if problem is not None else value,
            epoch=message.best_epoch + 1 if values else None,
            epochs=len(values),
            minutes=message.seconds / 60,
            problem=problem,
        )

    def _line(self, tuned: Tuned, number: int) -> str:
        """What a person reads of a trial that has ended."""
        found = next(outcome for outcome in tuned.outcomes if outcome.number == number)
        changed = {p: value for p, value in found.settings.items() if value != self._now[p]}
        settings = shown(changed, self._short) or "the settings as they are"
        if found.ending == "failed":
            return f"trial {number}: failed: {found.problem}; {settings}"
        what = f"{found.metric} {found.value:.4f}, "
        what += "epoch" if found.ending == "done" else "stopped after epoch"
        at = found.epoch if found.ending == "done" else found.epochs
        best = (
            ""
            if tuned.best is None
            else f"best {tuned.best.value:.4f} (trial {tuned.best.number}); "
        )
        return f"trial {number}: {what} {at}; {best}{settings}; {found.minutes:.1f} min"
