"""What an index costs each of several processes that have it mapped from disk, or have loaded it.

The proportional set size (PSS) counts a page that n processes share as 1/n of a page in each.
Linux only: it is read from `/proc/self/smaps_rollup`.
"""

import multiprocessing
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from machine import Row

from adrec.retrieval.index import AdIndex
from adrec.retrieval.inputs import Floats

_PROCESSES = 2


def sharing_rows(index: AdIndex, queries: Floats, k: int, case: str) -> list[Row]:
    """Megabytes of PSS that the index adds to each process, mapped and loaded."""
    if not Path("/proc/self/smaps_rollup").exists():
        print("memory of processes that share an index: skipped, needs Linux")
        return []
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ads.faiss"
        index.save(path)
        for how, mapped in (("mapped", True), ("loaded", False)):
            added = _added_mb(path, index.tower, queries, k, mapped)
            case_name = f"{case}, {how} by {_PROCESSES} processes"
            rows.append(
                {"case": case_name, "metric": "PSS a process", "value": added, "unit": "MB"}
            )
    return rows


def _added_mb(path: Path, tower: str, queries: Floats, k: int, mapped: bool) -> float:
    """Mean over processes that have all searched and are all alive."""
    spawn = multiprocessing.get_context("spawn")  # a fork would share the parent's index
    pipes = [spawn.Pipe() for _ in range(_PROCESSES)]
    workers = [
        spawn.Process(target=_work, args=(theirs, path, tower, queries, k, mapped))
        for _, theirs in pipes
    ]
    for worker in workers:
        worker.start()
    for ours, _ in pipes:
        ours.recv()  # has searched
    added = []
    for ours, _ in pipes:
        ours.send("measure")
        added.append(ours.recv())
    for ours, _ in pipes:
        ours.send("leave")
    for worker in workers:
        worker.join()
    return float(np.mean(added))


def _work(pipe: Connection, path: Path, tower: str, queries: Floats, k: int, mapped: bool) -> None:
    before = pss_mb()
    index = AdIndex.load(path, tower=tower, mapped=mapped)
    for query in queries[:, None]:
        index.search(query, k)
    pipe.send("searched")
    pipe.recv()
    pipe.send(pss_mb() - before)
    pipe.recv()


def pss_mb() -> float:
    """Proportional set size of this process, in millions of bytes."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("smaps_rollup has no line Pss")
