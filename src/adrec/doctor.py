"""Doctor: what this machine offers adrec, and what to do about what is missing."""

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_LEAST_MEMORY_GB = 4.0
_LEAST_DISK_GB = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    status: Literal["ok", "note", "bad"]
    found: str
    advice: str = ""


def diagnose() -> list[Finding]:
    """Look at Python, the processor, memory, disk, the libraries and the extras."""
    return [
        _python(),
        _torch(),
        _faiss(),
        _processor(),
        _memory(),
        _disk(Path.cwd()),
        _openmp(),
        _extra(
            "LightGBM",
            "lightgbm",
            "'adrec[trees]' to see it in evaluation tables, or beside the ranker",
        ),
        _extra("iALS", "implicit", "'adrec[rivals]' to see it in evaluation tables"),
        _extra("Optuna", "optuna", "'adrec[tune]' to search for better settings"),
    ]


def _python() -> Finding:
    return Finding("Python", "ok", platform.python_version())


def _torch() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", "bad", str(error), "pip install torch==2.13.0")
    gpu = f"{torch.cuda.device_count()} GPU" if torch.cuda.is_available() else "no GPU"
    found = f"{torch.__version__}, {torch.get_num_threads()} threads, {gpu}"
    if torch.version.cuda is not None and not torch.cuda.is_available():
        advice = "a CUDA build without a GPU: the README names the CPU build, 2 GB smaller"
        return Finding("torch", "note", found, advice)
    return Finding("torch", "ok", found)


def _faiss() -> Finding:
    try:
        import faiss
    except (ImportError, OSError) as error:
        return Finding("faiss", "bad", str(error), "pip install faiss-cpu")
    return Finding("faiss", "ok", f"{faiss.__version__}, {faiss.get_compile_options().strip()}")


def _processor() -> Finding:
    cores = len(os.sched_getaffinity(0))
    try:
        import torch

        from adrec.training.optimiser import has_native_bf16
    except (ImportError, OSError):  # torch has a finding of its own
        return Finding("processor", "ok", f"{cores} cores")
    found = f"{cores} cores, {torch.backends.cpu.get_cpu_capability()}"
    if has_native_bf16():
        return Finding("processor", "ok", f"{found}, bf16")
    advice = "no native bf16: training is about half as fast"
    return Finding("processor", "note", found, advice)


def _memory() -> Finding:
    total_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    found = f"{total_gb:.1f} GB"
    if total_gb < _LEAST_MEMORY_GB:
        return Finding("memory", "note", found, "use --rows, or a smaller ranker.width")
    return Finding("memory", "ok", found)


def _disk(path: Path) -> Finding:
    free_gb = shutil.disk_usage(path).free / 1e9
    found = f"{free_gb:.0f} GB free in {path}"
    if free_gb < _LEAST_DISK_GB:
        return Finding("disk", "note", found, "a prepared log takes about 200 bytes an impression")
    return Finding("disk", "ok", found)


def _openmp() -> Finding:
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if policy.upper() == "PASSIVE":
        return Finding("OpenMP", "ok", "idle threads sleep")
    advice = "set OMP_WAIT_POLICY=PASSIVE before Python starts: torch and FAISS share the cores"
    return Finding("OpenMP", "note", "idle threads spin", advice)


def _extra(name: str, module: str, remedy: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(name, "note", "not installed", f"pip install {remedy}")
    return Finding(name, "ok", "installed")
