"""What versions were told, kept for whoever loads them next: the same as telling them anew."""

import os
import signal
import tempfile
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest

from adrec.bundle import Bundle, find_version
from adrec.data.event_log import EventLog
from adrec.data.log_entries import AdChange
from adrec.errors import BundleError
from adrec.features.memory import memory_of, remember
from adrec.serving.kept import Kept, Room, files_of, joined
from adrec.serving.loaded import Loaded
from adrec.slates import Request
from serving.events import event
from serving.test_answerers import processes, until
from serving.test_versions import DAY_MS, publish_copy, swap

COPY = "2999010{}T000000-copy"


def place_of(room):
    """Which file it is."""
    found = os.fstat(room._descriptor)
    return found.st_dev, found.st_ino


def places():
    """All files that this process has open."""
    found = set()
    for path in Path("/dev/fd").iterdir():
        with suppress(OSError):
            one = os.fstat(int(path.name))
            found.add((one.st_dev, one.st_ino))
    return found


class TestRoom:
    def test_gives_back_what_was_written(self, tiny_run):
        bundle = Bundle.open(tiny_run)
        state, again = bundle.state(), bundle.state()
        state.observe(state.visit("new here", 10**13, {}), 3, [1.0, 0.0, 0.0])
        room = Room.new()
        assert room.write(memory_of(state))
        for _ in range(2):  # whoever wants it
            remember(again, room.read())
        assert again.users.ids == state.users.ids
        later = 10**13 + 30 * DAY_MS
        np.testing.assert_array_equal(again.standing(later), state.standing(later))
        visitor = state.visit("new here", later, {})
        ads = np.arange(len(bundle.catalogue))
        np.testing.assert_array_equal(again.counters(visitor, ads), state.counters(visitor, ads))
        assert again.history_ads(visitor).tolist() == state.history_ads(visitor).tolist() == [0, 3]

    def test_has_no_name(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        assert Room.new() is not None
        assert not [*tmp_path.iterdir()]

    def test_closes_when_nobody_refers_to_it(self):
        room = Room.new()
        place = place_of(room)
        assert place in places()
        del room
        assert place not in places()

    def test_without_a_place_for_it_there_is_none(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        assert Room.new() is None
        assert "can be kept" in caplog.text

    @pytest.mark.parametrize("content", [b"", b"not what was written"])
    def test_gives_nothing_that_is_damaged(self, content, caplog):
        room = Room.new()
        os.write(room._descriptor, content)
        assert room.read() is None
        assert "told anew" in caplog.text

    def test_says_that_a_full_disk_keeps_nothing(self, tiny_run, caplog):
        with Path("/dev/full").open("wb") as full:
            assert not Room(os.dup(full.fileno())).write(memory_of(Bundle.open(tiny_run).state()))
        assert "told anew" in caplog.text


def change(ad_id, status="active", **fields):
    return AdChange(ad_id=ad_id, status=status, fields=fields or None)


def test_ads_keep_the_order_in_which_they_first_had_fields():
    first = joined((), [change("z", x=1), change("a", "paused")])
    assert [one.ad_id for one in first] == ["z", "a"]
    second = joined(first, [change("a", x=1), change("b", x=1), change("z", "paused", x=2)])
    assert [(one.ad_id, one.status) for one in second] == [
        ("z", "paused"), ("a", "active"), ("b", "active"),
    ]  # fmt: skip
    third = joined([change("z", "paused")], [change("b", x=1), change("z", x=1)])
    assert [one.ad_id for one in third] == ["b", "z"]


@pytest.mark.parametrize("name", ["manifest.json", "features/schema.yaml"])
def test_files_that_were_written_again_are_others(run_copy, name):
    version = find_version(run_copy)
    before = files_of(version)
    assert files_of(version) == before
    file = version / name
    file.write_text(file.read_text())
    assert files_of(version) != before


class TestLoading:
    """A version that goes on from what was kept knows what one knows that is told all anew."""

    @pytest.fixture
    def load(self, run_copy, tmp_path, serve):
        """Loads the version that is served, from what was kept by an earlier one."""
        server = serve(run_copy)
        log = EventLog.in_file(server.log_file)

        def load(kept=None):
            folder, room = find_version(run_copy), Room.new()
            return Loaded.load(folder, log, clock=server.clock, kept=kept, room=room)

        load.server = server
        yield load
        log.close()

    def same(self, one, other, server):
        at_ms = server.clock.now_ms + DAY_MS
        users = ["new here", "later here", "17", "23", None]
        requests = [Request(user=user, at_ms=at_ms, explain=True) for user in users]
        mine, theirs = (each.recommender.recommend_batch(requests, 5) for each in (one, other))
        assert [slate.ads for slate in mine] == [slate.ads for slate in theirs]
        assert [slate.seen for slate in mine] == [slate.seen for slate in theirs]
        assert one.told == other.told
        assert {*one.recommender.state.users.ids} == {*other.recommender.state.users.ids}
        assert one.size() == other.size()

    def test_events_before_between_and_of_earlier_requests(self, load):
        server = load.server
        early = server.recommend(user="new here", k=5)
        server.report(event(early), event(early, ad=1), event(early, "click", ad=1))
        kept = load().kept
        server.clock.now_ms += 1_000
        server.report(event(early, "click"), event(early, "engagement", ad=1), event(early, ad=2))
        for user in ("later here", "new here", "17"):
            answer = server.recommend(user=user, k=5)
            server.report(*(event(answer, ad=ad) for ad in range(5)), event(answer, "click"))
            server.clock.now_ms += 1_000
        again = load(kept)
        self.same(again, load(), server)
        met = again.user("new here", server.clock.now_ms + DAY_MS).histories.values()
        assert max(len(items) for items in met) > 1
        self.same(load(again.kept), again, server)

    def test_impressions_of_earlier_requests_and_what_came_of_them(self, load):
        """Reported when their time was over: what comes of them is added all the same."""
        server = load.server
        early, late = (server.recommend(user=user, k=3) for user in ("new here", "later here"))
        server.report(event(late))
        kept = load().kept
        server.clock.now_ms += DAY_MS
        for kind in ("impression", "click", "engagement"):
            server.report(event(early, kind), event(early, kind, ad=1), event(late, kind, ad=1))
        again = load(kept)
        self.same(again, load(), server)
        items = again.user("new here", server.clock.now_ms + DAY_MS).histories.values()
        assert all(len(item["met"]) == 2 for some in items for item in some)

    def test_impressions_between_those_that_were_told(self, load):
        """They stand where they would have stood."""
        server, answers = load.server, []
        for _ in range(3):
            answers.append(server.recommend(user="new here", k=1))
            server.clock.now_ms += 1_000
        for answer in (answers[0], answers[2]):
            server.report(event(answer), event(answer, "click"))
        server.recommend(user="later here")
        server.clock.now_ms += DAY_MS
        answer = server.recommend(user="later here")
        server.report(event(answer))
        kept = load().kept
        server.report(event(answers[1]), event(answers[1], "click"))
        again = load(kept)
        self.same(again, load(), server)
        items = again.user("new here", server.clock.now_ms + DAY_MS).histories.values()
        assert all(len(some) == 3 for some in items)

    def test_outcomes_of_what_was_told_before_are_added(self, load):
        server = load.server
        early = server.recommend(user="new here", k=2)
        server.report(event(early), event(early, "click"))
        again, anew = load(load().kept), load()
        server.report(event(early, "engagement"), event(early, "revenue", value=2.5))
        again.catch_up()
        anew.catch_up()
        self.same(again, anew, server)

    def test_ads_that_came_and_changed(self, load):
        """Their rows are those that the state counted them under."""
        server = load.server

        def put(ad_id):
            ad = {"ad_id": ad_id, "bid_micros": 5, "campaign_id": f"of {ad_id}"}
            assert server.http.put("/v1/ads", json={"ads": [ad]}).status_code == 204

        def click(user, ad_id):
            answer = server.recommend(user=user, k=1, only={"campaign_id": [f"of {ad_id}"]})
            assert answer["ads"][0]["ad_id"] == ad_id
            server.report(event(answer), event(answer, "click"))

        put("z")
        click("new here", "z")
        kept = load().kept
        put("b")  # before z by its name
        click("later here", "b")
        server.http.put("/v1/ads/z/status", json={"status": "paused"})
        later = server.clock.now_ms + DAY_MS
        for _ in range(2):
            again = load(kept)
            assert again.ad("z").status == "paused"
            for user, ad_id in (("new here", "z"), ("later here", "b")):
                met = again.user(user, later).histories.values()
                assert {item["ad_id"] for items in met for item in items} == {ad_id}
            kept = again.kept

    def test_an_ad_that_fits_no_more(self, load):
        """The rows of those after it are others than those that the state counted them under."""
        server = load.server
        for ad_id in ("y", "z"):
            ad = {"ad_id": ad_id, "bid_micros": 5, "campaign_id": f"of {ad_id}"}
            assert server.http.put("/v1/ads", json={"ads": [ad]}).status_code == 204
            answer = server.recommend(
                user=f"of {ad_id}", k=1, only={"campaign_id": [f"of {ad_id}"]}
            )
            server.report(event(answer), event(answer, "click"))
        kept = load().kept
        with closing(EventLog.in_file(server.log_file)) as log:
            odd = {"ad_id": "y", "field of another version": "x"}
            log.change_ads([AdChange(ad_id="y", status="active", fields=odd)])
        again, later = load(kept), server.clock.now_ms + DAY_MS
        met = again.user("of z", later).histories.values()
        assert {item["ad_id"] for items in met for item in items} == {"z"}
        assert not any(again.user("of y", later).histories.values())

    def test_an_erased_user(self, load):
        server = load.server
        for user in ("17", "new here"):
            answer = server.recommend(user=user)
            server.report(event(answer), event(answer, "click"))
        kept = load().kept
        server.admin.delete("/admin/users/17")
        again = load(kept)
        later = server.clock.now_ms + DAY_MS
        assert not any(again.user("17", later).histories.values())
        assert any(again.user("new here", later).histories.values())
        server.admin.delete("/admin/users/new here")
        assert "new here" not in load(again.kept).recommender.state.users.ids

    def test_what_cannot_be_read_is_told_anew(self, load):
        server = load.server
        answer = server.recommend(user="new here")
        server.report(event(answer), event(answer, "click"))
        broken = Kept(load().kept.known, Room.new())
        self.same(load(broken), load(), server)

    def test_what_was_kept_of_other_files_is_not_taken(self, load, run_copy, caplog):
        """They are verified, too."""
        kept = load().kept
        calibration = find_version(run_copy) / "calibration.json"
        calibration.write_text(calibration.read_text() + " ")
        with pytest.raises(BundleError, match=r"calibration.json differs"):
            load(kept)


class TestServer:
    """What a server keeps: of the version that answers and of the one before, no more."""

    @pytest.fixture
    def server(self, serve, run_copy):
        for i in range(2):
            publish_copy(run_copy, COPY.format(i))
        server = serve(run_copy, answer_in="processes", batching={"at_once": 2}, follow_ms=10)
        yield server
        server.service.close()
        server.service.close = lambda: None

    def kept(self, server):
        return server.service.versions._kept

    def test_of_two_versions(self, server):
        first = server.service.current.name
        assert self.kept(server).keys() == {first}
        old = place_of(self.kept(server)[first].room)
        swap(server, COPY.format(0))
        assert self.kept(server).keys() == {first, COPY.format(0)}
        assert old in places()
        os.kill(processes()[0].pid, signal.SIGKILL)  # it is loaded anew
        before = self.kept(server)[COPY.format(0)]
        until(lambda: self.kept(server)[COPY.format(0)] is not before)
        assert server.service.versions.previous == first
        assert self.kept(server).keys() == {first, COPY.format(0)}
        swap(server, COPY.format(1))
        assert self.kept(server).keys() == {COPY.format(0), COPY.format(1)}
        assert old not in places()
        rooms = [place_of(one.room) for one in self.kept(server).values()]
        server.service.close()
        assert not {*rooms} & places()

    def test_nothing_of_a_user_who_was_erased(self, server):
        answer = server.recommend(user="new here")
        server.report(event(answer), event(answer, "click"))
        swap(server, COPY.format(0))
        rooms = {place_of(one.room) for one in self.kept(server).values()}
        assert len(rooms) == 2
        server.admin.delete("/admin/users/new here")
        assert not self.kept(server)
        assert not rooms & places()
        swap(server)
        (kept,) = self.kept(server).values()
        assert "new here" not in kept.room.read()["users"].to_series().to_list()

    def test_nothing_once_a_user_was_erased_elsewhere(self, server):
        assert self.kept(server)
        with closing(EventLog.in_file(server.log_file)) as log:
            log.erase_user("17", at_ms=server.clock.now_ms)
        until(lambda: not self.kept(server))
