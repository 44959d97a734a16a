"""A world's tables keep their promises and the seed alone decides."""

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pydantic import ValidationError

from adrec.data.synthetic import PRESETS, World, WorldConfig, generate
from adrec.data.synthetic.config import DAY_MS, HOUR_MS
from adrec.errors import ConfigError
from data.synthetic.statistics import last_day_ms


def test_tables_have_the_promised_columns_and_no_outcome_leaks_into_them(world: World) -> None:
    assert world.impressions.columns == [
        "request_id", "user_id", "ad_id", "timestamp_ms", "position", "propensity", "device",
        "place", "hour", "click", "engagement", "revenue_micros",
    ]  # fmt: skip
    assert world.users.columns == [
        "user_id", "segment", "age", "gender", "region", "spending", "history", "history_times_ms",
    ]  # fmt: skip
    assert world.ads.columns == [
        "ad_id", "campaign_id", "advertiser_id", "category", "topic", "format", "price",
        "bid_micros", "daily_budget_micros", "target_device", "start_ms", "end_ms", "content",
    ]  # fmt: skip
    assert world.truth.columns == [
        "request_id", "position", "p_click_true", "p_engagement_true", "revenue_true_micros",
        "p_click_best", "p_engagement_best", "revenue_best_micros",
    ]  # fmt: skip
    assert world.ads["content"].dtype == pl.List(pl.Float32)
    assert world.users["history"].dtype == pl.List(pl.Int64)
    assert world.impressions.null_count().sum_horizontal().item() == 0


def test_rows_are_in_order_of_time_request_and_position(world: World) -> None:
    log, config = world.impressions, world.config
    assert log.height == config.n_requests * config.slate_size
    assert_frame_equal(log, log.sort("timestamp_ms", "request_id", "position"))
    assert_frame_equal(
        log.select("request_id", "position"), world.truth.select("request_id", "position")
    )
    slates = log.group_by("request_id").agg(
        pl.col("timestamp_ms", "user_id", "device", "place").n_unique(),
        pl.col("ad_id").n_unique().alias("ads"),
        pl.col("position").sort(),
    )
    assert (slates.select("timestamp_ms", "user_id", "device", "place") == 1).to_numpy().all()
    assert (slates["ads"] == config.slate_size).all()
    assert slates["position"].to_list() == [[1, 2, 3, 4]] * config.n_requests
    times = log.unique("request_id")["timestamp_ms"]
    assert times.n_unique() == config.n_requests, "two requests at the same millisecond"
    assert times.is_between(config.start_ms, last_day_ms(world) + DAY_MS, closed="left").all()


def test_a_user_makes_at_most_one_request_an_hour(world: World) -> None:
    requests = world.impressions.unique("request_id").select(
        "user_id", pl.col("timestamp_ms") // HOUR_MS
    )
    assert requests.is_unique().all()


def test_outcomes_are_consistent(world: World) -> None:
    log = world.impressions
    assert log["click"].is_in([0, 1]).all()
    assert (log["engagement"] <= log["click"]).all()
    assert ((log["revenue_micros"] > 0) == (log["engagement"] == 1)).all()
    assert 0.05 < log["click"].to_numpy().mean() < 0.12
    # About 600 clicks: a share of 0.3 has a standard error of 0.019.
    assert 0.22 < log.filter(pl.col("click") == 1)["engagement"].to_numpy().mean() < 0.38


def test_histories_lie_before_the_log_and_name_ads_that_ran(world: World) -> None:
    items = world.users.explode("history", "history_times_ms").drop_nulls("history")
    ads = items.join(world.ads, left_on="history", right_on="ad_id", how="left")
    start_ms, config = world.config.start_ms, world.config
    assert (ads["start_ms"] < start_ms).all()
    age_ms = start_ms - items["history_times_ms"]
    assert age_ms.is_between(1, config.history_days * DAY_MS).all()
    assert all(times == sorted(times) for times in world.users["history_times_ms"].to_list())
    lengths = world.users["history"].list.len()
    assert lengths.max() == config.history_max
    assert lengths.min() == 0


def test_one_in_ten_users_and_ads_is_new_on_the_last_day(world: World) -> None:
    before = world.impressions.filter(pl.col("timestamp_ms") < last_day_ms(world))
    assert world.impressions["user_id"].n_unique() == world.config.n_users
    assert before["user_id"].n_unique() == 0.9 * world.config.n_users
    new_ads = world.ads.filter(pl.col("start_ms") == last_day_ms(world))["ad_id"]
    # Whole campaigns, of 6.7 ads on average: the share falls short of 10 % by less than one.
    assert 0.07 < len(new_ads) / world.config.n_ads <= 0.10
    assert not before["ad_id"].is_in(new_ads.implode()).any()


def test_the_seed_alone_decides(world: World) -> None:
    same, other = generate(world.config, seed=0), generate(world.config, seed=1)
    for name in ("impressions", "users", "ads", "truth"):
        assert_frame_equal(getattr(world, name), getattr(same, name))
        assert not getattr(world, name).equals(getattr(other, name))


@pytest.mark.parametrize("preset", ["demo", "standard", "clear", "published"])
def test_large_presets_have_the_promised_sizes(preset: str) -> None:
    config = PRESETS[preset]
    impressions = config.n_requests * config.slate_size
    assert config.n_ads >= 20_000
    assert impressions == (200_000 if preset == "demo" else 1_000_000)


def test_a_config_that_cannot_work_is_refused() -> None:
    tiny = PRESETS["tiny"].model_dump()
    with pytest.raises(ConfigError, match="n_requests=499 is below n_users=500"):
        WorldConfig(**{**tiny, "n_requests": 499})
    with pytest.raises(ConfigError, match="n_topics=15"):
        WorldConfig(**{**tiny, "n_topics": 15})
    with pytest.raises(ConfigError, match="n_ads=100 must be at least"):
        WorldConfig(**{**tiny, "n_ads": 100, "n_campaigns": 101})
    with pytest.raises(ConfigError, match="history_max=10"):
        WorldConfig(**{**tiny, "history_max": 10})
    with pytest.raises(ValidationError, match="Extra inputs"):
        WorldConfig(**{**tiny, "n_users_total": 5})
    with pytest.raises(ValidationError, match="frozen"):
        PRESETS["tiny"].n_users = 5
