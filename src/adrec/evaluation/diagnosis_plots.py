"""Plots of what lies behind the metrics: predictions over time, and what features are worth."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from adrec.evaluation.drawing import GRID, INK, MODEL, Plot, name_axes, svg_of
from adrec.evaluation.measures import number
from adrec.evaluation.sheets import minute

_TOP_FEATURES = 20
_DAY_MS = 86_400_000


def over_time_plot(task: str, buckets: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Predicted and actual rate by time, above the AUC; None for less than two stretches."""
    if len(buckets) < 2:
        return None
    figure = Figure(figsize=(6.4, 3.6), layout="constrained", facecolor="none")
    rate, auc = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    # A stretch is drawn as a step over all of its time.
    edges = [buckets[0]["from_ms"], *(one["to_ms"] for one in buckets)]
    errors = [
        1.96 * math.sqrt(max(one["mean"] * (1 - one["mean"]), 0.0) / one["rows"]) for one in buckets
    ]
    middles = [(one["from_ms"] + one["to_ms"]) / 2 for one in buckets]
    actual = [one["mean"] for one in buckets]
    rate.errorbar(
        middles, actual, yerr=errors, fmt="o", color=MODEL.format(1), markersize=4, elinewidth=1
    )
    for axes, name in ((rate, "mean predicted"), (auc, "AUC")):
        for one in buckets:
            value = math.nan if one[name] is None else one[name]
            axes.plot([one["from_ms"], one["to_ms"]], [value] * 2, color=MODEL.format(0))
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_formatter(PercentFormatter(1.0))
    _time_axis(auc, edges)
    name_axes(rate, "", "rate")
    name_axes(auc, "time (UTC)", "AUC")
    figure.align_ylabels()
    said = ", ".join(
        f"{minute(one['from_ms'])}: predicted {number('', one['mean predicted'])}, "
        f"actual {number('', one['mean'])}"
        for one in buckets
    )
    return Plot(
        title=f"{task} over time",
        svg=svg_of(figure, f"time-{task}"),
        label=f"{task} by time. {said}.",
        note=f"Lines are mean predictions, points what happened, in {len(buckets)} stretches of "
        "equal length; bars are ±1.96 standard errors of independent rows.",
    )


def importance_plot(importance: Mapping[str, Any] | None) -> Plot | None:
    """The most important features as bars, the most important on top."""
    if importance is None or not importance["features"]:
        return None
    features = importance["features"][:_TOP_FEATURES]
    places = range(len(features))
    drops = [one["AUC drop"]["estimate"] or 0.0 for one in features]
    figure = Figure(
        figsize=(6.4, 0.7 + 0.22 * len(features)), layout="constrained", facecolor="none"
    )
    axes = figure.subplots()
    axes.barh(places, drops, color=MODEL.format(0), height=0.65)
    for place, one in zip(places, features, strict=True):
        low, high = (one["AUC drop"].get(end) for end in ("low", "high"))
        if low is not None and high is not None:
            axes.plot([low, high], [place] * 2, color=INK, linewidth=1)
    names = [f"{one['feature']} ({one['kind']})" for one in features]
    axes.set_yticks(places, names, parse_math=False)
    axes.invert_yaxis()
    axes.axvline(0, color=GRID, linewidth=1)
    name_axes(axes, "drop of AUC when permuted", "")
    said = ", ".join(
        f"{name} {number('AUC', drop)}" for name, drop in zip(names, drops, strict=True)
    )
    return Plot(
        title="Importance of features",
        svg=svg_of(figure, "importance"),
        label=f"Drop of AUC when one feature is permuted. {said}.",
        note="Thin lines are 95% intervals, where there are any. Of features that say the same, "
        "each looks unimportant: the others stand in.",
    )


def _time_axis(axes: Axes, edges: Sequence[int]) -> None:
    """Some of the edges as ticks: days where there are days, else hours."""
    step = max(1, math.ceil((len(edges) - 1) / 6))
    ticks = edges[::step]
    form = "%m-%d" if edges[-1] - edges[0] > 6 * _DAY_MS else "%m-%d %H:%M"
    labels = [datetime.fromtimestamp(at_ms / 1000, UTC).strftime(form) for at_ms in ticks]
    axes.set_xticks(ticks, labels)
