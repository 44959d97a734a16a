"""Two-tower retrieval: a user and an ad meet only in an inner product, so ads can be indexed.

    user fields ─┐
    request ─────┼─► MLP 512, 256, 256 ─► normalise ─► u ─┐
    histories ─► attention pools                          ├─► u·a / temperature
    ad fields ─────► MLP 512, 256, 256 ─► normalise ─► a ─┘

Trained with 0.5 pointwise log loss on impressions and 0.5 sampled softmax on positives against the
batch's positives and uniform ads, each logit less the log of its expected count (Yi et al. 2019).
Positives are the clicks of the batch and, far more of them, items of the histories: of the first
sequence that does not hold all that was shown.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from adrec.features.batches import UNKNOWN_GAP, Batch, Fields, HistoryItems, Query
from adrec.features.transforms import Layout
from adrec.models.layers import AttentionPool, FieldEncoder, GapEmbedding, OutcomeEmbedding, mlp
from adrec.models.losses import binary_loss, log_expected_count, sampled_softmax_loss
from adrec.schema import Strict


class TwoTowerConfig(Strict):
    """Sizes of the two-tower network."""

    embedding_dim: int = Field(default=16, ge=1, le=512)
    """Floats a categorical field."""
    hidden: tuple[int, ...] = (512, 256)
    """Widths of the hidden layers of both towers."""
    output_dim: int = Field(default=256, ge=4, le=2048)
    """Width of the space where users and ads meet."""
    history_dim: int = Field(default=64, ge=4, le=1024)
    """Width of a history item before pooling."""
    history_heads: int = Field(default=4, ge=1, le=32)
    """Attention pools a sequence."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of hidden units dropped in training."""
    temperature: float = Field(default=0.07, gt=0.0, le=1.0)
    """Start of the learned temperature."""
    uniform_negatives: int = Field(default=2048, ge=0)
    """Ads drawn uniformly from the catalogue for each batch."""
    history_weight: float = Field(default=1.0, ge=0.0)
    """Weight of the softmax on items of histories, beside that on clicks: each is told from the
    items before it."""
    pointwise_weight: float = Field(default=0.5, ge=0.0, le=1.0)
    """Weight of the log loss on impressions; the sampled softmax has the rest."""


class Draws(NamedTuple):
    """What is drawn at random for a batch: uniform ads [U] with their fields, and for each request
    a number in [0, 1) that picks an item of its history."""

    row_U: Tensor
    ads: Fields
    cut_B: Tensor


class Shares(NamedTuple):
    """Share of the training clicks, and of the histories' items, that each ad has; by row [A]."""

    clicks_A: Tensor
    histories_A: Tensor


class Positives(NamedTuple):
    """P users who each met an ad: vectors of both, the ad's row, and the rows [M] of all ads that
    are no negatives for this user (0: none)."""

    users_PD: Tensor
    ads_PD: Tensor
    row_P: Tensor
    own_PM: Tensor


class TwoTower(nn.Module):
    """User tower and ad tower."""

    def __init__(self, config: TwoTowerConfig, layout: Layout) -> None:
        super().__init__()
        self.config = config
        dim = config.embedding_dim
        self.user_fields = FieldEncoder(layout.user_sizes, layout.user_dense, dim)
        self.request_fields = FieldEncoder(layout.request_sizes, layout.request_dense, dim)
        self.ad_fields = FieldEncoder(layout.ad_sizes, layout.ad_dense, dim)
        self.item = nn.Linear(self.ad_fields.width, config.history_dim)
        self.gap = GapEmbedding(config.history_dim)
        self.outcomes = OutcomeEmbedding(len(layout.task_kinds), config.history_dim)
        # Of all that was shown, most was not liked: no positives.
        met = [i for i, impressions in enumerate(layout.impressions) if not impressions]
        self._met = met[0] if met else None
        self.pools = nn.ModuleList(
            AttentionPool(config.history_dim, config.history_heads) for _ in layout.history_lengths
        )
        pooled = len(self.pools) * config.history_heads * config.history_dim
        entering = self.user_fields.width + self.request_fields.width + pooled
        widths = (*config.hidden, config.output_dim)
        self.user_tower = mlp((entering, *widths), config.dropout)
        self.ad_tower = mlp((self.ad_fields.width, *widths), config.dropout)
        self.log_temperature = nn.Parameter(torch.tensor(config.temperature).log())
        # The pointwise loss has a scale and a bias of its own: cosines are no log odds.
        rate = min(max(layout.task_means[0], 1e-4), 1 - 1e-4)
        self.scale = nn.Parameter(torch.tensor(5.0))
        self.bias = nn.Parameter(torch.tensor(rate).logit())

    @property
    def embeddings(self) -> dict[str, FieldEncoder]:
        """The embedded groups of fields, by name: what the ranker may start from."""
        return {
            "user_fields": self.user_fields,
            "request_fields": self.request_fields,
            "ad_fields": self.ad_fields,
        }

    def users(self, query: Query) -> Tensor:
        """Embed B requests, [B, output_dim], each of length 1."""
        parts = [self.user_fields(query.user), self.request_fields(query.request)]
        items_DH = functional.gelu(self.item(self.ad_fields(query.history_ads)))
        for pool, history in zip(self.pools, query.histories, strict=True):
            items = functional.embedding(history.place_BL, items_DH)
            items = items + self.gap(history.gap_BL) + self.outcomes(history.outcomes_BL)
            parts.append(pool(items, history.mask_BL))
        return functional.normalize(self.user_tower(torch.cat(parts, dim=-1)).float(), dim=-1)

    def ads(self, fields: Fields) -> Tensor:
        """Embed ads [..., F] to [..., output_dim], each of length 1."""
        return functional.normalize(self.ad_tower(self.ad_fields(fields)).float(), dim=-1)

    def loss(self, batch: Batch, draws: Draws, shares: Shares) -> Tensor:
        """Weighted sum of the losses on a batch.

        Args:
            batch: requests with their impressions.
            draws: what was drawn at random for this batch.
            shares: how often each ad is a positive.
        """
        users_BD = self.users(batch.query)
        ads_BND = self.ads(batch.candidates.ads)
        mask_BN = batch.candidates.mask_BN
        clicks_BN = batch.labels_BNK[..., 0]
        logits_BN = torch.einsum("bd,bnd->bn", users_BD, ads_BND) * self.scale + self.bias
        pointwise = binary_loss(logits_BN[mask_BN], clicks_BN[mask_BN]).mean()
        uniform = self.ads(draws.ads)
        softmax = pointwise.new_zeros(())
        positive_BN = mask_BN & (clicks_BN > 0)
        if positive_BN.any():
            request_P, place_P = positive_BN.nonzero(as_tuple=True)
            clicked = Positives(
                # Not users_BD[request_P]: its gradient is added up in whatever order threads come.
                users_PD=users_BD.index_select(0, request_P),
                ads_PD=ads_BND[request_P, place_P],
                row_P=batch.ad_row_BN[request_P, place_P],
                own_PM=torch.where(positive_BN, batch.ad_row_BN, 0)[request_P],
            )
            softmax = softmax + self._softmax(clicked, uniform, draws.row_U, shares.clicks_A)
        if self.config.history_weight and self._met is not None:
            past = self._past_positives(batch.query, self._met, draws.cut_B)
            if len(past.row_P):
                loss = self._softmax(past, uniform, draws.row_U, shares.histories_A)
                softmax = softmax + self.config.history_weight * loss
        weight = self.config.pointwise_weight
        return weight * pointwise + (1 - weight) * softmax

    def _past_positives(self, query: Query, sequence: int, cut_B: Tensor) -> Positives:
        """One item of each request's history of some sequence, to be told from the items before it.

        What came with the request, and the other histories, belong to a later time: they are left
        out, and gaps are counted from the item.
        """
        history = query.histories[sequence]
        count_B = history.mask_BL.sum(1)
        some = count_B.nonzero().squeeze(1)
        history = _rows_of(history, some)
        length = history.mask_BL.shape[1]
        place = length - count_B[some] + (cut_B[some] * count_B[some]).long()
        each = torch.arange(len(some), device=place.device)
        before = history.mask_BL & (torch.arange(length, device=place.device) < place[:, None])
        hours = history.gap_BL.expm1() - history.gap_BL[each, place][:, None].expm1()
        unknown = history.gap_BL == UNKNOWN_GAP
        unknown |= unknown[each, place][:, None]
        gap = torch.where(unknown, UNKNOWN_GAP, hours.clamp(min=0.0).log1p())
        histories = [_rows_of(other, some) for other in query.histories]
        histories = [replace(h, mask_BL=torch.zeros_like(h.mask_BL)) for h in histories]
        histories[sequence] = replace(history, mask_BL=before, gap_BL=gap)
        earlier = Query(
            user=_fields_of(query.user, some),
            request=_missing(_fields_of(query.request, some)),
            history_ads=query.history_ads,
            histories=tuple(histories),
        )
        target = _fields_of(query.history_ads, history.place_BL[each, place])
        return Positives(
            users_PD=self.users(earlier),
            ads_PD=self.ads(target),
            row_P=history.row_BL[each, place],
            own_PM=torch.where(history.mask_BL, history.row_BL, 0),
        )

    def _softmax(
        self, positives: Positives, uniform_UD: Tensor, row_U: Tensor, share_A: Tensor
    ) -> Tensor:
        """Mean sampled softmax of positives against each other's ads and the uniform ones."""
        row_P = positives.row_P
        distinct, target_P = torch.unique(row_P, return_inverse=True)
        # One vector for each distinct positive ad: the first row that shows it.
        first = torch.full((len(distinct),), len(row_P), device=row_P.device).scatter_reduce(
            0, target_P, torch.arange(len(row_P), device=row_P.device), "amin"
        )
        row_S = torch.cat([distinct, row_U])
        vectors_SD = torch.cat([positives.ads_PD[first], uniform_UD])
        with torch.autocast(row_P.device.type, enabled=False):  # bf16 is 0.06 off in a logit
            logits_PS = positives.users_PD @ vectors_SD.T / self.log_temperature.exp()
        log_counts_S = log_expected_count(share_A[row_S], len(row_P), len(row_U), len(share_A) - 1)
        hits_PS = _among(row_S, positives.own_PM)
        return sampled_softmax_loss(logits_PS, log_counts_S, target_P, hits_PS).mean()


def _among(row_S: Tensor, own_PM: Tensor) -> Tensor:
    """Which entries of a pool are among each positive's own ads, [P, S]."""
    pool, place_S = torch.unique(row_S, return_inverse=True)
    at_PM = torch.searchsorted(pool, own_PM).clamp(max=len(pool) - 1)
    at_PM = torch.where(pool[at_PM] == own_PM, at_PM, len(pool))
    owned = own_PM.new_zeros((len(own_PM), len(pool) + 1), dtype=torch.bool)
    return owned.scatter_(1, at_PM, True)[:, place_S]


def _rows_of(history: HistoryItems, rows: Tensor) -> HistoryItems:
    return HistoryItems(
        place_BL=history.place_BL[rows],
        row_BL=history.row_BL[rows],
        gap_BL=history.gap_BL[rows],
        outcomes_BL=history.outcomes_BL[rows],
        mask_BL=history.mask_BL[rows],
    )


def _fields_of(fields: Fields, rows: Tensor) -> Fields:
    return Fields(fields.categorical[rows], fields.dense[rows])


def _missing(fields: Fields) -> Fields:
    return Fields(torch.zeros_like(fields.categorical), torch.zeros_like(fields.dense))
