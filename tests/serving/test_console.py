"""The console in a real browser."""

import html
import re
import subprocess

import pytest

from serving.events import event
from serving.processes import serving
from serving.stores import need


def page(chromium, url, tmp_path):
    """The page as it stands after a few seconds, as text."""
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=6000",
            "--dump-dom", url,
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    body = done.stdout.partition("<script>")[0]
    assert body, done.stderr
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body)))


@pytest.fixture
def chromium():
    return need("chromium", "chromium")


def test_it_shows_what_the_server_does(run_copy, tmp_path, chromium):
    import httpx2

    with serving(run_copy, "--set", "timeout_ms=20000") as server:
        answer = httpx2.post(f"{server.url}/v1/recommend", json={"user": "17"}).json()
        events = [event(answer, ad=ad) for ad in range(10)] + [event(answer, "click")]
        assert httpx2.post(f"{server.url}/v1/events", json={"events": events}).status_code == 200
        text = page(chromium, f"{server.url}/console#17", tmp_path)
        again = httpx2.post(f"{server.url}/v1/recommend", json={"user": "17", "explain": True})
        assert server.stop() == 0
    assert f"version {server.version}" in text
    assert " live " in text
    assert "10.00%" in text  # click rate: one of ten
    assert "400 ads" in text
    ads = [ad["ad_id"] for ad in again.json()["ads"]]
    position = [text.find(f" {place} {ad} ") for place, ad in enumerate(ads, start=1)]
    assert min(position) > 0  # the ads that user 17 gets, in their order
    assert position == sorted(position)
    assert 'history "' in text
    for stage in ("features", "retrieve", "rank", "order"):
        assert re.search(rf"{stage} [\d.]+ ms", text)


def test_its_headers_let_nothing_in(server):
    found = server.http.get("/console")
    assert found.status_code == 200
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "http://" not in found.text.replace("http://www.w3.org/2000/svg", "")
