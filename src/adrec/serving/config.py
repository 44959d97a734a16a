"""What a server is told: where it listens, what it allows, who may do what."""

import ipaddress
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, model_validator

from adrec.schema import Strict
from adrec.serving.batching import BatchingConfig
from adrec.serving.openrtb import OpenRtbConfig

TOKENS = {"events_token": "ADREC_EVENTS_TOKEN", "admin_token": "ADREC_ADMIN_TOKEN"}
"""Environment variables that tokens come from."""

_TOKEN_LENGTH = 16


def _long_enough(token: SecretStr, info: ValidationInfo) -> SecretStr:
    if len(token) < _TOKEN_LENGTH:
        raise ValueError(
            f"a token needs at least {_TOKEN_LENGTH} characters, this one has {len(token)}; set "
            f"{TOKENS[info.field_name or '']} in the environment"
        )
    return token


Token = Annotated[SecretStr, AfterValidator(_long_enough)]


class Limits(Strict):
    """What a request may be; more is refused with its reason."""

    body_bytes: int = Field(default=1_000_000, ge=1_000)
    """Of a body."""
    requests: int = Field(default=64, ge=1)
    """Requests in a batch."""
    events: int = Field(default=1_000, ge=1)
    """Events in a body."""
    ads: int = Field(default=1_000, ge=1)
    """Ads in a body, and of an answer that lists them."""
    k: int = Field(default=100, ge=1)
    """Ads of an answer."""


class ServerConfig(Strict):
    """A server of one model version."""

    host: str = "127.0.0.1"
    """Address to listen at, of the requests' port and of the admin's."""
    port: int = Field(default=8000, ge=0, le=65_535)
    """Of the requests; 0: any that is free."""
    admin_port: int = Field(default=8001, ge=0, le=65_535)
    """Of the commands that change what is served; 0: any that is free."""
    timeout_ms: float = Field(default=200.0, gt=0.0, le=60_000.0)
    """Deadline of a request that brings none."""
    events_token: Token | None = None
    """What `Authorization: Bearer` has to hold to report events, to change ads and to read what is
    known of a user; None: anyone may."""
    admin_token: Token | None = None
    """The same for the admin's port; None: anyone who reaches it."""
    open: bool = False
    """Whether other machines may do all that without tokens, as something else keeps strangers
    out."""
    events: str | None = None
    """SQLAlchemy URL of the event log. None: SQLite in the run's folder, `events.db`."""
    redis: str | None = None
    """URL of a Redis server through which several servers of one log tell each other the news
    before the next answer; None: each looks into the log every `follow_ms`."""
    redis_timeout_ms: float = Field(default=20.0, gt=0.0, le=1_000.0)
    """Longest that an answer waits for Redis; then it goes on without, and says so."""
    follow_ms: float = Field(default=50.0, gt=0.0, le=60_000.0)
    """How often the log is looked into for what other servers have written."""
    answer_in: Literal["processes", "threads"] = "processes"
    """Where answers are worked out. `processes`: in `batching.at_once` processes of their own, so
    that neither each other, nor the server, nor a version that is loaded holds them up. `threads`:
    in the server's own process, which takes less memory."""
    workers: int = Field(default=1, ge=1, le=256)
    """Processes that serve on the same ports; they share the memory of the index."""
    events_timeout_s: float = Field(default=5.0, gt=0.0, le=60.0)
    """Longest that a report of events waits to be written; then the client is told to send it
    again."""
    keep_days: int | None = Field(default=None, ge=1)
    """Days after which slates and events are deleted; None: never."""
    sample: float = Field(default=0.001, ge=0.0, le=1.0)
    """Share of answers of which the log keeps what the models were told, for `adrec log check`."""
    log_requests: bool = False
    """Whether every request is logged, not only what failed."""
    drain_s: float = Field(default=10.0, ge=0.0)
    """Longest that requests in work are waited for at the end."""
    batching: BatchingConfig = BatchingConfig()
    openrtb: OpenRtbConfig = OpenRtbConfig()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _keep_strangers_out(self) -> Self:
        missing = [name for field, name in TOKENS.items() if getattr(self, field) is None]
        if missing and not self.open and not _is_loopback(self.host):
            raise ValueError(
                f"whoever reaches host '{self.host}' could change what is served: set "
                f"{' and '.join(missing)} in the environment, or `open` to true where something "
                "else keeps strangers out"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
