"""How do time, memory and building of an index grow with the catalogue?

    python benchmarks/growth.py --json FILE
    python benchmarks/growth.py --quick --json FILE

Clustered artificial vectors of width 256, 10,000 to 10,000,000 of them. For each kind of index the
fastest settings with recall@500 >= .98 are looked for as `adrec index` does, with the default
number of lists; where none reach it, those that come nearest are printed. Kinds that keep 4 bytes a
number stop at 1,000,000 ads, graphs at 100,000 (a million take a quarter of an hour to build).
Beside them stands FAISS' exact search. One query at a time on one thread, 100 timed.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import faiss as _typed_faiss
import numpy as np
from filters import clustered
from machine import Row, machine_line, write_rows

from adrec.retrieval.index_config import IndexConfig, Kind, count_lists
from adrec.retrieval.inputs import Floats, Ints
from adrec.retrieval.tuning import measure_family
from retrieval import Data, exact_rows, point_rows

faiss: Any = _typed_faiss

RECALL = 0.98
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
MOST: dict[Kind, int] = {
    "exact": 1_000_000,
    "ivf": 1_000_000,
    "ivfsq": 10_000_000,
    "ivfpq": 10_000_000,
    "hnsw": 100_000,
}
_CHUNK = 500_000  # vectors that an exact search of a file reads at a time


def main() -> None:
    """Measure every size, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most-ads", type=int, default=SIZES[-1])
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("-k", type=int, default=500)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2, help="to build with; searches have one")
    parser.add_argument("--work", type=Path, help="where the largest catalogue is kept meanwhile")
    parser.add_argument("--quick", action="store_true", help="3,000 and 10,000 ads of width 64")
    parser.add_argument("--json", type=Path, help="also write rows {case, metric, value, unit}")
    arguments = parser.parse_args()
    sizes = [size for size in SIZES if size <= arguments.most_ads]
    dim, k, queries = arguments.dim, arguments.k, arguments.queries
    if arguments.quick:
        sizes, dim, k, queries = [3_000, 10_000], 64, 100, 30
    print(f"{machine_line()}; width {dim}, recall@{k} >= {RECALL} where it is reached")
    rows: list[Row] = []
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
    for ads in sizes:
        with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
            points = np.lib.format.open_memmap(
                Path(folder) / "points.npy", mode="w+", dtype=np.float32, shape=(ads + queries, dim)
            )
            vectors, asked = clustered(ads, dim, queries, points)
            asked = np.array(asked)
            truth_QK = best_of_file(vectors, asked, k, arguments.threads)
            data = Data(f"{ads:,} ads", vectors, asked, truth_QK)
            rows += measure_size(data, arguments.threads)
    write_rows(arguments.json, rows)


def measure_size(data: Data, threads: int) -> list[Row]:
    """A row for each kind that is built of so many ads."""
    ads = len(data.vectors)
    rows: list[Row] = []
    for kind, most in MOST.items():
        if ads > most:
            continue
        if kind == "exact":
            rows += exact_rows(data)
            continue
        nlist = count_lists(IndexConfig(), ads, min(ads, IndexConfig().train_rows))
        family = IndexConfig(kind=kind) if kind == "hnsw" else IndexConfig(kind=kind, nlist=nlist)
        found = measure_family(
            data.vectors, data.queries, data.truth_QK, family, enough=RECALL, threads=threads
        )
        reached = [one for one in found if one.recall >= RECALL]
        best = min(reached, key=lambda one: one.p50_ms, default=None)
        best = best or max(found, key=lambda one: one.recall)
        rows += point_rows(f"{data.name}, {kind}", best, best.name)
    return rows


def best_of_file(vectors: Floats, asked: Floats, k: int, threads: int) -> Ints:
    """The exact best [Q, K] of vectors that need not fit into memory."""
    faiss.omp_set_num_threads(threads)
    heap = faiss.ResultHeap(nq=len(asked), k=k, keep_max=True)
    for start in range(0, len(vectors), _CHUNK):
        part = np.ascontiguousarray(vectors[start : start + _CHUNK])
        scores, at = faiss.knn(asked, part, min(k, len(part)), metric=faiss.METRIC_INNER_PRODUCT)
        heap.add_result(scores, at + start)
    heap.finalize()
    faiss.omp_set_num_threads(1)
    truth_QK: Ints = heap.I
    return truth_QK


if __name__ == "__main__":
    main()
