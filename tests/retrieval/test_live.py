"""A live index is searched like a built one, and equals a brute force after any change."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.errors import DataError
from adrec.retrieval.ad_set import AdSet
from adrec.retrieval.index import AdIndex
from adrec.retrieval.index_config import IndexConfig
from adrec.retrieval.live import LiveConfig, LiveIndex
from contracts.index_contract import TOWER, SearchContract, brute_force

NEVER = LiveConfig(rebuild_least=10**9)


class LiveIndexContract(SearchContract):
    """The suite on an index that was built of a third of the ads, of which some were other ones."""

    @classmethod
    def build(
        cls, vectors: np.ndarray, ads: np.ndarray | None = None, threads: int = 1
    ) -> LiveIndex[None]:
        rows = np.arange(len(vectors)) if ads is None else ads
        third = max(1, len(rows) // 3)
        old = vectors[:third].copy()
        old[: third // 4 + 1] *= -1.0  # these change
        main = AdIndex.build(old, cls.config, tower=TOWER, ads=rows[:third], threads=threads)
        live = LiveIndex(main, NEVER, about=None)
        changed = slice(0, third // 4 + 1)
        live.put(rows[changed], vectors[changed], about=None)
        if len(rows) > third:
            live.put(rows[third:], -vectors[third:], about=None)
            live.remove(rows[third:], about=None)
            live.put(rows[third:], vectors[third:], about=None)
        return live


class TestExact(LiveIndexContract):
    config = IndexConfig(kind="exact")
    recall_floor = 1.0


class TestIvf(LiveIndexContract):
    config = IndexConfig(kind="ivf", nlist=16, nprobe=6)
    recall_floor = 0.96


class TestIvfSq(LiveIndexContract):
    config = IndexConfig(kind="ivfsq", nlist=16, nprobe=6)
    recall_floor = 0.95
    score_tolerance = 0.02


class TestIvfPq(LiveIndexContract):
    config = IndexConfig(kind="ivfpq", nlist=16, nprobe=6)
    recall_floor = 0.95
    score_tolerance = 0.02


class TestHnsw(LiveIndexContract):
    config = IndexConfig(kind="hnsw", hnsw_links=12, ef_construction=60, ef_search=64)
    recall_floor = 0.94


class TestRebuilt(LiveIndexContract):
    config = IndexConfig(kind="ivf", nlist=32, nprobe=12)
    recall_floor = 0.96

    @classmethod
    def build(
        cls, vectors: np.ndarray, ads: np.ndarray | None = None, threads: int = 1
    ) -> LiveIndex[None]:
        live = super().build(vectors, ads, threads)
        live.rebuild()
        return live


D, ROWS = 5, 40
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sets(st.integers(0, ROWS - 1), min_size=1, max_size=6)),
        st.tuples(st.just("remove"), st.sets(st.integers(0, ROWS - 1), min_size=1, max_size=6)),
        st.tuples(st.just("rebuild"), st.just(set())),
    ),
    max_size=14,
)


def small(
    count: int, config: IndexConfig, live: LiveConfig = NEVER
) -> tuple[LiveIndex[int], dict[int, np.ndarray]]:
    """An index of rows 3, 4, ... and its vectors by row."""
    vectors = np.random.default_rng(count).normal(size=(count, D)).astype(np.float32)
    rows = np.arange(3, 3 + count)
    main = AdIndex.build(vectors, config, tower=TOWER, ads=rows)
    return LiveIndex(main, live, about=0), dict(zip(rows.tolist(), vectors, strict=True))


@pytest.mark.parametrize(
    ("config", "live"),
    [
        (IndexConfig(kind="exact"), NEVER),
        (IndexConfig(kind="ivf", nlist=3, nprobe=3), NEVER),
        (IndexConfig(kind="hnsw", hnsw_links=4), NEVER),
        (IndexConfig(kind="ivf", nlist=3, nprobe=3), LiveConfig(rebuild_least=4)),
    ],
    ids=["exact", "ivf", "hnsw", "rebuilding"],
)
@given(operations=OPERATIONS, count=st.integers(1, 12), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_sequence_of_changes_equals_a_brute_force(config, live, operations, count, seed):
    index, expected = small(count, config, live)
    rng = np.random.default_rng(seed)
    for operation, drawn in operations:
        rows = np.array(sorted(drawn), np.int64)
        if operation == "put":
            vectors = rng.normal(size=(len(rows), D)).astype(np.float32)
            index.put(rows, vectors, about=0)
            expected |= dict(zip(rows.tolist(), vectors, strict=True))
        elif operation == "remove" and drawn <= set(expected):
            index.remove(rows, about=0)
            for row in rows.tolist():
                del expected[row]
        elif operation == "remove":
            with pytest.raises(DataError, match=r"not in the index; nothing was removed"):
                index.remove(rows, about=0)
            assert set(index.now.vectors()[0].tolist()) == set(expected)
        else:
            index.rebuild()
            assert len(index.now.rows_N) == 0 or not expected
        check(index, expected, rng)
    index.settle(60)
    check(index, expected, rng)


def check(index: LiveIndex[int], expected: dict[int, np.ndarray], rng: np.random.Generator) -> None:
    """Searches, filtered and not, find what a brute force over `expected` finds."""
    assert len(index) == len(expected)
    queries = rng.normal(size=(2, D)).astype(np.float32)
    allowed = rng.random(ROWS) < 0.6
    rows = np.array(sorted(expected), np.int64)
    vectors = np.array([expected[row] for row in rows.tolist()], np.float32).reshape(-1, D)
    for mask in (None, allowed):
        passing = np.ones(len(rows), bool) if mask is None else mask[rows]
        k = max(1, min(6, int(passing.sum())))
        found = index.search(queries, k, allowed=None if mask is None else AdSet.of(mask))
        if not passing.any():
            assert (found.ads_QK == -1).all()
            continue
        at, scores = brute_force(vectors, queries, k, passing)
        np.testing.assert_array_equal(found.ads_QK, rows[at])
        np.testing.assert_allclose(found.scores_QK, scores, atol=1e-5)


def test_a_search_never_sees_half_of_a_change():
    """A writer moves pairs of ads together, up along the query: in all that readers find, both ads
    of a pair have the same score. Rebuilds go on all the time."""
    pairs = 20
    rows = np.arange(1, 2 * pairs + 1)
    start = np.zeros((2 * pairs, D), np.float32)
    start[:, 0] = np.repeat(np.arange(pairs), 2)
    main = AdIndex.build(start, IndexConfig(kind="ivf", nlist=4, nprobe=4), tower=TOWER, ads=rows)
    index = LiveIndex(main, LiveConfig(rebuild_least=5), about=0)
    query = np.eye(1, D, dtype=np.float32)
    done = threading.Event()
    built = {id(main)}

    def read() -> int:
        searches = 0
        while not done.is_set() or searches == 0:
            found = index.search(query, 2 * pairs)
            score = dict(zip(found.ads_QK[0].tolist(), found.scores_QK[0].tolist(), strict=True))
            assert set(score) == set(rows.tolist())
            for row in range(1, 2 * pairs, 2):
                assert score[row] == score[row + 1]
            searches += 1
        return searches

    def write() -> None:
        rng = np.random.default_rng(0)
        for step in range(300):
            pair = int(rng.integers(pairs))
            vectors = np.zeros((2, D), np.float32)
            vectors[:, 0] = 100 + step
            index.put(np.array([2 * pair + 1, 2 * pair + 2]), vectors, about=step)
            built.add(id(index.now.main))
            if step % 30 == 0:
                index.settle(60)

    _together(read, write, done)
    index.settle(60)
    assert index.now.about == 299
    assert len(built) > 3  # there were rebuilds to see halves of


def test_a_removed_ad_never_returns_even_while_the_index_is_rebuilt():
    """Removed before a rebuild, while it runs or after it: no search that began afterwards has
    it."""
    count = 600
    vectors = np.random.default_rng(0).normal(size=(count, D)).astype(np.float32)
    main = AdIndex.build(vectors, IndexConfig(kind="ivf", nlist=8, nprobe=8), tower=TOWER)
    index = LiveIndex(main, LiveConfig(rebuild_least=20), about=0)
    gone: list[int] = []
    done = threading.Event()

    def read() -> int:
        searches = 0
        while not done.is_set() or searches == 0:
            before = set(gone)
            found = index.search(vectors[:2], count)
            assert not before & set(found.ads_QK.ravel().tolist())
            searches += 1
        return searches

    def write() -> None:
        for row in np.random.default_rng(1).permutation(count)[:400].tolist():
            index.remove(np.array([row]), about=0)
            if row % 5 == 0:
                index.put(np.array([row]), -vectors[row : row + 1], about=0)  # comes back ...
                index.remove(np.array([row]), about=0)  # ... and goes
            gone.append(row)

    _together(read, write, done)
    index.settle(60)
    assert len(index) == count - 400
    assert index.now.main is not main


def _together(read: Callable[[], int], write: Callable[[], None], done: threading.Event) -> None:
    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            pool.submit(write).result()
        finally:
            done.set()
        assert all(reader.result() > 0 for reader in readers)


def test_changes_that_come_during_a_rebuild_are_kept(monkeypatch: pytest.MonkeyPatch):
    """The rebuild is made to stop after reading the vectors; the changes come then."""
    index, expected = small(12, IndexConfig(kind="exact"))
    reading, go_on = threading.Event(), threading.Event()
    build = AdIndex.build

    def slow(*arguments, **named):
        reading.set()
        assert go_on.wait(60)
        return build(*arguments, **named)

    monkeypatch.setattr(AdIndex, "build", slow)
    index.remove(np.array([3]), about=1)
    rebuild = threading.Thread(target=index.rebuild)
    rebuild.start()
    assert reading.wait(60)
    index.remove(np.array([4, 5]), about=2)
    new = np.ones((2, D), np.float32)
    index.put(np.array([5, 30]), new, about=3)  # one comes back, one is new
    index.put(np.array([6]), -new[:1], about=4)
    go_on.set()
    rebuild.join(60)
    expected = expected | {5: new[0], 30: new[1], 6: -new[0]}
    del expected[3], expected[4]
    assert index.now.about == 4
    assert len(index.now.rows_N) == 3  # what came meanwhile, beside the new main index
    check(index, expected, np.random.default_rng(0))


def test_a_rebuild_that_fails_leaves_the_index_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    index, expected = small(12, IndexConfig(kind="exact"), LiveConfig(rebuild_least=2))

    def fail(*arguments, **named):
        raise MemoryError("no room")

    with monkeypatch.context() as broken:
        broken.setattr(AdIndex, "build", fail)
        index.remove(np.array([3, 4, 6]), about=0)
        index.settle(60)
    assert "could not be rebuilt" in caplog.text
    del expected[3], expected[4], expected[6]
    check(index, expected, np.random.default_rng(0))
    index.remove(np.array([5]), about=0)  # the next change tries again
    index.settle(60)
    del expected[5]
    assert index.now.kept is None
    check(index, expected, np.random.default_rng(0))


def test_what_cannot_be_put_changes_nothing():
    index, _ = small(4, IndexConfig(kind="exact"))
    before = index.now
    ok = np.ones((2, D), np.float32)
    for rows, vectors, message in (
        (np.array([1, 1]), ok, "ad 1 occurs more than once"),
        (np.array([-1, 1]), ok, "negative id -1"),
        (np.array([1]), ok, r"int64 \[2\]"),
        (np.array([1, 2]), ok * np.nan, "NaN or infinity"),
        (np.array([1, 2]), ok[:, :3], "3 wide, the index 5"),
    ):
        with pytest.raises(DataError, match=message):
            index.put(rows, vectors, about=9)
    assert index.now is before


def test_what_is_put_is_copied():
    index, expected = small(4, IndexConfig(kind="exact"))
    rows, vectors = np.array([3]), np.ones((1, D), np.float32)
    index.put(rows, vectors, about=0)
    expected[3] = vectors[0].copy()
    rows[0], vectors[:] = 6, 7.0
    check(index, expected, np.random.default_rng(0))
