"""Layouts: each folder is recognised and opened; what is unknown is told what was looked for."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from adrec.data.checks import require_valid
from adrec.data.layouts import Layout, detect_layout, open_layout, synthetic_schema
from adrec.data.synthetic import PRESETS, generate, write_world
from adrec.errors import ConfigError, DataError
from data.folders import write_criteo, write_kuairand, write_latest, write_open_bandit


def write_synthetic(directory: Path) -> Path:
    world = generate(PRESETS["tiny"], seed=1)
    write_world(world, directory, layout="generic", schema_yaml=synthetic_schema().dump())
    return directory


def write_generic(directory: Path) -> Path:
    (directory / "schema.yaml").write_text("name: mine\ntasks: [{name: click}]\n")
    (directory / "impressions.csv").write_text("ad_id,timestamp_ms,click\na,1,0\n")
    return directory


def write_movielens(directory: Path) -> Path:
    write_latest(directory)
    return directory


WRITERS: dict[Layout, Callable[[Path], Path]] = {
    "generic": write_generic,
    "synthetic": write_synthetic,
    "criteo": write_criteo,
    "kuairand": write_kuairand,
    "movielens": write_movielens,
    "open_bandit": write_open_bandit,
}


@pytest.mark.parametrize("layout", WRITERS)
def test_each_layout_is_recognised_and_opened(tmp_path: Path, layout: Layout) -> None:
    directory = WRITERS[layout](tmp_path)
    assert detect_layout(directory) == layout
    tables = open_layout(layout, directory)
    require_valid(tables)
    assert tables.schema.name == ("mine" if layout == "generic" else layout)
    assert tables.ordered().collect().height == tables.rows() > 0
    assert tables.ad_frame().height > 0


def test_the_synthetic_schema_reads_the_synthetic_world(tmp_path: Path) -> None:
    tables = open_layout("synthetic", write_synthetic(tmp_path))
    schema = tables.schema
    assert schema == synthetic_schema()
    assert [(t.name, t.weight, t.delay_ms) for t in schema.tasks] == [
        ("click", 1.0, 60_000), ("engagement", 0.5, 120_000), ("revenue", 0.3, 60_000),
    ]  # fmt: skip
    money_and_dates = {"bid_micros", "daily_budget_micros", "start_ms", "end_ms"}
    assert money_and_dates.isdisjoint(f.source for f in schema.fields)
    log = tables.impressions.frame().collect()
    slates = log.group_by("request_id").agg(pl.col("position").sort())
    assert set(map(tuple, slates["position"].to_list())) == {(1, 2, 3, 4)}


def test_a_generic_folder_needs_a_schema(tmp_path: Path) -> None:
    schema = synthetic_schema()
    write_synthetic(tmp_path)
    (tmp_path / "schema.yaml").unlink()
    assert open_layout("generic", tmp_path, schema).schema is schema
    with pytest.raises(ConfigError, match=r"Give a schema, or put it there as schema\.yaml"):
        open_layout("generic", tmp_path)
    with pytest.raises(ConfigError, match="the layout criteo brings its own schema"):
        open_layout("criteo", tmp_path, schema)


def test_an_unknown_folder_is_told_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.docx").touch()
    with pytest.raises(DataError) as caught:
        detect_layout(tmp_path)
    for clue in ("notes.docx", "schema.yaml", "train.txt", "histories", "ratings.csv", "all.csv"):
        assert clue in str(caught.value)
    with pytest.raises(DataError, match="is no folder"):
        detect_layout(tmp_path / "nowhere")
