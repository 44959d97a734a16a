"""Outcome bits: one a task, each known strictly after its delay, sorted without telling secrets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adrec.features.bits import MOST_TASKS, UNKNOWN_MS, known_bits, known_first, outcome_bits

delays = st.lists(st.integers(0, 4), min_size=1, max_size=10)
"""Few distinct values: many tasks are known at the same instant."""
all_bits = st.integers(0, 255)


def bits_of(value: int, tasks: int) -> list[bool]:
    return [bool(value >> k & 1) for k in range(tasks)]


def test_outcomes_above_0_are_bits() -> None:
    labels = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0.01], [1, 1, 7e6], [0, 0, -2]], np.float32)
    found = outcome_bits(labels)
    assert found.dtype == np.uint8
    assert found.tolist() == [0b000, 0b001, 0b110, 0b111, 0b000]


def test_only_the_first_8_tasks_have_a_bit() -> None:
    labels = np.eye(10, dtype=np.float32)
    assert outcome_bits(labels).tolist() == [1, 2, 4, 8, 16, 32, 64, 128, 0, 0]
    assert outcome_bits(np.ones((1, 10), np.float32)).tolist() == [255]


def test_a_bit_is_known_once_its_delay_is_over() -> None:
    # Shown at 100 with all three outcomes, known after 0, 10 and 50.
    bits, times = np.array([7], np.uint8), np.array([100])
    for at, known in (
        (99, 0b000),  # not shown yet
        (100, 0b000),  # not at the very instant
        (101, 0b001),
        (110, 0b001),
        (111, 0b011),
        (150, 0b011),
        (151, 0b111),
    ):
        assert known_bits(bits, times, np.array([at]), (0, 10, 50)).tolist() == [known]


def test_what_is_from_before_the_log_is_known() -> None:
    bits, times = np.array([5, 5], np.uint8), np.array([UNKNOWN_MS, 1_000])
    found = known_bits(bits, times, np.array(0), (0, 10, 10**15))
    assert found.tolist() == [5, 0]


def test_without_a_task_nothing_is_known() -> None:
    # A history that was not told of delays shows no outcome rather than one too early.
    assert known_bits(np.array([255], np.uint8), np.array([0]), np.array([9]), ()).tolist() == [0]


@given(st.lists(st.tuples(all_bits, st.integers(-1, 9), st.integers(0, 9)), min_size=1), delays)
def test_known_bits_by_a_loop(items: list[tuple[int, int, int]], delays_ms: list[int]) -> None:
    bits, times_ms, at_ms = np.array(items).T
    found = known_bits(bits.astype(np.uint8), times_ms, at_ms, delays_ms)
    assert found.dtype == np.uint8
    for (value, time_ms, now_ms), known in zip(items, found.tolist(), strict=True):
        expected = 0
        for k, delay_ms in enumerate(delays_ms[:MOST_TASKS]):
            if time_ms == UNKNOWN_MS or time_ms + delay_ms < now_ms:
                expected |= value & 1 << k
        assert known == expected


@given(all_bits, all_bits, delays)
def test_the_sooner_a_bit_is_known_the_more_it_decides_on_the_order(
    one: int, other: int, delays_ms: list[int]
) -> None:
    """Bits compare like words whose letters stand in the order in which they come to be known."""
    tasks = len(delays_ms[:MOST_TASKS])
    by_delay = sorted(range(tasks), key=lambda k: (delays_ms[k], k))
    words = [[bits_of(value, tasks)[k] for k in by_delay] for value in (one, other)]
    first, second = known_first(np.array([one, other], np.uint8), delays_ms).tolist()
    assert (first < second) == (words[0] < words[1])
    assert (first == second) == (words[0] == words[1])


@given(all_bits, all_bits, all_bits, st.integers(0, 6), delays)
def test_an_order_tells_of_no_bit_that_is_not_known(
    one: int, other: int, changed: int, age_ms: int, delays_ms: list[int]
) -> None:
    """Two items that differ in what is known keep their order whatever comes of them later."""
    known = int(
        known_bits(np.array([255], np.uint8), np.zeros(1, int), np.array(age_ms), delays_ms)[0]
    )
    before = known_first(np.array([one, other], np.uint8), delays_ms).tolist()
    later = known_first(np.array([one, other ^ (changed & ~known & 255)], np.uint8), delays_ms)
    if one & known != other & known:
        assert (before[0] < before[1]) == (later[0] < later[1])


@pytest.mark.parametrize("shape", [(0,), (2, 0), (3, 4)])
def test_any_shape_is_kept(shape: tuple[int, ...]) -> None:
    bits = np.full(shape, 3, np.uint8)
    times_ms, at_ms = np.zeros(shape, np.int64), np.array(5)
    assert known_bits(bits, times_ms, at_ms, (0, 9)).shape == shape
    assert (known_bits(bits, times_ms, at_ms, (0, 9)) == 1).all()
    assert known_first(bits, (0, 9)).shape == shape
