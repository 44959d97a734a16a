"""Tables: read alike from every file type; whatever is wrong is named by file, column and row."""

import gzip
import itertools
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from adrec.data.tables import (
    Tables,
    as_text,
    check_tables,
    find_table,
    open_tables,
    require_valid,
    tables_from,
)
from adrec.errors import DataError, Problem
from adrec.schema import Schema, parse_schema

SCHEMA = parse_schema("""
name: shop
user_id: user_id
request_id: request
position: position
propensity: propensity
bid_micros: bid
users_table: true
ads_table: true
tasks:
  - {name: click}
  - {name: revenue, kind: value}
fields:
  - {name: age, kind: numeric, role: user}
  - {name: seen, kind: sequence, column: seen, times: seen_ms, grows_with: click}
  - {name: brand, kind: categorical, role: ad}
  - {name: image, kind: embedding, role: ad, dim: 2}
  - {name: device, kind: categorical, role: context}
""")

PLAIN = parse_schema("""
name: plain
tasks: [{name: click}]
fields:
  - {name: brand, kind: categorical, role: ad}
  - {name: price, kind: numeric, role: context}
""")


def impressions() -> dict[str, list[Any]]:
    return {
        "request": ["r1", "r1", "r2", "r3"],
        "user_id": [7, 7, 8, 7],
        "ad_id": [10, 11, 10, 12],
        "timestamp_ms": [1000, 1000, 2000, 3000],
        "position": [1, 2, 1, 1],
        "propensity": [0.5, 0.25, 1.0, 0.1],
        "click": [1, 0, 0, 1],
        "revenue": [2.5, 0.0, 0.0, 0.0],
        "device": ["phone", None, "tablet", "phone"],
    }


def users() -> dict[str, list[Any]]:
    return {"user_id": [7, 8], "age": [31.5, None], "seen": ["10 11", ""], "seen_ms": ["1 2", ""]}


def ads() -> dict[str, list[Any]]:
    return {
        "ad_id": [10, 11, 12],
        "bid": [500, 0, 900],
        "brand": ["acme", None, "zeta"],
        "image": ["0.5 1.5", "1 2", "3,4"],
    }


def write(directory: Path, **columns: Mapping[str, list[Any]]) -> Path:
    for name, content in columns.items():
        pl.DataFrame(dict(content), strict=False).write_csv(directory / f"{name}.csv")
    return directory


def write_log(directory: Path, **columns: Mapping[str, list[Any]]) -> Path:
    return write(
        directory, **({"impressions": impressions(), "users": users(), "ads": ads()} | columns)
    )


def plain(**columns: list[Any]) -> Tables:
    frame = pl.DataFrame(
        {"ad_id": ["a"], "timestamp_ms": [1], "click": [0], "brand": ["x"], "price": [1.0]}
    )
    frame = pl.DataFrame(frame.to_dict(as_series=False) | columns, strict=False)
    return tables_from(PLAIN, {"impressions": ("log.parquet", frame.lazy())})


def plain_csv(directory: Path, text: str | bytes, name: str = "impressions.csv") -> Tables:
    content = text.encode() if isinstance(text, str) else text
    (directory / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return open_tables(PLAIN, directory)


def only(problems: list[Problem]) -> Problem:
    assert len(problems) == 1, [str(p) for p in problems]
    return problems[0]


# --- what is read ---------------------------------------------------------------------------------


def test_a_good_log_has_no_problems_and_adrec_s_names_and_types(tmp_path: Path) -> None:
    tables = open_tables(SCHEMA, write_log(tmp_path))
    assert check_tables(tables) == []
    require_valid(tables)
    shown = tables.impressions.frame().collect()
    assert shown["user_id"].to_list() == ["7", "7", "8", "7"]
    assert shown["device"].to_list() == ["phone", None, "tablet", "phone"]
    assert shown.schema["click"] == pl.Float32
    users = tables.user_frame()
    assert users is not None
    assert users["seen"].to_list() == [["10", "11"], []] or users["seen"].to_list() == [
        ["10", "11"],
        None,
    ]
    assert users["seen:times_ms"].to_list()[0] == [1, 2]
    catalogue = tables.ad_frame()
    assert catalogue["image"].to_list() == [[0.5, 1.5], [1.0, 2.0], [3.0, 4.0]]
    assert catalogue["bid_micros"].to_list() == [500, 0, 900]
    assert tables.rows() == 4


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


def test_opening_reads_no_rows(tmp_path: Path) -> None:
    write_log(tmp_path)
    file = tmp_path / "impressions.csv"
    file.write_text(file.read_text() + "broken,line\n" * 3)
    open_tables(SCHEMA, tmp_path)  # the broken rows have not been met


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (pl.Series([9.0, None, 9.5, float("nan")]), ["9", None, "9.5", None]),
        (pl.Series([9, None], dtype=pl.Int32), ["9", None]),
        (pl.Series(["9.0", "9", "", "9.50"]), ["9", "9", None, "9.50"]),
        (pl.Series(["v9.0", "007.0", "-1.00", "1.0.0"]), ["v9.0", "007", "-1", "1.0.0"]),
        (pl.Series([2**63 - 1, -(2**63)]), ["9223372036854775807", "-9223372036854775808"]),
        (pl.Series([2.0**53 - 1, 2.0**60]), ["9007199254740991", "1152921504606846976"]),
        (pl.Series([True, False]), ["true", "false"]),
        (pl.Series(["1.00"]).cast(pl.Decimal(10, 2)), ["1"]),
        (pl.Series(["a", "b"], dtype=pl.Categorical), ["a", "b"]),
        (pl.Series([b"a"]), ["a"]),
    ],
)  # fmt: skip
def test_ids_and_categories_have_one_spelling(raw: pl.Series, text: list[str | None]) -> None:
    n = len(raw)
    frame = pl.DataFrame(
        {"ad_id": [f"a{i}" for i in range(n)], "timestamp_ms": [1] * n, "click": [0] * n}
    )
    frame = frame.with_columns(brand=raw, price=pl.lit(1))
    tables = tables_from(PLAIN, {"impressions": ("log.parquet", frame.lazy())})
    assert tables.impressions.frame().collect()["brand"].to_list() == text


@given(
    st.one_of(
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_infinity=False),
        st.booleans(),
        st.text(alphabet=st.characters(codec="utf-8"), max_size=8),
        st.from_regex(r"-?\d{1,4}\.0{1,3}", fullmatch=True),
    )
)
def test_a_request_s_value_is_spelt_as_in_a_table(value: str | float | bool) -> None:
    if value == 0 and str(value).startswith("-"):
        value = 0.0  # a float's minus zero is "0", text keeps its sign
    table = plain(brand=[value]).impressions.frame().collect()["brand"][0]
    if isinstance(value, float) and "e" in str(value):
        # The exponent has another look in polars; no id or category is that large or small.
        assert float(table) == float(as_text(value) or "nan")
    else:
        assert table == as_text(value)


@pytest.mark.parametrize(
    "raw",
    [
        ["3 5.0 8", "", None],
        ["[3, 5, 8]", "[]", None],
        ['["3", "5", "8"]', "[]", None],
        ["['3';'5';'8']", "[]", None],
        ["3|5|8", "[ ]", None],
        pl.Series([[3, 5, 8], [], None]),
        pl.Series([[3.0, 5.0, 8.0], [], None]),
        pl.Series([["3", "5.0", "8"], [], None]),
    ],
    ids=str,
)
def test_lists_come_as_text_or_as_lists(raw: Any) -> None:
    schema = parse_schema("""
name: lists
user_id: user_id
users_table: true
tasks: [{name: click}]
fields: [{name: seen, kind: sequence, column: seen}]
""")
    log = pl.LazyFrame({"ad_id": ["a"], "timestamp_ms": [1], "click": [0], "user_id": ["1"]})
    table = pl.LazyFrame({"user_id": ["1", "2", "3"], "seen": raw})
    tables = tables_from(schema, {"impressions": ("log", log), "users": ("users", table)})
    assert check_tables(tables) == []
    users = tables.user_frame()
    assert users is not None
    assert users["seen"].to_list() == [["3", "5", "8"], [], None]


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "raw", "ms"),
    [
        ("ms", [1650812741436, 1], [1650812741436, 1]),
        ("ms", ["1650812741436", "1.0"], [1650812741436, 1]),
        ("s", [1650812741, 0], [1650812741000, 0]),
        ("s", [1650812741.436, 1650812741.0019], [1650812741436, 1650812741001]),
        ("s", ["1650812741.436"], [1650812741436]),
        ("s", [1.001, 1.0019], [1001, 1001]),  # 1.001 * 1000 is 1000.9999999999999
        ("us", [1650812741436999], [1650812741436]),
        ("us", ["1650812741436000", "1650812741436999"], [1650812741436, 1650812741436]),
        (
            "iso8601",
            [
                "1970-01-01 00:00:17+00:00",
                "1970-01-01 00:00:17.004101+00:00",
                "1970-01-01T00:00:17Z",
                "1970-01-01T02:00:17.5+02:00",
                "1970-01-01T02:00:17+0200",
                "1970-01-01T00:00:17",
                "1970-01-02",
            ],
            [17000, 17004, 17000, 17500, 17000, 17000, 86400000],
        ),
        ("iso8601", [datetime(1970, 1, 1, 0, 0, 17, 4101)], [17004]),
        (
            "iso8601",
            [datetime(1970, 1, 1, 2, 0, 17, tzinfo=timezone(timedelta(hours=2)))],
            [17000],
        ),
    ],
)
def test_times_become_utc_milliseconds(unit: str, raw: list[Any], ms: list[int]) -> None:
    n = len(raw)
    schema = PLAIN.model_copy(update={"timestamp_unit": unit})
    frame = pl.DataFrame({"ad_id": ["a"] * n, "timestamp_ms": raw, "click": [0] * n})
    frame = frame.with_columns(brand=pl.lit("x"), price=pl.lit(1))
    tables = tables_from(schema, {"impressions": ("log", frame.lazy())})
    assert tables.impressions.frame().collect()["timestamp_ms"].to_list() == ms
    assert check_tables(tables) == []


@given(st.integers(0, 4_000_000_000_000), st.integers(-14 * 60, 14 * 60), st.booleans())
def test_an_iso_time_says_when_it_was(ms: int, offset_minutes: int, blank: bool) -> None:
    zone = timezone(timedelta(minutes=offset_minutes))
    when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    text = when.astimezone(zone).isoformat(" " if blank else "T")
    frame = pl.LazyFrame(
        {"ad_id": ["a"], "timestamp_ms": [text], "click": [0], "brand": ["x"], "price": [1]}
    )
    schema = PLAIN.model_copy(update={"timestamp_unit": "iso8601"})
    tables = tables_from(schema, {"impressions": ("log", frame)})
    assert tables.impressions.frame().collect()["timestamp_ms"].to_list() == [ms]


@pytest.mark.parametrize(
    ("unit", "bad"),
    [("ms", "yesterday"), ("s", "inf"), ("ms", "2024-01-01"), ("iso8601", "2024-13-01")],
)
def test_a_time_that_is_none_is_named(unit: str, bad: str) -> None:
    good = "2024-01-01" if unit == "iso8601" else "5"
    frame = pl.LazyFrame(
        {"ad_id": ["a"] * 3, "timestamp_ms": [good, bad, bad], "click": [0] * 3}
    ).with_columns(brand=pl.lit("x"), price=pl.lit(1))
    schema = PLAIN.model_copy(update={"timestamp_unit": unit})
    problem = only(check_tables(tables_from(schema, {"impressions": ("log", frame)})))
    assert (problem.file, problem.column, problem.row, problem.rows) == (
        "log",
        "timestamp_ms",
        2,
        2,
    )
    assert problem.problem == f"not a time in {unit}"
    assert "timestamp_unit" in problem.remedy


# --- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "column", "row", "bad", "problem"),
    [
        ("impressions", "click", 3, 2, "a label is neither 0 nor 1"),
        ("impressions", "click", 3, 0.5, "a label is neither 0 nor 1"),
        ("impressions", "click", 3, -1, "a label is neither 0 nor 1"),
        ("impressions", "click", 3, "yes", "not a finite number"),
        ("impressions", "click", 3, None, "a value is missing"),
        ("impressions", "click", 3, float("nan"), "a value is missing"),
        ("impressions", "revenue", 2, -0.5, "a value is below 0"),
        ("impressions", "revenue", 2, float("inf"), "not a finite number"),
        ("impressions", "propensity", 1, 0.0, "a value is outside [1e-12, 1]"),
        ("impressions", "propensity", 1, 1.5, "a value is outside [1e-12, 1]"),
        ("impressions", "position", 4, 0, "a value is below 1"),
        ("impressions", "position", 4, 1.5, "not a whole number"),
        ("impressions", "user_id", 2, None, "a value is missing"),
        ("impressions", "ad_id", 2, None, "a value is missing"),
        ("impressions", "request", 4, None, "a value is missing"),
        ("impressions", "timestamp_ms", 1, None, "a value is missing"),
        ("impressions", "timestamp_ms", 1, -5, "a value is below 0"),
        ("users", "age", 2, "old", "not a finite number"),
        ("users", "user_id", 2, 7, "id '7' stands there already"),
        ("users", "seen_ms", 1, "1 x", "not a list of times in whole milliseconds"),
        ("ads", "ad_id", 3, 10, "id '10' stands there already"),
        ("ads", "ad_id", 3, 10.0, "id '10' stands there already"),
        ("ads", "bid", 1, None, "a value is missing"),
        ("ads", "bid", 1, -1, "a value is below 0"),
        ("ads", "image", 2, "1 2 3", "not a vector of 2 numbers"),
        ("ads", "image", 2, "1", "not a vector of 2 numbers"),
        ("ads", "image", 2, "1 x", "not a vector of 2 numbers"),
        ("ads", "image", 2, "1 nan", "not a vector of 2 numbers"),
    ],
)
def test_a_bad_value_is_named(
    tmp_path: Path, table: str, column: str, row: int, bad: Any, problem: str
) -> None:
    content: dict[str, Callable[[], dict[str, list[Any]]]]
    content = {"impressions": impressions, "users": users, "ads": ads}
    changed = content[table]()
    changed[column] = [str(v) if v is not None else None for v in changed[column]]
    changed[column][row - 1] = None if bad is None else str(bad)
    tables = open_tables(SCHEMA, write_log(tmp_path, **{table: changed}))
    found = only(check_tables(tables))
    assert found.file == str(tmp_path / f"{table}.csv")
    assert (found.column, found.row, found.rows) == (column, row, 1)
    assert found.problem == problem
    assert found.remedy
    with pytest.raises(DataError, match=re.escape(problem)) as caught:
        require_valid(tables)
    assert caught.value.problems == (found,)
    assert f"{table}.csv, column '{column}', row {row}: " in str(caught.value)


def test_every_kind_of_mistake_is_listed_once_with_its_count() -> None:
    tables = plain(
        ad_id=["a"] * 5, timestamp_ms=[1] * 5, brand=["x"] * 5,
        click=["1", "7", "8", None, "maybe"], price=["1", "cheap", "nan", "", "dear"],
    )  # fmt: skip
    found = [(p.column, p.row, p.rows, p.problem) for p in check_tables(tables)]
    assert found == [
        ("click", 4, 1, "a value is missing"),
        ("click", 5, 1, "not a finite number"),
        ("click", 2, 2, "a label is neither 0 nor 1"),
        ("price", 2, 2, "not a finite number"),
    ]


def test_not_a_number_is_missing_and_infinity_is_wrong() -> None:
    tables = plain(ad_id=["a"] * 3, timestamp_ms=[1] * 3, click=[0] * 3, brand=["x"] * 3,
                   price=[float("nan"), float("inf"), 2.0])  # fmt: skip
    assert tables.impressions.frame().collect()["price"].to_list() == [None, None, 2.0]
    assert only(check_tables(tables)).row == 2


@pytest.mark.parametrize("length", [1, 3])
def test_vectors_of_another_fixed_length_are_named(tmp_path: Path, length: int) -> None:
    write_log(tmp_path)
    (tmp_path / "ads.csv").unlink()
    vectors = pl.Series([[1.0] * length] * 3, dtype=pl.Array(pl.Float64, length))
    pl.DataFrame(ads()).with_columns(image=vectors).write_parquet(tmp_path / "ads.parquet")
    found = only(check_tables(open_tables(SCHEMA, tmp_path)))
    assert (found.column, found.row, found.rows) == ("image", 1, 3)
    assert found.problem == "not a vector of 2 numbers"


def test_a_history_needs_one_time_an_item_in_order(tmp_path: Path) -> None:
    changed = users() | {"seen": ["10 11", "12"], "seen_ms": ["1", "9"]}
    found = only(check_tables(open_tables(SCHEMA, write_log(tmp_path, users=changed))))
    assert (found.column, found.row) == ("seen", 1)
    assert found.problem == "the items and their times differ in number"
    changed = users() | {"seen": ["12", "10 11"], "seen_ms": ["9", "2 1"]}
    found = only(check_tables(open_tables(SCHEMA, write_log(tmp_path, users=changed))))
    assert (found.column, found.row) == ("seen", 2)
    assert "oldest first" in found.remedy


def test_a_hole_in_a_history_is_named(tmp_path: Path) -> None:
    write_log(tmp_path)
    (tmp_path / "users.csv").unlink()
    frame = pl.DataFrame(
        {"user_id": [7, 8], "age": [1, 2], "seen": [["1"], ["2", None]], "seen_ms": [[1], [2, 3]]}
    )
    frame.write_parquet(tmp_path / "users.parquet")
    found = only(check_tables(open_tables(SCHEMA, tmp_path)))
    assert (found.column, found.row, found.problem) == ("seen", 2, "not a list of items")


@pytest.mark.parametrize(
    ("column", "bad", "problem"),
    [
        ("click", pl.Series([[1]]), "not a finite number"),
        ("brand", pl.Series([{"a": 1}]), "not a single value"),
        ("ad_id", pl.Series([["a"]]), "not a single value"),
    ],
)
def test_types_that_cannot_be_right_are_refused_at_once(
    column: str, bad: pl.Series, problem: str
) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        plain(**{column: bad})  # type: ignore[arg-type]
    assert caught.value.problems[0].column == column


def test_a_scalar_is_no_history(tmp_path: Path) -> None:
    write_log(tmp_path)
    (tmp_path / "users.csv").unlink()
    pl.DataFrame(users() | {"seen": [1, 2]}).write_parquet(tmp_path / "users.parquet")
    with pytest.raises(
        DataError, match=r"column 'seen': the column has the type Int64: not a list"
    ):
        open_tables(SCHEMA, tmp_path)


def test_missing_columns_are_listed_together(tmp_path: Path) -> None:
    log = impressions()
    del log["click"], log["device"]
    with pytest.raises(DataError) as caught:
        open_tables(SCHEMA, write_log(tmp_path, impressions=log))
    assert [p.column for p in caught.value.problems] == ["click", "device"]
    assert "impressions.csv, column 'click': the column is missing" in str(caught.value)
    assert "the file has request, user_id" in caught.value.problems[0].remedy


def test_a_column_twice_in_the_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'click': the header has the column twice"):
        plain_csv(tmp_path, "ad_id,timestamp_ms,click,brand,price,click\na,1,0,x,1,1\n")


# --- files ----------------------------------------------------------------------------------------


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


def test_a_header_alone_is_a_log_without_rows(tmp_path: Path) -> None:
    tables = plain_csv(tmp_path, "ad_id,timestamp_ms,click,brand,price\n")
    assert only(check_tables(tables)).problem == "has no rows"
    assert list(tables.chunks(10)) == [] or sum(c.height for c in tables.chunks(10)) == 0
    assert tables.ad_frame().height == 0


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


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    text = "ad_id,timestamp_ms,click,brand,price\na,5,1,x,2\nb,6,0,caf\xe9,1\n".encode("latin-1")
    with pytest.raises(DataError, match=r"impressions\.csv, row 2: is not UTF-8"):
        require_valid(plain_csv(tmp_path, text))


# --- order ----------------------------------------------------------------------------------------


def ordered_schema() -> Schema:
    return PLAIN.model_copy(update={"request_id": "request"})


def log_of(rows: list[tuple[str, int]]) -> Tables:
    frame = pl.DataFrame(rows, schema=["request", "timestamp_ms"], orient="row").with_columns(
        ad_id=pl.int_range(pl.len()), click=pl.lit(0), brand=pl.lit("x"), price=pl.lit(1)
    )
    return tables_from(ordered_schema(), {"impressions": ("log", frame.lazy())})


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 5)), min_size=1, max_size=60),
    st.integers(1, 8),
)
def test_requests_are_never_cut_and_stand_in_the_order_of_their_first_row(
    rows: list[tuple[str, int]], size: int
) -> None:
    chunks = list(log_of(rows).chunks(size))
    got = [(r["request_id"], r["timestamp_ms"]) for c in chunks for r in c.iter_rows(named=True)]
    assert sorted(got) == sorted(rows)
    for before, after in itertools.pairwise(chunks):
        assert before["request_id"][-1] != after["request_id"][0]
    starts = [r for i, r in enumerate(got) if i == 0 or got[i - 1][0] != r[0]]
    assert len(starts) == len({request for request, _ in rows})  # each request is in one piece
    assert [t for _, t in starts] == sorted(t for _, t in starts)


def test_a_file_in_order_keeps_its_order() -> None:
    rows = [("b", 1), ("b", 1), ("a", 1), ("c", 2)]  # a before b by name, not in the file
    assert log_of(rows).ordered().collect()["ad_id"].to_list() == ["0", "1", "2", "3"]


def test_a_file_out_of_order_is_sorted_and_ties_stay(tmp_path: Path) -> None:
    rows = "".join(f"a{i},{t},0,x,1\n" for i, t in enumerate([5, 3, 5, 4, 3]))
    tables = plain_csv(tmp_path, "ad_id,timestamp_ms,click,brand,price\n" + rows)
    assert tables.ordered().collect()["ad_id"].to_list() == ["a1", "a4", "a3", "a0", "a2"]
    assert [c.height for c in tables.chunks(2)] == [2, 2, 1]


def test_without_an_ads_table_an_ad_is_its_first_impression() -> None:
    tables = plain(
        ad_id=["b", "a", "b", "a"], timestamp_ms=[4, 3, 2, 1], click=[0] * 4,
        brand=["late b", "late a", "early b", "early a"], price=[1] * 4,
    )  # fmt: skip
    assert tables.ad_frame().rows() == [("a", "early a"), ("b", "early b")]


# --- one log, every file type ---------------------------------------------------------------------

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


@given(
    st.lists(st.lists(st.integers(0, 2**62), max_size=5), min_size=1, max_size=8),
)
def test_lists_survive_json(histories: list[list[int]]) -> None:
    schema = parse_schema("""
name: lists
user_id: user_id
users_table: true
tasks: [{name: click}]
fields: [{name: seen, kind: sequence, column: seen}]
""")
    log = pl.LazyFrame({"ad_id": ["a"], "timestamp_ms": [1], "click": [0], "user_id": ["1"]})
    users = pl.LazyFrame(
        {"user_id": range(len(histories)), "seen": [json.dumps(h) for h in histories]}
    )
    tables = tables_from(schema, {"impressions": ("log", log), "users": ("users", users)})
    read = tables.user_frame()
    assert read is not None
    assert read["seen"].to_list() == [[str(i) for i in h] for h in histories]


def test_a_log_without_rows_has_no_chunks() -> None:
    empty = log_of([("a", 1)]).impressions.raw.clear()
    tables = tables_from(ordered_schema(), {"impressions": ("log", empty)})
    assert sum(chunk.height for chunk in tables.chunks(4)) == 0


def test_reading_on_meets_the_broken_line_and_names_it(tmp_path: Path) -> None:
    text = "ad_id,timestamp_ms,click,brand,price\n" + "a,5,1,x,2\n" * 3 + "a,6,1,x,2,3\n"
    with pytest.raises(DataError, match=r"impressions\.csv, row 4: has 6 cells"):
        list(plain_csv(tmp_path, text).chunks(2))
