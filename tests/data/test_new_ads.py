"""Ads as raw rows become what the same ads in a table become, or a list of what is wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from adrec.data.new_ads import parse_ads
from adrec.data.tables import open_tables
from adrec.errors import DataError
from data.logs import PLAIN, SCHEMA, write_log

OK: dict[str, Any] = {"ad_id": 10, "bid": 500, "brand": "acme", "image": [0.5, 1.5]}


def test_as_a_table_is_read(tmp_path: Path) -> None:
    rows = [
        {"ad_id": 10, "bid": 500, "brand": "acme", "image": "0.5 1.5"},
        {"ad_id": "11", "bid": "0", "brand": None, "image": "1 2"},
        {"ad_id": 12.0, "bid": 900.0, "brand": "zeta", "image": "3,4"},
    ]
    table = open_tables(SCHEMA, write_log(tmp_path)).ad_frame()
    assert_frame_equal(parse_ads(SCHEMA, rows), table)


def test_values_as_json_and_python_bring_them() -> None:
    rows = [
        OK | {"image": np.array([1.0, 2.0])},
        {"ad_id": "b", "bid": np.int64(3), "brand": 9.0},
        {"ad_id": "c", "bid": 4, "brand": True, "image": (1, 2)},
    ]
    found = parse_ads(SCHEMA, rows)
    assert found["ad_id"].to_list() == ["10", "b", "c"]
    assert found["brand"].to_list() == ["acme", "9", "true"]
    assert found["bid_micros"].to_list() == [500, 3, 4]
    images = [None if image is None else image.to_list() for image in found["image"]]
    assert images == [[1, 2], None, [1, 2]]


def test_ads_without_a_table() -> None:
    """They are what the impressions say of an ad: its id and its fields, and no bid."""
    found = parse_ads(PLAIN, [{"ad_id": "x", "brand": "acme"}, {"ad_id": "y"}])
    assert_frame_equal(found, pl.DataFrame({"ad_id": ["x", "y"], "brand": ["acme", None]}))
    with pytest.raises(DataError, match=r"'price', row 1: no such column\. An ad has ad_id, brand"):
        parse_ads(PLAIN, [{"ad_id": "x", "price": 3}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ad_id": None}, "'ad_id', row 2: a value is missing"),
        ({"ad_id": ""}, "'ad_id', row 2: a value is missing"),
        ({"ad_id": "10.0"}, r"'ad_id', row 2.*id '10' stands there already"),
        ({"bid": None}, "'bid', row 2: a value is missing"),
        ({"bid": -1}, "'bid', row 2: a value is below 0"),
        ({"bid": 1.5}, "'bid', row 2: not a whole number"),
        ({"bid": "much"}, "'bid', row 2: not a whole number"),
        ({"bid": [1]}, "'bid', row 2: not a whole number"),
        ({"brand": ["a", "b"]}, "'brand', row 2: not a single value"),
        ({"brand": {"a": 1}}, "'brand', row 2: not a single value"),
        ({"image": [1.0]}, "'image', row 2: not a vector of 2 numbers"),
        ({"image": [1.0, "x"]}, "'image', row 2: not a vector of 2 numbers"),
        ({"image": [1.0, float("nan")]}, "'image', row 2: not a vector of 2 numbers"),
        ({"image": 5}, "'image', row 2: not a vector of 2 numbers"),
        ({"image": {"x": 5}}, "'image', row 2: not a vector of 2 numbers"),
        ({"colour": "red"}, "'colour', row 2: no such column. An ad has ad_id, bid, brand, image"),
    ],
)
def test_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        parse_ads(SCHEMA, [OK, OK | {"ad_id": 11} | change])
    assert len(raised.value.problems) == 1


def test_everything_wrong_is_listed() -> None:
    with pytest.raises(DataError) as raised:
        parse_ads(SCHEMA, [OK | {"bid": -1}, OK | {"ad_id": 2, "image": "x"}, {"bid": 3}])
    assert {p.column for p in raised.value.problems} == {"ad_id", "bid", "image"}
    with pytest.raises(DataError, match="No ads were given"):
        parse_ads(SCHEMA, [])
