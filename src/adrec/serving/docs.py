"""Docs: the page on which every request stands and can be tried, with nothing from elsewhere.

It is Swagger UI, whose files the package `fastapi-swagger` carries. The browser is told to load
from this server only, and to run nothing but those files and the line that starts them.
"""

import base64
import hashlib
from html import escape

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

_START = """SwaggerUIBundle({
  url: "openapi.json", dom_id: "#docs", deepLinking: true, displayRequestDuration: true,
  validatorUrl: null,
})"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="docs/files/favicon-32x32.png">
<link rel="stylesheet" href="docs/files/swagger-ui.css">
</head>
<body>
<div id="docs"></div>
<script src="docs/files/swagger-ui-bundle.js"></script>
<script>{start}</script>
</body>
</html>
"""


def only(script: str) -> str:
    """The source of scripts that lets a browser run this one, for a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def add_docs(app: FastAPI) -> None:
    """Have an application show its requests at `/docs`; no token is needed to see them."""
    headers = {
        "content-security-policy": f"default-src 'none'; script-src 'self' {only(_START)}; "
        "style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'",
    }
    page = _PAGE.format(title=escape(app.title), start=_START)

    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    app.add_route("/docs", docs, include_in_schema=False)
    app.mount("/docs/files", StaticFiles(packages=[("fastapi_swagger", "resources")]))
