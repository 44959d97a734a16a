"""Counters: past impressions and outcomes of a key, in a batch or one event at a time.

For a key (an ad, a user and a topic, ...) at time t, with half-life h,

    n(t) = sum over past impressions i of 2^(-(t - t_i) / h)        y(t) = the same times outcome i

where an impression is past for a task if t_i + delay(task) < t, strictly: a row never counts
itself, nor a row of the same instant. What the model sees is log(1 + n) and, for each task, how far
the smoothed rate (y + s p) / (n + s) lies from the training mean p (log lift; difference for value
tasks, whose outcome is log(1 + value)). Historical rates as features: He et al. 2014, section 3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adrec.features.past import count_strictly_before, numbered, order_events
from adrec.features.waiting import WAITING, Waiting
from adrec.schema import Schema, Task

_MAX_HALVINGS = 256  # 2^256 fits a float64 with room for any number of rows
SMOOTHING = 20.0
"""Impressions' worth of prior in each rate."""


def outcomes(labels_NK: NDArray[np.float32], tasks: Sequence[Task]) -> NDArray[np.float64]:
    """What is summed for each task, [N, K]: the label, or log(1 + value)."""
    values_NK = labels_NK.astype(np.float64)
    for k, task in enumerate(tasks):
        if task.kind == "value":
            values_NK[:, k] = np.log1p(values_NK[:, k])
    return values_NK


@dataclass
class Counter:
    """Decayed sums of one kind of key, e.g. all (user, topic) pairs.

    A batch is taken in by `advance`, or by `take_in` where nothing is to be read before its rows,
    those of one instant by `observe` and `read`; all leave the same sums behind and may alternate.
    """

    half_lives_ms: NDArray[np.float64]
    """[H]; infinity never forgets."""
    delays_ms: NDArray[np.int64]
    """[K] delay of each task."""
    slots: dict[int, int] = field(default_factory=dict)
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0, 0)))
    """[slots, H, 2K]: n of each task, then y of each task, as of `as_of_ms`."""
    as_of_ms: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    waiting: Waiting = field(default_factory=Waiting)
    """What happened and is not known yet."""

    def __post_init__(self) -> None:
        self._delays_ms: list[int] = self.delays_ms.tolist()
        if not self.sums.size:
            self.sums = np.zeros((0, len(self.half_lives_ms), 2 * len(self.delays_ms)))

    def read(self, keys_N: NDArray[np.int64], at_ms: int) -> NDArray[np.float64]:
        """Sums of each key as of a request, [N, H, 2K]; zeros for a key never seen."""
        self._settle(at_ms)
        found = map(self.slots.get, keys_N.tolist(), repeat(-1))
        slots_N = np.fromiter(found, np.int64, len(keys_N))
        if not len(self.as_of_ms):
            return np.zeros((len(keys_N), *self.sums.shape[1:]))
        age_N = np.maximum(at_ms - self.as_of_ms[slots_N], 0).astype(np.float64)
        decayed = self.sums[slots_N] * self._decay(age_N)[..., None]
        decayed[slots_N < 0] = 0.0
        return decayed

    def observe(
        self, keys_N: Sequence[int], time_ms: int, outcomes_NK: NDArray[np.float64]
    ) -> None:
        """Take in impressions of one instant; outcomes count once their task's delay is over."""
        for task, delay_ms in enumerate(self._delays_ms):
            outcomes_N = outcomes_NK[:, task].tolist()
            self.waiting.add(time_ms + delay_ms, keys_N, time_ms, task, outcomes_N, 1)

    def amend(self, key: int, time_ms: int, added_K: NDArray[np.float64]) -> None:
        """Add to the outcomes of an impression that was observed before.

        What is added counts from the impression's time, once the task's delay is over.
        """
        for task in np.flatnonzero(added_K).tolist():
            known_at_ms = time_ms + self._delays_ms[task]
            self.waiting.add(known_at_ms, [key], time_ms, task, [float(added_K[task])], 0)

    def forget(self, which: Callable[[NDArray[np.int64]], NDArray[np.bool_]]) -> None:
        """Erase the sums of some keys, and what waits of them.

        Args:
            which: whether each of some keys is to be forgotten.
        """
        used = len(self.slots)
        self.sums[:used][which(np.fromiter(self.slots, np.int64, used))] = 0.0
        waiting = self.waiting.table()
        self.waiting.replace(waiting.filter(~which(waiting["key"].to_numpy())))

    def _settle(self, at_ms: int) -> None:
        """Add to the sums what is known strictly before `at_ms`."""
        known = self.waiting.take_known(at_ms)
        if known is not None:
            self._take(*known)

    def _take(
        self,
        keys_E: NDArray[np.int64],
        times_ms_E: NDArray[np.int64],
        tasks_E: NDArray[np.int64],
        outcomes_E: NDArray[np.float64],
        shown_E: NDArray[np.int64],
    ) -> None:
        """Add what has become known to the sums."""
        distinct, of_E = np.unique(keys_E, return_inverse=True)
        slots_U = self._slots_of(distinct)
        newest_U = self.as_of_ms[slots_U]
        np.maximum.at(newest_U, of_E, times_ms_E)
        age_U = (newest_U - self.as_of_ms[slots_U]).astype(np.float64)
        self.sums[slots_U] *= self._decay(age_U)[..., None]
        self.as_of_ms[slots_U] = newest_U
        weight_EH = self._decay((newest_U[of_E] - times_ms_E).astype(np.float64))
        tasks = len(self.delays_ms)
        for task in range(tasks):
            mine = tasks_E == task
            for h in range(len(self.half_lives_ms)):
                for place, value_E in ((task, shown_E), (tasks + task, outcomes_E)):
                    weights = weight_EH[mine, h] * value_E[mine]
                    added_U = np.bincount(of_E[mine], weights, len(distinct))
                    self.sums[slots_U, h, place] += added_U

    def _decay(self, age_ms: NDArray[np.float64]) -> NDArray[np.float64]:
        """2^(-age / half-life), [..., H]."""
        return np.exp2(-age_ms[..., None] / self.half_lives_ms)

    def _slots_of(self, keys_U: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slots of distinct keys, made where missing."""
        slots, known = self.slots, len(self.slots)
        slots_U = np.array([slots.setdefault(key, len(slots)) for key in keys_U.tolist()], np.int64)
        if len(slots) > len(self.sums):
            room = max(len(slots), 2 * known, 1024)
            grown = np.zeros((room, *self.sums.shape[1:]))
            grown[: len(self.sums)] = self.sums
            as_of = np.zeros(room, np.int64)
            as_of[: len(self.as_of_ms)] = self.as_of_ms
            self.sums, self.as_of_ms = grown, as_of
        return slots_U

    def advance(
        self,
        keys_N: NDArray[np.int64],
        times_ms_N: NDArray[np.int64],
        outcomes_NK: NDArray[np.float64],
        happened_ms_N: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float64]:
        """Read before, then take in, many impressions in time order.

        The same as, for each instant in turn, `read` for all its rows and then `observe` of them.

        Args:
            keys_N: key of each impression.
            times_ms_N: when each row's request came: ascending, none before one of an earlier call.
            outcomes_NK: outcome of each task.
            happened_ms_N: when each impression was shown, where a request lasts; not before it.

        Returns:
            [N, H, 2K] sums strictly before each row.
        """
        if not len(keys_N):
            return np.zeros((0, *self.sums.shape[1:]))
        if happened_ms_N is None:
            happened_ms_N = times_ms_N
        span_ms = float(happened_ms_N.max() - times_ms_N[0])
        if span_ms / self.half_lives_ms.min() > _MAX_HALVINGS and len(keys_N) > 1:
            half = len(keys_N) // 2
            parts = (slice(None, half), slice(half, None))
            return np.concatenate(
                [
                    self.advance(keys_N[p], times_ms_N[p], outcomes_NK[p], happened_ms_N[p])
                    for p in parts
                ]
            )
        return self._advance(keys_N, times_ms_N, outcomes_NK, happened_ms_N)

    def _advance(
        self,
        keys_N: NDArray[np.int64],
        times_ms_N: NDArray[np.int64],
        outcomes_NK: NDArray[np.float64],
        happened_ms_N: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        start, end, tasks = int(times_ms_N[0]), int(times_ms_N[-1]), len(self.delays_ms)
        self._settle(start)
        waiting = self.waiting.table()
        late_keys, late_ms, late_tasks, late_outcomes, late_shown = (
            waiting[name].to_numpy() for name in list(WAITING)[1:]
        )
        distinct, group = numbered(np.concatenate([keys_N, late_keys]))
        slots_U = self._slots_of(distinct)
        age_U = (start - self.as_of_ms[slots_U]).astype(np.float64)
        base_U = self.sums[slots_U] * self._decay(age_U)[..., None]
        groups_N = group[: len(keys_N)]
        result, final_U = base_U[groups_N], base_U.copy()
        unknown = [pl.DataFrame(schema=WAITING)]
        for task in range(tasks):
            mine = late_tasks == task
            events = _Events(
                group=np.concatenate([group[len(keys_N) :][mine], groups_N]),
                time_ms=np.concatenate([late_ms[mine], happened_ms_N]),
                delay_ms=int(self.delays_ms[task]),
                outcome=np.concatenate([late_outcomes[mine], outcomes_NK[:, task]]),
                shown=np.concatenate([late_shown[mine], np.ones(len(keys_N), np.int64)]),
            ).ordered()
            sums = events.running_sums(start, self.half_lives_ms)
            result[:, :, task::tasks] += events.before(sums, groups_N, times_ms_N)
            everyone = np.arange(len(distinct))
            final_U[:, :, task::tasks] += events.before(sums, everyone, np.full(len(distinct), end))
            rest = np.flatnonzero(events.known_at_ms >= end)
            unknown.append(
                pl.DataFrame(
                    {
                        "known_at_ms": events.known_at_ms[rest],
                        "key": distinct[events.group[rest]],
                        "time_ms": events.time_ms[rest],
                        "task": np.full(len(rest), task),
                        "outcome": events.outcome[rest],
                        "shown": events.shown[rest],
                    }
                )
            )
        self.waiting.replace(pl.concat(unknown))
        self.sums[slots_U] = final_U * self._decay(np.array(float(end - start)))[:, None]
        self.as_of_ms[slots_U] = end
        result *= self._decay((times_ms_N - start).astype(np.float64))[..., None]
        return result

    def take_in(
        self,
        keys_N: NDArray[np.int64],
        times_ms_N: NDArray[np.int64],
        outcomes_NK: NDArray[np.float64],
        happened_ms_N: NDArray[np.int64] | None = None,
    ) -> None:
        """What `advance` takes in, in less time: without reading before."""
        if not len(keys_N):
            return
        if happened_ms_N is None:
            happened_ms_N = times_ms_N
        for task, delay_ms in enumerate(self._delays_ms):
            of_task, shown = np.full(len(keys_N), task), np.ones(len(keys_N), np.int64)
            happened = happened_ms_N + delay_ms, keys_N, happened_ms_N
            self.waiting.add_columns([*happened, of_task, outcomes_NK[:, task], shown])
        self._settle(int(times_ms_N[-1]))

    def tables(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Keys with their sums, and what waits."""
        used = len(self.slots)
        flat = self.sums[:used].reshape(used, int(np.prod(self.sums.shape[1:])))
        columns = {f"sum_{i}": flat[:, i] for i in range(flat.shape[1])}
        keys = np.fromiter(self.slots.keys(), np.int64, used)
        sums = pl.DataFrame({"key": keys, "as_of_ms": self.as_of_ms[:used]} | columns)
        return sums, self.waiting.table()

    def restore(self, sums: pl.DataFrame, waiting: pl.DataFrame) -> None:
        """Take what `tables` gave."""
        self.slots = {key: i for i, key in enumerate(sums["key"].to_list())}
        self.as_of_ms = sums["as_of_ms"].to_numpy(writable=True)
        shape = (sums.height, *self.sums.shape[1:])
        self.sums = sums.drop("key", "as_of_ms").to_numpy().reshape(shape).copy()
        self.waiting.replace(waiting)


@dataclass(frozen=True)
class _Events:
    """Impressions of one task's view: known `delay_ms` after they happened."""

    group: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    delay_ms: int
    outcome: NDArray[np.float64]
    shown: NDArray[np.int64]
    """0 where only the outcome counts."""

    @property
    def known_at_ms(self) -> NDArray[np.int64]:
        return self.time_ms + self.delay_ms

    def ordered(self) -> "_Events":
        order = order_events(self.group, self.known_at_ms)
        return _Events(
            group=self.group[order],
            time_ms=self.time_ms[order],
            delay_ms=self.delay_ms,
            outcome=self.outcome[order],
            shown=self.shown[order],
        )

    def running_sums(
        self, start_ms: int, half_lives_ms: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """[E + 1, H, 2] of n and y within the group up to each event, in units of time `start_ms`;
        last come zeros."""
        since_E = (self.time_ms - start_ms).astype(np.float64)
        columns: dict[str, NDArray[np.float64]] = {}
        for h, half_life_ms in enumerate(half_lives_ms):
            weight_E = np.exp2(since_E / half_life_ms)
            columns |= {f"n{h}": weight_E * self.shown, f"y{h}": weight_E * self.outcome}
        group = pl.Series(self.group).set_sorted()  # which makes `over` about twice as fast
        frame = pl.DataFrame({"group": group} | columns)
        summed = frame.select(pl.col(name).cum_sum().over("group") for name in columns)
        sums = np.zeros((len(self.group) + 1, len(half_lives_ms), 2))
        for i, name in enumerate(columns):
            sums[:-1, i // 2, i % 2] = summed[name].to_numpy()
        return sums

    def before(
        self,
        sums_EH2: NDArray[np.float64],
        groups_Q: NDArray[np.int64],
        times_ms_Q: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """[Q, H, 2] running sums just before each query; zero where its group has no such event."""
        last = count_strictly_before(self.group, self.known_at_ms, groups_Q, times_ms_Q) - 1
        if self.group.size:  # the last, before which are none, is -1 and finds the zeros
            last[self.group[last] != groups_Q] = -1
        return sums_EH2.take(last, axis=0)


def counter_features(
    sums: NDArray[np.float64], priors_K: NDArray[np.float64], tasks: Sequence[Task]
) -> NDArray[np.float32]:
    """What a model sees of sums [N, H, 2K]: [N, H * (1 + K)] as the module's docstring says."""
    n, y = sums[..., : len(tasks)], sums[..., len(tasks) :]
    rate = (y + SMOOTHING * priors_K) / (n + SMOOTHING)
    binary_K = np.array([task.kind == "binary" for task in tasks])
    ratio = np.log(np.maximum(rate, 1e-9) / np.maximum(priors_K, 1e-9))
    lift = np.where(binary_K, ratio, rate - priors_K)
    features = np.concatenate([np.log1p(n[..., :1]), lift], axis=-1)
    return features.reshape(len(sums), -1).astype(np.float32)


def counter_names(schema: Schema) -> list[str]:
    """What each counter feature is of, [C]: `ad_id, 24 h: shown`, `ad_id, ever: click`."""
    return [
        f"{spec.name}, {'ever' if hours is None else f'{hours:g} h'}: {part}"
        for spec in schema.counters
        for hours in spec.half_lives_hours
        for part in ("shown", *(task.name for task in schema.tasks))
    ]
