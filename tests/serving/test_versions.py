"""Swapping the version that answers: whole or not at all."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adrec.bundle import find_version, make_current, sha256
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

    def test_rollback(self, server, second):
        old = server.recommend(user="17")["version"]
        assert server.admin.post("/admin/rollback").status_code == 409
        swap(server, second)
        assert server.admin.post("/admin/rollback").json()["version"] == old
        assert server.recommend(user="17")["version"] == old
        assert server.admin.post("/admin/rollback").json()["version"] == second

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
