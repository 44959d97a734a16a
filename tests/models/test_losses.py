"""Losses against hand arithmetic, scipy and simulation."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from adrec.models.losses import (
    binary_loss,
    log_expected_count,
    sampled_softmax_loss,
    ziln_loss,
    ziln_mean,
    ziln_sigma,
)


def raw_scale(sigma: float) -> float:
    """What softplus turns into `sigma`: log(exp(sigma) - 1)."""
    return math.log(math.expm1(sigma))


# --- binary -------------------------------------------------------------------------------------


def test_binary_loss_by_hand() -> None:
    # sigmoid(0) = 1/2: a positive of weight 3 costs 3 log 2, a negative log 2.
    # sigmoid(log 3) = 3/4: a positive costs 3 log(4/3), a negative log 4.
    logits = torch.tensor([0.0, 0.0, math.log(3), math.log(3)])
    labels = torch.tensor([1.0, 0.0, 1.0, 0.0])
    expected = [3 * math.log(2), math.log(2), 3 * math.log(4 / 3), math.log(4)]
    assert binary_loss(logits, labels, 3.0).tolist() == pytest.approx(expected, rel=1e-6)


def test_binary_loss_without_a_weight_treats_both_classes_alike() -> None:
    logits = torch.tensor([0.3, -0.3])
    assert torch.equal(*binary_loss(logits, torch.tensor([1.0, 0.0])).view(2, 1))


def test_binary_loss_stays_finite_at_extreme_logits() -> None:
    # -log sigmoid(-1000) = 1000 to float precision.
    loss = binary_loss(torch.tensor([-1000.0, 1000.0]), torch.tensor([1.0, 0.0]))
    assert loss.tolist() == [1000.0, 1000.0]


# --- zero-inflated log-normal -------------------------------------------------------------------


def test_ziln_loss_is_bernoulli_plus_log_normal() -> None:
    rng = np.random.default_rng(0)
    parameters = torch.from_numpy(rng.normal(0.0, 1.0, (64, 3)))
    values = torch.from_numpy(np.where(rng.random(64) < 0.5, rng.lognormal(0.3, 1.5, 64), 0.0))
    p = torch.sigmoid(parameters[:, 0]).numpy()
    mu = parameters[:, 1].numpy()
    sigma = ziln_sigma(parameters[:, 2]).numpy()
    v = values.numpy()
    happens = stats.bernoulli.logpmf(v > 0, p)
    size = np.where(v > 0, stats.lognorm.logpdf(np.where(v > 0, v, 1.0), sigma, 0, np.exp(mu)), 0)
    found = ziln_loss(parameters, values).numpy()
    np.testing.assert_allclose(found, -(happens + size), rtol=1e-10)


def test_ziln_loss_of_one_by_hand() -> None:
    # p = 1/2, mu = 0, sigma = 1, v = 1: log v = 0, so the normal's exponent is 0 and v's own
    # Jacobian log v is 0. The loss is log 2 + log sqrt(2 pi).
    parameters = torch.tensor([[0.0, 0.0, raw_scale(1.0)]])
    loss = ziln_loss(parameters, torch.ones(1))
    assert float(loss) == pytest.approx(math.log(2) + 0.5 * math.log(2 * math.pi), rel=1e-6)


def test_ziln_of_a_zero_teaches_only_the_probability() -> None:
    parameters = torch.tensor([[0.2, 0.7, -0.1]], requires_grad=True)
    ziln_loss(parameters, torch.zeros(1)).sum().backward()
    assert parameters.grad is not None
    # d/dlogit of -log(1 - sigmoid(logit)) = sigmoid(logit)
    expected = [[1 / (1 + math.exp(-0.2)), 0.0, 0.0]]
    np.testing.assert_allclose(parameters.grad, expected, rtol=1e-6)


@pytest.mark.parametrize(("raw", "sigma"), [(-20.0, 0.05), (20.0, 3.0), (0.0, math.log(2))])
def test_ziln_sigma_is_softplus_within_its_bounds(raw: float, sigma: float) -> None:
    assert float(ziln_sigma(torch.tensor(raw))) == pytest.approx(sigma, rel=1e-6)


def test_ziln_mean_by_monte_carlo() -> None:
    p, mu, sigma, draws = 0.3, 0.4, 0.6, 400_000
    rng = np.random.default_rng(1)
    values = np.where(rng.random(draws) < p, rng.lognormal(mu, sigma, draws), 0.0)
    expected = ziln_mean(torch.tensor([[math.log(p / (1 - p)), mu, raw_scale(sigma)]]))
    error = values.std() / math.sqrt(draws)
    assert abs(float(expected) - values.mean()) < 4 * error  # 1 seed in 16,000 is further off


def test_ziln_mean_stays_finite_where_parameters_run_away() -> None:
    assert torch.isfinite(ziln_mean(torch.tensor([[50.0, 1e6, 1e6], [-50.0, -1e6, -1e6]]))).all()


# --- the pool's expected counts -----------------------------------------------------------------


def test_log_expected_count_against_drawing_the_pool() -> None:
    share = np.array([0.5, 0.2, 0.15, 0.1, 0.05, 0.0])
    positives, uniform, rounds = 6, 3, 40_000
    rng = np.random.default_rng(2)
    drawn = rng.choice(len(share), (rounds, positives), p=share)
    in_batch = np.stack([(drawn == ad).any(axis=1) for ad in range(len(share))], axis=1)
    extra = rng.integers(0, len(share), (rounds, uniform))
    in_uniform = np.stack([(extra == ad).sum(axis=1) for ad in range(len(share))], axis=1)
    counts = in_batch + in_uniform
    found = log_expected_count(torch.from_numpy(share), positives, uniform, len(share)).exp()
    error = counts.std(axis=0) / math.sqrt(rounds)
    assert (np.abs(found.numpy() - counts.mean(axis=0)) < 4 * error).all()


def test_log_expected_count_by_hand() -> None:
    # Share 1/2, 2 positives, 1 uniform of 4: 1 - (1/2)^2 + 1/4 = 1. An ad never clicked: 1/4.
    # An ad with every click is in the pool once, never P times: 1 + 1/4.
    found = log_expected_count(torch.tensor([0.5, 0.0, 1.0]), 2, 1, 4).exp()
    assert found.tolist() == pytest.approx([1.0, 0.25, 1.25], rel=1e-5)


def test_log_expected_count_keeps_its_precision_for_rare_ads() -> None:
    # Share 1e-8 of 100 positives: 1e-6 to 7 digits, which 1 - (1 - s)^P in float32 would lose.
    found = log_expected_count(torch.tensor([1e-8]), 100, 0, 10)
    assert float(found.exp()) == pytest.approx(1e-6, rel=1e-4)


# --- sampled softmax ----------------------------------------------------------------------------


def test_sampled_softmax_by_hand() -> None:
    # Logits less log counts: log 6 - log 2 = log 3, log 1 - log 1 = 0, log 8 - log 4 = log 2.
    # p(target) = 3 / (3 + 1 + 2) = 1/2.
    loss = sampled_softmax_loss(
        torch.tensor([[6.0, 1.0, 8.0]]).log(),
        torch.tensor([2.0, 1.0, 4.0]).log(),
        torch.tensor([0]),
        torch.zeros((1, 3), dtype=torch.bool),
    )
    assert loss.tolist() == pytest.approx([math.log(2)], rel=1e-6)


def test_an_accidental_hit_never_counts() -> None:
    logits = torch.tensor([[0.3, 5.0, -0.2], [0.1, 0.2, 0.4]])
    counts = torch.zeros(3)
    hits = torch.tensor([[False, True, False], [False, False, False]])
    target = torch.tensor([0, 2])
    with_hit = sampled_softmax_loss(logits, counts, target, hits)
    # The first row is a softmax over columns 0 and 2 alone.
    alone = sampled_softmax_loss(
        logits[:1, [0, 2]], counts[:2], target[:1], hits[:1, :1].expand(1, 2)
    )
    assert float(with_hit[0]) == pytest.approx(float(alone[0]), rel=1e-6)
    logits.requires_grad_()
    sampled_softmax_loss(logits, counts, target, hits).sum().backward()
    assert logits.grad is not None
    assert float(logits.grad[0, 1]) == 0.0
    assert (logits.grad[1] != 0).all()


def test_the_target_is_never_masked() -> None:
    logits = torch.tensor([[0.3, 5.0, -0.2]])
    counts, target = torch.zeros(3), torch.tensor([1])
    everything = torch.ones((1, 3), dtype=torch.bool)
    # Every entry is a hit, the target too: it alone is left, with probability 1.
    assert sampled_softmax_loss(logits, counts, target, everything).tolist() == [0.0]
    hit = torch.tensor([[False, True, False]])
    none = torch.zeros_like(hit)
    assert torch.equal(
        sampled_softmax_loss(logits, counts, target, hit),
        sampled_softmax_loss(logits, counts, target, none),
    )


# A pool drawn from popularity: ad a is in it COPIES[a] times, as it would be on average. With click
# shares CLICK and every copy counted, the expected loss is
#   sum_t CLICK_t (-(s_t - c log n_t) + log sum_a n_a exp(s_a - c log n_a)),
# least where n_a exp(s_a) / n_a^c is in proportion to CLICK_a: s = log CLICK + (c - 1) log n.
# Only c = 1 gives log CLICK; c = -1, the wrong sign, takes popularity away twice.
COPIES = torch.tensor([8, 1, 4, 2, 5])
CLICK = torch.tensor([0.30, 0.10, 0.28, 0.12, 0.20], dtype=torch.float64)
POOL = torch.repeat_interleave(torch.arange(5), COPIES)
FIRST = torch.cumsum(COPIES, 0) - COPIES  # place of each ad's first copy


def gradient(scores: Tensor, correction: float) -> Tensor:
    """Gradient of the expected loss at `scores`, counts raised to `correction`."""
    scores = scores.clone().requires_grad_()
    log_counts = correction * COPIES.double().log()[POOL]
    logits = scores[POOL].expand(5, -1)
    none = torch.zeros(logits.shape, dtype=torch.bool)
    (CLICK * sampled_softmax_loss(logits, log_counts, FIRST, none)).sum().backward()
    assert scores.grad is not None
    return scores.grad


def test_with_the_right_sign_the_true_logits_are_the_optimum() -> None:
    np.testing.assert_allclose(gradient(CLICK.log(), 1.0), np.zeros(5), atol=1e-12)


@pytest.mark.parametrize("correction", [0.0, -1.0])
def test_without_the_correction_or_with_the_wrong_sign_popular_ads_sink(correction: float) -> None:
    assert gradient(CLICK.log(), correction).abs().max() > 0.1
    optimum = CLICK.log() + (correction - 1) * COPIES.double().log()
    np.testing.assert_allclose(gradient(optimum, correction), np.zeros(5), atol=1e-12)
    assert int(CLICK.argmax()) == 0  # the ad clicked most, and shown most,
    assert int(optimum.argmin()) == 0  # would come last


def test_scores_that_took_in_the_counts_are_unbiased_once_corrected() -> None:
    # Scores log p(click) + log q, each ad once in the pool: the correction leaves log p(click).
    log_counts = COPIES.double().log()
    scores = (CLICK.log() + log_counts).expand(5, 5)
    none = torch.zeros((5, 5), dtype=torch.bool)
    loss = sampled_softmax_loss(scores, log_counts, torch.arange(5), none)
    np.testing.assert_allclose(torch.exp(-loss), CLICK, rtol=1e-9)
    wrong = sampled_softmax_loss(scores, -log_counts, torch.arange(5), none)
    assert (torch.exp(-wrong) - CLICK).abs().max() > 0.1
