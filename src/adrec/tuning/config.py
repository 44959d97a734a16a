"""How a search goes, and what its trials are judged by."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias

from pydantic import Field, model_validator

from adrec.errors import ConfigError
from adrec.schema import Strict
from adrec.tuning.space import Stage

Metric: TypeAlias = Literal["auc", "log_loss", "recall"]

METRICS: Mapping[Stage, tuple[Metric, ...]] = {
    "ranker": ("auc", "log_loss"),
    "two_tower": ("recall",),
}
"""What each stage can be judged by; the first is what its training chooses the epoch by."""

_PART: Mapping[Metric, str] = {"auc": " AUC", "log_loss": " log loss", "recall": "recall@"}
_CHANGES_LOG_LOSS = ("training.ranker.negative_rate", "training.ranker.positive_weight")


class TuneConfig(Strict):
    """How a search goes."""

    stage: Stage = "ranker"
    """What trials train."""
    metric: Metric | None = None
    """What they are judged by, on the validation period; None: what training chooses epochs by."""
    trials: int = Field(default=20, ge=1)
    """Trials in total, those of earlier runs of the same search included."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """How settings are drawn: near what was good (Bergstra et al. 2011), anywhere, or all."""
    prune: bool = True
    """Whether a trial whose best epoch is below the median of the others' ends there."""
    prune_after: int = Field(default=5, ge=1)
    """Trials that end before any is stopped early."""
    workers: int = Field(default=1, ge=1)
    """Trials at a time, each in a process of its own."""
    timeout_minutes: float | None = Field(default=None, gt=0.0)
    """No trial begins after so long; those that run go on to their end."""
    seed: int = Field(default=0, ge=0)
    """Fixes which settings are drawn; with one worker, all of them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.metric is not None and self.metric not in METRICS[self.stage]:
            known = " and ".join(METRICS[self.stage])
            raise ValueError(f"the {self.stage} is judged by {known}, not by {self.metric}")
        return self


@dataclass(frozen=True)
class Judge:
    """Reads a trial's value from what training found after each epoch."""

    metric: Metric

    @classmethod
    def of(cls, config: TuneConfig, tuned: Iterable[str]) -> Self:
        """The judge of a search that tries some settings.

        Raises:
            ConfigError: the log loss would be compared across what changes it by itself.
        """
        metric = config.metric or METRICS[config.stage][0]
        changed = [path for path in tuned if path in _CHANGES_LOG_LOSS]
        if metric == "log_loss" and changed:
            raise ConfigError(
                f"trials are judged before calibration, which undoes {changed[0]}; their log loss "
                "cannot be compared, so use --metric auc"
            )
        return cls(metric)

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Which way the metric is better, in Optuna's words."""
        return "minimize" if self.metric == "log_loss" else "maximize"

    def name(self, history: Sequence[Mapping[str, float]]) -> str:
        """What the metric is called in the history.

        Raises:
            ConfigError: it is not there: nothing of the validation period could be judged.
        """
        for found in history[-1]:
            if _PART[self.metric] in found:
                return found
        raise ConfigError(
            f"the validation period has no {_PART[self.metric].strip(' @')} to judge trials by: "
            "it has no requests, or the log no binary task"
        )

    def values(self, history: Sequence[Mapping[str, float]]) -> list[float]:
        """The metric after each epoch."""
        name = self.name(history)
        return [float(entry[name]) for entry in history]

    def better(self, value: float, than: float | None) -> bool:
        """Whether a value beats another, or there is none yet."""
        if than is None:
            return True
        return value > than if self.direction == "maximize" else value < than
