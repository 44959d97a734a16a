"""What a benchmark ran on, as rows {case, metric, value, unit}, and how its rows are printed."""

import json
import os
import platform
from pathlib import Path

Row = dict[str, str | float]

_FLAGS = {
    "AVX-512": "avx512f",
    "AVX-512 VNNI": "avx512_vnni",
    "AVX-512 BF16": "avx512_bf16",
    "AMX": "amx_tile",
}


def machine_rows() -> list[Row]:
    """Processor, cores, and which of the instructions it has that matter here (1 or 0)."""
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    pairs = (line.partition(":") for line in about.splitlines())
    known = {name.strip(): value.strip() for name, _, value in pairs}
    flags = known.get("flags", "").split()
    rows: list[Row] = [
        {
            "case": "machine",
            "metric": "processor",
            "value": known.get("model name", platform.processor()),
            "unit": "name",
        },
        {"case": "machine", "metric": "cores", "value": os.cpu_count() or 0, "unit": "cores"},
    ]
    rows += [
        {"case": "machine", "metric": name, "value": int(flag in flags), "unit": "1"}
        for name, flag in _FLAGS.items()
    ]
    return rows


def machine_line() -> str:
    """The same in one line."""
    rows = {row["metric"]: row["value"] for row in machine_rows()}
    has = [name for name in _FLAGS if rows[name]]
    lacks = [name for name in _FLAGS if not rows[name]]
    text = f"{rows['processor']}, {rows['cores']} cores, {', '.join(has) or 'no AVX-512'}"
    return f"{text}; without {', '.join(lacks)}" if lacks else text


def write_rows(file: Path | None, rows: list[Row]) -> None:
    """Write rows as JSON, those of the machine first."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(machine_rows() + rows, indent=1) + "\n")
