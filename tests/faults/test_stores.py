"""Redis and PostgreSQL killed, stalled and restarted under load, and a full disk."""

import asyncio
import resource
import shutil
import threading
import time
from pathlib import Path

import httpx2
import pytest

from adrec.data.event_log import EventLog
from adrec.serving.loadtest import Load, run_load
from serving.events import event
from serving.processes import serving
from serving.stores import Postgres, Redis

SLOW = ("--set", "timeout_ms=20000")
USERS = [str(i) for i in range(1, 50)]


@pytest.fixture
def run_copy(tiny_run, tmp_path):
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def under_load(server, form, *steps):
    """Send requests and events; after a second, and then after each outage, take a step."""

    def take_steps():
        time.sleep(1.0)
        for step in steps:
            step()
            time.sleep(form.outage_s)

    steering = threading.Thread(target=take_steps)
    steering.start()
    seconds = 3.0 + form.outage_s * len(steps)
    found = asyncio.run(run_load(server.url, Load(form.rate, seconds, USERS)))
    steering.join()
    return found


def answered(found):
    """Every request was, or was refused for lack of time: there was no 5xx."""
    assert set(found.status) <= {200, 429}
    assert found.status.count(200) >= 0.9 * len(found.status)


def logged(url):
    log = EventLog(url)
    there = [event.event_id for event, _ in log.events()]
    log.close()
    assert len(there) == len(set(there))
    return set(there)


@pytest.mark.parametrize("outage", ["stall", "kill"])
def test_redis_stalls_or_dies(run_copy, tmp_path, form, outage):
    redis = Redis(tmp_path)
    back = redis.resume if outage == "stall" else redis.start
    try:
        with serving(run_copy, *SLOW, "--set", f"redis={redis.url}") as server:
            found = under_load(server, form, getattr(redis, outage), back)
            assert server.stop() == 0
        answered(found)
        assert 0 < found.degraded < len(found.status)
        last = found.due[-1]
        assert found.summary(last - 1.0)["answered"] > 0
        assert set(found.events) == {200}  # the log was there all the time
        assert set(found.acknowledged) <= logged(f"sqlite:///{run_copy / 'events.db'}")
    finally:
        redis.close()


def test_postgresql_is_restarted(run_copy, form):
    postgres = Postgres()
    try:
        with serving(run_copy, *SLOW, "--events", postgres.url) as server:
            found = under_load(server, form, postgres.stop, postgres.start)
            assert server.stop() == 0
        answered(found)
        assert set(found.events) <= {200, 503}  # 503: send them again
        assert found.events[503] > 0
        assert found.events[200] > 0
        assert set(found.acknowledged) <= logged(postgres.url)
    finally:
        postgres.close()


def test_postgresql_stalls(run_copy, form):
    """Longer than a report waits; in the long form also than the server's own deadlines of
    statements."""
    postgres = Postgres()
    try:
        patience = ("--set", "events_timeout_s=1")
        with serving(run_copy, *SLOW, *patience, "--events", postgres.url) as server:
            found = under_load(server, form, postgres.stall, postgres.resume)
            assert server.stop() == 0
        answered(found)
        assert set(found.events) <= {200, 503}
        assert found.events[503] > 0
        assert set(found.acknowledged) <= logged(postgres.url)
        assert found.summary(found.due[-1] - 1.0)["events_failed"] == 0
    finally:
        postgres.close()


def test_a_full_disk(run_copy):
    """The server cannot write any more, says so, answers all the same, and recovers by itself."""
    with serving(run_copy, *SLOW) as server, httpx2.Client(base_url=server.url) as client:

        def recommend():
            found = client.post("/v1/recommend", json={"user": "17"}, timeout=60.0)
            assert found.status_code == 200
            return found.json()

        def report(answer):
            return client.post("/v1/events", json={"events": [event(answer)]}, timeout=60.0)

        assert report(recommend()).json()["accepted"] == 1
        unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1_024, unlimited[1]))
        answers = [recommend() for _ in range(3)]
        for answer in answers:
            found = report(answer)
            assert (found.status_code, found.headers["retry-after"]) == (503, "1")
        assert client.get("/v2/health/ready").status_code == 503
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
        assert client.get("/v2/health/ready").status_code == 200
        assert [report(answer).json()["accepted"] for answer in answers] == [1, 1, 1]
        assert server.stop() == 0
    assert len(logged(f"sqlite:///{run_copy / 'events.db'}")) == 4
