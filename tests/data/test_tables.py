"""Tables: adrec's names and types, columns that must be there, and the order of requests."""

from pathlib import Path

import polars as pl
import pytest

from adrec.data.checks import check_tables, require_valid
from adrec.data.tables import Tables, open_tables, tables_from
from adrec.errors import DataError
from adrec.schema import Schema
from data.logs import PLAIN, SCHEMA, impressions, plain, plain_csv, users, write_log


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


def test_opening_reads_no_rows(tmp_path: Path) -> None:
    write_log(tmp_path)
    file = tmp_path / "impressions.csv"
    file.write_text(file.read_text() + "broken,line\n" * 3)
    open_tables(SCHEMA, tmp_path)  # the broken rows have not been met


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


def test_without_an_ads_table_an_ad_is_its_first_impression() -> None:
    tables = plain(
        ad_id=["b", "a", "b", "a"], timestamp_ms=[4, 3, 2, 1], click=[0] * 4,
        brand=["late b", "late a", "early b", "early a"], price=[1] * 4,
    )  # fmt: skip
    assert tables.ad_frame().rows() == [("a", "early a"), ("b", "early b")]


def test_a_catalogue_as_of_a_time_lacks_ads_that_came_later() -> None:
    tables = plain(
        ad_id=["a", "b", "c"], timestamp_ms=[1, 2, 3], click=[0] * 3, brand=["x"] * 3, price=[1] * 3
    )
    assert tables.ad_frame(before_ms=3)["ad_id"].to_list() == ["a", "b"]
    # A request is as old as its first row: v begins before 3 and goes on after it.
    slates = log_of([("v", 2), ("w", 3), ("v", 4)])
    assert slates.ad_frame(before_ms=3)["ad_id"].to_list() == ["0", "2"]


# --- order ----------------------------------------------------------------------------------------


def ordered_schema() -> Schema:
    return PLAIN.model_copy(update={"request_id": "request"})


def log_of(rows: list[tuple[str, int]]) -> Tables:
    frame = pl.DataFrame(rows, schema=["request", "timestamp_ms"], orient="row").with_columns(
        ad_id=pl.int_range(pl.len()), click=pl.lit(0), brand=pl.lit("x"), price=pl.lit(1)
    )
    return tables_from(ordered_schema(), {"impressions": ("log", frame.lazy())})


def test_a_file_in_order_keeps_its_order() -> None:
    rows = [("b", 1), ("b", 1), ("a", 1), ("c", 2)]  # a before b by name, not in the file
    assert log_of(rows).ordered().collect()["ad_id"].to_list() == ["0", "1", "2", "3"]


def test_a_file_out_of_order_is_sorted_and_ties_stay(tmp_path: Path) -> None:
    rows = "".join(f"a{i},{t},0,x,1\n" for i, t in enumerate([5, 3, 5, 4, 3]))
    tables = plain_csv(tmp_path, "ad_id,timestamp_ms,click,brand,price\n" + rows)
    assert tables.ordered().collect()["ad_id"].to_list() == ["a1", "a4", "a3", "a0", "a2"]
