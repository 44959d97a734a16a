"""The console in a real browser."""

import re

import pytest

from serving.browser import looking_at
from serving.events import event
from serving.processes import serving
from serving.stores import need


@pytest.fixture
def chromium():
    return need("chromium", "chromium")


def test_it_shows_what_the_server_does(run_copy, tmp_path, chromium):
    import httpx2

    with serving(run_copy, "--set", "timeout_ms=20000") as server:
        answer = httpx2.post(f"{server.url}/v1/recommend", json={"user": "17"}).json()
        events = [event(answer, ad=ad) for ad in range(10)] + [event(answer, "click")]
        assert httpx2.post(f"{server.url}/v1/events", json={"events": events}).status_code == 200
        with looking_at(f"{server.url}/console#17", chromium, tmp_path / "browser") as page:
            page.until("last && document.querySelectorAll('#ads summary').length == 10")
            page.until("at('count').textContent")
            page.evaluate("document.querySelector('#ads summary').click()")
            text = page.text()
            head, *lines = page.evaluate(
                "[...document.querySelector('#ads table').rows].map("
                "line => [...line.cells].map(cell => cell.textContent))"
            )
            searches = {}
            for part in ("12", "no such ad", ""):
                page.evaluate("at('count').textContent = ''")
                page.type("#text", part)
                page.until("at('count').textContent")
                searches[part] = page.evaluate(
                    "[at('count').textContent, ...[...at('found').rows].slice(1).map("
                    "line => line.cells[0].textContent)]"
                )
        seen = httpx2.post(f"{server.url}/v1/recommend", json={"user": "17", "explain": True})
        found = httpx2.get(f"{server.url}/v1/ads", params={"search": "12", "limit": 12}).json()
        assert server.stop() == 0
    again = seen.json()
    assert f"version {server.version}" in text
    assert " live " in text
    assert "10.00%" in text  # click rate: one of ten
    assert "400 ads" in text
    position = [text.find(f" {place} {ad['ad_id']} ") for place, ad in enumerate(again["ads"], 1)]
    assert min(position) > 0  # the ads that user 17 gets, in their order
    assert position == sorted(position)
    assert 'history "' in text
    for stage in ("features", "retrieve", "rank", "order"):
        assert re.search(rf"{stage} [\d.]+ ms", text)
    names = [f"{line[0]}: {part}" for line in lines for part in head[1:]]
    assert names == again["seen"]["counter_names"]
    numbers = [float(number) for line in lines for number in line[1:]]
    first = again["seen"]["counters"][again["ads"][0]["ad_id"]]
    assert numbers == pytest.approx(first, abs=0.006)  # two digits
    assert searches["12"] == [f"{found['total']} ads", *(ad["ad_id"] for ad in found["ads"])]
    assert 0 < found["total"] < 400
    assert searches["no such ad"] == ["0 ads"]
    assert (searches[""][0], len(searches[""])) == ("400 ads", 13)


def test_its_headers_let_nothing_in(server):
    found = server.http.get("/console")
    assert found.status_code == 200
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "http://" not in found.text.replace("http://www.w3.org/2000/svg", "")
