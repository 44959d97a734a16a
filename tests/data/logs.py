"""Two small logs to read and to break: a shop with users, ads and requests, and a plain one."""

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from adrec.data.tables import Tables, open_tables, tables_from
from adrec.errors import Problem
from adrec.schema import parse_schema

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
