"""Histories: the last ads a user met before a request, in a batch or one event at a time.

Each item carries its outcomes as bits (`bits.py`). All of them are stored once the item is there; a
request is shown those that are known by then.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adrec.data.tables import times_column
from adrec.features.bits import UNKNOWN_MS, known_bits, known_first, outcome_bits
from adrec.features.directory import Directory
from adrec.features.past import count_strictly_before
from adrec.schema import Schema

_PENDING = ("known_at_ms", "user", "time_ms", "ad", "order", "outcomes")
_ROW = "adrec:row"  # no field's name


class Items(NamedTuple):
    """Histories, oldest first and right-aligned: [L] of one user, or [R, L]."""

    ads: NDArray[np.int32]
    """Ad rows; 0 where there is none."""
    times_ms: NDArray[np.int64]
    outcomes: NDArray[np.uint8]
    """Bit k: whether task k came out positive."""

    @classmethod
    def none(cls, *shape: int) -> "Items":
        """Histories without an item."""
        times_ms = np.full(shape, UNKNOWN_MS, np.int64)
        return cls(np.zeros(shape, np.int32), times_ms, np.zeros(shape, np.uint8))

    def at(self, users: NDArray[np.integer]) -> "Items":
        """The histories of some users."""
        return Items(self.ads[users], self.times_ms[users], self.outcomes[users])

    def as_row(self) -> "Items":
        """The history of one user, [L], as that of one of many, [1, L]."""
        return Items(self.ads[None], self.times_ms[None], self.outcomes[None])


@dataclass
class History:
    """The last `length` ads of every user, oldest first and right-aligned.

    Users are small integers; user 0 is nobody and has no history.
    """

    length: int
    delay_ms: int = 0
    """How long after an impression it joins: when the outcome that it joins for is known."""
    outcome_delays_ms: tuple[int, ...] = ()
    """How long after an impression the outcome of each task is known, [K]."""
    ads_UL: NDArray[np.int32] = field(init=False)
    """Ad rows; 0 where there is none."""
    times_ms_UL: NDArray[np.int64] = field(init=False)
    outcomes_UL: NDArray[np.uint8] = field(init=False)
    """Outcome bits, whether they are known yet or not."""
    pending: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)
    """Heap of (known at, user, time, ad, order among equals, outcomes)."""
    amended: dict[tuple[int, int, int], int] = field(default_factory=dict)
    """Outcomes that were added to what is pending, by (user, ad, time)."""
    settled_ms: int = UNKNOWN_MS
    """What was known strictly before it is in the histories."""

    def __post_init__(self) -> None:
        self.ads_UL, self.times_ms_UL, self.outcomes_UL = Items.none(1, self.length)
        all_bits = np.arange(256).astype(np.uint8)
        self._known_first = known_first(all_bits, self.outcome_delays_ms).tolist()

    def start(
        self, user: int, ads: NDArray[np.int32], times_ms: NDArray[np.int64], bits: int = 0
    ) -> None:
        """Set a user's history from before the log, oldest first; `bits` are each item's."""
        self._make_room(user)
        kept = min(self.length, len(ads))
        if kept:
            self.ads_UL[user, -kept:] = ads[-kept:]
            self.times_ms_UL[user, -kept:] = times_ms[-kept:]
            self.outcomes_UL[user, -kept:] = bits

    def read(self, user: int, at_ms: int) -> Items:
        """The items of one user as of a request, [L]."""
        self._settle(at_ms)
        row = np.int64(user if user < len(self.ads_UL) else 0)
        return self._known(self._stored(row), np.array(at_ms, np.int64))

    def observe(self, user: int, ad: int, time_ms: int, bits: int = 0) -> None:
        """Take in one impression that joins; it is history once its delay is over."""
        if user:
            if self.amended and (user, ad, time_ms) in self.amended:
                self._merge()  # what was added before is not this one's
            order = self._known_first[bits]
            entry = (time_ms + self.delay_ms, user, time_ms, ad, order, bits)
            heapq.heappush(self.pending, entry)
            if entry[0] < self.settled_ms:  # reported late; what is added to it will look for it
                self._settle(self.settled_ms)

    def amend(self, user: int, ad: int, time_ms: int, bits: int) -> None:
        """Add outcomes to an impression that joined before, known yet or not."""
        if not user:
            return
        if user < len(self.ads_UL):
            same = (self.ads_UL[user] == ad) & (self.times_ms_UL[user] == time_ms)
            if same.any():
                self.outcomes_UL[user, same] |= np.uint8(bits)
                return
        if time_ms + self.delay_ms >= self.settled_ms:  # else it has been pushed out
            key = (user, ad, time_ms)
            self.amended[key] = self.amended.get(key, 0) | bits

    def forget(self, users: NDArray[np.int64]) -> None:
        """Erase the histories of some users, and what is pending of them."""
        there = users[users < len(self.ads_UL)]
        self._store(there, Items.none(len(there), self.length))
        gone = set(users.tolist())
        self.pending = [entry for entry in self.pending if entry[1] not in gone]
        heapq.heapify(self.pending)
        self.amended = {key: bits for key, bits in self.amended.items() if key[0] not in gone}

    def advance(
        self,
        users_N: NDArray[np.int64],
        ads_N: NDArray[np.int32],
        times_ms_N: NDArray[np.int64],
        joins_N: NDArray[np.bool_],
        bits_N: NDArray[np.uint8],
        queries: NDArray[np.int64],
        happened_ms_N: NDArray[np.int64] | None = None,
    ) -> Items:
        """Read before, then take in, many impressions in time order.

        Args:
            users_N: user of each impression.
            ads_N: ad of each impression.
            times_ms_N: when each row's request came: ascending, none before one of an earlier call.
            joins_N: whether the ad joins the history.
            bits_N: outcomes of each impression, whenever they are known.
            queries: [R] positions of the rows to answer for: one of each request.
            happened_ms_N: when each impression was shown, where a request lasts; not before it.

        Returns:
            Items strictly before each request, [R, L].
        """
        if not len(users_N):
            return Items.none(0, self.length)
        if happened_ms_N is None:
            happened_ms_N = times_ms_N
        end = int(times_ms_N[-1])
        self._settle(int(times_ms_N[0]))
        self._merge()
        late = np.array([e[1:] for e in self.pending], np.int64).reshape(-1, 5)
        self.pending = []
        keep_N = joins_N & (users_N != 0)
        event_users = np.concatenate([late[:, 0], users_N[keep_N]])
        event_ms = np.concatenate([late[:, 1], happened_ms_N[keep_N]])
        event_ads = np.concatenate([late[:, 2].astype(np.int32), ads_N[keep_N]])
        event_bits = np.concatenate([late[:, 4].astype(np.uint8), bits_N[keep_N]])
        distinct, group = np.unique(np.concatenate([users_N, event_users]), return_inverse=True)
        self._make_room(int(distinct[-1]))
        event_group = group[len(users_N) :].astype(np.int64)
        # As in the heap of `observe`, what is known at the same instant stands in order of ad.
        equals = known_first(event_bits, self.outcome_delays_ms)
        order = np.lexsort((equals, event_ads, event_ms, event_group))
        pool = _Pool(
            group=event_group[order],
            known_at_ms=(event_ms + self.delay_ms)[order],
            items=Items(event_ads, event_ms, event_bits).at(order),
        )
        groups_R = group[queries].astype(np.int64)
        starts = self._stored(distinct)
        answer = pool.last(groups_R, times_ms_N[queries], starts)
        everyone = np.arange(len(distinct))
        final = pool.last(everyone, np.full(len(distinct), end), starts)
        self._store(distinct, final)
        self._store(np.zeros(1, np.int64), Items.none(1, self.length))
        self.settled_ms = max(self.settled_ms, end)
        for i in np.flatnonzero(pool.known_at_ms >= end):
            ad, time_ms, bits = (int(part[i]) for part in pool.items)
            self.observe(int(distinct[pool.group[i]]), ad, time_ms, bits)
        return self._known(answer, times_ms_N[queries][:, None])

    def tables(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The users that have a history, and what is pending."""
        users = np.flatnonzero((self.ads_UL != 0).any(axis=1))
        items = pl.DataFrame(
            {"user": users, **self._stored(users)._asdict()},
            schema={
                "user": pl.Int64,
                "ads": pl.Array(pl.Int32, self.length),
                "times_ms": pl.Array(pl.Int64, self.length),
                "outcomes": pl.Array(pl.UInt8, self.length),
            },
        )
        self._merge()
        schema = dict.fromkeys(_PENDING, pl.Int64)
        return items, pl.DataFrame(self.pending, schema=schema, orient="row")

    def restore(self, items: pl.DataFrame, pending: pl.DataFrame) -> None:
        """Take what `tables` gave, into an empty history."""
        if items.height:
            users = items["user"].to_numpy()
            self._make_room(int(users.max()))
            self._store(users, Items(*(items[name].to_numpy() for name in Items._fields)))
        self.pending = pending.rows()
        heapq.heapify(self.pending)

    def _settle(self, at_ms: int) -> None:
        """Move what is known strictly before `at_ms` from pending into the histories."""
        while self.pending and self.pending[0][0] < at_ms:
            entry = heapq.heappop(self.pending)
            known_at_ms, user, time_ms, ad, order, bits = entry
            if self.amended:
                bits |= self.amended.get((user, ad, time_ms), 0)
                if not self.pending or self.pending[0][:4] != entry[:4]:  # none is left like it
                    self.amended.pop((user, ad, time_ms), None)
            self._make_room(user)
            stored, place = self._stored(np.int64(user)), self.length
            if known_at_ms < self.settled_ms:  # reported late
                place = self._place(stored, (time_ms, ad, order))
            if place:  # else it has been pushed out
                row = Items(
                    _inserted(stored.ads, place, ad),
                    _inserted(stored.times_ms, place, time_ms),
                    _inserted(stored.outcomes, place, bits),
                )
                self._store(np.int64(user), row)
        self.settled_ms = max(self.settled_ms, at_ms)

    def _place(self, stored: Items, item: tuple[int, int, int]) -> int:
        """How many items of a history stand before one, given as (time, ad, order among equals)."""
        orders = [self._known_first[bits] for bits in stored.outcomes.tolist()]
        return sum(
            one <= item
            for one in zip(stored.times_ms.tolist(), stored.ads.tolist(), orders, strict=True)
        )

    def _merge(self) -> None:
        """Put what was amended into what is pending."""
        if self.amended:
            self.pending = [
                (at, user, ms, ad, order, bits | self.amended.get((user, ad, ms), 0))
                for at, user, ms, ad, order, bits in self.pending
            ]
            heapq.heapify(self.pending)
            self.amended = {}

    def _stored(self, users: NDArray[np.int64] | np.int64) -> Items:
        return Items(self.ads_UL[users], self.times_ms_UL[users], self.outcomes_UL[users])

    def _store(self, users: NDArray[np.int64] | np.int64, items: Items) -> None:
        self.ads_UL[users], self.times_ms_UL[users], self.outcomes_UL[users] = items

    def _known(self, items: Items, at_ms: NDArray[np.int64]) -> Items:
        """The same items with the outcomes that are known."""
        known = known_bits(items.outcomes, items.times_ms, at_ms, self.outcome_delays_ms)
        return items._replace(outcomes=known)

    def _make_room(self, user: int) -> None:
        missing = user + 1 - len(self.ads_UL)
        if missing > 0:
            room = Items.none(max(missing, len(self.ads_UL) // 2), self.length)
            self.ads_UL = np.concatenate([self.ads_UL, room.ads])
            self.times_ms_UL = np.concatenate([self.times_ms_UL, room.times_ms])
            self.outcomes_UL = np.concatenate([self.outcomes_UL, room.outcomes])


def _inserted(items_L: NDArray[Any], place: int, value: int) -> NDArray[Any]:
    """A value in its place, which pushes out the oldest."""
    inserted = items_L.copy()
    inserted[: place - 1] = items_L[1:place]
    inserted[place - 1] = value
    return inserted


@dataclass(frozen=True)
class _Pool:
    """Events ordered by user, then by when they are known."""

    group: NDArray[np.int64]
    known_at_ms: NDArray[np.int64]
    items: Items

    def last(
        self, groups_Q: NDArray[np.int64], times_ms_Q: NDArray[np.int64], starts: Items
    ) -> Items:
        """The last L of (start of the user, then events known strictly before the query)."""
        length = starts.ads.shape[1]
        before_Q = count_strictly_before(self.group, self.known_at_ms, groups_Q, times_ms_Q)
        first_Q = np.searchsorted(self.group, groups_Q, side="left")
        new_Q = (before_Q - first_Q)[:, None]
        # Place j of the answer holds item (new + j) of the start followed by the user's events.
        place = new_Q + np.arange(length)[None, :]
        in_start = place < length
        from_start = np.minimum(place, length - 1)
        rows = groups_Q[:, None]
        old = Items(*(part[rows, from_start] for part in starts))
        if not len(self.group):
            return old
        new = self.items.at(np.where(in_start, 0, first_Q[:, None] + place - length))
        return Items(
            ads=np.where(in_start, old.ads, new.ads),
            times_ms=np.where(in_start, old.times_ms, new.times_ms),
            outcomes=np.where(in_start, old.outcomes, new.outcomes),
        )


def start_histories(
    histories: Sequence[History],
    schema: Schema,
    users: pl.DataFrame,
    ads: Directory,
    before_ms: int | None,
) -> None:
    """Begin histories with what the table of users has of them.

    Args:
        histories: of each sequence of the schema.
        schema: of the log.
        users: list columns of ads and, where known, of times.
        ads: that are known; others are left out.
        before_ms: items that are known not to be earlier are left out; None: no item is.
    """
    for sequence, history in zip(schema.sequences, histories, strict=True):
        if sequence.column is not None:
            met_by = [float(task.name == sequence.grows_with) for task in schema.tasks]
            bits = int(outcome_bits(np.array([met_by]))[0])
            _start(history, sequence.name, users, ads, bits, before_ms)


def _start(
    history: History,
    name: str,
    users: pl.DataFrame,
    ads: Directory,
    bits: int,
    before_ms: int | None,
) -> None:
    filled = users.with_row_index(_ROW, offset=1).filter(pl.col(name).list.len() > 0)
    rows = ads.rows(filled[name].explode().fill_null("")).astype(np.int32)
    times = np.full(len(rows), UNKNOWN_MS, np.int64)
    if times_column(name) in users.columns:
        times = filled[times_column(name)].explode().fill_null(UNKNOWN_MS).to_numpy()
    ends = np.cumsum(filled[name].list.len().to_numpy().astype(np.int64))
    for user, start, end in zip(filled[_ROW], np.append(0, ends[:-1]), ends, strict=True):
        items, items_ms = rows[start:end], times[start:end]
        known = items != 0
        if before_ms is not None:
            known &= items_ms < before_ms
        history.start(user, items[known], items_ms[known], bits)
