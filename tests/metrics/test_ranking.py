"""Ranking inside a group against hand arithmetic, scikit-learn and brute force."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score, roc_auc_score

from adrec import metrics
from adrec.metrics import Grouped
from metrics.logs import impressions, quick

RANKING = [metrics.ndcg_at_k, metrics.map_at_k, metrics.mrr]


def test_gauc_by_hand() -> None:
    # Group a: 3 rows, AUC 1/2 (one win, one loss). Group b: 2 rows, AUC 1. Group c: one class.
    scores = [0.5, 0.9, 0.1, 0.8, 0.2, 0.7]
    labels = [1, 0, 0, 1, 0, 1]
    groups = ["a", "a", "a", "b", "b", "c"]
    assert metrics.gauc(scores, labels, groups) == Grouped(
        pytest.approx((3 * 0.5 + 2 * 1.0) / 5), groups=2, rows=5
    )


@quick
@given(impressions())
def test_gauc_matches_a_loop_over_groups(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    scores, labels, groups = data
    parts = [(scores[groups == g], labels[groups == g]) for g in np.unique(groups)]
    mixed = [(len(y), roc_auc_score(y, s)) for s, y in parts if len(np.unique(y)) == 2]
    rows = sum(size for size, _ in mixed)
    expected = sum(size * value for size, value in mixed) / rows if rows else math.nan
    assert metrics.gauc(scores, labels, groups) == Grouped(
        pytest.approx(expected, nan_ok=True), len(mixed), rows
    )


def test_ranking_by_hand() -> None:
    # Best first, the labels read 0 1 0 1: positives at ranks 2 and 4.
    data = ([0.9, 0.8, 0.7, 0.6], [0, 1, 0, 1], [7, 7, 7, 7])
    ideal = 1 + 1 / math.log2(3)
    dcg = 1 / math.log2(3) + 1 / math.log2(5)
    assert metrics.ndcg_at_k(*data, k=4) == Grouped(pytest.approx(dcg / ideal), 1, 4)
    # At 3 only rank 2 counts, but both positives would fit.
    assert metrics.ndcg_at_k(*data, k=3).value == pytest.approx(1 / math.log2(3) / ideal)
    assert metrics.map_at_k(*data, k=4).value == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert metrics.map_at_k(*data, k=3).value == pytest.approx((1 / 2) / 2)
    assert metrics.map_at_k(*data, k=1).value == 0.0
    assert metrics.mrr(*data, k=4).value == 0.5
    assert metrics.mrr(*data, k=1).value == 0.0


def brute_force(
    name: str, scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, k: int
) -> Grouped:
    """One group after another, with Python's sort."""
    values, rows = [], 0
    for group in sorted(set(groups.tolist())):
        ranked = sorted(zip(-scores[groups == group], labels[groups == group], strict=True))
        hits = [int(label) for _, label in ranked]
        if sum(hits) in (0, len(hits)):
            continue
        rows += len(hits)
        top, best = hits[:k], sorted(hits, reverse=True)[:k]
        if name == "mrr":
            values.append(1 / (top.index(1) + 1) if 1 in top else 0.0)
        elif name == "map_at_k":
            precisions = [sum(top[: i + 1]) / (i + 1) for i, hit in enumerate(top) if hit]
            values.append(sum(precisions) / sum(best))
        else:
            gains = [
                sum(hit / math.log2(i + 2) for i, hit in enumerate(row)) for row in (top, best)
            ]
            values.append(gains[0] / gains[1])
    mean = sum(values) / len(values) if values else math.nan
    return Grouped(pytest.approx(mean, nan_ok=True), len(values), rows)


@pytest.mark.parametrize("metric", RANKING)
@quick
@given(data=impressions(), k=st.integers(1, 12))
def test_ranking_matches_brute_force(
    metric: Callable[..., Grouped], data: tuple[np.ndarray, np.ndarray, np.ndarray], k: int
) -> None:
    assert metric(*data, k) == brute_force(metric.__name__, *data, k)


def test_ranking_matches_scikit_learn_without_ties() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, (50, 12))
    labels[:, :2] = [0, 1]  # both outcomes in every request
    scores = rng.random((50, 12))
    flat = (scores.ravel(), labels.ravel(), np.repeat(np.arange(50), 12))
    for k in (1, 5, 12):
        expected = ndcg_score(labels, scores, k=k)
        assert metrics.ndcg_at_k(*flat, k).value == pytest.approx(expected)
    expected = label_ranking_average_precision_score(labels, scores)
    assert metrics.map_at_k(*flat, 12).value == pytest.approx(expected)


@pytest.mark.parametrize("metric", RANKING)
def test_a_constant_score_earns_the_worst_value_even_if_the_log_lists_clicks_first(
    metric: Callable[..., Grouped],
) -> None:
    constant = metric([0.5] * 4, [1, 0, 0, 0], [0] * 4, 4).value
    assert constant == metric([1, 2, 3, 4], [1, 0, 0, 0], [0] * 4, 4).value
