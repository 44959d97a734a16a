"""Does a model stay true? Its predictions beside what happened, from stretch to stretch of time.

Shapes: N impressions, K tasks.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from adrec import metrics
from adrec.evaluation.columns import request_of
from adrec.evaluation.judged import Impressions, Scores
from adrec.features.dataset import Dataset

_MOST_BUCKETS, _FEWEST_ROWS = 12, 500


def judge_over_time(
    dataset: Dataset, shown: Impressions, ours: Scores
) -> dict[str, list[dict[str, Any]]]:
    """Each binary task in stretches of the test period of equal length.

    Args:
        dataset: the prepared log.
        shown: what is judged.
        ours: our scores [N, K].

    Returns:
        By task, a stretch each: `from_ms`, `to_ms`, `rows`, `mean`, `mean predicted` and `AUC`.
    """
    time_N = dataset.time_ms_R[request_of(dataset, shown.rows_N)]
    edges = bucket_edges(time_N)
    bounds = np.searchsorted(time_N, edges)
    found: dict[str, list[dict[str, Any]]] = {}
    for k, task in enumerate(dataset.features.schema.tasks):
        if task.kind != "binary":
            continue
        found[task.name] = []
        for i, (first, end) in enumerate(pairwise(bounds)):
            if first == end:
                continue
            predicted, labels = ours[first:end, k], shown.labels_NK[first:end, k]
            found[task.name].append(
                {
                    "from_ms": int(edges[i]),
                    "to_ms": int(edges[i + 1]),
                    "rows": int(end - first),
                    "mean": float(labels.mean()),
                    "mean predicted": float(predicted.mean()),
                    "AUC": metrics.auc(predicted, labels),
                }
            )
    return found


def bucket_edges(time_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where stretches of equal length begin, and where the last ends.

    At most 12, and as many as leave none with some rows but less than 500: a rate of fewer is
    noise. Stretches without a row may be: a log can pause.

    Args:
        time_N: ascending times in milliseconds, at least one.
    """
    first, end = int(time_N[0]), int(time_N[-1]) + 1
    for buckets in range(_MOST_BUCKETS, 1, -1):
        edges = np.linspace(first, end, buckets + 1).astype(np.int64)
        rows = np.diff(np.searchsorted(time_N, edges))
        if not ((rows > 0) & (rows < _FEWEST_ROWS)).any():
            return edges
    return np.array([first, end])
