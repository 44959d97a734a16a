"""The laws of the synthetic world: what turns a taste and a quality into probabilities.

Shapes: K tastes, T topics, R segments, G qualities on the grid, S positions of a slate,
B impressions (whole slates, the S positions of a slate side by side).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adrec.data.synthetic.drawing import Floats, Ints


@dataclass(frozen=True, kw_only=True)
class Laws:
    """The parameters that turn a taste and a quality into probabilities.

    `P(click) = examination[position] · σ(click_offset + click_affinity[taste, topic] + quality)`;
    `P(engagement | click) = σ(engagement_offset + engagement_affinity[taste, topic]
    + engagement_slope · quality)`. The offsets hold everything observable.
    """

    click_affinity_KT: Floats
    engagement_affinity_KT: Floats
    history_KT: Floats
    """P(topic of a past ad | taste); rows sum to one."""
    quality_G: Floats
    """The grid of ad qualities, in logits."""
    quality_prior_G: Floats
    engagement_slope: float
    examination_S: Floats
    """Probability that a position is looked at."""
    prior_RK: Floats
    """P(taste | segment); rows sum to one."""
    jump: float
    """Probability a day that a taste is drawn anew from the segment's prior."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """B impressions as the laws see them: whole slates, all in one tick, one slate a user."""

    user_B: Ints
    ad_B: Ints
    topic_B: Ints
    position_B: Ints
    """From 0."""
    click_offset_B: Floats
    """The observable part of the click's logit."""
    engagement_offset_B: Floats
    """The observable part of the engagement's logit."""
    value_B: Floats
    """Expected revenue of an engagement, in micros."""

    def part(self, rows: slice) -> "Rows":
        """The rows of a slice."""
        return Rows(**{name: column[rows] for name, column in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """P(click), P(click and engagement) and expected revenue in micros of B impressions."""

    click_B: Floats
    engagement_B: Floats
    revenue_B: Floats

    @classmethod
    def join(cls, parts: Sequence["Forecast"]) -> "Forecast":
        """Forecasts one after the other."""
        columns = {
            name: np.concatenate([vars(part)[name] for part in parts])
            for name in ("click_B", "engagement_B", "revenue_B")
        }
        return cls(**columns)


def true_forecast(laws: Laws, rows: Rows, taste_B: Ints, quality_B: Ints) -> Forecast:
    """The probabilities that outcomes are drawn from.

    Args:
        laws: The world's parameters.
        rows: B impressions.
        taste_B: The user's taste at the time.
        quality_B: The ad's quality, as an index into the grid.
    """
    quality = laws.quality_G[quality_B]
    click = laws.examination_S[rows.position_B] * sigmoid(
        rows.click_offset_B + laws.click_affinity_KT[taste_B, rows.topic_B] + quality
    )
    engagement = click * sigmoid(
        rows.engagement_offset_B
        + laws.engagement_affinity_KT[taste_B, rows.topic_B]
        + laws.engagement_slope * quality
    )
    return Forecast(click_B=click, engagement_B=engagement, revenue_B=engagement * rows.value_B)


def sigmoid(x: Floats) -> Floats:
    """σ(x) = 1 / (1 + exp(−x))."""
    result: Floats = 1.0 / (1.0 + np.exp(-x))
    return result
