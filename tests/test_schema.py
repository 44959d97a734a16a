"""A schema says which column is what; a contradiction is refused with the name of what is wrong."""

import re
from pathlib import Path
from typing import Any

import pytest

from adrec.data.criteo import criteo_schema
from adrec.data.kuairand import kuairand_schema
from adrec.data.layouts import synthetic_schema
from adrec.data.movielens import movielens_schema
from adrec.data.open_bandit import open_bandit_schema
from adrec.errors import ConfigError
from adrec.schema import Schema, load_schema, parse_config, parse_schema
from adrec.serving.config import ServerConfig

SHOP = """
name: shop
user_id: customer
ad_id: product
timestamp: at
timestamp_unit: s
users_table: true
ads_table: true
tasks:
  - {name: click}
  - {name: spend, column: eur, kind: value, weight: 0.3, delay_ms: 60000}
fields:
  - {name: age, kind: numeric, role: user}
  - {name: brand, kind: categorical, role: ad}
  - {name: image, kind: embedding, role: ad, dim: 4}
  - {name: device, kind: categorical, role: context}
  - {name: daytime, kind: categorical, role: user, table: impressions}
  - {name: seen, kind: sequence, column: seen_items, times: seen_at, grows_with: click}
counters:
  - {columns: [user_id, brand], half_lives_hours: [null, 24]}
"""


def shop(**changes: Any) -> Schema:
    content = parse_schema(SHOP).model_dump(mode="json") | changes
    return parse_config(Schema, content, source="shop.yaml")


def field(name: str, kind: str = "categorical", role: str = "context", **rest: Any) -> Any:
    return {"name": name, "kind": kind, "role": role, **rest}


def test_fields_are_found_by_where_they_are_known() -> None:
    schema = parse_schema(SHOP)
    assert [f.name for f in schema.user_fields] == ["age"]
    assert [f.name for f in schema.ad_fields] == ["brand", "image"]
    assert [f.name for f in schema.request_fields] == ["device", "daytime"]
    assert [f.name for f in schema.sequences] == ["seen"]
    assert schema.click.name == "click"
    assert schema.tasks[1].source == "eur"
    assert schema.counters[0].name == "user_id*brand"


def test_without_tables_every_field_comes_with_the_impression() -> None:
    schema = criteo_schema(user_fields=("I1",), ad_fields=("C1", "C2"), counter_fields=("C1",))
    assert {schema.table_of(f) for f in schema.fields} == {"impressions"}
    assert [f.name for f in schema.ad_fields] == ["C1", "C2"]
    assert len(schema.request_fields) == 39 - 2
    assert schema.user_fields == ()


@pytest.mark.parametrize(
    "schema",
    [
        parse_schema(SHOP),
        criteo_schema(),
        kuairand_schema(),
        movielens_schema(users_table=True),
        movielens_schema(users_table=False),
        open_bandit_schema(affinities=34),
        synthetic_schema(),
    ],
    ids=lambda s: s.name,
)
def test_dump_reads_back_the_same(schema: Schema) -> None:
    assert parse_schema(schema.dump()) == schema


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": [field("device"), field("device", "numeric")]}, "names used twice: device"),
        ({"fields": [field("position")]}, "names used twice: position"),
        ({"fields": [field("click")]}, "names used twice: click"),
        ({"fields": [field("euros", "numeric", column="eur")]}, "reads 'eur', an outcome"),
        ({"fields": [field("x", role="user", table="ads")]}, "role user and cannot be in the ads"),
        ({"fields": [field("x", role="ad", table="users")]}, "role ad and cannot be in the users"),
        ({"fields": [field("x", table="users")]}, "role context and cannot be in the users"),
        ({"fields": [field("x", role="ad", table="impressions")]}, "move it to the ads table"),
        (
            {"ads_table": False, "fields": [field("x", role="ad", table="ads")]},
            "ads_table is false",
        ),
        ({"fields": [field("x", "embedding")]}, "dim: Field required"),
        ({"fields": [field("x", "picture")]}, "'picture'"),
        ({"fields": [field("x", kind="numeric", dim=3)]}, "dim: Extra inputs"),
        ({"user_id": None, "counters": []}, "needs a user_id"),
        ({"user_id": None, "counters": [], "fields": []}, "users_table is true, but no user_id"),
        (
            {"ads_table": False, "bid_micros": "bid", "counters": []},
            "bid_micros is a column of the",
        ),
        ({"tasks": []}, "tasks"),
        ({"tasks": [{"name": "spend", "kind": "value"}]}, "put a binary task first"),
        ({"counters": [{"columns": ["age"]}]}, "age is not a key; choose from ad_id, brand"),
        ({"counters": [{"columns": ["brand"]}, {"columns": ["brand"]}]}, "is there twice"),
        ({"counters": [{"columns": ["brand", "brand"]}]}, "uses a column twice"),
        ({"counters": [{"columns": ["brand"], "half_lives_hours": [0]}]}, "greater than 0"),
        ({"counters": [{"columns": ["brand"], "half_lives_hours": []}]}, "half_lives_hours"),
        ({"counters": [{"columns": ["brand"], "half_lives_hours": [24, 24]}]}, "is there twice"),
        ({"timestamp_unit": "minutes"}, "timestamp_unit"),
        (
            {"tasks": [{"name": "impression"}]},
            "a task is called 'impression', but `grows_with: imp",
        ),
        ({"colour": "blue"}, "colour: Extra inputs"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        shop(**changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"column": None, "times": None, "grows_with": None},
            "needs a column, grows_with, or both",
        ),
        ({"column": None, "grows_with": "click"}, "has times, but no column"),
        (
            {"grows_with": "purchase"},
            "'purchase', which is not a task; choose from click, spend, or impression for all",
        ),
        ({"table": "impressions"}, "has to be in the users table"),
        ({"length": 0}, "length"),
    ],
)
def test_sequences_that_cannot_be_read_are_refused(change: dict[str, Any], message: str) -> None:
    sequence = {"name": "seen", "kind": "sequence", "column": "seen_items", "times": "seen_at"}
    with pytest.raises(ConfigError, match=re.escape(message)):
        shop(fields=[sequence | change], counters=[])


def test_a_sequence_may_grow_with_impressions_from_a_start_or_from_nothing() -> None:
    shown = {"name": "shown", "kind": "sequence", "grows_with": "impression"}
    schema = shop(fields=[shown, shown | {"name": "seen", "column": "seen"}], counters=[])
    assert [field.of_impressions for field in schema.sequences] == [True, True]
    liked = shop(fields=[shown | {"grows_with": "click"}], counters=[])
    assert not liked.sequences[0].of_impressions


def test_errors_name_the_file_and_every_field(tmp_path: Path) -> None:
    file = tmp_path / "schema.yaml"
    file.write_text("name: shop\ntasks: [{name: click, weight: -1}]\nfeilds: []\n")
    with pytest.raises(ConfigError) as caught:
        load_schema(file)
    assert str(file) in str(caught.value)
    assert "tasks.0.weight" in str(caught.value)
    assert "(got -1)" in str(caught.value)
    assert "feilds" in str(caught.value)


def test_what_is_no_schema_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_schema(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_schema("name: [")
    with pytest.raises(ConfigError, match="expected keys"):
        parse_schema("- click")


def test_an_error_does_not_repeat_a_secret() -> None:
    with pytest.raises(ConfigError, match=r"events_token: .*at least 16") as caught:
        parse_config(ServerConfig, {"events_token": "hunter2"}, source="server.yaml")
    assert "hunter2" not in str(caught.value)
