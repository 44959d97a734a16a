"""What an index owes its caller: `SearchContract` any, `AdIndexContract` every kind of `AdIndex`.

A kind gets the whole suite in a five-line class:

class TestIvf(AdIndexContract):
    config = IndexConfig(kind="ivf", nlist=32, nprobe=12)
    recall_floor = 0.96
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adrec.errors import BundleError, ConfigError, DataError
from adrec.retrieval.ad_set import AdSet
from adrec.retrieval.index import AdIndex, Found
from adrec.retrieval.index_config import IndexConfig

A, D, Q, K = 4_000, 33, 20, 50  # 32 unit-norm columns and a bias; 33 suits no SIMD width
TOWER = "a" * 16


def clustered(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ads [A, D] around 100 centres, with a bias column; queries [Q, D] like the ads, bias 1."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(100, D - 1))
    points = centres[rng.integers(0, 100, A + Q)] + 0.5 * rng.normal(size=(A + Q, D - 1))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    last = np.concatenate([rng.normal(0, 0.1, A), np.ones(Q)])
    both = np.column_stack([points, last]).astype(np.float32)
    return both[:A], both[A:]


def brute_force(
    vectors: np.ndarray, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and scores [Q, k] by numpy alone."""
    scores = queries @ vectors.T
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    at = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return at, np.take_along_axis(scores, at, axis=1)


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([np.isin(t, f).mean() for f, t in zip(found, truth, strict=True)]))


class SearchContract:
    config: IndexConfig
    recall_floor: float  # recall@K, unfiltered and filtered; the least measured is .02 above
    score_tolerance = 1e-5  # |score - float32 inner product|; 8-bit refinement needs more

    @pytest.fixture(scope="class")
    @classmethod
    def data(cls) -> tuple[np.ndarray, np.ndarray]:
        return clustered()

    @pytest.fixture(scope="class")
    @classmethod
    def ads(cls) -> np.ndarray:
        """Catalogue rows with gaps and in no order, so that a position is never its row."""
        return np.random.default_rng(1).permutation(A + 500)[:A].astype(np.int64)

    @classmethod
    def build(cls, vectors: np.ndarray, ads: np.ndarray | None = None, threads: int = 1) -> Any:
        """An index of just these ads."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def index(cls, data: tuple[np.ndarray, np.ndarray], ads: np.ndarray) -> Any:
        return cls.build(data[0], ads)

    def check(self, found: Found, vectors: np.ndarray, queries: np.ndarray) -> None:
        """Shapes, types, order, padding; scores are those of the ads (`vectors` by ad row)."""
        ads_QK, scores_QK = found
        assert ads_QK.dtype == np.int64
        assert scores_QK.dtype == np.float32
        assert ((ads_QK == -1) == np.isneginf(scores_QK)).all()
        assert (scores_QK[:, 1:] <= scores_QK[:, :-1]).all()
        for row_ads, row_scores, query in zip(ads_QK, scores_QK, queries, strict=True):
            real = row_ads[row_ads >= 0]
            assert len(set(real)) == len(real)
            np.testing.assert_allclose(
                row_scores[: len(real)], vectors[real] @ query, atol=self.score_tolerance
            )

    def by_row(self, vectors: np.ndarray, ads: np.ndarray) -> np.ndarray:
        rows = np.full((ads.max() + 1, vectors.shape[1]), np.nan, dtype=np.float32)
        rows[ads] = vectors
        return rows

    def test_recall(self, index, data, ads):
        found = index.search(data[1], K)
        self.check(found, self.by_row(data[0], ads), data[1])
        assert recall(found.ads_QK, ads[brute_force(*data, K)[0]]) >= self.recall_floor
        assert len(index) == A
        assert A * D <= index.memory_bytes <= A * D * 4 * 4

    def test_exact_agrees_with_brute_force(self, index, data, ads):
        at, scores = brute_force(*data, K)
        found = index.search(data[1], K, exact=True)
        np.testing.assert_allclose(found.scores_QK, scores, atol=self.score_tolerance)
        # 8-bit scores may swap near-equal ads across rank K
        assert recall(found.ads_QK, ads[at]) >= (1.0 if self.score_tolerance <= 1e-5 else 0.97)

    @pytest.mark.parametrize("passing", [0.9, 0.5, 0.1, 0.01])
    def test_recall_under_a_filter(self, index, data, ads, passing):
        allowed = np.random.default_rng(2).random(ads.max() + 1) < passing
        found = index.search(data[1], K, allowed=AdSet.of(allowed))
        truth, _ = brute_force(*data, min(K, allowed[ads].sum()), allowed[ads])
        assert recall(found.ads_QK, ads[truth]) >= self.recall_floor
        assert allowed[found.ads_QK[found.ads_QK >= 0]].all()
        assert ((found.ads_QK >= 0).sum(axis=1) == truth.shape[1]).all()

    @given(
        seed=st.integers(0, 2**32 - 1),
        passing=st.sampled_from([0.0, 0.0003, 0.002, 0.02, 0.3, 0.97, 1.0]),
        k=st.sampled_from([1, 7, 50, A, A + 9]),
        block=st.booleans(),
        exact=st.booleans(),
    )
    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.differing_executors],  # one subclass a kind, on purpose
    )
    def test_a_filter_is_never_violated(self, index, data, ads, seed, passing, k, block, exact):
        rng = np.random.default_rng(seed)
        size = int(ads.max()) + 1
        allowed = rng.random(size) < passing
        if block:  # by neighbourhood: what is allowed lies far from the query
            allowed = np.zeros(size, dtype=np.bool_)
            near = ads[np.argsort(data[0] @ data[1][0])]
            allowed[near[: int(passing * A)]] = True
        found = index.search(data[1][:3], k, allowed=AdSet.of(allowed), exact=exact)
        self.check(found, self.by_row(data[0], ads), data[1][:3])
        assert allowed[found.ads_QK[found.ads_QK >= 0]].all()
        assert ((found.ads_QK >= 0).sum(axis=1) == min(k, allowed[ads].sum())).all()

    def test_default_ids_and_a_longer_mask(self, data):
        index = self.build(data[0][:500])
        allowed = np.arange(800) % 3 == 0  # the catalogue has grown since the index was built
        found = index.search(data[1], 10, allowed=AdSet.of(allowed))
        assert (found.ads_QK % 3 == 0).all()
        assert found.ads_QK.max() < 500
        self.check(found, data[0], data[1])

    @pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 40, 255, 257])
    def test_small_catalogues(self, data, n, capfd):
        index = self.build(data[0][:n])
        found = index.search(data[1], n + 2)
        self.check(found, data[0], data[1])
        assert ((found.ads_QK >= 0).sum(axis=1) == n).all()
        assert set(found.ads_QK[:, n:].ravel()) == {-1}
        assert capfd.readouterr() == ("", "")  # FAISS prints its warnings past Python

    def test_duplicates(self, data):
        """60 copies of one ad and a catalogue of nothing else: all come back, each once."""
        vectors = np.repeat(data[0][:1], 60, axis=0)
        found = self.build(vectors).search(data[1], 60)
        assert (np.sort(found.ads_QK, axis=1) == np.arange(60)).all()

    def test_concurrent_searches_equal_sequential(self, index, data, ads):
        rng = np.random.default_rng(3)
        shares = (0.95, 0.7, 0.5, 0.2, 0.05)
        masks = [AdSet.of(rng.random(ads.max() + 1) < share) for share in shares] + [None]
        calls = [(data[1][i : i + 2], masks[i % 6], i % 5 == 0) for i in range(Q - 1)] * 3

        def answer(call: tuple[np.ndarray, AdSet | None, bool]) -> Found:
            return index.search(call[0], 20, allowed=call[1], exact=call[2])

        sequential = [answer(call) for call in calls]
        with ThreadPoolExecutor(4) as pool:
            for one, other in zip(sequential, pool.map(answer, calls), strict=True):
                np.testing.assert_array_equal(one.ads_QK, other.ads_QK)
                np.testing.assert_array_equal(one.scores_QK, other.scores_QK)

    def test_the_same_seed_gives_the_same_index(self, data):
        first, again = (self.build(data[0][:1000]).search(data[1], K) for _ in range(2))
        np.testing.assert_array_equal(first.ads_QK, again.ads_QK)

    def test_unusable_searches(self, index, data, ads):
        bad = data[1].copy()
        bad[4, 0] = np.nan
        with pytest.raises(DataError, match="query 4 holds NaN"):
            index.search(bad, K)
        with pytest.raises(DataError, match=f"\\[Q, {D}\\]"):
            index.search(data[1][:, :-1], K)
        with pytest.raises(DataError, match="float64"):
            index.search(data[1].astype(np.float64), K)
        for k in (0, -1):
            with pytest.raises(ConfigError, match=f"k is {k}"):
                index.search(data[1], k)
        with pytest.raises(DataError, match=f"{ads.max():,} ad rows.*up to row {ads.max():,}"):
            index.search(data[1], K, allowed=AdSet.none(ads.max()))
        assert index.search(data[1][:0], K).ads_QK.shape == (0, K)


class AdIndexContract(SearchContract):
    @classmethod
    def build(cls, vectors: np.ndarray, ads: np.ndarray | None = None, threads: int = 1) -> AdIndex:
        return AdIndex.build(vectors, cls.config, tower=TOWER, ads=ads, threads=threads)

    def test_stored_vectors(self, index, data, ads):
        """All of them by row, so that another index can be built of them."""
        rows, vectors = index.vectors()
        np.testing.assert_array_equal(rows, ads)
        # 8 bits a number: a column spans at most 1.2
        tolerance = 0 if self.score_tolerance <= 1e-5 else 1.2 / 255
        np.testing.assert_allclose(vectors, data[0], atol=tolerance)

    @pytest.mark.parametrize("ids", [True, False])
    def test_round_trip(self, index, data, ads, ids, tmp_path: Path):
        if not ids:
            index = self.build(data[0])
        path = tmp_path / "ads.faiss"
        index.save(path)
        loaded = AdIndex.load(path, tower=TOWER)
        assert loaded.config == self.config
        assert (len(loaded), loaded.dim, loaded.kind) == (A, D, index.kind)
        assert loaded.memory_bytes == index.memory_bytes
        allowed = AdSet.of(np.arange(ads.max() + 1) % 2 == 0)
        for arguments in ({}, {"allowed": allowed}, {"exact": True}):
            before, after = (i.search(data[1], K, **arguments) for i in (index, loaded))
            np.testing.assert_array_equal(before.ads_QK, after.ads_QK)
            np.testing.assert_array_equal(before.scores_QK, after.scores_QK)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["ads.faiss", "ads.faiss.json"]

    def test_another_tower_is_refused(self, index, tmp_path: Path):
        path = tmp_path / "ads.faiss"
        index.save(path)
        with pytest.raises(BundleError, match=f"{TOWER}.*{'b' * 16}.*adrec train"):
            AdIndex.load(path, tower="b" * 16)

    def test_unusable_vectors(self, data):
        build = self.build
        for bad in (np.nan, np.inf, -np.inf):
            vectors = data[0][:50].copy()
            vectors[31, 2] = bad
            with pytest.raises(DataError, match="vector 31 holds NaN or infinity"):
                build(vectors)
        with pytest.raises(DataError, match="float64"):
            build(data[0][:50].astype(np.float64))
        with pytest.raises(DataError, match="float32 \\[A, D\\]"):
            build(data[0][0])
        with pytest.raises(DataError, match="at least one ad"):
            build(data[0][:0])
        with pytest.raises(DataError, match="int64 \\[50\\]"):
            build(data[0][:50], np.arange(49))
        with pytest.raises(DataError, match="ad 7 occurs more than once"):
            build(data[0][:3], np.array([7, 1, 7]))
        with pytest.raises(DataError, match="negative id -4"):
            build(data[0][:2], np.array([-4, 1]))
        with pytest.raises(ConfigError, match="threads is 0"):
            build(data[0][:2], threads=0)
