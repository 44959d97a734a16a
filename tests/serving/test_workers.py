"""Several processes on the same ports."""

import asyncio
import os
import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from adrec.serving import run
from adrec.serving.metrics import Metrics
from adrec.serving.run import listen
from serving.events import event
from serving.processes import serving
from serving.test_versions import publish_copy

PATIENCE_S = 60.0
SLOW = ("--set", "timeout_ms=20000")


def ask(server, **asked):
    """An answer over a connection of its own, which any worker may take."""
    found = httpx2.post(f"{server.url}/v1/recommend", json=asked, timeout=PATIENCE_S)
    assert found.status_code == 200, found.text
    return found.json()


def until(holds):
    """Wait until something holds 12 times in a row, whichever worker is asked."""
    deadline = time.monotonic() + PATIENCE_S
    row = 0
    while row < 12:
        assert time.monotonic() < deadline
        row = row + 1 if holds() else 0
        time.sleep(0.02)


def children(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def server(run_copy):
    with serving(run_copy, "--workers", 2, *SLOW) as server:
        yield server
        assert server.stop() == 0


def test_what_one_takes_in_the_others_know(server, run_copy):
    answer = ask(server, user="new here", k=2)
    body = {"events": [event(answer), event(answer, "click")]}
    assert httpx2.post(f"{server.url}/v1/events", json=body).json()["accepted"] == 2
    until(lambda: httpx2.get(f"{server.url}/v1/users/new here").json()["known"])
    ad = answer["ads"][0]["ad_id"]
    for status in ("paused", "active"):
        put = httpx2.put(f"{server.url}/v1/ads/{ad}/status", json={"status": status})
        assert put.status_code == 204
        until(
            lambda status=status: httpx2.get(f"{server.url}/v1/ads/{ad}").json()["status"] == status
        )
    assert httpx2.delete(f"{server.url}/v1/ads/{ad}").status_code == 204
    until(lambda: httpx2.get(f"{server.url}/v1/ads/{ad}").json()["status"] == "removed")

    second = publish_copy(run_copy, "29990101T000000-second").name
    found = httpx2.post(f"{server.admin}/admin/swap?version={second}", timeout=PATIENCE_S)
    assert found.json()["version"] == second
    until(lambda: ask(server, user="17")["version"] == second)
    page = httpx2.get(f"{server.url}/metrics").text
    assert 'adrec_events_total{kind="click",result="accepted"} 1.0' in page

    victim = children(server.process.pid)[0]
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while victim in children(server.process.pid) or len(children(server.process.pid)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # The one that was started anew answers with the version that was swapped to, and knows all.
    until(lambda: ask(server, user="17")["version"] == second)
    until(lambda: httpx2.get(f"{server.url}/v1/users/new here").json()["known"])


def test_workers_end_with_their_parent(run_copy):
    """However that ends: they would keep the ports, and nobody would replace them."""
    with serving(run_copy, "--workers", 2, *SLOW) as server:
        port, workers = urlsplit(server.url).port, children(server.process.pid)
        ask(server, user="17")
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        deadline = time.monotonic() + PATIENCE_S
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        listen("127.0.0.1", port).close()


def test_what_waits_is_told_by_whichever_worker_is_asked(monkeypatch, tmp_path):
    """Each keeps its own figures fresh."""
    waiting = [3.0]
    metrics = Metrics(waiting=lambda: waiting[0], unwritten=lambda: 0.0)

    async def a_while():
        task = asyncio.create_task(run._refresh(metrics))
        await asyncio.sleep(0.05)
        task.cancel()

    monkeypatch.setattr(metrics, "_asked", (lambda: 0.0, lambda: 0.0))
    metrics.refresh()
    monkeypatch.undo()
    asyncio.run(a_while())
    assert metrics._registry.get_sample_value("adrec_waiting") == 3.0


def test_all_drain(server):
    ready = f"{server.url}/v2/health/ready"
    until(lambda: httpx2.get(ready).status_code == 200)
    assert httpx2.post(f"{server.admin}/admin/drain").status_code == 204
    until(lambda: httpx2.get(ready).status_code == 503)
    ask(server, user="17")


def test_a_worker_that_cannot_start_ends_all(run_copy):
    with (
        pytest.raises(AssertionError, match="no server"),
        serving(run_copy, "--workers", 2, "--set", "openrtb.domain=nonsense"),
    ):
        pass
