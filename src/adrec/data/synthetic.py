"""A synthetic advertising world: users, ads and an impression log whose probabilities are known.

A user has one hidden taste at a time; it shows in the history and drifts. An ad has a hidden
quality. A logging policy that sees neither fills slates with known propensities, campaigns run out
of budget, users click, engage and spend. Beside the log stands `truth`: for each impression the
true probabilities and the best forecast that the observables allow (`synthetic_oracle`).

Sizes, and AUC on the last day, seed 0 (best: the ideal observer; popularity: the ad's mean click
rate before the last day):

MEASURED_TABLE

Shapes: U users, N ads, K tastes, T topics, C categories, R segments, M campaigns, V advertisers,
A ages, F formats, P places, D devices, L targets, S slate positions, Q requests, B impressions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from adrec.data.synthetic_oracle import (
    Floats,
    Forecast,
    IdealObserver,
    Ints,
    Laws,
    Rows,
    true_forecast,
)
from adrec.errors import ConfigError

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
AGES = ("18-24", "25-34", "35-44", "45-54", "55+")
GENDERS = ("female", "male", "other")
SPENDING = ("low", "medium", "high")
DEVICES = ("mobile", "desktop", "tablet")
TARGETS = ("all", "mobile", "desktop")
FORMATS = ("banner", "native", "video", "carousel", "text")
PLACES = ("feed", "article", "search", "sidebar", "home")

_REACHES_DL = np.array([[True, True, False], [True, False, True], [True, False, False]])
"""Which targets reach which device: a tablet sees only campaigns that target all devices."""

_DEVICE_SHARE = (0.62, 0.28, 0.10)
_TARGET_SHARE = (0.70, 0.18, 0.12)
_SPENDING_FACTOR = np.array([0.6, 1.0, 1.7, 1.0])
"""Revenue by spending power; the last is for users whose spending power is unknown."""


class WorldConfig(BaseModel):
    """What a world is made of. Every random number in it comes from one seed beside this."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Sizes
    n_users: int = Field(ge=10)
    """Users, each with at least one request."""
    n_ads: int = Field(ge=100)
    """Ads in the catalogue, all days together."""
    n_requests: int = Field(ge=100)
    """Requests; each shows one slate, so the log has `n_requests * slate_size` impressions."""
    days: int = Field(ge=2, le=365)
    """Days of the log, UTC. The last one is meant as the test period."""
    slate_size: int = Field(default=8, ge=1, le=32)
    """Ads in a slate."""
    start_ms: int = Field(default=1_767_571_200_000, ge=0, multiple_of=DAY_MS)
    """Midnight UTC of the first day, in milliseconds (2026-01-05)."""
    n_segments: int = Field(default=16, ge=1)
    """Observable groups of users with a taste prior of their own."""
    n_tastes: int = Field(default=32, ge=2)
    """Hidden tastes."""
    n_categories: int = Field(default=24, ge=1)
    """Categories of ads."""
    n_topics: int = Field(default=160, ge=4)
    """Topics, each in one category; a taste is strong in `n_topics // n_tastes` of them."""
    n_advertisers: int = Field(default=400, ge=1)
    """Advertisers; the i-th largest has a share of campaigns ∝ 1 / i."""
    n_campaigns: int = Field(default=1500, ge=10)
    """Campaigns, each of one advertiser and in one category."""
    n_regions: int = Field(default=12, ge=1)
    """Regions of users."""
    content_dim: int = Field(default=16, ge=1, le=1024)
    """Length of an ad's content vector."""

    # Users and their past
    new_user_share: float = Field(default=0.10, ge=0.0, le=0.5)
    """Share of users whose first request is on the last day."""
    new_ad_share: float = Field(default=0.10, ge=0.0, le=0.5)
    """Share of ads, by whole campaigns, that start on the last day."""
    missing_share: float = Field(default=0.10, ge=0.0, le=0.9)
    """Share of users without spending power and of ads without a price. The effect of what is
    missing is the average one, so nothing hidden is behind it."""
    activity_spread: float = Field(default=0.8, ge=0.0, le=2.0)
    """Standard deviation of log requests a user."""
    history_min: int = Field(default=20, ge=0)
    """Fewest past ads of a user who is not new."""
    history_max: int = Field(default=50, ge=1)
    """Most past ads of a user who is not new."""
    new_history_max: int = Field(default=3, ge=0)
    """Most past ads of a new user; the fewest is 0."""
    history_days: int = Field(default=28, ge=1)
    """Days before the log over which the history lies."""
    history_sharpness: float = Field(default=1.0, ge=0.0, le=3.0)
    """β of P(topic of a past ad | taste) ∝ exp(β · click affinity)."""
    segment_focus: float = Field(default=0.9, ge=0.0, le=1.0)
    """Prior probability of a segment's main tastes, in total; all tastes share the rest."""
    taste_jump: float = Field(default=0.02, ge=0.0, le=1.0)
    """Probability a day that a user's taste is drawn anew from the segment's prior."""

    # The logging policy and the market
    exploration: float = Field(default=0.06, gt=0.0, le=1.0)
    """Share of draws with a uniform stratum instead of the segment's preferred categories."""
    ad_weight_spread: float = Field(default=0.8, ge=0.0, le=2.0)
    """Standard deviation of an ad's log weight within its stratum (popularity)."""
    bid_micros: int = Field(default=500_000, ge=1000)
    """Median bid for a click, in millionths of a USD."""
    budget_ratio: float = Field(default=3.0, gt=0.0)
    """Median daily budget of a campaign, as a multiple of what it would spend on average."""

    # Clicks, in logits
    click_base: float = Field(default=-4.9, ge=-10.0, le=5.0)
    """Logit of a click on an ad of no interest at the first position."""
    strong_affinity: float = Field(default=3.9, ge=0.0, le=10.0)
    """Mean affinity of a taste to its strong topics."""
    weak_affinity_sd: float = Field(default=0.2, ge=0.0, le=3.0)
    """Standard deviation of affinities, strong and weak."""
    advertiser_sd: float = Field(default=0.15, ge=0.0, le=3.0)
    """Standard deviation of advertisers' effects."""
    quality_sd: float = Field(default=0.3, ge=0.0, le=3.0)
    """Standard deviation of an ad's hidden quality, around its advertiser's effect."""
    quality_grid: int = Field(default=7, ge=1, le=15)
    """Values of quality: a normal density on an even grid from -2.5 to 2.5 deviations."""
    context_sd: float = Field(default=0.12, ge=0.0, le=3.0)
    """Standard deviation of the effects of device by format, age by category and place, and
    amplitude of hour by category."""
    position_decay: float = Field(default=0.2, ge=0.0, le=3.0)
    """η of examination(position) = position^(-η)."""

    # Engagement and revenue
    engagement_base: float = Field(default=-1.0, ge=-10.0, le=10.0)
    """Logit of an engagement after a click."""
    engagement_affinity_sd: float = Field(default=0.7, ge=0.0, le=3.0)
    """Standard deviation of the engagement's own affinities."""
    engagement_slope: float = Field(default=0.5, ge=0.0, le=2.0)
    """Effect of an ad's quality on engagement, in logits a logit."""
    price_slope: float = Field(default=-0.3, ge=-3.0, le=3.0)
    """Effect on engagement of a deviation of log price within the category, in logits."""
    revenue_micros: int = Field(default=20_000_000, ge=1)
    """Mean revenue of an engagement with average price, category and spending power, in millionths
    of a USD."""
    revenue_spread: float = Field(default=0.6, ge=0.0, le=2.0)
    """Standard deviation of the log-normal revenue around its mean."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.n_requests < self.n_users:
            raise ConfigError(
                f"n_requests={self.n_requests} is below n_users={self.n_users}: "
                "every user makes a request; raise n_requests"
            )
        if self.n_topics < max(2 * self.n_tastes, self.n_categories):
            raise ConfigError(
                f"n_topics={self.n_topics} must be at least 2 * n_tastes="
                f"{2 * self.n_tastes} and n_categories={self.n_categories}"
            )
        if self.n_ads < max(self.n_campaigns, self.n_topics):
            raise ConfigError(
                f"n_ads={self.n_ads} must be at least n_campaigns="
                f"{self.n_campaigns} and n_topics={self.n_topics}"
            )
        if self.history_max < self.history_min:
            raise ConfigError(
                f"history_max={self.history_max} is below history_min={self.history_min}"
            )
        return self


PRESETS: Mapping[str, WorldConfig] = MappingProxyType(
    {
        "tiny": WorldConfig(
            n_users=500, n_ads=400, n_requests=2000, days=4, slate_size=4, n_segments=4,
            n_tastes=8, n_categories=6, n_topics=40, n_advertisers=20, n_campaigns=60,
        ),
        "demo": WorldConfig(n_users=8000, n_ads=20_000, n_requests=25_000, days=8),
        "standard": WorldConfig(n_users=20_000, n_ads=20_000, n_requests=125_000, days=10),
    }
)  # fmt: skip
"""`tiny` for unit tests, `demo` for a first run, `standard` for measurements."""


@dataclass(frozen=True, kw_only=True)
class World:
    """A generated log. Rows of `impressions` and `truth` correspond.

    impressions: request_id, user_id, ad_id, timestamp_ms, position (from 1), propensity, device,
        place, hour (UTC), click, engagement, revenue_micros; by time, request and position.
    users: user_id, segment, age, gender, region, spending, history (ad ids, oldest first),
        history_times_ms.
    ads: ad_id, campaign_id, advertiser_id, category, topic, format, price (USD), bid_micros,
        daily_budget_micros, target_device, start_ms, end_ms, content.
    truth: request_id, position, then p_click, p_engagement (of click and engagement) and the
        expected revenue, each as it truly was (`p_click_true`, `p_engagement_true`,
        `revenue_true_micros`) and as the ideal observer knew it (`_best` instead of `_true`).
    """

    config: WorldConfig
    impressions: pl.DataFrame
    users: pl.DataFrame
    ads: pl.DataFrame
    truth: pl.DataFrame


def generate(config: WorldConfig, seed: int) -> World:
    """Generate a world and its log.

    Args:
        config: What the world is made of.
        seed: The only source of randomness; the same seed and config give the same tables.

    Raises:
        ConfigError: The budgets or the catalogue are so small that a slate cannot be filled.
    """
    rng = np.random.default_rng(seed)
    laws, category_T, strong_KT = _draw_laws(config, rng)
    effects = _Effects.draw(config, rng)
    ads = _Ads.draw(config, laws, category_T, effects, rng)
    laws = replace(laws, history_KT=_history_topics(config, laws, ads))
    users = _Users.draw(config, laws, rng)
    history = _History.draw(config, laws, ads, users, rng)
    requests = _Requests.draw(config, users, rng)
    policy = LoggingPolicy(
        preference_RC=_preference(laws, category_T, strong_KT, config.n_categories),
        category_N=ads.category_N,
        target_N=ads.target_N,
        weight_N=ads.weight_N,
        slate_size=config.slate_size,
        exploration=config.exploration,
    )
    observer = IdealObserver(laws, users.segment_U, config.n_ads)
    history.show(observer, config, ads)
    market = _Market(
        config=config, laws=laws, effects=effects, ads=ads, users=users, requests=requests
    )
    log = _simulate(market, policy, observer, rng)
    return World(
        config=config,
        impressions=log.impressions(config, requests),
        users=users.table(config, history),
        ads=ads.table(config, rng),
        truth=log.truth(config),
    )


# --- the laws ---------------------------------------------------------------------------------


def _draw_laws(
    config: WorldConfig, rng: np.random.Generator
) -> tuple[Laws, Ints, npt.NDArray[np.bool_]]:
    """The response model (histories aside); categories of topics; strong topics of tastes."""
    K, T = config.n_tastes, config.n_topics
    strong_KT, category_T = _draw_topics(config, rng)
    affinity_KT = rng.normal(0.0, config.weak_affinity_sd, (K, T))
    affinity_KT += config.strong_affinity * strong_KT
    grid_G = np.linspace(-2.5, 2.5, config.quality_grid) if config.quality_grid > 1 else np.zeros(1)
    quality_prior_G = np.exp(-0.5 * grid_G**2)
    laws = Laws(
        click_affinity_KT=affinity_KT,
        engagement_affinity_KT=rng.normal(0.0, config.engagement_affinity_sd, (K, T)),
        history_KT=np.full((K, T), 1.0 / T),
        quality_G=config.quality_sd * grid_G,
        quality_prior_G=quality_prior_G / quality_prior_G.sum(),
        engagement_slope=config.engagement_slope,
        examination_S=np.arange(1, config.slate_size + 1) ** -config.position_decay,
        prior_RK=_segment_priors(config, rng),
        jump=config.taste_jump,
    )
    return laws, category_T, strong_KT


def _draw_topics(
    config: WorldConfig, rng: np.random.Generator
) -> tuple[npt.NDArray[np.bool_], Ints]:
    """Strong topics of each taste [K, T] and the category of each topic [T], ascending.

    A topic is strong for one taste at most: none is popular with everyone, so popularity explains
    little. The near half of a taste's topics lies in the home category of its segment, the far half
    in another one: the segment tells where to look, and only the history tells what for.
    """
    K, T, C = config.n_tastes, config.n_topics, config.n_categories
    near = -(-(T // K) // 2)
    far = T // K - near
    home_K = np.arange(K) % config.n_segments % C
    size_C = near * np.bincount(home_K, minlength=C).astype(np.float64)
    far_K = np.empty(K, dtype=np.int64)
    for taste in rng.permutation(K):
        elsewhere = size_C + rng.random(C) + T * (np.arange(C) == home_K[taste])
        far_K[taste] = elsewhere.argmin()
        size_C[far_K[taste]] += far
    category_KX = np.column_stack([np.tile(home_K, (near, 1)).T, np.tile(far_K, (far, 1)).T])
    rest = rng.integers(C, size=T - category_KX.size)
    category_T = np.concatenate([category_KX.ravel(), rest])
    strong_KT = np.zeros((K, T), dtype=bool)
    strong_KT[np.repeat(np.arange(K), near + far), np.arange(category_KX.size)] = True
    order = rng.permutation(T)
    order = order[np.argsort(category_T[order], kind="stable")]
    return strong_KT[:, order], category_T[order]


def _segment_priors(config: WorldConfig, rng: np.random.Generator) -> Floats:
    """P(taste | segment) [R, K]: main tastes, dealt out in turn, share `segment_focus`."""
    K, R = config.n_tastes, config.n_segments
    prior_RK = np.full((R, K), (1.0 - config.segment_focus) / K)
    for segment in range(R):
        main = np.arange(segment % K, K, R)
        prior_RK[segment, main] += config.segment_focus * rng.dirichlet(np.full(len(main), 20.0))
    return prior_RK


def _preference(
    laws: Laws, category_T: Ints, strong_KT: npt.NDArray[np.bool_], n_categories: int
) -> Floats:
    """The policy's preference of each segment over categories [R, C]; rows sum to one.

    ∝ Σ_taste P(taste | segment) · (strong topics in the category)³, what a policy that learns from
    clicks by segment would come to.
    """
    strong_KC = np.zeros((len(strong_KT), n_categories))
    np.add.at(strong_KC.T, category_T, strong_KT.T.astype(np.float64))
    wanted_RC = laws.prior_RK @ strong_KC**3
    preference_RC: Floats = wanted_RC / wanted_RC.sum(axis=1, keepdims=True)
    return preference_RC


@dataclass(frozen=True, kw_only=True)
class _Effects:
    """Effects of what is observable, in logits (revenue_C: a factor)."""

    device_format_DF: Floats
    hour_category_HC: Floats
    age_category_AC: Floats
    place_P: Floats
    advertiser_V: Floats
    advertiser_engagement_V: Floats
    revenue_C: Floats

    @classmethod
    def draw(cls, config: WorldConfig, rng: np.random.Generator) -> "_Effects":
        sd, C, V = config.context_sd, config.n_categories, config.n_advertisers
        phase_C = rng.uniform(0.0, 24.0, C)
        return cls(
            device_format_DF=rng.normal(0.0, sd, (len(DEVICES), len(FORMATS))),
            hour_category_HC=sd * np.cos((np.arange(24)[:, None] - phase_C) * (2 * np.pi / 24)),
            age_category_AC=rng.normal(0.0, sd, (len(AGES), C)),
            place_P=rng.normal(0.0, sd, len(PLACES)),
            advertiser_V=rng.normal(0.0, config.advertiser_sd, V),
            advertiser_engagement_V=rng.normal(0.0, config.advertiser_sd, V),
            revenue_C=np.exp(rng.normal(0.0, 0.4, C)),
        )


# --- ads and users ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Ads:
    """The catalogue as arrays; prices are NaN where missing, days count from the log's first."""

    campaign_N: Ints
    advertiser_N: Ints
    category_N: Ints
    topic_N: Ints
    format_N: Ints
    target_N: Ints
    weight_N: Floats
    price_N: Floats
    bid_micros_N: Ints
    budget_micros_M: Ints
    start_day_N: Ints
    end_day_N: Ints
    quality_N: Ints
    """Index into the quality grid: hidden."""
    click_offset_N: Floats
    engagement_offset_N: Floats
    value_N: Floats

    @classmethod
    def draw(
        cls,
        config: WorldConfig,
        laws: Laws,
        category_T: Ints,
        effects: _Effects,
        rng: np.random.Generator,
    ) -> "_Ads":
        N, M = config.n_ads, config.n_campaigns
        campaign_N = rng.permutation(np.concatenate([np.arange(M), rng.integers(M, size=N - M)]))
        share_V = 1.0 / np.arange(1, config.n_advertisers + 1)
        advertiser_M = rng.choice(config.n_advertisers, M, p=share_V / share_V.sum())
        # As many campaigns a topic in every category: no topic is rare.
        category_M = category_T[rng.permutation(np.arange(M) % config.n_topics)]
        start_M, end_M = _campaign_days(config, np.bincount(campaign_N), rng)
        bid_M = config.bid_micros * np.exp(rng.normal(0.0, 0.4, M))
        bid_N = bid_M[campaign_N] * np.exp(rng.normal(0.0, 0.1, N))
        category_N, advertiser_N = category_M[campaign_N], advertiser_M[campaign_N]
        price_C = np.exp(rng.normal(3.5, 0.8, config.n_categories))
        priced_N = rng.random(N) >= config.missing_share
        deviation_N = rng.normal(0.0, 1.0, N) * priced_N
        price_N = np.round(price_C[category_N] * np.exp(0.5 * deviation_N), 2)
        return cls(
            campaign_N=campaign_N,
            advertiser_N=advertiser_N,
            category_N=category_N,
            topic_N=_topics(category_N, category_T, rng),
            format_N=rng.integers(len(FORMATS), size=N),
            target_N=rng.choice(len(TARGETS), M, p=_TARGET_SHARE)[campaign_N],
            weight_N=np.exp(rng.normal(0.0, config.ad_weight_spread, N)),
            price_N=np.where(priced_N, price_N, np.nan),
            bid_micros_N=bid_N.astype(np.int64),
            budget_micros_M=_budgets(config, campaign_N, bid_M, rng),
            start_day_N=start_M[campaign_N],
            end_day_N=end_M[campaign_N],
            quality_N=rng.choice(config.quality_grid, N, p=laws.quality_prior_G),
            click_offset_N=config.click_base + effects.advertiser_V[advertiser_N],
            engagement_offset_N=config.engagement_base
            + effects.advertiser_engagement_V[advertiser_N]
            + config.price_slope * deviation_N,
            value_N=config.revenue_micros
            * effects.revenue_C[category_N]
            * np.exp(0.25 * deviation_N),
        )

    def table(self, config: WorldConfig, rng: np.random.Generator) -> pl.DataFrame:
        """The observable catalogue, with a content vector around each topic's."""
        topics_TE = rng.normal(size=(config.n_topics, config.content_dim))
        content_NE = topics_TE[self.topic_N] + rng.normal(
            0.0, 0.7, (config.n_ads, config.content_dim)
        )
        offsets = np.arange(config.n_ads + 1, dtype=np.int64) * config.content_dim
        return pl.DataFrame({
            "ad_id": np.arange(config.n_ads),
            "campaign_id": self.campaign_N,
            "advertiser_id": self.advertiser_N,
            "category": _names("category", config.n_categories).gather(self.category_N),
            "topic": _names("topic", config.n_topics).gather(self.topic_N),
            "format": pl.Series(FORMATS).gather(self.format_N),
            "price": pl.Series(self.price_N, nan_to_null=True),
            "bid_micros": self.bid_micros_N,
            "daily_budget_micros": self.budget_micros_M[self.campaign_N],
            "target_device": pl.Series(TARGETS).gather(self.target_N),
            "start_ms": config.start_ms + self.start_day_N * DAY_MS,
            "end_ms": config.start_ms + self.end_day_N * DAY_MS,
            "content": _lists(content_NE.astype(np.float32).ravel(), offsets),
        })  # fmt: skip


def _campaign_days(
    config: WorldConfig, n_ads_M: Ints, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """First day and day after the last of every campaign, in days from the log's first.

    Campaigns in random order, until `new_ad_share` of the ads is reached, start on the last day. Of
    the others one in seven starts within the log and one in eight ends within it.
    """
    M, last = len(n_ads_M), config.days - 1
    order = rng.permutation(M)
    new_M = np.empty(M, dtype=bool)
    new_M[order] = np.cumsum(n_ads_M[order]) <= config.new_ad_share * config.n_ads
    start_M = -rng.integers(1, 90, size=M)
    start_M = np.where(rng.random(M) < 1 / 7, rng.integers(0, last, size=M), start_M)
    end_M = config.days + rng.integers(0, 60, size=M)
    ends_early = (rng.random(M) < 1 / 8) & (start_M < last)
    end_M = np.where(ends_early, np.maximum(start_M, 0) + 1 + rng.integers(0, last, size=M), end_M)
    return np.where(new_M, last, start_M), np.where(new_M, config.days + 30, end_M)


def _topics(category_N: Ints, category_T: Ints, rng: np.random.Generator) -> Ints:
    """A topic for each ad, uniform within its category."""
    first_C = np.searchsorted(category_T, np.arange(category_T[-1] + 1))
    n_topics_C = np.bincount(category_T)
    topic_N: Ints = first_C[category_N] + rng.integers(n_topics_C[category_N])
    return topic_N


def _budgets(
    config: WorldConfig, campaign_N: Ints, bid_M: Floats, rng: np.random.Generator
) -> Ints:
    """Daily budgets: some last all day, some do not; none is below two bids."""
    impressions_a_day = config.n_requests * config.slate_size / config.days
    clicks_M = 0.08 * impressions_a_day * np.bincount(campaign_N) / config.n_ads
    ratio_M = config.budget_ratio * np.exp(rng.normal(0.0, 0.8, len(bid_M)))
    budget_M: Ints = (bid_M * np.maximum(clicks_M * ratio_M, 2.0)).astype(np.int64)
    return budget_M


@dataclass(frozen=True, kw_only=True)
class _Users:
    """The users as arrays; spending is `len(SPENDING)` where unknown."""

    segment_U: Ints
    age_U: Ints
    gender_U: Ints
    region_U: Ints
    spending_U: Ints
    new_U: npt.NDArray[np.bool_]
    taste_UD: Ints
    """Taste on each day, from `history_days` before the log to its end: hidden."""

    @classmethod
    def draw(cls, config: WorldConfig, laws: Laws, rng: np.random.Generator) -> "_Users":
        U, R = config.n_users, config.n_segments
        segment_U = rng.integers(R, size=U)
        age_RA = rng.dirichlet(np.full(len(AGES), 4.0), R)
        gender_RG = rng.dirichlet(np.array([12.0, 12.0, 1.0]), R)
        spending_RX = rng.dirichlet(np.full(len(SPENDING), 6.0), R)
        new_U = np.zeros(U, dtype=bool)
        new_U[rng.permutation(U)[: round(config.new_user_share * U)]] = True
        missing_U = rng.random(U) < config.missing_share
        return cls(
            segment_U=segment_U,
            age_U=_pick(age_RA, segment_U, rng),
            gender_U=_pick(gender_RG, segment_U, rng),
            region_U=rng.integers(config.n_regions, size=U),
            spending_U=np.where(missing_U, len(SPENDING), _pick(spending_RX, segment_U, rng)),
            new_U=new_U,
            taste_UD=_taste_paths(config, laws, segment_U, rng),
        )

    def table(self, config: WorldConfig, history: "_History") -> pl.DataFrame:
        """What may be observed of the users."""
        spending = pl.Series([*SPENDING, None], dtype=pl.String)
        return pl.DataFrame({
            "user_id": np.arange(len(self.segment_U)),
            "segment": _names("segment", config.n_segments).gather(self.segment_U),
            "age": pl.Series(AGES).gather(self.age_U),
            "gender": pl.Series(GENDERS).gather(self.gender_U),
            "region": _names("region", config.n_regions).gather(self.region_U),
            "spending": spending.gather(self.spending_U),
            "history": _lists(history.ad_E, history.offset_U),
            "history_times_ms": _lists(history.time_ms_E, history.offset_U),
        })  # fmt: skip


def _taste_paths(
    config: WorldConfig, laws: Laws, segment_U: Ints, rng: np.random.Generator
) -> Ints:
    """The hidden Markov chain of each user's taste, day by day [U, D]."""
    taste_U = _pick(laws.prior_RK, segment_U, rng)
    days = [taste_U]
    for _ in range(config.history_days + config.days - 1):
        jumps_U = rng.random(len(segment_U)) < config.taste_jump
        taste_U = np.where(jumps_U, _pick(laws.prior_RK, segment_U, rng), taste_U)
        days.append(taste_U)
    return np.stack(days, axis=1)


def _history_topics(config: WorldConfig, laws: Laws, ads: _Ads) -> Floats:
    """P(topic of a past ad | taste) [K, T], over the topics with an ad that ran before the log.

    Raises:
        ConfigError: No ad ran before the log.
    """
    ran_T = np.bincount(ads.topic_N[ads.start_day_N < 0], minlength=config.n_topics) > 0
    if not ran_T.any():
        raise ConfigError("n_ads is too small: no ad ran before the log, so histories are empty")
    weight_KT = np.exp(config.history_sharpness * laws.click_affinity_KT) * ran_T
    topic_KT: Floats = weight_KT / weight_KT.sum(axis=1, keepdims=True)
    return topic_KT


@dataclass(frozen=True, kw_only=True)
class _History:
    """Past ads of all users, one after the other; user u's are `offset_U[u]:offset_U[u + 1]`."""

    offset_U: Ints
    ad_E: Ints
    time_ms_E: Ints

    @classmethod
    def draw(
        cls, config: WorldConfig, laws: Laws, ads: _Ads, users: _Users, rng: np.random.Generator
    ) -> "_History":
        """Ads that ran before the log, drawn by the taste of the day."""
        U = config.n_users
        length_U = np.where(
            users.new_U,
            rng.integers(0, config.new_history_max + 1, size=U),
            rng.integers(config.history_min, config.history_max + 1, size=U),
        )
        user_E = np.repeat(np.arange(U), length_U)
        ago_ms_E = rng.integers(1, config.history_days * DAY_MS + 1, size=len(user_E))
        order = np.lexsort((-ago_ms_E, user_E))
        ago_ms_E = ago_ms_E[order]
        day_E = config.history_days - 1 - (ago_ms_E - 1) // DAY_MS
        taste_E = users.taste_UD[user_E, day_E]
        ran_N = (ads.start_day_N < 0) * ads.weight_N
        topic_E = _pick(laws.history_KT, taste_E, rng)
        return cls(
            offset_U=np.concatenate([[0], np.cumsum(length_U)]),
            ad_E=_Groups(ads.topic_N, config.n_topics).draw(ran_N, topic_E, rng),
            time_ms_E=config.start_ms - ago_ms_E,
        )

    def show(self, observer: IdealObserver, config: WorldConfig, ads: _Ads) -> None:
        """Let the observer read every history."""
        length_U = np.diff(self.offset_U)
        column = np.arange(length_U.max(initial=0))
        index_UH = np.minimum(self.offset_U[:-1, None] + column, max(len(self.ad_E) - 1, 0))
        day_E = (self.time_ms_E - config.start_ms) // DAY_MS
        observer.read_histories(
            ads.topic_N[self.ad_E[index_UH]], day_E[index_UH], length_U, -config.history_days
        )


# --- requests and the logging policy ----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Requests:
    """Requests in time order, no two at the same millisecond."""

    user_Q: Ints
    time_ms_Q: Ints
    tick_Q: Ints
    """Hours from the log's start."""
    device_Q: Ints
    place_Q: Ints

    @classmethod
    def draw(cls, config: WorldConfig, users: _Users, rng: np.random.Generator) -> "_Requests":
        key = _schedule(config, users.new_U, rng)
        tick, user = key // config.n_users, key % config.n_users
        time_ms = tick * HOUR_MS + rng.integers(HOUR_MS - 60_000, size=len(key))
        order = np.argsort(time_ms, kind="stable")
        steps = np.arange(len(key))
        time_ms = np.maximum.accumulate(time_ms[order] - steps) + steps
        user = user[order]
        device_UD = rng.dirichlet(2.0 * np.array(_DEVICE_SHARE), config.n_users)
        place_P = rng.dirichlet(np.full(len(PLACES), 5.0))
        return cls(
            user_Q=user,
            time_ms_Q=config.start_ms + time_ms,
            tick_Q=tick[order],
            device_Q=_pick(device_UD, user, rng),
            place_Q=rng.choice(len(PLACES), len(key), p=place_P),
        )


def _schedule(config: WorldConfig, new_U: npt.NDArray[np.bool_], rng: np.random.Generator) -> Ints:
    """Who asks when, as `tick * n_users + user` [Q], all different.

    Everyone has one request (new users on the last day, others before it); further ones go to users
    in proportion to their activity and to hours along a diurnal curve.
    """
    U, last = config.n_users, config.days - 1
    diurnal_H = 1.0 + 0.6 * np.cos((np.arange(24) - 20) * (2 * np.pi / 24))
    diurnal_H /= diurnal_H.sum()

    def hours(n: int) -> Ints:
        return rng.choice(24, n, p=diurnal_H)

    first_day_U = np.where(new_U, last, rng.integers(last, size=U))
    keys = (first_day_U * 24 + hours(U)) * U + np.arange(U)
    order = np.argsort(new_U, kind="stable")
    activity = np.cumsum(np.exp(rng.normal(0.0, config.activity_spread, U))[order])
    old_total = activity[int((~new_U).sum()) - 1]
    while len(keys) < config.n_requests:
        n = config.n_requests - len(keys)
        day = rng.integers(config.days, size=n)
        total = np.where(day == last, activity[-1], old_total)
        user = order[np.searchsorted(activity, rng.random(n) * total, side="right")]
        more = np.unique((day * 24 + hours(n)) * U + user)
        keys = np.concatenate([keys, np.setdiff1d(more, keys, assume_unique=True)])
    return keys


class LoggingPolicy:
    """Fills slates at random, with known propensities, from what is observable.

    Ads are hashed into S slot groups. A request draws a rotation r; position s draws from group
    (s + r) mod S, so a slate has no ad twice. Within the group a stratum (category, target) is
    drawn from `exploration · uniform + (1 − exploration) · preference of the segment`, the latter
    shared between a category's targets by weight; then an ad, in proportion to its weight. Only
    eligible ads and strata that have one take part. As r is uniform, the propensity of an ad at any
    position is the probability of its draw within its group, divided by S.
    """

    def __init__(
        self,
        *,
        preference_RC: Floats,
        category_N: Ints,
        target_N: Ints,
        weight_N: Floats,
        slate_size: int,
        exploration: float,
    ) -> None:
        """All ads are eligible until `refresh`.

        Args:
            preference_RC: Preference of segments over categories; rows sum to one.
            category_N: Category of each ad.
            target_N: Index into `TARGETS` of each ad.
            weight_N: Weight of each ad within its stratum, above zero.
            slate_size: S.
            exploration: Share of draws with a uniform stratum, above zero.
        """
        self._preference_RC = preference_RC
        self._weight_N = weight_N
        self._exploration = exploration
        self._shape_GCL = (slate_size, preference_RC.shape[1], len(TARGETS))
        group_N = _hash(np.arange(len(weight_N)), salt=1) % slate_size
        cell = (group_N.astype(np.int64), category_N, target_N)
        self._stratum_N = np.ravel_multi_index(cell, self._shape_GCL)
        self._strata = _Groups(self._stratum_N, int(np.prod(self._shape_GCL)))
        self.refresh(np.ones(len(weight_N), dtype=bool))

    def refresh(self, eligible_N: npt.NDArray[np.bool_]) -> None:
        """Set which ads may be shown, all devices considered.

        Raises:
            ConfigError: A slot group has no ad for some device.
        """
        self._live_N = self._weight_N * eligible_N
        self._mass_X = self._strata.mass(self._live_N)
        mass_DGCL = self._mass_X.reshape(self._shape_GCL) * _REACHES_DL[:, None, None, :]
        some_DGCL = mass_DGCL > 0.0
        count_DG = some_DGCL.sum(axis=(2, 3))
        if (count_DG == 0).any():
            raise ConfigError("n_ads or budget_ratio is too small: no ad is left for a position")
        mass_DGC = mass_DGCL.sum(axis=3)
        within_DGCL = mass_DGCL / np.maximum(mass_DGC, 1e-300)[..., None]
        wanted_RDGC = self._preference_RC[:, None, None, :] * (mass_DGC > 0.0)
        total_RDG = wanted_RDGC.sum(axis=3, keepdims=True)
        uniform_DGCL = some_DGCL / count_DG[..., None, None]
        # A segment whose preferred categories are all exhausted falls back on the uniform draw.
        preferred = np.where(
            total_RDG[..., None] > 0.0,
            (wanted_RDGC / np.maximum(total_RDG, 1e-300))[..., None] * within_DGCL,
            uniform_DGCL,
        )
        mixed = self._exploration * uniform_DGCL + (1.0 - self._exploration) * preferred
        self._stratum_RDGX = mixed.reshape(*mixed.shape[:3], -1)

    def propensity(self, segment_B: Ints, device_B: Ints, ad_B: Ints) -> Floats:
        """Exact probability of each ad at any one position; 0 where it is not eligible."""
        group, within = np.divmod(self._stratum_N[ad_B], np.prod(self._shape_GCL[1:]))
        mass_B = self._mass_X[self._stratum_N[ad_B]]
        share_B = self._live_N[ad_B] / np.where(mass_B > 0.0, mass_B, 1.0)
        p_B: Floats = self._stratum_RDGX[segment_B, device_B, group, within] * share_B
        return p_B / self._shape_GCL[0]

    def draw(self, segment_Q: Ints, device_Q: Ints, rng: np.random.Generator) -> Ints:
        """Slates of ads for Q requests, [Q, S]."""
        S = self._shape_GCL[0]
        group_QS = (np.arange(S) + rng.integers(S, size=len(segment_Q))[:, None]) % S
        table = self._stratum_RDGX
        row_QS = np.ravel_multi_index(
            (segment_Q[:, None], device_Q[:, None], group_QS), table.shape[:3]
        )
        within = _pick(table.reshape(-1, table.shape[3]), row_QS.ravel(), rng)
        stratum = group_QS.ravel() * table.shape[3] + within
        return self._strata.draw(self._live_N, stratum, rng).reshape(-1, S)


# --- the log ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Log:
    """Slates, propensities, outcomes and forecasts of all requests, one row an impression."""

    ad_B: Ints
    propensity_B: Floats
    click_B: Ints
    engagement_B: Ints
    revenue_micros_B: Ints
    true: Forecast
    best: Forecast

    def impressions(self, config: WorldConfig, requests: _Requests) -> pl.DataFrame:
        """What a log would hold."""
        S, Q = config.slate_size, config.n_requests
        return pl.DataFrame({
            "request_id": np.repeat(np.arange(Q), S),
            "user_id": np.repeat(requests.user_Q, S),
            "ad_id": self.ad_B,
            "timestamp_ms": np.repeat(requests.time_ms_Q, S),
            "position": np.tile(np.arange(1, S + 1, dtype=np.int32), Q),
            "propensity": self.propensity_B,
            "device": pl.Series(DEVICES).gather(np.repeat(requests.device_Q, S)),
            "place": pl.Series(PLACES).gather(np.repeat(requests.place_Q, S)),
            "hour": np.repeat(requests.time_ms_Q // HOUR_MS % 24, S).astype(np.int8),
            "click": self.click_B.astype(np.int8),
            "engagement": self.engagement_B.astype(np.int8),
            "revenue_micros": self.revenue_micros_B,
        })  # fmt: skip

    def truth(self, config: WorldConfig) -> pl.DataFrame:
        """What no log could hold."""
        S, Q = config.slate_size, config.n_requests
        columns: dict[str, Any] = {
            "request_id": np.repeat(np.arange(Q), S),
            "position": np.tile(np.arange(1, S + 1, dtype=np.int32), Q),
        }
        for name, forecast in (("true", self.true), ("best", self.best)):
            columns[f"p_click_{name}"] = forecast.click_B.astype(np.float32)
            columns[f"p_engagement_{name}"] = forecast.engagement_B.astype(np.float32)
            columns[f"revenue_{name}_micros"] = forecast.revenue_B.astype(np.float32)
        return pl.DataFrame(columns)


@dataclass(frozen=True, kw_only=True)
class _Market:
    """Everything that is fixed before the first request."""

    config: WorldConfig
    laws: Laws
    effects: _Effects
    ads: _Ads
    users: _Users
    requests: _Requests

    def rows(self, now: slice, hour: int, ad_QS: Ints) -> Rows:
        """The impressions of the requests `now`, with everything observable added up."""
        Q, S = ad_QS.shape
        user_B, ad_B = np.repeat(self.requests.user_Q[now], S), ad_QS.ravel()
        device_B = np.repeat(self.requests.device_Q[now], S)
        ads, users, effects = self.ads, self.users, self.effects
        category_B = ads.category_N[ad_B]
        click_offset_B = (
            ads.click_offset_N[ad_B]
            + effects.device_format_DF[device_B, ads.format_N[ad_B]]
            + effects.hour_category_HC[hour, category_B]
            + effects.age_category_AC[users.age_U[user_B], category_B]
            + effects.place_P[np.repeat(self.requests.place_Q[now], S)]
        )
        return Rows(
            user_B=user_B,
            ad_B=ad_B,
            topic_B=ads.topic_N[ad_B],
            position_B=np.tile(np.arange(S), Q),
            click_offset_B=click_offset_B,
            engagement_offset_B=ads.engagement_offset_N[ad_B],
            value_B=ads.value_N[ad_B] * _SPENDING_FACTOR[users.spending_U[user_B]],
        )


def _simulate(
    market: _Market, policy: LoggingPolicy, observer: IdealObserver, rng: np.random.Generator
) -> _Log:
    """Play the log hour by hour. Within an hour nobody learns and no budget is re-read."""
    config, ads, users, requests = market.config, market.ads, market.users, market.requests
    edges = np.searchsorted(requests.tick_Q, np.arange(24 * config.days + 1))
    spend_micros_M = np.zeros(config.n_campaigns, dtype=np.int64)
    logs: list[_Log] = []
    for tick in range(24 * config.days):
        day, hour = divmod(tick, 24)
        if hour == 0:
            spend_micros_M[:] = 0
            if day > 0:
                observer.advance_days(1)
        now = slice(edges[tick], edges[tick + 1])
        if now.start == now.stop:
            continue
        running_N = (ads.start_day_N <= day) & (day < ads.end_day_N)
        policy.refresh(running_N & (spend_micros_M < ads.budget_micros_M)[ads.campaign_N])
        segment_Q, device_Q = users.segment_U[requests.user_Q[now]], requests.device_Q[now]
        ad_QS = policy.draw(segment_Q, device_Q, rng)
        propensity_QS = policy.propensity(segment_Q[:, None], device_Q[:, None], ad_QS)
        rows = market.rows(now, hour, ad_QS)
        taste_B = users.taste_UD[rows.user_B, config.history_days + day]
        true = true_forecast(market.laws, rows, taste_B, ads.quality_N[rows.ad_B])
        log = _outcomes(config, rows, propensity_QS.ravel(), true, observer, rng)
        clicked_B = log.ad_B[log.click_B == 1]
        np.add.at(spend_micros_M, ads.campaign_N[clicked_B], ads.bid_micros_N[clicked_B])
        logs.append(log)
    return _concatenate(logs)


def _outcomes(
    config: WorldConfig,
    rows: Rows,
    propensity_B: Floats,
    true: Forecast,
    observer: IdealObserver,
    rng: np.random.Generator,
) -> _Log:
    """Clicks, engagements and revenue of one tick; the observer forecasts, then sees them."""
    chance_B = rng.random(len(rows.ad_B))
    click_B = (chance_B < true.click_B).astype(np.int64)
    engagement_B = (chance_B < true.engagement_B).astype(np.int64)
    spread = config.revenue_spread
    factor_B = np.exp(spread * rng.normal(size=len(chance_B)) - 0.5 * spread**2)
    revenue_B = np.maximum(np.round(rows.value_B * factor_B), 1.0).astype(np.int64) * engagement_B
    return _Log(
        ad_B=rows.ad_B,
        propensity_B=propensity_B,
        click_B=click_B,
        engagement_B=engagement_B,
        revenue_micros_B=revenue_B,
        true=true,
        best=observer.observe(rows, click_B, engagement_B),
    )


def _concatenate(logs: list[_Log]) -> _Log:
    """One log out of the hours'."""
    columns: dict[str, Any] = {}
    for name, first in vars(logs[0]).items():
        parts = [getattr(log, name) for log in logs]
        columns[name] = (
            Forecast.join(parts) if isinstance(first, Forecast) else np.concatenate(parts)
        )
    return _Log(**columns)


# --- drawing, hashing and lists ---------------------------------------------------------------


def _pick(table_XY: Floats, row_B: Ints, rng: np.random.Generator) -> Ints:
    """A column for each row index, drawn with the probabilities of that row of the table."""
    width = table_XY.shape[1]
    cumulative_XY = np.cumsum(table_XY, axis=1)
    cumulative_XY /= cumulative_XY[:, -1:]
    ladder = (cumulative_XY + np.arange(len(table_XY))[:, None]).ravel()
    # Below 1, so that rounding never climbs into the next row.
    chance_B = rng.random(len(row_B)) * (1.0 - 1e-9)
    picked: Ints = np.searchsorted(ladder, row_B + chance_B, side="right") - row_B * width
    return picked


class _Groups:
    """Items by group, to draw an item within a group in proportion to weights that change."""

    def __init__(self, group_N: Ints, n_groups: int) -> None:
        self._order = np.argsort(group_N, kind="stable")
        self._edges = np.searchsorted(group_N[self._order], np.arange(n_groups + 1))

    def mass(self, weight_N: Floats) -> Floats:
        """Sum of the weights in each group."""
        padded = np.append(weight_N[self._order], 0.0)
        summed = np.add.reduceat(padded, self._edges[:-1])
        result: Floats = np.where(np.diff(self._edges) > 0, summed, 0.0)
        return result

    def draw(self, weight_N: Floats, group_B: Ints, rng: np.random.Generator) -> Ints:
        """An item for each group index."""
        cumulative = np.concatenate([[0.0], np.cumsum(weight_N[self._order])])
        low = cumulative[self._edges[group_B]]
        high = cumulative[self._edges[group_B + 1]]
        goal = low + (high - low) * rng.random(len(group_B)) * (1.0 - 1e-9)
        drawn: Ints = self._order[np.searchsorted(cumulative[1:], goal, side="right")]
        return drawn


def _hash(values: Ints, salt: int) -> npt.NDArray[np.uint64]:
    """A stable 64-bit mix of integers (splitmix64: Steele, Lea and Flood, OOPSLA 2014)."""
    x = values.astype(np.uint64) + np.uint64(salt * 0x9E3779B97F4A7C15 % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _names(stem: str, count: int) -> pl.Series:
    """`stem_000`, `stem_001`, ... padded to the longest."""
    width = len(str(count - 1))
    return pl.Series([f"{stem}_{i:0{width}d}" for i in range(count)], dtype=pl.String)


def _lists(values: npt.NDArray[Any], offsets: Ints) -> pl.Series:
    """A list column out of all values and the offsets of the rows."""
    array = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values))
    series = pl.from_arrow(array)
    assert isinstance(series, pl.Series)
    return series


# --- writing ----------------------------------------------------------------------------------


def write_world(
    world: World,
    directory: Path,
    *,
    layout: Literal["generic", "criteo"],
    schema_yaml: str | None = None,
) -> None:
    """Write a world's tables.

    Args:
        world: What `generate` gave.
        directory: Created where it is missing; files of the same names are replaced.
        layout: `generic` writes impressions, users, ads and truth as Parquet. `criteo` writes
            `train.txt` as in the Criteo display advertising challenge: tab-separated, no header,
            label, I1 to I13 (integers), C1 to C26 (8 hexadecimal digits), empty where missing; in
            time order.
        schema_yaml: Text of the schema, written beside as `schema.yaml`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if layout == "criteo":
        table = criteo_table(world)
        table.write_csv(directory / "train.txt", separator="\t", include_header=False)
    else:
        for name in ("impressions", "users", "ads", "truth"):
            frame: pl.DataFrame = getattr(world, name)
            frame.write_parquet(directory / f"{name}.parquet", compression="zstd")
    if schema_yaml is not None:
        (directory / "schema.yaml").write_text(schema_yaml, encoding="utf-8")


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


_CRITEO_PLAIN = (
    "user_id", "segment", "age", "gender", "region", "favourite", "ad_id", "campaign_id",
    "advertiser_id", "category", "topic", "format", "device", "place",
)  # fmt: skip
_CROSSES = (
    ("segment", "category"), ("segment", "topic"), ("favourite", "category"),
    ("favourite", "topic"), ("favourite", "ad_id"), ("age", "category"), ("device", "format"),
    ("hour", "category"), ("user_id", "category"), ("user_id", "topic"),
)  # fmt: skip


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
        codes = _hash(codes * np.uint64(1_000_003) + part, salt=2)
    digits = (codes >> np.uint64(32)).astype(">u4").tobytes().hex().encode()
    offsets = np.arange(rows.height + 1, dtype=np.int64) * 8
    array = pa.LargeStringArray.from_buffers(
        rows.height, pa.py_buffer(offsets), pa.py_buffer(digits)
    )
    series = pl.Series(pl.from_arrow(array))
    return pl.select(pl.when(~missing).then(series)).to_series().alias(name)
