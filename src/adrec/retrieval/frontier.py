"""The frontier of recall and time as a picture and a table."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from adrec.retrieval.tuning import Point, frontier

_COLOURS = {
    "exact": "#444444",
    "ivf": "#2b5c9e",
    "ivfsq": "#2e8b57",
    "ivfpq": "#c0392b",
    "hnsw": "#8e5ea2",
}


def frontier_table(measured: Sequence[Point], chosen: Point, k: int) -> Table:
    """The frontier, from quick to thorough; the chosen one is marked."""
    table = Table(title=f"one query on one thread, {len(measured)} measured")
    for column in (f"recall@{k}", "p50 ms", "p99 ms", "MB", "build s"):
        table.add_column(column, justify="right")
    table.add_column("index")
    for one in frontier([*measured, chosen]):
        mark = " (chosen)" if one == chosen else ""
        numbers = (
            f"{one.recall:.4f}",
            f"{one.p50_ms:.3f}",
            f"{one.p99_ms:.3f}",
            f"{one.memory_mb:,.1f}",
            f"{one.build_s:.1f}",
        )
        table.add_row(*numbers, one.name + mark)
    return table


def plot_frontier(measured: Sequence[Point], chosen: Point, k: int, picture: Path) -> None:
    """Write a PNG: milliseconds by recall, a line a kind, a ring around the chosen one."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for kind, colour in _COLOURS.items():
        points = frontier([one for one in measured if one.config.kind == kind])
        if points:
            at = [one.recall for one in points], [one.p50_ms for one in points]
            axes.plot(*at, marker="o", markersize=3, color=colour, label=kind)
    axes.plot(chosen.recall, chosen.p50_ms, "o", ms=11, mfc="none", mec="black", label="chosen")
    axes.set(xlabel=f"recall@{k}", ylabel="ms, median, one thread", yscale="log")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    figure.savefig(picture, dpi=110)
