"""A world and its log: `generate` is the table of contents."""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from adrec.data.synthetic.ads import Ads
from adrec.data.synthetic.config import WorldConfig
from adrec.data.synthetic.history import History, history_topics
from adrec.data.synthetic.oracle import IdealObserver
from adrec.data.synthetic.policy import LoggingPolicy, preferences
from adrec.data.synthetic.requests import Requests
from adrec.data.synthetic.simulation import Market, simulate
from adrec.data.synthetic.tastes import Effects, draw_laws
from adrec.data.synthetic.users import Users


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
    seed: int
    impressions: pl.DataFrame
    users: pl.DataFrame
    ads: pl.DataFrame
    truth: pl.DataFrame


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """A world just before the first request: what `simulate` takes, and the histories."""

    market: Market
    policy: LoggingPolicy
    observer: IdealObserver
    """Has read every history."""
    history: History
    rng: np.random.Generator


def generate(config: WorldConfig, seed: int) -> World:
    """Generate a world and its log.

    Args:
        config: What the world is made of.
        seed: The only source of randomness; the same seed and config give the same tables.

    Raises:
        ConfigError: The budgets or the catalogue are so small that a slate cannot be filled.
    """
    begun = begin(config, seed)
    market, rng = begun.market, begun.rng
    log = simulate(market, begun.policy, begun.observer, rng)
    return World(
        config=config,
        seed=seed,
        impressions=log.impressions(config, market.requests),
        users=market.users.table(config).hstack(begun.history.table()),
        ads=market.ads.table(config, rng),
        truth=log.truth(config),
    )


def begin(config: WorldConfig, seed: int) -> Beginning:
    """Draw everything that is fixed before the first request, hidden things included."""
    rng = np.random.default_rng(seed)
    laws, category_T, strong_KT = draw_laws(config, rng)
    effects = Effects.draw(config, rng)
    ads = Ads.draw(config, laws, category_T, effects, rng)
    laws = replace(laws, history_KT=history_topics(config, laws, ads))
    users = Users.draw(config, laws, rng)
    history = History.draw(config, laws, ads, users, rng)
    requests = Requests.draw(config, users, rng)
    policy = LoggingPolicy(
        preference_RC=preferences(laws, category_T, strong_KT, config.n_categories),
        category_N=ads.category_N,
        target_N=ads.target_N,
        weight_N=ads.weight_N,
        slate_size=config.slate_size,
        exploration=config.exploration,
    )
    observer = IdealObserver(laws, users.segment_U, config.n_ads)
    history.show(observer, config, ads)
    market = Market(
        config=config, laws=laws, effects=effects, ads=ads, users=users, requests=requests
    )
    return Beginning(market=market, policy=policy, observer=observer, history=history, rng=rng)
