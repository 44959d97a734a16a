"""The page of all requests: it is whole without any other server, and its examples run."""

import json
import re
from html.parser import HTMLParser
from urllib.parse import urljoin

import pytest

from serving.browser import looking_at
from serving.processes import serving
from serving.stores import need

TOKEN = "token-of-a-test-0123"
APPS = pytest.mark.parametrize("app", ["http", "admin"])


class Assets(HTMLParser):
    """What a page has a browser load."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href")]


@APPS
def test_all_of_it_is_here(serve, app):
    """Also to who has no token."""
    client = getattr(serve(events_token=TOKEN, admin_token=TOKEN), app)
    page = client.get("/docs")
    assert page.status_code == 200
    kinds = set()
    assets = Assets(page.text).found
    for asset in [*assets, "openapi.json"]:
        assert not re.match(r"\w+:|//", asset)
        found = client.get(urljoin("/docs", asset))
        assert found.status_code == 200, asset
        kinds.add(found.headers["content-type"].partition(";")[0])
    assert kinds == {"text/javascript", "text/css", "image/png", "application/json"}
    script = next(asset for asset in assets if asset.endswith(".js"))
    assert 'PACKAGE_VERSION:"5.' in client.get(urljoin("/docs", script)).text
    assert client.get("/redoc").status_code == 404


@APPS
def test_its_headers_let_nothing_in(server, app):
    policy = getattr(server, app).get("/docs").headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == "'none'"
    assert rules["connect-src"] == rules["style-src"] == "'self'"
    assert re.fullmatch(r"'self' 'sha256-[\w+/]{43}='", rules["script-src"])
    assert "unsafe" not in policy
    assert "http" not in policy


def test_it_asks_for_a_token_where_one_is_needed(serve):
    def needing(document):
        return {
            f"{method} {path}"
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
            if operation.get("security") == [{"HTTPBearer": []}]
        }

    server = serve()
    for client in (server.http, server.admin):
        assert not needing(client.get("/openapi.json").json())
    server = serve(events_token=TOKEN, admin_token=TOKEN)
    document = server.http.get("/openapi.json").json()
    assert document["components"]["securitySchemes"] == {
        "HTTPBearer": {"type": "http", "scheme": "bearer"}
    }
    assert needing(document) == {
        "post /v1/events", "put /v1/ads", "put /v1/ads/{ad_id}/status", "delete /v1/ads/{ad_id}",
        "get /v1/users/{user_id}",
    }  # fmt: skip
    admin = server.admin.get("/openapi.json").json()
    assert len(needing(admin)) == len(admin["paths"])


@pytest.mark.parametrize(
    ("method", "path", "model"),
    [
        ("POST", "/v1/recommend", "RecommendIn"),
        ("POST", "/v1/events", "EventIn"),
        ("PUT", "/v1/ads", "AdsIn"),
    ],
)
def test_its_examples_run(server, method, path, model):
    schemas = server.http.get("/openapi.json").json()["components"]["schemas"]
    example = schemas[model]["example"]
    body = {"events": [example]} if model == "EventIn" else example
    found = server.http.request(method, path, json=body)
    assert found.status_code in (200, 204), found.text
    assert not (found.content and found.json().get("rejected"))


def test_a_browser_shows_the_requests_and_sends_them(run_copy, tmp_path):
    tokens = {"ADREC_EVENTS_TOKEN": TOKEN, "ADREC_ADMIN_TOKEN": TOKEN}
    chromium = need("chromium", "chromium")
    with serving(run_copy, "--set", "answer_in=threads", env=tokens) as server:
        with looking_at(f"{server.url}/docs", chromium, tmp_path / "browser") as page:
            assert {"/v1/recommend", "/v1/events", "/openrtb2/bid"} <= set(operations(page))
            assert loaded_from(page) == {server.url}
            page.call("Page.navigate", url=f"{server.admin}/docs")
            assert "/admin/prune" in operations(page)
            click(page, ".btn.authorize")
            page.until("document.querySelector('.auth-container input') != null")
            page.type(".auth-container input", TOKEN)
            click(page, ".btn-done")
            click(page, "[data-path='/admin/prune'] *")
            click(page, ".try-out__btn")
            click(page, ".btn.execute")
            page.until("document.querySelector('.live-responses-table td') != null")
            answer = page.evaluate("document.querySelector('.live-responses-table').innerText")
            assert loaded_from(page) == {server.admin}
        assert server.stop() == 0
    assert re.search(r'\b200\b.*"slates": 0', answer, re.DOTALL)


def operations(page):
    page.until("document.querySelector('.opblock') != null")
    return page.evaluate(
        "[...document.querySelectorAll('.opblock-summary-path')].map(one => one.dataset.path)"
    )


def loaded_from(page):
    origins = "performance.getEntriesByType('resource').map(one => new URL(one.name).origin)"
    return set(page.evaluate(origins)) - {"null"}  # pictures in the style sheet


def click(page, place):
    place = f"document.querySelector({json.dumps(place)})"
    page.until(f"{place} != null")
    page.evaluate(f"{place}.click()")
