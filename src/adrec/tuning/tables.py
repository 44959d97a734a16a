"""A search in the terminal."""

from rich.table import Table

from adrec.tuning.results import Tuned
from adrec.tuning.trial import labels, shown

_SHOWN = 5


def result_tables(tuned: Tuned) -> list[Table]:
    """The best trials with their settings, and how much each setting matters."""
    ranked = tuned.ranked()
    counts = [
        f"{sum(outcome.ending == ending for outcome in tuned.outcomes)} {ending}"
        for ending in ("done", "pruned", "failed")
    ]
    best = Table(title=f"best trials of {len(tuned.outcomes)} ({', '.join(counts)})")
    for column in ("trial", tuned.metric, "epoch", "minutes"):
        best.add_column(column, justify="right")
    best.add_column("settings")
    short = labels(list(ranked[0].settings))
    for outcome in ranked[:_SHOWN]:
        best.add_row(
            str(outcome.number),
            f"{outcome.value:.4f}",
            f"{outcome.epoch} of {outcome.epochs}",
            f"{outcome.minutes:.1f}",
            shown(outcome.settings, short),
        )
    if not tuned.importance:
        return [best]
    importance = Table(title=f"importance, by fANOVA over {len(ranked)} trials")
    importance.add_column("setting")
    importance.add_column(f"share of the variance of {tuned.metric}", justify="right")
    for path, share in tuned.importance.items():
        importance.add_row(path, f"{share:.0%}")
    return [best, importance]
