"""Batch: what a model is given. Requests with their candidates, as tensors.

B requests, N candidates each (padded), F categorical fields, D floats, L history items, C counter
features, K tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adrec.features.bits import UNKNOWN_MS
from adrec.features.histories import Items
from adrec.features.past import MS_PER_HOUR
from adrec.features.transforms import Encoded

TensorsT = TypeVar("TensorsT")

UNKNOWN_GAP = -1.0


class Past(NamedTuple):
    """One sequence of R requests, oldest first and right-aligned: what is known of it by then."""

    ads: NDArray[np.int32]
    """Ad rows [R, L]; 0 where there is none."""
    gap: NDArray[np.float32]
    """log(1 + hours) since, or -1, [R, L]."""
    outcomes: NDArray[np.uint8]
    """Bit k: whether task k is known to have come out positive, [R, L]."""

    @classmethod
    def of(cls, items: Items, at_ms: NDArray[np.int64]) -> "Past":
        """Histories as of requests [R]."""
        return cls(items.ads, gaps(items.times_ms, at_ms), items.outcomes)

    def take(self, requests_B: NDArray[np.int64]) -> "Past":
        """The same of some requests."""
        return Past(self.ads[requests_B], self.gap[requests_B], self.outcomes[requests_B])


@dataclass(frozen=True)
class Fields:
    """A group of fields: categorical int32 [..., F] and dense float32 [..., D]."""

    categorical: Tensor
    dense: Tensor

    @classmethod
    def of(cls, encoded: Encoded) -> "Fields":
        """The same numbers as tensors."""
        return cls(torch.from_numpy(encoded.categorical), torch.from_numpy(encoded.dense))


@dataclass(frozen=True)
class HistoryItems:
    """One sequence of B requests, oldest first and ending at the last place.

    place_BL: which of the query's `history_ads` each item is. row_BL: its row in the catalogue.
    gap_BL: log(1 + hours) since, or -1. outcomes_BL: uint8, bit k where task k is known to have
    come out positive. mask_BL: which places hold an ad.
    """

    place_BL: Tensor
    row_BL: Tensor
    gap_BL: Tensor
    outcomes_BL: Tensor
    mask_BL: Tensor

    def last(self, count: int) -> "HistoryItems":
        """Only the last `count` places."""
        return HistoryItems(
            place_BL=self.place_BL[:, -count:],
            row_BL=self.row_BL[:, -count:],
            gap_BL=self.gap_BL[:, -count:],
            outcomes_BL=self.outcomes_BL[:, -count:],
            mask_BL=self.mask_BL[:, -count:],
        )


@dataclass(frozen=True)
class Query:
    """The side of a batch that is the same for all candidates of a request.

    history_ads are the ads of all histories, most of them once: far fewer than items, as users
    meet the same ads.
    """

    user: Fields
    request: Fields
    history_ads: Fields
    histories: tuple[HistoryItems, ...]

    def __len__(self) -> int:
        return len(self.user.categorical)


@dataclass(frozen=True)
class Candidates:
    """Ads to score for each request, padded to the longest slate.

    ads [B, N, ...]; counters_BNC float32; position_BN int32 from 1 (0: padding or unknown);
    mask_BN bool, False for padding.
    """

    ads: Fields
    counters_BNC: Tensor
    position_BN: Tensor
    mask_BN: Tensor

    def at(self, place_BM: Tensor) -> "Candidates":
        """Some places of each request's slate, [B, M, ...]."""
        row_BM = rows_at(place_BM, self.mask_BN.shape[1])
        return Candidates(
            ads=Fields(of_rows(self.ads.categorical, row_BM), of_rows(self.ads.dense, row_BM)),
            counters_BNC=of_rows(self.counters_BNC, row_BM),
            position_BN=of_rows(self.position_BN, row_BM),
            mask_BN=of_rows(self.mask_BN, row_BM),
        )


@dataclass(frozen=True)
class Batch:
    """Requests, candidates and outcomes. ad_row_BN int64, 0 for padding; labels_BNK float32;
    period_B int64: between which builds of the index the request came."""

    query: Query
    candidates: Candidates
    ad_row_BN: Tensor
    period_B: Tensor
    labels_BNK: Tensor

    @property
    def rows(self) -> int:
        """Number of impressions."""
        return int(self.candidates.mask_BN.sum())


def rows_at(place_BM: Tensor, count: int) -> Tensor:
    """Where places of B requests stand if the `count` of each follow one another, [B, M]."""
    first_B = torch.arange(len(place_BM), device=place_BM.device) * count
    return place_BM + first_B[:, None]


def of_rows(of_BN: Tensor, row_BM: Tensor) -> Tensor:
    """What [B, N, ...] holds at `rows_at`, [B, M, ...]; one copy, where a gather is a dozen."""
    rows = of_BN.flatten(0, 1).index_select(0, row_BM.flatten())
    return rows.view(*row_BM.shape, *of_BN.shape[2:])


def to_device(value: TensorsT, device: torch.device) -> TensorsT:
    """Move every tensor of a dataclass of tensors."""
    moved: TensorsT = _map(value, device) if device.type != "cpu" else value
    return moved


def _map(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple):
        parts = (_map(part, device) for part in value)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    assert is_dataclass(value)
    assert not isinstance(value, type)
    return type(value)(**{f.name: _map(getattr(value, f.name), device) for f in fields(value)})


def gaps(times_ms: NDArray[np.int64], at_ms: NDArray[np.int64]) -> NDArray[np.float32]:
    """log(1 + hours) between each history item [R, L] and its request [R]; -1 where unknown."""
    hours = (at_ms[:, None] - times_ms) / MS_PER_HOUR
    known = times_ms != UNKNOWN_MS
    return np.where(known, np.log1p(np.maximum(hours, 0.0)), UNKNOWN_GAP).astype(np.float32)


def query_of(user: Encoded, request: Encoded, ads: Encoded, sequences: Sequence[Past]) -> Query:
    """Join what is known of B requests.

    Args:
        user: fields of the users, [B].
        request: fields of the requests, [B].
        ads: the encoded catalogue.
        sequences: the histories.
    """
    rows = np.concatenate([np.zeros(0, np.int32), *(past.ads.ravel() for past in sequences)])
    distinct, place = np.unique(rows, return_inverse=True)
    histories, start = [], 0
    for rows_BL, gap_BL, outcomes_BL in sequences:
        places = place[start : start + rows_BL.size].reshape(rows_BL.shape)
        start += rows_BL.size
        histories.append(
            HistoryItems(
                place_BL=torch.from_numpy(places),
                row_BL=torch.from_numpy(rows_BL.astype(np.int64)),
                gap_BL=torch.from_numpy(gap_BL),
                outcomes_BL=torch.from_numpy(outcomes_BL),
                mask_BL=torch.from_numpy(rows_BL != 0),
            )
        )
    return Query(
        user=Fields.of(user),
        request=Fields.of(request),
        history_ads=Fields.of(ads.take(distinct)),
        histories=tuple(histories),
    )


def candidates_of(
    ads: Encoded,
    rows_BN: NDArray[np.integer],
    counters_BNC: NDArray[np.float32],
    position_BN: NDArray[np.int32],
) -> Candidates:
    """Look up candidates in the encoded catalogue; row 0 is padding."""
    return Candidates(
        ads=Fields.of(ads.take(rows_BN)),
        counters_BNC=torch.from_numpy(counters_BNC),
        position_BN=torch.from_numpy(position_BN),
        mask_BN=torch.from_numpy(rows_BN != 0),
    )


def forget_users(
    batch: Batch, share: float, user_counters_C: NDArray[np.bool_], rng: np.random.Generator
) -> Batch:
    """Make a share of the requests look as if a new user had sent them.

    Their histories keep a random number of recent items, mostly few, and counters of the user are
    zero, as for a user never seen. A log's users mostly have a past; users who come when the model
    serves have not, and a model that never met one guesses badly.

    Args:
        batch: requests with their impressions.
        share: of the requests.
        user_counters_C: which counter features are of the user.
        rng: decides which requests and how much they keep.
    """
    requests = len(batch.query)
    forgetful_B = rng.random(requests) < share
    kept_B = rng.random(requests) ** 3
    histories = []
    for history in batch.query.histories:
        length = history.mask_BL.shape[1]
        items_B = np.where(forgetful_B, np.floor(kept_B * (length + 1)), length)
        recent_BL = np.arange(length)[None, :] >= (length - items_B)[:, None]
        mask_BL = history.mask_BL & torch.from_numpy(recent_BL)
        histories.append(replace(history, mask_BL=mask_BL))
    hidden_BC = torch.from_numpy(forgetful_B[:, None] & user_counters_C[None, :])
    counters = batch.candidates.counters_BNC.masked_fill(hidden_BC[:, None, :], 0.0)
    return replace(
        batch,
        query=replace(batch.query, histories=tuple(histories)),
        candidates=replace(batch.candidates, counters_BNC=counters),
    )


def forget_ads(
    batch: Batch,
    share: float,
    ad_counters_C: NDArray[np.bool_],
    id_buckets: int,
    rng: np.random.Generator,
) -> Batch:
    """Make a share of the candidates look like new ads.

    Counters of the ad are zero and its id falls into one of the buckets for ids never seen. Without
    it a model meets ads without a past only in the log's first hours.

    Args:
        batch: requests with their impressions.
        share: of the candidates.
        ad_counters_C: which counter features are of the ad.
        id_buckets: number of buckets; 0 where ids are no feature. Ids are the first field.
        rng: decides which candidates.
    """
    candidates = batch.candidates
    shape = tuple(candidates.mask_BN.shape)
    new_BN = torch.from_numpy(rng.random(shape) < share) & candidates.mask_BN
    hidden_BNC = new_BN[..., None] & torch.from_numpy(ad_counters_C)
    categorical = candidates.ads.categorical
    if id_buckets:
        bucket_BN = torch.from_numpy(rng.integers(1, id_buckets + 1, shape, dtype=np.int32))
        categorical = categorical.clone()
        categorical[..., 0] = torch.where(new_BN, bucket_BN, categorical[..., 0])
    forgotten = replace(
        candidates,
        ads=replace(candidates.ads, categorical=categorical),
        counters_BNC=candidates.counters_BNC.masked_fill(hidden_BNC, 0.0),
    )
    return replace(batch, candidates=forgotten)


def stack_queries(queries: Sequence[Query]) -> Query:
    """Join queries of one request each into one of many."""
    if len(queries) == 1:
        return queries[0]
    sizes = [len(query.history_ads.categorical) for query in queries]
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    return Query(
        user=_stack([query.user for query in queries]),
        request=_stack([query.request for query in queries]),
        history_ads=_stack([query.history_ads for query in queries]),
        histories=tuple(
            HistoryItems(
                place_BL=torch.cat(
                    [items.place_BL + at for items, at in zip(parts, starts, strict=True)]
                ),
                row_BL=torch.cat([items.row_BL for items in parts]),
                gap_BL=torch.cat([items.gap_BL for items in parts]),
                outcomes_BL=torch.cat([items.outcomes_BL for items in parts]),
                mask_BL=torch.cat([items.mask_BL for items in parts]),
            )
            for parts in zip(*(query.histories for query in queries), strict=True)
        ),
    )


def _stack(groups: Sequence[Fields]) -> Fields:
    return Fields(
        torch.cat([group.categorical for group in groups]),
        torch.cat([group.dense for group in groups]),
    )
