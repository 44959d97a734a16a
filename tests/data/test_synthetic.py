"""The synthetic world: its log obeys its own rules and its forecasts are what they say they are."""

import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from adrec.data.synthetic import (
    DAY_MS,
    HOUR_MS,
    PRESETS,
    LoggingPolicy,
    World,
    WorldConfig,
    criteo_table,
    generate,
    write_world,
)
from adrec.data.synthetic_oracle import Floats, IdealObserver, Ints, Laws, Rows, sigmoid
from adrec.errors import ConfigError

REACHES = {
    "all": ("mobile", "desktop", "tablet"),
    "mobile": ("mobile",),
    "desktop": ("desktop",),
}
# A fair statistic exceeds 4 standard errors once in 16,000 seeds; the seeds here are fixed.
MAX_Z = 4.0


@pytest.fixture(scope="module")
def world() -> World:
    return generate(PRESETS["tiny"], seed=0)


@pytest.fixture(scope="module")
def rows(world: World) -> pl.DataFrame:
    """Impressions with their truth and their ads' columns."""
    return world.impressions.hstack(world.truth.drop("request_id", "position")).join(
        world.ads, on="ad_id", how="left", maintain_order="left"
    )


def last_day_ms(world: World) -> int:
    return world.config.start_ms + (world.config.days - 1) * DAY_MS


# --- the tables -------------------------------------------------------------------------------


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
    assert 0.05 < log["click"].mean() < 0.12  # type: ignore[operator]
    # About 600 clicks: a share of 0.3 has a standard error of 0.019.
    assert 0.22 < log["engagement"].sum() / log["click"].sum() < 0.38


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


@pytest.mark.parametrize("preset", ["demo", "standard"])
def test_large_presets_have_the_promised_sizes(preset: str) -> None:
    config = PRESETS[preset]
    impressions = config.n_requests * config.slate_size
    assert config.n_ads >= 20_000
    assert impressions == {"demo": 200_000, "standard": 1_000_000}[preset]


# --- the logging policy -----------------------------------------------------------------------


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


# --- truth and the ideal observer -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["true", "best"])
@pytest.mark.parametrize("label", ["click", "engagement"])
def test_forecasts_are_calibrated(rows: pl.DataFrame, kind: str, label: str) -> None:
    """In fifths of the forecast, outcomes deviate by less than 4 binomial standard errors."""
    p = rows[f"p_{label}_{kind}"].cast(pl.Float64).to_numpy()
    y = rows[label].to_numpy()
    order = np.argsort(p)
    for fifth in np.array_split(order, 5):
        spread = np.sqrt((p[fifth] * (1.0 - p[fifth])).sum())
        assert abs(y[fifth].sum() - p[fifth].sum()) < MAX_Z * spread


@pytest.mark.parametrize("kind", ["true", "best"])
def test_expected_revenue_is_unbiased(rows: pl.DataFrame, kind: str) -> None:
    error = rows["revenue_micros"].to_numpy() - rows[f"revenue_{kind}_micros"].to_numpy()
    assert abs(error.mean()) < MAX_Z * error.std() / np.sqrt(len(error))


@pytest.mark.parametrize("seed", [0, 1])
def test_knowing_more_ranks_better_and_popularity_explains_less_than_half(seed: int) -> None:
    """On the last day. 1,700 rows, 100 clicks: a difference of AUCs is good to about 0.02."""
    world = generate(PRESETS["tiny"], seed)
    rows = world.impressions.hstack(world.truth.select("p_click_true", "p_click_best"))
    is_last = pl.col("timestamp_ms") >= last_day_ms(world)
    shown = rows.filter(~is_last).group_by("ad_id").agg(n=pl.len(), clicks=pl.col("click").sum())
    popularity = (pl.col("clicks").fill_null(0) + 0.7) / (pl.col("n").fill_null(0) + 10)
    last = rows.filter(is_last).join(shown, on="ad_id", how="left").with_columns(p=popularity)
    true, best, popular = (
        roc_auc_score(last["click"], last[column])
        for column in ("p_click_true", "p_click_best", "p")
    )
    assert true > best - 0.02
    assert popular - 0.5 < 0.5 * (best - 0.5)


def small_laws(rng: np.random.Generator) -> Laws:
    """Three tastes, four topics, two qualities, two positions, one segment."""
    history_KT = rng.dirichlet(np.ones(4), 3)
    return Laws(
        click_affinity_KT=rng.normal(size=(3, 4)),
        engagement_affinity_KT=rng.normal(size=(3, 4)),
        history_KT=history_KT,
        quality_G=np.array([-1.0, 1.0]),
        quality_prior_G=np.array([0.4, 0.6]),
        engagement_slope=0.5,
        examination_S=np.array([1.0, 0.6]),
        prior_RK=np.array([[0.5, 0.3, 0.2]]),
        jump=0.1,
    )


def small_slate(user: int) -> Rows:
    """One slate: ads 0 and 1, of topics 0 and 2."""
    return Rows(
        user_B=np.full(2, user),
        ad_B=np.array([0, 1]),
        topic_B=np.array([0, 2]),
        position_B=np.array([0, 1]),
        click_offset_B=np.array([-0.5, 0.3]),
        engagement_offset_B=np.array([0.1, -0.2]),
        value_B=np.array([1e6, 2e6]),
    )


def joint_likelihood(laws: Laws, rows: Rows, outcomes: list[tuple[int, int]]) -> Floats:
    """P(outcomes | taste, quality of ad 0, quality of ad 1) [K, G, G], by enumeration."""
    result = np.ones((3, 2, 2))
    for k, *qualities in itertools.product(range(3), range(2), range(2)):
        for b, (clicked, engaged) in enumerate(outcomes):
            q, topic = laws.quality_G[qualities[b]], rows.topic_B[b]
            click = laws.examination_S[rows.position_B[b]] * sigmoid(
                rows.click_offset_B[b] + laws.click_affinity_KT[k, topic] + q
            )
            engagement = sigmoid(
                rows.engagement_offset_B[b] + laws.engagement_affinity_KT[k, topic] + 0.5 * q
            )
            after = engagement if engaged else 1.0 - engagement
            result[k, *qualities] *= click * after if clicked else 1.0 - click
    return result


def prior_joint(laws: Laws) -> Floats:
    """P(taste, quality of ad 0, quality of ad 1) [K, G, G]."""
    q_G = laws.quality_prior_G
    return np.einsum("k,g,h->kgh", laws.prior_RK[0], q_G, q_G)


def test_the_observer_agrees_with_enumeration() -> None:
    """One slate is a tree, so its beliefs are exact: users' and, for another user, the ads'."""
    laws = small_laws(np.random.default_rng(3))
    observer = IdealObserver(laws, np.array([0, 0]), n_ads=2)
    seen, outcomes = small_slate(user=0), [(1, 1), (0, 0)]
    forecast = observer.observe(seen, np.array([1, 0]), np.array([1, 0]))
    prior_KGG = prior_joint(laws)
    p_click = (prior_KGG * joint_likelihood(laws, seen, [(1, 0)])).sum()
    p_both = (prior_KGG * joint_likelihood(laws, seen, [(1, 1)])).sum()
    assert forecast.click_B[0] == pytest.approx(p_click + p_both, rel=1e-5)
    assert forecast.engagement_B[0] == pytest.approx(p_both, rel=1e-5)
    assert forecast.revenue_B[0] == pytest.approx(1e6 * p_both, rel=1e-5)

    posterior_KGG = prior_KGG * joint_likelihood(laws, seen, outcomes)
    posterior_KGG /= posterior_KGG.sum()
    np.testing.assert_allclose(observer.taste_UK[0], posterior_KGG.sum(axis=(1, 2)), rtol=1e-4)
    np.testing.assert_allclose(observer.taste_UK[1], laws.prior_RK[0], rtol=1e-5)
    # A second user's forecast for ad 0 rests on the quality that the first one's click taught.
    quality_G = posterior_KGG.sum(axis=(0, 2))
    belief_KGG = np.einsum("k,g,h->kgh", laws.prior_RK[0], quality_G, laws.quality_prior_G)
    click = sum(
        (belief_KGG * joint_likelihood(laws, seen, [(1, engaged)])).sum() for engaged in (0, 1)
    )
    assert observer.predict(small_slate(user=1)).click_B[0] == pytest.approx(click, rel=1e-4)


def test_the_observer_reads_histories_by_the_forward_algorithm() -> None:
    """Two items, 3 days apart, 2 days before the log, by hand; a short history is left alone."""
    laws = small_laws(np.random.default_rng(3))
    observer = IdealObserver(laws, np.array([0, 0]), n_ads=2)
    topics, days = np.array([[1, 3], [2, 2]]), np.array([[-5, -2], [0, 0]])
    observer.read_histories(topics, days, np.array([2, 0]), first_day=-7)
    prior_K = laws.prior_RK[0]

    def drift(belief_K: Floats, n_days: int) -> Floats:
        for _ in range(n_days):
            belief_K = 0.9 * belief_K + 0.1 * prior_K
        return belief_K

    belief_K = prior_K * laws.history_KT[:, 1]
    belief_K = drift(belief_K / belief_K.sum(), 3) * laws.history_KT[:, 3]
    belief_K = drift(belief_K / belief_K.sum(), 2)
    np.testing.assert_allclose(observer.taste_UK, [belief_K, prior_K], rtol=1e-5)


# --- settings and files -----------------------------------------------------------------------


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
        WorldConfig(**tiny, n_users_total=5)
    with pytest.raises(ValidationError, match="frozen"):
        PRESETS["tiny"].n_users = 5  # type: ignore[misc]


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
