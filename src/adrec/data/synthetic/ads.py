"""Ads: campaigns with days, bids and budgets, and the catalogue as arrays and as a table."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from adrec.data.synthetic.columns import FORMATS, TARGET_SHARE, TARGETS, lists, names
from adrec.data.synthetic.config import DAY_MS, WorldConfig
from adrec.data.synthetic.drawing import Floats, Ints
from adrec.data.synthetic.laws import Laws
from adrec.data.synthetic.tastes import Effects


@dataclass(frozen=True, kw_only=True)
class Ads:
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
        effects: Effects,
        rng: np.random.Generator,
    ) -> "Ads":
        """Campaigns first, then ads that inherit from them."""
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
            target_N=rng.choice(len(TARGETS), M, p=TARGET_SHARE)[campaign_N],
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
            "category": names("category", config.n_categories).gather(self.category_N),
            "topic": names("topic", config.n_topics).gather(self.topic_N),
            "format": pl.Series(FORMATS).gather(self.format_N),
            "price": pl.Series(self.price_N, nan_to_null=True),
            "bid_micros": self.bid_micros_N,
            "daily_budget_micros": self.budget_micros_M[self.campaign_N],
            "target_device": pl.Series(TARGETS).gather(self.target_N),
            "start_ms": config.start_ms + self.start_day_N * DAY_MS,
            "end_ms": config.start_ms + self.end_day_N * DAY_MS,
            "content": lists(content_NE.astype(np.float32).ravel(), offsets),
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
