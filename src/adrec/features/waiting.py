"""Waiting: what happened and is not known yet, until it is.

Events that come one at a time stand in a heap. Beyond a few thousand they are laid by as arrays,
which take a fourth of the memory: with long delays, millions wait.
"""

import heapq
from collections.abc import Iterable
from typing import Any, NamedTuple

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
_TASK = list(WAITING).index("task")
_MOST_SINGLE = 4_000

Columns = list[NDArray[Any]]
"""Those of `WAITING`."""


class _Store(NamedTuple):
    """Rows in the order in which they will be known. The first few may be gone already."""

    first_known_at_ms: int
    number: int
    """Tells stores apart."""
    start: int
    """Of the rows that are left."""
    columns: Columns

    def __len__(self) -> int:
        return len(self.columns[0]) - self.start


class Waiting:
    """Outcomes of a counter's keys, each to be known from an instant on."""

    def __init__(self) -> None:
        self._single: list[tuple[int, int, int, int, float, int]] = []
        """Heap of rows."""
        self._stores: list[_Store] = []
        """Heap, the one that is known first in front."""
        self._number = 0

    def add(self, rows: Iterable[tuple[int, int, int, int, float, int]]) -> None:
        """Let some rows of `WAITING` wait, too."""
        single = self._single
        for row in rows:
            heapq.heappush(single, row)
        if len(single) > _MOST_SINGLE:
            self._store_single()

    def add_columns(self, columns: Columns) -> None:
        """Let many rows wait, too."""
        order = np.argsort(columns[0], kind="stable")
        self._push([column[order] for column in columns], 0)

    def take_known(self, at_ms: int) -> Columns | None:
        """Take out what is known strictly before an instant: the columns from `key` on; None if
        nothing is."""
        single, parts = [], []
        while self._single and self._single[0][0] < at_ms:
            single.append(heapq.heappop(self._single))
        if single:
            parts.append(_columns(single)[1:])
        while self._stores and self._stores[0].first_known_at_ms < at_ms:
            _, _, start, columns = heapq.heappop(self._stores)
            end = int(columns[0].searchsorted(at_ms, side="left"))
            parts.append([column[start:end] for column in columns[1:]])
            self._push(columns, end)
        if len(parts) > 1:
            return [np.concatenate(several) for several in zip(*parts, strict=True)]
        return parts[0] if parts else None

    def table(self) -> pl.DataFrame:
        """All that waits."""
        parts = [[column[s.start :] for column in s.columns] for s in sorted(self._stores)]
        parts.append(_columns(self._single))
        names = zip(WAITING.items(), zip(*parts, strict=True), strict=True)
        return pl.DataFrame(
            [pl.Series(name, np.concatenate(several), kind) for (name, kind), several in names]
        )

    def replace(self, table: pl.DataFrame) -> None:
        """Let the rows of a table wait and nothing else."""
        self._single, self._stores = [], []
        self.add_columns([table[name].to_numpy() for name in WAITING])

    def _store_single(self) -> None:
        """Each task by itself: its rows are known at about one time, and the store is gone soon."""
        columns = _columns(self._single)
        self._single = []
        for task in np.unique(columns[_TASK]):
            mine = columns[_TASK] == task
            self.add_columns([column[mine] for column in columns])

    def _push(self, columns: Columns, start: int) -> None:
        if start < len(columns[0]):
            self._number += 1
            first = int(columns[0][start])
            heapq.heappush(self._stores, _Store(first, self._number, start, columns))


def _columns(rows: list[tuple[int, int, int, int, float, int]]) -> Columns:
    several = zip(*rows, strict=True) if rows else ((),) * len(WAITING)
    return [
        np.array(column, np.float64 if kind == pl.Float64 else np.int64)
        for column, kind in zip(several, WAITING.values(), strict=True)
    ]
