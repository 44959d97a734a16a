"""The log: hour by hour, slates are drawn, users react and budgets run out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from adrec.data.synthetic.ads import Ads
from adrec.data.synthetic.columns import DEVICES, PLACES, SPENDING_FACTOR
from adrec.data.synthetic.config import HOUR_MS, WorldConfig
from adrec.data.synthetic.drawing import Bools, Floats, Ints
from adrec.data.synthetic.laws import Forecast, Laws, Rows, true_forecast
from adrec.data.synthetic.oracle import IdealObserver
from adrec.data.synthetic.policy import LoggingPolicy
from adrec.data.synthetic.requests import Requests
from adrec.data.synthetic.tastes import Effects
from adrec.data.synthetic.users import Users


@dataclass(frozen=True, kw_only=True)
class Market:
    """Everything that is fixed before the first request."""

    config: WorldConfig
    laws: Laws
    effects: Effects
    ads: Ads
    users: Users
    requests: Requests

    def rows(self, request_B: Ints, ad_B: Ints, position_B: Ints) -> Rows:
        """Impressions of ads in requests, with everything observable added up."""
        ads, users, effects, requests = self.ads, self.users, self.effects, self.requests
        user_B, category_B = requests.user_Q[request_B], ads.category_N[ad_B]
        click_offset_B = (
            ads.click_offset_N[ad_B]
            + effects.device_format_DF[requests.device_Q[request_B], ads.format_N[ad_B]]
            + effects.hour_category_HC[requests.tick_Q[request_B] % 24, category_B]
            + effects.age_category_AC[users.age_U[user_B], category_B]
            + effects.place_P[requests.place_Q[request_B]]
        )
        return Rows(
            user_B=user_B,
            ad_B=ad_B,
            topic_B=ads.topic_N[ad_B],
            position_B=position_B,
            click_offset_B=click_offset_B,
            engagement_offset_B=ads.engagement_offset_N[ad_B],
            value_B=ads.value_N[ad_B] * SPENDING_FACTOR[users.spending_U[user_B]],
        )

    def true(self, rows: Rows, request_B: Ints) -> Forecast:
        """What outcomes of the rows, each of a request, are drawn from."""
        day_B = self.requests.tick_Q[request_B] // 24
        taste_B = self.users.taste_UD[rows.user_B, self.config.history_days + day_B]
        return true_forecast(self.laws, rows, taste_B, self.ads.quality_N[rows.ad_B])

    def running(self, day: int) -> Bools:
        """Which ads' campaigns run on a day of the log [N]."""
        running_N: Bools = (self.ads.start_day_N <= day) & (day < self.ads.end_day_N)
        return running_N


@dataclass(frozen=True, kw_only=True)
class Log:
    """Slates, propensities, outcomes and forecasts of all requests, one row an impression."""

    ad_B: Ints
    propensity_B: Floats
    click_B: Ints
    engagement_B: Ints
    revenue_micros_B: Ints
    true: Forecast
    best: Forecast

    def impressions(self, config: WorldConfig, requests: Requests) -> pl.DataFrame:
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


def simulate(
    market: Market,
    policy: LoggingPolicy,
    observer: IdealObserver,
    rng: np.random.Generator,
    ticks: int | None = None,
) -> Log:
    """Play the log hour by hour. Within an hour nobody learns and no budget is re-read.

    Args:
        market: What is fixed.
        policy: Fills the slates.
        observer: Learns from every hour; at the end it believes what the last one left.
        rng: Of slates and outcomes.
        ticks: Hours to play; all days where it is left out.
    """
    config, ads, users, requests = market.config, market.ads, market.users, market.requests
    edges = np.searchsorted(requests.tick_Q, np.arange(24 * config.days + 1))
    spend_micros_M = np.zeros(config.n_campaigns, dtype=np.int64)
    logs: list[Log] = []
    for tick in range(24 * config.days if ticks is None else ticks):
        day, hour = divmod(tick, 24)
        if hour == 0:
            spend_micros_M[:] = 0
            if day > 0:
                observer.advance_days(1)
        now = np.arange(edges[tick], edges[tick + 1])
        if not len(now):
            continue
        policy.refresh(market.running(day) & (spend_micros_M < ads.budget_micros_M)[ads.campaign_N])
        segment_Q, device_Q = users.segment_U[requests.user_Q[now]], requests.device_Q[now]
        ad_QS = policy.draw(segment_Q, device_Q, rng)
        propensity_QS = policy.propensity(segment_Q[:, None], device_Q[:, None], ad_QS)
        request_B = np.repeat(now, config.slate_size)
        position_B = np.tile(np.arange(config.slate_size), len(now))
        rows = market.rows(request_B, ad_QS.ravel(), position_B)
        true = market.true(rows, request_B)
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
) -> Log:
    """Clicks, engagements and revenue of one tick; the observer forecasts, then sees them."""
    chance_B = rng.random(len(rows.ad_B))
    click_B = (chance_B < true.click_B).astype(np.int64)
    engagement_B = (chance_B < true.engagement_B).astype(np.int64)
    spread = config.revenue_spread
    factor_B = np.exp(spread * rng.normal(size=len(chance_B)) - 0.5 * spread**2)
    revenue_B = np.maximum(np.round(rows.value_B * factor_B), 1.0).astype(np.int64) * engagement_B
    return Log(
        ad_B=rows.ad_B,
        propensity_B=propensity_B,
        click_B=click_B,
        engagement_B=engagement_B,
        revenue_micros_B=revenue_B,
        true=true,
        best=observer.observe(rows, click_B, engagement_B),
    )


def _concatenate(logs: list[Log]) -> Log:
    """One log out of the hours'."""
    columns: dict[str, Any] = {}
    for name, first in vars(logs[0]).items():
        parts = [getattr(log, name) for log in logs]
        columns[name] = (
            Forecast.join(parts) if isinstance(first, Forecast) else np.concatenate(parts)
        )
    return Log(**columns)
