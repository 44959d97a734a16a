"""Some requests of a log, copied out of it so that what is known of them can be changed.

What would the model have said without this feature, or with the histories of an hour before? A
view is a `Dataset` like any other: models and rivals score it without knowing of the change.

Shapes: R requests of the view, N impressions.
"""

from copy import copy
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from adrec.features.batches import Past
from adrec.features.dataset import Dataset
from adrec.features.transforms import Encoded

Ints: TypeAlias = npt.NDArray[np.int64]


class Excerpt(Dataset):
    """Requests [R] of a log and their impressions [N], in memory."""

    def __init__(self, log: Dataset, requests_R: Ints) -> None:
        """Copy requests that are in time order."""
        self.__dict__.update(log.__dict__)  # features, catalogue, users and split are the log's
        slate_R = log.slate_R[requests_R]
        start_N = np.repeat(log.offset_R[requests_R], slate_R)
        self.offset_R = np.concatenate([[0], np.cumsum(slate_R)])
        rows_N = start_N + np.arange(len(start_N)) - np.repeat(self.offset_R[:-1], slate_R)
        self._held_R = None if log._held_R is None else log._held_R[requests_R]
        self.log = log
        self.as_of_R = requests_R
        """The log's request at whose time the user's session is looked at, for each."""
        self.user_R, self.time_ms_R = log.user_R[requests_R], log.time_ms_R[requests_R]
        self.request = log.request.take(requests_R)
        self.histories = tuple(past.take(requests_R) for past in log.histories)
        self.slate_R, self.ad_N = slate_R, log.ad_N[rows_N]
        self.counters_NC, self.labels_NK = log.counters_NC[rows_N], log.labels_NK[rows_N]
        self.position_N, self.propensity_N = log.position_N[rows_N], log.propensity_N[rows_N]

    def every_row(self) -> Ints:
        """Its impressions whose ad is in the catalogue."""
        return self.rows_of(np.arange(len(self)))

    def apart(self) -> "Excerpt":
        """The same numbers with a user for each request and an ad for each impression.

        A field of users or ads can then be changed in one place and not in others that share the
        user or the ad. The ads of histories are not changed with those of candidates. Ids, bids
        and what counts by user or ad mean nothing in it.
        """
        own = copy(self)
        user_R = np.where(self.user_R < len(self.static), self.user_R, 0)
        own._static = self.static.take(np.zeros(1, np.int64)).append(self.static.take(user_R))
        own.user_R = np.arange(1, len(self) + 1)
        ads = self.catalogue.encoded
        met = np.unique(np.concatenate([[0], *(past.ads.ravel() for past in self.histories)]))
        own.histories = tuple(
            past._replace(ads=np.searchsorted(met, past.ads).astype(np.int32))
            for past in self.histories
        )
        row_N = len(met) + np.arange(len(self.ad_N), dtype=np.int32)
        own.ad_N = np.where(self.ad_N == 0, np.int32(0), row_N)
        own.catalogue = replace(self.catalogue, encoded=ads.take(met).append(ads.take(self.ad_N)))
        return own

    def changed(
        self,
        *,
        static: Encoded | None = None,
        request: Encoded | None = None,
        ads: Encoded | None = None,
        counters_NC: npt.NDArray[np.float32] | None = None,
        position_N: npt.NDArray[np.int32] | None = None,
        histories: tuple[Past, ...] | None = None,
        as_of_R: Ints | None = None,
    ) -> "Excerpt":
        """The same with other numbers in place of those given."""
        other = copy(self)
        other._static = self._static if static is None else static
        other.request = self.request if request is None else request
        if ads is not None:
            other.catalogue = replace(self.catalogue, encoded=ads)
        other.counters_NC = self.counters_NC if counters_NC is None else counters_NC
        other.position_N = self.position_N if position_N is None else position_N
        other.histories = self.histories if histories is None else histories
        other.as_of_R = self.as_of_R if as_of_R is None else as_of_R
        return other


def moments(dataset: Dataset, request_N: Ints) -> tuple[Dataset, Ints]:
    """The whole log, and the request of it at whose time each request's session is looked at."""
    if isinstance(dataset, Excerpt):
        return dataset.log, dataset.as_of_R[request_N]
    return dataset, request_N
