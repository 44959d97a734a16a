"""Waiting: what happened and is not known yet, until it is.

Events that come one at a time stand in a heap. Beyond a few thousand they are laid by as arrays,
which take a fourth of the memory: with long delays, millions wait.
"""

import heapq
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

WAITING = {
    "known_at_ms": pl.Int64(),
    "key": pl.Int64(),
    "time_ms": pl.Int64(),
    "task": pl.Int64(),
    "outcome": pl.Float64(),
    "shown": pl.Int64(),
}
"""Columns of what waits; `shown` is 0 where only the outcome counts, else 1."""
_KNOWN = tuple(WAITING)[1:]
_MOST_SINGLE = 10_000


class Waiting:
    """Outcomes of a counter's keys, each to be known from an instant on."""

    def __init__(self) -> None:
        self._single: list[tuple[int, int, int, int, float, int]] = []
        """Heap of rows."""
        self._tables: list[tuple[int, int, pl.DataFrame]] = []
        """Heap of (first known at, number, rows in the order in which they will be known)."""
        self._number = 0

    def add(self, rows: Iterable[tuple[int, int, int, int, float, int]]) -> None:
        """Let some rows of `WAITING` wait, too."""
        single = self._single
        for row in rows:
            heapq.heappush(single, row)
        if len(single) > _MOST_SINGLE:
            self._lay_single_by()

    def known(self, at_ms: int) -> list[NDArray[Any]] | None:
        """Take out what is known strictly before an instant: the columns from `key` on; None if
        nothing is."""
        single, parts = [], []
        while self._single and self._single[0][0] < at_ms:
            single.append(heapq.heappop(self._single))
        if single:
            _, *columns = map(np.array, zip(*single, strict=True))
            parts.append(columns)
        while self._tables and self._tables[0][0] < at_ms:
            _, _, table = heapq.heappop(self._tables)
            count = int(table["known_at_ms"].to_numpy().searchsorted(at_ms, side="left"))
            parts.append([table[name][:count].to_numpy() for name in _KNOWN])
            self._lay_by(table[count:])
        if len(parts) > 1:
            return [np.concatenate(columns) for columns in zip(*parts, strict=True)]
        return parts[0] if parts else None

    def table(self) -> pl.DataFrame:
        """All that waits."""
        single = pl.DataFrame(self._single, schema=WAITING, orient="row")
        return pl.concat([*(table for _, _, table in sorted(self._tables)), single])

    def replace(self, table: pl.DataFrame) -> None:
        """Let the rows of a table wait and nothing else."""
        self._single, self._tables = [], []
        self._lay_by(table.sort("known_at_ms", maintain_order=True))

    def _lay_single_by(self) -> None:
        """Each task's by itself: rows of a table are known at about one time, and it is gone."""
        single = pl.DataFrame(self._single, schema=WAITING, orient="row")
        self._single = []
        for table in single.sort("known_at_ms", maintain_order=True).partition_by("task"):
            self._lay_by(table)

    def _lay_by(self, table: pl.DataFrame) -> None:
        if table.height:
            self._number += 1
            heapq.heappush(self._tables, (int(table["known_at_ms"][0]), self._number, table))
