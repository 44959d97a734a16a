"""Guard: what every HTTP request goes through first and last.

It refuses bodies that are too large and what pages of other servers would have a browser change,
gives the request an id (the client's own, where it brought one in `x-request-id`), counts it and
tells how long it took, and logs what failed.
"""

import logging
import re
import time
import uuid
from collections.abc import Mapping

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adrec.serving.logs import request_id
from adrec.serving.metrics import Metrics

_HEADER = b"x-request-id"
_SOUND_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_ORIGIN = re.compile(rb"https?://([^/]+)")
_ADDRESS = re.compile(rb"(localhost|[0-9.]+|\[[0-9a-f:.]+\])(:[0-9]+)?")
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_FOR_ANY_PAGE = ("/v1/recommend", "/openrtb2/")

_log = logging.getLogger(__name__)


class Guard:
    """Middleware; see above."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        most_bytes: int,
        *,
        by_token: bool = False,
        log_requests: bool = False,
    ) -> None:
        """Stand before an application.

        Args:
            app: that answers.
            metrics: count.
            most_bytes: of a body.
            by_token: whether a token is needed to change something.
            log_requests: whether to log every request, not only what failed.
        """
        self._app, self._metrics = app, metrics
        self._most_bytes, self._log_requests = most_bytes, log_requests
        self._by_token = by_token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, seen, status = time.perf_counter(), 0, 500
        why = f"the body is larger than {self._most_bytes:,} bytes"
        headers = dict(scope["headers"])
        given = headers.get(_HEADER, b"")
        mine = given if _SOUND_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        request_id.set(mine.decode())

        async def receive_some() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most_bytes:
                raise HTTPException(413, why)
            return message

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (_HEADER, mine)]
            await send(message)

        try:
            announced = headers.get(b"content-length", b"0")
            if (foreign := self._why_foreign(scope, headers)) is not None:
                await JSONResponse({"detail": foreign}, 403)(scope, receive, send_noting)
            elif announced.isdigit() and int(announced) > self._most_bytes:
                await JSONResponse({"detail": why}, 413)(scope, receive, send_noting)
            else:
                await self._app(scope, receive_some, send_noting)
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            raise
        finally:
            seconds = time.perf_counter() - begun
            route = getattr(scope.get("route"), "path_format", "none")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            if self._log_requests:
                fields = {"status": status, "ms": round(seconds * 1000.0, 2)}
                line = "%s %s", scope["method"], scope["path"]
                _log.info(*line, extra={"fields": fields})

    def _why_foreign(self, scope: Scope, headers: Mapping[bytes, bytes]) -> str | None:
        """Why a browser may not send this for the page that it shows; None if it may.

        A page is this server's own if it came from where the request goes to. Without a token that
        has to be an address: whoever owns a name can have it lead here (DNS rebinding).
        """
        origin = headers.get(b"origin")
        if origin is None or scope["method"] in _READS or scope["path"].startswith(_FOR_ANY_PAGE):
            return None
        page = _ORIGIN.fullmatch(origin.lower())
        if page is None or page[1] != headers.get(b"host", b"").lower():
            return (
                "a page of another server may change nothing here; is this one's own behind a "
                "proxy, that has to pass `Host` on"
            )
        if not self._by_token and not _ADDRESS.fullmatch(page[1]):
            return (
                "without a token a page may change something only if it was opened by an address "
                "or as localhost"
            )
        return None
