"""The preranker learns what it is taught, the best of a list above all, and disturbs nothing."""

import numpy as np
import pytest
import torch
from torch import Tensor

from adrec.models.preranker import Preranker

KINDS = ("binary", "value")


def lesson(requests: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cross streams, and scores that follow from them."""
    generator = torch.Generator().manual_seed(0)
    crossed = torch.randn((requests, 50, 8), generator=generator) * 3.0 + 1.0
    click = torch.sigmoid(crossed[..., 0] + 2.0 * torch.tanh(crossed[..., 1]) - 3.0)
    scores = torch.stack([click, torch.exp(crossed[..., 2] / 2.0 + 5.0)], dim=-1)
    place = (-click).argsort(dim=1).argsort(dim=1)
    return crossed, scores, place


def test_it_learns_the_order() -> None:
    crossed, scores, place = lesson(400)
    preranker = Preranker(8, KINDS)
    preranker.fit(crossed[:350], scores[:350], place[:350], seed=0)
    with torch.inference_mode():
        guessed = preranker(crossed[350:])
    for k in range(2):
        true, found = scores[350:, :, k].flatten().numpy(), guessed[..., k].flatten().numpy()
        order = np.corrcoef(true.argsort().argsort(), found.argsort().argsort())[0, 1]
        assert order > 0.95
    assert ((guessed[..., 0] > 0) & (guessed[..., 0] < 1)).all()
    assert guessed[..., 1].mean() / scores[350:, :, 1].mean() == pytest.approx(1.0, rel=0.2)


def test_a_seed_fixes_it_and_no_other_random_number_changes() -> None:
    crossed, scores, place = lesson(10)
    weights = []
    torch.manual_seed(7)
    expected = torch.rand(3)
    for _ in range(2):
        preranker = Preranker(8, KINDS)
        torch.manual_seed(7)
        preranker.fit(crossed, scores, place, seed=3)
        assert torch.equal(torch.rand(3), expected)
        weights.append(preranker.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_scores_at_the_bounds_are_no_infinities() -> None:
    crossed, scores, place = lesson(4)
    scores[0, :5] = torch.tensor([1.0, 0.0])
    scores[1, :5] = torch.tensor([0.0, 0.0])
    preranker = Preranker(8, KINDS)
    preranker.fit(crossed, scores, place, seed=0)
    assert torch.isfinite(preranker(crossed)).all()
