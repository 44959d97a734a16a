"""What goes over HTTP: requests and answers as JSON, each field with its meaning.

Answers are built as plain values and these models document them: an answer of a hundred numbers
need not be checked by the one who made it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Path, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from adrec.data.log_entries import AdStatus, LoggedSlate
from adrec.data.parsing import as_text
from adrec.features.counters import counter_names
from adrec.recommender import Recommender
from adrec.schema import Schema
from adrec.slates import RankedAd, Request, Slate

_MOST_TEXT, _MOST_LIST, _MOST_FIELDS = 512, 1_000, 256

_NO_NUL = r"^[^\x00]*$"  # PostgreSQL cannot hold it

Text = Annotated[str, Field(max_length=_MOST_TEXT, pattern=_NO_NUL)]
Name = Annotated[Text, Field(min_length=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Scalar = bool | Annotated[int, Field(ge=-(2**53), le=2**53)] | Number | Text | None
Id = Name | Annotated[int, Field(ge=0, le=2**53)]
Value = Scalar | Annotated[list[Scalar], Field(max_length=_MOST_LIST)]
Fields = Annotated[dict[Text, Value], Field(max_length=_MOST_FIELDS)]
Terms = Annotated[
    dict[Text, Annotated[list[Scalar], Field(max_length=_MOST_LIST)]], Field(max_length=16)
]
TimeMs = Annotated[int, Field(ge=0, lt=2**53)]
PathId = Annotated[Name, Path(), AfterValidator(as_text)]
QueryId = Annotated[Name, Query()]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RecommendIn(_Wire):
    """A request for ads."""

    user: Id | None = Field(default=None, description="Who asks; unknown ones are new users.")
    context: Fields = Field(default={}, description="Values of the request's fields by name.")
    profile: Fields | None = Field(
        default=None, description="Values of the user's fields, in the place of what is stored."
    )
    k: int = Field(default=10, ge=1, le=100_000, description="How many ads.")
    only: Terms = Field(default={}, description="Per field of ads, the values they may have.")
    never: Terms = Field(default={}, description="Per field of ads, the values they may not have.")
    exclude: Annotated[list[Id], Field(max_length=_MOST_LIST)] = Field(
        default=[], description="Ads that are not wanted."
    )
    timeout_ms: float | None = Field(
        default=None, gt=0, le=60_000, description="An answer that comes later is of no use."
    )

    explain: bool = Field(default=False, description="Whether to say what the models were told.")

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"user": "17", "k": 3}},
    )

    def request(self, at_ms: int, *, explain: bool) -> Request:
        """For the recommender, at a time."""
        return Request(
            user=self.user,
            context=self.context,
            profile=self.profile,
            at_ms=at_ms,
            exclude=self.exclude,
            only=self.only,
            never=self.never,
            explain=explain,
        )


class BatchIn(_Wire):
    """Several requests at once; each is answered, or refused, by itself."""

    requests: list[RecommendIn] = Field(min_length=1)


class AdOut(_Wire):
    """A recommended ad."""

    ad_id: str
    position: int = Field(description="From 1.")
    scores: dict[str, float] = Field(
        description="Per task, the calibrated probability or expected value."
    )
    value_micros: int | None = Field(
        description="Bid times calibrated click rate: what the impression is expected to earn."
    )
    price_micros: int | None = Field(description="First price of the impression: its value.")
    currency: str | None
    propensity: float = Field(description="Probability with which this ad stood in this place.")


class RecommendOut(_Wire):
    """An answer."""

    request_id: str = Field(description="To be given back with the events of these ads.")
    user: str | None
    version: str = Field(description="Of the models.")
    at_ms: int = Field(description="When, UTC milliseconds.")
    degraded: bool = Field(description="Whether something that the answer needs was out of reach.")
    ads: list[AdOut] = Field(description="Best first.")
    stage_ms: dict[str, float] = Field(description="Where the time went, of the whole batch.")
    seen: dict[str, Any] | None = Field(
        default=None,
        description="What the models were told: histories, counters of each ad, and their names.",
    )


class ErrorOut(_Wire):
    """Why there is no answer."""

    detail: str


class BatchOut(_Wire):
    """An answer, or the reason why there is none, for each request in turn."""

    answers: list[RecommendOut | ErrorOut]


class EventIn(_Wire):
    """What came of an ad."""

    event_id: Name = Field(
        description="Yours; the same id again is the same event, and counts once."
    )
    kind: Text = Field(description="`impression`, or the name of a task, e.g. `click`.")
    request_id: Name = Field(
        description="Of the answer that held the ad; your own for an ad that was shown elsewhere."
    )
    ad_id: Id
    at_ms: TimeMs | None = Field(default=None, description="When; now if left out.")
    value: Annotated[float, Field(ge=0, allow_inf_nan=False, le=1e12)] = Field(
        default=1.0, description="Of a value task, e.g. revenue."
    )
    user: Id | None = Field(default=None, description="Of an ad that was shown elsewhere.")
    context: Fields | None = Field(default=None, description="Of an ad that was shown elsewhere.")

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "event_id": "9f1c",
                "kind": "impression",
                "request_id": "mine-1",
                "ad_id": "1",
                "user": "17",
                "context": {},
            }
        },
    )


class EventsIn(_Wire):
    """Events, to be put into the log together."""

    events: list[EventIn] = Field(min_length=1)


class Rejected(_Wire):
    """An event that was not taken."""

    event_id: str
    reason: str


class EventsOut(_Wire):
    """What became of events. Those accepted are on disk."""

    accepted: int = Field(description="New ones.")
    duplicates: int = Field(description="Those that were there before.")
    rejected: list[Rejected]


class AdsIn(_Wire):
    """Ads to add, or to change where their id is known."""

    ads: list[dict[Text, Value]] = Field(
        min_length=1, description="Raw values by column, as the table of ads has them."
    )

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"ads": [{"ad_id": "new-1", "bid_micros": 250_000}]}},
    )


class StatusIn(_Wire):
    """Whether ads are shown."""

    status: Literal["active", "paused"]


class AdInfo(_Wire):
    """An ad of the catalogue."""

    ad_id: str
    status: Literal["active", "paused", "removed"]
    bid_micros: int | None
    fields: dict[str, str | None] = Field(description="Its categorical fields.")


class AdsOut(_Wire):
    """Ads of the catalogue."""

    total: int
    ads: list[AdInfo]


class UserOut(_Wire):
    """What is known of a user."""

    user: str
    known: bool = Field(
        description="Whether the id was met before; of who was erased nothing else is known."
    )
    histories: dict[str, list[dict[str, Any]]] = Field(description="Newest first.")


@dataclass(frozen=True)
class Answered:
    """A slate with its entry in the log, and the schema of its version."""

    logged: LoggedSlate
    slate: Slate
    schema: Schema
    explain: bool
    """Whether the client wants to know, too, what the models were told."""
    degraded: bool
    """Whether something that other servers know may be missing."""
    about: Mapping[str, AdInfo] = field(default_factory=dict)
    """What is known of its ads, if that was asked."""

    def as_json(self) -> dict[str, Any]:
        """`RecommendOut` as plain values."""
        slate, schema = self.slate, self.schema
        currency = None if schema.bid_micros is None else schema.currency
        found = {
            "request_id": self.logged.request_id,
            "user": slate.user,
            "version": slate.version,
            "at_ms": self.logged.at_ms,
            "degraded": self.degraded,
            "ads": [_ad(place, ad, currency) for place, ad in enumerate(slate.ads, 1)],
            "stage_ms": {name: round(ms, 3) for name, ms in slate.stage_ms.items()},
        }
        if self.explain and slate.seen is not None:
            found["seen"] = asdict(slate.seen) | {"counter_names": counter_names(schema)}
        return found


def ad_info(recommender: Recommender, row: int) -> AdInfo:
    """What is known of an ad of the catalogue."""
    now = recommender.index.now
    catalogue, active = now.about.catalogue, now.about.eligibility.active
    at_1 = np.array([row])
    status: AdStatus = "active" if active is None or active.has(at_1)[0] else "paused"
    if not now.has(at_1)[0]:
        status = "removed"
    bids = recommender.state.schema.bid_micros is not None
    return AdInfo(
        ad_id=catalogue.directory.id(row),
        status=status,
        bid_micros=int(catalogue.bid_micros_A[row]) if bids else None,
        fields={name: column.value(row) for name, column in catalogue.raw.items()},
    )


def _ad(place: int, ad: RankedAd, currency: str | None) -> dict[str, Any]:
    value = None if ad.value_micros is None else round(ad.value_micros)
    return {
        "ad_id": ad.ad_id,
        "position": place,
        "scores": dict(ad.scores),
        "value_micros": value,
        "price_micros": value,
        "currency": None if value is None else currency,
        "propensity": ad.propensity,
    }
