"""Two-tower retrieval: a user and an ad meet only in an inner product, so ads can be indexed.

    user fields ─┐
    request ─────┼─► MLP 512, 256 ─┐
    histories ─┬─► attention pools ┘├─► u ─┐
               └─► sums ─► linear ──┘      ├─► u·a / temperature + b
    ad fields ─┬─► linear ──────────┐      │
    standing ──┴─► MLP 512, 256 ────┴─► a ─┤
            both ─► MLP 64 ───────────► b ─┘

The linear parts alone are a factorised item-to-item model, what EASE (Steck 2019) is with a full
matrix: on few interactions an ad it is what generalises, and the MLPs add what it cannot say. u and
a have length 1; b is how much anyone clicks on the ad. a and b know how the ad stands now: its
counters, as of the last time the index was built. In the index, b times the temperature is one more
dimension, where u holds a 1.

Trained with a pointwise log loss on impressions and a softmax on positives against the batch's
positives and uniform ads, each logit less the log of its expected count (Yi et al. 2019), or
against the whole catalogue where that is small. Positives are the clicks of the batch and items of
the first history that does not hold all that was shown. A batch is of one period between two builds
of the index.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from adrec.features.batches import (
    UNKNOWN_GAP,
    Batch,
    Fields,
    HistoryItems,
    Query,
    to_device,
)
from adrec.features.transforms import Encoded, Layout
from adrec.models.layers import (
    AttentionPool,
    FieldEncoder,
    GapEmbedding,
    OutcomeEmbedding,
    evaluating,
    linear,
    mlp,
)
from adrec.models.losses import binary_loss, log_expected_count, sampled_softmax_loss
from adrec.schema import Strict

_BIAS_HIDDEN = 64
_CHUNK_ADS = 65_536


class TwoTowerConfig(Strict):
    """Sizes of the two-tower network."""

    embedding_dim: int = Field(default=64, ge=1, le=512)
    """Floats a categorical field. It bounds what can be told of single ads: more find more, and
    take memory for each ad."""
    hidden: tuple[int, ...] = (512, 256)
    """Widths of the hidden layers of both towers."""
    output_dim: int = Field(default=256, ge=4, le=2048)
    """Width of the space where users and ads meet."""
    history_dim: int = Field(default=64, ge=4, le=1024)
    """Width of a history item before pooling."""
    history_heads: int = Field(default=4, ge=1, le=32)
    """Attention pools a sequence."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of hidden units, and of the items of each history, dropped in training."""
    temperature: float = Field(default=0.07, gt=0.0, le=1.0)
    """Start of the learned temperature."""
    uniform_negatives: int = Field(default=2048, ge=0)
    """Ads drawn uniformly from the catalogue for each batch; where it is smaller, all of it."""
    history_weight: float = Field(default=1.0, ge=0.0)
    """Weight of the softmax on items of histories, beside that on clicks: each is told from the
    items before it."""
    pointwise_weight: float = Field(default=0.5, ge=0.0, le=1.0)
    """Weight of the log loss on impressions; the sampled softmax has the rest."""


class Draws(NamedTuple):
    """What is drawn for a batch: a pool of ads [U] with their fields, how they stand, and which had
    not been shown by then or in all of training, how the batch's own ads stand [B, N, S], and for
    each request a number in [0, 1) that picks an item of its history. A pool of the whole catalogue
    lists its ads in order."""

    row_U: Tensor
    ads: Fields
    later_U: Tensor
    never_U: Tensor
    standing_US: Tensor
    standing_BNS: Tensor
    cut_B: Tensor


class Shares(NamedTuple):
    """Share of the training clicks (of the batch's period), and of the histories' items, that each
    ad has; by row [A]."""

    clicks_A: Tensor
    histories_A: Tensor


class Positives(NamedTuple):
    """P users who each met an ad: vectors of both, the ad's row, and the rows [M] of all ads that
    are no negatives for this user (0: none)."""

    users_PD: Tensor
    ads_PD: Tensor
    row_P: Tensor
    own_PM: Tensor


class Met(NamedTuple):
    """The items of one history of B users: as `TwoTower.items`, the weighed sum of their encoded
    ads, gaps, outcomes, and which are there."""

    items_BLH: Tensor
    summed_BW: Tensor
    gap_BL: Tensor
    outcomes_BL: Tensor
    mask_BL: Tensor


def item_weights(mask_BL: Tensor) -> Tensor:
    """What each item counts for in the sum of its history, [B, L]."""
    return mask_BL / (1.0 + mask_BL.sum(1, keepdim=True)).sqrt()


class TwoTower(nn.Module):
    """User tower and ad tower."""

    def __init__(self, config: TwoTowerConfig, layout: Layout) -> None:
        super().__init__()
        self.config = config
        dim, width = config.embedding_dim, config.output_dim - 1
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
        self.sums = nn.ModuleList(
            linear(self.ad_fields.width, width, bias=False) for _ in layout.history_lengths
        )
        pooled = len(self.pools) * config.history_heads * config.history_dim
        entering = self.user_fields.width + self.request_fields.width + pooled
        self.user_tower = mlp((entering, *config.hidden, width), config.dropout)
        self.standing = layout.standing
        described = self.ad_fields.width + self.standing + 1
        self.ad_tower = mlp((described, *config.hidden, width), config.dropout)
        self.ad_linear = nn.Linear(self.ad_fields.width, width, bias=False)
        self.ad_bias = mlp((described, _BIAS_HIDDEN, 1), config.dropout)
        self.log_temperature = nn.Parameter(torch.tensor(config.temperature).log())
        # A scale and a bias for the pointwise loss: the softmax's scores are no log odds.
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
        """Embed B requests, [B, output_dim]: a direction, then 1."""
        ads_DW = self.ad_fields(query.history_ads)
        items_DH = self.items(ads_DW)
        histories = []
        for history in query.histories:
            place_BL, mask_BL = history.place_BL, self._thinned(history.mask_BL)
            items_BLH = functional.embedding(place_BL, items_DH)
            summed_BW = functional.embedding_bag(
                place_BL, ads_DW, per_sample_weights=item_weights(mask_BL), mode="sum"
            )
            histories.append(
                Met(items_BLH, summed_BW, history.gap_BL, history.outcomes_BL, mask_BL)
            )
        return self.encode(query.user, query.request, histories)

    def items(self, ads: Tensor) -> Tensor:
        """What ads [..., W], their fields encoded, are as items of a history, [..., H]."""
        return functional.gelu(self.item(ads))

    def encode(self, user: Fields, request: Fields, histories: Sequence[Met]) -> Tensor:
        """`users` from what it reads."""
        parts = [self.user_fields(user), self.request_fields(request)]
        linear_BD = parts[0].new_zeros(())
        for pool, project, met in zip(self.pools, self.sums, histories, strict=True):
            items = met.items_BLH + self.gap(met.gap_BL) + self.outcomes(met.outcomes_BL)
            parts.append(pool(items, met.mask_BL))
            linear_BD = linear_BD + project(met.summed_BW)
        users_BD = self.user_tower(torch.cat(parts, dim=-1)).float() + linear_BD.float()
        return functional.pad(functional.normalize(users_BD, dim=-1), (0, 1), value=1.0)

    def ads(self, fields: Fields, standing: Tensor | None) -> Tensor:
        """Embed ads to [..., output_dim]: a direction, then the bias times the temperature.

        Args:
            fields: of the ads [..., F].
            standing: their counters [..., S] as of a build of the index; None: not known.
        """
        encoded = self.ad_fields(fields)
        known = 0.0 if standing is None else 1.0
        if standing is None:
            standing = encoded.new_zeros((*encoded.shape[:-1], self.standing))
        described = torch.cat([encoded, functional.pad(standing, (0, 1), value=known)], dim=-1)
        vectors = self.ad_tower(described).float() + self.ad_linear(encoded).float()
        bias = self.ad_bias(described).float() * self.log_temperature.exp()
        return torch.cat([functional.normalize(vectors, dim=-1), bias], dim=-1)

    def loss(
        self, batch: Batch, draws: Draws, shares: Shares, *, positive_weight: float = 1.0
    ) -> Tensor:
        """Weighted sum of the losses on a batch.

        Args:
            batch: requests with their impressions.
            draws: what was drawn at random for this batch.
            shares: how often each ad is a positive.
            positive_weight: of a click in the pointwise loss.
        """
        users_BD = self.users(batch.query)
        ads_BND = self.ads(batch.candidates.ads, draws.standing_BNS)
        mask_BN = batch.candidates.mask_BN
        clicks_BN = batch.labels_BNK[..., 0]
        logits_BN = torch.einsum("bd,bnd->bn", users_BD, ads_BND) * self.scale + self.bias
        pointwise = binary_loss(logits_BN[mask_BN], clicks_BN[mask_BN], positive_weight).mean()
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
            pool_UD = self.ads(draws.ads, draws.standing_US)
            softmax = softmax + self._softmax(
                clicked, pool_UD, draws.row_U, draws.later_U, shares.clicks_A
            )
        if self.config.history_weight and self._met is not None:
            past = self._past_positives(batch.query, self._met, draws.cut_B)
            if len(past.row_P):
                row_U, ads, never_U = draws.row_U, draws.ads, draws.never_U
                if len(row_U) < len(shares.histories_A) - 1:  # half of a sample does for these
                    row_U, never_U = row_U[::2], never_U[::2]
                    ads = _fields_of(ads, slice(None, None, 2))
                pool_UD = self.ads(ads, None)
                loss = self._softmax(past, pool_UD, row_U, never_U, shares.histories_A)
                softmax = softmax + self.config.history_weight * loss
        weight = self.config.pointwise_weight
        return weight * pointwise + (1 - weight) * softmax

    def _thinned(self, mask_BL: Tensor) -> Tensor:
        """Items to look at: in training, a share is dropped, or frequent pairs would be learned by
        heart."""
        if not self.training or self.config.dropout == 0.0:
            return mask_BL
        return mask_BL & (torch.rand(mask_BL.shape, device=mask_BL.device) >= self.config.dropout)

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
            ads_PD=self.ads(target, None),  # how it stood then is not known
            row_P=history.row_BL[each, place],
            own_PM=torch.where(history.mask_BL, history.row_BL, 0),
        )

    def _softmax(
        self,
        positives: Positives,
        pool_UD: Tensor,
        row_U: Tensor,
        away_U: Tensor,
        share_A: Tensor,
    ) -> Tensor:
        """Mean softmax of positives against each other's ads and the drawn ones that were there.

        An ad that nobody could have met is no negative: it would be learned that new ads are bad.
        """
        if len(row_U) == len(share_A) - 1:  # the whole catalogue: nothing is sampled
            target_P, row_S, vectors_SD = positives.row_P - 1, row_U, pool_UD
            away_S = away_U
            log_counts_S = pool_UD.new_zeros(len(row_U))
        else:
            row_P = positives.row_P
            distinct, target_P = torch.unique(row_P, return_inverse=True)
            # One vector for each distinct positive ad: the first row that shows it.
            first = torch.full((len(distinct),), len(row_P), device=row_P.device).scatter_reduce(
                0, target_P, torch.arange(len(row_P), device=row_P.device), "amin"
            )
            row_S = torch.cat([distinct, row_U])
            vectors_SD = torch.cat([positives.ads_PD[first], pool_UD])
            away_S = functional.pad(away_U, (len(distinct), 0), value=False)
            log_counts_S = log_expected_count(
                share_A[row_S], len(row_P), len(row_U), len(share_A) - 1
            )
        with torch.autocast(row_U.device.type, enabled=False):  # bf16 is 0.06 off in a logit
            logits_PS = positives.users_PD @ vectors_SD.T / self.log_temperature.exp()
        hits_PS = _among(row_S, positives.own_PM) | away_S
        return sampled_softmax_loss(logits_PS, log_counts_S, target_P, hits_PS).mean()


def embed_ads(
    model: TwoTower, ads: Encoded, standing_AS: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Vectors of all ads as they stand, [A, D]: what an index is built of."""
    device = model.log_temperature.device
    found = []
    with evaluating(model):
        for part in np.split(np.arange(len(ads)), range(_CHUNK_ADS, len(ads), _CHUNK_ADS)):
            standing = torch.from_numpy(standing_AS[part]).to(device)
            found.append(model.ads(to_device(Fields.of(ads.take(part)), device), standing).cpu())
    return torch.cat(found).numpy()


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


def _fields_of(fields: Fields, rows: Tensor | slice) -> Fields:
    return Fields(fields.categorical[rows], fields.dense[rows])


def _missing(fields: Fields) -> Fields:
    return Fields(torch.zeros_like(fields.categorical), torch.zeros_like(fields.dense))
