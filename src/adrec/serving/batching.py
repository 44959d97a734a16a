"""Micro-batching: requests that come while others are answered are answered together.

A few threads answer. An idle one takes what waits at once, so a lone request waits for nothing;
while all are busy requests gather. Of few the next free thread takes its share, as the others soon
are free, too; as soon as there are `most`, it takes so many, which costs less for each. Under load
it may wait up to `gather_ms` for a batch to fill, and then takes all.

Each request has a deadline. From how long batches have been taking, and from how far such guesses
were off, it is told on arrival whether the deadline can be met; if not, it is refused at once, as a
queue that grows helps nobody. Of those that were let in, one whose deadline has passed by its turn
is refused then.
"""

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from pydantic import Field

from adrec.errors import OverloadError
from adrec.schema import Strict

AskT = TypeVar("AskT")
AnswerT = TypeVar("AnswerT")

Answer = Callable[[Sequence[AskT]], Sequence[AnswerT | Exception]]
"""Answers a batch: for each request its answer, or why there is none."""

_MEMORY = 0.05  # weight of the newest in what is learned
_DEVIATIONS = 2.0  # by so many may an answer be later than on average


class BatchingConfig(Strict):
    """How requests are gathered."""

    at_once: int = Field(default=2, ge=1, le=1024)
    """Batches that are answered at the same time: one for each core."""
    most: int = Field(default=8, ge=1, le=1024)
    """Requests of a batch: larger ones take less time in all, and each request more."""
    gather_ms: float = Field(default=0.0, ge=0.0, le=1000.0)
    """Longest that a thread waits for a batch to fill while others are busy."""
    most_waiting: int = Field(default=1000, ge=1, le=1_000_000)
    """Requests that may wait."""


@dataclass(frozen=True)
class _Waiting(Generic[AskT, AnswerT]):
    ask: AskT
    begun: float
    """On the batcher's clock."""
    deadline: float
    expected_s: float | None
    """What it was expected to take; None before the first batch."""
    answer: "Future[AnswerT]"


class _Batch(NamedTuple):
    begun: float
    size: int


class _Lateness:
    """By how much answers take longer than expected, at most: the mean and some mean deviations, as
    TCP judges its timeouts (Jacobson 1988)."""

    def __init__(self) -> None:
        self._mean_s = self._deviation_s = 0.0

    def learn(self, late_s: float) -> None:
        off_s = late_s - self._mean_s
        self._mean_s += _MEMORY * off_s
        self._deviation_s += _MEMORY * (abs(off_s) - self._deviation_s)

    @property
    def most_s(self) -> float:
        return max(0.0, self._mean_s + _DEVIATIONS * self._deviation_s)


class Batcher(Generic[AskT, AnswerT]):
    """Answers requests in batches on threads of its own. Safe to use from many threads."""

    def __init__(
        self,
        answer: Answer[AskT, AnswerT],
        config: BatchingConfig,
        *,
        begin_thread: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin.

        Args:
            answer: called from any of the threads.
            config: how requests are gathered.
            begin_thread: called once in each thread.
            clock: in seconds.
        """
        self._answer, self._config, self._clock = answer, config, clock
        self._waiting: deque[_Waiting[AskT, AnswerT]] = deque()
        self._changed = threading.Condition()
        self._at_work: dict[int, _Batch] = {}  # what each thread answers
        self._closed = False
        self._each_s: float | None = None  # what a request adds to a batch; None before the first
        self._lateness = _Lateness()
        self._threads = [
            threading.Thread(target=self._work, args=(begin_thread,), name=f"answer-{i}")
            for i in range(config.at_once)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, ask: AskT, timeout_s: float) -> "Future[AnswerT]":
        """Have a request answered.

        Args:
            ask: the request.
            timeout_s: from now to its deadline.

        Returns:
            The answer to come. It fails with `OverloadError` if the deadline passes first.

        Raises:
            OverloadError: the deadline cannot be met, or too many wait.
        """
        now, answer = self._clock(), Future[AnswerT]()
        with self._changed:
            if self._closed:
                raise OverloadError("the server is about to stop")
            expected_s = self._expected_s(now)
            if not self._idle:  # else it is let in, so that how long one takes is learned
                most_s = (expected_s or 0.0) + self._lateness.most_s
                if most_s > timeout_s or len(self._waiting) >= self._config.most_waiting:
                    raise OverloadError(
                        f"{len(self._waiting)} requests wait: an answer may take "
                        f"{most_s * 1000:.0f} ms of the {timeout_s * 1000:.0f} allowed"
                    )
            self._waiting.append(_Waiting(ask, now, now + timeout_s, expected_s, answer))
            self._changed.notify()
        return answer

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def close(self) -> None:
        """Take no more requests, answer those that wait, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    @property
    def _idle(self) -> bool:
        return len(self._at_work) < self._config.at_once and not self._waiting

    def _expected_s(self, now: float) -> float | None:
        """About how long a request that comes now waits and is answered, if that is known."""
        if self._each_s is None:
            return None
        free_s = [0.0] * (self._config.at_once - len(self._at_work)) + [
            max(0.0, batch.begun + self._each_s * _parts(batch.size) - now)
            for batch in self._at_work.values()
        ]  # when each thread is free
        heapq.heapify(free_s)
        waiting = len(self._waiting) + 1
        while True:
            count = self._share(waiting)
            done_s = heapq.heappop(free_s) + self._each_s * _parts(count)
            waiting -= count
            if not waiting:
                return done_s
            heapq.heappush(free_s, done_s)

    def _share(self, waiting: int) -> int:
        """How many of those that wait a thread takes."""
        threads, most = self._config.at_once, self._config.most
        return most if waiting >= most else -(-waiting // threads)

    def _work(self, begin_thread: Callable[[], None]) -> None:
        begin_thread()
        while True:
            batch = self._take()
            if not batch:
                return
            begun = self._clock()
            in_time = [entry for entry in batch if self._may_go_on(entry, begun)]
            if in_time:
                self._answer_all(in_time)
                self._learn(in_time, begun)
            with self._changed:
                del self._at_work[threading.get_ident()]

    def _take(self) -> list[_Waiting[AskT, AnswerT]]:
        """The next batch, as soon as there is one; empty at the end."""
        most = self._config.most
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return []
                self._changed.wait()
            gathered = bool(self._at_work and self._config.gather_ms)
            if gathered:
                until = self._clock() + self._config.gather_ms / 1000.0
                while len(self._waiting) < most and not self._closed:
                    left = until - self._clock()
                    if left <= 0.0 or not self._changed.wait(left):
                        break
                if not self._waiting:  # another thread took them
                    return self._take()
            waiting = len(self._waiting)
            count = waiting if gathered and waiting < most else self._share(waiting)
            self._at_work[threading.get_ident()] = _Batch(self._clock(), count)
            return [self._waiting.popleft() for _ in range(count)]

    def _may_go_on(self, entry: _Waiting[AskT, AnswerT], now: float) -> bool:
        if not entry.answer.set_running_or_notify_cancel():
            return False
        if now > entry.deadline:
            entry.answer.set_exception(OverloadError("the deadline passed while waiting"))
            return False
        return True

    def _answer_all(self, batch: Sequence[_Waiting[AskT, AnswerT]]) -> None:
        try:
            found = self._answer([entry.ask for entry in batch])
        except Exception as error:  # a thread that died would leave all who wait without an answer
            found = [error] * len(batch)
        for entry, answer in zip(batch, found, strict=True):
            if isinstance(answer, Exception):
                entry.answer.set_exception(answer)
            else:
                entry.answer.set_result(answer)

    def _learn(self, batch: Sequence[_Waiting[AskT, AnswerT]], begun: float) -> None:
        now = self._clock()
        each_s = (now - begun) / _parts(len(batch))
        with self._changed:
            if self._each_s is None:
                self._each_s = each_s
            self._each_s += _MEMORY * (each_s - self._each_s)
            for entry in batch:
                if entry.expected_s is not None:
                    self._lateness.learn(now - entry.begun - entry.expected_s)


def _parts(size: int) -> int:
    """How long a batch takes, measured in what one more request adds to it: about as much as there
    are requests, and as much again for reading the models' weights and for Python."""
    return size + 1
