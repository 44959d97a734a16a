"""Application: what the one of the requests and the one of the admin have in common."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, params
from pydantic import SecretStr

from adrec.serving.config import ServerConfig
from adrec.serving.docs import add_docs
from adrec.serving.guard import Guard
from adrec.serving.metrics import Metrics
from adrec.serving.statuses import handle_errors
from adrec.serving.wire import ErrorOut
from adrec.version import __version__

REFUSED: dict[str, Any] = {"model": ErrorOut}
"""An answer that says why there is none, for the OpenAPI document."""


def begin_app(
    title: str,
    config: ServerConfig,
    metrics: Metrics,
    *,
    token: SecretStr | None,
    refusals: Sequence[int],
    summary: str | None = None,
    dependencies: Sequence[params.Depends] = (),
) -> FastAPI:
    """An application without requests of its own: guarded, with its docs, errors become answers.

    Args:
        title: of the docs.
        config: of the server.
        metrics: count.
        token: that is needed to change something; None: none is.
        refusals: status codes with which any request may be refused.
        summary: of the docs.
        dependencies: of every request.
    """
    app = FastAPI(
        title=title,
        summary=summary,
        version=__version__,
        docs_url=None,
        redoc_url=None,
        dependencies=dependencies,
        responses=dict.fromkeys(refusals, REFUSED),
    )
    add_docs(app)
    app.add_middleware(
        Guard,
        metrics=metrics,
        most_bytes=config.limits.body_bytes,
        by_token=token is not None,
        log_requests=config.log_requests,
    )
    handle_errors(app)
    return app
