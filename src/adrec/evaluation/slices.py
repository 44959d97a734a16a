"""Slices: the same metrics for the impressions that share a value.

Those of columns that someone names, and of all categorical fields the largest and the worst.

Shapes: N impressions, B bins.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adrec import metrics
from adrec.errors import ConfigError
from adrec.evaluation.columns import Trained, request_of, sides
from adrec.evaluation.judged import EvaluationConfig, Impressions, Scores
from adrec.features.dataset import Dataset

NEW_USER, NEW_AD = "new user", "new ad"
_LARGEST, _WORST = 10, 20
_MOST_OF_ALL = 0.9
_ENOUGH_ROWS = 200
_CHANCE_DRAWS, _FEWEST_DRAWS, _DRAWN_ROWS = 50, 5, 5_000_000


def judge_slice(
    dataset: Dataset, shown: Impressions, ours: Scores, column: str, config: EvaluationConfig
) -> list[dict[str, Any]]:
    """Our metrics of the first task for each frequent value of a column."""
    codes_N, texts = column_of(dataset, shown, column)
    values, counts = np.unique(codes_N, return_counts=True)
    found = []
    for value in values[np.argsort(-counts, kind="stable")][: config.slice_values]:
        mine = codes_N == value
        predicted, labels = ours[mine, 0], shown.labels_NK[mine, 0]
        found.append(
            {
                "column": column,
                "value": texts(int(value)),
                "rows": int(mine.sum()),
                "mean": float(labels.mean()),
                "mean predicted": float(predicted.mean()),
                "AUC": metrics.auc(predicted, labels),
                "log loss": metrics.log_loss(predicted, labels),
            }
        )
    return found


def largest_and_worst(
    dataset: Dataset, shown: Impressions, ours: Scores, seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Our first task by every value of every categorical field, of users and ads that are new, too.

    Args:
        dataset: the prepared log.
        shown: what is judged.
        ours: our scores [N, K].
        seed: of the labels that are drawn for `calibration error by chance`.

    Returns:
        The 10 largest slices, largest first; and of those with 200 rows and both outcomes the 20
        with the lowest AUC, lowest first. Slices with more than 90 % of the rows are left out, and
        so are those that hold the same rows as one before.
    """
    most = _MOST_OF_ALL * len(shown.rows_N)
    distinct: dict[int, _Slice] = {}
    for one in _all_slices(dataset, shown, ours):
        if one.rows <= most:
            distinct.setdefault(one.same_rows, one)
    found = list(distinct.values())
    largest = sorted(found, key=lambda one: -one.rows)[:_LARGEST]
    judged = [one for one in found if np.isfinite(one.auc)]
    worst = sorted(judged, key=lambda one: one.auc)[:_WORST]
    return (
        [_closely(dataset, shown, ours, one, seed) for one in largest],
        [_closely(dataset, shown, ours, one, seed) for one in worst],
    )


def calibration_error_by_chance(predicted_N: Scores, rng: np.random.Generator) -> float:
    """The calibration error that these predictions would have if all of them were true.

    The mean over draws of y ~ Bernoulli(p) of Σ_b |Σ p in b − Σ y in b| / N, in the bins of
    `metrics.calibration_error`. 50 draws; fewer, but 5, where they would be of more than 5 million
    rows: chance is small there.
    """
    predicted = np.sort(predicted_N)
    # Bins are cut by rank, so they are runs of the sorted predictions.
    count_B = metrics.reliability(predicted, np.zeros_like(predicted)).count
    start_B = np.cumsum(count_B) - count_B
    expected_B = np.add.reduceat(predicted, start_B)
    draws = max(_FEWEST_DRAWS, min(_CHANCE_DRAWS, _DRAWN_ROWS // len(predicted)))
    gaps = 0.0
    for _ in range(draws):
        drawn_N = (rng.random(len(predicted)) < predicted).astype(np.float64)
        gaps += np.abs(np.add.reduceat(drawn_N, start_B) - expected_B).sum()
    return float(gaps / (draws * len(predicted)))


@dataclass(frozen=True)
class _Slice:
    """The impressions that have one code in a column."""

    column: str
    code: int
    rows: int
    same_rows: int
    """A hash of which rows they are."""
    auc: float
    """NaN with too few rows or one outcome only."""


def _all_slices(dataset: Dataset, shown: Impressions, ours: Scores) -> Iterator[_Slice]:
    names = [name for side in sides(dataset, shown.rows_N) for name in side.group.categorical_names]
    for column in (NEW_USER, NEW_AD, *names):
        codes_N, _ = column_of(dataset, shown, column)
        order = np.argsort(codes_N, kind="stable")
        codes, starts = np.unique(codes_N[order], return_index=True)
        for code, mine in zip(codes, np.split(order, starts[1:]), strict=True):
            auc = float("nan")
            if len(mine) >= _ENOUGH_ROWS:
                auc = metrics.auc(ours[mine, 0], shown.labels_NK[mine, 0])
            yield _Slice(column, int(code), len(mine), hash(mine.tobytes()), auc)


def _closely(
    dataset: Dataset, shown: Impressions, ours: Scores, one: _Slice, seed: int
) -> dict[str, Any]:
    codes_N, texts = column_of(dataset, shown, one.column)
    mine = codes_N == one.code
    predicted, labels = ours[mine, 0], shown.labels_NK[mine, 0]
    return {
        "column": one.column,
        "value": texts(one.code),
        "rows": len(labels),
        "mean": float(labels.mean()),
        "mean predicted": float(predicted.mean()),
        "AUC": metrics.auc(predicted, labels),
        "calibration error": metrics.calibration_error(predicted, labels),
        "calibration error by chance": calibration_error_by_chance(
            predicted, np.random.default_rng(seed)
        ),
    }


def column_of(
    dataset: Dataset, shown: Impressions, column: str
) -> tuple[NDArray[np.integer[Any]], Callable[[int], str]]:
    """Codes of a column for each impression, and how a code reads."""
    rows = shown.rows_N
    if column == "position":
        return dataset.position_N[rows], str
    if column in (NEW_USER, NEW_AD):
        trained = Trained.by(dataset)
        new_N = (
            trained.new_users(dataset.user_R[request_of(dataset, rows)])
            if column == NEW_USER
            else trained.new_ads(dataset.ad_N[rows])
        )
        return new_N.astype(np.int64), lambda new: str(bool(new))
    places = sides(dataset, rows)
    for side in places:
        if column in side.group.categorical_names:
            return side.codes(column), side.group.vocabulary(column).text
        if column in side.group.quantile_columns():
            quantile = side.group.quantile_columns()[column]
            return _fifths(side.encoded.dense[side.thing_N], quantile)
    names = [
        name
        for side in places
        for name in (*side.group.categorical_names, *side.group.quantile_columns())
    ]
    raise ConfigError(
        f"slice '{column}' is neither a categorical nor a numeric field; choose from new user, "
        "new ad, position, " + ", ".join(names)
    )


def _fifths(
    dense_ND: NDArray[np.float32], quantile: int
) -> tuple[NDArray[np.int64], Callable[[int], str]]:
    """Fifths of a number by its training quantile; code 5 where it is missing."""
    place_N = (dense_ND[:, quantile].astype(np.float64) + 1.0) / 2.0
    code_N = np.clip(np.floor(place_N * 5), 0, 4).astype(np.int64)
    code_N[dense_ND[:, quantile + 1] > 0] = 5
    return code_N, lambda code: "(missing)" if code == 5 else f"fifth {code + 1} of 5"
