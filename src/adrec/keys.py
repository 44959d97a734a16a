"""Keys: beside a step's result lies a hash of all that it was made of, so that it is made once."""

import hashlib
import json
from pathlib import Path
from typing import Any

_IN_PARTS = ("impressions", "users", "ads")  # tables that may be folders of files


def key_of(*parts: Any) -> str:
    """SHA-256 over settings: changes exactly if one of them does."""
    texts = [p.model_dump_json() if hasattr(p, "model_dump_json") else str(p) for p in parts]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def write_key(directory: Path, key: str) -> None:
    """Say what the folder's content is made of."""
    (directory / "run.json").write_text(json.dumps({"key": key}))


def has_key(directory: Path, key: str) -> bool:
    """Whether the folder's content is made of just this."""
    try:
        found = json.loads((directory / "run.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(found.get("key") == key)


def files_of(path: Path | None) -> list[tuple[str, int, int]]:
    """Names, sizes and times of change of a log's files."""
    if path is None or not path.exists():
        return []
    parts = [part for table in _IN_PARTS for part in path.glob(f"{table}/*.parquet")]
    files = (
        [path] if path.is_file() else sorted(p for p in [*path.iterdir(), *parts] if p.is_file())
    )
    return [(str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
