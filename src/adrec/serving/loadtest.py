"""Load test: requests that come when they come, as users do, not when the last answer is there.

Arrivals are a Poisson process (open loop): a server that falls behind is not spared. The time of an
answer counts from when its request was due, so what the generator itself is late by counts as well
and is reported beside it (G. Tene, "How NOT to Measure Latency", 2013). A share of answers is
followed by events, as clients report them.
"""

import asyncio
import gc
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray

_PATIENCE_S = 10.0
_OK, _REFUSED, _UNWELL = 200, 429, 503
_FAILED = 0  # status of a request that got no answer at all

Check = Callable[[Mapping[str, Any]], bool]
"""Whether an answer is as it should be."""


@dataclass(frozen=True)
class Load:
    """What is sent."""

    rate: float
    """Requests a second, on average."""
    seconds: float
    users: Sequence[str]
    """Ids, drawn evenly."""
    k: int = 10
    reported: float = 1.0
    """Share of answers of which events are reported: an impression of each ad."""
    clicked: float = 0.1
    """Share of those of which one ad is clicked."""
    timeout_ms: float | None = None
    """Deadline that requests bring; what comes later is no use, and not in the goodput."""
    seed: int = 0


@dataclass
class Result:
    """What came back. Times are in seconds from the test's begin."""

    due: list[float] = field(default_factory=list)
    """When each request was due."""
    late: list[float] = field(default_factory=list)
    """Seconds after which it was sent."""
    took: list[float] = field(default_factory=list)
    """Seconds from when it was due to the last byte of the answer."""
    status: list[int] = field(default_factory=list)
    """HTTP status; 0 where no answer came."""
    version: list[str] = field(default_factory=list)
    """Of the models; '' without an answer."""
    wrong: int = 0
    """Answers that are not as they should be."""
    degraded: int = 0
    events: Counter[int] = field(default_factory=Counter)
    """Reports of events by HTTP status."""
    events_took: list[float] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    """Ids of events that the server said it has."""
    timeout_ms: float = float("inf")
    """Deadline that requests brought."""
    cpu_share: float = 0.0
    """Of one processor, that the generator itself took."""
    seconds: float = 0.0

    def summary(self, from_s: float = 0.0, until_s: float = float("inf")) -> dict[str, float]:
        """The figures of requests that were due in a part of the test."""
        due = np.array(self.due)
        part = (due >= from_s) & (due < until_s)
        status, took = np.array(self.status)[part], np.array(self.took)[part] * 1000.0
        late = np.array(self.late)[part] * 1000.0
        length = min(until_s, self.seconds) - from_s
        ok, refused = status == _OK, status == _REFUSED
        return {
            "sent": float(len(status)),
            "answered": float(ok.sum()),
            "refused": float(refused.sum()),
            "failed": float((~ok & ~refused).sum()),
            "goodput": float((ok & (took <= self.timeout_ms)).sum()) / length,
            "p50_ms": _percentile(took[ok], 50.0),
            "p99_ms": _percentile(took[ok], 99.0),
            "p999_ms": _percentile(took[ok], 99.9),
            "refused_p99_ms": _percentile(took[refused], 99.0),
            "late_p99_ms": _percentile(late, 99.0),
            "wrong": float(self.wrong),
            "degraded": float(self.degraded),
            "events": float(self.events[_OK]),
            "events_unwell": float(self.events[_UNWELL]),
            "events_failed": float(
                sum(n for code, n in self.events.items() if code not in (_OK, _UNWELL))
            ),
            "events_p99_ms": _percentile(np.array(self.events_took) * 1000.0, 99.0),
            "generator_cpu": self.cpu_share,
        }


async def run_load(
    url: str,
    load: Load,
    *,
    token: str | None = None,
    check: Check = lambda answer: True,
    tell: Callable[[float], None] = lambda seconds: None,
) -> Result:
    """Send a load and wait for all answers.

    Args:
        url: of the server, e.g. `http://127.0.0.1:8000`.
        load: what is sent.
        token: of events.
        check: told each answer; those it dislikes are counted as wrong.
        tell: told every second how many have passed.
    """
    (found,) = await run_loads(url, [load], token=token, check=check, tell=tell)
    return found


async def run_loads(
    url: str,
    loads: Sequence[Load],
    *,
    token: str | None = None,
    check: Check = lambda answer: True,
    tell: Callable[[float], None] = lambda seconds: None,
) -> list[Result]:
    """Send loads, each from the instant on in which the one before ends, and wait for all answers;
    see `run_load`."""

    async def send(load: Load, after_s: float) -> Result:
        await asyncio.sleep(after_s)
        return await _send(url, load, token, check, tell)

    starts = np.cumsum([0.0, *(load.seconds for load in loads)]).tolist()
    gc.collect()
    gc.freeze()  # looking through all that the caller has loaded would make requests late
    try:
        return await asyncio.gather(*map(send, loads, starts[:-1]))
    finally:
        gc.unfreeze()


async def _send(
    url: str, load: Load, token: str | None, check: Check, tell: Callable[[float], None]
) -> Result:
    found, generator = Result(), np.random.default_rng(load.seed)
    if load.timeout_ms is not None:
        found.timeout_ms = load.timeout_ms
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    timeout = aiohttp.ClientTimeout(total=_PATIENCE_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
        client = _Client(session, load, found, headers, check, generator)
        begun, cpu = time.perf_counter(), time.process_time()
        under_way: set[asyncio.Task[None]] = set()
        told = 0
        for due in _arrivals(load, generator):
            await _until(begun + due)
            task = asyncio.create_task(client.ask(begun, due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            if due > told + 1:
                told = int(due)
                tell(due)
        found.seconds = load.seconds
        while under_way:
            await asyncio.wait(set(under_way))
        found.cpu_share = (time.process_time() - cpu) / (time.perf_counter() - begun)
    return found


class _Client:
    """Asks, reports, and notes what comes back."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        load: Load,
        found: Result,
        headers: Mapping[str, str],
        check: Check,
        generator: np.random.Generator,
    ) -> None:
        self._session, self._load, self._found = session, load, found
        self._headers, self._check, self._generator = headers, check, generator

    async def ask(self, begun: float, due: float) -> None:
        """One request, and the events that follow it."""
        load, found = self._load, self._found
        user = load.users[int(self._generator.integers(len(load.users)))]
        body: dict[str, Any] = {"user": user, "k": load.k}
        if load.timeout_ms is not None:
            body["timeout_ms"] = load.timeout_ms
        sent = time.perf_counter()
        status, content = await self._post("/v1/recommend", body, {})
        took = time.perf_counter() - begun - due
        answer = json.loads(content) if status == _OK else {}
        found.due.append(due)
        found.late.append(sent - begun - due)
        found.took.append(took)
        found.status.append(status)
        found.version.append(answer.get("version", ""))
        if status == _OK:
            found.wrong += not self._check(answer)
            found.degraded += bool(answer["degraded"])
            if answer["ads"] and self._generator.random() < load.reported:
                await self._report(answer)

    async def _report(self, answer: Mapping[str, Any]) -> None:
        ads = [(ad["ad_id"], "impression") for ad in answer["ads"]]
        if self._generator.random() < self._load.clicked:
            ads.append((ads[int(self._generator.integers(len(ads)))][0], "click"))
        events = [
            {
                "event_id": f"{answer['request_id']}-{ad}-{kind}",
                "kind": kind,
                "request_id": answer["request_id"],
                "ad_id": ad,
            }
            for ad, kind in ads
        ]
        begun = time.perf_counter()
        status, content = await self._post("/v1/events", {"events": events}, self._headers)
        self._found.events_took.append(time.perf_counter() - begun)
        if status == _OK and json.loads(content)["rejected"]:
            status = -1
        if status == _OK:
            self._found.acknowledged += [event["event_id"] for event in events]
        self._found.events[status] += 1

    async def _post(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        try:
            async with self._session.post(path, json=body, headers=headers) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return _FAILED, b""


def _arrivals(load: Load, generator: np.random.Generator) -> Iterator[float]:
    """Seconds at which requests are due."""
    due = 0.0
    while (due := due + float(generator.exponential(1.0 / load.rate))) < load.seconds:
        yield due


async def _until(instant: float) -> None:
    """Sleep up to an instant; the event loop's own timer is late by up to a millisecond."""
    left = instant - time.perf_counter()
    await asyncio.sleep(max(left, 0.0))


def _percentile(values: NDArray[np.float64], percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else float("nan")
