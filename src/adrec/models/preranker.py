"""Preranker: a first guess at what the ranker will say, from its cross stream alone.

    cross stream of the ranker ─► one hidden layer ─► each task's score, calibrated

It costs a twentieth of the ranker, which then looks only at the best. So do cascades of industry
(Liu et al. 2017; COLD: Wang et al. 2020); other than those it has no features of its own, so there
is nothing to keep in step, and it learns from the ranker's scores of what retrieval found, not from
clicks. How many candidates the ranker must look at is measured (`preranking.py`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adrec.models.layers import StandardScore

_HIDDEN = 64
_EPOCHS, _LEAST_STEPS, _ROWS, _RATE, _DECAY = 20, 300, 2048, 3e-3, 0.01
_STEEP, _FADE = 16.0, 60.0  # the first of a list weighs 17 times as much as the last
_LEAST = 1e-6


class Preranker(nn.Module):
    """Guesses calibrated scores."""

    def __init__(self, width: int, kinds: Sequence[str]) -> None:
        """Args: width of the cross stream; kinds of the tasks."""
        super().__init__()
        self.kinds = tuple(kinds)
        self.inputs, self.outputs = StandardScore(width), StandardScore(len(kinds))
        self.network = nn.Sequential(
            nn.Linear(width, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, len(kinds))
        )

    def forward(self, crossed_BND: Tensor) -> Tensor:
        """Guessed scores of `Ranker.crossed`, [B, N, K]."""
        guessed = self.network(self.inputs(crossed_BND))
        guessed = guessed * self.outputs.spread_X + self.outputs.mean_X
        return torch.stack(
            [
                torch.sigmoid(guessed[..., k]) if kind == "binary" else torch.exp(guessed[..., k])
                for k, kind in enumerate(self.kinds)
            ],
            dim=-1,
        )

    def fit(self, crossed_QND: Tensor, scores_QNK: Tensor, place_QN: Tensor, *, seed: int) -> None:
        """Learn from the ranker.

        Args:
            crossed_QND: `Ranker.crossed` of the candidates of Q requests.
            scores_QNK: the ranker's calibrated scores.
            place_QN: where the ranker puts each, 0 the best.
            seed: of weights and order.
        """
        inputs, wanted = crossed_QND.flatten(0, 1), self._unbounded(scores_QNK).flatten(0, 1)
        weight = 1.0 + _STEEP * torch.exp(-place_QN.flatten() / _FADE)
        self.inputs.fit(inputs)
        self.outputs.fit(wanted)
        inputs, wanted = self.inputs(inputs), self.outputs(wanted)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for layer in (self.network[0], self.network[2]):
                layer.reset_parameters()  # type: ignore[operator]
            steps = max(_LEAST_STEPS, _EPOCHS * len(inputs) // _ROWS)
            optimiser = torch.optim.AdamW(self.parameters(), lr=_RATE, weight_decay=_DECAY)
            slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
            for _ in range(steps):
                rows = torch.randint(0, len(inputs), (_ROWS,))
                squares = (self.network(inputs[rows]) - wanted[rows]).square().mean(-1)
                optimiser.zero_grad()
                (weight[rows] * squares).mean().backward()
                optimiser.step()
                slower.step()

    def _unbounded(self, scores_QNK: Tensor) -> Tensor:
        return torch.stack(
            [
                torch.logit(scores_QNK[..., k], eps=_LEAST)
                if kind == "binary"
                else scores_QNK[..., k].clamp(min=_LEAST).log()
                for k, kind in enumerate(self.kinds)
            ],
            dim=-1,
        )
