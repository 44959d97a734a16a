"""Answers from processes of their own: the same as from threads, whatever happens to a process."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial, partialmethod
from multiprocessing import forkserver
from pathlib import Path

import pytest

from adrec.bundle import find_version
from adrec.data.event_log import EventLog
from adrec.data.log_entries import Event
from adrec.errors import OverloadError
from adrec.serving import answerer_process
from adrec.serving.answerer_process import _started
from adrec.serving.answerers import Answerers
from adrec.serving.loaded import Ask
from adrec.serving.wire import RecommendIn
from adrec.slates import Request
from serving.asides import prepare_to_tell
from serving.clock import Clock
from serving.events import event
from serving.test_versions import DAY_MS, publish_copy, swap

PATIENCE_S = 60.0


def processes():
    return [one for one in multiprocessing.active_children() if one.name == "adrec-answers"]


def until(holds):
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(pid):
    """Whether a process, not necessarily a child, has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def of_each(server, path):
    """What each process says: while one is asked it is not free."""
    count, met = len(processes()), threading.Barrier(len(processes()))

    def ask(_):
        met.wait(PATIENCE_S)
        return [server.http.get(path).json() for _ in range(10)]

    with ThreadPoolExecutor(count) as pool:
        return [found for part in pool.map(ask, range(count)) for found in part]


class Deadly:
    """Whoever unpickles it ends."""

    def __reduce__(self):
        return os._exit, (3,)


class AskedDeadly(RecommendIn):
    def request(self, at_ms, *, explain):
        return Request(context={"device": Deadly()}, at_ms=at_ms)


@pytest.fixture
def answerers(tiny_run, tmp_path, monkeypatch):
    """Three processes that answer, without a server."""
    monkeypatch.setattr(answerer_process, "_LEAVE_S", 2)
    with closing(EventLog.in_file(tmp_path / "events.db")) as log:
        found = Answerers(find_version(tiny_run), log, clock=Clock(10**13), count=3)
        yield found
        found.close()
        assert not processes()


@pytest.fixture
def server(serve, run_copy):
    server = serve(run_copy, answer_in="processes", batching={"at_once": 2})
    assert len(processes()) == 2
    yield server
    server.service.close()
    assert not processes()
    server.service.close = lambda: None


def test_what_a_process_could_not_take_in_it_takes_in_soon(server):
    """Also if nothing else happens: nobody waits for what is told, so its failure is not seen."""
    answer, versions = server.recommend(user="new here"), server.service.versions
    until(lambda: server.service.journal.waiting == 0)
    with closing(EventLog.in_file(server.log_file)) as log, versions._telling:
        told = Event(at_ms=server.clock.now_ms, **event(answer))
        versions.current.told = log.append([], [told])[0].seq
    until(lambda: all(one["known"] for one in of_each(server, "/v1/users/new here")))


def test_answers_are_those_of_threads(serve, server, run_copy):
    users = ["17", "23", "new here"]
    found = [server.recommend(user=user, k=5, explain=True) for user in users]
    server.service.close()
    threads = serve(run_copy)
    for user, answer in zip(users, found, strict=True):
        other = threads.recommend(user=user, k=5, explain=True)
        assert answer["seen"] == other["seen"]
        assert [ad["ad_id"] for ad in answer["ads"]] == [ad["ad_id"] for ad in other["ads"]]
        for mine, theirs in zip(answer["ads"], other["ads"], strict=True):
            assert mine["scores"] == pytest.approx(theirs["scores"], rel=1e-4)


def test_all_of_them_know_of_events_and_ads(server):
    answer = server.recommend(user="new here")
    server.report(event(answer), event(answer, "click"))
    server.clock.now_ms += DAY_MS
    for found in of_each(server, "/v1/users/new here"):
        assert found["known"]
        assert any(found["histories"].values())
    ad = answer["ads"][0]["ad_id"]
    server.http.delete(f"/v1/ads/{ad}")
    assert {one["status"] for one in of_each(server, f"/v1/ads/{ad}")} == {"removed"}
    server.admin.delete("/admin/users/new here")
    assert not any(any(one["histories"].values()) for one in of_each(server, "/v1/users/new here"))


def test_what_is_wrong_is_said_as_ever(server):
    found = server.http.post("/v1/recommend", json={"user": "17", "context": {"colour": "red"}})
    assert found.status_code == 422
    assert "colour" in found.json()["detail"]
    found = server.http.put("/v1/ads", json={"ads": [{"ad_id": "a", "colour": "red"}]})
    assert found.status_code == 422
    assert {one["detail"] for one in of_each(server, "/v1/ads/a")} == {"there is no ad 'a'"}
    elsewhere = {"request_id": "r", "user": "17", "context": {"colour": "red"}}
    odd = {"event_id": "e", "kind": "click", "ad_id": "1"} | elsewhere
    assert "colour" in server.report(odd)["rejected"][0]["reason"]


def test_what_one_has_read_of_the_log_the_others_know(server, run_copy, capfd):
    """Of a version that is loaded one process reads the log, and the other goes on from there."""
    users = [f"new {i % 7}" for i in range(110)]
    for user in users:
        answer = server.recommend(user=user)
        server.report(*(event(answer, ad=ad) for ad in range(10)), event(answer, "click"))
        server.clock.now_ms += 1_000
    second = publish_copy(run_copy, "29990101T000000-second").name
    server.clock.now_ms += DAY_MS
    before = [server.http.get(f"/v1/users/{user}").json() for user in users[:7]]
    assert swap(server, second).status_code == 200
    for user, known in zip(users[:7], before, strict=True):
        assert any(len(items) > 1 for items in known["histories"].values())
        assert all(one == known for one in of_each(server, f"/v1/users/{user}"))
    assert server.service.versions._kept[second].known.told >= 1_210
    assert swap(server).status_code == 200
    for user, known in zip(users[:7], before, strict=True):
        assert all(one == known for one in of_each(server, f"/v1/users/{user}"))
    assert "told anew" not in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each imports all")
def test_processes_begin_with_all_that_was_imported():
    connection, theirs = multiprocessing.Pipe()
    connection.send(partial(prepare_to_tell, "adrec.serving.seed"))
    process = _started(theirs)
    theirs.close()
    assert connection.poll(PATIENCE_S)
    assert connection.recv()
    process.join()
    connection.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is none")
def test_they_go_on_without_the_process_that_they_were_forked_from(server, run_copy):
    pids = [one.pid for one in processes()]
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    until(lambda: not processes())  # as multiprocessing sees it
    assert server.service.versions.current.whole
    for _ in range(10):
        server.recommend(user="17")
    os.kill(pids[0], signal.SIGKILL)
    until(lambda: len(processes()) == 2)  # of another one
    assert not {one.pid for one in processes()} & {*pids}
    server.recommend(user="17")


@pytest.mark.parametrize("started", [0, 1])
def test_what_cannot_be_started_is_said(server, monkeypatch, started):
    def start(process, begin):
        if len(processes()) >= 2 + started:
            raise OSError("no more processes")
        begin(process)

    for kind in (answerer_process.ForkServerProcess, answerer_process.SpawnProcess):
        monkeypatch.setattr(kind, "start", partialmethod(start, begin=kind.start))
    found = swap(server)
    assert found.status_code == 409
    assert "no process can be started" in found.json()["detail"]
    assert len(processes()) == 2
    server.recommend(user="17")


def test_no_request_fails_or_mixes_versions_in_swaps(server, run_copy):
    names = {publish_copy(run_copy, "29990101T000000-second").name, server.service.current.name}
    stop, found = threading.Event(), []

    def ask():
        while not stop.is_set():
            answer = server.http.post("/v1/recommend", json={"user": "17", "k": 3})
            found.append((answer.status_code, answer.json().get("version")))
            if answer.status_code == 200:
                server.report(event(answer.json()))

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        for name in sorted(names, reverse=True):
            assert swap(server, name).status_code == 200
            assert len(processes()) == 2
        stop.set()
        for one in asking:
            one.result()
    assert {status for status, _ in found} == {200}
    assert {version for _, version in found} <= names


def test_a_version_that_cannot_be_loaded_changes_nothing(server, run_copy):
    folder = publish_copy(run_copy, "29990101T000000-second")
    (folder / "calibration.json").unlink()
    found = swap(server, folder.name)
    assert found.status_code == 409
    assert "calibration.json" in found.json()["detail"]
    assert len(processes()) == 2
    server.recommend(user="17")


def test_the_others_answer_for_one_that_was_killed(server):
    answer = server.recommend(user="new here")
    server.report(event(answer), event(answer, "click"))
    one, _ = processes()
    os.kill(one.pid, signal.SIGKILL)
    until(lambda: not one.is_alive())  # else a request that it is given may be what ends it
    for _ in range(20):
        server.recommend(user="17")
    until(lambda: server.service.versions.current.whole and len(processes()) == 2)
    server.clock.now_ms += DAY_MS
    for found in of_each(server, "/v1/users/new here"):
        assert any(found["histories"].values())


def test_when_all_were_killed_it_says_so_and_recovers(server):
    for process in processes():
        os.kill(process.pid, signal.SIGKILL)
    assert server.http.post("/v1/recommend", json={"user": "17"}).status_code == 429
    assert server.http.get("/v2/health/ready").status_code == 503
    answer = {"request_id": "r", "user": "17", "context": {}}
    odd = {"event_id": "e", "kind": "click", "ad_id": "1"} | answer
    assert server.http.post("/v1/events", json={"events": [odd]}).status_code == 429
    until(lambda: server.http.get("/v2/health/ready").status_code == 200)
    server.recommend(user="17")


def test_one_that_hangs_is_replaced_and_holds_up_nobody_for_long(serve, run_copy, monkeypatch):
    monkeypatch.setattr(answerer_process, "_HANGS_S", 2)
    server = serve(run_copy, answer_in="processes", batching={"at_once": 3})
    answer = server.recommend(user="new here")
    server.report(event(answer), event(answer, "click"))
    hung = processes()[0]
    os.kill(hung.pid, signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE_S
    with ThreadPoolExecutor(3) as pool:
        while hung.is_alive():  # until it was asked; others answer for it
            assert time.monotonic() < deadline
            asked = [pool.submit(server.recommend, user="17") for _ in range(30)]
            assert all(one.result(PATIENCE_S)["ads"] for one in asked)
    until(lambda: server.service.versions.current.whole and len(processes()) == 3)
    server.clock.now_ms += DAY_MS
    for found in of_each(server, "/v1/users/new here"):
        assert any(found["histories"].values())


def test_one_that_takes_in_nothing_does_not_hold_up_the_log(serve, run_copy, monkeypatch):
    monkeypatch.setattr(answerer_process, "_HANGS_S", 2)
    server = serve(run_copy, answer_in="processes", batching={"at_once": 2})
    answer = server.recommend(user="new here")
    hung = processes()[0]
    os.kill(hung.pid, signal.SIGSTOP)
    deadline, number = time.monotonic() + PATIENCE_S, 0
    while hung.is_alive():  # until the pipe is full
        assert time.monotonic() < deadline
        server.report(*(event(answer, event_id=f"e{number + i}") for i in range(500)))
        number += 500
    until(lambda: server.service.versions.current.whole and len(processes()) == 2)
    server.clock.now_ms += DAY_MS
    for found in of_each(server, "/v1/users/new here"):
        assert any(found["histories"].values())


@pytest.mark.parametrize("asked", [False, True])
def test_closing_takes_no_longer_for_all_than_for_one_that_hangs(answerers, asked):
    pids = [one.pid for one in processes()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(answerers.size) for _ in pids if asked]
        until(lambda: sum(one._calling.locked() for one in answerers._processes) == len(asking))
        begun = time.monotonic()
        answerers.close()
        assert time.monotonic() < begun + 4.0  # of 2 that they have
        assert not processes()
        for one in asking:
            with pytest.raises(OverloadError, match="ended over"):
                one.result(PATIENCE_S)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is none")
def test_those_that_hang_end_also_without_the_process_that_they_were_forked_from(answerers):
    pids = [one.pid for one in processes()]
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(answerers.size) for _ in pids]
        until(lambda: all(one._calling.locked() for one in answerers._processes))
        answerers.close()
        assert all(one.exception(PATIENCE_S) for one in asking)
    until(lambda: not any(running(pid) for pid in pids))


def test_what_ends_processes_does_not_end_them_all(answerers):
    with pytest.raises(OverloadError, match="ended over"):
        answerers.answer([Ask(Request(context={"device": Deadly()}), 3)])
    assert len(processes()) == 1
    assert not answerers.whole
    (found,) = answerers.answer([Ask(Request(user="17"), 3)])
    assert len(found.slate.ads) == 3
    with pytest.raises(OverloadError, match="ended over"):
        answerers.answer([Ask(Request(context={"device": Deadly()}), 3)])


def test_a_request_that_ends_a_process_leaves_the_last_one_alone(server):
    pids = {one.pid for one in processes()}
    dead = server.service.recommend(AskedDeadly(user="17"))
    with pytest.raises(OverloadError, match="ended over"):
        dead.result(PATIENCE_S)
    assert len(pids & {one.pid for one in processes()}) == 1
    server.recommend(user="17")
    until(lambda: server.service.versions.current.whole and len(processes()) == 2)
