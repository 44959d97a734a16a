"""The truth of what was never shown: any ad in any request of a world, and who would rank it best.

A log tells only of the ads that its policy chose. A world is drawn again from its settings and its
seed, hidden things included, so it can say what any other ad would have earned there, and what an
ideal observer would have forecast at some hour.

Shapes: Q requests, B pairs of a request and an ad, N ads, D devices.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from adrec.data.synthetic.columns import DEVICE_PRIOR, DEVICES
from adrec.data.synthetic.config import HOUR_MS, WorldConfig
from adrec.data.synthetic.drawing import Floats, Ints
from adrec.data.synthetic.laws import Forecast, Rows
from adrec.data.synthetic.policy import LoggingPolicy
from adrec.data.synthetic.simulation import simulate
from adrec.data.synthetic.world import begin
from adrec.data.synthetic.write import read_origin
from adrec.errors import DataError

_Columns: TypeAlias = npt.NDArray[np.float64]


class WorldTruth:
    """What is true of any ad in any request, and what could be known of it at one hour.

    Requests and ads are numbered as in the written tables. Three numbers a pair: P(click),
    P(click and engagement), expected revenue in micros.
    """

    def __init__(self, config: WorldConfig, seed: int, ticks: int) -> None:
        """Draw a world again and let the observer see its first hours.

        Args:
            config: What the world is made of.
            seed: Its seed.
            ticks: Hours of the log that the observer sees, at least 1.
        """
        begun = begin(config, seed)
        self._market, self._observer = begun.market, begun.observer
        self._seen_days = (ticks - 1) // 24
        """The observer's tastes are those of this day."""
        log = simulate(begun.market, begun.policy, begun.observer, begun.rng, ticks)
        self._played = log.true
        self._n_before = len(log.ad_B) // config.slate_size
        self._policy = _known_policy(begun.policy, log.ad_B, config)

    @classmethod
    def read(cls, directory: Path, at_ms: int) -> "WorldTruth | None":
        """The truth of a written world; None where its folder does not tell how to draw it.

        Args:
            directory: Where `write_world` wrote.
            at_ms: Beliefs are those at the start of the hour that this lies in.

        Raises:
            DataError: The world cannot be drawn again: the folder was written by another version
                of adrec or NumPy.
        """
        origin = read_origin(directory)
        if origin is None or not (directory / "truth.parquet").exists():
            return None
        config, seed = origin
        truth = cls(config, seed, max(1, (at_ms - config.start_ms) // HOUR_MS))
        written = pl.read_parquet(directory / "truth.parquet", columns=["p_click_true"])
        click_B = truth._played.click_B.astype(np.float32)
        n = min(len(click_B), written.height)
        if not np.array_equal(written["p_click_true"].to_numpy()[:n], click_B[:n]):
            raise DataError(
                f"{directory / 'world.json'} does not lead to the truth.parquet beside it: another "
                "version of adrec or NumPy wrote them; make the world anew with `adrec synth`"
            )
        return truth

    @property
    def request_times_ms(self) -> Ints:
        """When each request came [Q]."""
        return self._market.requests.time_ms_Q

    def true(self, request_B: Ints, ad_B: Ints, position_B: Ints | int = 0) -> _Columns:
        """What outcomes would have been drawn from [B, 3].

        Args:
            request_B: Requests.
            ad_B: Ads, whether they ran at the time or not.
            position_B: Place in the slate, from 0.
        """
        rows = self._rows(request_B, ad_B, position_B)
        return _columns(self._market.true(rows, request_B))

    def best(self, request_B: Ints, ad_B: Ints, position_B: Ints | int = 0) -> _Columns:
        """What the observer would have forecast from its hour on [B, 3]."""
        rows = self._rows(request_B, ad_B, position_B)
        return _columns(self._observer.predict(rows, self._days_on(request_B)))

    def rank(self, request_Q: Ints, seen: Sequence[Ints], k: int) -> npt.NDArray[np.int64]:
        """The ads that the observer expects to be clicked in the log by who asks, best first.

        By P(shown) · P(click) of the ads that run on the day: who is judged by a log must guess
        what its policy shows, too. The observer knows the policy, but the weight of an ad only
        once it was shown, and a user's devices only from requests (`_device_shares`).

        Args:
            request_Q: Requests.
            seen: Ads of each request that are not to be returned.
            k: How many ads a request.

        Returns:
            [Q, k] ads, -1 where there are fewer.
        """
        market = self._market
        found = np.full((len(request_Q), k), -1, np.int64)
        device_QD = self._device_shares(request_Q)
        device_D1 = np.arange(len(DEVICES))[:, None]
        day_Q = market.requests.tick_Q[request_Q] // 24
        for day in np.unique(day_Q).tolist():
            running_N = market.running(day)
            self._policy.refresh(running_N)
            ad_B = np.flatnonzero(running_N)
            for q in np.flatnonzero(day_Q == day).tolist():
                request_B = np.full(len(ad_B), request_Q[q])
                segment = market.users.segment_U[market.requests.user_Q[request_Q[q]]]
                shown_B = device_QD[q] @ self._policy.propensity(segment, device_D1, ad_B)
                click_B = self._observer.predict_clicks(
                    self._rows(request_B, ad_B, 0), self._days_on(request_B)
                )
                score_B = shown_B * click_B * ~np.isin(ad_B, seen[q])
                first = np.argsort(-score_B, kind="stable")[:k]
                first = first[score_B[first] > 0.0]
                found[q, : len(first)] = ad_B[first]
        return found

    def _rows(self, request_B: Ints, ad_B: Ints, position_B: Ints | int) -> Rows:
        position_B = np.broadcast_to(np.asarray(position_B, np.int64), ad_B.shape)
        return self._market.rows(request_B, ad_B, position_B)

    def _days_on(self, request_B: Ints) -> Ints:
        """Days from the observer's to each request."""
        days_B: Ints = self._market.requests.tick_Q[request_B] // 24 - self._seen_days
        return days_B

    def _device_shares(self, request_Q: Ints) -> Floats:
        """P(device) of the users' further requests [Q, D], from those seen and the one at hand.

        The mean of the Dirichlet distribution that their devices were drawn from, given the
        observed ones.
        """
        requests = self._market.requests
        seen = slice(self._n_before)
        count_UD = np.zeros((self._market.config.n_users, len(DEVICES)))
        count_UD += DEVICE_PRIOR
        np.add.at(count_UD, (requests.user_Q[seen], requests.device_Q[seen]), 1.0)
        count_QD = count_UD[requests.user_Q[request_Q]]
        count_QD[np.arange(len(request_Q)), requests.device_Q[request_Q]] += 1.0
        share_QD: Floats = count_QD / count_QD.sum(axis=1, keepdims=True)
        return share_QD


def _known_policy(policy: LoggingPolicy, shown_B: Ints, config: WorldConfig) -> LoggingPolicy:
    """The policy as a log tells it: an ad that was never shown has the mean weight of all ads."""
    shown_N = np.bincount(shown_B, minlength=config.n_ads) > 0
    mean = np.exp(0.5 * config.ad_weight_spread**2)  # of a log-normal distribution
    return policy.with_weights(np.where(shown_N, policy.weight_N, mean))


def _columns(forecast: Forecast) -> _Columns:
    """Click, engagement and revenue side by side [B, 3]."""
    parts = (forecast.click_B, forecast.engagement_B, forecast.revenue_B)
    return np.stack(parts, axis=1).astype(np.float64)
