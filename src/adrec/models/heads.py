"""Heads: one small network a task, from what the ranker knows of a candidate to its outcome."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adrec.models.layers import mlp
from adrec.models.losses import binary_loss, ziln_loss, ziln_mean

_PARAMETERS = {"binary": 1, "value": 3}


class TaskHeads(nn.Module):
    """A logit for each binary task; zero-inflated log-normal parameters for each value task.

    A slate position adds a bias of its own to every logit (a shallow tower: Zhao et al. 2019,
    section 4.3). Position 0 stands for unknown and is read as 1: what if the ad were on top.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        dropout: float,
        *,
        kinds: Sequence[str],
        means: Sequence[float],
        scales: Sequence[float],
        positions: int,
    ) -> None:
        super().__init__()
        self.kinds, self.scales = tuple(kinds), tuple(scales)
        self.networks = nn.ModuleList(mlp((dim, hidden, _PARAMETERS[k]), dropout) for k in kinds)
        self.position = nn.Embedding(max(positions, 1) + 1, len(kinds))
        nn.init.zeros_(self.position.weight)
        for network, kind, mean in zip(self.networks, kinds, means, strict=True):
            assert isinstance(network, nn.Sequential)
            last = network[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.bias)
            if kind == "binary":
                rate = min(max(mean, 1e-4), 1 - 1e-4)
                nn.init.constant_(last.bias, float(torch.tensor(rate).logit()))
            else:
                last.bias.data.copy_(torch.tensor([-2.0, -0.5, 0.5]))

    def forward(self, x_BND: Tensor, position_BN: Tensor) -> list[Tensor]:
        """Parameters of each task, [B, N, 1 or 3]."""
        shown = position_BN.clamp(1, self.position.num_embeddings - 1)
        bias_BNK = self.position(shown)
        outputs = []
        for k, network in enumerate(self.networks):
            parameters = network(x_BND).float()
            logit = parameters[..., :1] + bias_BNK[..., k : k + 1]
            outputs.append(torch.cat([logit, parameters[..., 1:]], dim=-1))
        return outputs

    def losses(
        self, outputs: Sequence[Tensor], labels_BNK: Tensor, positive_weights: Sequence[float]
    ) -> list[Tensor]:
        """Loss of each task for each row, each [B, N]. Values are in units of the task's scale."""
        losses = []
        for k, (kind, parameters) in enumerate(zip(self.kinds, outputs, strict=True)):
            labels = labels_BNK[..., k]
            if kind == "binary":
                losses.append(binary_loss(parameters[..., 0], labels, positive_weights[k]))
            else:
                losses.append(ziln_loss(parameters, labels / self.scales[k]))
        return losses

    def predictions(self, outputs: Sequence[Tensor]) -> Tensor:
        """Probability of each binary task and expected value of each value task, [B, N, K]."""
        return torch.stack(
            [
                torch.sigmoid(parameters[..., 0])
                if kind == "binary"
                else ziln_mean(parameters) * self.scales[k]
                for k, (kind, parameters) in enumerate(zip(self.kinds, outputs, strict=True))
            ],
            dim=-1,
        )
