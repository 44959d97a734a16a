"""Skew: whether the models were told while serving what they would learn from the log.

A server notes for a sample of answers what the models were told (`Seen`). Here the log is turned
into a table, as for training, and read by the state that a model version was published with; what
it says of the same requests is compared. A difference means that the models serve on other numbers
than they learn from: outcomes that are reported later than the schema's `delay_ms` allows, events
that a server has missed, or a mistake.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adrec.data.event_log import EventLog
from adrec.data.log_entries import Event, LoggedSlate, outcomes_of
from adrec.data.log_export import impression_frame
from adrec.data.tables import under_own_names
from adrec.features.batches import Past
from adrec.features.rows import Rows
from adrec.features.state import State
from adrec.recommender import Recommender
from adrec.slates import past_of

_PART = 1_000  # slates read at a time
_CLOSE = 1e-4


@dataclass
class Skew:
    """What a comparison found."""

    checked: int = 0
    """Answers that were compared."""
    different: int = 0
    """Those that differ in something."""
    parts: Counter[str] = field(default_factory=Counter)
    """How many differ in what: `history NAME` or `counters`."""
    examples: list[str] = field(default_factory=list)
    """Request ids of the first few that differ."""


def measure_skew(recommender: Recommender, log: EventLog, *, after_ms: int, until_ms: int) -> Skew:
    """Compare the answers of a version in a period that the log has samples of. What other versions
    were told they were told by their own means and fields.

    Args:
        recommender: just loaded, with its ads as they stand; its state is moved on.
        log: of a server.
        after_ms: time of the last impression that the version was trained on.
        until_ms: when outcomes have to be settled by; later answers are left out.

    Raises:
        EventLogError: the log cannot be read.
    """
    state, found = recommender.state, Skew()
    delay_ms = max(task.delay_ms for task in state.schema.tasks)
    slates = log.shown(after_ms + 1, until_ms - delay_ms)
    while part := list(islice(slates, _PART)):
        _compare(state, part, found, recommender.version)
    return found


def _compare(
    state: State, part: Sequence[tuple[LoggedSlate, list[Event]]], found: Skew, version: str
) -> None:
    schema = under_own_names(state.schema)
    shown = [(slate, outcomes_of(events, schema.tasks)) for slate, events in part]
    rows = state.advance(impression_frame(schema, shown))
    starts = np.append(0, np.cumsum(rows.slate_R))
    place = 0  # of the slate's first impression
    for slate, outcomes in shown:
        ads = [ad.ad_id for ad in slate.ads if ad.ad_id in outcomes]
        request = int(np.searchsorted(starts, place, side="right")) - 1
        place += len(ads)
        if slate.seen is None or slate.version != version or slate.profile is not None:
            continue  # a profile that came with the request stands in no table
        counters_NC = rows.counters_NC[place - len(ads) : place]
        differs = [
            *_histories_that_differ(state, rows, request, slate.seen["histories"]),
            *(["counters"] if _differ(ads, counters_NC, slate.seen["counters"]) else []),
        ]
        found.checked += 1
        if differs:
            found.different += 1
            found.parts.update(differs)
            found.examples = [*found.examples, slate.request_id][:10]


def _histories_that_differ(
    state: State, rows: Rows, request: int, seen: Mapping[str, Mapping[str, list[Any]]]
) -> list[str]:
    different = []
    for name, past in zip(seen, rows.histories, strict=True):
        mine = past_of(Past(*(part[request] for part in past)), state.catalogue.directory)
        theirs = seen[name]
        same = mine["ads"] == theirs["ads"] and mine["outcomes"] == theirs["outcomes"]
        if not (same and np.allclose(mine["gap"], theirs["gap"], atol=_CLOSE)):
            different.append(f"history {name}")
    return different


def _differ(
    ads: Sequence[str], counters_NC: NDArray[np.float32], seen: Mapping[str, list[float]]
) -> bool:
    pairs = [(mine, seen[ad]) for ad, mine in zip(ads, counters_NC, strict=True) if ad in seen]
    return not all(np.allclose(mine, theirs, rtol=_CLOSE, atol=_CLOSE) for mine, theirs in pairs)
