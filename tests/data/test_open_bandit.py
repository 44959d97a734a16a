"""Open Bandit, read as its module says."""

from pathlib import Path
from typing import cast

import polars as pl
import pytest

from adrec.data.checks import require_valid
from adrec.data.layouts import detect_layout, open_layout
from adrec.data.open_bandit import Campaign, LoggingPolicy, open_open_bandit
from adrec.errors import DataError
from data.folders import real, write_open_bandit


@pytest.mark.parametrize(("policy", "campaign"), [("random", "all"), ("bts", "men")])
def test_open_bandit(tmp_path: Path, policy: LoggingPolicy, campaign: Campaign) -> None:
    tables = open_open_bandit(write_open_bandit(tmp_path), policy=policy, campaign=campaign)
    require_valid(tables)
    shown = tables.impressions.frame().collect()
    assert shown["timestamp_ms"].to_list() == [1_574_553_617_004, 1_574_553_619_000]
    assert shown["ad_id"].to_list() == ["3", "0"]
    assert shown["position"].to_list() == [1, 3]
    assert shown["propensity"].to_list() == [0.25, 0.5]
    # By number, whatever the order in the file: 10 stands behind 9, not behind 1.
    assert shown["affinity"].to_list() == [[float(i) for i in range(11)], [0.0] * 11]
    assert tables.ad_frame().columns == ["ad_id", *(f"item_feature_{i}" for i in range(4))]
    assert tables.schema.user_id is None
    assert [f.role for f in tables.schema.request_fields] == ["user"] * 5


def test_the_files_of_the_data_set_as_they_are(tmp_path: Path) -> None:
    """It numbers its rows in a first column without a name."""
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    write_open_bandit(prepared)
    folder = tmp_path / "own" / "random" / "all"
    folder.mkdir(parents=True)
    log = pl.read_parquet(prepared / "random_all.parquet")
    log.with_row_index("").write_csv(folder / "all.csv")
    items = pl.read_parquet(prepared / "items_all.parquet")
    items.with_row_index("").write_csv(folder / "item_context.csv")
    assert detect_layout(tmp_path / "own") == "open_bandit"
    tables = open_layout("open_bandit", tmp_path / "own")
    require_valid(tables)
    expected = open_layout("open_bandit", prepared)
    assert tables.impressions.frame().collect().equals(expected.impressions.frame().collect())
    assert tables.ad_frame().equals(expected.ad_frame())


def test_open_bandit_names_what_is_missing(tmp_path: Path) -> None:
    write_open_bandit(tmp_path)
    with pytest.raises(DataError, match="table 'bts_women' is missing"):
        open_open_bandit(tmp_path, policy="bts", campaign="women")
    file = tmp_path / "random_all.parquet"
    pl.read_parquet(file).select(pl.exclude("^user-item.*$")).write_parquet(file)
    with pytest.raises(DataError, match="there is no column of affinities"):
        open_open_bandit(tmp_path, policy="random", campaign="all")


def test_open_bandit_real_data() -> None:
    directory = real("open_bandit")
    for policy in ("bts", "random"):
        for campaign, n_items in (("all", 80), ("men", 34), ("women", 46)):
            tables = open_open_bandit(
                directory, policy=cast(LoggingPolicy, policy), campaign=cast(Campaign, campaign)
            )
            require_valid(tables)
            assert tables.rows() == 10_000
            assert tables.ad_frame().height == n_items
            if policy == "random":
                shown = tables.impressions.frame().collect()
                assert shown["propensity"].unique().to_list() == pytest.approx([1 / n_items])
