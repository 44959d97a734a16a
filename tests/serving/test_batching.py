"""Micro-batching: who is answered with whom, and who is refused."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from adrec.errors import OverloadError, RequestError
from adrec.serving.batching import Batcher, BatchingConfig


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Gate:
    """An answer that waits until it is let through, and takes `takes_s` on the clock."""

    def __init__(self, clock, takes_s=0.0):
        self.clock, self.takes_s = clock, takes_s
        self.batches, self.entered = [], threading.Semaphore(0)
        self.through = threading.Semaphore(0)

    def __call__(self, asks):
        self.batches.append(list(asks))
        self.entered.release()
        assert self.through.acquire(timeout=10)
        self.clock.now += self.takes_s
        return [RequestError("odd") if ask % 2 else ask * 10 for ask in asks]

    def let_through(self, batches):
        for _ in range(batches):
            self.through.release()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def gate(clock):
    return Gate(clock, takes_s=0.05)


@pytest.fixture
def batcher(gate, clock):
    batcher = Batcher(gate, BatchingConfig(at_once=1, most=3, most_waiting=5), clock=clock)
    yield batcher
    gate.let_through(100)
    batcher.close()


def submit_while_busy(batcher, gate, asks, timeout_s=60.0):
    """The first is in work before the others come."""
    first = batcher.submit(0, timeout_s)
    assert gate.entered.acquire(timeout=10)
    return [first, *(batcher.submit(ask, timeout_s) for ask in asks)]


def test_a_lone_request_is_answered_at_once(batcher, gate):
    gate.let_through(1)
    assert batcher.submit(4, 1.0).result(timeout=10) == 40
    assert gate.batches == [[4]]


def test_requests_gather_while_all_are_busy(batcher, gate):
    futures = submit_while_busy(batcher, gate, [2, 4, 6, 8])
    gate.let_through(3)
    assert [future.result(timeout=10) for future in futures] == [0, 20, 40, 60, 80]
    assert gate.batches == [[0], [2, 4, 6], [8]]


def test_one_that_cannot_be_answered_spoils_no_other(batcher, gate):
    futures = submit_while_busy(batcher, gate, [2, 3])
    gate.let_through(2)
    assert futures[1].result(timeout=10) == 20
    with pytest.raises(RequestError, match="odd"):
        futures[2].result(timeout=10)


def test_an_error_of_the_answer_reaches_all(clock):
    def fail(asks):
        raise RuntimeError("broken")

    batcher = Batcher(fail, BatchingConfig(at_once=1), clock=clock)
    for _ in range(2):  # the thread lives on
        with pytest.raises(RuntimeError, match="broken"):
            batcher.submit(1, 1.0).result(timeout=10)
    batcher.close()


def test_a_deadline_that_cannot_be_met_is_refused_on_arrival(batcher, gate, clock):
    gate.let_through(1)
    batcher.submit(2, 1.0).result(timeout=10)  # a lone one takes 50 ms, each with it 25 more
    assert gate.entered.acquire(timeout=10)
    submit_while_busy(batcher, gate, [2, 4])
    # 50 ms for the batch in work, and 100 for the one that this joins
    with pytest.raises(OverloadError, match=r"2 requests wait: .* take 150 ms of the 145 allowed"):
        batcher.submit(6, 0.145)
    assert not batcher.submit(6, 0.155).done()
    with pytest.raises(OverloadError, match=r"3 requests wait: .* take 200 ms of the 195 allowed"):
        batcher.submit(8, 0.195)  # it is one too many for that batch
    clock.now += 0.04  # that in work is nearly done
    assert not batcher.submit(8, 0.165).done()


def test_where_answers_are_late_fewer_are_let_in(gate, clock):
    """A batch takes 50 ms mostly, and now and then 300 ms: 100 ms are no longer promised."""
    batcher = Batcher(gate, BatchingConfig(at_once=1, most=1), clock=clock)
    gate.let_through(40)
    for number in range(40):
        gate.takes_s = 0.3 if number % 4 == 3 else 0.05
        assert batcher.submit(2, 1.0).result(timeout=10) == 20
        assert gate.entered.acquire(timeout=10)
    submit_while_busy(batcher, gate, [])
    with pytest.raises(OverloadError, match=r"0 requests wait: an answer may take [3-9].. ms"):
        batcher.submit(6, 0.3)
    assert not batcher.submit(6, 1.0).done()
    gate.let_through(2)
    batcher.close()


def test_a_lone_request_is_let_in_whatever_the_last_took(batcher, gate):
    gate.let_through(2)
    batcher.submit(2, 1.0).result(timeout=10)
    with ThreadPoolExecutor(1) as pool:  # the batcher is idle once its thread waits again
        while True:
            try:
                future = batcher.submit(4, 0.001)
            except OverloadError:
                pool.submit(int).result()
            else:
                break
    assert future.result(timeout=10) == 40


def test_a_deadline_that_passes_while_waiting(batcher, gate, clock):
    futures = submit_while_busy(batcher, gate, [2], timeout_s=1.0)
    clock.now += 2.0
    gate.let_through(1)
    assert futures[0].result(timeout=10) == 0  # was in work
    with pytest.raises(OverloadError, match="deadline passed"):
        futures[1].result(timeout=10)
    assert gate.batches == [[0]]


def test_no_more_may_wait_than_are_allowed(batcher, gate):
    submit_while_busy(batcher, gate, [2] * 5)
    with pytest.raises(OverloadError, match="5 requests wait"):
        batcher.submit(2, 60.0)


def test_one_that_is_cancelled_and_late_ends_no_thread(batcher, gate, clock):
    first, late = submit_while_busy(batcher, gate, [2], timeout_s=1.0)
    assert late.cancel()
    clock.now += 2.0
    gate.let_through(2)
    assert first.result(10) == 0
    assert batcher.submit(4, 60.0).result(10) == 40


def test_one_that_is_cancelled_is_left_out(batcher, gate):
    futures = submit_while_busy(batcher, gate, [2, 4])
    assert futures[1].cancel()
    gate.let_through(2)
    assert futures[2].result(timeout=10) == 40
    assert gate.batches == [[0], [4]]


def test_closing_answers_those_who_wait(clock):
    gate = Gate(clock)
    batcher = Batcher(gate, BatchingConfig(at_once=1), clock=clock)
    futures = submit_while_busy(batcher, gate, [2, 4])
    closing = threading.Thread(target=batcher.close)
    closing.start()
    gate.let_through(2)
    closing.join(timeout=10)
    assert [future.result(timeout=10) for future in futures] == [0, 20, 40]
    with pytest.raises(OverloadError, match="about to stop"):
        batcher.submit(6, 1.0)


def test_a_batch_may_be_given_time_to_fill(clock):
    """With one thread in work, another waits for a second request until the first is old enough."""
    gate = Gate(clock)
    config = BatchingConfig(at_once=2, most=2, gather_ms=1_000.0)
    batcher = Batcher(gate, config, clock=clock)  # the clock stands: only a full batch goes on
    futures = submit_while_busy(batcher, gate, [2])
    assert not gate.entered.acquire(timeout=0.05)
    futures.append(batcher.submit(4, 60.0))
    assert gate.entered.acquire(timeout=10)
    gate.let_through(2)
    assert [future.result(timeout=10) for future in futures] == [0, 20, 40]
    assert gate.batches == [[0], [2, 4]]
    batcher.close()


def test_threads_are_begun_and_work_side_by_side(clock):
    begun, gate = [], Gate(clock)
    batcher = Batcher(
        gate, BatchingConfig(at_once=2), clock=clock, begin_thread=lambda: begun.append(1)
    )
    futures = [batcher.submit(2, 1.0)]
    assert gate.entered.acquire(timeout=10)
    futures.append(batcher.submit(4, 1.0))
    assert gate.entered.acquire(timeout=10)  # both are in work
    gate.let_through(2)
    assert [future.result(timeout=10) for future in futures] == [20, 40]
    batcher.close()
    assert len(begun) == 2


@pytest.mark.parametrize(
    ("waiting", "taken"),
    [(1, [1]), (2, [1, 1]), (3, [2, 1]), (4, [4]), (6, [4, 1, 1])],
)
def test_each_thread_takes_its_share_of_few(waiting, taken, gate, clock):
    batcher = Batcher(gate, BatchingConfig(at_once=2, most=4), clock=clock)
    futures = []
    for ask in (100, 102):  # both threads are busy
        futures.append(batcher.submit(ask, 60.0))
        assert gate.entered.acquire(timeout=10)
    futures += [batcher.submit(2 * i, 60.0) for i in range(waiting)]
    for size in taken:
        gate.let_through(1)
        assert gate.entered.acquire(timeout=10)
        assert len(gate.batches[-1]) == size
    gate.let_through(2)
    assert [future.result(timeout=10) for future in futures[2:]] == [20 * i for i in range(waiting)]
    batcher.close()


def test_what_a_request_takes_is_worked_out_batch_by_batch(gate, clock):
    """Two threads, 25 ms for each request and for each batch: 3 wait, of which one thread takes 2
    and the other 1, and then what comes after them."""
    batcher = Batcher(gate, BatchingConfig(at_once=2, most=8), clock=clock)
    gate.let_through(1)
    batcher.submit(0, 1.0).result(timeout=10)  # a lone one takes 50 ms
    assert gate.entered.acquire(timeout=10)
    for ask in (100, 102):
        batcher.submit(ask, 60.0)
        assert gate.entered.acquire(timeout=10)
    for ask in (2, 4, 6):
        batcher.submit(ask, 60.0)
    # 50 ms for those in work. Of four the first thread takes 2 (75 ms), the second 1 (50) and,
    # before the first is free, the last (50).
    with pytest.raises(OverloadError, match=r"3 requests wait: .* take 150 ms of the 145 allowed"):
        batcher.submit(8, 0.145)
    assert not batcher.submit(8, 0.155).done()
    gate.let_through(100)
    batcher.close()
