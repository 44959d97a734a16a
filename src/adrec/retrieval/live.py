"""An index that changes while it is searched: a built one, a flat delta, and what is gone.

Most FAISS indices cannot take an ad back (`remove_ids` fails on graphs and on refined codes). Here
the built index never changes: new and changed ads lie in a small delta that every search weighs
whole, ads that were changed or removed are filtered out of the built index, and results are merged
by score. What a search reads is one immutable `Snapshot`; a change makes another and puts it in
place by one assignment, so that a search sees all of a change or nothing of it. When the delta or
what is gone outgrows a share of the index, a thread builds it anew; changes that come meanwhile are
made again on the new one before it is put in place.

Shapes: A ads, D width, N changed ads, Q queries, K results a query.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from pydantic import Field

from adrec.errors import ConfigError, DataError
from adrec.retrieval.ad_set import AdSet
from adrec.retrieval.index import AdIndex, Found
from adrec.retrieval.index_config import IndexConfig, Kind
from adrec.retrieval.inputs import Floats, Ints, check_ads, check_queries, check_vectors
from adrec.schema import Strict

AboutT = TypeVar("AboutT")

_log = logging.getLogger(__name__)


class LiveConfig(Strict):
    """When an index that has changed is built anew."""

    rebuild_new_share: float = Field(default=0.01, gt=0.0, le=1.0)
    """New and changed ads, of all: each search weighs every one of them."""
    rebuild_gone_share: float = Field(default=0.2, gt=0.0, le=1.0)
    """Ads of the built index that were changed or removed, of all in it."""
    rebuild_least: int = Field(default=1_000, ge=1)
    """Fewer changes than this never rebuild."""
    rebuild_threads: int = Field(default=1, ge=1, le=1024)
    """Threads that a rebuild takes from the requests."""


@dataclass(frozen=True)
class Snapshot(Generic[AboutT]):
    """An index at one instant, never changed.

    main: as built. kept: its ads that were neither changed nor removed since; None: all. rows_N,
    vectors_ND: the others. about: whatever else changes together with the vectors.
    """

    main: AdIndex
    kept: AdSet | None
    rows_N: Ints
    vectors_ND: Floats
    about: AboutT

    def __len__(self) -> int:
        return (len(self.main) if self.kept is None else len(self.kept)) + len(self.rows_N)

    @property
    def rows(self) -> int:
        """The highest row that it ever held and one: what a filter has to cover."""
        return max(self.main.rows, int(self.rows_N.max(initial=-1)) + 1)

    def search(
        self, queries: Floats, k: int, *, allowed: AdSet | None = None, exact: bool = False
    ) -> Found:
        """As `AdIndex.search`."""
        if allowed is not None and allowed.rows < self.rows:
            raise DataError(
                f"allowed is of {allowed.rows:,} ad rows, but the index holds ads up to row "
                f"{self.rows - 1:,}; make it of the catalogue that is indexed"
            )
        within = None if allowed is None else allowed.resized(self.main.rows)
        if self.kept is not None:
            within = self.kept if within is None else within & self.kept
        found = self.main.search(queries, k, allowed=within, exact=exact)
        if len(self.rows_N) == 0:
            return found
        rows_N, vectors_ND = self.rows_N, self.vectors_ND
        if allowed is not None:
            may_N = allowed.has(rows_N)
            rows_N, vectors_ND = rows_N[may_N], vectors_ND[may_N]
        scores_QN = check_queries(queries, self.main.dim) @ vectors_ND.T
        ads = np.concatenate([found.ads_QK, np.broadcast_to(rows_N, scores_QN.shape)], axis=1)
        scores = np.concatenate([found.scores_QK, scores_QN], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Found(
            np.take_along_axis(ads, best, axis=1), np.take_along_axis(scores, best, axis=1)
        )

    def has(self, rows: Ints) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Which of some rows it holds."""
        kept = self.main.held if self.kept is None else self.kept
        inside = rows < kept.rows
        return inside & kept.has(np.where(inside, rows, 0)) | np.isin(rows, self.rows_N)

    def put(self, rows_N: Ints, vectors_ND: Floats) -> "Snapshot[AboutT]":
        """With ads added or changed."""
        without = self.without(rows_N)
        return replace(
            without,
            rows_N=np.concatenate([without.rows_N, rows_N]),
            vectors_ND=np.concatenate([without.vectors_ND, vectors_ND]),
        )

    def without(self, rows_N: Ints) -> "Snapshot[AboutT]":
        """With ads removed, as far as they are there."""
        kept = self.main.held if self.kept is None else self.kept
        gone = rows_N[rows_N < kept.rows]
        gone = gone[kept.has(gone)]
        stays = ~np.isin(self.rows_N, rows_N)
        return replace(
            self,
            kept=kept.without(gone) if len(gone) else self.kept,
            rows_N=self.rows_N[stays],
            vectors_ND=self.vectors_ND[stays],
        )

    def vectors(self) -> tuple[Ints, Floats]:
        """Rows and vectors of all ads."""
        rows, vectors = self.main.vectors()
        if self.kept is not None:
            stays = self.kept.has(rows)
            rows, vectors = rows[stays], vectors[stays]
        if len(self.rows_N):
            rows = np.concatenate([rows, self.rows_N])
            vectors = np.concatenate([vectors, self.vectors_ND])
        order = np.argsort(rows)  # rows that follow each other are filtered fastest
        return rows[order], vectors[order]


_Change = Callable[[Snapshot[AboutT]], Snapshot[AboutT]]


class LiveIndex(Generic[AboutT]):
    """An `AdIndex` that takes changes while others search it.

    Any number of threads may search and change it. A search takes `now` once; who needs more than
    one thing of the same instant takes `now` and reads all from it, `about` too.
    """

    def __init__(self, index: AdIndex, config: LiveConfig, *, about: AboutT) -> None:
        none = np.zeros((0, index.dim), np.float32)
        self.now = Snapshot(index, None, np.zeros(0, np.int64), none, about)
        self.live_config = config
        self._changing = threading.Lock()
        self._rebuilding = threading.Lock()
        self._meanwhile: list[_Change[AboutT]] | None = None  # changes during a rebuild
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self.now)

    @property
    def kind(self) -> Kind:
        """How the built index works."""
        return self.now.main.kind

    @property
    def config(self) -> IndexConfig:
        """How it is built."""
        return self.now.main.config

    @property
    def tower(self) -> str:
        """Fingerprint of the tower that made the vectors."""
        return self.now.main.tower

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.now.main.dim

    @property
    def memory_bytes(self) -> int:
        """Bytes of what searches read; a rebuild takes as much again, and the vectors."""
        now = self.now
        kept = 0 if now.kept is None else now.kept.bits.nbytes
        return now.main.memory_bytes + now.vectors_ND.nbytes + now.rows_N.nbytes + kept

    def search(
        self, queries: Floats, k: int, *, allowed: AdSet | None = None, exact: bool = False
    ) -> Found:
        """As `AdIndex.search`, in the index as it is when the search begins."""
        return self.now.search(queries, k, allowed=allowed, exact=exact)

    def put(self, rows_N: Ints, vectors_ND: Floats, *, about: AboutT) -> None:
        """Add ads, or change those that are there; the next search sees all of them.

        Args:
            rows_N: int64 [N], rows of the catalogue, each once.
            vectors_ND: float32 [N, D], finite.
            about: what goes with the index from now on.

        Raises:
            DataError: rows or vectors of a wrong type or shape; nothing is changed.
        """
        vectors_ND = check_vectors(vectors_ND).copy()
        if vectors_ND.shape[1] != self.dim:
            raise DataError(f"vectors are {vectors_ND.shape[1]} wide, the index {self.dim}")
        check_ads(rows_N, len(vectors_ND))
        rows_N = rows_N.copy()
        self._change(lambda now: now.put(rows_N, vectors_ND), about)

    def remove(self, rows_N: Ints, *, about: AboutT) -> None:
        """Remove ads; no search that begins afterwards returns one.

        Raises:
            DataError: one is not there; nothing is changed.
        """
        rows_N = np.unique(rows_N)

        def without(now: Snapshot[AboutT]) -> Snapshot[AboutT]:
            missing = rows_N[~now.has(rows_N)]
            if len(missing):
                raise DataError(f"ad row {missing[0]} is not in the index; nothing was removed")
            return now.without(rows_N)

        self._change(without, about)

    def tell(self, about: AboutT) -> None:
        """Change what goes with the index, and not the index."""
        self._change(lambda now: now, about)

    def rebuild(self) -> None:
        """Build the index of all ads anew and put it in place, while others search and change it.

        Nothing is done where no ads are left: an index needs at least one.
        """
        with self._rebuilding:
            with self._changing:
                start, self._meanwhile = self.now, []
            try:
                if len(start) == 0:
                    return
                rows, vectors = start.vectors()
                main = AdIndex.build(
                    vectors,
                    start.main.config,
                    tower=start.main.tower,
                    ads=rows,
                    threads=self.live_config.rebuild_threads,
                )
                none = np.zeros((0, main.dim), np.float32)
                with self._changing:
                    fresh = Snapshot(main, None, np.zeros(0, np.int64), none, self.now.about)
                    for change in self._meanwhile:
                        fresh = change(fresh)
                    self.now = fresh
                    self._meanwhile = None
            finally:
                self._meanwhile = None

    def settle(self, timeout_s: float | None = None) -> None:
        """Wait for a rebuild that is on its way.

        Raises:
            ConfigError: it took longer than the time given.
        """
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
            if thread.is_alive():
                raise ConfigError(f"the index is still being rebuilt after {timeout_s} s")

    def _change(self, change: _Change[AboutT], about: AboutT) -> None:
        with self._changing:
            changed = replace(change(self.now), about=about)
            self.now = changed
            if self._meanwhile is not None:
                self._meanwhile.append(change)
            elif self._outgrown(changed):
                self._meanwhile = []  # until the thread has begun, lest another is started
                self._thread = threading.Thread(target=self._rebuild_quietly, daemon=True)
                self._thread.start()

    def _outgrown(self, now: Snapshot[AboutT]) -> bool:
        config, built = self.live_config, len(now.main)
        gone = 0 if now.kept is None else built - len(now.kept)
        return (
            len(now.rows_N) >= max(config.rebuild_least, config.rebuild_new_share * built)
            or gone >= max(config.rebuild_least, config.rebuild_gone_share * built)
        ) and len(now) > 0

    def _rebuild_quietly(self) -> None:
        try:
            self.rebuild()
        except Exception:  # the index in place still answers; the next change tries again
            _log.exception("the ad index could not be rebuilt")
