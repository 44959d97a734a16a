"""Kept: what a version was told of the event log, for whoever loads it next.

To tell a version the log since its training takes the longer the more was reported. So whoever has
told it writes its state to a file, and whoever loads it next, beside it or later, goes on from
there. The file has no name: nobody else can open it, and it is gone with the server, however that
ends.
"""

import io
import logging
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any, cast
from weakref import finalize
from zipfile import ZipFile

import polars as pl

from adrec.data.log_entries import AdChange
from adrec.features.memory import Memory

_log = logging.getLogger(__name__)

Files = tuple[tuple[str, int, int, int], ...]
"""Names of files, their sizes, times of change, and numbers on the disk."""


@dataclass(frozen=True)
class Known:
    """What a version knows of a log."""

    files: Files
    """Its own, which were verified."""
    log_end_ms: int
    """Time of the last impression that it learned from, UTC milliseconds."""
    newest_ms: int
    """Time of the last request that it was told of, or of that impression."""
    told: int = 0
    """Place in the log up to which it was told all."""
    ads: int = 0
    """Number of the last change of ads that it knows."""
    ad_changes: tuple[AdChange, ...] = ()
    """The last change of each ad, in the order that gave new ads their rows."""
    new_ads: tuple[str, ...] = ()
    """The new ads, in the order of their rows: all changed ads that its schema fits."""
    erasures: int = 0
    """Number of the last user who was erased from it."""


class Room:
    """A file to keep something in. It can be passed to a process that is started."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.close: Callable[[], object] = finalize(self, os.close, descriptor)
        """Let go of it, as happens when nobody refers to it any more; the disk's space is free once
        no process has it."""

    @classmethod
    def new(cls) -> "Room | None":
        """A new one; None if there can be none."""
        try:
            with tempfile.TemporaryFile() as file:
                return cls(os.dup(file.fileno()))
        except OSError as error:
            _log.warning("nothing that is told can be kept: %s", error)
            return None

    def write(self, memory: Memory) -> bool:
        """Keep what a version remembers; False if that fails, and it will be told anew."""
        try:
            file = os.fdopen(self._descriptor, "wb", closefd=False)
            with file, ZipFile(file, "w") as parts:
                for name, table in memory.items():
                    content = io.BytesIO()
                    table.write_ipc(content)
                    parts.writestr(name, content.getbuffer())
        except Exception as error:  # whatever it is, the version can do without
            _log.warning("what was told cannot be kept, and will be told anew: %s", error)
            return False
        return True

    def read(self) -> Memory | None:
        """What was kept; None if it cannot be read, and is to be told anew."""
        try:
            # Others may read it at the same time, and would share a place in it.
            with _Mapped(self._descriptor, 0, access=mmap.ACCESS_READ) as file:
                parts = ZipFile(cast(IO[bytes], file))
                names = parts.namelist()
                return {name: pl.read_ipc(io.BytesIO(parts.read(name))) for name in names}
        except Exception as error:  # whatever it is, the version can do without
            _log.warning("what was kept cannot be read, and is told anew: %s", error)
            return None

    def __reduce__(self) -> "tuple[Callable[[Any], Room], tuple[Any]]":
        return _passed, (DupFd(self._descriptor),)


class _Mapped(mmap.mmap):
    def seekable(self) -> bool:  # from Python 3.13 on all are
        return True


def _passed(descriptor: Any) -> Room:
    return Room(descriptor.detach())


@dataclass(frozen=True, eq=False)
class Kept:
    """What a version knows, and where it is kept what it remembers."""

    known: Known
    room: Room


def files_of(version: Path) -> Files:
    """A version's files as they stand."""
    found = ((path, path.stat()) for path in sorted(version.rglob("*")))
    return tuple((str(path), s.st_size, s.st_mtime_ns, s.st_ino) for path, s in found)


def joined(old: Iterable[AdChange], new: Iterable[AdChange]) -> tuple[AdChange, ...]:
    """The last change of each ad. Ads stand in the order in which they first had fields, which is
    that of the rows of new ones."""
    found = {change.ad_id: change for change in old}
    for change in new:
        before = found.get(change.ad_id)
        if before is not None and before.fields is None and change.fields is not None:
            del found[change.ad_id]
        found[change.ad_id] = change
    return tuple(found.values())
