"""What is judged: the test period's impressions, how they are grouped, and how much is done."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adrec.features.dataset import Dataset
from adrec.schema import Strict

OURS = "adrec"
BEST_POSSIBLE = "best possible (observable)"
"""The ideal observer of a synthetic world."""

BY_DAY = "user and day"

Scores = NDArray[np.float64]


class EvaluationConfig(Strict):
    """How much is evaluated, and how."""

    replicates: int = Field(default=200, ge=0)
    """Bootstrap replicates of each interval, clustered by user (by request without users); 0: no
    intervals."""
    k: int = Field(default=10, ge=1)
    """Depth of NDCG and MAP."""
    recall_at: tuple[int, ...] = (10, 50, 100, 500)
    """Depths of recall."""
    queries: int = Field(default=2000, ge=1)
    """Users (requests without users) whose clicked ads retrieval must find, evenly spread."""
    pipeline_queries: int = Field(default=200, ge=0)
    """Queries of those for which the ranker also orders the candidates."""
    slices: tuple[str, ...] = ()
    """Fields by whose values (numbers: fifths) to look closer; also `new user`, `new ad` and
    `position`."""
    slice_values: int = Field(default=20, ge=1)
    """Most frequent values of each that are shown."""
    importance_rows: int = Field(default=2000, ge=0)
    """Test impressions, of requests evenly spread, among which each feature is permuted to see
    what it is worth; 0: none."""
    rivals: bool = True
    """Whether popularity, an item-to-item model and what is installed of LightGBM and iALS are
    trained too."""
    seed: int = Field(default=0, ge=0)
    """Of the bootstrap, of permutations and of labels drawn by chance."""


@dataclass(frozen=True)
class Impressions:
    """The test period's impressions: rows of the dataset, labels, and what they are grouped by."""

    rows_N: NDArray[np.int64]
    labels_NK: Scores
    unit_N: NDArray[np.int64]
    """User, or request where there are no users: what the bootstrap draws."""
    group_N: NDArray[np.int64]
    """Request where the log has requests, else user and day: what is ranked together."""
    grouped_by: str


def judged_impressions(dataset: Dataset) -> Impressions:
    """The impressions that everything is judged on."""
    test = dataset.requests("test")
    rows = dataset.rows_of(test)
    request_N = np.searchsorted(dataset.offset_R, rows, side="right") - 1
    user_N = dataset.user_R[request_N]
    schema = dataset.features.schema
    group_N, grouped_by = request_N, "request"
    if schema.request_id is None and schema.user_id is not None:
        day_N = dataset.time_ms_R[request_N] // 86_400_000
        group_N, grouped_by = (user_N << 20) + day_N, BY_DAY
    return Impressions(
        rows_N=rows,
        labels_NK=dataset.labels_NK[rows].astype(np.float64),
        unit_N=request_N if schema.user_id is None else user_N,
        group_N=group_N,
        grouped_by=grouped_by,
    )
