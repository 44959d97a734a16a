"""How fast and in how much memory does a log in Criteo's layout become a prepared one?

    python benchmarks/preparation.py --json FILE
    python benchmarks/preparation.py --json FILE --quick

Generates 1, 5 and 20 million rows (`--quick`: 100,000 and 200,000), each column with Criteo's mix
of small and large sets of values, drawn by Zipf's law out of sets that stay the same as the rows
grow. `adrec validate` and `adrec prepare` run on them as a user would run them, each in a process
of its own, start included. Beside them stands what polars alone needs to parse the file, take the
logarithm of its numbers and hash its categories: about the least that any preparation does.

Memory is what a process has for itself, looked at 50 times a second. Pages of the log's file that
are mapped stand apart: the system takes them back when somebody needs them.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from machine import Row, machine_line, write_rows

_ROOT = Path(__file__).resolve().parent.parent
_CHUNK_ROWS = 250_000
_MISSING = 0.1
_LOOK_S = 0.02
_SIZES = (1_000_000, 5_000_000, 20_000_000)
_QUICK_SIZES = (100_000, 200_000)
_VALUES = (
    1460, 583, 200_000, 200_000, 305, 24, 12_517, 633, 3, 93_145, 5_683, 200_000, 3_194, 27,
    14_992, 200_000, 10, 5_652, 2_173, 4, 200_000, 18, 15, 200_000, 105, 142_572,
)  # fmt: skip
"""Distinct values of C1 to C26: Criteo's own (Kaggle's log), up to 200,000."""

_POLARS = """
import sys, polars as pl
names = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
log = pl.scan_csv(
    sys.argv[1], separator="\\t", has_header=False, quote_char=None,
    schema=dict.fromkeys(names, pl.String()),
)
log.select(
    pl.col("label").cast(pl.Float32).sum(),
    pl.col("^I.*$").cast(pl.Float32, strict=False).log1p().sum(),
    pl.col("^C.*$").hash().sum(),
).collect(engine="streaming")
"""


def main() -> None:
    """Run every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=_ROOT / "examples" / "criteo.yaml")
    parser.add_argument("--quick", action="store_true", help="small logs: does it run at all?")
    parser.add_argument("--json", type=Path, help="also write rows {case, metric, value, unit}")
    parser.add_argument("--work", type=Path, help="where to write the logs meanwhile")
    arguments = parser.parse_args()
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for size in _QUICK_SIZES if arguments.quick else _SIZES:
        with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
            rows += measure(Path(folder), size, arguments.config)
    print(machine_line())
    print(f"{'case':<42}{'seconds':>10}{'rows/s':>12}{'peak MB':>10}{'and of files':>14}")
    for case in dict.fromkeys(row["case"] for row in rows):
        of = {row["metric"]: float(row["value"]) for row in rows if row["case"] == case}
        print(f"{case:<42}{of['time']:>10.1f}{of['rate']:>12,.0f}{of['peak memory']:>10,.0f}"
              f"{of['peak pages of files']:>14,.0f}")  # fmt: skip
    write_rows(arguments.json, rows)


def measure(folder: Path, size: int, config: Path) -> list[Row]:
    """Rate and peak memory of each step on one log."""
    log = folder / "train.txt"
    generate(log, size)
    adrec = [sys.executable, "-m", "adrec.cli"]
    source = ["--config", str(config), "--data", str(log)]
    steps = {
        "polars: parse, log, hash": [sys.executable, "-c", _POLARS, str(log)],
        "adrec validate": [*adrec, "validate", *source],
        "adrec prepare": [*adrec, "prepare", *source, "--out", str(folder / "run")],
    }
    rows: list[Row] = []
    for step, command in steps.items():
        seconds, own_mb, files_mb = timed(command)
        case = f"{step}, {size:,} rows"
        for metric, value, unit in (
            ("time", seconds, "s"),
            ("rate", size / seconds, "rows/s"),
            ("peak memory", own_mb, "MB"),
            ("peak pages of files", files_mb, "MB"),
        ):
            rows.append({"case": case, "metric": metric, "value": value, "unit": unit})
    return rows


def generate(file: Path, rows: int) -> None:
    """Write a log in Criteo's layout, a piece at a time."""
    rng = np.random.default_rng(0)
    values = [pl.Series([f"{i * 26 + c:08x}" for i in range(n)]) for c, n in enumerate(_VALUES)]
    with file.open("wb") as out:
        for start in range(0, rows, _CHUNK_ROWS):
            piece = _piece(rng, min(_CHUNK_ROWS, rows - start), values)
            piece.write_csv(out, separator="\t", include_header=False)


def _piece(rng: np.random.Generator, rows: int, values: list[pl.Series]) -> pl.DataFrame:
    columns = [pl.Series("label", (rng.random(rows) < 0.25).astype(np.int8))]
    for i in range(1, 14):
        counts = np.exp(rng.normal(2.0, 1.6, rows)).astype(np.int32)
        columns.append(_with_gaps(rng, pl.Series(f"I{i}", counts)))
    for i, of_column in enumerate(values, 1):
        ranks = (len(of_column) ** rng.random(rows)).astype(np.int64) - 1  # the k-th as 1 / k
        columns.append(_with_gaps(rng, of_column.gather(ranks).alias(f"C{i}")))
    return pl.DataFrame(columns)


def _with_gaps(rng: np.random.Generator, column: pl.Series) -> pl.Series:
    there = pl.Series(rng.random(len(column)) > _MISSING)
    return pl.select(pl.when(there).then(column).alias(column.name)).to_series()


def timed(command: list[str]) -> tuple[float, float, float]:
    """Seconds of a command, and at most how much memory (MB) of its own and of files it had; its
    output goes to ours."""
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=sys.stderr)
    own_mb = files_mb = 0.0
    while process.poll() is None:
        status = (Path("/proc") / str(process.pid) / "status").read_text()
        sizes = {name: int(kb) / 1024 for name, kb in re.findall(r"(Rss\w+):\s+(\d+) kB", status)}
        own_mb = max(own_mb, sizes.get("RssAnon", 0.0))
        files_mb = max(files_mb, sizes.get("RssFile", 0.0))
        time.sleep(_LOOK_S)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.monotonic() - begun, own_mb, files_mb


if __name__ == "__main__":
    main()
