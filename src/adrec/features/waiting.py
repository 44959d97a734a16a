"""Waiting: what happened and is not known yet, until it is.

What comes of one request stands in a heap. Beyond a few thousand rows they are laid by as arrays,
which take a fraction of the memory: with long delays, millions wait.
"""

import heapq
from collections.abc import Sequence
from itertools import chain
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
_MOST_FEW = 4_000

Columns = list[NDArray[Any]]
"""Those of `WAITING`."""


class _Few(NamedTuple):
    """Rows that differ in key and outcome alone."""

    known_at_ms: int
    number: int
    """Tells those apart that will be known at once."""
    keys: Sequence[int]
    time_ms: int
    task: int
    outcomes: Sequence[float]
    shown: int


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
        self._few: list[_Few] = []
        """Heap, those that are known first in front."""
        self._rows = 0
        """In the heap."""
        self._stores: list[_Store] = []
        """Heap, the one that is known first in front."""
        self._number = 0

    def add(
        self,
        known_at_ms: int,
        keys: Sequence[int],
        time_ms: int,
        task: int,
        outcomes: Sequence[float],
        shown: int,
    ) -> None:
        """Let rows of `WAITING` wait, too, that differ in key and outcome alone."""
        self._number += 1
        few = _Few(known_at_ms, self._number, keys, time_ms, task, outcomes, shown)
        heapq.heappush(self._few, few)
        self._rows += len(keys)
        if self._rows > _MOST_FEW:
            self._store_few()

    def add_columns(self, columns: Columns) -> None:
        """Let many rows wait, too."""
        order = np.argsort(columns[0], kind="stable")
        self._push([column[order] for column in columns], 0)

    def take_known(self, at_ms: int) -> Columns | None:
        """Take out what is known strictly before an instant: the columns from `key` on; None if
        nothing is."""
        few, parts = [], []
        while self._few and self._few[0].known_at_ms < at_ms:
            few.append(heapq.heappop(self._few))
            self._rows -= len(few[-1].keys)
        if few:
            parts.append(_columns(few)[1:])
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
        parts.append(_columns(self._few))
        names = zip(WAITING.items(), zip(*parts, strict=True), strict=True)
        return pl.DataFrame(
            [pl.Series(name, np.concatenate(several), kind) for (name, kind), several in names]
        )

    def replace(self, table: pl.DataFrame) -> None:
        """Let the rows of a table wait and nothing else."""
        self._few, self._rows, self._stores = [], 0, []
        self.add_columns([table[name].to_numpy() for name in WAITING])

    def _store_few(self) -> None:
        """Each task by itself: its rows are known at about one time, and the store is gone soon."""
        columns = _columns(self._few)
        self._few, self._rows = [], 0
        for task in np.unique(columns[_TASK]):
            mine = columns[_TASK] == task
            self.add_columns([column[mine] for column in columns])

    def _push(self, columns: Columns, start: int) -> None:
        if start < len(columns[0]):
            self._number += 1
            first = int(columns[0][start])
            heapq.heappush(self._stores, _Store(first, self._number, start, columns))


def _columns(few: Sequence[_Few]) -> Columns:
    rows = [len(one.keys) for one in few]

    def alike(column: Sequence[int]) -> NDArray[np.int64]:
        return np.repeat(np.array(column, np.int64), rows)

    return [
        alike([one.known_at_ms for one in few]),
        np.array([*chain.from_iterable(one.keys for one in few)], np.int64),
        alike([one.time_ms for one in few]),
        alike([one.task for one in few]),
        np.array([*chain.from_iterable(one.outcomes for one in few)], np.float64),
        alike([one.shown for one in few]),
    ]
