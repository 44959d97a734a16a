"""KuaiRand, read as its module says."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from adrec.data.checks import require_valid
from adrec.data.kuairand import open_kuairand
from adrec.data.layouts import detect_layout, open_layout
from adrec.errors import DataError
from adrec.features.catalogue import Catalogue
from adrec.features.fitting import FeatureConfig
from adrec.features.state import State
from adrec.features.transforms import Features
from data.folders import MIDNIGHT_MS, real, write_kuairand


def test_kuairand_maps_videos_to_ads_and_outcomes_to_tasks(tmp_path: Path) -> None:
    tables = open_kuairand(write_kuairand(tmp_path))
    require_valid(tables)
    shown = tables.impressions.frame().collect()
    assert shown["ad_id"].to_list() == ["10", "11", "10"]
    assert shown["click"].to_list() == [1.0, 0.0, 1.0]
    assert shown["long_view"].to_list() == [1.0, 0.0, 0.0]
    assert shown["play_time"].to_list() == [5000.0, 0.0, 700.0]
    assert [t.weight for t in tables.schema.tasks] == [1.0, 0.5, 0.3]


def test_kuairand_hours_are_those_of_utc_plus_8(tmp_path: Path) -> None:
    tables = open_kuairand(write_kuairand(tmp_path))
    times = tables.impressions.frame().collect()["timestamp_ms"].to_list()
    hour, weekday = tables.schema.clocks
    assert [hour.at(time_ms) for time_ms in times] == [23, 0, 1]
    assert [weekday.at(time_ms) for time_ms in times] == [6, 0, 0]  # Sunday, then Monday


def test_kuairand_videos(tmp_path: Path) -> None:
    ads = open_kuairand(write_kuairand(tmp_path)).ad_frame()
    assert ads["music_type"].to_list() == ["9", None]
    assert ads["music_id"].to_list() == ["9155697141", "0"]
    assert ads["tag"].to_list() == ["20", None]
    assert ads["aspect_ratio"].to_list() == [0.5, None]
    assert ads["upload_day"].to_list() == [0.0, 830.0]  # 2020: 366, 2021: 365, to 10 April: 99
    assert ads["video_duration"].to_list() == [9000.0, None]


@pytest.mark.parametrize(
    ("milliseconds", "band"),
    [
        (0.0, "0"),
        (1_000.0, "4"),  # 4 log2(2)
        (9_000.0, "13"),  # 4 log2(10) = 13.3
        (60_000.0, "24"),  # 4 log2(61) = 23.7
        (61_000.0, "24"),  # 4 log2(62) = 23.8
        (None, None),
        (-1_000.0, None),  # no logarithm
        (-5_000.0, None),
    ],
)
def test_kuairand_durations_fall_into_bands_of_a_quarter_of_a_doubling(
    tmp_path: Path, milliseconds: float | None, band: str | None
) -> None:
    changed = {"video_duration": [milliseconds, 3_000.0]}
    ads = open_kuairand(write_kuairand(tmp_path, videos=changed)).ad_frame()
    assert ads["duration_band"].to_list() == [band, "8"]


def test_kuairand_needs_durations(tmp_path: Path) -> None:
    write_kuairand(tmp_path)
    videos = pl.read_parquet(tmp_path / "videos.parquet").drop("video_duration")
    videos.write_parquet(tmp_path / "videos.parquet")
    with pytest.raises(DataError, match="column 'video_duration': the column is missing"):
        open_kuairand(tmp_path)


def test_kuairand_counts_videos_users_and_tabs_alone_and_together(tmp_path: Path) -> None:
    """User 1 sees videos 10 and 11 of one band in tabs 1 and 0, user 3 video 10 in tab 1."""
    same_length: dict[str, list[Any]] = {
        "video_duration": [9_000.0, 9_300.0],
        "tag": ["20,43", "7"],
    }
    tables = open_kuairand(write_kuairand(tmp_path, videos=same_length))
    schema = tables.schema
    features = Features.fit(tables, FeatureConfig(min_count=1), train_until_ms=MIDNIGHT_MS * 2)
    state = State.begin(features, Catalogue.of(features, tables.ad_frame()), tables.user_frame())
    rows = state.advance(tables.ordered().collect())
    place, counts = 0, {}
    for spec in schema.counters:
        # The first half-life of each, and of that log(1 + n).
        counts[spec.columns] = np.expm1(rows.counters_NC[:, place]).round(4).tolist()
        place += len(spec.half_lives_hours) * (1 + len(schema.tasks))
    assert place == rows.counters_NC.shape[1] == features.layout.counters
    assert {key: n for key, n in counts.items() if sum(n)} == {
        ("user_id",): [0, 1, 0],
        ("ad_id",): [0, 0, 1],
        ("author_id",): [0, 0, 1],
        ("music_id",): [0, 0, 1],
        ("tag",): [0, 0, 1],
        ("tab",): [0, 0, 1],
        ("user_id", "duration_band"): [0, 1, 0],
        ("ad_id", "tab"): [0, 0, 1],
        ("author_id", "tab"): [0, 0, 1],
        ("tag", "tab"): [0, 0, 1],
        ("duration_band", "tab"): [0, 0, 1],
    }
    assert {key for key, n in counts.items() if not sum(n)} == {
        ("user_id", "author_id"), ("user_id", "tag"), ("user_id", "tab")
    }  # fmt: skip
    # What was shown: nothing before the log; then video 10, which the user clicked and watched.
    shown = rows.histories[[field.name for field in schema.sequences].index("shown")]
    ids = ["", *state.catalogue.directory.ids]
    assert [[ids[ad] for ad in row if ad] for row in shown.ads] == [[], ["10"], []]
    assert shown.outcomes[:, -1].tolist() == [0, 0b111, 0]


def test_kuairand_outcomes_are_never_features(tmp_path: Path) -> None:
    schema = open_kuairand(write_kuairand(tmp_path)).schema
    outcomes = {"is_click", "long_view", "is_like", "is_follow", "is_comment", "play_time_ms"}
    assert outcomes.isdisjoint(f.source for f in schema.fields)


def test_kuairand_histories_join_the_users(tmp_path: Path) -> None:
    users = open_kuairand(write_kuairand(tmp_path)).user_frame()
    assert users is not None
    assert users["user_id"].to_list() == ["1", "2"]
    assert users["watch_seq"].to_list() == [["11", "10"], ["10"]]
    assert users["like_seq"].to_list() == [[], ["11"]]
    assert users["onehot_feat4"].to_list() == ["1", None]
    assert users["follow_user_num"].to_list() == [5.0, 7.0]


def test_kuairand_history_that_reaches_into_the_log_is_dropped(tmp_path: Path) -> None:
    leaking = {"last_time_ms": [MIDNIGHT_MS - 1, MIDNIGHT_MS + 5]}
    users = open_kuairand(write_kuairand(tmp_path, histories=leaking)).user_frame()
    assert users is not None
    # User 1's history ends with its first logged impression; user 2 has none in the log.
    assert users["watch_seq"].to_list() == [None, ["10"]]


def test_kuairand_names_what_is_missing(tmp_path: Path) -> None:
    write_kuairand(tmp_path)
    (tmp_path / "histories.parquet").unlink()
    with pytest.raises(DataError, match="table 'histories' is missing"):
        open_kuairand(tmp_path)
    write_kuairand(tmp_path)
    videos = pl.read_parquet(tmp_path / "videos.parquet").drop("tag", "author_id")
    videos.write_parquet(tmp_path / "videos.parquet")
    with pytest.raises(DataError, match=r"videos\.parquet, column 'tag': the column is missing"):
        open_kuairand(tmp_path)


def test_kuairand_files_of_the_data_set_as_they_are(tmp_path: Path) -> None:
    """The log in two files, each by user; no history is known before it."""
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    write_kuairand(prepared)
    own = tmp_path / "own"
    own.mkdir()
    log = pl.read_parquet(prepared / "impressions.parquet")
    log[:2].reverse().write_csv(own / "log_standard_4_08_to_4_21_pure.csv")
    log[2:].write_csv(own / "log_standard_4_22_to_5_08_pure.csv")
    log.write_csv(own / "log_random_4_22_to_5_08_pure.csv")
    users = pl.read_parquet(prepared / "users.parquet")
    users.write_csv(own / "user_features_pure.csv")
    videos = pl.read_parquet(prepared / "videos.parquet")
    videos.write_csv(own / "video_features_basic_pure.csv")
    assert detect_layout(own) == "kuairand"
    tables, expected = (open_layout("kuairand", folder) for folder in (own, prepared))
    require_valid(tables)
    assert tables.ordered().collect().equals(expected.ordered().collect())
    known = tables.user_frame()
    assert known is not None
    assert [known[name].null_count() for name in ("watch_seq", "like_seq", "long_watch_seq")] == [
        known.height
    ] * 3
    (own / "user_features_pure.csv").unlink()
    with pytest.raises(DataError, match=r"user_features_\*\.csv: is missing, though log_standard"):
        open_kuairand(own)


def test_kuairand_real_data() -> None:
    tables = open_kuairand(real("kuairand"))
    require_valid(tables)
    assert tables.rows() == 194_077
    log = tables.ordered().collect()
    rates = log.select(pl.col("click", "long_view").mean()).row(0)
    assert rates == pytest.approx((0.449, 0.316), abs=0.0005)
    users = tables.user_frame()
    assert users is not None
    assert users.height == 27_285
    # 27,285 users less 26,469 with a history, and 3 whose history reaches into the log.
    assert users["watch_seq"].null_count() == 27_285 - 26_469 + 3
    # Oldest first: where all 50 items are there, the last long view is among the last watched.
    full = users.filter(
        (pl.col("watch_seq").list.len() == 50) & (pl.col("long_watch_seq").list.len() > 0)
    )
    last = pl.col("long_watch_seq").list.last()
    first = pl.col("long_watch_seq").list.first()
    newest = full.select(pl.col("watch_seq").list.tail(15).list.contains(last).mean()).item()
    oldest = full.select(pl.col("watch_seq").list.head(15).list.contains(first).mean()).item()
    assert newest > 0.9 > oldest
