"""Swapping the version that answers: whole or not at all."""

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from adrec.bundle import find_version, make_current, sha256
from adrec.data.event_log import EventLog
from adrec.data.log_entries import AdChange
from adrec.errors import BundleError
from adrec.serving.loaded import Loaded
from serving.conftest import Server
from serving.events import event

DAY_MS = 86_400_000


def publish_copy(run: Path, name: str) -> Path:
    """The current version once more under another name, as if it had been trained again."""
    folder = run / "versions" / name
    shutil.copytree(find_version(run), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": name}))
    return folder


@pytest.fixture
def server(serve, run_copy):
    return serve(run_copy)


@pytest.fixture
def second(run_copy):
    publish_copy(run_copy, "29990101T000000-second")
    return "29990101T000000-second"


def swap(server, version=None):
    query = {} if version is None else {"version": version}
    return server.admin.post("/admin/swap", params=query)


class TestSwap:
    def test_the_new_one_answers(self, server, second):
        before = server.recommend(user="17")
        found = swap(server, second).json()
        assert (found["version"], found["previous"]) == (second, before["version"])
        after = server.recommend(user="17")
        assert after["version"] == second
        assert after["ads"] == before["ads"]  # it is a copy
        assert server.http.get("/v2/models/adrec").json()["version"] == second

    def test_without_a_name_the_one_published_last(self, server, run_copy, second):
        make_current(run_copy, second)
        assert swap(server).json()["version"] == second

    def test_it_knows_what_was_reported_before(self, server, second):
        answer = server.recommend(user="new here")
        server.report(event(answer), event(answer, "click"))
        server.clock.now_ms += DAY_MS
        known = server.http.get("/v1/users/new here").json()
        scores = server.recommend(user="new here")["ads"]
        swap(server, second)
        assert server.http.get("/v1/users/new here").json() == known
        assert server.recommend(user="new here")["ads"] == scores

    def test_it_knows_what_is_not_settled_yet(self, server, second):
        """What it is told as a table, and the rest live, comes to the same as all as a table."""
        answer = server.recommend(user="new here")
        server.report(event(answer), event(answer, "click"), event(answer, ad=1))
        swap(server, second)
        server.report(event(answer, "engagement"), event(answer, "click", ad=1))
        server.clock.now_ms += DAY_MS
        told = server.http.get("/v1/users/new here").json()
        assert all(told["histories"].values())
        seen = server.recommend(user="new here", explain=True)["seen"]
        swap(server)
        swap(server, second)
        assert server.http.get("/v1/users/new here").json() == told
        assert server.recommend(user="new here", explain=True)["seen"] == seen

    def test_and_ads_as_they_stand(self, server, second):
        first, other = (ad["ad_id"] for ad in server.recommend(user="17", k=2)["ads"])
        server.http.put(f"/v1/ads/{first}/status", json={"status": "paused"})
        server.http.delete(f"/v1/ads/{other}")
        swap(server, second)
        assert server.http.get(f"/v1/ads/{first}").json()["status"] == "paused"
        assert server.http.get(f"/v1/ads/{other}").json()["status"] == "removed"
        assert not {first, other} & {ad["ad_id"] for ad in server.recommend(user="17")["ads"]}

    def test_events_that_are_sent_again_hold_no_others_up(self, serve, monkeypatch):
        """Each takes a number in the log's order, so the next one's is far from the last."""
        monkeypatch.setattr("adrec.serving.versions._PIECE", 3)
        server = serve(follow_ms=60_000)
        answer = server.recommend(user="new here", k=3)
        shown = [event(answer, ad=i) for i in range(3)]
        assert server.report(*shown)["accepted"] == 3
        for _ in range(3):
            assert server.report(*shown)["duplicates"] == 3
        assert server.report(event(answer, "click"))["accepted"] == 1
        server.clock.now_ms += DAY_MS
        histories = server.http.get("/v1/users/new here").json()["histories"]
        assert any("click" in str(item) for items in histories.values() for item in items), (
            histories
        )

    def test_rollback(self, server, second):
        old = server.recommend(user="17")["version"]
        assert server.admin.post("/admin/rollback").status_code == 409
        swap(server, second)
        assert server.admin.post("/admin/rollback").json()["version"] == old
        assert server.recommend(user="17")["version"] == old
        assert server.admin.post("/admin/rollback").json()["version"] == second

    def test_one_that_answers_already_changes_nothing_of_a_rollback(self, server, second):
        old = server.recommend(user="17")["version"]
        for _ in range(2):
            assert swap(server, second).json()["previous"] == old
        assert server.admin.post("/admin/rollback").json()["version"] == old

    def test_ads_change_while_a_version_is_loaded(self, server, second, monkeypatch):
        load, ad = server.service.versions._load, server.recommend(user="17")["ads"][0]["ad_id"]
        changed = []

        def slow(*asked):
            loaded = load(*asked)
            for status in ("paused", "active", "paused"):
                put = server.http.put(f"/v1/ads/{ad}/status", json={"status": status})
                changed.append(put.status_code)
            changed.append(server.admin.delete("/admin/users/17").status_code)
            return loaded

        monkeypatch.setattr(server.service.versions, "_load", slow)
        assert swap(server, second).json()["version"] == second
        assert changed == [204, 204, 204, 200]
        assert server.http.get(f"/v1/ads/{ad}").json()["status"] == "paused"
        assert not any(server.http.get("/v1/users/17").json()["histories"].values())

    def test_events_that_come_meanwhile_reach_both(self, server, second):
        """Reports go on in one thread while versions are swapped in another; none is lost."""
        answers = [server.recommend(user="new here") for _ in range(40)]
        with ThreadPoolExecutor(1) as pool:
            swapping = pool.submit(
                lambda: [swap(server, name).status_code for name in (second, None) * 2]
            )
            for answer in answers:
                server.report(event(answer), event(answer, "click"))
        assert swapping.result() == [200] * 4
        server.clock.now_ms += DAY_MS
        met = server.http.get("/v1/users/new here").json()["histories"]
        assert any(len(items) == 40 for items in met.values())

    def test_no_answer_mixes_versions(self, server, second):
        """Requests in batches go on while versions are swapped: each batch is of one version."""
        stop, versions = threading.Event(), []

        def ask():
            while not stop.is_set():
                found = server.http.post("/v1/recommend", json={"user": "17", "k": 3})
                versions.append((found.status_code, found.json().get("version")))

        with ThreadPoolExecutor(2) as pool:
            asking = [pool.submit(ask) for _ in range(2)]
            names = {second, server.service.current.name}
            for name in (*sorted(names), second):
                assert swap(server, name).status_code == 200
            stop.set()
            for one in asking:
                one.result()
        assert {status for status, _ in versions} == {200}
        assert {version for _, version in versions} <= names


class TestStart:
    """Which version a server begins with."""

    def version(self, server):
        return server.http.get("/v2/models/adrec").json()

    def test_the_one_that_was_swapped_to(self, serve, run_copy, second):
        server = serve(run_copy)
        old = self.version(server)["version"]
        swap(server, second)
        again = serve(run_copy)
        assert self.version(again)["version"] == second
        assert again.admin.post("/admin/rollback").json()["version"] == old
        assert self.version(serve(run_copy))["version"] == old

    def test_one_that_was_published_since(self, serve, run_copy, second):
        third = publish_copy(run_copy, "29990102T000000-third").name
        swap(serve(run_copy), second)
        make_current(run_copy, third)
        assert self.version(serve(run_copy))["version"] == third

    def test_the_folder_that_is_named(self, serve, run_copy, second):
        server = serve(run_copy)
        old = self.version(server)["version"]
        swap(server, second)
        assert self.version(serve(run_copy / "versions" / old))["version"] == old

    def test_one_that_is_gone_is_not_asked_for(self, serve, run_copy, second):
        server = serve(run_copy)
        old = self.version(server)["version"]
        swap(server, second)
        server.service.close()
        shutil.rmtree(run_copy / "versions" / second)
        assert self.version(serve(run_copy))["version"] == old

    def test_ads_that_do_not_fit_it_are_left_out(self, serve, run_copy, caplog):
        server = serve(run_copy)
        fields = {"ad_id": "fresh", "bid_micros": 5}
        assert server.http.put("/v1/ads", json={"ads": [fields]}).status_code == 204
        with closing(EventLog.in_file(server.log_file)) as log:  # as with another schema
            odd = {"ad_id": "odd", "no field of this one": 1}
            log.change_ads([AdChange(ad_id="odd", status="active", fields=odd)])
            log.change_ads([AdChange(ad_id="fresh", status="paused")])
        again = serve(run_copy)
        assert "'odd' does not fit" in caplog.text
        assert again.http.get("/v1/ads/odd").status_code == 404
        assert again.http.get("/v1/ads/fresh").json()["status"] == "paused"


class TestFollowing:
    """Two servers of one log."""

    @pytest.fixture
    def other(self, server):
        settings = {"timeout_ms": 30_000.0, "batching": {"at_once": 1}, "answer_in": "threads"}
        other = Server(server.run, server.log_file, server.clock, settings | {"workers": 2})
        yield other
        other.service.close()

    def until(self, holds):
        deadline = time.monotonic() + 20.0
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def test_both_take_away_ads(self, server, other):
        """What one has done already it is told again with what the other did."""
        first, second, third = (ad["ad_id"] for ad in server.recommend(user="17", k=3)["ads"])
        server.http.put(f"/v1/ads/{third}/status", json={"status": "paused"})
        self.until(lambda: other.http.get(f"/v1/ads/{third}").json()["status"] == "paused")
        with server.service.versions._changing:  # it follows only when all this is done
            assert other.http.delete(f"/v1/ads/{first}").status_code == 204
            with closing(EventLog.in_file(server.log_file)) as log:
                log.change_ads([AdChange(ad_id=second, status="removed")])
                log.change_ads([AdChange(ad_id=third, status="active")])
        wanted = {first: "removed", second: "removed", third: "active"}
        for one in (server, other):
            self.until(
                lambda one=one: (
                    {ad: one.http.get(f"/v1/ads/{ad}").json()["status"] for ad in wanted} == wanted
                )
            )

    def test_events_of_an_ad_come_after_it(self, server, other):
        """An ad that one was given, and its events, the other learns of in this order."""
        click = {"event_id": "b", "kind": "click", "request_id": "mine", "ad_id": "fresh"}
        shown = {"event_id": "a", "kind": "impression", "user": "17", "context": {}}
        with other.service.versions._telling, other.service.versions._changing:
            server.http.put("/v1/ads", json={"ads": [{"ad_id": "fresh", "bid_micros": 5}]})
            server.report(click | shown)
            server.report(click)
        self.until(lambda: other.service.versions.current.told == 2)
        server.clock.now_ms += DAY_MS

        def histories(of):
            return of.http.get("/v1/users/17").json()["histories"]

        assert histories(other) == histories(server)
        assert any(
            item["ad_id"] == "fresh" for items in histories(other).values() for item in items
        )

    def test_an_erased_user_is_erased_from_what_the_other_has_not_written(
        self, server, other, monkeypatch
    ):
        answer = other.recommend(user="17")
        unwritten = []
        append = EventLog.append

        def later(self, slates, events):
            unwritten.extend(slates)
            return append(self, [], events)

        with monkeypatch.context() as slow:
            slow.setattr(EventLog, "append", later)
            waiting = other.recommend(user="17")
            self.until(lambda: unwritten)
        other.service.journal.note(unwritten)
        server.admin.delete("/admin/users/17")
        both = [answer["request_id"], waiting["request_id"]]
        self.until(lambda: not other.service.journal.find(both))
        for one in (answer, waiting):
            rejected = other.report(event(one, "click"))["rejected"]
            assert "no answer has the request_id" in rejected[0]["reason"]
        with closing(EventLog.in_file(server.log_file)) as log:
            assert not log.slates(both)

    def test_the_last_word_counts(self, server, other, second, monkeypatch):
        """A server that is told of a version while it loads another ends with what the log says."""
        old = server.recommend(user="17")["version"]
        load, begun = other.service.versions._load, threading.Event()

        def slow(*asked):
            begun.set()
            time.sleep(0.5)
            return load(*asked)

        monkeypatch.setattr(other.service.versions, "_load", slow)
        with ThreadPoolExecutor(1) as pool:
            swapping = pool.submit(swap, other, second)
            begun.wait()
            swap(server, second)
            swap(server, old)
            assert swapping.result().status_code == 200
        swap(server, old)
        for one in (server, other):
            self.until(lambda one=one: one.recommend(user="17")["version"] == old)

    def test_a_version_that_cannot_be_loaded_is_tried_again_ever_more_seldom(
        self, server, other, second, monkeypatch
    ):
        tries = []

        def fail(*asked):
            tries.append(time.monotonic())
            raise BundleError("not now")

        monkeypatch.setattr("adrec.serving.versions._PAUSE_S", 0.2)
        with monkeypatch.context() as broken:
            broken.setattr(other.service.versions, "_load", fail)
            swap(server, second)
            self.until(lambda: len(tries) == 4)
        pauses = np.diff(tries)
        assert (pauses > [0.2, 0.4, 0.8]).all()
        other.service.versions._following.succeeded()
        self.until(lambda: other.recommend(user="17")["version"] == second)

    def test_what_is_lost_is_replaced_also_when_another_version_is_wanted_in_vain(
        self, server, other, second, monkeypatch
    ):
        versions = other.service.versions
        load, broken = versions._load, versions.current

        def only_the_first(folder, *rest):
            if folder.name == second:
                raise ValueError("whatever it is")
            return load(folder, *rest)

        monkeypatch.setattr(versions, "_load", only_the_first)
        swap(server, second)
        self.until(lambda: versions._following._failures)
        monkeypatch.setattr(Loaded, "whole", property(lambda self: self is not broken))
        self.until(lambda: versions.current is not broken)

    def test_much_that_was_missed_is_told_in_pieces(self, server, other, monkeypatch):
        monkeypatch.setattr("adrec.serving.versions._PIECE", 3)
        monkeypatch.setattr("adrec.serving.versions._MEND_S", 0.0)  # mending tells nothing anew
        monkeypatch.setattr(other.service.versions, "_mend_s", 0.0)
        told, catch_up = [], Loaded.catch_up

        def noted(self, last=None):
            if self is other.service.versions.current:
                told.append(last)
            catch_up(self, last)

        monkeypatch.setattr(Loaded, "catch_up", noted)
        answers = [server.recommend(user="17", k=3) for _ in range(4)]
        mine = other.recommend(user="17")
        with other.service.versions._changing:
            server.http.put("/v1/ads", json={"ads": [{"ad_id": "fresh", "bid_micros": 5}]})
            self.until(lambda: server.service.versions._known.ads == 1)
            server.report(*(event(answer, ad=ad) for answer in answers for ad in range(3)))
        assert other.report(event(mine))["accepted"] == 1
        self.until(lambda: other.service.versions.current.told == 13)
        assert all(before <= after <= before + 3 for before, after in pairwise([0, *told]))
        server.clock.now_ms += DAY_MS
        for one in (server, other):
            self.until(lambda one=one: one.service.versions.current.told == 13)
        histories = [one.http.get("/v1/users/17").json()["histories"] for one in (server, other)]
        assert histories[0] == histories[1]


class TestErasure:
    """An erased user is erased from versions that learned before, whenever they are loaded."""

    def past(self, server):
        return any(server.http.get("/v1/users/17").json()["histories"].values())

    def test_events_of_earlier_answers_are_no_longer_taken(self, server):
        answer = server.recommend(user="17")
        server.report(event(answer))
        server.admin.delete("/admin/users/17")
        rejected = server.report(event(answer, "click"))["rejected"]
        assert "no answer has the request_id" in rejected[0]["reason"]

    def test_reports_go_on_before_it_is_followed(self, serve):
        """Also where numbers of events are left out, as after one that was sent again."""
        server = serve(follow_ms=60_000.0, events_timeout_s=1.0)
        answer, other = server.recommend(user="17"), server.recommend(user="18")
        for _ in range(2):
            server.report(event(other))
        server.admin.delete("/admin/users/17")
        assert server.report(event(other, "click"))["accepted"] == 1
        assert len(server.report(event(answer))["rejected"]) == 1

    def test_it_outlasts_swaps_and_restarts(self, serve, run_copy, second):
        server = serve(run_copy)
        assert self.past(server)
        server.clock.now_ms += DAY_MS
        assert server.admin.delete("/admin/users/17").status_code == 200
        assert not self.past(server)
        swap(server, second)
        assert not self.past(server)
        again = serve(run_copy)
        assert not self.past(again)
        answer = again.recommend(user="17")  # who comes back is a new user
        again.report(event(answer), event(answer, "click"))
        again.clock.now_ms += DAY_MS
        assert self.past(again)
        assert self.past(serve(run_copy))


class TestDamage:
    def refused(self, server, version):
        old = server.recommend(user="17")["version"]
        found = swap(server, version)
        assert found.status_code == 409
        assert server.recommend(user="17")["version"] == old
        assert 'adrec_swaps_total{result="refused"} 1.0' in server.http.get("/metrics").text
        return found.json()["detail"]

    def test_a_changed_file(self, server, run_copy, second):
        path = run_copy / "versions" / second / "ranker.safetensors"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert "ranker.safetensors" in self.refused(server, second)

    def test_a_missing_file(self, server, run_copy, second):
        (run_copy / "versions" / second / "calibration.json").unlink()
        assert "calibration.json" in self.refused(server, second)

    def test_no_manifest(self, server, run_copy, second):
        (run_copy / "versions" / second / "manifest.json").write_text("{")
        assert "manifest" in self.refused(server, second)

    def test_files_that_are_whole_but_make_no_sense(self, server, run_copy, second):
        folder = run_copy / "versions" / second
        (folder / "calibration.json").write_text("{}")
        manifest = json.loads((folder / "manifest.json").read_text())
        entry = {"sha256": sha256(folder / "calibration.json"), "bytes": 2}
        manifest["files"]["calibration.json"] = entry
        (folder / "manifest.json").write_text(json.dumps(manifest))
        assert self.refused(server, second)

    def test_an_unknown_name(self, server, second):
        assert second in self.refused(server, "../../elsewhere")
