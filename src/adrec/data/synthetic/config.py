"""What a world is made of: sizes, users and their past, the market, and how outcomes come about."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Self

from pydantic import Field, model_validator

from adrec.errors import ConfigError
from adrec.schema import Strict

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class WorldConfig(Strict):
    """What a world is made of. Every random number in it comes from one seed beside this."""

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
        "clear": WorldConfig(
            n_users=20_000, n_ads=20_000, n_requests=125_000, days=10, n_segments=8, n_tastes=8,
            n_categories=12, n_topics=48, quality_sd=0.15, advertiser_sd=0.1, context_sd=0.08,
            click_base=-3.6, strong_affinity=3.0,
        ),
        "published": WorldConfig(
            n_users=20_000, n_ads=20_000, n_requests=125_000, days=10, new_user_share=0.05,
            history_sharpness=1.2, segment_focus=0.96, taste_jump=0.01, exploration=0.04,
            ad_weight_spread=1.2, quality_sd=0.2, context_sd=0.1, click_base=-4.05,
            strong_affinity=3.75,
        ),
    }
)  # fmt: skip
"""`tiny` for unit tests, `demo` for a first run, `standard` for measurements. `clear` has as many
impressions as `standard` but few, strong tastes, so that they, not the size of the log, say how
much can be learned: a model that falls short there has a fault. `published` puts the figures of a
published system within reach: click, engagement and revenue AUC .78, .75 and .73, NDCG@10 .70 and
recall@500 .85. It was chosen by the ideal observer's figures alone, before any model saw it."""
