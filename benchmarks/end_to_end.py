"""How long does a whole request take, from who asks to ten ads, and how many a second?

    python benchmarks/end_to_end.py --json FILE
    python benchmarks/end_to_end.py --run runs/mine --json FILE
    python benchmarks/end_to_end.py --quick --json FILE

A version over 1,000,000 ads (without `--run`: trained briefly on a synthetic world) answers real
users in this process: features, retrieval with a filter inside it, ranking of 500 candidates, top
10. Printed are the quantiles of each stage of single requests on one thread, and requests a second:
one at a time, and in batches on every core, a thread each. Beside it, in the same run, what one
would write without adrec: exact FAISS search with the same filter and the ranker in PyTorch and
float32 on all candidates.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from machine import Row, machine_line, write_rows
from worlds import version_with

from adrec.bundle import Bundle
from adrec.evaluation.latency import stage_latency
from adrec.inference.backends import TorchBackend
from adrec.inference.runtime import Runtime
from adrec.inference.threads import use_threads
from adrec.recommender import Recommender
from adrec.reindexing import ad_vectors
from adrec.retrieval.index import AdIndex
from adrec.retrieval.index_config import IndexConfig
from adrec.slates import Request

BATCH = 16
_TOP = 10


def main() -> None:
    """Time adrec and the plain way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="folder of a run; else one is trained")
    parser.add_argument("--work", type=Path, help="where to keep what is trained")
    parser.add_argument("--ads", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="3,000 ads, small models")
    parser.add_argument("--json", type=Path, help="also write rows {case, metric, value, unit}")
    arguments = parser.parse_args()
    use_threads(1)
    count = 64 if arguments.quick else arguments.requests
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        ads = 3_000 if arguments.quick else arguments.ads
        run = arguments.run or version_with(ads, work, small=arguments.quick)
        bundle = Bundle.open(run)
        ours = Recommender.load(run)
        asked = requests_of(ours, count)
        print(
            f"{machine_line()}; {ours.serving.candidates} of {len(ours.index):,} ads, {_TOP} shown"
        )
        rows = measure("adrec", ours, asked, arguments.cores)
        some = asked[: max(BATCH * arguments.cores, count // 8)]
        rows += measure("plain", plain(bundle, ours), some, arguments.cores)
        rows += memory(ours)
    write_rows(arguments.json, rows)


def measure(name: str, recommender: Recommender, asked: Sequence[Request], cores: int) -> list[Row]:
    """Latency by stage of single requests, and rates."""
    found = stage_latency(recommender, asked, _TOP)
    rows: list[Row] = []
    backend = recommender.runtime.backend
    print(f"{name}: {recommender.index.kind} index, {backend.engine} {backend.precision}")
    for stage, quantiles in found["stages"].items():
        shown = "  ".join(f"{label} {ms:8.2f}" for label, ms in quantiles.items())
        print(f"  {stage:<10}{shown} ms")
        rows += [
            {"case": f"{name}, {stage}", "metric": label, "value": ms, "unit": "ms"}
            for label, ms in quantiles.items()
        ]
    together = batches(recommender, asked, cores)
    for case, rate in (
        ("one at a time, one core", found["requests_per_s"]),
        (f"batches of {BATCH}, {cores} cores", together),
    ):
        print(f"  {case}: {rate:.0f} requests/s")
        rows.append(
            {"case": f"{name}, {case}", "metric": "rate", "value": rate, "unit": "requests/s"}
        )
    return rows


def batches(recommender: Recommender, asked: Sequence[Request], cores: int) -> float:
    """Requests a second with a thread a core, each answering batches."""
    parts = [asked[i : i + BATCH] for i in range(0, len(asked), BATCH)]
    with ThreadPoolExecutor(cores, initializer=use_threads, initargs=(1,)) as pool:

        def answer_all() -> None:
            for slates in pool.map(lambda part: recommender.recommend_batch(part, _TOP), parts):
                assert all(slates)

        answer_all()  # warms up
        begun = time.perf_counter()
        answer_all()
    return len(asked) / (time.perf_counter() - begun)


def requests_of(recommender: Recommender, count: int) -> list[Request]:
    """Known users, each of whom may not be shown ads with one value of a field of few."""
    users, raw = recommender.state.users.ids, recommender.index.now.about.eligibility.raw
    fields = {name: column.values.ids for name, column in raw.items() if len(column.values) > 1}
    never: list[dict[str, list[str | None]]] = [{}]
    if fields:
        name = min(fields, key=lambda one: len(fields[one]))
        never = [{name: [value]} for value in fields[name]]
    chosen = users[:: max(1, len(users) // count)][:count]
    return [Request(user=user, never=never[i % len(never)]) for i, user in enumerate(chosen)]


def plain(bundle: Bundle, ours: Recommender) -> Recommender:
    """Exact search, and the ranker as it was trained, on all candidates."""
    served = ours.runtime
    runtime = Runtime(
        served.two_tower, served.ranker, served.calibration, TorchBackend(served.ranker)
    )
    vectors = ad_vectors(bundle)
    ads = np.arange(1, len(vectors) + 1, dtype=np.int64)
    index = AdIndex.build(vectors, IndexConfig(kind="exact"), ads=ads, tower=bundle.manifest.tower)
    clock = bundle.manifest.log_end_ms + 1
    return Recommender(
        runtime, index, ours.state, ours.serving, version="plain", clock=lambda: clock
    )


def memory(recommender: Recommender) -> list[Row]:
    """Megabytes of what grows with the ads."""
    rows = recommender.runtime.ad_rows
    sizes = {"index": recommender.index.memory_bytes, "ad rows": rows.memory_bytes if rows else 0}
    for case, size in sizes.items():
        print(f"  {case}: {size / 1e6:,.0f} MB")
    return [
        {"case": f"adrec, {case}", "metric": "memory", "value": size / 1e6, "unit": "MB"}
        for case, size in sizes.items()
    ]


if __name__ == "__main__":
    main()
