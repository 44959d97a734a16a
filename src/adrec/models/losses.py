"""Losses, as pure functions of logits and labels. Each is checked against hand arithmetic."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def binary_loss(logits_M: Tensor, labels_M: Tensor, positive_weight: float = 1.0) -> Tensor:
    """Log loss of each row, [M]: -(w y log p + (1 - y) log(1 - p)) with p = sigmoid(logit)."""
    loss = functional.binary_cross_entropy_with_logits(logits_M, labels_M, reduction="none")
    return loss * torch.where(labels_M > 0, positive_weight, 1.0)


def ziln_loss(parameters_M3: Tensor, values_M: Tensor) -> Tensor:
    """Negative log-likelihood of a zero-inflated log-normal, [M] (Wang et al. 2019, equation 7).

    A value is 0 with probability 1 - p, else log-normal with location mu and scale sigma.

    Args:
        parameters_M3: logit of p, mu, and the scale before `ziln_sigma`.
        values_M: values, zero or more.
    """
    logit, mu, raw = parameters_M3.unbind(-1)
    positive = values_M > 0
    happens = functional.binary_cross_entropy_with_logits(
        logit, positive.to(logit.dtype), reduction="none"
    )
    sigma = ziln_sigma(raw)
    log_value = torch.log(torch.where(positive, values_M, 1.0))
    size = (
        0.5 * ((log_value - mu) / sigma) ** 2
        + torch.log(sigma)
        + log_value
        + 0.5 * math.log(2 * math.pi)
    )
    return happens + torch.where(positive, size, 0.0)


def ziln_sigma(raw: Tensor) -> Tensor:
    """Scale of the log-normal: softplus, kept within [0.05, 3] so that the mean stays finite."""
    return functional.softplus(raw).clamp(0.05, 3.0)


def ziln_mean(parameters_M3: Tensor) -> Tensor:
    """Expected value p exp(mu + sigma^2 / 2), [M]."""
    logit, mu, raw = parameters_M3.unbind(-1)
    return torch.sigmoid(logit) * torch.exp(mu.clamp(max=20.0) + 0.5 * ziln_sigma(raw) ** 2)


def log_expected_count(
    positive_share_S: Tensor, positives: int, uniform: int, catalogue: int
) -> Tensor:
    """Log of how often each ad is expected in a pool of candidates, [S].

    The pool joins the distinct ads of a batch's P positives, drawn from the log, with U ads drawn
    uniformly from a catalogue of A: an ad with share s of the log's positives is expected
    1 - (1 - s)^P + U / A times.

    Args:
        positive_share_S: share of the log's positives that are of this ad.
        positives: positives in the batch, P.
        uniform: uniform draws, U.
        catalogue: number of ads, A.
    """
    share_S = positive_share_S.clamp(max=1 - 1e-6)
    return torch.log(-torch.expm1(positives * torch.log1p(-share_S)) + uniform / catalogue)


def sampled_softmax_loss(
    logits_PS: Tensor, log_counts_S: Tensor, target_P: Tensor, hits_PS: Tensor
) -> Tensor:
    """Cross-entropy of each positive against a sampled pool, corrected for how it was sampled, [P].

    From every logit the log of its expected count is taken away, so that frequent ads are not
    pushed down for being frequent (Yi et al. 2019, section 4; Bengio and Senecal 2008). An
    accidental hit, a pool entry that is another positive of the same request or the target again,
    is masked.

    Args:
        logits_PS: score of each positive's user with each ad of the pool.
        log_counts_S: see `log_expected_count`.
        target_P: place of each positive's own ad in the pool.
        hits_PS: True where the pool entry must not count as a negative.
    """
    corrected = logits_PS - log_counts_S
    hits = hits_PS.scatter(1, target_P[:, None], False)
    corrected = corrected.masked_fill(hits, float("-inf"))
    return functional.cross_entropy(corrected, target_P, reduction="none")
