"""How near to float32 does each backend come? What serves is admitted by these measurements.

Two things count: the AUC of the first pass over impressions of the validation period, and the top
10 after the best have been rescored. That is left out where the top 10 are the same without it, and
the first pass moves scores neither up nor down. All is compared with the ranker as it was trained,
on torch in float32, with the same preranker, if there is one: what that misses is its own to tell.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from adrec.features.dataset import Dataset
from adrec.inference.backends import Backend, Pool
from adrec.inference.choice import Admission
from adrec.inference.runtime import RESCORED
from adrec.metrics import auc
from adrec.models.ad_rows import AdRows
from adrec.recommender import Recommender
from adrec.slates import Request
from adrec.training.optimiser import has_native_bf16

_ROWS = 8_192  # impressions of the validation period that AUC is compared on
_REQUESTS = 50  # whose top 10 is compared
_TOP = 10
_LEAST = 1e-12  # of a score

Served = Callable[[Backend, int], Recommender]
"""A recommender with another backend, which rescores so many of the best."""


def measure_backends(
    backends: Sequence[Backend],
    reference: Recommender,
    ad_rows: AdRows,
    served: Served,
    dataset: Dataset,
    rescored: int = RESCORED,
) -> tuple[Admission, ...]:
    """Compare backends with the reference.

    Args:
        backends: other ones.
        reference: runs the ranker as it was trained.
        ad_rows: what it makes of the ads.
        served: makes recommenders that differ in the backend only, as they would serve.
        dataset: with the validation period.
        rescored: how many of the best are scored once more, where that is needed.
    """
    if not backends:
        return ()
    layout = dataset.features.layout
    tasks = [task.name for task in dataset.features.schema.tasks]
    binary = [k for k, kind in enumerate(layout.task_kinds) if kind == "binary"]
    requests = _some_requests(dataset)
    labels_NK = dataset.labels_NK[dataset.rows_of(requests)]
    of_reference = _first_pass(reference.runtime.backend, ad_rows, dataset, requests)
    exact = _tops(reference)
    found = []
    for backend in backends:
        scores = _first_pass(backend, ad_rows, dataset, requests)
        changes = {
            tasks[k]: auc(scores[:, k], labels_NK[:, k]) - auc(of_reference[:, k], labels_NK[:, k])
            for k in binary
            if 0 < labels_NK[:, k].sum() < len(labels_NK)
        }
        agreement = alone = _shared(_tops(served(backend, rescored)), exact)
        if rescored and backend.precision != "float32":
            alone = _shared(_tops(served(backend, 0)), exact)
        shifts = np.log(np.maximum(scores, _LEAST) / np.maximum(of_reference, _LEAST)).mean(axis=0)
        found.append(
            Admission(
                engine=backend.engine,
                precision=backend.precision,
                auc_change=changes,
                top_agreement=agreement,
                first_pass_agreement=alone,
                first_pass_shift=float(max(shifts, key=abs)),
                native_bf16=has_native_bf16(),
            )
        )
    return tuple(found)


def _some_requests(dataset: Dataset) -> NDArray[np.int64]:
    """Requests of the validation period, evenly spread, with about _ROWS impressions."""
    requests = dataset.requests("valid")
    if not len(requests):
        requests = dataset.requests("train")
    return requests[:: max(1, len(dataset.rows_of(requests)) // _ROWS)]


def _first_pass(
    backend: Backend, ad_rows: AdRows, dataset: Dataset, requests: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Uncalibrated scores of the requests' impressions, [rows, K]."""
    found = []
    for batch in dataset.in_order(requests, 2048):
        rows = batch.ad_row_BN.numpy()
        pool = Pool.of(dataset.features.layout, batch.query, batch.candidates, ad_rows, rows)
        scores = backend.open(batch.query).score(pool)
        found.append(scores[batch.candidates.mask_BN.numpy()])
    return np.concatenate(found)


def _tops(recommender: Recommender) -> list[set[str]]:
    """The top 10 of some users that the log knows."""
    users = recommender.state.users.ids
    asked = [Request(user=user) for user in users[:: max(1, len(users) // _REQUESTS)][:_REQUESTS]]
    slates = [recommender.recommend_batch([one], _TOP)[0] for one in asked or [Request()]]
    return [{ad.ad_id for ad in slate.ads} for slate in slates]


def _shared(tops: Sequence[set[str]], exact: Sequence[set[str]]) -> float:
    """Share of the exact top 10 that others have, too."""
    shares = [len(a & b) / max(1, len(b)) for a, b in zip(tops, exact, strict=True)]
    return float(np.mean(shares))
