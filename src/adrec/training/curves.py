"""Training curves: loss by step and validation metrics by epoch, from a run's log."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def read_log(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines of steps and lines of epochs; a step written twice, by a run resumed, counts once.

    A line that a loss of power cut short is left out.
    """
    steps: dict[tuple[int, int], dict[str, Any]] = {}
    epochs: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if "learning_rate" in entry:
            steps[entry["epoch"], entry["step"]] = entry
        else:
            epochs[entry["epoch"]] = entry
    return [steps[key] for key in sorted(steps)], [epochs[key] for key in sorted(epochs)]


def plot_curves(log: Path, picture: Path, chosen_by: str | None) -> None:
    """Write a PNG with the loss and the metric that chooses the epoch.

    Args:
        log: the run's `log.jsonl`.
        picture: where to write.
        chosen_by: name of the metric; None: there is none.
    """
    steps, epochs = read_log(log)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, 2 if chosen_by else 1, squeeze=False)[0]
    loss = panels[0]
    rows = [entry["rows"] for entry in steps]
    losses = [entry["loss"] for entry in steps]
    window = max(1, len(losses) // 100)
    smooth = [
        sum(losses[max(0, i - window + 1) : i + 1]) / len(losses[max(0, i - window + 1) : i + 1])
        for i in range(len(losses))
    ]
    loss.plot(rows, losses, color="#c7d5e8", linewidth=0.8)
    loss.plot(rows, smooth, color="#2b5c9e", linewidth=1.6)
    loss.set(xlabel="impressions seen", ylabel="training loss", title="Loss")
    numbers = [entry["epoch"] for entry in epochs]
    if chosen_by:
        metric = panels[1]
        metric.plot(numbers, [entry[chosen_by] for entry in epochs], marker="o", color="#2b5c9e")
        metric.set(xlabel="epoch", ylabel=chosen_by, title="Validation", xticks=numbers)
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110)
