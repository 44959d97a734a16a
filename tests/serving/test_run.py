"""`adrec serve` in a process of its own, and what loads it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
import uvloop

from adrec.data.event_log import EventLog
from adrec.errors import ConfigError
from adrec.serving.loadtest import Load, run_load
from adrec.serving.run import listen
from serving.processes import serving


def events_of(run):
    log = EventLog.in_file(run / "events.db")
    try:
        return {event.event_id for event, _ in log.events()}
    finally:
        log.close()


def family(pid):
    """A process, and all that it has started."""
    found = [pid]
    for one in found:
        started = Path("/proc").glob(f"{one}/task/*/children")
        found += [int(child) for text in started for child in text.read_text().split()]
    return found


def test_it_serves_and_ends_by_a_signal_without_losing_anything(run_copy):
    """Requests are on their way when the signal comes: each is answered, what was acknowledged is
    in the log, and the process ends with code 0."""
    with serving(run_copy, "--set", "timeout_ms=10000") as server:
        assert server.url.startswith("http://127.0.0.1:")
        ready = httpx2.get(f"{server.url}/v2/health/ready", timeout=30)
        assert ready.json() == {"status": "ready"}
        load = Load(rate=30.0, seconds=4.0, users=["1", "2", "new here"], clicked=0.5)

        def stop(seconds):
            if int(seconds) == 2:
                server.process.send_signal(signal.SIGTERM)

        found = asyncio.run(run_load(server.url, load, tell=stop))
        assert server.process.wait(timeout=60) == 0
        assert server.lines[-1] == "stopped"
    answered = [due for due, status in zip(found.due, found.status, strict=True) if status == 200]
    assert len(answered) > 30
    assert set(found.status) <= {200, 0}  # after the signal no connection is taken
    assert set(found.version) <= {server.version, ""}
    assert found.acknowledged
    assert events_of(run_copy) >= set(found.acknowledged)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_only_the_server_itself_ends_by_a_signal(run_copy):
    """Who stops a service may signal all of its processes; those that answer are needed yet."""
    with serving(run_copy, "--set", "timeout_ms=10000", "--set", "follow_ms=20") as server:
        others = family(server.process.pid)[1:]
        assert len(others) > 1
        for pid in others:
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.5)  # in which it would have seen that they are gone
        answer = httpx2.post(f"{server.url}/v1/recommend", json={"user": "1"}, timeout=30)
        assert answer.status_code == 200
        assert family(server.process.pid)[1:] == others
        assert server.stop() == 0


def loadtest(url, *arguments):
    command = [sys.executable, "-m", "adrec.cli", "loadtest", url, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_loadtest_reports_what_came_of_it(run_copy, tmp_path):
    rate = ("--rate", 20, "--seconds", 2)
    with serving(run_copy, "--set", "timeout_ms=10000") as server:
        done = loadtest(server.url, *rate, "--reported", 1, "--json", tmp_path / "load.json")
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / "load.json").read_text())
        assert found["sent"] == found["answered"] == found["events"] > 10
        assert found["failed"] == found["events_failed"] == 0
        assert 0.0 < found["p50_ms"] <= found["p99_ms"]
        assert "goodput" in done.stdout
        (tmp_path / "users").write_text("one with a space\n\n17\n")
        done = loadtest(server.url, *rate, "--users", tmp_path / "users", "--timeout-ms", 0.001)
        assert (done.returncode, "goodput" in done.stdout) == (0, True), done.stderr
        (tmp_path / "users").write_text("\n")
        done = loadtest(server.url, *rate, "--users", tmp_path / "users")
        assert (done.returncode, "no user's id" in done.stderr) == (2, True)
        server.stop()
    assert loadtest(server.url, *rate).returncode == 1


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen at 127.0.0.1, port {port}"):
            listen("127.0.0.1", port).close()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_answers_do_not_wait_for_the_clients_acknowledgement(loop_factory):
    """A connection that is taken sends small pieces at once, whichever event loop took it."""

    async def at_once():
        found = asyncio.get_running_loop().create_future()

        def taken(_, writer):
            taken_by = writer.get_extra_info("socket")
            found.set_result(taken_by.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        server = await asyncio.start_server(taken, sock=listen("127.0.0.1", 0))
        async with server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.close()
            return await found

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(at_once()) != 0


def test_a_request_that_stalls_does_not_keep_it_from_ending(run_copy):
    with serving(run_copy, "--set", "drain_s=1") as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"
            )
            time.sleep(0.3)
            begun = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - begun < 20
