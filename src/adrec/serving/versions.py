"""Versions: the model version that answers, and its change while requests are answered.

A version is loaded, verified, told the log's events since its training, and warmed, all beside the
one that answers; then it takes that one's place by one assignment. Whoever answers takes `current`
once for all that belongs together, so no answer mixes versions; the old one is let go when the last
answer that began with it is done. A version that cannot be loaded changes nothing.

Several processes may serve from one log. What one of them takes in (events, changed ads, erased
users, the version to answer with) stands in the log, and the others `follow` it. A server that is
started answers with the version that the log names, unless another was published since.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from adrec.bundle import find_version, run_of
from adrec.data.event_log import EventLog
from adrec.data.log_entries import AdChange, Event, LoggedSlate, Marks, Wanted
from adrec.errors import AdRecError, BundleError, EventLogError
from adrec.inference.backends import BackendName
from adrec.serving.kept import Kept
from adrec.serving.loaded import Answering

_log = logging.getLogger(__name__)

_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 600.0  # before a load that failed is tried again
_MEND_S = 1.0
_PIECE = 1_000  # events that are told at a time where many were missed

Load = Callable[[Path, BackendName | None, Kept | None], Answering]
"""Loads a version's folder, on a backend if one is named, from what was kept of it if something
was."""


class Versions:
    """The version that answers, and those that could."""

    def __init__(
        self,
        folder: Path,
        log: EventLog,
        load: Load,
        *,
        clock: Callable[[], int],
        since: int | None = None,
    ) -> None:
        """Load the version to begin with.

        Args:
            folder: of a run, as `first_version` takes it, or of a version.
            log: whose events the version is told.
            load: raises `BundleError` if a version is damaged.
            clock: time of requests, UTC milliseconds.
            since: number of a change of versions in the log; if there was one since, the version
                that it named is loaded.

        Raises:
            BundleError: there is none, or it is damaged.
        """
        self._run, self._log, self._load, self._clock = run_of(folder), log, load, clock
        self._loading, self._changing = threading.Lock(), threading.Lock()
        self._telling, self._keeping = threading.Lock(), threading.Lock()
        self._closed = False
        self._kept: dict[str, Kept] = {}
        self._known = known = log.marks()
        self._heeded = known.versions
        self._following, self._replacing = _Tries(), _Tries()
        self._mend_s = 0.0
        self._unswept: dict[str, int] = {}  # users who were erased, and when
        named = since is not None and known.versions > since
        versions, wanted = self._run / "versions", known.wanted
        first = versions / wanted.name if named else first_version(folder, wanted)
        self.current = load(first, None, None)
        self.previous = wanted.previous if first.name == wanted.name else None
        """Name of the version that answered before."""
        self.on_erased: Callable[[Mapping[str, int]], None] = lambda erased_ms: None
        """Told by `follow` of users who were erased, and when."""
        self._keep(self.current)

    def names(self) -> list[str]:
        """All published versions of the run, the oldest first."""
        return sorted(path.name for path in (self._run / "versions").glob("2*") if path.is_dir())

    def swap(self, name: str | None = None) -> Answering:
        """Have another version answer, here and wherever the log is followed.

        Args:
            name: of the version; None: the one that the run's `current` names now.

        Raises:
            BundleError: it is missing or damaged; the old one goes on.
        """
        with self._loading:
            over = self._published()  # before loading, as another may be published meanwhile
            loaded = self._swap(name or over)
            self._heeded = self._log.want_version(Wanted(loaded.version.name, over, self.previous))
            return loaded

    def _published(self) -> str:
        """Name of the version that the run's `current` names; '' if that is missing."""
        try:
            return find_version(self._run).name
        except BundleError:
            return ""

    def _swap(self, name: str) -> Answering:
        if name not in self.names():
            raise BundleError(
                f"there is no version '{name}' in {self._run}; there are " + ", ".join(self.names())
            )
        folder = self._run / "versions" / name
        old = self.current.version.name
        self._take_over(folder, previous=self.previous if folder.name == old else old)
        _log.info("version %s answers, %s no more", self.current.version.name, old)
        return self.current

    def _take_over(self, folder: Path, *, previous: str | None) -> None:
        """Have a version answer in place of the one that does."""
        if self._closed:
            raise BundleError("the server ends")
        old, before = self.current, self._log.marks()
        loaded = self._load(folder, old.version.backend, self._kept.get(folder.name))
        try:
            with self._changing:
                self._take_in(loaded, since=before)
                with self._telling:
                    loaded.catch_up()
                    if not loaded.whole:
                        raise BundleError(f"{folder.name}: some of what it was loaded into is lost")
                    self.current, self.previous = loaded, previous
        except BaseException:
            loaded.close()
            raise
        self._keep(loaded)
        old.close()

    def _keep(self, loaded: Answering) -> None:
        """Keep what the version was told that answers now, and what its predecessor was."""
        kept, loaded.kept = loaded.kept, None
        with self._keeping:
            if kept is not None:
                self._kept[loaded.version.name] = kept
            names = loaded.version.name, self.previous
            self._kept = {name: one for name, one in self._kept.items() if name in names}
        self._forget_erased()

    def _forget_erased(self) -> None:
        """Let go of what may tell of a user who was erased."""
        with self._keeping:
            try:
                erasures = self._log.marks().erasures
            except EventLogError:
                erasures = -1  # nobody knows
            self._kept = {
                name: one for name, one in self._kept.items() if one.known.erasures == erasures
            }

    def rollback(self) -> Answering:
        """Have the version answer that did before.

        Raises:
            BundleError: there was none, or it is gone.
        """
        if self.previous is None:
            raise BundleError("no other version has answered before")
        return self.swap(self.previous)

    def change_ads(self, changes: Sequence[AdChange]) -> None:
        """Change ads for good: in the version that answers, and in those that will.

        Raises:
            DataError: a value does not fit, or an ad is unknown.
            EventLogError: it cannot be written; no ad is changed.
            GoneError: nothing could say whether it fits.
        """
        with self._changing:
            self.current.check_ads(changes)
            number = self._log.change_ads(changes)
            self.current.change_ads(changes)
            if number == self._known.ads + 1:  # else others have changed some, which `follow` sees
                self._known = replace(self._known, ads=number)

    def tell(self, slates: Sequence[LoggedSlate], events: Sequence[Event]) -> None:
        """Tell the version that answers what was added to the log; for `GroupCommit`."""
        of_request = {slate.request_id: slate for slate in slates}
        if unknown := {event.request_id for event in events} - of_request.keys():
            of_request |= self._log.slates(unknown)
        events = [event for event in events if event.request_id in of_request]  # not erased
        if not events:
            return
        if events[0].seq > self.current.told + 1:  # others write to the log, too
            self._follow_ads(self._log.marks())
        with self._telling:
            place = events[0].seq
            if place <= self.current.told + _PIECE or place <= self._piece_end():
                self.current.tell(of_request, events)  # else `follow` does, piece by piece

    def follow(self) -> None:
        """Take in what other processes have written to the log, and replace what was lost.

        Raises:
            EventLogError: the log cannot be read; the next time takes in all the same.
        """
        marks = self._log.marks()
        self._follow_ads(marks)
        while marks.last > self.current.told:
            with self._telling:
                self.current.catch_up(min(marks.last, self._piece_end()))
        if time.monotonic() >= self._mend_s:  # what failed to take in something does so now
            self._mend_s = time.monotonic() + _MEND_S
            with self._telling:
                self.current.catch_up(self.current.told)
        if marks.versions > self._heeded and self._following.due:
            self._beside(self._follow_version, self._following)
        elif not self.current.whole and self._replacing.due:
            self._beside(self._replace, self._replacing)
        if self._unswept:
            users = dict(self._unswept)
            self._forget_erased()
            self.on_erased(users)
            with self._changing:
                self._unswept = dict(self._unswept.items() - users.items())

    def _piece_end(self) -> int:
        """Place up to which the version may be told at once; events are given places with gaps."""
        place = self._log.place(after=self.current.told, count=_PIECE)
        return sys.maxsize if place is None else place

    def _follow_ads(self, marks: Marks) -> None:
        """Take in changed ads and erased users: before events that came after them."""
        with self._changing:
            known = self._known
            if marks.ads > known.ads or marks.erasures > known.erasures:
                self._unswept |= self._take_in(self.current, since=known)
                ads, erasures = max(marks.ads, known.ads), max(marks.erasures, known.erasures)
                self._known = replace(marks, ads=ads, erasures=erasures)

    def erase_user(self, user_id: str) -> int:
        """Erase a user from the state and from the log, and from every version to come that learned
        before; returns how many slates there were."""
        self.current.forget([user_id])
        slates = self._log.erase_user(user_id, at_ms=self._clock())
        self._forget_erased()
        return slates

    def close(self) -> None:
        """Let the version go that answers."""
        with self._loading:
            self._closed = True
            self.current.close()
            self._kept = {}

    def _beside(self, work: Callable[[], None], tries: "_Tries") -> None:
        """Load a version in a thread of its own, unless one is being loaded."""
        if self._loading.locked():
            return

        def load() -> None:
            with self._loading:
                try:
                    work()
                    tries.succeeded()
                except Exception as error:  # whatever it was, it is not tried again at once
                    tries.failed()
                    name, known = self.current.version.name, isinstance(error, AdRecError)
                    _log.error("version %s goes on: %s", name, error, exc_info=not known)

        threading.Thread(target=load, name="versions", daemon=True).start()

    def _follow_version(self) -> None:
        marks = self._log.marks()
        if marks.versions > self._heeded and marks.wanted.name != self.current.version.name:
            self._swap(marks.wanted.name)
        self._heeded = marks.versions

    def _replace(self) -> None:
        """Load the version anew of which something was lost."""
        broken = self.current
        if not broken.whole:
            self._take_over(broken.version.folder, previous=self.previous)
            _log.info("version %s is whole again", broken.version.name)

    def _take_in(self, version: Answering, *, since: Marks) -> dict[str, int]:
        """Have a version know of ads that were changed and users who were erased since some marks;
        those users, and when."""
        version.restore_ads(self._log.ad_changes(after=since.ads))
        erased = self._log.erased(after=since.erasures)
        version.forget(list(erased))
        return erased


class _Tries:
    """When something that may fail is tried again: ever more seldom."""

    def __init__(self) -> None:
        self._failures, self._next = 0, 0.0

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._next

    def succeeded(self) -> None:
        self._failures, self._next = 0, 0.0

    def failed(self) -> None:
        pause_s = min(_PAUSE_S * 2**self._failures, _LONGEST_PAUSE_S)
        self._failures, self._next = self._failures + 1, time.monotonic() + pause_s


def first_version(folder: Path, wanted: Wanted) -> Path:
    """Folder of the version to begin with: the one that servers of a log were told to answer with,
    as long as the run's `current` names what it named then; else what that names, or the folder
    itself if it is a version's.

    Raises:
        BundleError: there is none.
    """
    published = find_version(folder)
    named = published.parent / wanted.name
    stands = folder != published and wanted.over == published.name and wanted.name
    return named if stands and named.is_dir() else published
