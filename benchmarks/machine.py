"""The machine that a benchmark ran on, as rows of its JSON file.

    python benchmarks/machine.py

Reads `/proc/cpuinfo`; where there is none (macOS), says what Python knows and no instruction sets.
"""

import os
import platform
from pathlib import Path

Row = dict[str, str | float]

_CPUINFO = Path("/proc/cpuinfo")
# What makes products of matrices fast, by the kernel's name of it.
_INSTRUCTIONS = {
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "AVX-512 VNNI": "avx512_vnni",
    "AVX-512 BF16": "avx512_bf16",
    "AMX int8": "amx_int8",
    "AMX bf16": "amx_bf16",
}


def machine_rows(cpuinfo: str | None = None) -> list[Row]:
    """Rows {case, metric, value, unit}: the processor's name, how many cores this process may use,
    memory in bytes, and 1 or 0 for each instruction set.

    Args:
        cpuinfo: text as in `/proc/cpuinfo`; None: this machine's.
    """
    if cpuinfo is None:
        cpuinfo = _CPUINFO.read_text() if _CPUINFO.exists() else ""
    of_first: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        of_first.setdefault(name.strip(), value.strip())
    flags = set(of_first.get("flags", "").split())
    known: list[tuple[str, str | float, str]] = [
        ("processor", of_first.get("model name") or platform.processor(), "name"),
        ("cores", _cores(), "cores"),
        ("memory", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "bytes"),
    ]
    known += [(name, float(flag in flags), "1") for name, flag in _INSTRUCTIONS.items()]
    return [
        {"case": "machine", "metric": metric, "value": value, "unit": unit}
        for metric, value, unit in known
    ]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    for row in machine_rows():
        print(f"{row['metric']:<14}{row['value']:>24}")
