"""How far a filter makes a search look, against the true ranks."""

import numpy as np
import pytest

from adrec.retrieval.ad_set import AdSet
from adrec.retrieval.index import AdIndex
from adrec.retrieval.index_config import IndexConfig
from adrec.retrieval.passing import Places
from adrec.retrieval.planning import SAMPLE_ROWS, Sample, share_to_rank
from contracts.index_contract import TOWER, brute_force, recall

A, D, K = 20_000, 16, 50


@pytest.fixture(scope="module")
def ads() -> np.ndarray:
    """Around 60 centres."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(60, D))[rng.integers(60, size=A)] + rng.normal(size=(A, D))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def filters(ads: np.ndarray, query: np.ndarray, share: float) -> dict[str, np.ndarray]:
    """At random; or around an ad near the query, or around the one farthest from it."""
    rng, order = np.random.default_rng(1), np.argsort(ads @ query)
    near, far = ads @ ads[order[-K]], ads @ ads[order[0]]
    return {
        "random": rng.random(A) < share,
        "near": near >= np.quantile(near, 1 - share),
        "far": far >= np.quantile(far, 1 - share),
    }


@pytest.mark.parametrize("share", [0.5, 0.2, 0.05])
@pytest.mark.parametrize("where", ["random", "near", "far"])
def test_the_rank_of_the_last_allowed_ad(ads: np.ndarray, share: float, where: str) -> None:
    """Within half and twice the true one: the rank of the sample's 16th allowed ad is known to a
    quarter, and two deviations of that are allowed for."""
    rng = np.random.default_rng(2)
    drawn = rng.choice(A, SAMPLE_ROWS, replace=False)
    sample = Sample(drawn, ads[drawn], A)
    for query in ads[:5]:
        allowed = filters(ads, query, share)[where]
        score = ads @ query
        true = (score >= np.sort(score[allowed])[-K]).sum()
        passing = Places(None, A).passing(AdSet.of(allowed))
        assert passing is not None
        found = sample.rank(query[None], passing, K)[0]
        assert 0.5 * true <= found <= 2.0 * true


def test_an_unseen_filter_is_taken_to_be_far(ads: np.ndarray) -> None:
    sample = Sample(np.arange(100), ads[:100], A)
    passing = Places(None, A).passing(AdSet.of_rows(np.array([200, 300]), A))
    assert passing is not None
    assert sample.rank(ads[:3], passing, 2).tolist() == [A, A, A]


def test_the_share_of_lists() -> None:
    """A tenth of them for the best 100 of 10,000: each tenfold of the rank takes 10^.5 times as
    many, up to all."""
    ranks = np.array([100.0, 1_000.0, 10_000.0])
    np.testing.assert_allclose(share_to_rank(ranks, 100, 0.1, 10_000), [0.1, 0.1 * 10**0.5, 1.0])
    assert share_to_rank(ranks, 100, 1.0, 10_000).tolist() == [1.0, 1.0, 1.0]
    assert share_to_rank(ranks, 10_000, 0.1, 10_000).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001])
@pytest.mark.parametrize(
    "config",
    [
        IndexConfig(kind="exact"),
        IndexConfig(kind="ivf", nlist=200, nprobe=16),
        IndexConfig(kind="ivfpq", nlist=200, nprobe=16),
        IndexConfig(kind="hnsw", hnsw_links=12, ef_construction=60, ef_search=100),
    ],
    ids=lambda config: config.kind,
)
def test_recall_wherever_the_filter_lies(
    ads: np.ndarray, config: IndexConfig, share: float
) -> None:
    """The goal, .95 of the best, for a filter of its own with each query."""
    index = AdIndex.build(ads, config, tower=TOWER)
    for where in ("random", "near", "far"):
        found, truth = [], []
        for query in ads[:10, None]:
            allowed = filters(ads, query[0], share)[where]
            count = min(K, int(allowed.sum()))
            found.append(index.search(query, count, allowed=AdSet.of(allowed)).ads_QK[0])
            truth.append(brute_force(ads, query, count, allowed)[0][0])
            assert allowed[found[-1]].all()
        assert recall(found, truth) >= 0.95, where


def test_queries_of_one_batch_may_go_differently_far(ads: np.ndarray) -> None:
    """For one query the filter is near, for the other far: each is answered as if alone."""
    index = AdIndex.build(ads, IndexConfig(kind="ivf", nlist=200, nprobe=16), tower=TOWER)
    score = ads @ ads[0]
    allowed = AdSet.of(score >= np.quantile(score, 0.7))
    queries = np.stack([ads[0], -ads[0]])
    together = index.search(queries, K, allowed=allowed)
    for q in range(2):
        alone = index.search(queries[q : q + 1], K, allowed=allowed)
        np.testing.assert_array_equal(together.ads_QK[q], alone.ads_QK[0])
