"""Directory: ids of users or ads and the rows that stand for them; row 0 is whoever is unknown."""

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adrec.data.texts import Lookup
from adrec.errors import DataError

_PART = 20_000  # ids taken in at a time


class Directory:
    """Ids and their rows, from 1 in the order they were added.

    Raises:
        DataError: an id is given twice.
    """

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._ids: list[str] = ["", *ids]
        self._rows: dict[str, int] = {}
        self._size = len(self._ids)
        self._lookup, self._looked_up = Lookup(self._find), 1
        for start in range(1, self._size, _PART):  # other threads go on in between
            part = self._ids[start : start + _PART]
            self._rows.update(zip(part, range(start, start + len(part)), strict=True))
        if len(self._rows) != self._size - 1:
            twice = next(key for row, key in enumerate(self._ids) if row and self._rows[key] != row)
            raise DataError(f"id '{twice}' stands in its table twice; keep one row an id")

    def __len__(self) -> int:
        """Number of rows, row 0 included."""
        return self._size

    def add(self, key: str) -> int:
        """The row of an id, a new one if it has none."""
        if len(self._ids) != self._size:  # a longer one shares the lists
            self._ids = self._ids[: self._size]
            self._rows = {key: row for row, key in enumerate(self._ids) if row}
        row = self._rows.setdefault(key, self._size)
        if row == self._size:
            self._ids.append(key)
            self._size += 1
        return row

    def extended(self, ids: Sequence[str]) -> "Directory":
        """A directory with some ids more; this one stays as it is, and both share memory."""
        longer = Directory.__new__(Directory)
        longer._ids, longer._rows, longer._size = self._ids, self._rows, self._size
        longer._lookup, longer._looked_up = Lookup(longer._find), len(longer)
        for key in ids:
            longer.add(key)
        return longer

    def row(self, key: str) -> int:
        """The row of an id; 0 if it is unknown."""
        row = self._rows.get(key, 0)
        return row if row < self._size else 0  # of a longer one that shares the lists

    def id(self, row: int) -> str:
        """The id of a row; '' for row 0."""
        return self._ids[row]

    @property
    def ids(self) -> list[str]:
        """All ids in row order, without row 0."""
        return self._ids[1 : self._size]

    def rows(self, column_N: pl.Series, *, grow: bool = False) -> NDArray[np.int64]:
        """Rows of a column of ids, text or categories, [N]; with `grow`, unknown ids are added in
        order."""
        if isinstance(column_N.dtype, pl.Categorical):
            return self._rows_of_categories(column_N, grow)
        distinct = column_N.unique(maintain_order=True)
        of = self.add if grow else self.row
        rows = pl.Series([of(key) for key in distinct.to_list()], dtype=pl.Int64)
        return column_N.replace_strict(distinct, rows, return_dtype=pl.Int64).to_numpy()

    def _rows_of_categories(self, column_N: pl.Series, grow: bool) -> NDArray[np.int64]:
        if self._looked_up != len(self):
            self._lookup, self._looked_up = Lookup(self._find), len(self)
        rows_N = self._lookup.read(column_N)
        unknown = np.flatnonzero(rows_N == 0)
        if grow and len(unknown):
            new = column_N.gather(unknown).unique(maintain_order=True)
            rows = [self.add(key) for key in new.cast(pl.String).to_list()]
            self._lookup.note(new, np.array(rows, np.int32))
            self._looked_up = len(self)
            rows_N = self._lookup.read(column_N)
        return rows_N.astype(np.int64)

    def _find(self, ids: pl.Series) -> NDArray[np.int32]:
        return np.array([self.row(key) for key in ids.to_list()], np.int32)
