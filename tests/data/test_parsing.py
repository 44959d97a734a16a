"""Parsing: one spelling a value, lists and times however they are written."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adrec.data.checks import check_tables
from adrec.data.parsing import as_text
from adrec.data.tables import Tables, tables_from
from adrec.schema import parse_schema
from data.logs import PLAIN, plain

LISTS = parse_schema("""
name: lists
user_id: user_id
users_table: true
tasks: [{name: click}]
fields: [{name: seen, kind: sequence, column: seen}]
""")


def with_histories(seen: Any) -> Tables:
    log = pl.LazyFrame({"ad_id": ["a"], "timestamp_ms": [1], "click": [0], "user_id": ["1"]})
    users = pl.LazyFrame({"user_id": range(len(seen)), "seen": seen})
    return tables_from(LISTS, {"impressions": ("log", log), "users": ("users", users)})


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
    tables = with_histories(raw)
    assert check_tables(tables) == []
    users = tables.user_frame()
    assert users is not None
    assert users["seen"].to_list() == [["3", "5", "8"], [], None]


@given(st.lists(st.lists(st.integers(0, 2**62), max_size=5), min_size=1, max_size=8))
def test_lists_survive_json(histories: list[list[int]]) -> None:
    users = with_histories([json.dumps(h) for h in histories]).user_frame()
    assert users is not None
    assert users["seen"].to_list() == [[str(i) for i in h] for h in histories]


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
