"""Forecasts are what they say they are; the observer agrees with enumeration."""

import itertools

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from adrec.data.synthetic import PRESETS, generate
from adrec.data.synthetic.drawing import Floats
from adrec.data.synthetic.laws import Laws, Rows, sigmoid
from adrec.data.synthetic.oracle import IdealObserver
from data.synthetic.statistics import MAX_Z, last_day_ms


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
    joint_KGG: Floats = np.einsum("k,g,h->kgh", laws.prior_RK[0], q_G, q_G)
    return joint_KGG


def first_click(laws: Laws, rows: Rows, taste_K: Floats, quality_G: Floats) -> float:
    """P(click on the slate's first ad), from what is believed of the user and of that ad."""
    belief_KGG = np.einsum("k,g,h->kgh", taste_K, quality_G, laws.quality_prior_G)
    return sum(
        float((belief_KGG * joint_likelihood(laws, rows, [(1, engaged)])).sum())
        for engaged in (0, 1)
    )


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
    # The next forecasts for ad 0 rest on the quality that the click taught and on a taste: the
    # first user's from the slate, the second user's as it was.
    quality_G = posterior_KGG.sum(axis=(0, 2))
    for user, taste_K in enumerate((posterior_KGG.sum(axis=(1, 2)), laws.prior_RK[0])):
        click = first_click(laws, seen, taste_K, quality_G)
        assert observer.predict(small_slate(user)).click_B[0] == pytest.approx(click, rel=1e-4)


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
    for user, taste_K in enumerate((belief_K, prior_K)):
        seen = small_slate(user)
        click = first_click(laws, seen, taste_K, laws.quality_prior_G)
        assert observer.predict(seen).click_B[0] == pytest.approx(click, rel=1e-5)
        clicks_B, later = observer.predict_clicks(seen, 3), observer.predict(seen, 3)
        np.testing.assert_allclose(clicks_B, later.click_B, rtol=1e-5)
        drifted = clicks_B[0] != pytest.approx(click, rel=1e-4)
        assert drifted == (user == 0)  # the other's tastes are the prior ones
