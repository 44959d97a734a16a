"""Keys: beside a step's result lies a hash of all that it was made of, so that it is made once, and
by one process at a time."""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adrec.errors import ConfigError

_IN_PARTS = (
    *(f"{table}/*.parquet" for table in ("impressions", "users", "ads")),
    "random/*/*.csv",
    "bts/*/*.csv",
)
"""Of a folder, where tables may lie in folders of their own."""
_READ = (
    ".parquet", ".csv", ".tsv", ".txt", ".gz", ".dat", ".data", ".item", ".user",
    "schema.yaml",
)  # fmt: skip
"""Endings of what a log is read from; what else lies there, such as notes, decides nothing."""


def key_of(*parts: Any) -> str:
    """SHA-256 over settings: changes exactly if one of them does."""
    texts = [p.model_dump_json() if hasattr(p, "model_dump_json") else str(p) for p in parts]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def write_key(directory: Path, key: str) -> None:
    """Say what the folder's content is made of; at no instant is it said by half."""
    unfinished = directory / "run.json.unfinished"
    unfinished.write_text(json.dumps({"key": key}))
    unfinished.replace(directory / "run.json")


def has_key(directory: Path, key: str) -> bool:
    """Whether the folder's content is made of just this."""
    try:
        found = json.loads((directory / "run.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(found.get("key") == key)


@contextmanager
def alone(folder: Path, work: str) -> Iterator[None]:
    """No other process does the same work in this folder meanwhile; a killed one does not count.

    Args:
        folder: which; made if it is not there.
        work: a word for it, the name of the lock's file.

    Raises:
        ConfigError: another process is at it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{work}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{folder}: another process is at work in this folder ({work}); wait for it, or "
                "take another folder"
            ) from error
        yield


def files_of(path: Path | None) -> list[tuple[str, int, int]]:
    """Names, sizes and times of change of a log's files."""
    if path is None or not path.exists():
        return []
    files = [path]
    if path.is_dir():
        there = {p for where in ("*", *_IN_PARTS) for p in path.glob(where)}
        files = sorted(p for p in there if p.is_file() and p.name.endswith(_READ))
    return [(str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
