"""What a search found: the best settings, every trial, and two plots."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adrec.config import RunConfig, with_settings, write_config
from adrec.tuning.config import Judge
from adrec.tuning.trial import Ending, Outcome, labels

FILES = ("best.yaml", "trials.csv", "history.png", "importance.png")
"""What a search leaves in its folder for people."""

_BLUE, _GREY = "#2b5c9e", "#8a8f98"


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """All trials of a search."""

    config: RunConfig
    """The settings that trials started from."""
    judge: Judge
    outcomes: tuple[Outcome, ...]
    best: Outcome | None
    importance: Mapping[str, float]
    """Share of the metric's variance by setting, the largest first."""

    @property
    def metric(self) -> str:
        """What trials are judged by, as a person reads it."""
        names = [outcome.metric for outcome in self.outcomes if outcome.metric is not None]
        return names[0] if names else self.judge.metric

    def ranked(self) -> list[Outcome]:
        """The trials that came to their end, the best first."""
        ended = [o for o in self.outcomes if o.ending == "done" and o.value is not None]
        sign = -1.0 if self.judge.direction == "maximize" else 1.0
        return sorted(ended, key=lambda o: sign * (o.value or 0.0))

    def best_config(self) -> RunConfig:
        """All settings, with those of the best trial."""
        assert self.best is not None
        return with_settings(self.config, self.best.settings, source="the best trial")

    def as_json(self) -> dict[str, Any]:
        """The same for scripts."""
        return {
            "metric": self.metric,
            "direction": self.judge.direction,
            "best": None if self.best is None else self.best.number,
            "importance": dict(self.importance),
            "trials": [_row(outcome) | {"settings": outcome.settings} for outcome in self.outcomes],
        }


def write_so_far(out: Path, tuned: Tuned) -> None:
    """Write `trials.csv` and, once there is one, the best settings as `best.yaml`."""
    rows = [_row(outcome) | dict(outcome.settings) for outcome in tuned.outcomes]
    with (out / "trials.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if tuned.best is None:
        return
    best = tuned.best
    header = (
        f"# Trial {best.number}, the best of {len(tuned.outcomes)}: {tuned.metric} "
        f"{best.value:.4f} on the validation period, after epoch {best.epoch} of {best.epochs}.\n"
        "# Epochs are as they were in the trial: the learning rate falls over all of them, and\n"
        "# training keeps the best by itself.\n"
    )
    write_config(out / "best.yaml", tuned.best_config(), header=header)


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "trial": outcome.number,
        "ending": outcome.ending,
        "metric": outcome.metric,
        "value": outcome.value,
        "epoch": outcome.epoch,
        "epochs": outcome.epochs,
        "minutes": round(outcome.minutes, 3),
        "problem": outcome.problem,
    }


def write_plots(out: Path, tuned: Tuned) -> None:
    """Write `history.png` and, where there are trials enough to tell, `importance.png`."""
    _plot_history(out / "history.png", tuned)
    (out / "importance.png").unlink(missing_ok=True)
    if tuned.importance:
        _plot_importance(out / "importance.png", tuned)


def _plot_history(picture: Path, tuned: Tuned) -> None:
    """The metric of each trial, and the best so far."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    best: float | None = None
    numbers, bests = [], []
    for outcome in tuned.outcomes:
        if outcome.ending == "done" and outcome.value is not None:
            best = outcome.value if tuned.judge.better(outcome.value, best) else best
        if best is not None:
            numbers.append(outcome.number)
            bests.append(best)
    axes.step(numbers, bests, where="post", color=_BLUE, linewidth=1.6, label="best so far")
    axes.scatter(*_points(tuned, "done"), marker="o", color=_BLUE, label="trial")
    low, high = axes.get_ylim()
    x, y = _points(tuned, "pruned")
    if x:  # one that was hopeless must not squeeze the others into a line
        label = "stopped early; at the edge where it was beyond"
        inside = np.clip(y, low, high)
        axes.scatter(x, inside, marker="x", color=_GREY, label=label, clip_on=False)
        axes.set_ylim(low, high)
    axes.set(xlabel="trial", ylabel=f"{tuned.metric} (validation)", title="Trials")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    _finish(figure, picture)


def _points(tuned: Tuned, ending: Ending) -> tuple[list[int], list[float]]:
    """Numbers and values of the trials with that ending."""
    found = [o for o in tuned.outcomes if o.ending == ending and o.value is not None]
    return [o.number for o in found], [o.value or 0.0 for o in found]


def _plot_importance(picture: Path, tuned: Tuned) -> None:
    """Bars of the settings' importance, the largest on top."""
    short = labels(list(tuned.importance))
    figure = Figure(figsize=(9, 1.2 + 0.35 * len(short)), layout="constrained")
    axes = figure.subplots()
    shares = list(tuned.importance.values())[::-1]
    bars = axes.barh(list(short.values())[::-1], shares, color=_BLUE)
    axes.bar_label(bars, [f"{share:.0%}" for share in shares], padding=3)
    axes.set(xlabel=f"share of the variance of {tuned.metric}", title="Importance (fANOVA)")
    axes.set_xlim(0, 1.1 * max(shares))
    _finish(figure, picture)


def _finish(figure: Figure, picture: Path) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110)
