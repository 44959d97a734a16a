"""Slices: the same metrics for the impressions that share a value."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adrec import metrics
from adrec.errors import ConfigError
from adrec.evaluation.judged import EvaluationConfig, Impressions, Scores
from adrec.features.dataset import Dataset
from adrec.features.transforms import Encoded, FieldGroup


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


def column_of(
    dataset: Dataset, shown: Impressions, column: str
) -> tuple[NDArray[np.integer[Any]], Callable[[int], str]]:
    """Codes of a column for each impression, and how a code reads."""
    rows, features = shown.rows_N, dataset.features
    request_N = np.searchsorted(dataset.offset_R, rows, side="right") - 1
    if column == "position":
        return dataset.position_N[rows], str
    if column in ("new user", "new ad"):
        train = dataset.requests("train")
        known = (
            dataset.user_R[train] if column == "new user" else dataset.ad_N[dataset.rows_of(train)]
        )
        these = dataset.user_R[request_N] if column == "new user" else dataset.ad_N[rows]
        return (~np.isin(these, np.unique(known))).astype(np.int64), lambda new: str(bool(new))
    user_N = dataset.user_R[request_N]
    static_N = np.where(user_N < len(dataset.static), user_N, 0)
    places: list[tuple[FieldGroup, Encoded, NDArray[np.integer[Any]]]] = [
        (features.user, dataset.static, static_N),
        (features.request, dataset.request, request_N),
        (features.ad, dataset.catalogue.encoded, dataset.ad_N[rows]),
    ]
    for group, encoded, of_row in places:
        if column in group.categorical_names:
            place = group.categorical_names.index(column)
            return encoded.categorical[of_row, place], group.vocabulary(column).text
        if column in group.quantile_columns():
            return _fifths(encoded.dense[of_row], group.quantile_columns()[column])
    names = [
        name
        for group, _, _ in places
        for name in (*group.categorical_names, *group.quantile_columns())
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
