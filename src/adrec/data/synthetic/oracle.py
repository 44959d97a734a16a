"""The ideal observer: the best that any model could know.

The observer knows every parameter of the world but not the users' tastes and the ads' qualities.
It believes: per user a distribution over tastes, per ad one over a grid of qualities. Histories and
past outcomes sharpen both. Its predictions bound what a model can reach on the same observables.

Shapes: U users, N ads, H past ads, Q slates, and as in `laws`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from adrec.data.synthetic.drawing import Floats, Ints
from adrec.data.synthetic.laws import Forecast, Laws, Rows

_CHUNK_ROWS = 512
"""Rows at a time: their [G, B, K] arrays stay in the processor's cache (measured: 2 times faster
than a whole tick at once)."""


class IdealObserver:
    """A Bayes filter over tastes and qualities, by assumed-density filtering.

    Taste and quality are independent before an impression and not after it; after each tick the
    joint belief is projected back onto the product of its marginals (Boyen and Koller, "Tractable
    inference for complex stochastic processes", UAI 1998, section 3). Within a slate the user's
    belief is exact given the ads'; an ad's message leaves out what the same impression said of the
    user. Predictions for a tick use outcomes of earlier ticks only.
    """

    def __init__(self, laws: Laws, segment_U: Ints, n_ads: int) -> None:
        """Start from the priors: the segment's tastes, the same quality for every ad."""
        self._laws = laws
        self._prior_UK = laws.prior_RK[segment_U].astype(np.float32)
        self._taste_UK = self._prior_UK.copy()
        self._log_quality_NG = np.tile(np.log(laws.quality_prior_G).astype(np.float32), (n_ads, 1))
        self._odds_TK = np.exp(laws.click_affinity_KT.T).astype(np.float32)
        self._engagement_odds_TK = np.exp(laws.engagement_affinity_KT.T).astype(np.float32)
        self._odds_G = np.exp(laws.quality_G).astype(np.float32)
        self._engagement_odds_G = np.exp(laws.engagement_slope * laws.quality_G).astype(np.float32)

    def advance_days(self, days_U: Ints | int) -> None:
        """Let tastes drift: `b ← (1 − j)^d b + (1 − (1 − j)^d) prior`, j the daily jump."""
        self._taste_UK = self._drifted(self._taste_UK, self._prior_UK, days_U)

    def read_histories(self, topic_UH: Ints, day_UH: Ints, length_U: Ints, first_day: int) -> None:
        """Condition on the histories, item by item, up to day 0 (the forward algorithm).

        Args:
            topic_UH: Topic of each past ad, oldest first; what lies beyond the length is ignored.
            day_UH: Day of each past ad, counted from the log's first day (negative).
            length_U: Items in each history.
            first_day: Day on which every taste was drawn from the prior.
        """
        history_TK = self._laws.history_KT.T.astype(np.float32)
        day_U = np.full(len(length_U), first_day)
        for item in range(topic_UH.shape[1]):
            has_U = length_U > item
            self.advance_days(np.where(has_U, day_UH[:, item] - day_U, 0))
            day_U = np.where(has_U, day_UH[:, item], day_U)
            self._taste_UK[has_U] *= history_TK[topic_UH[has_U, item]]
            self._taste_UK /= self._taste_UK.sum(axis=1, keepdims=True)
        self.advance_days(-day_U)

    def predict(self, rows: Rows, days_B: Ints | int = 0) -> Forecast:
        """Forecast impressions from the present beliefs, without learning from them.

        Args:
            rows: B impressions.
            days_B: How many days from now each one is; tastes will have drifted.
        """
        day_B = np.broadcast_to(np.asarray(days_B), rows.user_B.shape)
        parts = [
            self._look(rows.part(chunk), day_B[chunk])[0] for chunk in _chunks(len(rows.user_B), 1)
        ]
        return Forecast.join(parts)

    def predict_clicks(self, rows: Rows, days_B: Ints | int = 0) -> Floats:
        """P(click) alone, as `predict` forecasts it [B]."""
        day_B = np.broadcast_to(np.asarray(days_B), rows.user_B.shape)
        click_B = np.empty(len(rows.user_B), dtype=np.float32)
        for chunk in _chunks(len(rows.user_B), 1):
            part = rows.part(chunk)
            quality_BG, odds_BK = self._quality(part), self._odds(part)
            taste_BK = self._tastes(part, day_B[chunk])
            click_BK, scaled_BK = np.zeros_like(odds_BK), np.empty_like(odds_BK)
            for g, odds in enumerate(self._odds_G):
                np.multiply(odds_BK, odds, out=scaled_BK)
                scaled_BK /= 1.0 + scaled_BK
                scaled_BK *= quality_BG[:, g, None]
                click_BK += scaled_BK
            click_B[chunk] = np.einsum("bk,bk->b", taste_BK, click_BK)
        click_B *= self._laws.examination_S[rows.position_B].astype(np.float32)
        return click_B

    def observe(self, rows: Rows, click_B: Ints, engagement_B: Ints) -> Forecast:
        """Forecast the impressions of one tick, then learn from their outcomes.

        Args:
            rows: The tick's impressions.
            click_B: 0 or 1.
            engagement_B: 0 or 1; 0 without a click.

        Returns:
            The forecasts made before the outcomes were seen.
        """
        n_positions = len(self._laws.examination_S)
        learned_NG = np.zeros_like(self._log_quality_NG)
        parts = []
        for chunk in _chunks(len(rows.user_B), n_positions):
            part = rows.part(chunk)
            forecast, click_GBK, engaged_GBK, mean_click_BK, mean_engaged_BK = self._look(part)
            parts.append(forecast)
            outcome = _Outcome.of(click_B[chunk], engagement_B[chunk])
            cavity_BK = self._learn_tastes(part, outcome, mean_click_BK, mean_engaged_BK)
            message_GB = outcome.likelihood(
                np.einsum("gbk,bk->gb", click_GBK, cavity_BK),
                np.einsum("gbk,bk->gb", engaged_GBK, cavity_BK),
            )
            np.add.at(learned_NG, part.ad_B, np.log(message_GB.T))
        self._log_quality_NG += learned_NG
        return Forecast.join(parts)

    def _drifted(self, taste_XK: Floats, prior_XK: Floats, days_X: Ints | int) -> Floats:
        """What is believed of tastes some days on."""
        stay = np.float32(1.0 - self._laws.jump) ** np.asarray(days_X, dtype=np.float32)[..., None]
        drifted_XK: Floats = stay * taste_XK + (1.0 - stay) * prior_XK
        return drifted_XK

    def _quality(self, rows: Rows) -> Floats:
        """What is believed of the ads' qualities [B, G]."""
        quality_BG: Floats = _softmax(self._log_quality_NG[rows.ad_B])
        return quality_BG

    def _odds(self, rows: Rows) -> Floats:
        """Odds of a click of an ad of middling quality, by taste [B, K]."""
        odds_BK: Floats = self._odds_TK[rows.topic_B]
        odds_BK *= np.exp(rows.click_offset_B, dtype=np.float32)[:, None]
        return odds_BK

    def _tastes(self, rows: Rows, days_B: Ints | None) -> Floats:
        """What is believed of the users' tastes, today or so many days from now [B, K]."""
        taste_BK: Floats = self._taste_UK[rows.user_B]
        if days_B is None:
            return taste_BK
        return self._drifted(taste_BK, self._prior_UK[rows.user_B], days_B)

    def _look(
        self, rows: Rows, days_B: Ints | None = None
    ) -> tuple[Forecast, Floats, Floats, Floats, Floats]:
        """The forecast, and P(click), P(click and engagement) by quality and taste.

        Args:
            rows: B impressions.
            days_B: How many days from now each one is; today where it is left out.

        Returns:
            Forecast; click_GBK, engaged_GBK; the same two averaged over the ad's quality [B, K].
        """
        quality_BG, odds_BK = self._quality(rows), self._odds(rows)
        examination_B1 = self._laws.examination_S[rows.position_B, None].astype(np.float32)
        engagement_odds_BK = self._engagement_odds_TK[rows.topic_B]
        engagement_odds_BK *= np.exp(rows.engagement_offset_B, dtype=np.float32)[:, None]
        click_GBK = np.empty((len(self._odds_G), *odds_BK.shape), dtype=np.float32)
        engaged_GBK = np.empty_like(click_GBK)
        click_BK, engaged_BK = np.zeros_like(odds_BK), np.zeros_like(odds_BK)
        for g, (odds, engagement_odds) in enumerate(
            zip(self._odds_G, self._engagement_odds_G, strict=True)
        ):
            scaled_BK = odds_BK * odds
            np.divide(scaled_BK * examination_B1, 1.0 + scaled_BK, out=click_GBK[g])
            scaled_BK = engagement_odds_BK * engagement_odds
            np.divide(scaled_BK * click_GBK[g], 1.0 + scaled_BK, out=engaged_GBK[g])
            click_BK += click_GBK[g] * quality_BG[:, g, None]
            engaged_BK += engaged_GBK[g] * quality_BG[:, g, None]
        taste_BK = self._tastes(rows, days_B)
        engaged_B = np.einsum("bk,bk->b", taste_BK, engaged_BK)
        forecast = Forecast(
            click_B=np.einsum("bk,bk->b", taste_BK, click_BK),
            engagement_B=engaged_B,
            revenue_B=engaged_B * rows.value_B,
        )
        return forecast, click_GBK, engaged_GBK, click_BK, engaged_BK

    def _learn_tastes(
        self, rows: Rows, outcome: "_Outcome", click_BK: Floats, engaged_BK: Floats
    ) -> Floats:
        """Condition the users on their slates; return each impression's cavity belief [B, K].

        The cavity is the belief after all of the slate's other impressions.
        """
        n_positions, n_tastes = len(self._laws.examination_S), click_BK.shape[1]
        likelihood_BK = outcome.likelihood(click_BK.T, engaged_BK.T).T
        log_QSK = np.log(likelihood_BK).reshape(-1, n_positions, n_tastes)
        users_Q = rows.user_B[::n_positions]
        log_QK = np.log(self._taste_UK[users_Q] + 1e-30) + log_QSK.sum(axis=1)
        self._taste_UK[users_Q] = _softmax(log_QK)
        cavity_QSK: Floats = _softmax(log_QK[:, None, :] - log_QSK)
        return cavity_QSK.reshape(-1, n_tastes)


@dataclass(frozen=True)
class _Outcome:
    """The likelihood of an outcome, as `constant + click · P(click) + engaged · P(engaged)`."""

    constant_B: Floats
    click_B: Floats
    engaged_B: Floats

    @classmethod
    def of(cls, click_B: Ints, engagement_B: Ints) -> "_Outcome":
        """No click: 1 − P(click). Click only: P(click) − P(engaged). Both: P(engaged)."""
        click, engaged = click_B.astype(np.float32), engagement_B.astype(np.float32)
        return cls(1.0 - click, 2.0 * click - 1.0 - engaged, 2.0 * engaged - click)

    def likelihood(self, click_XB: Floats, engaged_XB: Floats) -> Floats:
        """Likelihood of the outcomes under probabilities of shape [X, B]."""
        total = self.constant_B + self.click_B * click_XB + self.engaged_B * engaged_XB
        result: Floats = np.maximum(total, np.float32(1e-12))
        return result


def _softmax(log_XK: Floats) -> Floats:
    """exp, normalised over the last axis."""
    weights = np.exp(log_XK - log_XK.max(axis=-1, keepdims=True))
    result: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return result


def _chunks(n_rows: int, multiple: int) -> Iterator[slice]:
    """Consecutive slices of about `_CHUNK_ROWS` rows, each a whole number of slates."""
    size = max(_CHUNK_ROWS // multiple, 1) * multiple
    return (slice(low, min(low + size, n_rows)) for low in range(0, n_rows, size))
