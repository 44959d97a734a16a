"""Objectives: what each model is trained on and chosen by."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adrec.errors import ConfigError
from adrec.features.batches import Batch, Fields, to_device
from adrec.features.dataset import Dataset
from adrec.features.transforms import Layout
from adrec.metrics import auc, log_loss, recall_at_k
from adrec.models.layers import evaluating
from adrec.models.ranker import Ranker
from adrec.models.two_tower import Draws, Shares, TwoTower, embed_ads

_CHUNK_ADS = 65_536
_VALID_ROWS = 8192
_NEVER = np.iinfo(np.int64).max
_SCALED_ROWS = 20_000  # impressions from which numbers get their scale


class Objective(Protocol):
    """A model with a loss to lower and a metric to raise."""

    @property
    def model(self) -> nn.Module:
        """The model under training."""

    def groups(self, requests_R: NDArray[np.int64]) -> NDArray[np.int64]:
        """Group of each request: those of different groups never share a batch, and those of a
        negative one are not trained on."""

    def loss(self, batch: Batch, rng: np.random.Generator) -> Tensor:
        """Loss of one batch; anything random is drawn from `rng`."""

    def validate(self) -> Mapping[str, float]:
        """Metrics on the validation period; the first one, higher is better, chooses the epoch.
        None of a period without requests: then the last epoch is kept."""


class RankerObjective:
    """All tasks on impressions; chosen by the first task's AUC."""

    def __init__(
        self,
        model: Ranker,
        dataset: Dataset,
        *,
        positive_weights: Sequence[float],
        valid_requests: int,
        device: torch.device,
        negative_rate: float = 1.0,
        task_weights: Sequence[float] | None = None,
    ) -> None:
        weights = weights_of_tasks(task_weights, model.layout)
        self.model, self._task_weights = model, weights
        self._negative_rate = negative_rate
        self._dataset = dataset
        self._positive_weights = positive_weights
        self._requests = thin(dataset.requests("valid"), valid_requests)
        self._device = device
        train = dataset.requests("train")
        slate = float(dataset.slate_R[train].mean())
        sample = thin(train, max(1, round(_SCALED_ROWS / slate)))
        self.model.fit_numbers(dataset.in_order(sample, _VALID_ROWS))

    def groups(self, requests_R: NDArray[np.int64]) -> NDArray[np.int64]:
        """Any requests may share a batch."""
        return np.zeros(len(requests_R), np.int64)

    def loss(self, batch: Batch, rng: np.random.Generator) -> Tensor:
        """Weighted sum of the tasks' losses."""
        del rng  # dropout draws from the loop's seed
        weights = self._task_weights, self._positive_weights
        return self.model.loss(batch, *weights, self._negative_rate)

    def validate(self) -> Mapping[str, float]:
        """AUC and log loss of each binary task, the first task's AUC in front."""
        if not len(self._requests):
            return {}
        scores = score_impressions(self.model, self._dataset, self._requests, self._device)
        labels = self._dataset.labels_NK[self._dataset.rows_of(self._requests)]
        found: dict[str, float] = {}
        for k, task in enumerate(self._dataset.features.schema.tasks):
            if task.kind == "binary":
                found[f"{task.name} AUC"] = auc(scores[:, k], labels[:, k])
                found[f"{task.name} log loss"] = log_loss(scores[:, k], labels[:, k])
        return found


def weights_of_tasks(given: Sequence[float] | None, layout: Layout) -> tuple[float, ...]:
    """The weight of each task in the ranker's loss: those given, else the schema's.

    Raises:
        ConfigError: not one a task, one below 0, or none above it.
    """
    weights = layout.task_weights if given is None else tuple(given)
    if len(weights) != len(layout.task_kinds) or min(weights) < 0 or not any(weights):
        raise ConfigError(
            f"training.task_weights is {list(weights)}; give {len(layout.task_kinds)} numbers of 0 "
            "or more, one a task, not all 0"
        )
    return weights


class TwoTowerObjective:
    """Positives against sampled ads; chosen by recall of the validation period's clicked ads."""

    def __init__(
        self,
        model: TwoTower,
        dataset: Dataset,
        *,
        valid_requests: int,
        device: torch.device,
        positive_weight: float = 1.0,
        recall_at: int = 100,
    ) -> None:
        self.model = model
        self._positive_weight = positive_weight
        self._dataset = dataset
        self._device = device
        self._recall_at = min(recall_at, max(1, len(dataset.catalogue) // 10))
        clicks_PA, histories_A = positive_shares(dataset)
        self._clicks_PA = torch.from_numpy(clicks_PA).to(device)
        self._histories_A = torch.from_numpy(histories_A).to(device)
        self._first_A = first_periods(dataset)
        clicks_N = (dataset.labels_NK[:, 0] > 0) & (dataset.ad_N != 0)
        self._clicked_R = np.logical_or.reduceat(clicks_N, dataset.offset_R[:-1])
        self._offsets, self._targets, self._requests = clicked_ads(
            dataset, dataset.requests("valid"), valid_requests
        )

    def groups(self, requests_R: NDArray[np.int64]) -> NDArray[np.int64]:
        """By period: all ads of a batch stand as they did when the index was built. Without the
        pointwise loss, requests without a click teach nothing."""
        periods = self._dataset.periods(requests_R)
        if self.model.config.pointwise_weight:
            return periods
        return np.where(self._clicked_R[requests_R], periods, -1)

    def loss(self, batch: Batch, rng: np.random.Generator) -> Tensor:
        """Both losses, with uniform ads drawn from the catalogue, or all of it."""
        catalogue, drawn = self._dataset.catalogue, self.model.config.uniform_negatives
        rows = np.arange(1, len(catalogue))
        if drawn < len(rows):
            rows = rng.integers(1, len(catalogue), drawn)
        cuts = rng.random(len(batch.query), dtype=np.float32)
        period = int(batch.period_B[0])
        standing_AS = self._dataset.standing_PAS[period]
        draws = Draws(
            row_U=torch.from_numpy(rows),
            ads=Fields.of(catalogue.encoded.take(rows)),
            later_U=torch.from_numpy(self._first_A[rows] > period),
            never_U=torch.from_numpy(self._first_A[rows] == _NEVER),
            standing_US=torch.from_numpy(standing_AS[rows]),
            standing_BNS=torch.from_numpy(standing_AS[batch.ad_row_BN.cpu().numpy()]),
            cut_B=torch.from_numpy(cuts),
        )
        shares = Shares(self._clicks_PA[period], self._histories_A)
        draws = to_device(draws, self._device)
        return self.model.loss(batch, draws, shares, positive_weight=self._positive_weight)

    def validate(self) -> Mapping[str, float]:
        """Share of clicked ads among the nearest of all ads, by brute force. The index is
        the last one built before the validation period."""
        valid = self._dataset.requests("valid")
        if not len(valid):
            return {}
        period = self._dataset.periods(valid[:1])[0]
        standing_AS = self._dataset.standing_PAS[period]
        ads = embed_ads(self.model, self._dataset.catalogue.encoded, standing_AS)
        users = embed_requests(self.model, self._dataset, self._requests, self._device)
        k = self._recall_at
        ranked = np.concatenate(
            [
                torch.from_numpy(part @ ads[1:].T).topk(k).indices.numpy() + 1
                for part in np.array_split(users, max(1, len(users) // 256))
            ]
        )
        recall = recall_at_k(ranked, (self._offsets, self._targets), [k])
        return {f"recall@{k}": float(recall[k])}


def positive_shares(dataset: Dataset) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Share of each training period's first-task positives [P, A], and of the items of the training
    requests' first histories of what was met [A], that each ad row has."""
    train, size = dataset.requests("train"), len(dataset.catalogue)
    clicks_PA = np.zeros((1 + int(dataset.periods(train[-1:])[0]), size), np.float32)
    of_R = dataset.periods(train)
    for period in np.unique(of_R):
        rows = dataset.rows_of(train[of_R == period])
        positive = dataset.labels_NK[rows, 0] > 0
        clicks_PA[period] = _share(np.bincount(dataset.ad_N[rows[positive]], minlength=size))
    items = np.zeros(size)
    if dataset.met:
        for part in np.array_split(train, max(1, len(train) // _CHUNK_ADS)):
            # A request draws one of its items: each counts for one over their number.
            ads = dataset.met[0].ads[part]
            each = 1.0 / np.maximum((ads != 0).sum(1, keepdims=True), 1)
            items += np.bincount(ads.ravel(), (each * (ads != 0)).ravel(), minlength=size)
    return clicks_PA, _share(items)


def first_periods(dataset: Dataset) -> NDArray[np.int64]:
    """Period of the first training impression of each ad, [A].

    0 of an ad that a user had met before the log; of one that was neither shown nor met, a period
    that never comes.
    """
    train, size = dataset.requests("train"), len(dataset.catalogue)
    rows = dataset.rows_of(train)
    request_N = np.searchsorted(dataset.offset_R, rows, side="right") - 1
    first_A = np.full(size, _NEVER)
    np.minimum.at(first_A, dataset.ad_N[rows], dataset.periods(request_N))
    begin = train[
        np.unique(dataset.user_R[train], return_index=True)[1]
    ]  # each user's first request
    for past in dataset.met:
        first_A[np.unique(past.ads[begin])] = 0
    return first_A


def _share(counts_A: NDArray[Any]) -> NDArray[np.float32]:
    share: NDArray[np.float32] = (counts_A / max(counts_A.sum(), 1.0)).astype(np.float32)
    return share


def clicked_ads(
    dataset: Dataset, requests: NDArray[np.int64], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Requests with a positive, thinned to `most`: offsets [Q+1], their ads, and which they are."""
    rows = dataset.rows_of(requests)
    rows = rows[dataset.labels_NK[rows, 0] > 0]
    owner = np.searchsorted(dataset.offset_R, rows, side="right") - 1
    chosen = thin(np.unique(owner), most)
    kept = np.isin(owner, chosen)
    counts = np.unique(owner[kept], return_counts=True)[1]
    return np.append(0, np.cumsum(counts)), dataset.ad_N[rows[kept]].astype(np.int64), chosen


def thin(requests: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` requests, evenly spread over time."""
    if len(requests) <= most:
        return requests
    return requests[np.linspace(0, len(requests) - 1, most).astype(np.int64)]


def score_impressions(
    model: Ranker, dataset: Dataset, requests: NDArray[np.int64], device: torch.device
) -> NDArray[np.float64]:
    """Uncalibrated predictions for the impressions of some requests, [rows, K]."""
    found = []
    with evaluating(model):
        for batch in dataset.in_order(requests, _VALID_ROWS):
            batch = to_device(batch, device)
            scores = model.predict(batch.query, batch.candidates)
            found.append(scores[batch.candidates.mask_BN].double().cpu().numpy())
    return np.concatenate(found)


def embed_requests(
    model: TwoTower, dataset: Dataset, requests: NDArray[np.int64], device: torch.device
) -> NDArray[np.float32]:
    """Vectors of some requests, [Q, D]."""
    with evaluating(model):
        parts = np.array_split(requests, max(1, len(requests) // 2048))
        queries = (to_device(dataset.query(part), device) for part in parts)
        return np.concatenate([model.users(query).cpu().numpy() for query in queries])
