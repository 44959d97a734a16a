"""What the pipeline's own ads and the tenths of a value come to, as tables in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from adrec.evaluation.judged import BEST_POSSIBLE

_TRUE = "true probabilities"


def truth_tables(result: Mapping[str, Any]) -> list[Table]:
    """The pipeline's top ads by task, and each value task by tenths; none where nothing was asked.

    Args:
        result: what `evaluate` returned.
    """
    tables = []
    if result.get("top"):
        tables.append(_table(top_title(result["top"]), top_rows(result["top"])))
    for entry in result.get("deciles", ()):
        title = f"{entry['task']} by tenths of the predicted"
        tables.append(_table(title, decile_rows(entry)))
    return tables


def top_title(top: Mapping[str, Any]) -> str:
    """What was judged, and whether it says anything."""
    about = f"the pipeline's top {top['k']} of {top['requests']:,} requests"
    about += f": {top['rows']:,} ads, by {top['judged_by']}"
    return about if top["enough"] else f"{about} (too few to say anything)"


def top_rows(top: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a task: cells in print by column."""
    actual = "actual" if top["judged_by"] == "matched impressions" else "true"
    return [
        {
            "task": task,
            "predicted": _mean(found["predicted"]),
            actual: _mean(found["actual"]),
            f"pred./{actual}": _ratio(found["predicted"], found["actual"]),
            "cal. error": _mean(found["calibration error"]),
        }
        | ({"best possible": _mean(found["best possible"])} if "best possible" in found else {})
        for task, found in top["tasks"].items()
    ]


def decile_rows(entry: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a tenth, lowest first: cells in print by column. The ratio is to the truth if known."""
    against = _TRUE if _TRUE in entry else "actual"
    names = {"predicted": "predicted", "actual": "actual"}
    names |= {name: short for name, short in _SHORT.items() if name in entry}
    return [
        {"tenth": str(place + 1), "rows": f"{rows:,}"}
        | {short: _mean(entry[name][place]) for name, short in names.items()}
        | {
            f"pred./{_SHORT.get(against, against)}": _ratio(
                entry["predicted"][place], entry[against][place]
            )
        }
        for place, rows in enumerate(entry["rows"])
    ]


_SHORT = {_TRUE: "true", BEST_POSSIBLE: "best possible"}


def _mean(value: float | None) -> str:
    """Four significant digits, whatever the unit."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _ratio(predicted: float | None, actual: float | None) -> str:
    return "–" if predicted is None or not actual else f"{predicted / actual:.3f}"


def _table(title: str, rows: Sequence[Mapping[str, str]]) -> Table:
    """Texts left, numbers right."""
    table = Table(title=Text(title, style="bold"), title_justify="left")
    for place, name in enumerate(rows[0]):
        table.add_column(Text(name), justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row.values()))
    return table
