"""Loaded: a version with the state that it answers from, and all that is asked of it.

It is told the log's events since the version's training, and from then on whatever comes. It lives
in the server's own process, or in processes of their own (`answerers.py`); `Answering` is what
both have in common.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

from adrec.bundle import Bundle
from adrec.data.event_log import EventLog
from adrec.data.log_entries import AdChange, Event, LoggedSlate
from adrec.errors import AdRecError, BundleError, RequestError
from adrec.inference.backends import BackendName
from adrec.recommender import Clock, Recommender
from adrec.schema import Schema
from adrec.serving.feed import Feed
from adrec.serving.kept import Kept, Known, Room, files_of, joined
from adrec.serving.wire import AdInfo, UserOut, ad_info
from adrec.slates import Request, Slate

_WARM_USERS = 8


class GoneError(Exception):
    """A version was let go, or has lost all that could answer."""


@dataclass(frozen=True)
class Ask:
    """A request to be answered.

    k: how many ads. about: whether the answer says what is known of its ads.
    """

    request: Request
    k: int
    about: bool = False


@dataclass(frozen=True)
class Found:
    """An answer, and what is known of its ads if that was asked."""

    slate: Slate
    about: Mapping[str, AdInfo]


@dataclass(frozen=True)
class Version:
    """What does not change of a version while it answers."""

    name: str
    folder: Path
    schema: Schema
    backend: BackendName


class Answering(Protocol):
    """A version that can answer. Safe to use from many threads, but for the telling.

    All but the telling raise `GoneError` once it is closed.
    """

    version: Version
    kept: Kept | None
    """From which whoever loads the version next can go on."""

    def answer(self, asks: Sequence[Ask]) -> list[Found | Exception]:
        """Answer a batch, or say why not, each."""

    @property
    def told(self) -> int:
        """Place in the log up to which it was told all."""

    @property
    def whole(self) -> bool:
        """Whether nothing of it was lost since it was loaded."""

    def tell(self, slates: Mapping[str, LoggedSlate], events: Sequence[Event]) -> None:
        """Tell events that were added to the log, with their slates."""

    def catch_up(self) -> None:
        """Tell what others have added to the log."""

    def change_ads(self, changes: Sequence[AdChange]) -> None:
        """Change ads.

        Raises:
            DataError: a value does not fit, or an ad is unknown.
        """

    def restore_ads(self, changes: Sequence[AdChange]) -> None:
        """Have ads stand as they stand elsewhere; those that are unknown are left out."""

    def forget(self, user_ids: Sequence[str]) -> None:
        """Erase the past of users."""

    def check(self, requests: Sequence[Request]) -> list[str | None]:
        """What does not fit its field in each request; None if all does."""

    def size(self) -> int:
        """How many ads it has."""

    def ad(self, ad_id: str) -> AdInfo | None:
        """An ad of the catalogue."""

    def find_ads(self, text: str, count: int) -> tuple[int, list[AdInfo]]:
        """Ads whose id contains a text: how many there are, and the first few."""

    def user(self, user_id: str, at_ms: int) -> UserOut:
        """What is known of a user at a time."""

    def close(self) -> None:
        """Finish what is being answered, and end."""


class Loaded:
    """A version in this process."""

    def __init__(
        self, folder: Path, recommender: Recommender, log: EventLog, known: Known, clock: Clock
    ) -> None:
        """Put together what `load` has loaded."""
        self.recommender, self._log, self._clock = recommender, log, clock
        self.kept: Kept | None = None
        self._feed = Feed(
            recommender,
            log_end_ms=known.log_end_ms,
            told=known.told,
            newest_ms=known.newest_ms,
        )
        state, backend = recommender.state, recommender.runtime.backend
        self.version = Version(
            folder.name, folder, state.schema, BackendName(backend.engine, backend.precision)
        )

    @classmethod
    def load(
        cls,
        folder: Path,
        log: EventLog,
        *,
        clock: Clock,
        mapped: bool | None = None,
        like: BackendName | None = None,
        kept: Kept | None = None,
        room: Room | None = None,
    ) -> Self:
        """Load a version, tell it what the log says, and warm it.

        Args:
            folder: of the version.
            log: that it is told, and will be.
            clock: time of requests, UTC milliseconds.
            mapped: as `AdIndex.load` takes it.
            like: the backend to run on, if this version may; None: the fastest.
            kept: of this version, if it was told the log before.
            room: to keep what it is told now.

        Raises:
            BundleError: it is damaged.
        """
        recommender, known = load(folder, log, clock=clock, mapped=mapped, like=like, kept=kept)
        loaded = cls(folder, recommender, log, known, clock)
        loaded.read_log()
        if room is not None:
            loaded._keep_in(room, known)
        loaded.restore_ads(log.ad_changes(after=known.ads))  # what came while it was told
        loaded.forget(log.erased(after=known.erasures))
        loaded.warm()
        return loaded

    def read_log(self) -> None:
        """Tell what stands in the log as fast as can be: before it answers."""
        self._feed.begin(self._log, self._clock())

    def warm(self) -> None:
        """Answer a few requests, so that the next ones take no longer than any."""
        users: list[str | None] = [*self.recommender.state.users.ids[:_WARM_USERS], None]
        for count in (1, len(users)):
            self.recommender.recommend_batch([Request(user=user) for user in users[:count]])

    def answer(self, asks: Sequence[Ask]) -> list[Found | Exception]:
        """See `Answering`."""
        most = max(ask.k for ask in asks)
        try:
            slates: list[Slate | Exception] = list(
                self.recommender.recommend_batch([ask.request for ask in asks], most)
            )
        except RequestError:
            slates = [self._alone(ask) for ask in asks]
        return [
            slate if isinstance(slate, Exception) else self._found(ask, slate)
            for ask, slate in zip(asks, slates, strict=True)
        ]

    @property
    def told(self) -> int:
        """See `Answering`."""
        return self._feed.told

    @property
    def whole(self) -> bool:
        """See `Answering`."""
        return True

    def tell(self, slates: Mapping[str, LoggedSlate], events: Sequence[Event]) -> None:
        """See `Answering`."""
        self._feed.tell(self._log, events, slates)

    def catch_up(self) -> None:
        """See `Answering`."""
        self._feed.catch_up(self._log)

    def change_ads(self, changes: Sequence[AdChange]) -> None:
        """Change ads: those with fields first, then each status in turn; see `Answering`.

        If an ad is unknown, what went before stays changed.
        """
        change_ads(self.recommender, changes)

    def restore_ads(self, changes: Sequence[AdChange]) -> None:
        """See `Answering`."""
        restore_ads(self.recommender, changes)

    def forget(self, user_ids: Sequence[str]) -> None:
        """See `Answering`."""
        for user_id in user_ids:
            self.recommender.forget(user_id)

    def check(self, requests: Sequence[Request]) -> list[str | None]:
        """See `Answering`."""
        return [self._problem(request) for request in requests]

    def size(self) -> int:
        """See `Answering`."""
        return len(self.recommender.index)

    def ad(self, ad_id: str) -> AdInfo | None:
        """See `Answering`."""
        row = self.recommender.index.now.about.catalogue.directory.row(ad_id)
        return ad_info(self.recommender, row) if row else None

    def find_ads(self, text: str, count: int) -> tuple[int, list[AdInfo]]:
        """See `Answering`."""
        ids = self.recommender.index.now.about.catalogue.directory.ids
        if not text:
            rows: Sequence[int] = range(1, len(ids) + 1)
        else:
            rows = [row for row, ad in enumerate(ids, 1) if text.casefold() in ad.casefold()]
        return len(rows), [ad_info(self.recommender, row) for row in rows[:count]]

    def user(self, user_id: str, at_ms: int) -> UserOut:
        """See `Answering`."""
        known = bool(self.recommender.state.users.row(user_id))
        histories = self.recommender.histories(user_id, at_ms)
        return UserOut(user=user_id, known=known, histories=histories)

    def close(self) -> None:
        """See `Answering`: whoever answers holds on to it until done."""

    def _keep_in(self, room: Room, known: Known) -> None:
        now = replace(known, told=self._feed.told, newest_ms=self._feed.newest_ms)
        self.kept = Kept(now, room) if room.write(self.recommender.state.memory) else None

    def _found(self, ask: Ask, slate: Slate) -> Found:
        slate = replace(slate, ads=slate.ads[: ask.k])
        shown = [ad.ad_id for ad in slate.ads] if ask.about else []
        return Found(slate, {ad: info for ad in shown if (info := self.ad(ad)) is not None})

    def _alone(self, ask: Ask) -> Slate | Exception:
        try:
            return self.recommender.recommend_batch([ask.request], ask.k)[0]
        except RequestError as error:
            return error

    def _problem(self, request: Request) -> str | None:
        try:
            self.recommender.check(request)
        except RequestError as error:
            return str(error)
        return None


def load(
    folder: Path,
    log: EventLog,
    *,
    clock: Clock,
    mapped: bool | None = None,
    like: BackendName | None = None,
    kept: Kept | None = None,
) -> tuple[Recommender, Known]:
    """A version with its ads as they stand and without users that were erased since its training,
    and what it knows of the log: no more than that, or what was kept. See `Loaded.load`.

    Raises:
        BundleError: it is damaged.
    """
    now = log.marks()
    try:
        files = files_of(folder)
        if kept is not None and (kept.known.files, kept.known.erasures) != (files, now.erasures):
            kept = None  # of another version, or it may tell of a user who was erased
        bundle = Bundle.open(folder, verified=kept is not None)
        recommender = Recommender.of(bundle, clock=clock, mapped=mapped, like=like)
    except AdRecError:
        raise
    except Exception as error:  # whatever is wrong with its files, it is the version that is
        raise BundleError(f"{folder}: cannot be loaded ({error}); publish it again") from error
    log_end_ms = bundle.manifest.log_end_ms
    known, memory = Known(files, log_end_ms, newest_ms=log_end_ms), None
    if kept is not None and (memory := kept.room.read()) is not None:
        known = kept.known
    ad_changes = joined(known.ad_changes, log.ad_changes(after=known.ads))
    restore_ads(recommender, ad_changes)
    if memory is not None:
        recommender.state.remember(memory)
    for user_id in log.erased(after=known.erasures, from_ms=log_end_ms):
        recommender.forget(user_id)
    return recommender, replace(known, ads=now.ads, ad_changes=ad_changes, erasures=now.erasures)


def change_ads(recommender: Recommender, changes: Sequence[AdChange]) -> None:
    """Change the ads of a recommender; see `Loaded.change_ads`."""
    ads = recommender.ads
    if rows := [change.fields for change in changes if change.fields is not None]:
        ads.put(rows)
    for status, change in (("paused", ads.pause), ("removed", ads.remove), ("active", ads.resume)):
        some = [c.ad_id for c in changes if c.status == status and c.fields is None]
        if some:
            change(some)


def restore_ads(recommender: Recommender, changes: Sequence[AdChange]) -> None:
    """Have ads stand as they stood: a version may lack some that were changed, and has others."""
    put = [replace(change, status="active") for change in changes if change.fields is not None]
    change_ads(recommender, put)
    known = recommender.index.now.about.catalogue.directory
    rest = [c for c in changes if known.row(c.ad_id)]
    change_ads(recommender, [replace(change, fields=None) for change in rest])
