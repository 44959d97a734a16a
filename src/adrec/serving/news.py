"""News: what one server has taken in, told to the others through Redis before their next answer.

Several servers answer from one event log. Without Redis each looks there a few times a second for
what the others have written (`Versions.follow`). With it, whoever has written events also puts them
into a Redis stream, and every batch of requests first reads what is new there, in one round trip:
the next request knows of an event wherever it was reported. The log stays the truth: what the
stream no longer holds is read from there, and while Redis is out of reach answers say that they may
be behind (`degraded`).
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from adrec.data.log_entries import Event, LoggedSlate, Shown
from adrec.errors import ConfigError

_log = logging.getLogger(__name__)

_KEPT = 10_000  # messages of the stream, about
_MOST = 500  # read at a time
_PAUSE_S = 1.0  # after a failure, before Redis is asked again

Message = tuple[list[LoggedSlate], list[Event]]
"""Slates and events that were added to the log together."""


class News:
    """One Redis stream. Safe to use from many threads, but for reading."""

    def __init__(self, url: str, name: str, *, timeout_ms: float) -> None:
        """Connect; what is told from now on will be read.

        Args:
            url: of Redis, e.g. `redis://127.0.0.1:6379/0`.
            name: of the stream: the same for all servers of a log.
            timeout_ms: of a round trip.

        Raises:
            ConfigError: the library is missing, or the URL is none. That Redis is out of reach is
                no error: it may come back.
        """
        try:
            import redis
            from redis.retry import Retry
        except ImportError as error:
            raise ConfigError("redis: `pip install adrec[redis]` first") from error
        seconds = timeout_ms / 1000.0
        try:
            self._redis = redis.Redis.from_url(
                url, socket_timeout=seconds, socket_connect_timeout=seconds,
                retry=Retry(redis.backoff.NoBackoff(), 0),
            )  # fmt: skip
        except ValueError:  # which may repeat a password out of the URL, as may its cause
            raise ConfigError(
                "redis: what is set is no URL of a Redis server, such as redis://HOST:6379/0"
            ) from None
        self._down = redis.RedisError
        self._name = f"adrec:{name}"
        self._place: str | None = None  # of the last message that was read; None: not known yet
        self._down_until = 0.0
        self._to_forget = False
        self.read()

    @property
    def within_reach(self) -> bool:
        """Whether the last round trip came back."""
        return time.monotonic() >= self._down_until

    def publish(self, slates: Sequence[LoggedSlate], events: Sequence[Event]) -> None:
        """Tell what was added to the log. If it cannot be told, the log is read in its place."""
        if not events or not self.within_reach or not self._is_forgotten():
            return
        theirs = {event.request_id for event in events}
        message = {
            "slates": [asdict(slate) for slate in slates if slate.request_id in theirs],
            "events": [asdict(event) for event in events],
        }
        try:
            self._redis.xadd(
                self._name, {"message": json.dumps(message)}, maxlen=_KEPT, approximate=True
            )
        except self._down as error:
            self._failed(error)

    def read(self) -> list[Message] | None:
        """What was told since the last time, by any server; None if that is out of reach, or some
        of it cannot be read: the log has it."""
        if not self.within_reach or not self._is_forgotten():
            return None
        try:
            if self._place is None:
                newest: Any = self._redis.xrevrange(self._name, count=1)
                self._place = newest[0][0].decode() if newest else "0-0"
                return []
            entries: list[Any] = []
            while True:
                found: Any = self._redis.xread({self._name: self._place}, count=_MOST)
                part = found[0][1] if found else []
                entries += part
                if part:
                    self._place = part[-1][0].decode()
                if len(part) < _MOST or len(entries) >= _KEPT:
                    return [_message(entry[b"message"]) for _, entry in entries]
        except (TypeError, KeyError, ValueError) as error:
            _log.warning("news that cannot be read, of another release? %s", error)
            return None
        except self._down as error:
            self._failed(error)
            return None

    def forget(self) -> None:
        """Keep nothing of what was told: whoever has not read it reads the log. If Redis is out of
        reach, this is done before anything else once it is back."""
        self._to_forget = True
        self._is_forgotten()

    def close(self) -> None:
        """Let go of all connections."""
        self._redis.close()

    def _is_forgotten(self) -> bool:
        """Whether nothing is left in Redis that is to be forgotten."""
        if self._to_forget:
            self._to_forget = False
            try:
                self._redis.delete(self._name)
            except self._down as error:
                self._to_forget = True
                self._failed(error)
                return False
        return True

    def _failed(self, error: Exception) -> None:
        self._down_until = time.monotonic() + _PAUSE_S
        _log.warning("redis is out of reach: %s", error)


def _message(content: bytes) -> Message:
    found = json.loads(content)
    slates = [
        LoggedSlate(**{**slate, "ads": tuple(Shown(**ad) for ad in slate["ads"])})
        for slate in found["slates"]
    ]
    return slates, [Event(**event) for event in found["events"]]
