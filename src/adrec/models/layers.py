"""Layers shared by both models.

B batch, N candidates, T prefix tokens, L history items, F categorical fields, D width, H heads.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from adrec.features.batches import UNKNOWN_GAP, Fields
from adrec.features.bits import MOST_TASKS

_GAP_BUCKETS = 24
_GAP_STEP = 0.35  # of log(1 + hours): 24 buckets reach 3,100 hours


def leading(rows_VD: Tensor, count: int) -> Tensor:
    """Rows in the `count` orthogonal directions that hold most of their squares, [V, count].

    Products of rows are kept as well as so few numbers can (Eckart & Young 1936); a row of zeros
    stays one. Where there is nothing to leave out, the rows are as they were.
    """
    if rows_VD.shape[1] == count:
        return rows_VD
    directions_DD = torch.linalg.eigh((rows_VD.T @ rows_VD).double()).eigenvectors  # largest last
    kept_VC: Tensor = rows_VD @ directions_DD[:, -count:].flip(1).to(rows_VD.dtype)
    return kept_VC


class FieldEncoder(nn.Module):
    """A group of fields as one vector: an embedding a categorical field, then the dense floats.

    All fields share one table, each with its own range of rows, so that a lookup is one gather.
    """

    def __init__(self, sizes: Sequence[int], dense: int, embedding_dim: int) -> None:
        super().__init__()
        self.width = len(sizes) * embedding_dim + dense
        starts = torch.tensor([0, *sizes], dtype=torch.int64).cumsum(0)
        self.register_buffer("starts_F", starts[:-1], persistent=False)
        self.table = nn.Embedding(max(1, int(starts[-1])), embedding_dim)
        self.starts_F: Tensor
        nn.init.normal_(self.table.weight, std=0.05)
        with torch.no_grad():  # a value that is never missing in training stays neutral if it is
            self.table.weight[self.starts_F] = 0.0

    def forward(self, fields: Fields) -> Tensor:
        """Encode fields [..., F] and [..., D] to [..., width]."""
        embedded = self.table(fields.categorical + self.starts_F).flatten(start_dim=-2)
        return torch.cat([embedded, fields.dense], dim=-1)


class StandardScore(nn.Module):
    """Numbers less their mean, over their spread, within [-10, 10].

    A number that never varied in the sample keeps a spread of 1, as all do until `fit`.
    """

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.register_buffer("mean_X", torch.zeros(numbers))
        self.register_buffer("spread_X", torch.ones(numbers))
        self.mean_X: Tensor
        self.spread_X: Tensor

    @torch.no_grad()
    def fit(self, sample_MX: Tensor) -> None:
        """Take the means and spreads of a sample of rows."""
        mean_X = sample_MX.mean(0)
        self.mean_X.copy_(mean_X)
        # Not `std`: of a single row it is NaN, and of no numbers it warns.
        spread_X = (sample_MX - mean_X).square().mean(0).sqrt()
        self.spread_X.copy_(torch.where(spread_X < 1e-3, 1.0, spread_X))

    def forward(self, x: Tensor) -> Tensor:
        """[..., X] to [..., X]."""
        return ((x - self.mean_X) / self.spread_X).clamp(-10.0, 10.0)


class GapEmbedding(nn.Module):
    """How long ago a history item was, as a vector: buckets of log(1 + hours), one for unknown."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(_GAP_BUCKETS + 1, dim)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, gap_BL: Tensor) -> Tensor:
        """[B, L] gaps to [B, L, D]."""
        bucket = (gap_BL / _GAP_STEP).long().clamp(0, _GAP_BUCKETS - 1) + 1
        vectors: Tensor = self.table(torch.where(gap_BL == UNKNOWN_GAP, 0, bucket))
        return vectors


class OutcomeEmbedding(nn.Module):
    """What came of a history item, as a vector: the sum of one for each task known as positive."""

    def __init__(self, tasks: int, dim: int) -> None:
        super().__init__()
        self.of_bits = nn.Linear(min(tasks, MOST_TASKS), dim, bias=False)
        nn.init.normal_(self.of_bits.weight, std=0.02)

    def forward(self, outcomes_BL: Tensor) -> Tensor:
        """[B, L] uint8 to [B, L, D]."""
        codes_BL = outcomes_BL.int()  # division, not shifts: other runtimes shift only uint8
        bits_BLK = torch.stack(
            [codes_BL // 2**k % 2 for k in range(self.of_bits.in_features)], dim=-1
        )
        vectors: Tensor = self.of_bits(bits_BLK.to(self.of_bits.weight.dtype))
        return vectors


class Dropout(nn.Module):
    """Dropout that draws 16 random bits a unit, in a quarter of the time that nn.Dropout takes.

    On a CPU nn.Dropout draws a double for each unit, which was a sixth of a step of the ranker.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self._dropped_below = min(round(share * 2**16), 2**16 - 1) - 2**15

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share of the units of x [...] in training, and scale the others to make up."""
        if not self.training or self.share == 0.0:
            return x
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        bits = words.random_(-(2**63), None).view(torch.int16)[: x.numel()].view(x.shape)
        return x * (bits >= self._dropped_below).to(x.dtype).mul_(1 / (1 - self.share))


class Constant(nn.Module):
    """What is left of a linear layer that takes nothing in: its bias, or zeros."""

    def __init__(self, width: int, *, bias: bool) -> None:
        super().__init__()
        self.width = width
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., 0] to [..., width]."""
        shape = (*x.shape[:-1], self.width)
        return x.new_zeros(shape) if self.bias is None else self.bias.expand(shape)


def linear(before: int, after: int, *, bias: bool = True) -> nn.Linear | Constant:
    """A linear layer that may also take nothing in: a schema without counters, say.

    Not `nn.Linear(0, after)`: other engines make no zeros of the sum of nothing.
    """
    return nn.Linear(before, after, bias=bias) if before else Constant(after, bias=bias)


def mlp(widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Linear layers with GELU and dropout between, none after the last."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths)):
        if i:
            layers += [nn.GELU(), Dropout(dropout)]
        layers.append(linear(before, after))
    return nn.Sequential(*layers)


class AttentionPool(nn.Module):
    """Pool a sequence by H learned queries, each a softmax over the items; zeros if it is empty."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scores = nn.Linear(dim, heads, bias=False)

    def forward(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """[B, L, D] to [B, H * D]."""
        scores_BLH = self.scores(items_BLD).float()
        weights_BLH = masked_softmax(scores_BLH, mask_BL[..., None], dim=1)
        return torch.einsum("blh,bld->bhd", weights_BLH.to(items_BLD.dtype), items_BLD).flatten(1)


class CrossLayer(nn.Module):
    """A low-rank cross: x0 * (V U x + b) + x. DCN V2, Wang et al. 2021, equation 3."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank, bias=False)
        self.up = nn.Linear(rank, dim)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """[..., D] with [..., D] to [..., D]."""
        crossed: Tensor = x0 * self.up(self.down(x)) + x
        return crossed


def masked_softmax(scores: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Softmax over the places where `mask` holds; zeros where it holds nowhere."""
    weights = torch.softmax(scores.masked_fill(~mask, torch.finfo(scores.dtype).min), dim=dim)
    return weights * mask


class SharedPrefixBlock(nn.Module):
    """A pre-norm transformer block whose candidates read a prefix but not each other.

    The prefix attends to itself. A candidate attends to the prefix's keys and values and to itself,
    so its output does not depend on which others are scored with it, and the prefix is computed
    once for all of them (DCAT, 2507.12704; M-FALCON, Zhai et al. 2024, section 3.4).
    """

    def __init__(self, dim: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.norm_attention = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm_feed = nn.LayerNorm(dim)
        self.feed = nn.Sequential(
            nn.Linear(dim, feed_forward), nn.GELU(), nn.Linear(feed_forward, dim)
        )
        self.dropout = Dropout(dropout)

    def prefix(self, x_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Advance the prefix; also its keys and values, each [B, H, T, D/H], for candidates."""
        q, k, v = self._split(x_BTD)
        return self._rest(x_BTD, self._on_prefix(q, k, v, mask_BT)), k, v

    def keys_values(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """As `prefix`, without advancing it: all that the last block needs of it."""
        dim = x_BTD.shape[-1]
        keys_values = functional.linear(
            self.norm_attention(x_BTD), self.qkv.weight[dim:], self.qkv.bias[dim:]
        )
        k, v = self._heads(keys_values, 2)
        return k, v

    def candidates(self, x_BND: Tensor, k: Tensor, v: Tensor, mask_BT: Tensor) -> Tensor:
        """Advance candidates that read the prefix's keys and values and themselves."""
        own = self._split(x_BND)
        return self._rest(x_BND, self._on_prefix_and_itself(own, k, v, mask_BT))

    def both(self, x_BTD: Tensor, mask_BT: Tensor, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        """`prefix` and `candidates` at once, which reads each weight once."""
        tokens = x_BTD.shape[1]
        joined = torch.cat([x_BTD, x_BND], dim=1)
        q, k, v, own = self._of_both(joined, tokens)
        attended = [
            self._on_prefix(q, k, v, mask_BT),
            self._on_prefix_and_itself(own, k, v, mask_BT),
        ]
        advanced = self._rest(joined, torch.cat(attended, dim=2))
        return advanced[:, :tokens], advanced[:, tokens:]

    def last_of_both(self, x_BTD: Tensor, mask_BT: Tensor, x_BND: Tensor) -> Tensor:
        """`both` of the last block, after which the prefix goes no further."""
        joined = torch.cat([x_BTD, x_BND], dim=1)
        _, k, v, own = self._of_both(joined, x_BTD.shape[1])
        return self._rest(x_BND, self._on_prefix_and_itself(own, k, v, mask_BT))

    def _of_both(
        self, joined: Tensor, tokens: int
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Queries, keys and values of the prefix, then the candidates' own."""
        q, k, v = self._split(joined)
        own = q[:, :, tokens:], k[:, :, tokens:], v[:, :, tokens:]
        return q[:, :, :tokens], k[:, :, :tokens], v[:, :, :tokens], own

    def _on_prefix(self, q: Tensor, k: Tensor, v: Tensor, mask_BT: Tensor) -> Tensor:
        scores = (q @ k.transpose(-1, -2)).float() * self.scale
        weights = masked_softmax(scores, mask_BT[:, None, None, :], dim=-1)
        return weights.to(v.dtype) @ v

    def _on_prefix_and_itself(
        self, own: tuple[Tensor, Tensor, Tensor], k: Tensor, v: Tensor, mask_BT: Tensor
    ) -> Tensor:
        q, own_k, own_v = own
        on_prefix = (q @ k.transpose(-1, -2)).float() * self.scale
        on_itself = (q * own_k).sum(-1, keepdim=True).float() * self.scale
        mask = torch.cat([mask_BT, torch.ones_like(mask_BT[:, :1])], dim=1)
        weights = masked_softmax(
            torch.cat([on_prefix, on_itself], dim=-1), mask[:, None, None, :], dim=-1
        ).to(v.dtype)
        return weights[..., :-1] @ v + weights[..., -1:] * own_v

    def _split(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [B, H, N, D/H]."""
        q, k, v = self._heads(self.qkv(self.norm_attention(x_BND)), 3)
        return q, k, v

    def _heads(self, joined: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[B, N, parts * D] as `parts` tensors [B, H, N, D/H]."""
        batch, count, width = joined.shape
        split = joined.view(batch, count, parts, self.heads, width // parts // self.heads)
        return split.permute(2, 0, 3, 1, 4).unbind(0)

    def _rest(self, x_BND: Tensor, attended: Tensor) -> Tensor:
        x_BND = x_BND + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        fed: Tensor = x_BND + self.dropout(self.feed(self.norm_feed(x_BND)))
        return fed


class evaluating:  # noqa: N801 - a context manager, named like one
    """Without dropout and without gradients; the model's mode is restored after."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._was_training = self._model.training
        self._model.eval()
        self._inference = torch.inference_mode()
        self._inference.__enter__()

    def __exit__(self, *_: object) -> None:
        self._inference.__exit__(None, None, None)
        self._model.train(self._was_training)
