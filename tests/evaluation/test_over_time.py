"""Stretches of time: equal in length, none with so few rows that its rate is noise."""

import numpy as np
import pytest

from adrec import metrics
from adrec.evaluation.judged import judged_impressions
from adrec.evaluation.over_time import bucket_edges, judge_over_time
from adrec.features.dataset import Dataset

HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("rows", "buckets"),
    [
        (24_000, 12),  # 2,000 each
        (6_000, 12),  # 500 each
        (5_990, 11),  # twelfths would hold 499; elevenths hold 544
        (1_000, 2),
        (998, 1),
        (1, 1),
    ],
)
def test_as_many_stretches_as_hold_500_rows(rows: int, buckets: int) -> None:
    # Row i in the middle of its own share of time, so that a stretch holds its share of rows.
    time_N = ((np.arange(rows) + 0.5) * (12 * HOUR_MS / rows)).astype(np.int64)
    edges = bucket_edges(time_N)
    assert len(edges) == buckets + 1
    assert (edges[0], edges[-1]) == (time_N[0], time_N[-1] + 1)
    lengths = np.diff(edges)
    assert lengths.max() - lengths.min() <= 1  # of whole milliseconds


def test_a_pause_is_no_reason_for_long_stretches() -> None:
    # 600 rows in the first minute and in the last of 12 hours, none between.
    minute = np.linspace(0, 60_000, 600).astype(np.int64)
    assert len(bucket_edges(np.concatenate([minute, minute + 12 * HOUR_MS]))) == 13


def test_stretches_are_the_test_period(tiny_dataset: Dataset) -> None:
    shown = judged_impressions(tiny_dataset)
    rng = np.random.default_rng(0)
    ours = rng.uniform(0.01, 0.2, shown.labels_NK.shape)
    found = judge_over_time(tiny_dataset, shown, ours)
    assert list(found) == ["click", "engagement"]  # revenue is a value
    for k, buckets in enumerate(found.values()):
        # The tiny world has 800 test rows: two stretches would have less than 500 each.
        assert [one["rows"] for one in buckets] == [800]
        assert buckets[0]["mean"] == pytest.approx(shown.labels_NK[:, k].mean())
        assert buckets[0]["mean predicted"] == pytest.approx(ours[:, k].mean())
        assert buckets[0]["AUC"] == metrics.auc(ours[:, k], shown.labels_NK[:, k])
        assert buckets[0]["from_ms"] == tiny_dataset.time_ms_R[tiny_dataset.requests("test")[0]]
