"""Checks: whatever is wrong is named by file, column and row."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from adrec.data.checks import check_tables, require_valid
from adrec.data.tables import open_tables, tables_from
from adrec.errors import DataError
from adrec.schema import parse_schema
from data.logs import PLAIN, SCHEMA, ads, impressions, only, plain, plain_csv, users, write_log


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


def test_a_header_alone_is_a_log_without_rows(tmp_path: Path) -> None:
    tables = plain_csv(tmp_path, "ad_id,timestamp_ms,click,brand,price\n")
    assert only(check_tables(tables)).problem == "has no rows"
    assert tables.ordered().collect().height == 0
    assert tables.ad_frame().height == 0


@pytest.mark.parametrize(
    ("user", "later_ms", "wrong"), [("1", 0, False), ("2", 0, True), ("1", 90_000_000, True)]
)
def test_a_request_id_that_is_used_again_is_found(
    tmp_path: Path, user: str, later_ms: int, wrong: bool
) -> None:
    schema = parse_schema("{name: t, user_id: user_id, request_id: view, tasks: [{name: click}]}")
    pl.DataFrame(
        {
            "user_id": ["3", "1", user],
            "ad_id": ["a", "a", "b"],
            "view": ["v", "w", "w"],
            "timestamp_ms": [1000, 1000, 1001 + later_ms],
            "click": [0, 1, 0],
        }
    ).write_csv(tmp_path / "impressions.csv")
    found = check_tables(open_tables(schema, tmp_path))
    assert len(found) == wrong
    if wrong:
        assert (found[0].column, found[0].row, found[0].rows) == ("view", 2, 2)
        assert "several users" in found[0].problem
