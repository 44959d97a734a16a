"""Logs: one JSON object a line, each with the request that it is of."""

import datetime as dt
import json
import logging
import sys
from contextvars import ContextVar

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request that is being answered."""


class JsonLines(logging.Formatter):
    """Records as JSON, with what was given as `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        at = dt.datetime.fromtimestamp(record.created, dt.UTC)
        content = {
            "at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (current := request_id.get()) is not None:
            content["request_id"] = current
        content |= getattr(record, "fields", {})
        if record.exc_info:
            content["error"] = self.formatException(record.exc_info)
        return json.dumps(content)


def log_to_stderr() -> None:
    """Have all of the process's logs go to stderr in this form, from `info` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
