"""What a browser may send for the page that it shows, and what the admin's port notes."""

import pytest

TOKEN = "token-of-a-test-0123"
HERE = "http://127.0.0.1:8000"
CHANGES = [
    ("http", "POST", "/v1/events"),
    ("http", "PUT", "/v1/ads"),
    ("http", "PUT", "/v1/ads/1/status"),
    ("http", "DELETE", "/v1/ads/1"),
    ("admin", "POST", "/admin/swap"),
    ("admin", "POST", "/admin/rollback"),
    ("admin", "POST", "/admin/prune"),
    ("admin", "DELETE", "/admin/users/17"),
]


def status(client, method, path, **headers):
    return client.request(method, path, headers=headers).status_code


@pytest.mark.parametrize(("client", "method", "path"), CHANGES)
def test_pages_of_other_servers_change_nothing(server, client, method, path):
    client = getattr(server, client)
    for origin in (
        "http://elsewhere.example", "http://127.0.0.1:9000", "https://127.0.0.1:8000.example",
        "null", "", "chrome-extension://abc", HERE + "/",
    ):  # fmt: skip
        assert status(client, method, path, host="127.0.0.1:8000", origin=origin) == 403, origin


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "[::1]:8000", "localhost", "LOCALHOST:8000"])
def test_its_own_page_may(server, host):
    for scheme in ("http", "https"):  # a proxy may have taken TLS off
        own = {"host": host, "origin": f"{scheme}://{host}"}
        assert status(server.admin, "POST", "/admin/prune", **own) == 200


def test_who_is_no_browser_may(server):
    assert status(server.admin, "POST", "/admin/prune", host="adrec.example") == 200


def test_a_name_that_leads_here_needs_a_token(serve):
    """Its owner may have had it lead elsewhere when the browser loaded the page."""
    named = {"host": "ads.example:8001", "origin": "http://ads.example:8001"}
    assert status(serve().admin, "POST", "/admin/prune", **named) == 403
    server = serve(admin_token=TOKEN)
    assert status(server.admin, "POST", "/admin/prune", **named) == 401
    named["authorization"] = f"Bearer {TOKEN}"
    assert status(server.admin, "POST", "/admin/prune", **named) == 200


def test_any_page_may_ask(server):
    elsewhere = {"origin": "https://shop.example"}
    for path, body in (
        ("/v1/recommend", {"user": "17"}),
        ("/openrtb2/bid", {"id": "1", "imp": [{"id": "1", "banner": {"w": 300, "h": 250}}]}),
    ):
        assert server.http.post(path, json=body, headers=elsewhere).status_code in (200, 204)
    assert status(server.http, "GET", "/v1/ads", **elsewhere) == 200


def test_the_admins_requests_are_noted_too(server):
    found = server.admin.post("/admin/prune", headers={"x-request-id": "mine-1"})
    assert found.headers["x-request-id"] == "mine-1"
    page = server.http.get("/metrics").text
    assert 'adrec_http_requests_total{route="/admin/prune",status="200"} 1.0' in page
