"""Ads left out for one request: none comes back, and all others keep their places."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.retrieval.ad_set import AdSet
from adrec.retrieval.exclusion import search_without
from adrec.retrieval.index import AdIndex
from adrec.retrieval.index_config import IndexConfig
from adrec.retrieval.live import LiveConfig, LiveIndex
from contracts.index_contract import TOWER, brute_force

A, D = 60, 4
VECTORS = np.random.default_rng(0).normal(size=(A, D)).astype(np.float32)
ROWS = np.arange(1, A + 1)  # as a catalogue has them: row 0 is no ad
QUERIES = np.random.default_rng(1).normal(size=(3, D)).astype(np.float32)


def built() -> AdIndex:
    return AdIndex.build(VECTORS, IndexConfig(kind="exact"), tower=TOWER, ads=ROWS)


def changed() -> Any:
    half = AdIndex.build(VECTORS[:30], IndexConfig(kind="exact"), tower=TOWER, ads=ROWS[:30])
    live = LiveIndex(half, LiveConfig(), about=None)
    live.put(ROWS[30:], VECTORS[30:], about=None)
    return live.now


@pytest.mark.parametrize("make", [built, changed])
@given(
    excluded=st.lists(st.sets(st.integers(0, 70)), min_size=3, max_size=3),
    k=st.integers(1, 70),
    filtered=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_against_a_brute_force(make, excluded, k, filtered, seed) -> None:
    index = make()
    allowed = np.random.default_rng(seed).random(A + 1) < 0.5 if filtered else np.ones(A + 1, bool)
    found = search_without(
        index,
        QUERIES,
        k,
        [np.array(sorted(rows), np.int64) for rows in excluded],
        allowed=AdSet.of(allowed) if filtered else None,
    )
    assert found.ads_QK.shape == found.scores_QK.shape == (3, k)
    for q, rows in enumerate(excluded):
        mask = allowed[1:] & ~np.isin(ROWS, sorted(rows))
        count = min(k, int(mask.sum()))
        at, scores = brute_force(VECTORS, QUERIES[q : q + 1], count, mask)
        assert found.ads_QK[q, :count].tolist() == ROWS[at[0]].tolist()
        np.testing.assert_allclose(found.scores_QK[q, :count], scores[0], atol=1e-5)
        assert (found.ads_QK[q, count:] == -1).all()
        assert np.isneginf(found.scores_QK[q, count:]).all()
