"""Recall against hand arithmetic and Python's sets."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adrec import metrics
from adrec.errors import ConfigError, DataError
from metrics.logs import quick


def test_recall_by_hand() -> None:
    # Query 0 wants 3 and 9: first of two ranked at 1, none further. Query 1 wants nothing.
    # Query 2 wants 5, found at rank 2 before padding.
    ranked = [[3, 1, 2], [4, 5, 6], [8, 5, -1]]
    recall = metrics.recall_at_k(ranked, ([0, 2, 2, 3], [3, 9, 5]), ks=[1, 2, 3])
    assert recall == {1: (0.5 + 0) / 2, 2: (0.5 + 1) / 2, 3: (0.5 + 1) / 2}


@quick
@given(st.integers(0, 2**32 - 1))
def test_recall_matches_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, depth, ads = rng.integers(0, 8), rng.integers(1, 10), 15
    ranked = np.array([rng.permutation(ads)[:depth] for _ in range(queries)], dtype=int)
    ranked = ranked.reshape(queries, depth)
    ranked[rng.random(ranked.shape) < 0.2] = -1
    wanted = [rng.integers(0, ads, rng.integers(0, 6)) for _ in range(queries)]
    offsets = np.cumsum([0, *map(len, wanted)])
    for k, recall in metrics.recall_at_k(
        ranked, (offsets, np.concatenate([[], *wanted])), ks=range(1, depth + 1)
    ).items():
        shares = [
            len({*row[:k].tolist()} & {*want.tolist()}) / len({*want.tolist()})
            for row, want in zip(ranked, wanted, strict=True)
            if len(want)
        ]
        assert recall == pytest.approx(np.mean(shares) if shares else math.nan, nan_ok=True)


def test_ndcg_by_hand() -> None:
    # Query 0 wants 3 and 9 and finds 3 first: 1 of the best 1 + 1/log2(3). Query 1 wants nothing.
    # Query 2 finds its only one in the second place.
    ranked = [[3, 1, 2], [4, 5, 6], [8, 5, -1]]
    second = 1 / math.log2(3)
    found = metrics.query_ndcg(ranked, ([0, 2, 2, 3], [3, 9, 5]), k=2)
    assert found.tolist() == pytest.approx([1 / (1 + second), second])
    assert metrics.query_ndcg(ranked, ([0, 2, 2, 3], [3, 9, 5]), k=1).tolist() == [1.0, 0.0]


def test_recall_refuses_what_would_be_a_wrong_number() -> None:
    with pytest.raises(ConfigError, match="ks holds 4, but 3 ads were ranked"):
        metrics.recall_at_k([[1, 2, 3]], ([0, 1], [1]), ks=[4])
    with pytest.raises(DataError, match="an ad twice in one query"):
        metrics.recall_at_k([[1, 2, 1]], ([0, 1], [1]), ks=[3])
    with pytest.raises(DataError, match="offsets must rise from 0 to 2"):
        metrics.recall_at_k([[1, 2, 3]], ([0, 1], [1, 2]), ks=[3])
    with pytest.raises(DataError, match="ad row -1"):
        metrics.recall_at_k([[1, 2, 3]], ([0, 1], [-1]), ks=[3])
