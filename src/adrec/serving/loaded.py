"""Loaded: a version with the state that it answers from, and all that is asked of it.

It is told the log's events since the version's training, and from then on whatever comes. It lives
in the server's own process, or in processes of their own (`answerers.py`); `Answering` is what
both have in common.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import polars as pl

from adrec.bundle import Bundle
from adrec.data.event_log import EventLog
from adrec.data.log_entries import AdChange, Event, LoggedSlate
from adrec.errors import AdRecError, BundleError, DataError, RequestError
from adrec.features.directory import Directory
from adrec.features.memory import memory_of, remember
from adrec.inference.backends import BackendName
from adrec.recommender import Clock, Recommender
from adrec.schema import Schema
from adrec.serving.feed import Feed
from adrec.serving.kept import Kept, Known, Room, files_of, joined
from adrec.serving.wire import AdInfo, UserOut, ad_info
from adrec.slates import Request, Slate

_log = logging.getLogger(__name__)

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

    What asks raises `GoneError` once it is closed; what tells or changes then does nothing.
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

    def catch_up(self, last: int | None = None) -> None:
        """Tell what others have added to the log, up to a place."""

    def check_ads(self, changes: Sequence[AdChange]) -> None:
        """Whether ads could be changed.

        Raises:
            DataError: a value does not fit, or an ad is unknown.
        """

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
        """Ads whose id contains a text, in small or large letters: how many there are, and the
        first few."""

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
        self._small_ids = pl.Series(dtype=pl.String)
        """Of ads, in small letters: for searches, since the first one."""
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
        last = log.marks().last  # ads that its events are of are known to a version loaded later
        recommender, known = load(folder, log, clock=clock, mapped=mapped, like=like, kept=kept)
        loaded = cls(folder, recommender, log, known, clock)
        loaded.read_log(last)
        if room is not None:
            loaded._keep_in(room, known)
        loaded.restore_ads(log.ad_changes(after=known.ads))  # what came while it was told
        loaded.forget(list(log.erased(after=known.erasures)))
        loaded.warm()
        return loaded

    def read_log(self, last: int | None = None) -> None:
        """Tell what stands in the log, up to a place, as fast as can be: before it answers."""
        self._feed.begin(self._log, self._clock(), last=last)

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

    def catch_up(self, last: int | None = None) -> None:
        """See `Answering`."""
        self._feed.catch_up(self._log, last=last)

    def check_ads(self, changes: Sequence[AdChange]) -> None:
        """See `Answering`."""
        ads = self.recommender.ads
        if rows := [change.fields for change in changes if change.fields is not None]:
            ads.check(rows)
        ads.require([change.ad_id for change in changes if change.fields is None])

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
        self.recommender.forget(user_ids)

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
        ids = self.recommender.index.now.about.catalogue.directory
        total, rows = len(ids) - 1, [*range(1, len(ids))[:count]]
        if text:
            found = self._small(ids).str.contains(text.lower(), literal=True).arg_true()
            total, rows = len(found), (found.head(count) + 1).to_list()
        return total, [ad_info(self.recommender, row) for row in rows]

    def user(self, user_id: str, at_ms: int) -> UserOut:
        """See `Answering`."""
        known = bool(self.recommender.state.users.row(user_id))
        histories = self.recommender.histories(user_id, at_ms)
        return UserOut(user=user_id, known=known, histories=histories)

    def close(self) -> None:
        """See `Answering`: whoever answers holds on to it until done."""

    def _small(self, ids: Directory) -> pl.Series:
        """Ids in small letters; to those of earlier searches come those of ads that were added."""
        small, count = self._small_ids, len(ids) - 1
        if len(small) < count:
            new = pl.Series(ids.ids[len(small) :], dtype=pl.String).str.to_lowercase()
            small = self._small_ids = pl.concat([small, new], rechunk=True)
        return small.head(count)

    def _keep_in(self, room: Room, known: Known) -> None:
        now = replace(known, told=self._feed.told, newest_ms=self._feed.newest_ms)
        self.kept = Kept(now, room) if room.write(memory_of(self.recommender.state)) else None

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
    known = fresh = Known(files, log_end_ms, newest_ms=log_end_ms)
    memory = None
    if kept is not None and (memory := kept.room.read()) is not None:
        known = kept.known
    ad_changes = joined(known.ad_changes, log.ad_changes(after=known.ads))
    published = len(recommender.state.catalogue.directory.ids)
    restore_ads(recommender, ad_changes)
    new_ads = tuple(recommender.state.catalogue.directory.ids[published:])
    if new_ads[: len(known.new_ads)] != known.new_ads:  # its rows are of other ads
        known, memory = fresh, None
    if memory is not None:
        remember(recommender.state, memory)
    recommender.forget(log.erased(after=known.erasures, from_ms=log_end_ms))
    known = replace(known, ads=now.ads, erasures=now.erasures)
    return recommender, replace(known, ad_changes=ad_changes, new_ads=new_ads)


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
    """Have ads stand as they stand in the log, whether or not they do already. Left out are those
    that a version lacks, and with a word those that do not fit its schema."""
    known = recommender.index.now.about.catalogue.directory
    put = [one for one in changes if one.status != "removed" or not known.row(one.ad_id)]
    _put(recommender, [replace(one, status="active") for one in put if one.fields is not None])
    now = recommender.index.now
    rows = np.array([now.about.catalogue.directory.row(change.ad_id) for change in changes], int)
    there_N = now.has(rows) & (rows > 0)
    there = [change for change, has in zip(changes, there_N, strict=True) if has]
    change_ads(recommender, [replace(change, fields=None) for change in there])


def _put(recommender: Recommender, changes: Sequence[AdChange]) -> None:
    """Put all that fit."""
    try:
        change_ads(recommender, changes)
    except DataError as error:
        if len(changes) == 1:
            _log.error("ad '%s' does not fit this version: %s", changes[0].ad_id, error)
            return
        half = len(changes) // 2
        _put(recommender, changes[:half])
        _put(recommender, changes[half:])
