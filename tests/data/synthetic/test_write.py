"""Written worlds: Parquet tables, and Criteo's layout with counts of the past only."""

from pathlib import Path

import numpy as np
import polars as pl
from polars.testing import assert_frame_equal

from adrec.data.synthetic import World, write_world
from adrec.data.synthetic.criteo import criteo_table


def test_generic_files_hold_the_tables(world: World, tmp_path: Path) -> None:
    write_world(world, tmp_path / "new", layout="generic", schema_yaml="name: test\n")
    for name in ("impressions", "users", "ads", "truth"):
        assert_frame_equal(
            pl.read_parquet(tmp_path / "new" / f"{name}.parquet"), getattr(world, name)
        )
    assert (tmp_path / "new" / "schema.yaml").read_text(encoding="utf-8") == "name: test\n"


def test_the_criteo_file_has_criteos_layout(world: World, tmp_path: Path) -> None:
    write_world(world, tmp_path, layout="criteo")
    assert [path.name for path in tmp_path.iterdir()] == ["train.txt"]
    lines = (tmp_path / "train.txt").read_text(encoding="utf-8").splitlines()
    cells = np.array([line.split("\t") for line in lines])
    assert cells.shape == (world.impressions.height, 40)
    assert cells[:, 0].astype(int).tolist() == world.impressions["click"].to_list()
    integers, categories = cells[:, 1:14], cells[:, 14:]
    assert all(int(cell) >= -1 for cell in integers.ravel() if cell)
    assert all(len(cell) == 8 and int(cell, 16) >= 0 for cell in categories.ravel() if cell)
    assert (integers == "").any()
    assert (categories == "").any()


def test_criteo_counts_are_of_earlier_requests(world: World) -> None:
    table, log = criteo_table(world), world.impressions
    ads = world.ads["campaign_id"]
    for row in (0, 3, 4000, 7999):
        past = log.filter(pl.col("request_id") < log["request_id"][row])
        of_user = past.filter(pl.col("user_id") == log["user_id"][row])
        of_ad = past.filter(pl.col("ad_id") == log["ad_id"][row])
        campaign = ads[log["ad_id"][row]]
        of_campaign = past.filter(ads.gather(past["ad_id"]) == campaign)
        expected = (
            of_user.height, of_user["click"].sum(), of_ad.height, of_ad["click"].sum(),
            of_campaign["click"].sum(),
        )  # fmt: skip
        assert table.select("I1", "I2", "I3", "I4", "I5").row(row) == expected
