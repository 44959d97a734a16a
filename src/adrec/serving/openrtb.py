"""OpenRTB 2.6: from an exchange's bid request to bids, and from its notices to events.

Each impression is a request for ads under the exchange's terms: blocked advertisers and categories
become filters inside the search, sizes too. The best ad that no other impression of the request has
got is bid with what it is expected to earn, if that is at least the floor. Prices are CPM.
Paths such as `device.geo.country` say where in the bid request a value of the schema stands; what
cannot be a value is missing.

Source: IAB Tech Lab, OpenRTB 2.6 (github.com/InteractiveAdvertisingBureau/openrtb2.x).
"""

import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, WrapValidator

from adrec.errors import ConfigError
from adrec.schema import Schema, Strict
from adrec.serving.notices import Notices
from adrec.serving.wire import AdInfo, Answered, RecommendIn, Scalar, Text

T = TypeVar("T")
Format = Literal["banner", "video", "audio", "native"]
_MTYPE: dict[Format, int] = {"banner": 1, "video": 2, "audio": 3, "native": 4}
_MICROS_PER_CPM = 1_000.0  # micros of one impression in a CPM of one unit of currency
_PRICE_DIGITS = 6
_MACRO = re.compile(r"\$\{ADREC_([A-Z_]+)\}")
_FLAG = Annotated[int, Field(ge=0, le=1)]
_SCALAR: TypeAdapter[Scalar] = TypeAdapter(Scalar)
_TEXT: TypeAdapter[str] = TypeAdapter(Text)


def _none_if_odd(value: Any, read: Callable[[Any], T]) -> T | None:
    try:
        return read(value)
    except ValidationError:
        return None


_PIXELS = Annotated[
    Annotated[int, Field(ge=0, le=100_000)] | None,
    WrapValidator(_none_if_odd),
    Field(description="What cannot be a size is none."),
]


class Place(Strict):
    """Where in a bid request a value stands."""

    path: str
    """Names with dots between; `imp.` begins in the impression."""
    values: dict[str, str] = Field(default_factory=dict)
    """What the exchange's values are called in the schema; others stay as they are."""


class OpenRtbConfig(Strict):
    """How an exchange's requests are read and answered."""

    seat: str = "adrec"
    """Whose bids these are."""
    user: tuple[str, ...] = ("user.buyeruid", "user.id", "device.ifa")
    """Where the user's id stands: the first that is there."""
    context: dict[str, Place] = Field(default_factory=dict)
    """Fields of the request, and where they stand."""
    domain: str | None = None
    """Field of ads with the advertiser's domain: `badv` and `adomain`."""
    category: str | None = None
    """Field of ads with the IAB category: `bcat`, `acat` and `cat`."""
    size: str | None = None
    """Field of ads with the size of banners, `300x250`; None: any ad fits."""
    campaign: str | None = None
    """Field of ads with their campaign: `cid`."""
    formats: tuple[Format, ...] = ("banner",)
    """What is bid on."""
    markup: dict[Format, str] = Field(default_factory=dict)
    """Markup of a bid by its format. `${ADREC_URL}` is replaced by `url`, `${ADREC_AD_ID}` and
    `${ADREC_REQUEST_ID}` by the ids, URL-quoted; the exchange replaces its own macros."""
    deals: frozenset[str] = frozenset()
    """Ids of private deals that may be bid on."""
    url: str | None = None
    """Where exchanges reach this server, for their notices; None: bids name none."""
    network_ms: float = Field(default=10.0, ge=0.0)
    """What the network takes of a request's `tmax`."""

    def check(self, schema: Schema) -> None:
        """Whether the fields that are named exist.

        Raises:
            ConfigError: one does not.
        """
        context = {field.name for field in schema.request_fields if field.kind != "clock"}
        ads = {field.name for field in schema.ad_fields if field.kind == "categorical"}
        wanted = {self.domain, self.category, self.size, self.campaign} - {None}
        problems = []
        for names, known, what in ((set(self.context), context, "request"), (wanted, ads, "ad")):
            if unknown := ", ".join(sorted(str(name) for name in names - known)):
                there = ", ".join(sorted(known))
                problems.append(f"no {what} field is called {unknown}; the schema has {there}")
        if problems:
            raise ConfigError("\n  ".join(["openrtb: these fields are missing:", *problems]))


class _Open(BaseModel):
    """Part of a bid request: what we do not know is an exchange's extension."""

    model_config = ConfigDict(extra="allow")


class Size(_Open):
    """A size in device independent pixels."""

    w: _PIXELS = None
    h: _PIXELS = None


class Banner(Size):
    """A banner's sizes: `format`, or its own."""

    format: list[Size] = Field(default=[], max_length=100)


class Deal(_Open):
    """A private deal."""

    id: Text
    bidfloor: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    bidfloorcur: Text = "USD"
    wseat: list[Text] = []


class Pmp(_Open):
    """Private deals of an impression."""

    private_auction: _FLAG = 0
    deals: list[Deal] = Field(default=[], max_length=100)


class Imp(_Open):
    """An impression that is for sale."""

    id: Text
    banner: Banner | None = None
    video: dict[str, Any] | None = None
    audio: dict[str, Any] | None = None
    native: dict[str, Any] | None = None
    bidfloor: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    bidfloorcur: Text = "USD"
    pmp: Pmp | None = None


class BidRequest(_Open):
    """A bid request, as far as it matters here."""

    id: Text
    imp: list[Imp] = Field(min_length=1, max_length=64)
    at: int = 2
    tmax: float | None = Field(default=None, gt=0.0, le=60_000.0)
    cur: list[Text] = Field(default=[], max_length=200)
    wseat: list[Text] = Field(default=[], max_length=1_000)
    bseat: list[Text] = Field(default=[], max_length=1_000)
    bcat: list[Text] = Field(default=[], max_length=1_000)
    acat: list[Text] = Field(default=[], max_length=1_000)
    badv: list[Text] = Field(default=[], max_length=1_000)

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "id": "80ce30c5",
                "at": 1,
                "cur": ["USD"],
                "imp": [{"id": "1", "bidfloor": 0.03, "banner": {"w": 300, "h": 250}}],
                "site": {"domain": "www.example.com"},
                "user": {"id": "17"},
            }
        },
    )


class Bid(BaseModel):
    """A bid on an impression."""

    id: str
    impid: str
    price: float
    adid: str
    crid: str
    mtype: int
    adm: str | None = None
    adomain: list[str] | None = None
    cat: list[str] | None = None
    cid: str | None = None
    dealid: str | None = None
    nurl: str | None = None
    burl: str | None = None


class SeatBid(BaseModel):
    """Bids of a seat."""

    seat: str
    bid: list[Bid]


class BidResponse(BaseModel):
    """Bids."""

    id: str
    bidid: str
    cur: str
    seatbid: list[SeatBid]


@dataclass(frozen=True)
class Lot:
    """An impression that may be bid on: what to ask for, and from what price on."""

    imp: Imp
    format: Format
    floor: float
    """CPM."""
    deal: str | None
    asked: RecommendIn


def lots_of(
    asked: BidRequest, config: OpenRtbConfig, currency: str, timeout_ms: float, most: int
) -> list[Lot]:
    """The impressions that may be bid on.

    Args:
        asked: the bid request.
        config: how it is read.
        currency: of our prices.
        timeout_ms: deadline of one that brings none.
        most: ads that may be asked for at once.
    """
    barred = (asked.wseat and config.seat not in asked.wseat) or config.seat in asked.bseat
    if barred or (asked.cur and currency not in asked.cur):
        return []
    tmax_ms = timeout_ms if asked.tmax is None else min(timeout_ms, asked.tmax)
    left_ms = tmax_ms - config.network_ms
    lots: list[Lot] = []
    for imp in asked.imp if left_ms > 0.0 else ():
        format_ = next((f for f in config.formats if getattr(imp, f) is not None), None)
        terms = _floor(imp, config, currency)
        if format_ is not None and terms is not None:
            request = _request(asked, imp, format_, config, min(len(asked.imp), most), left_ms)
            lots.append(Lot(imp, format_, *terms, request))
    return lots


def bids_on(
    lots: Sequence[Lot],
    answers: Sequence[Answered | None],
    config: OpenRtbConfig,
    notices: Notices,
) -> Iterator[Bid]:
    """A bid for each lot whose best free ad is worth the floor.

    Args:
        lots: what is for sale.
        answers: to each; None where there is none in time.
        config: how bids look.
        notices: that they ask for.
    """
    taken: set[str] = set()
    for lot, answered in zip(lots, answers, strict=True):
        if answered is None:
            continue
        for ad in answered.slate.ads:
            price = round((ad.value_micros or 0.0) / _MICROS_PER_CPM, _PRICE_DIGITS)
            if ad.ad_id in taken or price <= 0.0 or price < lot.floor:
                continue
            taken.add(ad.ad_id)
            request_id = answered.logged.request_id
            yield _bid(lot, request_id, answered.about[ad.ad_id], price, config, notices)
            break


def _floor(imp: Imp, config: OpenRtbConfig, currency: str) -> tuple[float, str | None] | None:
    """The least price of an impression and the deal it is of; None if we may not bid."""
    pmp = imp.pmp or Pmp()
    for deal in pmp.deals:
        seated = not deal.wseat or config.seat in deal.wseat
        if deal.id in config.deals and seated and deal.bidfloorcur == currency:
            return deal.bidfloor, deal.id
    if pmp.private_auction or (imp.bidfloor > 0.0 and imp.bidfloorcur != currency):
        return None
    return imp.bidfloor, None


def _request(
    asked: BidRequest, imp: Imp, format_: Format, config: OpenRtbConfig, k: int, left_ms: float
) -> RecommendIn:
    only: dict[str, list[Any]] = {}
    never: dict[str, list[Any]] = {}
    if config.domain is not None and asked.badv:
        never[config.domain] = list(asked.badv)
    if config.category is not None and asked.bcat:
        never[config.category] = list(asked.bcat)
    if config.category is not None and asked.acat:
        only[config.category] = list(asked.acat)
    if config.size is not None and format_ == "banner" and imp.banner is not None:
        sizes = [size for size in (*imp.banner.format, imp.banner) if size.w and size.h]
        if sizes:
            only[config.size] = list(dict.fromkeys(f"{size.w}x{size.h}" for size in sizes))
    whole, of_imp = dict(asked), dict(imp)
    context = {name: _value(place, whole, of_imp) for name, place in config.context.items()}
    return RecommendIn(
        user=_user(whole, config),
        context={name: value for name, value in context.items() if value is not None},
        k=k,
        only=only,
        never=never,
        timeout_ms=left_ms,
    )


def _user(asked: Mapping[str, Any], config: OpenRtbConfig) -> str | None:
    """Who is asked for, where the law and the user let us know."""
    device, regs, user = (
        part if isinstance(part := asked.get(name), dict) else {}
        for name in ("device", "regs", "user")
    )
    hidden = _says(device, "lmt") or _says(device, "dnt") or _says(regs, "coppa")
    if hidden or (_says(regs, "gdpr") and not _said(user, "consent")):
        return None
    for path in config.user:
        found = _at(path, asked)
        if isinstance(found, str | int) and not isinstance(found, bool) and str(found):
            return _none_if_odd(str(found), _TEXT.validate_python)
    return None


def _says(part: Mapping[str, Any], flag: str) -> bool:
    return _said(part, flag) in (1, "1")


def _said(part: Mapping[str, Any], name: str) -> Any:
    """In its place, or where OpenRTB 2.5 had it."""
    extension = part.get("ext")
    early = extension.get(name) if isinstance(extension, dict) else None
    return part.get(name, early)


def _value(place: Place, asked: Mapping[str, Any], imp: Mapping[str, Any]) -> Scalar:
    head, _, rest = place.path.partition(".")
    found = _at(rest, imp) if head == "imp" else _at(place.path, asked)
    if not isinstance(found, str | int | float):
        return None
    read = partial(_SCALAR.validate_python, strict=True)
    return _none_if_odd(place.values.get(str(found), found), read)


def _at(path: str, content: Mapping[str, Any]) -> Any:
    at: Any = content
    for name in path.split("."):
        at = dict(at) if isinstance(at, BaseModel) else at
        if not isinstance(at, dict):
            return None
        at = at.get(name)
    return at


def _bid(
    lot: Lot, request_id: str, ad: AdInfo, price: float, config: OpenRtbConfig, notices: Notices
) -> Bid:
    def of(field: str | None) -> str | None:
        return None if field is None else ad.fields.get(field)

    domain, category = of(config.domain), of(config.category)
    macros = {
        "AD_ID": quote(ad.ad_id, safe=""),
        "REQUEST_ID": quote(request_id, safe=""),
        "URL": (config.url or "").rstrip("/"),
    }
    markup = _MACRO.sub(
        lambda m: macros.get(m.group(1), m.group(0)), config.markup.get(lot.format, "")
    )
    return Bid(
        id=uuid.uuid4().hex,
        impid=lot.imp.id,
        price=price,
        adid=ad.ad_id,
        crid=ad.ad_id,
        mtype=_MTYPE[lot.format],
        adm=markup or None,
        adomain=None if domain is None else [domain],
        cat=None if category is None else [category],
        cid=of(config.campaign),
        dealid=lot.deal,
        nurl=notices.url("win", request_id, ad.ad_id),
        burl=notices.url("billing", request_id, ad.ad_id),
    )
