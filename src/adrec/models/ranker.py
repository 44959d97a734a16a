"""Transformer ranker: the request once, then one token a candidate.

    user fields, request ─► linear ─► P tokens ─┐
    histories ─► one token an ad ───────────────┼─► prefix ──► blocks ──┐ keys, values
                                                                        ▼
    ad fields + crosses ─► candidate token ───────────────────► blocks ─► c ─┐
    (prefix summary + ad + crosses) ─► DCN V2 cross layers ─────────────► x ─┴─► heads

Crosses are what is known of this user and this ad together: the counters, and for each categorical
field of the ad how many ads of each history share its value (hard search: SIM, Pi et al. 2020), and
of a history of impressions, how many of those were clicked.

The user's and request's fields are embedded, joined and projected to P tokens (the auto-split
tokens of OneTrans, 2510.26104), so the prefix does not grow with the number of fields. A candidate
reads the prefix and itself, never another candidate: its score does not depend on the slate. The
cross stream multiplies user and ad features explicitly, which attention alone does poorly
(AutoInt .8119, DCN V2 .8145 AUC on Criteo_x4: BARS).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from adrec.features.batches import Batch, Candidates, Fields, HistoryItems, Query
from adrec.features.transforms import Layout
from adrec.models.heads import TaskHeads
from adrec.models.layers import (
    CrossLayer,
    FieldEncoder,
    GapEmbedding,
    OutcomeEmbedding,
    SharedPrefixBlock,
    StandardScore,
    leading,
    linear,
)
from adrec.models.matches import histories_of, known_together
from adrec.schema import Strict


class RankerConfig(Strict):
    """Sizes of the ranker."""

    embedding_dim: int = Field(default=16, ge=1, le=512)
    """Floats a categorical field."""
    width: int = Field(default=256, ge=8, le=4096)
    """Width of a token."""
    layers: int = Field(default=3, ge=1, le=48)
    """Transformer blocks."""
    heads: int = Field(default=8, ge=1, le=64)
    """Attention heads; they divide the width."""
    feed_forward: int = Field(default=1024, ge=8)
    """Hidden width of a block."""
    field_tokens: int = Field(default=4, ge=1, le=64)
    """Prefix tokens that the user's and the request's fields are projected to."""
    history_tokens: int = Field(default=10, ge=1, le=1000)
    """Most recent items of each history that become prefix tokens; crosses look at all items."""
    cross_layers: int = Field(default=3, ge=0, le=16)
    """DCN V2 layers; 0 leaves the sum of the features as it is."""
    cross_rank: int = Field(default=64, ge=1)
    """Rank of each cross layer."""
    head_hidden: int = Field(default=128, ge=1)
    """Hidden width of each task's head."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of units dropped in training."""
    start_from_two_tower: bool = True
    """Whether embeddings start as the two-tower's, of which no more are kept than there is room
    for."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        return self


class Opening(NamedTuple):
    """B requests before the blocks. mask_BT: which tokens exist. summary_BD: what the cross stream
    takes of the request."""

    x_BTD: Tensor
    mask_BT: Tensor
    summary_BD: Tensor


@dataclass(frozen=True)
class Prefix:
    """All that candidates need of their request.

    keys_JBHTE, values_JBHTE: of each of the J blocks, E wide. mask_BT: which tokens exist.
    summary_BD: what the cross stream takes of the request.
    """

    keys_JBHTE: Tensor
    values_JBHTE: Tensor
    mask_BT: Tensor
    summary_BD: Tensor


class Ranker(nn.Module):
    """Scores candidates of requests for every task."""

    def __init__(self, config: RankerConfig, layout: Layout) -> None:
        super().__init__()
        self.config, self.layout = config, layout
        dim, width = config.embedding_dim, config.width
        self.user_fields = FieldEncoder(layout.user_sizes, layout.user_dense, dim)
        self.request_fields = FieldEncoder(layout.request_sizes, layout.request_dense, dim)
        self.ad_fields = FieldEncoder(layout.ad_sizes, layout.ad_dense, dim)
        histories = len(layout.history_lengths)
        known = self.user_fields.width + self.request_fields.width + histories
        self.field_tokens = linear(known, config.field_tokens * width)
        self.ad_token = nn.Linear(self.ad_fields.width, width)
        matches = sum(5 if impressions else 3 for impressions in layout.impressions)
        crosses = layout.counters + matches * len(layout.ad_sizes)
        self.scores = StandardScore(crosses)
        self.cross_token = nn.Sequential(linear(crosses, width), nn.GELU(), nn.Linear(width, width))
        self.gap = GapEmbedding(width)
        self.outcomes = OutcomeEmbedding(len(layout.task_kinds), width)
        self.sequence = nn.Embedding(max(1, len(layout.history_lengths)), width)
        nn.init.normal_(self.sequence.weight, std=0.02)
        items = [min(length, config.history_tokens) for length in layout.history_lengths]
        sequence_S = torch.arange(max(1, len(items))).repeat_interleave(
            torch.tensor(items or [1], dtype=torch.int64)
        )
        self.register_buffer("sequence_S", sequence_S, persistent=False)
        self.sequence_S: Tensor
        self.blocks: Iterable[SharedPrefixBlock] = nn.ModuleList(  # type: ignore[assignment]
            SharedPrefixBlock(width, config.heads, config.feed_forward, config.dropout)
            for _ in range(config.layers)
        )
        self.request_cross = linear(known, width)
        self.history_cross = nn.Linear(width, width, bias=False)
        self.ad_cross = nn.Linear(self.ad_fields.width, width)
        self.pair_cross = linear(crosses, width, bias=False)
        self.cross = nn.ModuleList(
            CrossLayer(width, config.cross_rank) for _ in range(config.cross_layers)
        )
        self.norm = nn.LayerNorm(2 * width)
        self.heads = TaskHeads(
            2 * width,
            config.head_hidden,
            config.dropout,
            kinds=layout.task_kinds,
            means=layout.task_means,
            scales=layout.value_scales,
            positions=layout.positions,
        )

    def prefix(self, query: Query) -> Prefix:
        """Encode B requests once, for any number of candidates."""
        items = recent_items(query, self.config.history_tokens)
        return self.encode(
            self.opening(
                query.user,
                query.request,
                history_lengths(query),
                self.item_tokens(query, items),
                items.gap_BL,
                items.outcomes_BL,
                items.mask_BL,
            )
        )

    def opening(
        self,
        user: Fields,
        request: Fields,
        lengths_BH: Tensor,
        items_BSD: Tensor,
        gap_BS: Tensor,
        outcomes_BS: Tensor,
        mask_BS: Tensor,
    ) -> Opening:
        """The tokens of B requests.

        Args:
            user, request: fields of B requests.
            lengths_BH: `history_lengths`.
            items_BSD: tokens of the ads of `recent_items`; gap_BS, outcomes_BS, mask_BS: theirs.
        """
        known = torch.cat(
            [self.user_fields(user), self.request_fields(request), lengths_BH], dim=-1
        )
        width = self.config.width
        fields = self.field_tokens(known).view(-1, self.config.field_tokens, width)
        items = items_BSD + self.gap(gap_BS) + self.outcomes(outcomes_BS)
        items = items + self.sequence(self.sequence_S)
        past = mask_BS[..., None]
        pooled = (items * past).sum(1) / past.sum(1).clamp(min=1)
        return Opening(
            torch.cat([fields, items], dim=1),
            torch.cat([torch.ones_like(fields[..., 0], dtype=torch.bool), mask_BS], dim=1),
            self.request_cross(known) + self.history_cross(pooled),
        )

    def encode(self, opening: Opening) -> Prefix:
        """Lead requests through the blocks."""
        x_BTD, mask_BT, summary_BD = opening
        keys, values = [], []
        *before, last = self.blocks
        for block in before:
            x_BTD, k, v = block.prefix(x_BTD, mask_BT)
            keys.append(k)
            values.append(v)
        k, v = last.keys_values(x_BTD)  # the prefix goes no further
        return Prefix(torch.stack([*keys, k]), torch.stack([*values, v]), mask_BT, summary_BD)

    def item_tokens(self, query: Query, items: HistoryItems) -> Tensor:
        """Tokens of the ads of `recent_items`, [B, S, D]."""
        if not query.histories:
            return self.ad_token.weight.new_zeros((*items.place_BL.shape, self.config.width))
        ads_DW = self.ad_token(self.ad_fields(query.history_ads))
        return functional.embedding(items.place_BL, ads_DW)

    def ads(self, fields: Fields) -> Tensor:
        """What the ranker makes of ads by themselves: token, then cross input, [..., 2D]."""
        encoded = self.ad_fields(fields)
        return torch.cat([self.ad_token(encoded), self.ad_cross(encoded)], dim=-1)

    @torch.no_grad()
    def fit_numbers(self, batches: Iterable[Batch]) -> None:
        """Scale what is known of user and ad together by a sample of impressions."""
        impressions = self.layout.impressions
        rows = [
            known_together(histories_of(b.query, impressions), b.candidates)[b.candidates.mask_BN]
            for b in batches
        ]
        self.scores.fit(torch.cat(rows))

    def score(self, query: Query, candidates: Candidates) -> list[Tensor]:
        """Parameters of each task for each candidate, [B, N, 1 or 3]."""
        histories = histories_of(query, self.layout.impressions)
        return self.judge(
            self.prefix(query),
            self.ads(candidates.ads),
            known_together(histories, candidates),
            candidates.position_BN,
        )

    def judge(
        self, prefix: Prefix, ads_BNP: Tensor, together_BNX: Tensor, position_BN: Tensor
    ) -> list[Tensor]:
        """`score` from what it reads.

        Args:
            prefix: of B requests.
            ads_BNP: `ads` of the candidates, P = 2D.
            together_BNX: `known_together`.
            position_BN: places on the slate.
        """
        x_BND, crossed_BND = self._streams(prefix.summary_BD, ads_BNP, together_BNX)
        for j, block in enumerate(self.blocks):
            x_BND = block.candidates(
                x_BND, prefix.keys_JBHTE[j], prefix.values_JBHTE[j], prefix.mask_BT
            )
        return self._outputs(x_BND, crossed_BND, position_BN)

    def judge_at_once(
        self, opening: Opening, ads_BNP: Tensor, together_BNX: Tensor, position_BN: Tensor
    ) -> list[Tensor]:
        """`judge` of candidates that go through the blocks beside their request; see there for the
        arguments. Faster for a few, where most of the time is that of reading the weights."""
        x_BND, crossed_BND = self._streams(opening.summary_BD, ads_BNP, together_BNX)
        x_BTD, mask_BT = opening.x_BTD, opening.mask_BT
        *before, last = self.blocks
        for block in before:
            x_BTD, x_BND = block.both(x_BTD, mask_BT, x_BND)
        return self._outputs(last.last_of_both(x_BTD, mask_BT, x_BND), crossed_BND, position_BN)

    def _streams(
        self, summary_BD: Tensor, ads_BNP: Tensor, together_BNX: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Candidates' tokens before the blocks, and the cross stream, each [B, N, D]."""
        token_BND, cross_BND = ads_BNP.chunk(2, dim=-1)
        crosses_BNX = self.scores(together_BNX)
        x_BND = token_BND + self.cross_token(crosses_BNX)
        return x_BND, self.crossed(summary_BD, cross_BND, crosses_BNX)

    def _outputs(self, x_BND: Tensor, crossed_BND: Tensor, position_BN: Tensor) -> list[Tensor]:
        both = self.norm(torch.cat([x_BND, crossed_BND], dim=-1))
        outputs: list[Tensor] = self.heads(both, position_BN)
        return outputs

    def crossed(self, summary_BD: Tensor, cross_BND: Tensor, crosses_BNX: Tensor) -> Tensor:
        """The cross stream, [B, N, D].

        Args:
            summary_BD: of the prefix.
            cross_BND: second half of `ads`.
            crosses_BNX: `known_together`, scaled.
        """
        x0_BND = summary_BD[:, None] + cross_BND + self.pair_cross(crosses_BNX)
        x_BND: Tensor = x0_BND
        for layer in self.cross:
            x_BND = layer(x0_BND, x_BND)
        return x_BND

    def forward(self, batch: Batch) -> list[Tensor]:
        """`score` of a batch."""
        return self.score(batch.query, batch.candidates)

    def start_from(self, tables: Mapping[str, FieldEncoder]) -> None:
        """Take over embeddings that another model has learned of the same values.

        Of longer ones the `leading` directions are kept; shorter ones are of no use.

        Args:
            tables: by name of the group: `user_fields`, `request_fields`, `ad_fields`.
        """
        for name, learned in tables.items():
            own, known_VD = getattr(self, name).table.weight, learned.table.weight.data
            if len(own) == len(known_VD) and own.shape[1] <= known_VD.shape[1]:
                own.data.copy_(leading(known_VD, own.shape[1]))

    def loss(
        self,
        batch: Batch,
        task_weights: Sequence[float],
        positive_weights: Sequence[float],
        negative_rate: float = 1.0,
    ) -> Tensor:
        """Weighted sum over tasks of the mean loss of the batch's impressions.

        Args:
            batch: requests with their impressions.
            task_weights: weight of each task.
            positive_weights: weight of a positive of each binary task.
            negative_rate: share of the impressions without a click that the batch still has. All
                tasks but the click give those left the weight of those left out.
        """
        outputs = self(batch)
        mask = batch.candidates.mask_BN
        losses = self.heads.losses(outputs, batch.labels_BNK, positive_weights)
        means = [losses[0][mask].mean()]
        stands_for = torch.where(batch.labels_BNK[..., 0] > 0, 1.0, 1.0 / negative_rate)[mask]
        means += [(loss[mask] * stands_for).sum() / stands_for.sum() for loss in losses[1:]]
        return torch.stack([w * m for w, m in zip(task_weights, means, strict=True)]).sum()

    def predict(self, query: Query, candidates: Candidates) -> Tensor:
        """Probability or expected value of each task, uncalibrated, [B, N, K]."""
        return self.heads.predictions(self.score(query, candidates))


def recent_items(query: Query, count: int) -> HistoryItems:
    """The last `count` items of each history, one history after the other, S in all.

    Without any histories it is one item that is not there.
    """
    if not query.histories:
        none_B1 = query.user.dense.new_zeros((len(query), 1))
        return HistoryItems(none_B1.long(), none_B1.long(), none_B1, none_B1.byte(), none_B1.bool())
    recent = [history.last(count) for history in query.histories]
    return HistoryItems(
        place_BL=torch.cat([items.place_BL for items in recent], dim=1),
        row_BL=torch.cat([items.row_BL for items in recent], dim=1),
        gap_BL=torch.cat([items.gap_BL for items in recent], dim=1),
        outcomes_BL=torch.cat([items.outcomes_BL for items in recent], dim=1),
        mask_BL=torch.cat([items.mask_BL for items in recent], dim=1),
    )


def history_lengths(query: Query) -> Tensor:
    """How many items each history has, [B, H], as log(1 + items) / 2."""
    lengths = [history.mask_BL.sum(1).log1p() / 2 for history in query.histories]
    return torch.stack(lengths, dim=1) if lengths else query.user.dense.new_zeros((len(query), 0))
