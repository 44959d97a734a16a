"""Errors become status codes.

422 is for what cannot be answered as it was asked, 429 for what cannot be answered in time, 503 for
events that cannot be written, and 409 for a version that is damaged. `guard.py` adds 413 for bodies
that are too large.
"""

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from adrec.errors import AdRecError, BundleError, DataError, EventLogError, OverloadError
from adrec.errors import RequestError as AskedWrongError

_TOLD = 10  # problems of a body, at most


def handle_errors(app: FastAPI) -> None:
    """Have an application answer errors."""
    statuses: dict[type[AdRecError], int] = {
        AskedWrongError: 422,
        DataError: 422,
        OverloadError: 429,
        EventLogError: 503,
        BundleError: 409,
    }

    async def handle(request: Request, error: Exception) -> Response:
        status = next(code for kind, code in statuses.items() if isinstance(error, kind))
        headers = {"Retry-After": "1"} if status in (429, 503) else {}
        return JSONResponse({"detail": str(error)}, status, headers)

    async def handle_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        problems = [  # without the values: they may be long, or no JSON
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()
        ]
        more = f"; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
        status = 400 if request.url.path.startswith("/openrtb2/") else 422
        return JSONResponse({"detail": "; ".join(problems[:_TOLD]) + more}, status)

    for kind in statuses:
        app.add_exception_handler(kind, handle)
    app.add_exception_handler(RequestValidationError, handle_invalid)
