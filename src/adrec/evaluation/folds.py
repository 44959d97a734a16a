"""Several evaluations as one: each metric's mean, spread and interval over folds, and its table.

    m = Σ x_i / n,   s² = Σ (x_i − m)² / (n − 1),   m ± t(0.975; n − 1) s / √n

The interval takes folds for independent. Folds of one log share training data, and no estimate of
the variance is unbiased then (Bengio and Grandvalet 2004): take it for the least there is to doubt.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text
from scipy.stats import t as student_t

from adrec.evaluation.measures import number
from adrec.evaluation.tables import Models, estimate, in_order, is_reference

_PRINTED = {
    "AUC",
    "GAUC",
    "log loss",
    "calibration error",
    "Spearman",
    "normalised Gini",
    "NDCG",
    "recall",
}


@dataclass(frozen=True, kw_only=True)
class FoldRow:
    """One metric of one model over folds."""

    part: str
    """The task; `ranking` or `retrieval`."""
    model: str
    metric: str
    mean: float | None
    std: float | None
    """Sample standard deviation; None of fewer than two values."""
    low: float | None
    high: float | None
    """Ends of the 95 % interval of the mean."""
    folds: tuple[float | None, ...]
    """Each fold's value; None where it is undefined. These are left out of the mean."""


def fold_rows(results: Sequence[Mapping[str, Any]]) -> list[FoldRow]:
    """Every metric of every model over what `evaluate` found in each fold."""
    parts = [dict(_parts(result)) for result in results]
    names = dict.fromkeys(name for found in parts for name in found)
    rows = []
    for name in names:
        folds = [found.get(name, {}) for found in parts]
        models = dict.fromkeys(model for fold in folds for model in fold)
        for model in in_order(models):
            metrics = dict.fromkeys(m for fold in folds for m in fold.get(model, {}))
            rows += [
                _row(name, model, metric, [estimate(fold, model, metric) for fold in folds])
                for metric in metrics
            ]
    return rows


def fold_tables(rows: Sequence[FoldRow]) -> list[Table]:
    """A table for each task, for ranking and for retrieval; the less telling metrics left out."""
    tables = []
    for part, found in groupby(rows, key=lambda row: row.part):
        table = Table(title=Text(part, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("", overflow="fold", min_width=12)
        for head in ("mean", "sd", "± 95%"):
            table.add_column(head, justify="right", no_wrap=True)
        table.add_column("each fold", overflow="fold")
        for model, of_model in groupby(found, key=lambda row: row.model):
            style = "dim" if is_reference(model) else ""
            table.add_row(Text(model, style="bold"), style=style)
            for row in of_model:
                if row.metric.split("@")[0] in _PRINTED:
                    table.add_row(Text(f"  {row.metric}"), *_cells(row), style=style)
        tables.append(table)
    return tables


def _parts(result: Mapping[str, Any]) -> Iterator[tuple[str, Models]]:
    for task in result["tasks"]:
        yield task["name"], task["models"]
    yield "ranking", result["ranking"]["models"]
    retrieval = result["retrieval"]
    yield "retrieval", {**retrieval["models"], **retrieval.get("pipeline", {})}


def _row(part: str, model: str, metric: str, values: Sequence[float | None]) -> FoldRow:
    known = np.array([value for value in values if value is not None])
    count = len(known)
    mean = float(known.mean()) if count else None
    std = low = high = None
    if mean is not None and count > 1:
        std = float(known.std(ddof=1))
        half = float(student_t.ppf(0.975, count - 1)) * std / math.sqrt(count)
        low, high = mean - half, mean + half
    return FoldRow(
        part=part,
        model=model,
        metric=metric,
        mean=mean,
        std=std,
        low=low,
        high=high,
        folds=tuple(values),
    )


def _cells(row: FoldRow) -> list[str]:
    half = None if row.mean is None or row.high is None else row.high - row.mean
    folds = "  ".join(number(row.metric, value) for value in row.folds)
    return [*(number(row.metric, value) for value in (row.mean, row.std, half)), folds]
