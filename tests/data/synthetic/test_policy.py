"""The logging policy: only eligible ads are shown, with the propensities that it states."""

import numpy as np
import polars as pl
import pytest

from adrec.data.synthetic import World
from adrec.data.synthetic.config import DAY_MS, HOUR_MS
from adrec.data.synthetic.drawing import Ints
from adrec.data.synthetic.policy import LoggingPolicy
from adrec.errors import ConfigError
from data.synthetic.statistics import MAX_Z

REACHES = {
    "all": ("mobile", "desktop", "tablet"),
    "mobile": ("mobile",),
    "desktop": ("desktop",),
}


def replayed_eligibility(world: World, rows: pl.DataFrame) -> list[tuple[pl.DataFrame, Ints]]:
    """(rows, is each ad eligible but for its target) of every hour, replayed from the tables."""
    ads, hours = world.ads, []
    campaign = ads["campaign_id"].to_numpy()
    budget = ads["daily_budget_micros"].to_numpy()
    spend = np.zeros((world.config.days, world.config.n_campaigns), dtype=np.int64)
    by_hour = rows.with_columns(tick=pl.col("timestamp_ms") // HOUR_MS)
    for part in by_hour.partition_by("tick", maintain_order=True):
        time_ms = part["timestamp_ms"][0]
        spend_today = spend[(time_ms - world.config.start_ms) // DAY_MS]
        running = ((ads["start_ms"] <= time_ms) & (time_ms < ads["end_ms"])).to_numpy()
        hours.append((part, running & (spend_today[campaign] < budget)))
        clicked = part.filter(pl.col("click") == 1)
        np.add.at(spend_today, clicked["campaign_id"].to_numpy(), clicked["bid_micros"].to_numpy())
    return hours


def test_only_running_ads_with_budget_are_shown(world: World, rows: pl.DataFrame) -> None:
    hours = replayed_eligibility(world, rows)
    for part, eligible_N in hours:
        assert eligible_N[part["ad_id"].to_numpy()].all()
    running = rows["timestamp_ms"].is_between(rows["start_ms"], rows["end_ms"], closed="left")
    assert running.all()
    spent_up = rows.group_by("campaign_id", pl.col("timestamp_ms") // DAY_MS).agg(
        over=(pl.col("click") * pl.col("bid_micros")).sum() >= pl.col("daily_budget_micros").first()
    )
    assert spent_up["over"].sum() > 20, "no campaign ran out: the test would be empty"


def test_targeting_is_respected(rows: pl.DataFrame) -> None:
    pairs = rows.unique(["target_device", "device"]).select("target_device", "device").rows()
    assert sorted(pairs) == sorted((t, d) for t, reached in REACHES.items() for d in reached)


def test_inverse_propensities_count_the_eligible_ads(world: World, rows: pl.DataFrame) -> None:
    """E[1 / propensity] = the number of ads that could have been shown, with their device's."""
    target = world.ads["target_device"]
    counts, weights = [], []
    for part, eligible_N in replayed_eligibility(world, rows):
        for group in part.partition_by("device"):
            reached = [t for t, devices in REACHES.items() if group["device"][0] in devices]
            n_eligible = (target.is_in(reached).to_numpy() & eligible_N).sum()
            weights.append(1.0 / group["propensity"].to_numpy() - n_eligible)
            counts.append(n_eligible)
    error = np.concatenate(weights)
    assert 100 < np.mean(counts) < 400
    assert abs(error.mean()) < MAX_Z * error.std() / np.sqrt(len(error))


def small_policy(rng: np.random.Generator) -> LoggingPolicy:
    return LoggingPolicy(
        preference_RC=np.array([[0.7, 0.3, 0.0], [0.1, 0.2, 0.7]]),
        category_N=rng.integers(3, size=60),
        target_N=rng.integers(3, size=60),
        weight_N=rng.uniform(0.5, 2.0, 60),
        slate_size=2,
        exploration=0.2,
    )


@pytest.mark.parametrize("segment", [0, 1])
@pytest.mark.parametrize("device", [0, 1, 2])
def test_propensities_sum_to_one_and_match_what_is_drawn(segment: int, device: int) -> None:
    rng = np.random.default_rng(7)
    policy = small_policy(rng)
    eligible_N = rng.random(60) < 0.7
    policy.refresh(eligible_N)
    ads = np.arange(60)
    p_N = policy.propensity(np.full(60, segment), np.full(60, device), ads)
    assert p_N.sum() == pytest.approx(1.0)
    assert (p_N[~eligible_N] == 0.0).all()

    n_slates = 40_000
    drawn_QS = policy.draw(np.full(n_slates, segment), np.full(n_slates, device), rng)
    assert (drawn_QS[:, 0] != drawn_QS[:, 1]).all()
    for position in range(2):
        count_N = np.bincount(drawn_QS[:, position], minlength=60)
        assert (count_N[p_N == 0.0] == 0).all()
        spread_N = np.sqrt(n_slates * p_N * (1.0 - p_N))
        z_N = (count_N - n_slates * p_N)[p_N > 0.0] / spread_N[p_N > 0.0]
        assert np.abs(z_N).max() < MAX_Z
        # χ² / cells has mean 1 and, with 20 cells or more, a standard deviation below 0.32.
        assert (z_N**2).mean() < 1.0 + MAX_Z * 0.32


def test_a_position_without_any_ad_is_refused() -> None:
    policy = small_policy(np.random.default_rng(7))
    with pytest.raises(ConfigError, match="no ad is left"):
        policy.refresh(np.zeros(60, dtype=bool))
