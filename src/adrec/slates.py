"""What a recommender is asked, and what it answers: requests, slates and what came of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adrec.errors import RequestError
from adrec.features.batches import Past
from adrec.features.directory import Directory
from adrec.retrieval.eligibility import Terms

_ID = (str, int, float, np.integer)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Who asks for ads.

    user: id; None or one never seen is a new user. context: raw values of the request's fields.
    profile: raw values of the user's fields, instead of those stored. at_ms: time in UTC
    milliseconds; None is now. exclude: ids of ads not to show. only: values by categorical field of
    ads, of which an ad needs one in each field. never: values by field, of which it may have none.
    explain: whether the answer says what the models were told.

    Raises:
        RequestError: one of them is of another type.
    """

    user: str | int | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    profile: Mapping[str, Any] | None = None
    at_ms: int | None = None
    exclude: Collection[str | int] = ()
    only: Terms = field(default_factory=dict)
    never: Terms = field(default_factory=dict)
    explain: bool = False

    def __post_init__(self) -> None:
        for name, fits, wanted in (
            ("user", self.user is None or isinstance(self.user, _ID), "an id"),
            ("context", isinstance(self.context, Mapping), "values by field"),
            ("profile", isinstance(self.profile, Mapping | None), "values by field"),
            ("at_ms", isinstance(self.at_ms, int | np.integer | None), "whole milliseconds"),
            ("exclude", _are_ids(self.exclude), "a list of ids"),
            ("only", _are_terms(self.only), "lists of values by field"),
            ("never", _are_terms(self.never), "lists of values by field"),
        ):
            if not fits:
                raise RequestError(f"{name} is {getattr(self, name)!r}; give {wanted}")


@dataclass(frozen=True)
class RankedAd:
    """One recommended ad: calibrated scores by task, and what it was ordered by.

    value_micros: bid times click rate, the expected revenue of the impression; None without bids.
    propensity: probability with which this ad stood in this place.
    """

    ad_id: str
    scores: Mapping[str, float]
    value_micros: float | None
    order_by: float
    propensity: float = 1.0


class Reported(NamedTuple):
    """What came of an ad that was shown: outcomes of each task."""

    ad_id: str | int
    before: Sequence[float] | None
    """Those that were reported before; None: it was shown just now."""
    after: Sequence[float]
    """All so far."""


@dataclass(frozen=True)
class Seen:
    """What the models were told of one request, but for what its values say themselves."""

    histories: Mapping[str, Mapping[str, list[Any]]]
    """Of each sequence, oldest first: `ads` (ids), `gap` (log(1 + hours) since; -1 unknown) and
    `outcomes` (bit k: task k is known to have come out positive)."""
    counters: Mapping[str, list[float]]
    """Counter features of each ad of the slate."""


@dataclass(frozen=True)
class Slate:
    """The answer to one request: ads best first, and where the time went."""

    user: str | None
    version: str
    ads: tuple[RankedAd, ...]
    candidates: int
    """Ads that retrieval found and the ranker scored."""
    stage_ms: Mapping[str, float]
    """Milliseconds of each stage; in a batch, of the whole batch."""
    seen: Seen | None = None
    """If the request wanted to know."""


@dataclass(frozen=True)
class Scored:
    """Candidates of B requests, best retrieved first.

    ads_BN: rows, 0 where there are fewer. scores_BNK: calibrated. order_BN: what they are ranked
    by, -inf where there is no ad, or the ranker did not look at it.
    """

    ads_BN: NDArray[np.int64]
    scores_BNK: NDArray[np.float64]
    order_BN: NDArray[np.float64]

    def top(self, k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places and ads of the best k of each request, [B, k], best first; -1 where none."""
        places = np.argsort(-self.order_BN, axis=1, kind="stable")[:, :k]
        ads = np.take_along_axis(self.ads_BN, places, axis=1)
        return places, np.where(ads == 0, -1, ads)


def past_of(past: Past, ids: Directory) -> dict[str, list[Any]]:
    """One history [L] as plain values, without the places that hold nothing; see `Seen`."""
    there = past.ads != 0
    return {
        "ads": [ids.id(row) for row in past.ads[there].tolist()],
        "gap": past.gap[there].tolist(),
        "outcomes": past.outcomes[there].tolist(),
    }


def _are_ids(value: object) -> bool:
    return (
        isinstance(value, Collection)
        and not isinstance(value, str | Mapping)
        and all(isinstance(one, _ID) for one in value)
    )


def _are_terms(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and isinstance(values, Collection)
        and not isinstance(values, str | Mapping)
        and all(one is None or isinstance(one, _ID) for one in values)
        for name, values in value.items()
    )
