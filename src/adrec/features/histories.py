"""Histories: the last ads a user met before a request, in a batch or one event at a time."""

import heapq
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adrec.features.past import count_strictly_before

UNKNOWN_MS = -1
"""Time of an item whose time the log does not tell."""


@dataclass
class History:
    """The last `length` ads of every user, oldest first and right-aligned.

    Users are small integers; user 0 is nobody and has no history.
    """

    length: int
    delay_ms: int = 0
    """How long after an impression its positive outcome is known."""
    ads_UL: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    """Ad rows; 0 where there is none."""
    times_ms_UL: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    pending: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Heap of (known at, user, time, ad)."""

    def __post_init__(self) -> None:
        if not self.ads_UL.size:
            self.ads_UL = np.zeros((1, self.length), np.int32)
            self.times_ms_UL = np.full((1, self.length), UNKNOWN_MS, np.int64)

    def start(self, user: int, ads: NDArray[np.int32], times_ms: NDArray[np.int64]) -> None:
        """Set a user's history from before the log, oldest first."""
        self._make_room(user)
        kept = min(self.length, len(ads))
        if kept:
            self.ads_UL[user, -kept:] = ads[-kept:]
            self.times_ms_UL[user, -kept:] = times_ms[-kept:]

    def read(self, user: int, at_ms: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ads and times of one user as of a request, each [L]."""
        while self.pending and self.pending[0][0] < at_ms:
            _, who, time_ms, ad = heapq.heappop(self.pending)
            self._append(who, ad, time_ms)
        if user >= len(self.ads_UL):
            user = 0
        return self.ads_UL[user], self.times_ms_UL[user]

    def observe(self, user: int, ad: int, time_ms: int) -> None:
        """Take in one positive impression; it is history once its delay is over."""
        if user:
            heapq.heappush(self.pending, (time_ms + self.delay_ms, user, time_ms, ad))

    def _append(self, user: int, ad: int, time_ms: int) -> None:
        self._make_room(user)
        self.ads_UL[user] = np.append(self.ads_UL[user, 1:], np.int32(ad))
        self.times_ms_UL[user] = np.append(self.times_ms_UL[user, 1:], time_ms)

    def _make_room(self, user: int) -> None:
        missing = user + 1 - len(self.ads_UL)
        if missing > 0:
            missing = max(missing, len(self.ads_UL) // 2)
            self.ads_UL = np.pad(self.ads_UL, ((0, missing), (0, 0)))
            self.times_ms_UL = np.pad(
                self.times_ms_UL, ((0, missing), (0, 0)), constant_values=UNKNOWN_MS
            )

    def advance(
        self,
        users_N: NDArray[np.int64],
        ads_N: NDArray[np.int32],
        times_ms_N: NDArray[np.int64],
        positive_N: NDArray[np.bool_],
        queries: NDArray[np.int64],
        happened_ms_N: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Read before, then take in, many impressions in time order.

        Args:
            users_N: user of each impression.
            ads_N: ad of each impression.
            times_ms_N: when each row's request came: ascending, none before one of an earlier call.
            positive_N: whether the ad joins the history.
            queries: [R] positions of the rows to answer for: one of each request.
            happened_ms_N: when each impression was shown, where a request lasts; not before it.

        Returns:
            Ads and times strictly before each request, each [R, L].
        """
        if not len(users_N):
            return np.zeros((0, self.length), np.int32), np.zeros((0, self.length), np.int64)
        if happened_ms_N is None:
            happened_ms_N = times_ms_N
        end = int(times_ms_N[-1])
        self.read(0, int(times_ms_N[0]))  # settle what is known by now
        late = np.array([e[1:] for e in self.pending], np.int64).reshape(-1, 3)
        self.pending = []
        keep_N = positive_N & (users_N != 0)
        event_users = np.concatenate([late[:, 0], users_N[keep_N]])
        event_ms = np.concatenate([late[:, 1], happened_ms_N[keep_N]])
        event_ads = np.concatenate([late[:, 2].astype(np.int32), ads_N[keep_N]])
        distinct, group = np.unique(np.concatenate([users_N, event_users]), return_inverse=True)
        self._make_room(int(distinct[-1]))
        event_group = group[len(users_N) :].astype(np.int64)
        # As in the heap of `observe`, what is known at the same instant stands in order of ad.
        order = np.lexsort((event_ads, event_ms, event_group))
        pool = _Pool(
            group=event_group[order],
            known_at_ms=(event_ms + self.delay_ms)[order],
            time_ms=event_ms[order],
            ad=event_ads[order],
        )
        groups_R = group[queries].astype(np.int64)
        starts = self.ads_UL[distinct], self.times_ms_UL[distinct]
        answer = pool.last(groups_R, times_ms_N[queries], *starts)
        everyone = np.arange(len(distinct))
        final = pool.last(everyone, np.full(len(distinct), end), *starts)
        self.ads_UL[distinct], self.times_ms_UL[distinct] = final
        self.ads_UL[0], self.times_ms_UL[0] = 0, UNKNOWN_MS
        for i in np.flatnonzero(pool.known_at_ms >= end):
            user = int(distinct[pool.group[i]])
            entry = (int(pool.known_at_ms[i]), user, int(pool.time_ms[i]), int(pool.ad[i]))
            heapq.heappush(self.pending, entry)
        return answer

    def save(self, path: Path) -> None:
        """Write the users that have a history, and what is pending, as two Parquet files."""
        users = np.flatnonzero((self.ads_UL != 0).any(axis=1))
        pl.DataFrame(
            {"user": users, "ads": self.ads_UL[users], "times_ms": self.times_ms_UL[users]},
            schema={
                "user": pl.Int64,
                "ads": pl.Array(pl.Int32, self.length),
                "times_ms": pl.Array(pl.Int64, self.length),
            },
        ).write_parquet(path)
        names = ("known_at_ms", "user", "time_ms", "ad")
        pending = pl.DataFrame(self.pending, schema=dict.fromkeys(names, pl.Int64), orient="row")
        pending.write_parquet(path.with_suffix(".pending.parquet"))

    def restore(self, path: Path) -> None:
        """Read what `save` wrote."""
        frame = pl.read_parquet(path)
        if frame.height:
            users = frame["user"].to_numpy()
            self._make_room(int(users.max()))
            self.ads_UL[users] = frame["ads"].to_numpy()
            self.times_ms_UL[users] = frame["times_ms"].to_numpy()
        self.pending = pl.read_parquet(path.with_suffix(".pending.parquet")).rows()
        heapq.heapify(self.pending)


@dataclass(frozen=True)
class _Pool:
    """Events ordered by user, then by when they are known."""

    group: NDArray[np.int64]
    known_at_ms: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    ad: NDArray[np.int32]

    def last(
        self,
        groups_Q: NDArray[np.int64],
        times_ms_Q: NDArray[np.int64],
        start_ads_UL: NDArray[np.int32],
        start_ms_UL: NDArray[np.int64],
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The last L of (start of the user, then events known strictly before the query)."""
        length = start_ads_UL.shape[1]
        before_Q = count_strictly_before(self.group, self.known_at_ms, groups_Q, times_ms_Q)
        first_Q = np.searchsorted(self.group, groups_Q, side="left")
        new_Q = (before_Q - first_Q)[:, None]
        # Place j of the answer holds item (new + j) of the start followed by the user's events.
        place = new_Q + np.arange(length)[None, :]
        in_start = place < length
        from_start = np.minimum(place, length - 1)
        rows = groups_Q[:, None]
        ads, times_ms = start_ads_UL[rows, from_start], start_ms_UL[rows, from_start]
        if len(self.ad):
            event = np.where(in_start, 0, first_Q[:, None] + place - length)
            ads = np.where(in_start, ads, self.ad[event])
            times_ms = np.where(in_start, times_ms, self.time_ms[event])
        return ads, times_ms
