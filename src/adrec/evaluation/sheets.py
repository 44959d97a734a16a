"""What lies behind the metrics, as small tables of text: the terminal and the page print the same.

Each function takes a part of what `evaluate` returned and gives the sheets it fills: none where
there is nothing to show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from adrec.evaluation.measures import MISSING, interval, number

_TOP_FEATURES = 20
_PREDICTED = "mean predicted"  # the mean times the ratio
_ROWS = ("training rows, p10", "p50", "p90")


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table whose first columns are names and whose others are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    """How many columns are names."""

    def brief(self, rows: int) -> "Sheet":
        """Only the first rows, and no column that another one tells as well."""
        kept = [i for i, column in enumerate(self.columns) if column != _PREDICTED]
        return Sheet(
            title=self.title,
            columns=[self.columns[i] for i in kept],
            rows=[[row[i] for i in kept] for row in self.rows[:rows]],
            names=self.names,
        )


def over_time(result: Mapping[str, Any]) -> list[Sheet]:
    """Each binary task by stretches of time."""
    return [
        Sheet(
            title=f"{task} by time (UTC)",
            columns=("from", "rows", "mean", _PREDICTED, "pred./act.", "AUC"),
            rows=[(minute(one["from_ms"]), *_calibration(one)) for one in buckets],
        )
        for task, buckets in result["over_time"].items()
    ]


def largest_slices(result: Mapping[str, Any]) -> list[Sheet]:
    """The largest values of all categorical fields."""
    return _slices(result, "largest_slices", "the largest slices")


def worst_slices(result: Mapping[str, Any]) -> list[Sheet]:
    """The values of all categorical fields with the lowest AUC."""
    return _slices(result, "worst_slices", "the worst slices first")


def importance(result: Mapping[str, Any]) -> list[Sheet]:
    """The most important features."""
    found = result["importance"]
    if found is None:
        return []
    of = f"{found['impressions']:,} impressions, AUC {number('AUC', found['AUC'])}"
    return [
        Sheet(
            title=f"importance of features for {found['task']}: {of}",
            columns=("feature", "kind", "AUC drop", "95% interval", "log loss rise"),
            rows=[
                (
                    one["feature"],
                    one["kind"],
                    number("AUC", one["AUC drop"]["estimate"], signed=True),
                    interval("AUC", one["AUC drop"], signed=True) or MISSING,
                    number("log loss", one["log loss rise"], signed=True),
                )
                for one in found["features"][:_TOP_FEATURES]
            ],
            names=2,
        )
    ]


def cold_start(result: Mapping[str, Any]) -> list[Sheet]:
    """Every model on new users, on new ads and on what training met, for each binary task."""
    sheets = []
    for task in dict.fromkeys(one["task"] for one in result["cold_start"]):
        groups = [one for one in result["cold_start"] if one["task"] == task and one["rows"]]
        models = dict.fromkeys(model for one in groups for model in one["models"])
        about = ", ".join(f"{one['group']} {one['rows']:,} rows" for one in groups)
        heads = [(one["group"], name) for one in groups for name in ("AUC", "log loss")]
        sheets.append(
            Sheet(
                title=f"{task}: {about}",
                columns=("model", *(f"{group}: {name}" for group, name in heads)),
                rows=[
                    (
                        model,
                        *(
                            number(name, one["models"][model][name]["estimate"])
                            for one in groups
                            for name in ("AUC", "log loss")
                        ),
                    )
                    for model in models
                ],
            )
        )
    return sheets


def cold_retrieval(result: Mapping[str, Any]) -> list[Sheet]:
    """Recall of new users' queries and of new ads."""
    sheets = []
    for group, what in (("new users", "queries"), ("new ads", "targets")):
        link = "for" if what == "queries" else "of"
        found = result["retrieval"].get("cold", {}).get(group, {})
        if not found.get("models"):
            continue
        depths = list(next(iter(found["models"].values())))
        sheets.append(
            Sheet(
                title=f"retrieval {link} {group}: {found[what]:,} {what}",
                columns=("model", *depths),
                rows=[
                    (model, *(number(name, recalls[name]["estimate"]) for name in depths))
                    for model, recalls in found["models"].items()
                ],
            )
        )
    return sheets


def coverage(result: Mapping[str, Any]) -> list[Sheet]:
    """What training has met of the test period."""
    return [
        Sheet(
            title="what training has met, in shares of the test impressions",
            columns=("field", "of", "values", "known", "rare or new", "missing", *_ROWS),
            rows=[
                (
                    one["field"],
                    one["of"],
                    f"{one['values']:,}",
                    *(f"{one[name]:.1%}" for name in ("known", "rare or new", "missing")),
                    *(f"{one['training rows'][p]:,}" for p in ("p10", "p50", "p90")),
                )
                for one in result["coverage"]
            ],
            names=2,
        )
    ]


def minute(at_ms: int) -> str:
    """A time in print."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _slices(result: Mapping[str, Any], key: str, title: str) -> list[Sheet]:
    columns = ("field", "value", "rows", "mean", _PREDICTED, "pred./act.", "AUC")
    by_chance = ("cal. error", "by chance")
    rows = [
        (
            one["column"],
            one["value"],
            *_calibration(one),
            number("calibration error", one["calibration error"]),
            number("calibration error", one["calibration error by chance"]),
        )
        for one in result[key]
    ]
    if not rows:
        return []
    task = result["ranking"]["task"]
    return [Sheet(title=f"{task}: {title}", columns=(*columns, *by_chance), rows=rows, names=2)]


def _calibration(one: Mapping[str, Any]) -> tuple[str, ...]:
    """Rows, means, their ratio and AUC in print."""
    mean, predicted = one["mean"], one["mean predicted"]
    ratio = predicted / mean if mean and predicted is not None else None
    return (
        f"{one['rows']:,}",
        number("", mean),
        number("", predicted),
        number("mean predicted / actual", ratio),
        number("AUC", one["AUC"]),
    )
