"""Service: what a server does, without HTTP. It joins versions, batching and the journal."""

import logging
import random
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from adrec.data.databases import LeftAloneError, Patience
from adrec.data.event_log import EventLog
from adrec.data.log_entries import AdChange, AdStatus, Event, LoggedSlate
from adrec.data.log_export import MS_PER_DAY
from adrec.data.parsing import as_text
from adrec.errors import AdRecError, ConfigError, EventLogError, OverloadError, RequestError
from adrec.inference.backends import BackendName
from adrec.inference.threads import in_background, use_threads
from adrec.recommender import Clock, now_ms
from adrec.serving.answerers import Answerers
from adrec.serving.batching import Batcher
from adrec.serving.config import ServerConfig
from adrec.serving.intake import Intake
from adrec.serving.journal import Journal, logged_slate
from adrec.serving.kept import Kept
from adrec.serving.loaded import Answering, Ask, GoneError, Loaded, Version, load
from adrec.serving.news import News
from adrec.serving.notices import Notices
from adrec.serving.openrtb import BidRequest, BidResponse, Lot, SeatBid, bids_on, lots_of
from adrec.serving.outcomes import Outcomes
from adrec.serving.skew import Skew, measure_skew
from adrec.serving.versions import Versions
from adrec.serving.wire import AdInfo, Answered, RecommendIn, UserOut

T = TypeVar("T")

_log = logging.getLogger(__name__)

_READY_S = 2.0
_PRUNE_S = 3_600.0
_FLUSH_S = 10.0


@dataclass(frozen=True)
class _Asked:
    ask: Ask
    explain: bool
    """Whether the client wants to know, too, what the models were told."""


class Service:
    """A model version behind a queue, its event log, and what changes either."""

    def __init__(
        self,
        folder: Path,
        log: EventLog,
        config: ServerConfig,
        *,
        clock: Clock = now_ms,
        since: int | None = None,
    ) -> None:
        """Load the version that a run's `current` names, and begin.

        Args:
            folder: of a run or a version.
            log: of slates and events; closed with the service.
            config: what is allowed.
            clock: UTC milliseconds.
            since: as `Versions` takes it.

        Raises:
            BundleError: there is no version, or it is damaged.
            ConfigError: the settings name fields that its schema has not.
        """
        use_threads(1)
        self.config, self._log, self._clock = config, log, clock
        self.on_events: Callable[[Outcomes], None] = lambda outcomes: None
        """Told of outcomes once they are in the log."""
        self.news = None  # from here on; what was before it is in the log
        if config.redis is not None:
            self.news = News(config.redis, log.id, timeout_ms=config.redis_timeout_ms)
        self._hearing, self._patience = threading.Lock(), Patience()
        self.notices = Notices(config.openrtb.url, config.events_token)
        self.draining = False
        """Whether whoever routes is asked to send no more requests."""
        self.versions = Versions(folder, log, self._load, clock=clock, since=since)
        try:
            config.openrtb.check(self.current.schema)
        except ConfigError:
            self.versions.close()
            raise
        self.journal = Journal(log, on_commit=self._committed)
        self.versions.on_erased = self._forget_slates
        self.intake = Intake(
            self.journal,
            schema=lambda: self.current.schema,
            check=lambda requests: self._ask(lambda current: current.check(requests)),
            clock=clock,
            shared=config.workers > 1 or config.redis is not None or config.events is not None,
        )
        self.batcher: Batcher[_Asked, Answered] = Batcher(
            self._answer, config.batching, begin_thread=lambda: use_threads(1)
        )
        self._searching = threading.Lock()
        self._closing = threading.Event()
        self._beside = [
            self._repeat("followed", self.versions.follow, config.follow_ms / 1000.0),
            self._repeat("pruned", self.prune, _PRUNE_S),
        ]

    @property
    def current(self) -> Version:
        """The version that answers."""
        return self.versions.current.version

    def recommend(self, asked: RecommendIn, *, about: bool = False) -> "Future[Answered]":
        """Have a request answered; `about`: with what is known of its ads.

        Raises:
            OverloadError: it cannot be answered in time.
            RequestError: more ads are asked for than are allowed.
        """
        if asked.k > self.config.limits.k:
            raise RequestError(f"k is {asked.k}; ask for at most {self.config.limits.k} ads")
        timeout_ms = asked.timeout_ms or self.config.timeout_ms
        sampled = random.random() < self.config.sample
        request = asked.request(self._clock(), explain=asked.explain or sampled)
        ask = _Asked(Ask(request, asked.k, about), asked.explain)
        return self.batcher.submit(ask, timeout_ms / 1000.0)

    def lots(self, asked: BidRequest) -> list[Lot]:
        """The impressions of an exchange's request that may be bid on.

        Raises:
            RequestError: ads carry no bids.
        """
        schema = self.current.schema
        if schema.bid_micros is None:
            raise RequestError("the ads of this version carry no bids")
        return lots_of(
            asked,
            self.config.openrtb,
            schema.currency,
            self.config.timeout_ms,
            self.config.limits.k,
        )

    def bids(
        self, asked: BidRequest, lots: Sequence[Lot], answers: Sequence[Answered | None]
    ) -> BidResponse | None:
        """Bids on some lots, from answers that say what is known of their ads; None if there is
        none."""
        bids = list(bids_on(lots, answers, self.config.openrtb, self.notices))
        if not bids:
            return None
        return BidResponse(
            id=asked.id,
            bidid=uuid.uuid4().hex,
            cur=self.current.schema.currency,
            seatbid=[SeatBid(seat=self.config.openrtb.seat, bid=bids)],
        )

    def put_ads(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add or change ads, for good.

        Raises:
            DataError: lists every value that does not fit; no ad is changed.
        """
        name = self.current.schema.ad_id
        self._change_ads(
            [
                AdChange(ad_id=as_text(row.get(name)) or "", status="active", fields=row)
                for row in rows
            ]
        )

    def set_status(self, ad_id: str, status: AdStatus) -> None:
        """Show an ad, show it no more, or take it away.

        Raises:
            DataError: it is unknown, or was removed.
        """
        self._change_ads([AdChange(ad_id=ad_id, status=status)])

    def find_ads(self, text: str, count: int) -> tuple[int, list[AdInfo]]:
        """Ads whose id contains a text: how many there are, and the first few.

        Raises:
            OverloadError: others are searched for just now; answers would wait for both searches.
        """
        if not self._searching.acquire(blocking=False):
            raise OverloadError("ads are being searched; ask again in a while")
        try:
            return self._ask(lambda current: current.find_ads(text, count))
        finally:
            self._searching.release()

    def ad(self, ad_id: str) -> AdInfo | None:
        """An ad of the catalogue."""
        return self._ask(lambda current: current.ad(ad_id))

    def user(self, user_id: str) -> UserOut:
        """What is known of a user now."""
        return self._ask(lambda current: current.user(user_id, self._clock()))

    def erase_user(self, user_id: str) -> int:
        """Erase a user from the state, the log, and every version to come that learned before;
        returns how many slates there were."""
        self._flush_without({user_id: self._clock()})
        return self.versions.erase_user(user_id)

    def drain(self) -> None:
        """Be ready no more; requests are answered all the same, until the end."""
        self.draining = True

    def about(self) -> dict[str, Any]:
        """The version that answers, and those that could."""
        current = self.current
        return {
            "name": "adrec",
            "version": current.name,
            "previous": self.versions.previous,
            "versions": self.versions.names(),
            "ads": self._ask(lambda current: current.size()),
            "engine": current.backend.engine,
            "precision": current.backend.precision,
        }

    def check_answers(self) -> None:
        """Whether requests are answered here.

        Raises:
            OverloadError: they are not, or it drains.
        """
        if self.draining:
            raise OverloadError("the server drains; send requests to another")
        self._ask(lambda current: current.size())

    def check_log(self) -> None:
        """Whether events can be written.

        Raises:
            EventLogError: they cannot.
        """
        try:
            self.journal.append([], []).result(timeout=_READY_S)
        except TimeoutError as error:
            raise EventLogError(f"nothing was written for {_READY_S:g} s") from error

    def measure_skew(self) -> Skew:
        """Compare what the models were told with what the log says; see `skew.py`."""
        current, log, clock = self.current, self._log, self._clock

        def measure() -> Skew:
            like = current.backend
            recommender, known = load(current.folder, log, clock=clock, mapped=True, like=like)
            return measure_skew(recommender, log, after_ms=known.log_end_ms, until_ms=clock())

        return in_background(measure)

    def _load(self, folder: Path, like: BackendName | None, kept: Kept | None) -> Answering:
        config, log, clock = self.config, self._log, self._clock
        if config.answer_in == "processes":
            count = config.batching.at_once
            return Answerers(folder, log, clock=clock, count=count, like=like, kept=kept)
        mapped = config.workers > 1 or None
        # Keeping what was told would hold up the answers of this process.
        return in_background(
            lambda: Loaded.load(folder, log, clock=clock, mapped=mapped, like=like)
        )

    def prune(self) -> int:
        """Delete what is older than the settings allow; returns how many slates."""
        if self.config.keep_days is None:
            return 0
        before_ms = self._clock() - self.config.keep_days * MS_PER_DAY
        return self._log.prune(before_ms, stop=self._closing)

    def close(self) -> None:
        """Answer what waits, write what waits, and end."""
        self._closing.set()
        for thread in self._beside:
            thread.join()
        self.batcher.close()
        self.journal.close()
        self.versions.close()
        if self.news is not None:
            self.news.close()
        self._log.close()

    def _change_ads(self, changes: Sequence[AdChange]) -> None:
        self._ask(lambda _: self.versions.change_ads(changes))

    def _committed(self, slates: Sequence[LoggedSlate], events: Sequence[Event]) -> None:
        """Events are on disk: this process knows of them now, and the others may."""
        if not events:
            return
        theirs = self.journal.find({event.request_id for event in events})  # mostly in memory
        theirs |= {slate.request_id: slate for slate in slates}
        known = list(theirs.values())
        self.versions.tell(known, events)
        if self.news is not None:
            self.news.publish(known, events)
        self.on_events(Outcomes.of(theirs, events, self.current.schema.click.name))

    def _hear(self) -> bool:
        """Take in what other processes told; whether nothing may be missing."""
        if self.news is None:
            return True
        if not self._hearing.acquire(timeout=2.0 * self.config.redis_timeout_ms / 1000.0):
            return False
        try:  # until all is told, as who reads next finds nothing new
            messages = self.news.read()
            with self._patience():
                for slates, events in messages or ():
                    self.versions.tell(slates, events)
        except LeftAloneError:
            return False
        except EventLogError as error:  # the log has what is missing now, once it is back
            _log.warning("news cannot be taken in: %s", error)
            return False
        finally:
            self._hearing.release()
        return messages is not None

    def _flush_without(self, erased_ms: Mapping[str, int]) -> None:
        """Take no more events of some users' answers, and have those written that wait: what is
        erased from the log then does not come after it."""
        self.journal.forget(erased_ms)
        if self.news is not None:
            self.news.forget()
        try:
            self.journal.append([], []).result(timeout=_FLUSH_S)
        except TimeoutError as error:
            raise EventLogError(f"nothing was written for {_FLUSH_S:g} s; try again") from error

    def _forget_slates(self, erased_ms: Mapping[str, int]) -> None:
        """Another process has erased users: so is what this one still knows of their answers."""
        self._flush_without(erased_ms)
        self._log.sweep_erased(list(erased_ms))

    def _repeat(self, what: str, work: Callable[[], Any], every_s: float) -> threading.Thread:
        """Do something to the log now and then, until the end, in a thread of its own."""

        def repeat() -> None:
            while not self._closing.is_set():
                pause_s = every_s
                try:
                    work()
                except Exception as error:  # whatever it was, it has to go on
                    known = isinstance(error, AdRecError)
                    _log.warning("the log cannot be %s: %s", what, error, exc_info=not known)
                    pause_s = max(every_s, _READY_S)
                self._closing.wait(pause_s)

        thread = threading.Thread(target=repeat, name=what, daemon=True)
        thread.start()
        return thread

    def _answer(self, asks: Sequence[_Asked]) -> Sequence[Answered | Exception]:
        """Answer a batch; all of it by one version."""
        heard = self._hear()
        all_asks = [one.ask for one in asks]
        schema, found = self._ask(
            lambda current: (current.version.schema, current.answer(all_asks))
        )
        answers: list[Answered | Exception] = []
        for asked, one in zip(asks, found, strict=True):
            if isinstance(one, Exception):
                answers.append(one)
            else:
                logged = logged_slate(asked.ask.request, one.slate)
                answers.append(
                    Answered(logged, one.slate, schema, asked.explain, not heard, one.about)
                )
        if slates := [one.logged for one in answers if isinstance(one, Answered)]:
            self.journal.note(slates)
        return answers

    def _ask(self, call: Callable[[Answering], T]) -> T:
        """Ask the version that answers; if it is let go meanwhile, the one that does then.

        Raises:
            OverloadError: there is none just now.
        """
        while True:
            current = self.versions.current
            try:
                return call(current)
            except GoneError as error:
                if self.versions.current is current:
                    raise OverloadError(
                        f"version {current.version.name} is being loaded anew; ask again in a while"
                    ) from error
