"""How fast does each kind of index find how much of the best 500 ads, and in how much memory?

    python benchmarks/retrieval.py --json FILE
    python benchmarks/retrieval.py --embeddings FILE.npz --json FILE
    python benchmarks/retrieval.py --quick --json FILE

On (a) clustered artificial vectors and (b) those of a two-tower trained on a synthetic world
(`embeddings.py`): for each kind and recall@500 of .90 to .999, the fastest settings that reach it,
found by the search of `adrec index`; beside them exact FAISS and usearch in the same run. One query
at a time on one thread, median and 99th percentile of 100 queries; recall over 300. Graphs are
built of the first `--graph-ads`, because a million take a quarter of an hour; ivfpq is measured
there, too. Also what is commonly said of FAISS indices with their usual settings, an eight-fold
compression, and what an index costs each of two processes that share it on disk. Memory is that of
codes, ids and links.
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import faiss as _typed_faiss
import numpy as np
from embeddings import trained
from filters import clustered
from machine import Row, machine_line, write_rows
from sharing import sharing_rows

from adrec.retrieval.index import AdIndex
from adrec.retrieval.index_config import IndexConfig, Kind, count_lists
from adrec.retrieval.inputs import Floats, Ints
from adrec.retrieval.tuning import Point, measure, measure_family

faiss: Any = _typed_faiss

TARGETS = (0.90, 0.95, 0.98, 0.99, 0.999)
TIMED = 100


class Data(NamedTuple):
    """Ads, queries, and the exact best of each query."""

    name: str
    vectors: Floats
    queries: Floats
    truth_QK: Ints

    @classmethod
    def of(cls, name: str, vectors: Floats, queries: Floats, k: int, threads: int) -> "Data":
        """With the truth by exact search."""
        faiss.omp_set_num_threads(threads)
        truth_QK = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)[1]
        faiss.omp_set_num_threads(1)
        return cls(name, vectors, queries, truth_QK)

    @property
    def k(self) -> int:
        """Results a query."""
        return int(self.truth_QK.shape[1])


def main() -> None:
    """Measure everything, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ads", type=int, default=1_000_000)
    parser.add_argument("--graph-ads", type=int, default=100_000)
    parser.add_argument("-k", type=int, default=500)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2, help="to build with; searches have one")
    parser.add_argument("--embeddings", type=Path, help="keeps the trained vectors (.npz)")
    parser.add_argument("--work", type=Path, help="where worlds and runs are kept")
    parser.add_argument("--quick", action="store_true", help="3,000 ads")
    parser.add_argument("--json", type=Path, help="also write rows {case, metric, value, unit}")
    a = parser.parse_args()
    if a.quick:
        a.ads, a.graph_ads, a.k, a.queries, a.threads = 3_000, 2_000, 50, 40, 1
    print(machine_line())
    rows: list[Row] = []
    rows += measure_all(
        Data.of("clustered", *clustered(a.ads, 256, a.queries), a.k, a.threads),
        a.graph_ads,
        a.threads,
    )
    vectors, users = trained(a.ads, a.work, a.embeddings, small=a.quick)
    rows += measure_all(
        Data.of("two-tower", vectors, users[-a.queries :], a.k, a.threads), a.graph_ads, a.threads
    )
    write_rows(a.json, rows)


def measure_all(data: Data, graph_ads: int, threads: int) -> list[Row]:
    """All rows of one set of vectors."""
    ads = len(data.vectors)
    print(f"\n{data.name}: {ads:,} ads of width {data.vectors.shape[1]}, recall@{data.k}")
    rows = exact_rows(data)
    million: tuple[Kind, ...] = ("ivf", "ivfsq", "ivfpq")
    for kind in million:
        rows += frontier_rows(data, kind, threads)
    nlist = count_lists(IndexConfig(), ads, min(ads, IndexConfig().train_rows))
    rows += said_rows(data, threads)
    rows += factory_row(data, f"IVF{nlist},PQ256x4fs", nlist // 8, "8-fold, no rescoring", threads)
    index = AdIndex.build(data.vectors, IndexConfig(kind="ivfpq"), tower="b", threads=threads)
    rows += sharing_rows(index, data.queries, data.k, f"{data.name}, ivfpq")
    del index
    few = Data.of(
        f"{data.name} of {graph_ads:,}", data.vectors[:graph_ads], data.queries, data.k, threads
    )
    small: tuple[Kind, ...] = ("ivfpq", "hnsw")
    for kind in small:
        rows += frontier_rows(few, kind, threads)
    rows += factory_row(few, "HNSW32", 256, "said: HNSW .99", threads)
    return rows + usearch_rows(few, threads)


def frontier_rows(data: Data, kind: Kind, threads: int) -> list[Row]:
    """The fastest settings of a kind that reach each target; codes of each length by themselves."""
    ads, dim = data.vectors.shape
    nlist = count_lists(IndexConfig(), ads, min(ads, IndexConfig().train_rows))
    config = IndexConfig(kind=kind, nlist=None if kind == "hnsw" else nlist)
    families: dict[str, IndexConfig] = {kind: config}
    if kind == "ivfpq":
        in_floats = config.model_copy(update={"refine_store": "float32"})
        families = {
            f"{kind} of {bits} {unit}": config.model_copy(update={"pq_segments": segments})
            for bits, unit, segments in ((1, "bit", dim // 4), (2, "bits", dim // 2))
        } | {f"{kind} of 1 bit, rescored in float32": in_floats}
    rows: list[Row] = []
    for name, family in families.items():
        found = measure_family(
            data.vectors, data.queries, data.truth_QK, family, enough=TARGETS[-1], threads=threads
        )
        for target in TARGETS:
            reached = [one for one in found if one.recall >= target]
            if not reached:
                print(f"{data.name}, {name}: {target} not reached", flush=True)
                continue
            best = min(reached, key=lambda one: one.p50_ms)
            rows += point_rows(f"{data.name}, {name}, {target}", best, best.name)
    return rows


def point_rows(case: str, point: Point, note: str = "") -> list[Row]:
    """Rows of one point; printed, too."""
    values = (
        ("recall", point.recall, "1"),
        ("p50", point.p50_ms, "ms"),
        ("p99", point.p99_ms, "ms"),
        ("memory", point.memory_mb, "MB"),
        ("build", point.build_s, "s"),
    )
    numbers = "".join(f"{value:>10.4g} {unit:<2}" for _, value, unit in values)
    print(f"{case:<44}{numbers}  {note}", flush=True)
    return [{"case": case, "metric": m, "value": v, "unit": u} for m, v, u in values]


def exact_rows(data: Data) -> list[Row]:
    """FAISS' exact search: what everything is compared with."""
    begun = time.perf_counter()
    index = AdIndex.build(data.vectors, IndexConfig(kind="exact"), tower="benchmark")
    built_s = time.perf_counter() - begun
    point = measure(index, data.queries[:TIMED], data.truth_QK[:TIMED], built_s)
    return point_rows(f"{data.name}, exact FAISS", point)


def said_rows(data: Data, threads: int) -> list[Row]:
    """FAISS with the settings for which .98 and .95 are commonly said."""
    return [
        *factory_row(data, "IVF100,Flat", 10, "said: IVF .98", threads),
        *factory_row(data, "IVF100,PQ32", 10, "said: IVFPQ .95", threads),
    ]


def factory_row(data: Data, factory: str, effort: int, name: str, threads: int) -> list[Row]:
    """A FAISS index as its factory makes it; `effort` lists visited or candidates kept."""
    begun = time.perf_counter()
    faiss.omp_set_num_threads(threads)
    dim = data.vectors.shape[1]
    index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        ivf = faiss.downcast_index(index)
        clusterings = [ivf.cp]
        if hasattr(ivf, "pq"):
            clusterings.append(ivf.pq.cp)
        if isinstance(ivf, faiss.IndexIVFPQ):
            ivf.do_polysemous_training = False  # minutes, for searches that are not asked for
        for clustering in clusterings:
            clustering.min_points_per_centroid = 1  # FAISS would print a warning for small ones
        index.train(data.vectors[:: max(1, len(data.vectors) // 131_072)])
        index.nprobe = effort
    else:
        index.hnsw.efSearch = max(effort, data.k)
    index.add(data.vectors)
    faiss.omp_set_num_threads(1)
    return rival_rows(
        f"{data.name}, {name}",
        data,
        lambda query: index.search(query, data.k)[1][0],
        time.perf_counter() - begun,
        faiss.serialize_index(index).nbytes / 1e6,
        factory,
    )


def usearch_rows(data: Data, threads: int) -> list[Row]:
    """The graph of usearch with its own settings, and as thorough as ours."""
    try:
        from usearch.index import Index
    except ImportError:
        print("usearch: skipped, not installed (pip install adrec[bench])")
        return []
    begun = time.perf_counter()
    index: Any = Index(ndim=data.vectors.shape[1], metric="ip", dtype="f32")
    index.add(np.arange(len(data.vectors)), data.vectors, threads=threads)
    built_s = time.perf_counter() - begun
    rows: list[Row] = []
    for kept in (data.k, 2 * data.k):
        index.expansion_search = kept
        rows += rival_rows(
            f"{data.name}, usearch, expansion {kept}",
            data,
            lambda query: np.asarray(index.search(query[0], data.k, threads=1).keys),
            built_s,
            index.memory_usage / 1e6,
        )
    return rows


def rival_rows(
    case: str, data: Data, search: Any, built_s: float, memory_mb: float, note: str = ""
) -> list[Row]:
    """Recall and time of a search that gives the ads of one query."""
    took_ms, shares = [], []
    for query, truth_K in zip(data.queries[:TIMED, None], data.truth_QK, strict=False):
        begun = time.perf_counter()
        found = search(query)
        took_ms.append((time.perf_counter() - begun) * 1000.0)
        shares.append(np.isin(truth_K, found).mean())
    point = Point(
        config=IndexConfig(),
        recall=float(np.mean(shares)),
        p50_ms=float(np.median(took_ms)),
        p99_ms=float(np.quantile(took_ms, 0.99)),
        memory_mb=memory_mb,
        build_s=built_s,
    )
    return point_rows(case, point, note)


if __name__ == "__main__":
    main()
