"""Tastes, topics and effects: drawing the laws of a world."""

from dataclasses import dataclass

import numpy as np

from adrec.data.synthetic.columns import AGES, DEVICES, FORMATS, PLACES
from adrec.data.synthetic.config import WorldConfig
from adrec.data.synthetic.drawing import Bools, Floats, Ints
from adrec.data.synthetic.laws import Laws


def draw_laws(config: WorldConfig, rng: np.random.Generator) -> tuple[Laws, Ints, Bools]:
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


def _draw_topics(config: WorldConfig, rng: np.random.Generator) -> tuple[Bools, Ints]:
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


@dataclass(frozen=True, kw_only=True)
class Effects:
    """Effects of what is observable, in logits (revenue_C: a factor)."""

    device_format_DF: Floats
    hour_category_HC: Floats
    age_category_AC: Floats
    place_P: Floats
    advertiser_V: Floats
    advertiser_engagement_V: Floats
    revenue_C: Floats

    @classmethod
    def draw(cls, config: WorldConfig, rng: np.random.Generator) -> "Effects":
        """Normal around 0, a sine over the hours, log-normal factors."""
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
