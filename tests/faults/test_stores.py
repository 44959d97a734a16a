"""Redis and PostgreSQL killed, stalled and restarted under load."""

import asyncio
import shutil
import threading
import time
from pathlib import Path

import pytest

from adrec.data.event_log import EventLog
from adrec.serving.loadtest import Load, run_load
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
