"""Versions: the model version that answers, and its change while requests are answered.

A version is loaded, verified, told the log's events since its training, and warmed, all beside the
one that answers; then it takes that one's place by one assignment. Whoever answers takes `current`
once for all that belongs together, so no answer mixes versions; the old one is let go when the last
answer that began with it is done. A version that cannot be loaded changes nothing.

Several processes may serve from one log. What one of them takes in (events, changed ads, erased
users, the version to answer with) stands in the log, and the others `follow` it.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from adrec.bundle import Bundle, find_version, run_of
from adrec.data.event_log import EventLog
from adrec.data.log_entries import AdChange, Event, LoggedSlate, Marks
from adrec.errors import AdRecError, BundleError, DataError
from adrec.inference.threads import in_background
from adrec.recommender import Recommender, Request
from adrec.serving.feed import Feed

_WARM_USERS = 8
_TURN_S = 0.0005

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A version that can answer."""

    name: str
    folder: Path
    recommender: Recommender
    feed: Feed


class Versions:
    """The version that answers, and those that could."""

    def __init__(
        self,
        folder: Path,
        log: EventLog,
        *,
        clock: Callable[[], int],
        mapped: bool | None = None,
        since: int | None = None,
    ) -> None:
        """Load the version that a run's `current` names, or a version's own folder.

        Args:
            folder: of a run or a version.
            log: whose events the version is told.
            clock: time of requests, UTC milliseconds.
            mapped: as `AdIndex.load` takes it.
            since: number of a change of versions in the log; if there was one since, the version
                that it named is loaded.

        Raises:
            BundleError: there is none, or it is damaged.
        """
        self._run, self._log, self._clock, self._mapped = run_of(folder), log, clock, mapped
        self._swapping, self._telling = threading.Lock(), threading.Lock()
        self._known = log.marks()
        named = since is not None and self._known.versions > since
        first = self._run / "versions" / self._known.version if named else find_version(folder)
        self.current = self._load(first, like=None)
        self.previous: str | None = None
        """Name of the version that answered before."""

    def names(self) -> list[str]:
        """All published versions of the run, the oldest first."""
        return sorted(path.name for path in (self._run / "versions").glob("2*") if path.is_dir())

    def swap(self, name: str | None = None) -> Loaded:
        """Have another version answer, here and wherever the log is followed.

        Args:
            name: of the version; None: the one that the run's `current` names now.

        Raises:
            BundleError: it is missing or damaged; the old one goes on.
        """
        with self._swapping:
            loaded = self._swap(name)
            self._log.want_version(loaded.name)
            return loaded

    def _swap(self, name: str | None) -> Loaded:
        if name is None:
            folder = find_version(self._run)
        elif name in self.names():
            folder = self._run / "versions" / name
        else:
            raise BundleError(
                f"there is no version '{name}' in {self._run}; there are " + ", ".join(self.names())
            )
        with _short_turns():
            loaded = in_background(partial(self._load, folder, like=self.current.recommender))
        with self._telling:
            loaded.feed.catch_up(self._log)
            self.previous = self.current.name
            self.current = loaded
        _log.info("version %s answers, %s no more", loaded.name, self.previous)
        return loaded

    def rollback(self) -> Loaded:
        """Have the version answer that did before.

        Raises:
            BundleError: there was none, or it is gone.
        """
        if self.previous is None:
            raise BundleError("no other version has answered since the server was started")
        return self.swap(self.previous)

    def change_ads(self, changes: Sequence[AdChange]) -> None:
        """Change ads for good: in the version that answers, and in those that will.

        Raises:
            DataError: a value does not fit, or an ad is unknown.
        """
        with self._swapping:
            change_ads(self.current.recommender, changes)
            number = self._log.change_ads(changes)
            if number == self._known.ads + 1:  # else others have changed some, which `follow` sees
                self._known = replace(self._known, ads=number)

    def tell(self, slates: Sequence[LoggedSlate], events: Sequence[Event]) -> None:
        """Tell the version that answers what was added to the log; for `GroupCommit`."""
        if not events:
            return
        of_request = {slate.request_id: slate for slate in slates}
        unknown = {event.request_id for event in events} - of_request.keys()
        of_request |= self._log.slates(unknown)
        with self._telling:
            self.current.feed.tell(self._log, events, of_request)

    def follow(self) -> None:
        """Take in what other processes have written to the log.

        Raises:
            EventLogError: the log cannot be read; the next time takes in all the same.
        """
        marks = self._log.marks()
        if marks.last > self.current.feed.told:
            with self._telling:
                self.current.feed.catch_up(self._log)
        if (marks.ads, marks.erasures) != (self._known.ads, self._known.erasures):
            with self._swapping:
                try:
                    self._take_in(self.current, self._known)
                except DataError as error:  # an ad of a version with another schema
                    _log.error("ads that were changed elsewhere do not fit: %s", error)
        if marks.versions > self._known.versions and marks.version != self.current.name:
            threading.Thread(target=self._follow_version, args=(marks.version,)).start()
        self._known = marks

    def erase_user(self, user_id: str) -> int:
        """Erase a user from the state and from the log, and from every version to come that learned
        before; returns how many slates there were."""
        self.current.recommender.forget(user_id)
        return self._log.erase_user(user_id, at_ms=self._clock())

    def _follow_version(self, name: str) -> None:
        with self._swapping:
            try:
                if name != self.current.name:
                    self._swap(name)
            except BundleError as error:
                _log.error("version %s goes on: %s", self.current.name, error)

    def _load(self, folder: Path, *, like: Recommender | None) -> Loaded:
        before = self._log.marks()
        recommender, log_end_ms = load(
            folder, self._log, clock=self._clock, mapped=self._mapped, like=like
        )
        loaded = Loaded(folder.name, folder, recommender, Feed(recommender, log_end_ms=log_end_ms))
        loaded.feed.begin(self._log, self._clock())
        self._take_in(loaded, before)
        users: list[str | None] = [*recommender.state.users.ids[:_WARM_USERS], None]
        for count in (1, len(users)):
            recommender.recommend_batch([Request(user=user) for user in users[:count]])
        return loaded

    def _take_in(self, loaded: Loaded, since: Marks) -> None:
        """Changed ads and erased users since some marks."""
        restore_ads(loaded.recommender, self._log.ad_changes(after=since.ads))
        for user_id in self._log.erased(after=since.erasures):
            loaded.recommender.forget(user_id)


@contextmanager
def _short_turns() -> Iterator[None]:
    """Threads that compute in Python let others go on sooner: those who answer, while a version is
    loaded beside them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_TURN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def load(
    folder: Path,
    log: EventLog,
    *,
    clock: Callable[[], int],
    mapped: bool | None = None,
    like: Recommender | None = None,
) -> tuple[Recommender, int]:
    """A version with its ads as they stand and without users that were erased since its training,
    and the time of the last impression it learned from.

    Raises:
        BundleError: it is damaged.
    """
    try:
        bundle = Bundle.open(folder)
        recommender = Recommender.of(bundle, clock=clock, mapped=mapped, like=like)
    except AdRecError:
        raise
    except Exception as error:  # whatever is wrong with its files, it is the version that is
        raise BundleError(f"{folder}: cannot be loaded ({error}); publish it again") from error
    log_end_ms = bundle.manifest.log_end_ms
    restore_ads(recommender, log.ad_changes())
    for user_id in log.erased(from_ms=log_end_ms):
        recommender.forget(user_id)
    return recommender, log_end_ms


def change_ads(recommender: Recommender, changes: Sequence[AdChange]) -> None:
    """Change the ads of a recommender: those with fields first, then each status in turn.

    Raises:
        DataError: a value does not fit, or an ad is unknown; what went before stays changed.
    """
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
