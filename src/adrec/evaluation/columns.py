"""Impressions as columns: which user, request and ad a row has, and what training saw of them.

Shapes: N impressions, U users, A ads.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from adrec.features.dataset import Dataset
from adrec.features.transforms import Encoded, FieldGroup
from adrec.schema import AD_ID, USER_ID, CounterSpec, Schema

Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]


class Side(NamedTuple):
    """One of the three groups of fields: what its things hold, and which thing each row has."""

    name: str
    """`user`, `request` or `ad`."""
    group: FieldGroup
    encoded: Encoded
    thing_N: npt.NDArray[np.integer[Any]]
    """Row of `encoded` for each impression."""

    def codes(self, field: str) -> npt.NDArray[np.int32]:
        """Codes of a categorical field, [N]."""
        place = self.group.categorical_names.index(field)
        codes: npt.NDArray[np.int32] = self.encoded.categorical[self.thing_N, place]
        return codes


def request_of(dataset: Dataset, rows_N: Ints) -> Ints:
    """The request of each impression, [N]."""
    requests: Ints = np.searchsorted(dataset.offset_R, rows_N, side="right") - 1
    return requests


def sides(dataset: Dataset, rows_N: Ints) -> tuple[Side, Side, Side]:
    """The three groups of fields, for some impressions."""
    request_N = request_of(dataset, rows_N)
    user_N = dataset.user_R[request_N]
    known_N = np.where(user_N < len(dataset.static), user_N, 0)
    features = dataset.features
    return (
        Side("user", features.user, dataset.static, known_N),
        Side("request", features.request, dataset.request, request_N),
        Side("ad", features.ad, dataset.catalogue.encoded, dataset.ad_N[rows_N]),
    )


def key_codes(dataset: Dataset, rows_N: Ints, column: str) -> npt.NDArray[np.integer[Any]]:
    """Codes of a column that a counter can have in its key, [N]: an id or a categorical field."""
    if column == USER_ID:
        return dataset.user_R[request_of(dataset, rows_N)]
    if column == AD_ID:
        return dataset.ad_N[rows_N]
    side = next(s for s in sides(dataset, rows_N) if column in s.group.categorical_names)
    return side.codes(column)


def counter_columns(schema: Schema) -> list[tuple[CounterSpec, slice]]:
    """Each counter and its columns of `counters_NC`: for each half-life a count, then the tasks."""
    found, start = [], 0
    for spec in schema.counters:
        end = start + len(spec.half_lives_hours) * (1 + len(schema.tasks))
        found.append((spec, slice(start, end)))
        start = end
    return found


class Trained(NamedTuple):
    """Impressions that each user and each ad had in the training period."""

    of_user_U: Ints
    of_ad_A: Ints

    @classmethod
    def by(cls, dataset: Dataset) -> "Trained":
        """Count."""
        rows = dataset.rows_of(dataset.requests("train"))
        users = int(dataset.user_R.max()) + 1
        return cls(
            np.bincount(dataset.user_R[request_of(dataset, rows)], minlength=users),
            np.bincount(dataset.ad_N[rows], minlength=len(dataset.catalogue)),
        )

    def new_users(self, user_N: npt.NDArray[np.integer[Any]]) -> Bools:
        """Which users training never met; nobody (0) is not new."""
        new: Bools = (self.of_user_U[user_N] == 0) & (user_N != 0)
        return new

    def new_ads(self, ad_N: npt.NDArray[np.integer[Any]]) -> Bools:
        """Which ads training never met."""
        new: Bools = self.of_ad_A[ad_N] == 0
        return new
