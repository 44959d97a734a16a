"""Counter keys: what a counter counts by, as one integer for each impression."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adrec.features.transforms import Encoded, Features
from adrec.schema import AD_ID, USER_ID, CounterSpec

_KEY_BITS = 31  # of the second column of a key
_ROW_MASK = (1 << _KEY_BITS) - 1


class Keyed(NamedTuple):
    """What keys of N impressions are made of. What there is a single row of stands for all."""

    users_N: NDArray[np.int64]
    static: Encoded
    """Fields of the users, [N]."""
    request: Encoded
    """Fields of the requests, [N]."""
    ads_N: NDArray[np.integer]
    catalogue: Encoded
    """Fields of all ads, of which `ads_N` are rows."""


class CounterKeys:
    """The keys of every counter of a schema: one code each, or two packed into 62 bits."""

    def __init__(self, features: Features) -> None:
        self._features = features

    def all(self, keyed: Keyed) -> list[NDArray[np.int64]]:
        """Of each counter, [N]; of one row where all it is made of has one."""
        return [self.of(spec, keyed) for spec in self._features.schema.counters]

    def of(self, spec: CounterSpec, keyed: Keyed) -> NDArray[np.int64]:
        """Of one counter."""
        first, *rest = (self._codes(name, keyed) for name in spec.columns)
        for codes in rest:
            first = (first << _KEY_BITS) | codes
        return first

    def of_users(
        self, spec: CounterSpec, users: NDArray[np.int64]
    ) -> Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None:
        """What tells of a counter's keys which are of some users; None: it counts for all alike."""
        if USER_ID not in spec.columns:
            return None
        behind = len(spec.columns) - 1 - spec.columns.index(USER_ID)
        return partial(_are_of, users, _KEY_BITS * behind)

    def _codes(self, name: str, keyed: Keyed) -> NDArray[np.int64]:
        if name == USER_ID:
            return keyed.users_N
        if name == AD_ID:
            return keyed.ads_N.astype(np.int64)
        features = self._features
        for group, encoded in ((features.user, keyed.static), (features.request, keyed.request)):
            if name in group.categorical_names:
                return encoded.categorical[:, group.categorical_names.index(name)].astype(np.int64)
        column = features.ad.categorical_names.index(name)
        codes: NDArray[np.int32] = keyed.catalogue.categorical[keyed.ads_N, column]
        return codes.astype(np.int64)


def _are_of(users: NDArray[np.int64], shift: int, keys_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.isin((keys_N >> shift) & _ROW_MASK, users)
