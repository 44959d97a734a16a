"""Does a filter inside the search find what may be shown, at any share and wherever it lies?

    python benchmarks/filters.py --json FILE
    python benchmarks/filters.py --ads 1000000 --dim 256 --kinds ivf,ivfpq --json FILE
    python benchmarks/filters.py --quick --json FILE

For each kind of index, share of ads that pass, and place of these: spread at random, or a cluster
of the catalogue near the query or far from it. Every query has a filter of its own. Prints
recall@100 against an exact filtered search, the median milliseconds of one query on one thread, and
how many ads came back that must not (leaks), beside post-filtering (search 100, drop what is not
allowed) on the same index, and beside FAISS searching all vectors exactly with a selector.
Shares of 100 % have no filter.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import faiss as _typed_faiss
import numpy as np
import numpy.typing as npt
from machine import Row, write_rows

from adrec.retrieval.ad_set import AdSet
from adrec.retrieval.index import AdIndex
from adrec.retrieval.index_config import IndexConfig, Kind

faiss: Any = _typed_faiss

K = 100
KINDS: tuple[Kind, ...] = ("exact", "ivf", "ivfsq", "ivfpq", "hnsw")
MOST_GRAPH = 200_000  # a graph of a million ads takes a quarter of an hour to build
SHARES = (1.0, 0.5, 0.1, 0.01, 0.001)
PLACES = ("random", "near", "far")

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Case(NamedTuple):
    """One share and place: what each query may get, and the exact answer with its time."""

    name: str
    allowed_Q: list[AdSet | None]
    truth_QK: Ints
    exact_ms: float


def main() -> None:
    """Build each kind, ask every case, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ads", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument(
        "--kinds", help=f"with commas between; else all, hnsw only up to {MOST_GRAPH:,} ads"
    )
    parser.add_argument("--threads", type=int, default=1, help="to build with")
    parser.add_argument("--quick", action="store_true", help="20,000 ads of width 64")
    parser.add_argument("--json", type=Path, help="also write rows {case, metric, value, unit}")
    arguments = parser.parse_args()
    ads, dim, queries = arguments.ads, arguments.dim, arguments.queries
    if arguments.quick:
        ads, dim, queries = 20_000, 64, 20
    faiss.omp_set_num_threads(1)
    vectors, asked = clustered(ads, dim, queries)
    cases = make_cases(vectors, asked)
    rows: list[Row] = []
    columns = ("recall", "ms", "leaks", "post recall", "post ms", "exact ms")
    print(f"{ads:,} ads of width {dim}, {queries} queries, recall@{K}, median ms, one thread")
    print(f"{'case':<24}" + "".join(f"{column:>13}" for column in columns))
    kinds = [kind for kind in KINDS if kind != "hnsw" or ads <= MOST_GRAPH]
    for kind in arguments.kinds.split(",") if arguments.kinds else kinds:
        index = AdIndex.build(
            vectors, IndexConfig(kind=kind), tower="benchmark", threads=arguments.threads
        )
        index.search(asked[:1], K, allowed=AdSet.of(np.arange(ads) % 2 == 0))  # warm up
        for case in cases:
            found = measure(index, asked, case)
            name = f"{kind}, {case.name}"
            print(f"{name:<24}" + "".join(f"{found[c]:>13.3f}" for c in columns), flush=True)
            units = {c: "ms" if c.endswith("ms") else "ads" if c == "leaks" else "1" for c in found}
            rows += [
                {"case": name, "metric": c, "value": v, "unit": units[c]} for c, v in found.items()
            ]
        del index
    write_rows(arguments.json, rows)


def measure(index: AdIndex, asked: Floats, case: Case) -> dict[str, float]:
    """Recall, milliseconds and leaks of a filtered search, and of post-filtering."""
    inside, post = [], []
    inside_ms, post_ms = [], []
    for query, allowed in zip(asked[:, None], case.allowed_Q, strict=True):
        found, ms = timed(partial(filtered, index, query, allowed))
        inside.append(found)
        inside_ms.append(ms)
        found, ms = timed(partial(post_filter, index, query, allowed))
        post.append(found)
        post_ms.append(ms)
    return {
        "recall": recall(inside, case.truth_QK),
        "ms": float(np.median(inside_ms)),
        "leaks": float(sum(leaks(f, a) for f, a in zip(inside, case.allowed_Q, strict=True))),
        "post recall": recall(post, case.truth_QK),
        "post ms": float(np.median(post_ms)),
        "exact ms": case.exact_ms,
    }


def filtered(index: AdIndex, query: Floats, allowed: AdSet | None) -> Ints:
    """What a search with the filter inside finds."""
    found: Ints = index.search(query, K, allowed=allowed).ads_QK[0]
    return found


def post_filter(index: AdIndex, query: Floats, allowed: AdSet | None) -> Ints:
    """What is left of the nearest ads when those not allowed are dropped."""
    found: Ints = index.search(query, K).ads_QK[0]
    return found if allowed is None else found[allowed.has(found)]


def timed(call: Callable[[], Ints]) -> tuple[Ints, float]:
    """An answer and the least milliseconds of three goes."""
    took = []
    for _ in range(3):
        begun = time.perf_counter()
        answer = call()
        took.append((time.perf_counter() - begun) * 1000.0)
    return answer, min(took)


def recall(found: list[Ints], truth_QK: Ints) -> float:
    """Mean share of the exact answer that was found."""
    shares = [
        np.isin(truth[truth >= 0], ads).mean() for ads, truth in zip(found, truth_QK, strict=True)
    ]
    return float(np.mean(shares))


def leaks(found: Ints, allowed: AdSet | None) -> int:
    """Ads found that are not allowed."""
    real = found[found >= 0]
    return 0 if allowed is None else int((~allowed.has(real)).sum())


def clustered(
    ads: int, dim: int, queries: int, points: Floats | None = None
) -> tuple[Floats, Floats]:
    """Unit vectors of ads and queries around common centres of uneven size.

    `points` [ads + queries, dim] is where they are written: a file, where memory is too small.
    """
    rng = np.random.default_rng(0)
    count = max(16, round(ads**0.5))
    centres = rng.standard_normal((count, dim), dtype=np.float32)
    weight = rng.exponential(size=count)
    of = rng.choice(count, ads + queries, p=weight / weight.sum())
    if points is None:
        points = np.empty((ads + queries, dim), np.float32)
    for start in range(0, len(points), 65_536):
        part = slice(start, start + 65_536)
        noise = rng.standard_normal((len(of[part]), dim), dtype=np.float32)
        noise += centres[of[part]]
        points[part] = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return points[:ads], points[ads:]


def make_cases(vectors: Floats, asked: Floats) -> list[Case]:
    """Every share and place, answered exactly."""
    rng = np.random.default_rng(1)
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    near = flat.search(asked, K)[1][:, K // 2]
    drawn = rng.choice(len(vectors), 200, replace=False)
    far = drawn[np.argmin(asked @ vectors[drawn].T, axis=1)]
    sets: dict[str, list[AdSet | None]] = {"100 %": [None] * len(asked)}
    for place in PLACES:
        sets |= {f"{share:.1%} {place}".replace(".0%", "%"): [] for share in SHARES[1:]}
    for q in range(len(asked)):
        scores = {
            "random": rng.random(len(vectors), dtype=np.float32),
            "near": vectors @ vectors[near[q]],
            "far": vectors @ vectors[far[q]],
        }
        for place, score in scores.items():
            for share in SHARES[1:]:
                count = max(1, round(share * len(vectors)))
                bar = np.partition(score, -count)[-count]
                name = f"{share:.1%} {place}".replace(".0%", "%")
                sets[name].append(AdSet.of(score >= bar))
    return [Case(name, allowed, *exact(flat, asked, allowed)) for name, allowed in sets.items()]


def exact(flat: Any, asked: Floats, allowed_Q: list[AdSet | None]) -> tuple[Ints, float]:
    """The best of each query by FAISS over all vectors with a selector, and the median time."""
    truth, took = [], []
    for query, allowed in zip(asked[:, None], allowed_Q, strict=True):
        begun = time.perf_counter()
        selector = None if allowed is None else faiss.IDSelectorBitmap(allowed.bits)
        at = flat.search(query, K, params=faiss.SearchParameters(sel=selector))[1][0]
        took.append((time.perf_counter() - begun) * 1000.0)
        truth.append(at)
    return np.stack(truth), float(np.median(took))


if __name__ == "__main__":
    main()
