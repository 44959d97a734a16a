"""Two-tower retrieval: a user and an ad meet only in an inner product, so ads can be indexed.

    user fields ─┐
    request ─────┼─► MLP 512, 256, 256 ─► normalise ─► u ─┐
    histories ─► attention pools                          ├─► u·a / temperature
    ad fields ─────► MLP 512, 256, 256 ─► normalise ─► a ─┘

Trained with 0.5 pointwise log loss on impressions and 0.5 sampled softmax on positives against the
batch's positives and uniform ads, each logit less the log of its expected count (Yi et al. 2019).
"""

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from adrec.features.batches import Batch, Fields, Query
from adrec.features.transforms import Layout
from adrec.models.layers import AttentionPool, FieldEncoder, GapEmbedding, mlp
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
    pointwise_weight: float = Field(default=0.5, ge=0.0, le=1.0)
    """Weight of the log loss on impressions; the sampled softmax has the rest."""


class Pool(NamedTuple):
    """Uniform ads for a batch: their rows [U] and fields [U, ...]."""

    rows_U: Tensor
    ads: Fields


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
        for pool, history in zip(self.pools, query.histories, strict=True):
            items = functional.gelu(self.item(self.ad_fields(history.ads)))
            parts.append(pool(items + self.gap(history.gap_BL), history.mask_BL))
        return functional.normalize(self.user_tower(torch.cat(parts, dim=-1)).float(), dim=-1)

    def ads(self, fields: Fields) -> Tensor:
        """Embed ads [..., F] to [..., output_dim], each of length 1."""
        return functional.normalize(self.ad_tower(self.ad_fields(fields)).float(), dim=-1)

    def loss(self, batch: Batch, pool: Pool, positive_share_A: Tensor) -> Tensor:
        """Weighted sum of both losses on a batch.

        Args:
            batch: requests with their impressions.
            pool: uniform ads.
            positive_share_A: share of the training positives that each ad has, by ad row.
        """
        users_BD = self.users(batch.query)
        ads_BND = self.ads(batch.candidates.ads)
        mask_BN = batch.candidates.mask_BN
        clicks_BN = batch.labels_BNK[..., 0]
        logits_BN = torch.einsum("bd,bnd->bn", users_BD, ads_BND) * self.scale + self.bias
        pointwise = binary_loss(logits_BN[mask_BN], clicks_BN[mask_BN]).mean()
        positive_BN = mask_BN & (clicks_BN > 0)
        if not positive_BN.any():
            return pointwise * self.config.pointwise_weight
        softmax = self._softmax(users_BD, ads_BND, positive_BN, batch, pool, positive_share_A)
        weight = self.config.pointwise_weight
        return weight * pointwise + (1 - weight) * softmax

    def _softmax(
        self,
        users_BD: Tensor,
        ads_BND: Tensor,
        positive_BN: Tensor,
        batch: Batch,
        pool: Pool,
        positive_share_A: Tensor,
    ) -> Tensor:
        """Mean sampled softmax over the positives of the batch."""
        request_P, place_P = positive_BN.nonzero(as_tuple=True)
        rows_P = batch.ad_row_BN[request_P, place_P]
        distinct, target_P = torch.unique(rows_P, return_inverse=True)
        # One vector for each distinct positive ad: the first row that shows it.
        first = torch.full((len(distinct),), len(rows_P), device=rows_P.device).scatter_reduce(
            0, target_P, torch.arange(len(rows_P), device=rows_P.device), "amin"
        )
        in_batch = ads_BND[request_P, place_P][first]
        rows_S = torch.cat([distinct, pool.rows_U])
        vectors_SD = torch.cat([in_batch, self.ads(pool.ads)])
        # Not users_BD[request_P]: its gradient is added up in whatever order threads come.
        users_PD = users_BD.index_select(0, request_P)
        with torch.autocast(users_PD.device.type, enabled=False):  # bf16 is 0.06 off in a logit
            logits_PS = users_PD @ vectors_SD.T / self.log_temperature.exp()
        log_counts_S = log_expected_count(
            positive_share_A[rows_S], len(rows_P), len(pool.rows_U), len(positive_share_A) - 1
        )
        clicked_BN = torch.where(positive_BN, batch.ad_row_BN, 0)
        hits_BS = (clicked_BN[:, :, None] == rows_S).any(1)
        return sampled_softmax_loss(logits_PS, log_counts_S, target_P, hits_BS[request_P]).mean()
