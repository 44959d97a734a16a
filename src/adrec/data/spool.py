"""Spool: a log that has been read once: checked, in time order, its impressions numbers on disk.

Reading text is most of the work that a log makes, and fitting features passes over a log several
times. So the first pass checks all there is to check, turns texts into numbers, keeps each ad's
first impression where there is no table of ads, and leaves pieces behind, which are read in a
fraction of the time. Memory grows with distinct ids and categories, not with rows.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adrec.data.checks import ColumnChecks, check_keyed, check_requests
from adrec.data.files import check_lines, count_lines, reading
from adrec.data.parsing import parse_text
from adrec.data.tables import Table, Tables, uncut
from adrec.data.texts import Texts
from adrec.errors import DataError
from adrec.progress import Progress
from adrec.schema import AD_ID, REQUEST_ID, TIMESTAMP_MS, USER_ID

_ASKED = "adrec:asked"
_HASH = np.dtype(np.uint64)
_BLOCK = 1 << 22  # numbers
_SHARES = 16  # in which many requests are looked through, one after the other


@dataclass(frozen=True)
class Spool(Tables):
    """Tables whose impressions lie in pieces on disk, in time order.

    Ids and categories of the impressions are polars Categoricals.
    """

    pieces: tuple[Path, ...]
    texts: dict[str, Texts]
    """The columns of texts."""
    times: Path
    """When the impressions were, int64, ascending."""
    first_seen: pl.DataFrame | None
    """Without a table of ads: each ad as in its first impression, and when its request came."""

    def ad_frame(self, *, before_ms: int | None = None) -> pl.DataFrame:
        """The catalogue; see `Tables.ad_frame`."""
        if self.first_seen is None:
            return super().ad_frame()
        ads = self.first_seen
        if before_ms is not None:
            ads = ads.filter(pl.col(_ASKED) < before_ms)
        return ads.drop(_ASKED)

    def rows(self) -> int:
        """Number of impressions."""
        return self.times.stat().st_size // np.dtype(np.int64).itemsize

    def times_ms(self) -> NDArray[np.int64]:
        """When the impressions were, ascending, mapped from disk."""
        return np.memmap(self.times, np.int64, mode="r")

    def frames(self) -> Iterator[pl.DataFrame]:
        """The impressions piece by piece, in time order; a request is never cut in two."""
        restored = [texts.restored(name) for name, texts in self.texts.items()]
        for piece in self.pieces:
            yield pl.read_ipc(piece).with_columns(restored)


def spool(tables: Tables, directory: Path, *, piece_rows: int, progress: Progress) -> Spool:
    """Read a log.

    A log that is out of order is read twice, and sorted in memory.

    Args:
        tables: the log.
        directory: where the pieces go, made here.
        piece_rows: about how many impressions a piece has.
        progress: where to show how far it is.

    Raises:
        DataError: with everything that is wrong with the log.
    """
    table = tables.impressions
    checks = ColumnChecks(table)
    log = _Pieces(tables, directory)
    in_order = True
    total = count_lines(table.file)
    total = tables.rows() if total is None else total
    with (
        ThreadPoolExecutor(1) as thread,
        reading(table.file),
        progress.track("read", total) as advance,
    ):
        lines = thread.submit(check_lines, table.file)
        for batch in uncut(_batches(table, checks, piece_rows), tables.schema):
            checks.take(batch)
            in_order = in_order and not checks.found and log.add(batch)
            advance(batch.height, "")
    problems = lines.result() + checks.problems() + check_keyed(tables)
    in_order = in_order and not log.repeats_requests()
    problems += check_requests(tables)
    if problems:
        raise DataError("The log does not match its schema:", problems)
    if not in_order:
        progress.say(f"{table.file} is not in time order: sorting it in memory")
        log = _Pieces(tables, directory)
        with reading(table.file):
            batches = tables.sorted().collect_batches(chunk_size=piece_rows, maintain_order=True)
            for batch in uncut(batches, tables.schema):
                log.add(batch)
    return log.done()


def _batches(table: Table, checks: ColumnChecks, rows: int) -> Iterator[pl.DataFrame]:
    """Impressions in file order, with the raw columns that checks need. Texts are not parsed yet:
    `Texts` does it for each distinct one."""
    there = table.raw.collect_schema()
    columns = list(checks.beside)
    for column in table.columns:
        late = column.dtype == pl.String() == there[column.source] and column.name != REQUEST_ID
        parsed = pl.col(column.source) if late else table.parsed()[column.name]
        columns.append(parsed.alias(column.name))
    return table.raw.select(columns).collect_batches(chunk_size=rows, maintain_order=True)


class _Pieces:
    """Writes a log to disk piece by piece, and notes on the way what a whole log must be."""

    def __init__(self, tables: Tables, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        schema = tables.schema
        self._tables, self._directory = tables, directory
        self._kept = _kept(tables)
        names = [AD_ID, *([USER_ID] if schema.user_id is not None else [])]
        names += [f.name for f in schema.request_fields if f.kind == "categorical"]
        self._texts = {name: Texts() for name in names}
        self._pieces: list[Path] = []
        self._times = directory / "times.bin"
        self._requests = directory / "requests.bin"
        for file in (self._times, self._requests):
            file.write_bytes(b"")
        self._last_ms = np.iinfo(np.int64).min
        self._seen: NDArray[np.bool_] = np.zeros(0, bool)
        self._ads: list[pl.DataFrame] = []
        self._in_order = True

    def add(self, piece: pl.DataFrame) -> bool:
        """Append rows, requests uncut; False if not all rows so far are in time order."""
        if not piece.height:
            return self._in_order
        times_ms = piece[TIMESTAMP_MS].to_numpy()
        falls = times_ms[0] < self._last_ms or (times_ms[1:] < times_ms[:-1]).any()
        self._in_order = self._in_order and not falls
        self._last_ms = int(times_ms[-1])
        piece = piece.with_columns(
            pl.col(name).cast(texts.dtype) for name, texts in self._texts.items()
        )
        piece = piece.with_columns(
            pl.Series(name, texts.codes(piece[name])) for name, texts in self._texts.items()
        )
        asked_ms = times_ms
        if self._tables.schema.request_id is not None:
            asked_ms = self._note_requests(piece)
        if self._tables.ads is None:
            self._note_ads(piece, asked_ms)
        path = self._directory / f"{len(self._pieces):06}.arrow"
        piece.select(self._kept).write_ipc(path, compression="uncompressed")
        self._pieces.append(path)
        with self._times.open("ab") as file:
            file.write(np.ascontiguousarray(times_ms).data)
        return self._in_order

    def _note_requests(self, piece: pl.DataFrame) -> NDArray[np.int64]:
        """Remember which requests there were; when each row's request came, [N]."""
        request = piece[REQUEST_ID]
        first = np.flatnonzero((request != request.shift()).fill_null(True).to_numpy())
        with self._requests.open("ab") as file:
            file.write(request.gather(first).hash().to_numpy().data)
        slates = np.diff(np.append(first, piece.height))
        asked_ms: NDArray[np.int64] = np.repeat(piece[TIMESTAMP_MS].to_numpy()[first], slates)
        return asked_ms

    def _note_ads(self, piece: pl.DataFrame, asked_ms: NDArray[np.int64]) -> None:
        """Keep the first impression of each ad that is new."""
        codes = piece[AD_ID].to_numpy()
        room = int(codes.max()) + 1 - len(self._seen)
        if room > 0:
            self._seen = np.append(self._seen, np.zeros(max(room, len(self._seen)), bool))
        new = np.flatnonzero(~self._seen[codes])
        if not len(new):
            return
        first = np.sort(new[np.unique(codes[new], return_index=True)[1]])
        self._seen[codes[first]] = True
        fields = self._tables.schema.ad_fields
        rows = piece[first].select(
            self._texts[AD_ID].restored(AD_ID).cast(pl.String),
            *(
                parse_text(pl.col(f.name), pl.String()) if f.kind == "categorical" else f.name
                for f in fields
            ),
            pl.Series(_ASKED, asked_ms[first]),
        )
        self._ads.append(rows)

    def repeats_requests(self) -> bool:
        """Whether a request comes back after others: of 64 bits, two are hardly ever alike."""
        size = self._requests.stat().st_size // _HASH.itemsize
        for share in range(_SHARES if size > _BLOCK else 1):
            mine = [
                block if size <= _BLOCK else block[block % _SHARES == share]
                for block in _blocks(self._requests, _HASH, size)
            ]
            hashes = np.concatenate([np.zeros(0, _HASH), *mine])
            if len(np.unique(hashes)) < len(hashes):
                return True
        return False

    def done(self) -> Spool:
        """The log, once all of it was added."""
        self._requests.unlink()
        if not self._in_order:  # by request, but not by impression
            np.sort(np.fromfile(self._times, np.int64)).tofile(self._times)
        pieces = pl.scan_ipc(self._pieces).with_columns(
            texts.restored(name) for name, texts in self._texts.items()
        )
        tables = self._tables
        return Spool(
            schema=tables.schema,
            impressions=replace(tables.impressions, raw=pieces, is_parsed=True),
            users=tables.users,
            ads=tables.ads,
            pieces=tuple(self._pieces),
            texts=self._texts,
            times=self._times,
            first_seen=pl.concat(self._ads) if tables.ads is None else None,
        )


def _blocks(file: Path, dtype: np.dtype[Any], size: int) -> Iterator[NDArray[Any]]:
    """A file of numbers, some at a time."""
    for start in range(0, size, _BLOCK):
        yield np.fromfile(file, dtype, _BLOCK, offset=start * dtype.itemsize)


def _kept(tables: Tables) -> list[str]:
    """Columns that are of the impressions, not of the ads."""
    of_ads = {field.name for field in tables.schema.ad_fields}
    return [c.name for c in tables.impressions.columns if c.name not in of_ads]
