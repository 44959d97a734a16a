"""KuaiRand: short-video impressions of the Kuaishou app (Gao et al., CIKM 2022; CC BY-SA 4.0).

The folder holds the data set's own files, `log_standard_*.csv`, `user_features_*.csv` and
`video_features_basic_*.csv` (impressions at random are left alone), or a prepared part of it:
`impressions`, `users`, `videos` and `histories` as Parquet (or CSV, TSV). As an ad log: video = ad,
author = advertiser, is_click = click, long_view = engagement, and play_time_ms, a value that is
often zero, stands in for revenue. The log has no request ids, positions or propensities. Users keep
the numbers and lose the `*_range` buckets that only coarsen them; the anonymised one-hot fields are
categories. Hour and weekday are those of UTC+8, where the app runs.

The data set's own files tell nothing of the time before the log. The histories of a prepared part
are up to 50 positive videos a user, oldest first, without the time of each. They should end before
the log starts, but for a few users (3 of the 24,151 with impressions) the last item is their first
logged impression: those users start with an empty history, or the label would leak. A fourth
history, `shown`, starts empty and grows with every impression of the log.
"""

from pathlib import Path

import polars as pl

from adrec.data.files import reading, scan, scan_table
from adrec.data.tables import Tables, require_columns, tables_from
from adrec.errors import DataError, Problem
from adrec.schema import (
    IMPRESSION,
    AnyField,
    CategoricalField,
    ClockField,
    CounterSpec,
    NumericField,
    Schema,
    SequenceField,
    Task,
)

_USER_CATEGORIES = (
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    *(f"onehot_feat{i}" for i in range(18)),
)
_USER_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
_VIDEO_CATEGORIES = ("author_id", "video_type", "upload_type", "music_id", "music_type", "tag")
_OWN = {
    "impressions": "log_standard_*.csv",
    "users": "user_features_*.csv",
    "videos": "video_features_basic_*.csv",
}
_HISTORIES = ("watch_seq", "like_seq", "long_watch_seq")


def open_kuairand(directory: Path) -> Tables:
    """Open a KuaiRand folder.

    Args:
        directory: the folder with the data set's files, or the four tables.

    Returns:
        Lazy tables: nothing but file headers has been read.

    Raises:
        DataError: a file or a column is missing.
    """
    schema = kuairand_schema()
    own = bool(own_files(directory, "impressions"))
    table = _scan_own if own else scan_table
    impressions_file, impressions = table(directory, "impressions")
    users_file, users = table(directory, "users")
    videos_file, videos = table(directory, "videos")
    histories_file, histories = _none(users) if own else scan_table(directory, "histories")
    require_columns(impressions_file, impressions, ("user_id", "time_ms"))
    require_columns(users_file, users, ("user_id",))
    require_columns(
        videos_file,
        videos,
        ("video_duration", "upload_dt", "tag", "music_id", "server_width", "server_height"),
    )
    require_columns(histories_file, histories, ("user_id", "last_time_ms", *_HISTORIES))
    return tables_from(
        schema,
        {
            "impressions": (impressions_file, impressions),
            "users": (users_file, _with_histories(users, histories, impressions)),
            "ads": (videos_file, _with_video_properties(videos)),
        },
    )


def own_files(directory: Path, table: str) -> list[Path]:
    """The files that the data set itself has of a table, in the order of their names."""
    return sorted(directory.glob(_OWN[table]))


def kuairand_schema() -> Schema:
    """What each column of KuaiRand is. Outcomes (play time, likes, comments) are never features."""
    fields: list[AnyField] = [
        *(CategoricalField(name=n, kind="categorical", role="user") for n in _USER_CATEGORIES),
        *(NumericField(name=n, kind="numeric", role="user") for n in _USER_NUMBERS),
        _history("watch_seq", grows_with="click", length=50),
        _history("like_seq", grows_with=None, length=20),
        _history("long_watch_seq", grows_with="long_view", length=50),
        SequenceField(name="shown", kind="sequence", grows_with=IMPRESSION, length=30),
        *(CategoricalField(name=n, kind="categorical", role="ad") for n in _VIDEO_CATEGORIES),
        CategoricalField(name="duration_band", kind="categorical", role="ad"),
        NumericField(name="video_duration", kind="numeric", role="ad"),
        NumericField(name="aspect_ratio", kind="numeric", role="ad"),
        NumericField(name="upload_day", kind="numeric", role="ad"),
        CategoricalField(name="tab", kind="categorical", role="context"),
        ClockField(name="hour", kind="clock", part="hour", utc_offset_hours=8),
        ClockField(name="weekday", kind="clock", part="weekday", utc_offset_hours=8),
    ]
    return Schema(
        name="kuairand",
        user_id="user_id",
        ad_id="video_id",
        timestamp="time_ms",
        users_table=True,
        ads_table=True,
        tasks=(
            Task(name="click", column="is_click", weight=1.0),
            Task(name="long_view", weight=0.5),
            Task(name="play_time", column="play_time_ms", kind="value", weight=0.3),
        ),
        fields=tuple(fields),
        counters=(
            CounterSpec(columns=("user_id",), half_lives_hours=(None, 24.0)),
            CounterSpec(columns=("ad_id",), half_lives_hours=(None, 72.0, 24.0)),
            CounterSpec(columns=("author_id",)),
            CounterSpec(columns=("music_id",)),
            CounterSpec(columns=("tag",)),
            CounterSpec(columns=("tab",), half_lives_hours=(None, 24.0)),
            CounterSpec(columns=("user_id", "author_id")),
            CounterSpec(columns=("user_id", "tag")),
            CounterSpec(columns=("user_id", "tab"), half_lives_hours=(None, 24.0)),
            CounterSpec(columns=("user_id", "duration_band")),
            CounterSpec(columns=("ad_id", "tab")),
            CounterSpec(columns=("author_id", "tab")),
            CounterSpec(columns=("tag", "tab")),
            CounterSpec(columns=("duration_band", "tab")),
        ),
    )


def _scan_own(directory: Path, table: str) -> tuple[str, pl.LazyFrame]:
    """The name of a table's first file, and the lazy content of all."""
    files = own_files(directory, table)
    if not files:
        problem = Problem(
            file=str(directory / _OWN[table]),
            problem=f"is missing, though {own_files(directory, 'impressions')[0].name} is there",
            remedy="Put all files of the data set into one folder",
        )
        raise DataError("A log needs all of its tables:", [problem])
    with reading(str(files[0])):
        return str(files[0]), pl.concat([scan(file) for file in files])


def _none(users: pl.LazyFrame) -> tuple[str, pl.LazyFrame]:
    """Empty histories."""
    nothing = {name: pl.lit(None, dtype=pl.List(pl.String)) for name in _HISTORIES}
    return "", users.select("user_id", last_time_ms=pl.lit(0), **nothing)


def _history(name: str, *, grows_with: str | None, length: int) -> SequenceField:
    return SequenceField(
        name=name, kind="sequence", column=name, grows_with=grows_with, length=length
    )


def _with_histories(
    users: pl.LazyFrame, histories: pl.LazyFrame, impressions: pl.LazyFrame
) -> pl.LazyFrame:
    first_ms = impressions.group_by("user_id").agg(
        first_ms=pl.col("time_ms").cast(pl.Int64, strict=False).min()
    )
    ends_before = (
        pl.col("last_time_ms").cast(pl.Int64, strict=False) < pl.col("first_ms")
    ) | pl.col("first_ms").is_null()
    clean = histories.join(first_ms, on="user_id", how="left").select(
        "user_id", *(pl.when(ends_before).then(pl.col(n)).alias(n) for n in _HISTORIES)
    )
    return users.join(clean, on="user_id", how="left", maintain_order="left")


def _with_video_properties(videos: pl.LazyFrame) -> pl.LazyFrame:
    width, height = (
        pl.col(n).cast(pl.Float64, strict=False) for n in ("server_width", "server_height")
    )
    uploaded = pl.col("upload_dt").cast(pl.String).str.to_date("%Y-%m-%d", strict=False)
    seconds = pl.col("video_duration").cast(pl.Float64, strict=False) / 1000.0
    return videos.with_columns(
        duration_band=(4 * (1 + seconds).log(2)).round().cast(pl.Int64, strict=False),
        tag=pl.col("tag").cast(pl.String).str.split(",").list.first(),
        aspect_ratio=pl.when(height > 0).then(width / height),
        upload_day=(uploaded - pl.date(2020, 1, 1)).dt.total_days(),
    )
