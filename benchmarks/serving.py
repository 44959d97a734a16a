"""What does a server stand, and what happens beyond that and while versions are swapped?

    python benchmarks/serving.py --json FILE
    python benchmarks/serving.py --run runs/mine --json FILE
    python benchmarks/serving.py --soak 30 --json FILE         minutes of steady load, at the end
    python benchmarks/serving.py --quick --json FILE

`adrec serve` runs in a process of its own with a version over 1,000,000 ads (without `--run`:
trained briefly on a synthetic world); this process sends requests that come at random instants
(Poisson, open loop), and each answer is followed by the events of its ten ads. Measured are:

- saturation: the most answers a second that came within the deadline, over rising rates;
- half of that for minutes, with versions swapped meanwhile: answers inside and outside of swaps.
  The two versions score so differently that an answer mixed of both would be told;
- three times saturation: how much is still answered within the deadline, how fast the rest is
  refused, from which second on all is well when the rate drops to half, and the server's memory;
- on request a soak: memory and open files at the beginning and at the end.

Everything shares the same cores: the generator's own share of a processor, and by how much it was
late, stand beside.
"""

import argparse
import asyncio
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import Row, machine_line, write_rows
from worlds import version_with

from adrec.bundle import CALIBRATION, Bundle, find_version, sha256
from adrec.serving.journal import REMEMBERED
from adrec.serving.loadtest import Load, Result, run_load, run_loads

_SHIFTED = "29990101T000000-shifted"
_SHIFT = 30.0  # of the click's logit: every score of the second version is nearly 1
_SHARP = 0.99
_FIRST, _RISE, _FAR = (
    0.8,
    1.25,
    1.5,
)  # of what a burst is answered at; of a rate; of the most so far
_WARM_S = 5.0
_TIMES = 3  # that it is overloaded
_WELL = 0.99  # share of requests that are answered where all is well
_EVERY = (
    "sent", "answered", "refused", "failed", "wrong", "degraded",
    "p50_ms", "p99_ms", "p999_ms", "late_p99_ms", "generator_cpu",
)  # fmt: skip
_OF_EVENTS = ("events", "events_unwell", "events_failed", "events_p99_ms")
_UNITS = {"goodput": "requests/s", "generator_cpu": "processors"}


def main() -> None:
    """Measure one server, part by part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="folder of a run; else one is trained")
    parser.add_argument("--work", type=Path, help="where to keep what is trained")
    parser.add_argument("--ads", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=300.0, help="at half of saturation")
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--step", type=float, default=20.0, help="seconds of each rising rate")
    parser.add_argument("--timeout-ms", type=float, default=200.0, help="deadline of requests")
    parser.add_argument("--soak", type=float, default=0.0, help="minutes of steady load")
    parser.add_argument("--quick", action="store_true", help="3,000 ads, small models, seconds")
    parser.add_argument("--json", type=Path, help="also write rows {case, metric, value, unit}")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.ads, arguments.seconds, arguments.swaps = 3_000, 10.0, 2
        arguments.step = 3.0
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        run = arguments.run or version_with(arguments.ads, work, small=arguments.quick)
        served = two_versions(run, work / "served")
        print(f"{machine_line()}; deadline {arguments.timeout_ms:.0f} ms", flush=True)
        server = Server(served, timeout_ms=arguments.timeout_ms)
        try:
            rows = measure(server, served, arguments)
        finally:
            server.stop()
    write_rows(arguments.json, rows)


def measure(server: "Server", run: Path, arguments: argparse.Namespace) -> list[Row]:
    """All parts, one after the other."""
    users = Bundle.open(run).state().users.ids
    step: float = arguments.step
    server.load(20.0, _WARM_S, users)
    rows, saturation = saturated(server, users, step)
    half = saturation / 2.0
    rows += swapping(server, users, half, arguments.seconds, arguments.swaps)
    rows += overloaded(server, users, saturation, step)
    if arguments.soak:
        rows += soaked(server, users, half, arguments.soak * 60.0)
    return rows


def saturated(server: "Server", users: Sequence[str], seconds: float) -> tuple[list[Row], float]:
    """Answers a second over rising rates, and the most of them."""
    burst = server.load(1_000.0, max(seconds / 4.0, 2.0), users).summary()["goodput"]
    guess = max(burst, 1.0)
    rows, most, rate = [], 0.0, guess * _FIRST
    while rate < _FAR * max(most, guess * _FIRST):
        summary = server.load(rate, seconds, users).summary()
        rows += shown(f"{rate:.0f} requests/s", summary, ("goodput", "refused", "p50_ms", "p99_ms"))
        most = max(most, summary["goodput"])
        rate *= _RISE
    print(f"saturation: {most:.0f} answers/s", flush=True)
    rows.append(_row("saturation", "goodput", most, "requests/s"))
    return rows, most


def swapping(
    server: "Server", users: Sequence[str], rate: float, seconds: float, swaps: int
) -> list[Row]:
    """A steady load while versions are swapped, inside and outside of swaps."""
    spans: list[tuple[float, float]] = []
    names = server.versions()
    gc.collect()
    gc.freeze()  # the load begins with that, and is to begin now
    begun = time.perf_counter()

    def swap_all() -> None:
        for number in range(swaps):
            due = number * seconds / swaps
            time.sleep(max(0.0, begun + due - time.perf_counter()))
            at = time.perf_counter() - begun
            server.swap(names[(number + 1) % 2])
            spans.append((at, time.perf_counter() - begun))

    swapper = threading.Thread(target=swap_all)
    swapper.start()
    found = server.load(rate, seconds, users, sharp=True)
    swapper.join()
    due = np.array(found.due)
    inside = np.zeros(len(due), bool)
    for start, end in spans:
        inside |= (due >= start) & (due < end)
    took, ok = np.array(found.took) * 1000.0, np.array(found.status) == 200
    summary = found.summary()
    rows = shown(f"half of saturation, {swaps} swaps", summary, (*_EVERY, *_OF_EVENTS))
    for where, part in (("inside swaps", inside), ("outside swaps", ~inside)):
        if (ok & part).any():
            quantiles = np.percentile(took[ok & part], [50.0, 99.0, 99.9])
            figures = dict(zip(("p50_ms", "p99_ms", "p999_ms"), quantiles.tolist(), strict=True))
            figures["answered"] = float((ok & part).sum())
            figures["refused"] = float((np.array(found.status)[part] == 429).sum())
            rows += shown(f"half of saturation, {where}", figures, tuple(figures))
    took_s = float(np.median([end - start for start, end in spans]))
    versions = len(set(found.version) - {""})
    under_load = sum(end <= seconds for _, end in spans)
    print(f"  a swap takes {took_s:.1f} s, {under_load} of {swaps} were done while requests came; "
          f"answers of {versions} versions", flush=True)  # fmt: skip
    rows.append(_row("a swap", "time", took_s, "s"))
    rows.append(_row("a swap", "done while requests came", float(under_load), "swaps"))
    return rows


def overloaded(
    server: "Server", users: Sequence[str], saturation: float, seconds: float
) -> list[Row]:
    """Three times what the server stands, then at once half of it: from which second on is all
    well? Several times, as others have a part in what the machine does."""
    case = "three times saturation"
    rows: list[Row] = []
    shares, wells, before = [], [], server.memory_mb()
    for number in range(1, _TIMES + 1):
        much, after = server.load_that_drops((3.0 * saturation, saturation / 2.0), seconds, users)
        summary = much.summary()
        rows += shown(f"{case}, {number}", summary, ("goodput", "refused_p99_ms", *_EVERY))
        shares.append(summary["goodput"] / saturation)
        wells.append(_well_after(after, round(seconds)))
    during = server.memory_mb()
    share, well = float(np.median(shares)), float(np.median(wells))
    print(f"  {share:.0%} of saturation; all well after {well:.0f} s (medians of {_TIMES}); memory "
          f"{before:.0f} -> {during:.0f} MB", flush=True)  # fmt: skip
    rows.append(_row(case, "all well again after", well, "s"))
    rows.append(_row(case, "share of saturation answered", share, "1"))
    rows.append(_row(case, "memory before", before, "MB"))
    rows.append(_row(case, "memory after", during, "MB"))
    return rows


def _well_after(found: Result, seconds: int) -> float:
    """From which second on all is well; NaN if it never is."""
    for second in map(float, range(seconds)):
        if _is_well(found.summary(second, second + 1.0)) and _is_well(found.summary(second)):
            return second
    return float("nan")


def soaked(server: "Server", users: Sequence[str], rate: float, seconds: float) -> list[Row]:
    """Memory and open files while a steady load goes on, once the newest slates that are kept in
    memory are as many as they may become."""
    server.load(2.0 * rate, max(seconds / 10.0, 1.1 * REMEMBERED / (2.0 * rate)), users)
    seen = [(server.memory_mb(), server.open_files())]
    rows: list[Row] = []
    for _ in range(10):
        summary = server.load(rate, seconds / 10.0, users).summary()
        seen.append((server.memory_mb(), server.open_files()))
        print(f"  soak: {seen[-1][0]:.0f} MB, {seen[-1][1]} files, p99 {summary['p99_ms']:.1f} ms",
              flush=True)  # fmt: skip
        rows += shown(f"soak, part {len(seen) - 1}", summary, ("answered", "failed", "p99_ms"))
    memory, files = zip(*seen, strict=True)
    growth = 100.0 * (memory[-1] / memory[0] - 1.0)
    print(f"soak: memory {growth:+.2f} %, files {files[0]} -> {files[-1]}", flush=True)
    rows.append(_row("soak", "memory growth", growth, "%"))
    rows.append(_row("soak", "open files more", float(files[-1] - files[0]), "files"))
    return rows


class Server:
    """`adrec serve` in a process of its own."""

    def __init__(self, run: Path, *, timeout_ms: float) -> None:
        self._timeout_ms = timeout_ms
        command = [sys.executable, "-m", "adrec.cli", "serve", str(run), "--port", "0"]
        command += ["--admin-port", "0", "--set", f"timeout_ms={timeout_ms}"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"}
        )
        assert self._process.stdout is not None
        text = "".join(self._process.stdout.readline() for _ in range(3))
        addresses = re.findall(r"http://[0-9.]+:\d+", text)
        self.url, self.admin = addresses[0], addresses[-1]

    def load(
        self, rate: float, seconds: float, users: Sequence[str], *, sharp: bool = False
    ) -> Result:
        """Send a load; `sharp`: tell answers that are mixed of both versions."""
        check = _of_one_version if sharp else lambda answer: True
        load = Load(rate, seconds, users, timeout_ms=self._timeout_ms)
        return asyncio.run(run_load(self.url, load, check=check))

    def load_that_drops(
        self, rates: tuple[float, float], seconds: float, users: Sequence[str]
    ) -> list[Result]:
        """Send a load, and in the instant in which that ends another one."""
        loads = [Load(rate, seconds, users, timeout_ms=self._timeout_ms) for rate in rates]
        return asyncio.run(run_loads(self.url, loads))

    def versions(self) -> list[str]:
        """The one that answers, and the other."""
        about = self._ask(f"{self.url}/v2/models/adrec")
        return [about["version"], *(v for v in about["versions"] if v != about["version"])]

    def swap(self, version: str) -> None:
        """Have a version answer."""
        self._ask(f"{self.admin}/admin/swap?version={version}", method="POST")

    def memory_mb(self) -> float:
        """Resident memory of its processes; what they share counts once."""
        texts = [(folder / "smaps_rollup").read_text() for folder in self._folders()]
        return sum(int(re.findall(r"Pss: +(\d+)", text)[0]) for text in texts) / 1e3

    def open_files(self) -> int:
        """Descriptors of its processes."""
        return sum(len(list((folder / "fd").iterdir())) for folder in self._folders())

    def _folders(self) -> list[Path]:
        folders = [Path(f"/proc/{self._process.pid}")]
        for folder in folders:  # which grows: those that they have started, too
            started = [path.read_text().split() for path in folder.glob("task/*/children")]
            folders += [folder.with_name(pid) for some in started for pid in some]
        return folders

    def stop(self) -> None:
        """End it as an operator does."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    def _ask(self, url: str, method: str = "GET") -> dict[str, Any]:
        with urllib.request.urlopen(urllib.request.Request(url, method=method)) as answer:
            content: dict[str, Any] = json.load(answer)
        return content


def two_versions(run: Path, folder: Path) -> Path:
    """A run with its current version and one that scores every click as certain."""
    shutil.rmtree(folder, ignore_errors=True)
    version = find_version(run)
    names = (version.name, _SHIFTED)
    for name in names:
        shutil.copytree(version, folder / "versions" / name, copy_function=os.link)
    shifted = folder / "versions" / _SHIFTED
    for name in (CALIBRATION, "manifest.json"):
        content = (shifted / name).read_text()
        (shifted / name).unlink()
        (shifted / name).write_text(content)
    calibration = json.loads((shifted / CALIBRATION).read_text())
    calibration["tasks"][0]["intercept"] += _SHIFT
    (shifted / CALIBRATION).write_text(json.dumps(calibration))
    manifest = json.loads((shifted / "manifest.json").read_text())
    manifest["version"] = _SHIFTED
    size = (shifted / CALIBRATION).stat().st_size
    manifest["files"][CALIBRATION] = {"sha256": sha256(shifted / CALIBRATION), "bytes": size}
    (shifted / "manifest.json").write_text(json.dumps(manifest))
    (folder / "current").write_text(f"{version.name}\n")
    return folder


def _of_one_version(answer: Mapping[str, Any]) -> bool:
    scores = [ad["scores"]["click"] for ad in answer["ads"]]
    shifted = answer["version"] == _SHIFTED
    return all((score > _SHARP) == shifted for score in scores)


def _is_well(summary: Mapping[str, float]) -> bool:
    return summary["sent"] > 0 and summary["answered"] >= _WELL * summary["sent"]


def shown(case: str, figures: Mapping[str, float], names: Sequence[str]) -> list[Row]:
    """Print some figures of a case; the same as rows."""
    print(f"{case}: " + "  ".join(f"{name} {figures[name]:,.1f}" for name in names), flush=True)
    return [_row(case, name, figures[name], _unit(name)) for name in names]


def _unit(name: str) -> str:
    return "ms" if name.endswith("_ms") else _UNITS.get(name, "requests")


def _row(case: str, metric: str, value: float, unit: str) -> Row:
    return {"case": case, "metric": metric.removesuffix("_ms"), "value": value, "unit": unit}


if __name__ == "__main__":
    main()
