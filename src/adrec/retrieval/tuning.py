"""Which index finds enough, and answers fastest: chosen by measuring on real queries.

Each kind that memory allows is built and asked the queries one at a time on one thread, with more
and more effort (lists visited, candidates kept or rescored) until its recall against an exact
search reaches the target. Of those that reach it, the fastest is chosen.

Shapes: A ads, D width, Q queries, K results a query.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import faiss
import numpy as np

from adrec.errors import ConfigError
from adrec.progress import Progress
from adrec.retrieval.building import openmp_threads
from adrec.retrieval.index import AdIndex
from adrec.retrieval.index_config import LISTED, IndexConfig, count_lists
from adrec.retrieval.inputs import Floats, Ints, check_queries, check_vectors

_TIMED = 100  # queries whose milliseconds are taken
_ENOUGH = 0.9995  # recall above which more effort shows nothing
_MOST_GRAPH = 200_000  # ads: a graph of more takes minutes to build
_MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Point:
    """An index as measured."""

    config: IndexConfig
    recall: float
    """Mean share of the exact K best that were found."""
    p50_ms: float
    p99_ms: float
    """Of one query on one thread."""
    memory_mb: float
    build_s: float

    @property
    def name(self) -> str:
        """Kind and what it was told, in short."""
        told = self.config.model_dump(exclude_defaults=True, exclude={"kind", "seed", "device"})
        return ", ".join([self.config.kind, *(f"{key} {value}" for key, value in told.items())])

    def as_row(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {"config": self.config.model_dump(), "name": self.name}


def tune_index(
    vectors: Floats,
    queries: Floats,
    base: IndexConfig,
    *,
    recall: float,
    k: int = 500,
    memory_mb: float | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> tuple[Point, list[Point]]:
    """The fastest index that finds a share `recall` of the k best, and all that were measured.

    Args:
        vectors: float32 [A, D], the ads.
        queries: float32 [Q, D], of users whom the model has not learned from.
        base: settings that are not searched for (seed, training rows, device).
        recall: above 0, at most 1.
        k: results a query.
        memory_mb: most millions of bytes of an index. None: any.
        threads: OpenMP threads to build with; searches have one.
        progress: told what is measured.

    Raises:
        ConfigError: nothing reaches the recall within the memory; it says what comes nearest.
    """
    if not 0.0 < recall <= 1.0:
        raise ConfigError(f"recall is {recall}; give a share above 0, at most 1")
    vectors = check_vectors(vectors)
    queries = check_queries(queries, vectors.shape[1])
    if k < 1 or len(queries) == 0:
        raise ConfigError(f"k is {k}, with {len(queries)} queries; give at least 1 of each")
    progress = progress or Progress()
    k = min(k, len(vectors))
    with openmp_threads(threads):
        truth_QK = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)[1]
    measured: list[Point] = []
    tried = list(families(base, len(vectors), vectors.shape[1], memory_mb))
    with progress.track("tuning the index", len(tried), "indices") as advance:
        for family in tried:
            measured += measure_family(
                vectors, queries, truth_QK, family, enough=recall, threads=threads
            )
            advance(1, f"{measured[-1].name}: recall {measured[-1].recall:.4f}")
    return choose(measured, recall=recall, k=k, memory_mb=memory_mb), measured


def families(
    base: IndexConfig, ads: int, dim: int, memory_mb: float | None
) -> Iterator[IndexConfig]:
    """What is worth building for a catalogue: kinds, list counts, code lengths.

    Left out is what cannot fit into the memory: vectors alone take 4 bytes a number, or 1.
    """
    fits = [
        bytes_ for bytes_ in (4, 1) if memory_mb is None or bytes_ * ads * dim <= memory_mb * _MB
    ]
    alone: dict[str, object] = {"nlist": None, "nprobe": None, "pq_segments": None}
    lists = count_lists(base.model_copy(update=alone), ads, min(ads, base.train_rows))
    if 4 in fits:
        yield base.model_copy(update=alone | {"kind": "exact"})
        if ads <= _MOST_GRAPH:
            yield base.model_copy(update=alone | {"kind": "hnsw"})
    padded = -(-dim // 16) * 16
    for nlist in (max(1, lists // 2), lists):
        listed = alone | {"nlist": nlist}
        if 4 in fits:
            yield base.model_copy(update=listed | {"kind": "ivf"})
        if 1 in fits:
            yield base.model_copy(update=listed | {"kind": "ivfsq"})
            for segments in (padded // 4, padded // 2):
                update = listed | {"kind": "ivfpq", "pq_segments": segments}
                yield base.model_copy(update=update | {"refine_store": "sq8"})
        if 4 in fits:
            update = listed | {"kind": "ivfpq", "pq_segments": padded // 4}
            yield base.model_copy(update=update | {"refine_store": "float32"})


def measure_family(
    vectors: Floats,
    queries: Floats,
    truth_QK: Ints,
    family: IndexConfig,
    *,
    enough: float,
    threads: int,
) -> list[Point]:
    """Build an index and search it with more and more effort, until enough is found."""
    begun = time.perf_counter()
    index = AdIndex.build(vectors, family, tower="tuning", threads=threads)
    built_s = time.perf_counter() - begun
    found: list[Point] = []
    with openmp_threads(1):
        for ladder in efforts(family, len(vectors), truth_QK.shape[1]):
            last = 0.0
            for config in ladder:
                point = measure(index.searched_with(config), queries, truth_QK, built_s)
                found.append(point)
                stuck = abs(point.recall - last) < 1e-4 and last > 0.5
                if point.recall >= min(enough, _ENOUGH) or stuck:
                    break
                last = point.recall
    return found


def efforts(family: IndexConfig, ads: int, k: int) -> Iterator[Sequence[IndexConfig]]:
    """Ladders of settings that change a search but not the index, each from quick to thorough."""
    if family.kind == "exact":
        yield [family]
    elif family.kind == "hnsw":
        kept = [round(k * 2 ** (step / 2)) for step in range(8)]
        yield [family.model_copy(update={"ef_search": min(one, 100_000)}) for one in kept]
    elif family.kind in LISTED:
        assert family.nlist is not None
        shares = [2 ** (-step / 2) for step in range(12, 1, -1)]  # 1 in 64 to 1 in 2
        probes = sorted({max(1, round(share * family.nlist)) for share in shares})
        for factor in (2.0, 3.0, 4.0, 6.0, 8.0) if family.kind == "ivfpq" else (None,):
            update = {} if factor is None else {"refine_factor": factor}
            yield [family.model_copy(update=update | {"nprobe": probe}) for probe in probes]


def measure(index: AdIndex, queries: Floats, truth_QK: Ints, built_s: float) -> Point:
    """Recall over all queries and the time of some, asked one at a time."""
    k, took_ms, shares = truth_QK.shape[1], [], []
    for at, truth_K in enumerate(truth_QK):
        begun = time.perf_counter()
        found = index.search(queries[at : at + 1], k)
        if at < _TIMED:
            took_ms.append((time.perf_counter() - begun) * 1000.0)
        shares.append(np.isin(truth_K, found.ads_QK[0]).mean())
    return Point(
        config=index.config,
        recall=float(np.mean(shares)),
        p50_ms=float(np.median(took_ms)),
        p99_ms=float(np.quantile(took_ms, 0.99)),
        memory_mb=index.memory_bytes / _MB,
        build_s=built_s,
    )


def choose(measured: Sequence[Point], *, recall: float, k: int, memory_mb: float | None) -> Point:
    """The fastest that reaches the recall within the memory.

    Raises:
        ConfigError: there is none.
    """
    within = [one for one in measured if memory_mb is None or one.memory_mb <= memory_mb]
    reached = [one for one in within if one.recall >= recall]
    if reached:
        return min(reached, key=lambda one: one.p50_ms)
    limit = "" if memory_mb is None else f" within {memory_mb:,.0f} MB"
    if within:
        best = max(within, key=lambda one: one.recall)
        nearest = f"{best.name} has {best.recall:.4f} at {best.memory_mb:,.1f} MB"
    else:
        nearest = "every index takes more"
    raise ConfigError(
        f"no index has recall@{k} {recall}{limit}: {nearest}; ask for less recall or allow more "
        "memory"
    )


def frontier(measured: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both recall and time, by recall."""
    best: list[Point] = []
    for one in sorted(measured, key=lambda one: (-one.recall, one.p50_ms)):
        if not best or one.p50_ms < best[-1].p50_ms:
            best.append(one)
    return best[::-1]
