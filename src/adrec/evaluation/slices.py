"""Slices: the same metrics for the impressions that share a value."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adrec import metrics
from adrec.errors import ConfigError
from adrec.evaluation.judged import EvaluationConfig, Impressions, Scores
from adrec.features.dataset import Dataset
from adrec.features.transforms import FieldGroup


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
    places: list[tuple[FieldGroup, NDArray[np.int32], NDArray[np.integer[Any]]]] = [
        (features.user, dataset.static.categorical, static_N),
        (features.request, dataset.request.categorical, request_N),
        (features.ad, dataset.catalogue.encoded.categorical, dataset.ad_N[rows]),
    ]
    for group, codes, of_row in places:
        if column in group.categorical_names:
            place = group.categorical_names.index(column)
            return codes[of_row, place], group.vocabulary(column).text
    names = [name for group, _, _ in places for name in group.categorical_names]
    raise ConfigError(
        f"slice '{column}' is not a categorical field; choose from new user, new ad, position, "
        + ", ".join(names)
    )
