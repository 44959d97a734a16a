"""Files: every type reads alike; a file that cannot be read is named, and so is its line."""

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from safetensors.numpy import load_file, save_file

from adrec.data.checks import check_tables, require_valid
from adrec.data.files import find_table, map_arrays
from adrec.data.spool import spool
from adrec.data.tables import open_tables
from adrec.errors import DataError
from adrec.progress import Progress
from adrec.schema import parse_schema
from data.logs import PLAIN, plain_csv


@pytest.mark.parametrize("name", ["impressions.csv", "impressions.csv.gz"])
def test_csv_and_gz_read_alike(tmp_path: Path, name: str) -> None:
    tables = plain_csv(
        tmp_path, 'ad_id,timestamp_ms,click,brand,price\na,5,1,"x, y",2.5\nb,6,0,,\n', name
    )
    assert check_tables(tables) == []
    assert tables.impressions.frame().collect().rows() == [
        (5, "a", 1.0, "x, y", 2.5),
        (6, "b", 0.0, None, None),
    ]


def test_tsv_crlf_and_a_byte_order_mark_are_no_problem(tmp_path: Path) -> None:
    text = "\ufeffad_id\ttimestamp_ms\tclick\tbrand\tprice\r\na\t5\t1\tx\t2\r\nb\t6\t0\tx,y\t3\r\n"
    tables = plain_csv(tmp_path, text, "impressions.tsv")
    assert check_tables(tables) == []
    assert tables.impressions.frame().collect()["brand"].to_list() == ["x", "x,y"]


def test_files_are_found_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"table 'ads' is missing.*\.parquet, \.csv"):
        find_table(tmp_path, "ads")
    (tmp_path / "ads.csv").write_text("ad_id\n1\n")
    assert find_table(tmp_path, "ads") == tmp_path / "ads.csv"
    (tmp_path / "ads.tsv").write_text("ad_id\n1\n")
    with pytest.raises(DataError, match=r"is there as ads\.csv, ads\.tsv"):
        find_table(tmp_path, "ads")


@pytest.mark.parametrize("name", ["impressions.csv", "impressions.parquet"])
def test_an_empty_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=rf"{re.escape(name)}: is empty"):
        open_tables(PLAIN, tmp_path)


def test_an_empty_gz_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"impressions\.csv\.gz: cannot be read"):
        plain_csv(tmp_path, "", "impressions.csv.gz")


def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path: Path) -> None:
    (tmp_path / "impressions.parquet").write_text("ad_id,click\n1,0\n")
    with pytest.raises(DataError, match=r"impressions\.parquet: cannot be read"):
        open_tables(PLAIN, tmp_path)


def test_a_truncated_gz_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(b"ad_id,timestamp_ms,click,brand,price\n" + b"a,5,1,x,2\n" * 5000)
    (tmp_path / "impressions.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"impressions\.csv\.gz"):
        require_valid(open_tables(PLAIN, tmp_path))


@pytest.mark.parametrize("name", ["impressions.csv", "impressions.csv.gz"])
@pytest.mark.parametrize(
    ("line", "cells"), [("b,6,0,x,1,extra", 6), ("b,6,0", 3), ('"b,c",6,0,x', 4)]
)
def test_ragged_lines_are_named(tmp_path: Path, name: str, line: str, cells: int) -> None:
    text = f'ad_id,timestamp_ms,click,brand,price\n"a,a",5,1,x,2\n{line}\nc,7,0,x,1\n{line}\n'
    with pytest.raises(DataError) as caught:
        require_valid(plain_csv(tmp_path, text, name))
    found = caught.value.problems[0]
    assert (found.file, found.row, found.rows) == (str(tmp_path / name), 2, 2)
    assert found.problem == f"has {cells} cells where the first line has 5"
    assert "Quote cells" in found.remedy


def test_line_breaks_and_separators_in_quotes_are_not_ragged(tmp_path: Path) -> None:
    text = 'ad_id,timestamp_ms,click,brand,price\na,5,1,"x, ""y""\nz",2\nb,6,0,x,1\n'
    assert check_tables(plain_csv(tmp_path, text)) == []


def test_a_control_character_does_not_cut_a_line(tmp_path: Path) -> None:
    text = "ad_id,timestamp_ms,click,brand,price\na\x1f,5,1,x,2\nb,6,0,x\x01y,1\n"
    assert check_tables(plain_csv(tmp_path, text)) == []


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    text = "ad_id,timestamp_ms,click,brand,price\na,5,1,x,2\nb,6,0,caf\xe9,1\n".encode("latin-1")
    with pytest.raises(DataError, match=r"impressions\.csv, row 2: is not UTF-8"):
        require_valid(plain_csv(tmp_path, text))


def test_the_sign_for_what_cannot_be_read_may_stand_in_a_text(tmp_path: Path) -> None:
    text = "ad_id,timestamp_ms,click,brand,price\na,5,1,caf\ufffd,2\n"
    assert check_tables(plain_csv(tmp_path, text)) == []


def test_reading_on_meets_the_broken_line_and_names_it(tmp_path: Path) -> None:
    text = "ad_id,timestamp_ms,click,brand,price\n" + "a,5,1,x,2\n" * 3 + "a,6,1,x,2,3\n"
    with pytest.raises(DataError, match=r"impressions\.csv, row 4: has 6 cells"):
        spool(plain_csv(tmp_path, text), tmp_path / "spool", piece_rows=2, progress=Progress())


IDS = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1, max_size=6),
)
ROWS = st.lists(
    st.tuples(
        IDS,
        st.integers(0, 4_000_000_000_000),
        st.integers(0, 1),
        st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=6),
        st.none() | st.floats(-(2.0**100), 2.0**100, width=32),
        st.none() | st.integers(-(10**6), 10**6).map(float),
    ),
    min_size=1,
    max_size=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(ROWS)
def test_csv_gz_and_parquet_give_the_same_tables(tmp_path: Path, rows: list[Any]) -> None:
    schema = parse_schema("""
name: trip
tasks: [{name: click}]
fields:
  - {name: brand, kind: categorical, role: context}
  - {name: price, kind: numeric, role: context}
  - {name: kind, kind: categorical, role: context}
""")
    frame = pl.DataFrame(
        rows,
        schema={"ad_id": pl.String, "timestamp_ms": pl.Int64, "click": pl.Int8, "brand": pl.String,
                "price": pl.Float32, "kind": pl.Float64},
        orient="row",
    )  # fmt: skip
    frame = frame.with_columns(pl.col("price", "kind") + 0.0)  # minus zero becomes zero
    read = []
    for ending in ("parquet", "csv", "csv.gz"):
        folder = tmp_path / ending
        folder.mkdir(exist_ok=True)
        file = folder / f"impressions.{ending}"
        if ending == "parquet":
            frame.write_parquet(file)
        else:
            text = frame.write_csv().encode()
            file.write_bytes(gzip.compress(text, 1) if ending == "csv.gz" else text)
        tables = open_tables(schema, folder)
        assert check_tables(tables) == []
        read.append(tables.impressions.frame().collect())
    assert_frame_equal(read[0], read[1], check_exact=True)
    assert_frame_equal(read[0], read[2], check_exact=True)


def test_mapped_arrays_are_those_of_the_file(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(5), tmp_path / "arrays.safetensors"
    arrays = {
        "codes": rng.integers(-127, 127, (7, 3)).astype(np.int8),
        "rows": rng.integers(0, 1 << 30, 5).astype(np.int32),
        "scales": rng.random((7, 2), np.float32),
        "times": np.array([1 << 60], np.int64),
        "none": np.zeros((0, 4), np.float32),
    }
    save_file(arrays, path, metadata={"made by": "a test"})
    found = map_arrays(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    found["codes"][:] = 0  # stays here
    np.testing.assert_array_equal(load_file(path)["codes"], arrays["codes"])
