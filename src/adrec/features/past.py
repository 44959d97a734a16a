"""The one rule about time: what a row may know lies strictly before it."""

import numpy as np
from numpy.typing import NDArray

from adrec.errors import DataError

MS_PER_HOUR = 3_600_000.0
_DENSE = 8  # numbers up to so many times their count are found without sorting
_SMALL = 1 << 16  # groups that NumPy sorts in linear time
_BITS = 63  # of an int64 without its sign: a group and a time side by side
_MS_PER_YEAR = 365.25 * 24 * MS_PER_HOUR


def order_events(
    groups_E: NDArray[np.int64], known_at_ms_E: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Order of events by group, then by the time they are known; stable.

    Args:
        groups_E: group of each event, small integers from 0.
        known_at_ms_E: when each event is known.
    """
    if not (known_at_ms_E[1:] >= known_at_ms_E[:-1]).all():
        return np.lexsort((known_at_ms_E, groups_E))
    if groups_E.max(initial=0) < _SMALL:
        groups_E = groups_E.astype(np.uint16)
    return np.argsort(groups_E, kind="stable")


def numbered(keys_E: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct keys in ascending order, [U], and the place of each key among them, [E]."""
    if keys_E.size:
        least = int(keys_E.min())
        span = int(keys_E.max()) - least + 1
        if span <= _DENSE * keys_E.size:
            from_least_E = keys_E - least
            there = np.zeros(span, bool)
            there[from_least_E] = True
            place = np.cumsum(there) - 1
            return np.flatnonzero(there) + least, place[from_least_E]
    distinct, place_E = np.unique(keys_E, return_inverse=True)
    return distinct, place_E.astype(np.int64)


def count_strictly_before(
    event_groups_E: NDArray[np.int64],
    known_at_ms_E: NDArray[np.int64],
    query_groups_Q: NDArray[np.int64],
    query_ms_Q: NDArray[np.int64],
) -> NDArray[np.int64]:
    """How many ordered events stand before each query: in smaller groups, or earlier in its own.

    An event at the very instant of the query is not counted.

    Args:
        event_groups_E: group of each event, small integers from 0, in the order of `order_events`.
        known_at_ms_E: when each event is known.
        query_groups_Q: group of each query.
        query_ms_Q: time of each query.

    Returns:
        [Q] counts: the events of a query's own group end just before this position.

    Raises:
        DataError: times so far apart that they do not fit beside the groups (139 years and two
            million groups do).
    """
    if not event_groups_E.size or not query_groups_Q.size:
        return np.zeros(query_groups_Q.size, np.int64)
    start = min(int(known_at_ms_E.min()), int(query_ms_Q.min()))
    end = max(int(known_at_ms_E.max()), int(query_ms_Q.max()))
    bits = (end - start).bit_length()
    groups = max(int(event_groups_E.max()), int(query_groups_Q.max()))
    if bits + groups.bit_length() > _BITS:
        years = (end - start) / _MS_PER_YEAR
        raise DataError(f"Times span {years:,.0f} years; is timestamp_unit right?")
    events = (event_groups_E << bits) | (known_at_ms_E - start)
    queries = (query_groups_Q << bits) | (query_ms_Q - start)
    before_Q = np.empty(len(queries), np.int64)
    order = order_events(query_groups_Q, query_ms_Q)  # so that the search moves on, not about
    before_Q[order] = np.searchsorted(events, queries[order], side="left")
    return before_Q
