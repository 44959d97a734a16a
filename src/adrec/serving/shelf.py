"""Shelf: what is to be done once for a version, however often a server loads it, on disk while
the server runs.

To tell a version the log since its training takes the longer the more was reported. So whoever has
told it leaves its state here, and whoever loads it next, beside it or later, goes on from there.
Its files are verified once while they stay as they are, and its graphs compiled once. What is
missing here or of no use is done anew.
"""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import polars as pl

from adrec.bundle import Bundle
from adrec.data.log_entries import AdChange
from adrec.errors import ConfigError
from adrec.features.state import State
from adrec.keys import alone
from adrec.schema import Strict

_NAME = "adrec-told-"
_OWNER = "server"
_KNOWN = "known.json"

_log = logging.getLogger(__name__)


class Known(Strict):
    """What a version knows of a log."""

    log_end_ms: int
    """Time of the last impression that it learned from, UTC milliseconds."""
    newest_ms: int
    """Time of the last request that it was told of, or of that impression."""
    told: int = 0
    """Place in the log up to which it was told all."""
    ads: int = 0
    """Number of the last change of ads that it knows."""
    ad_changes: tuple[tuple[AdChange, ...], ...] = ()
    """Those changes, in the order and together as they were made: that gives ads their rows."""
    erasures: int = 0
    """Number of the last user who was erased from it."""


@contextmanager
def temporary_shelf() -> Iterator["Shelf"]:
    """A shelf for as long as a server runs. Those of servers that were killed are deleted."""
    for abandoned in Path(tempfile.gettempdir()).glob(f"{_NAME}*"):
        with suppress(ConfigError, OSError), alone(abandoned, _OWNER):
            shutil.rmtree(abandoned)
    with tempfile.TemporaryDirectory(prefix=_NAME) as folder, alone(Path(folder), _OWNER):
        yield Shelf(Path(folder))


class Shelf:
    """What is kept of versions in one folder. It can be pickled."""

    def __init__(self, folder: Path) -> None:
        """Take a folder; it need not be there yet."""
        self._states = folder / "states"
        self.graphs = folder / "graphs"
        """Folder of what was compiled."""

    def has_verified(self, version: Path) -> bool:
        """Whether a version's files are those that were verified."""
        return self._place(version).is_dir()

    def note_verified(self, version: Path) -> None:
        """A version's files were verified."""
        with suppress(OSError):
            self._place(version).mkdir(parents=True, exist_ok=True)

    def take(self, bundle: Bundle) -> tuple[Known, State] | None:
        """What is there of a version; None if it is not."""
        place = self._place(bundle.path)
        try:
            known = Known.model_validate_json((place / _KNOWN).read_text())
            return known, State.load(place, bundle.features, bundle.catalogue)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            _log.warning("%s cannot be read, and the log is told anew: %s", place, error)
            return None

    def put(self, version: Path, known: Known, state: State) -> None:
        """Keep what a version knows in place of what was there; if there is no room for it, the
        log will be told anew.

        Args:
            version: its folder.
            known, state: both as of the same event.
        """
        self.drop(version)
        place = self._place(version)
        try:
            state.save(place)
            (place / _KNOWN).write_text(known.model_dump_json())  # last: now it is complete
        except (OSError, pl.exceptions.PolarsError) as error:
            _log.warning("%s cannot be written, and the log will be told anew: %s", place, error)
            self.drop(version)

    def drop(self, version: Path) -> None:
        """Delete what is there of a version."""
        shutil.rmtree(self._place(version), ignore_errors=True)

    def clear(self) -> None:
        """Delete what tells of users: one of them was erased."""
        shutil.rmtree(self._states, ignore_errors=True)

    def _place(self, version: Path) -> Path:
        """Folder of a version; another one once its files have changed."""
        digest = hashlib.sha256()
        for path in sorted(version.rglob("*")):
            found = path.stat()
            told = (path, found.st_size, found.st_mtime_ns, found.st_ino)
            digest.update(repr(told).encode())
        return self._states / f"{version.name}-{digest.hexdigest()[:16]}"
