"""kill -9 at random instants: nothing acknowledged is lost, nothing is there twice, and there is
always a version to load."""

import asyncio
import contextlib
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adrec.bundle import Bundle
from adrec.data.event_log import EventLog
from adrec.serving.loadtest import Load, run_load
from serving.processes import serving

HERE = Path(__file__).parent


def start(script, *arguments):
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill_after(process, first_line, seconds):
    """Wait for a first line, let it go on for a while, kill it; all lines that are whole."""
    lines = [process.stdout.readline()]
    assert first_line in lines[0], lines
    time.sleep(seconds)
    process.kill()
    rest, _ = process.communicate()
    return [line.rstrip("\n") for line in [*lines, *rest.splitlines(True)] if line.endswith("\n")]


def test_no_acknowledged_event_is_lost_or_there_twice(tmp_path, form):
    file, said = tmp_path / "events.db", set()
    for kill in range(form.kills):
        writer = start("writer.py", file, f"k{kill}")
        said |= set(kill_after(writer, f"k{kill}", random.uniform(0.0, 0.15)))
    log = EventLog.in_file(file)
    there = [event.event_id for event, _ in log.events()]
    assert len(there) == len(set(there))
    assert said <= set(there)
    assert len(said) > form.kills
    # A client that has not heard sends again: it counts once.
    events = [event for event, _ in log.events()][:50]
    assert log.append([], events) == []
    log.close()


def test_a_server_killed_under_load(tiny_run, tmp_path, form):
    """What it has acknowledged is there for the next one, and its processes have ended."""
    run, said = Path(shutil.copytree(tiny_run, tmp_path / "run")), []
    load = Load(20.0, 3.0, [str(i) for i in range(1, 50)], timeout_ms=20_000.0)
    for _ in range(form.servers):
        with serving(run) as server, ThreadPoolExecutor(1) as pool:
            loading = pool.submit(lambda url=server.url: asyncio.run(run_load(url, load)))
            time.sleep(random.uniform(0.5, 2.5))
            assert len(processes_of(run)) >= 2
            server.process.kill()
            found = loading.result()
        said.append(found.acknowledged)
        assert 200 in found.status
    log = EventLog.in_file(run / "events.db")
    there = [event.event_id for event, _ in log.events()]
    log.close()
    assert len(there) == len(set(there))
    assert all(said)
    assert {event_id for some in said for event_id in some} <= set(there)
    deadline = time.monotonic() + 30.0
    while left := processes_of(run):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def processes_of(run):
    """Processes that have a file of a run mapped."""
    found = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if str(run) in maps.read_text():
                found.append(int(maps.parent.name))
    return found


def test_there_is_always_a_version_to_load(tiny_run, tmp_path, form):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    for _ in range(form.kills):
        publisher = start("publisher.py", run)
        kill_after(publisher, "published", random.uniform(0.0, 0.3))
        Bundle.open(run)  # verifies every file


@pytest.mark.parametrize("most_bytes", [200_000, 400_000])
def test_a_file_that_may_grow_no_more_is_told_and_loses_nothing(tmp_path, most_bytes):
    """The limit of a file's size stands for a full disk: a write of SQLite fails."""
    writer = start("writer.py", tmp_path / "events.db", "w", most_bytes)
    lines, _ = writer.communicate(timeout=60)
    said = {line for line in lines.splitlines() if not line.startswith("error")}
    errors = [line for line in lines.splitlines() if line.startswith("error")]
    assert writer.returncode == 0
    assert len(errors) == 4
    assert all("event log sqlite:///" in line and "disk" in line for line in errors)
    log = EventLog.in_file(tmp_path / "events.db")
    assert said <= {event.event_id for event, _ in log.events()}
    assert said
    log.close()


def test_a_full_disk(tmp_path):
    """A file system of two megabytes, where it may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        writer = start("writer.py", disk / "events.db", "w")
        lines, _ = writer.communicate(timeout=60)
        assert any("full" in line or "disk" in line for line in lines.splitlines()[-4:])
        said = {line for line in lines.splitlines() if not line.startswith("error")}
        moved = Path(shutil.copytree(disk, tmp_path / "moved"))
        log = EventLog.in_file(moved / "events.db")
        assert said <= {event.event_id for event, _ in log.events()}
        log.close()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
