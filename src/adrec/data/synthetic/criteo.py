"""The log in the layout of the Criteo display advertising challenge."""

import numpy as np
import polars as pl
import pyarrow as pa

from adrec.data.synthetic.columns import SPENDING
from adrec.data.synthetic.config import DAY_MS, HOUR_MS
from adrec.data.synthetic.drawing import Ints, stable_hash
from adrec.data.synthetic.world import World

_CRITEO_PLAIN = (
    "user_id", "segment", "age", "gender", "region", "favourite", "ad_id", "campaign_id",
    "advertiser_id", "category", "topic", "format", "device", "place",
)  # fmt: skip
_CROSSES = (
    ("segment", "category"), ("segment", "topic"), ("favourite", "category"),
    ("favourite", "topic"), ("favourite", "ad_id"), ("age", "category"), ("device", "format"),
    ("hour", "category"), ("user_id", "category"), ("user_id", "topic"),
)  # fmt: skip


def criteo_table(world: World) -> pl.DataFrame:
    """The log in Criteo's columns: label, I1 to I13, C1 to C26, in time order.

    I1, I2 past impressions and clicks of the user; I3, I4 of the ad; I5 past clicks of the
    campaign; I6, I7 past impressions and clicks of the user in the ad's category; I8 history
    length; I9 spending power; I10 price in USD; I11 bid in thousandths of a USD; I12 days since the
    ad started; I13 hour of the day. Past means before the request.

    C1 user, C2 segment, C3 age, C4 gender, C5 region, C6 the history's most frequent topic; C7 ad,
    C8 campaign, C9 advertiser, C10 category, C11 topic, C12 format, C13 device, C14 place;
    C15 to C24 crosses (`_CROSSES`); C25 spending power, C26 price band, both sometimes missing.
    """
    favourite = _favourite_topics(world)
    users = world.users.join(favourite, on="user_id", how="left", maintain_order="left")
    rows = world.impressions.join(
        users.drop("history_times_ms"), on="user_id", how="left", maintain_order="left"
    ).join(world.ads.drop("content"), on="ad_id", how="left", maintain_order="left")
    hour = (pl.col("timestamp_ms") // HOUR_MS % 24).alias("hour")
    rows = rows.with_columns(
        hour, pl.col("price").log().mul(2.0).floor().cast(pl.Int64).alias("price_band")
    )
    counts = (
        *_past(rows, ["user_id"]),
        *_past(rows, ["ad_id"]),
        _past(rows, ["campaign_id"])[1],
        *_past(rows, ["user_id", "category"]),
    )
    integers = [
        *map(pl.lit, map(pl.Series, counts)),
        pl.col("history").list.len(),
        pl.col("spending").replace_strict(SPENDING, range(1, len(SPENDING) + 1), default=None),
        pl.col("price").round(),
        pl.col("bid_micros") // 1000,
        (pl.col("timestamp_ms") - pl.col("start_ms")) // DAY_MS,
        pl.col("hour"),
    ]
    numbers = rows.select(
        pl.col("click").alias("label"),
        *(e.cast(pl.Int64).alias(f"I{i}") for i, e in enumerate(integers, 1)),
    )
    keys = [*((name,) for name in _CRITEO_PLAIN), *_CROSSES, ("spending",), ("price_band",)]
    return numbers.with_columns(_hashed(rows, key, f"C{i}") for i, key in enumerate(keys, 1))


def _favourite_topics(world: World) -> pl.DataFrame:
    """The most frequent topic of each user's history; on a tie the first by name."""
    items = world.users.select("user_id", pl.col("history").alias("ad_id")).explode("ad_id")
    counts = (
        items.drop_nulls()
        .join(world.ads.select("ad_id", "topic"), on="ad_id")
        .group_by("user_id", "topic")
        .len()
        .sort("user_id", "len", "topic", descending=[False, True, False])
    )
    return counts.group_by("user_id", maintain_order=True).agg(
        pl.col("topic").first().alias("favourite")
    )


def _past(rows: pl.DataFrame, keys: list[str]) -> tuple[Ints, Ints]:
    """Impressions and clicks with the same keys in earlier requests, for rows in time order."""
    key_B = rows.select(pl.struct(keys).rank("dense")).to_series().to_numpy()
    order = np.argsort(key_B, kind="stable")
    key, request = key_B[order], rows["request_id"].to_numpy()[order]
    index = np.arange(len(order))
    new_key = np.append(True, key[1:] != key[:-1])
    # What a request adds is not in its own past: count up to where its run of rows begins.
    new_run = new_key | np.append(True, request[1:] != request[:-1])
    run_start = np.maximum.accumulate(np.where(new_run, index, 0))
    key_start = np.maximum.accumulate(np.where(new_key, index, 0))
    clicks = np.concatenate([[0], np.cumsum(rows["click"].to_numpy()[order], dtype=np.int64)])
    past = np.empty((2, len(order)), dtype=np.int64)
    past[:, order] = run_start - key_start, clicks[run_start] - clicks[key_start]
    return past[0], past[1]


def _hashed(rows: pl.DataFrame, key: tuple[str, ...], name: str) -> pl.Series:
    """A categorical column or a cross as 8 hexadecimal digits; null where a part is null."""
    missing = rows.select(pl.any_horizontal(pl.col(c).is_null() for c in key)).to_series()
    codes = np.full(rows.height, int(name[1:]), dtype=np.uint64)
    for column in key:
        series = rows[column]
        if series.dtype == pl.String:
            series = series.cast(pl.Enum(series.unique().drop_nulls().sort())).to_physical()
        part = series.fill_null(0).to_numpy().astype(np.uint64)
        codes = stable_hash(codes * np.uint64(1_000_003) + part, salt=2)
    digits = (codes >> np.uint64(32)).astype(">u4").tobytes().hex().encode()
    offsets = np.arange(rows.height + 1, dtype=np.int64) * 8
    array = pa.LargeStringArray.from_buffers(
        rows.height, pa.py_buffer(offsets), pa.py_buffer(digits)
    )
    series = pl.Series(pl.from_arrow(array))
    return pl.select(pl.when(~missing).then(series)).to_series().alias(name)
