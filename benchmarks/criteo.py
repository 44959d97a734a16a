"""How fast and in how much memory does a Criteo-layout file go through each command?

    python benchmarks/criteo.py --json FILE

Generates 1,000,000 impressions in Criteo's layout, then runs `adrec prepare`, `train` (one epoch of
each stage) and `evaluate` as a user would, each in a process of its own, and prints rows a second
and peak memory beside what polars needs to parse and hash the same file, which is the least that
any preparation does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent

_POLARS = """
import sys, polars as pl
names = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
log = pl.scan_csv(sys.argv[1], separator="\\t", has_header=False, new_columns=names)
log.select(
    pl.col("label").sum(),
    pl.col("^I.*$").cast(pl.Float32, strict=False).log1p().sum(),
    pl.col("^C.*$").hash().sum(),
).collect(engine="streaming")
"""


def main() -> None:
    """Run every step and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="standard", help="synthetic world to write")
    parser.add_argument("--config", type=Path, default=_ROOT / "examples" / "criteo.yaml")
    parser.add_argument("--json", type=Path, help="also write rows {case, metric, value, unit}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), arguments.preset, arguments.config)
    print(f"{'case':<28}{'rows':>12}{'seconds':>10}{'rows/s':>12}{'peak MB':>10}")
    for case in dict.fromkeys(row["case"] for row in rows):
        of = {row["metric"]: float(row["value"]) for row in rows if row["case"] == case}
        print(
            f"{case:<28}{of['rows']:>12,.0f}{of['time']:>10.1f}"
            f"{of['rate']:>12,.0f}{of['peak memory']:>10,.0f}"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1))


def measure(folder: Path, preset: str, config: Path) -> list[dict[str, str | float]]:
    """Rows {case, metric, value, unit} of every step."""
    log, run = folder / "log", folder / "run"
    adrec = [sys.executable, "-m", "adrec.cli"]
    source = ["--config", str(config), "--data", str(log), "--out", str(run)]
    steps: list[tuple[str, list[str]]] = [
        ("generate", [*adrec, "synth", "--layout", "criteo", "--preset", preset, "-o", str(log)]),
        ("polars: parse and hash", [sys.executable, "-c", _POLARS, str(log / "train.txt")]),
        ("adrec validate", [*adrec, "validate", "--config", str(config), "--data", str(log)]),
        ("adrec prepare", [*adrec, "prepare", *source]),
        ("adrec train, both stages", [*adrec, "train", *source]),
        ("adrec evaluate", [*adrec, "evaluate", str(run), "--no-rivals"]),
    ]
    found: list[dict[str, str | float]] = []
    for case, command in steps:
        seconds, peak_mb = timed(command)
        with (log / "train.txt").open("rb") as lines:
            count = sum(1 for _ in lines)
        rows = count if case != "adrec evaluate" else count // 10
        for metric, value, unit in (
            ("rows", rows, "rows"),
            ("time", seconds, "s"),
            ("rate", rows / seconds, "rows/s"),
            ("peak memory", peak_mb, "MB"),
        ):
            found.append({"case": case, "metric": metric, "value": value, "unit": unit})
    return found


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds and peak memory (MB) of a command; its output goes to ours."""
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.monotonic() - begun, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
