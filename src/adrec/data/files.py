"""Files: found by name, opened lazily, and read with errors that name the file and the line."""

import csv
import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adrec.errors import DataError, Problem

SUFFIXES = (".parquet", ".csv", ".tsv", ".csv.gz", ".tsv.gz")

_BLOCK_BYTES = 1 << 19  # of a file at a time: it stays in the processor's cache
_NEWLINE, _QUOTE, _ASCII = ord("\n"), ord('"'), 127


_TYPES = {"I8": "<i1", "I32": "<i4", "I64": "<i8", "F32": "<f4", "F64": "<f8"}
"""Of safetensors, as numpy calls them."""


def map_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of a safetensors file, left on disk: pages are read when they are touched, and are in
    memory once for all processes. What is written into them stays with this process.

    The format: the length of a JSON header in 8 bytes, the header, then the arrays' bytes
    (https://huggingface.co/docs/safetensors).
    """
    whole = np.memmap(path, np.uint8, mode="c")
    begin = 8 + int(whole[:8].view("<u8")[0])
    header = json.loads(whole[8:begin].tobytes())
    header.pop("__metadata__", None)
    found = {}
    for name, about in header.items():
        start, end = about["data_offsets"]
        flat = whole[begin + start : begin + end]
        found[name] = np.asarray(flat.view(_TYPES[about["dtype"]]).reshape(about["shape"]))
    return found


@contextmanager
def reading(file: str) -> Iterator[None]:
    """Turn polars' and the system's read errors into a DataError that names the file."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        problem = Problem(
            file=file,
            problem=f"cannot be read ({(str(error) or type(error).__name__).splitlines()[0]})",
            remedy="Check that it is complete, readable and of the type its name says",
        )
        raise DataError("A table cannot be read:", check_lines(file) or [problem]) from error


def find_table(directory: Path, name: str) -> Path:
    """The file of a table: `impressions.parquet`, `.csv`, `.tsv`, or the last two with `.gz`; or
    the folder `impressions` with Parquet files, which are read in the order of their names.

    Raises:
        DataError: the folder has none, or more than one.
    """
    found = [p for suffix in ("", *SUFFIXES) if (p := directory / f"{name}{suffix}").exists()]
    if len(found) == 1:
        return found[0]
    what = "is missing" if not found else f"is there as {', '.join(p.name for p in found)}"
    endings = ", ".join(SUFFIXES)
    raise DataError(
        "A log needs one file for each of its tables:",
        [
            Problem(
                file=str(directory / name),
                problem=f"table '{name}' {what}",
                remedy=f"Give it exactly one file with one of the endings {endings}",
            )
        ],
    )


def scan(path: Path) -> pl.LazyFrame:
    """Open a file lazily by its ending. CSV and TSV columns come as strings, to be parsed later."""
    with reading(str(path)):
        if path.is_dir():
            return _scan_parts(path)
        if path.stat().st_size == 0:
            problem = Problem(file=str(path), problem="is empty", remedy="Export it again")
            raise DataError("A table has no content:", [problem])
        if path.suffix == ".parquet":
            return pl.scan_parquet(path)
        separator = "\t" if ".tsv" in path.suffixes else ","
        return pl.scan_csv(path, separator=separator, infer_schema=False)


def _scan_parts(folder: Path) -> pl.LazyFrame:
    parts = sorted(folder.glob("*.parquet"))
    if not parts:
        problem = Problem(
            file=str(folder), problem="has no Parquet file", remedy="Export the table again"
        )
        raise DataError("A table has no content:", [problem])
    return pl.scan_parquet(parts)


def scan_table(directory: Path, name: str) -> tuple[str, pl.LazyFrame]:
    """The file's name and its lazy content."""
    path = find_table(directory, name)
    return str(path), scan(path)


def check_lines(file: str) -> list[Problem]:
    """Lines of a CSV or TSV file that have too many cells, too few, or are not UTF-8.

    Polars refuses the first without saying where, and fills up the second in silence.
    """
    path = Path(file)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    separator = {"csv": ",", "tsv": "\t", "txt": "\t"}.get(kind)
    if separator is None or not path.is_file():
        return []
    header_rows = 0 if kind == "txt" else 1
    try:
        if path.suffix != ".gz" and _is_plain(path, separator):
            return []
        seen = _count_cells(path, separator)
        if seen["row"] is not None and seen["quotes"]:
            seen |= _count_quoted(path, separator)
    except (pl.exceptions.PolarsError, OSError, csv.Error):
        return []  # whoever reads the table will say that it cannot be read
    if seen["garbled"] is not None and _is_utf8(path):  # it is what stands there
        seen["garbled"] = None
    problems = []
    if seen["row"] is not None:
        problems.append(
            Problem(
                file=file,
                row=seen["row"] + 1 - header_rows,
                rows=seen["rows"],
                problem=f"has {seen['cells']} cells where the first line has {seen['width']}",
                remedy="Quote cells that hold the separator, and give each line every cell",
            )
        )
    if seen["garbled"] is not None:
        problems.append(
            Problem(
                file=file,
                row=seen["garbled"] + 1 - header_rows,
                rows=seen["garbled_rows"],
                problem="is not UTF-8",
                remedy="Export the file again as UTF-8",
            )
        )
    return problems


def count_lines(file: str) -> int | None:
    """How many rows a text file has if none goes over several lines; None of other files.

    Polars counts exactly, but holds the whole file in memory meanwhile.
    """
    path = Path(file)
    header = {".csv": 1, ".tsv": 1, ".txt": 0}.get(path.suffix)
    if header is None or not path.is_file():
        return None
    block, lines, last = np.empty(_BLOCK_BYTES, np.uint8), -header, _NEWLINE
    with reading(file), path.open("rb") as content:
        while read := content.readinto(block):  # type: ignore[arg-type]  # a NumPy array is a buffer
            lines += int(np.count_nonzero(block[:read] == _NEWLINE))
            last = int(block[read - 1])
    return lines + (last != _NEWLINE)


def _is_plain(path: Path, separator: str) -> bool:
    """Whether a file is ASCII without quotes and each of its lines has as many cells as the first:
    what most files are, told in a tenth of the time that finding the first bad line takes."""
    block = np.empty(_BLOCK_BYTES, np.uint8)
    width, open_cells, ends = -1, 0, True
    with path.open("rb") as file:
        while read := file.readinto(block):  # type: ignore[arg-type]  # a NumPy array is a buffer
            part = block[:read]
            if (part > _ASCII).any() or (separator != "\t" and (part == _QUOTE).any()):
                return False
            cuts = (part == ord(separator)).view(np.int8)
            newlines = np.flatnonzero(part == _NEWLINE)
            starts = np.append(0, newlines + 1)
            ends = bool(starts[-1] == read)
            starts = starts[: len(starts) - ends]
            cells = np.add.reduceat(cuts, starts, dtype=np.int64)
            cells[0] += open_cells
            open_cells = 0 if ends else int(cells[-1])
            whole = cells if ends else cells[:-1]
            if width < 0 and len(whole):
                width = int(whole[0])
            if (whole != width).any():
                return False
    return ends or open_cells == width or width < 0


def _count_cells(path: Path, separator: str) -> dict[str, Any]:
    """Cells of the first line, and which and how many lines have others or are not UTF-8.

    A separator inside quotes counts as one here; `quotes` says whether there may be such.
    """
    lines = pl.scan_csv(
        path,
        separator="\0",  # in no text, so that a line stays whole
        has_header=False,
        quote_char=None,
        schema={"line": pl.String},
        encoding="utf8-lossy",
        truncate_ragged_lines=True,
    ).with_row_index("row")
    line = pl.col("line").fill_null("")
    cells = pl.when(line.str.strip_chars("\r") != "").then(
        line.str.count_matches(separator, literal=True) + 1
    )
    uneven = cells != cells.first()
    garbled = line.str.contains("\ufffd", literal=True)
    seen = lines.select(
        width=cells.first(),
        row=pl.col("row").filter(uneven).min(),
        rows=uneven.sum(),
        cells=cells.filter(uneven).first(),
        quotes=(line.str.contains('"', literal=True) & (separator != "\t")).any(),
        garbled=pl.col("row").filter(garbled).min(),
        garbled_rows=garbled.sum(),
    )
    return seen.collect().row(0, named=True)


def _is_utf8(path: Path) -> bool:
    """Whether a text file is UTF-8 throughout."""
    unpack = gzip.open if path.suffix == ".gz" else open
    try:
        with unpack(path, "rt", encoding="utf-8", newline="") as text:
            while text.read(_BLOCK_BYTES):
                pass
    except UnicodeDecodeError:
        return False
    return True


def _count_quoted(path: Path, separator: str) -> dict[str, int | None]:
    """The same count where cells are quoted: slower, and right about separators inside a cell."""
    first = cells = None
    width = rows = 0
    unpack = gzip.open if path.suffix == ".gz" else open
    with unpack(path, "rt", encoding="utf-8", errors="replace", newline="") as lines:
        for i, row in enumerate(csv.reader(lines, delimiter=separator)):
            if i == 0:
                width = len(row)
            elif row and len(row) != width:
                rows += 1
                if first is None:
                    first, cells = i, len(row)
    return {"width": width, "row": first, "rows": rows, "cells": cells}
