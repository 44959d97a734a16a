"""Guard: what every HTTP request goes through first and last.

It refuses bodies that are too large, gives the request an id (the client's own, where it brought
one in `x-request-id`), counts it and tells how long it took, and logs what failed.
"""

import logging
import re
import time
import uuid

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adrec.serving.logs import request_id
from adrec.serving.metrics import Metrics

_HEADER = b"x-request-id"
_SOUND_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

_log = logging.getLogger(__name__)


class Guard:
    """Middleware; see above."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, most_bytes: int, *, log_requests: bool = False
    ) -> None:
        """Stand before an application.

        Args:
            app: that answers.
            metrics: count.
            most_bytes: of a body.
            log_requests: whether to log every request, not only what failed.
        """
        self._app, self._metrics = app, metrics
        self._most_bytes, self._log_requests = most_bytes, log_requests

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
            if announced.isdigit() and int(announced) > self._most_bytes:
                await JSONResponse({"detail": why}, 413)(scope, receive, send_noting)
            else:
                await self._app(scope, receive_some, send_noting)
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            raise
        finally:
            seconds = time.perf_counter() - begun
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            if self._log_requests:
                fields = {"status": status, "ms": round(seconds * 1000.0, 2)}
                line = "%s %s", scope["method"], scope["path"]
                _log.info(*line, extra={"fields": fields})
