"""What versions were told, kept for whoever loads them next: the same as telling them anew."""

import shutil
import tempfile

import numpy as np
import pytest

from adrec.bundle import Bundle, find_version
from adrec.data.event_log import EventLog
from adrec.data.log_entries import AdChange
from adrec.serving import loaded, shelf
from adrec.serving.loaded import Loaded
from adrec.serving.shelf import Known, Shelf, temporary_shelf
from adrec.slates import Request
from serving.events import event
from serving.test_versions import DAY_MS, publish_copy, swap

KNOWN = Known(
    log_end_ms=5,
    newest_ms=9,
    told=7,
    ads=2,
    ad_changes=(
        (AdChange(ad_id="a", status="active", fields={"ad_id": "a"}),),
        (AdChange(ad_id="a", status="paused"),),
    ),
    erasures=1,
)


@pytest.fixture
def shelf_of(tmp_path):
    return Shelf(tmp_path / "shelf")


@pytest.fixture
def bundle(run_copy):
    return Bundle.open(run_copy)


class TestShelf:
    def test_gives_back_what_was_put(self, shelf_of, bundle):
        assert shelf_of.take(bundle) is None
        state = bundle.state()
        user = state.visit("new here", 10**13, {})
        state.observe(user, 3, [1.0, 0.0, 0.0])
        shelf_of.put(bundle.path, KNOWN, state)
        known, same = shelf_of.take(bundle)
        assert known == KNOWN
        assert same.users.ids == state.users.ids
        later = 10**13 + 30 * DAY_MS
        np.testing.assert_array_equal(same.standing(later), state.standing(later))
        visitor = state.visit("new here", later, {})
        ads = np.arange(len(bundle.catalogue))
        np.testing.assert_array_equal(same.counters(visitor, ads), state.counters(visitor, ads))
        assert same.history_ads(visitor).tolist() == state.history_ads(visitor).tolist() == [0, 3]

    def test_holds_what_was_put_last_until_it_is_dropped(self, shelf_of, bundle):
        state = bundle.state()
        for told in (7, 8):
            shelf_of.put(bundle.path, KNOWN.model_copy(update={"told": told}), state)
        assert shelf_of.take(bundle)[0].told == 8
        shelf_of.drop(bundle.path)
        assert shelf_of.take(bundle) is None

    def test_is_empty_once_it_is_cleared(self, shelf_of, bundle, tmp_path):
        shelf_of.put(bundle.path, KNOWN, bundle.state())
        shelf_of.clear()
        assert shelf_of.take(bundle) is None
        assert not [*(tmp_path / "shelf").rglob("users*")]

    @pytest.mark.parametrize("name", ["manifest.json", "features/schema.yaml"])
    def test_knows_a_version_by_its_files(self, shelf_of, bundle, name):
        assert not shelf_of.has_verified(bundle.path)
        shelf_of.note_verified(bundle.path)
        shelf_of.put(bundle.path, KNOWN, bundle.state())
        assert shelf_of.has_verified(bundle.path)
        file = bundle.path / name
        file.write_text(file.read_text())  # made again, under the same name
        assert not shelf_of.has_verified(bundle.path)
        assert shelf_of.take(bundle) is None

    @pytest.mark.parametrize("damage", ["cut", "deleted", "no JSON"])
    def test_gives_nothing_that_is_damaged(self, shelf_of, bundle, tmp_path, damage, caplog):
        shelf_of.put(bundle.path, KNOWN, bundle.state())
        (place,) = (tmp_path / "shelf" / "states").iterdir()
        if damage == "cut":
            (place / "counter_0.parquet").write_bytes(b"PAR1")
        elif damage == "deleted":
            (place / "users.parquet").unlink()
        else:
            (place / "known.json").write_text("{")
        assert shelf_of.take(bundle) is None
        assert ("told anew" in caplog.text) == (damage != "deleted")

    def test_where_nothing_can_be_written_nothing_is_kept(self, tmp_path, bundle, caplog):
        (tmp_path / "no folder").write_text("")
        nowhere = Shelf(tmp_path / "no folder")
        nowhere.put(bundle.path, KNOWN, bundle.state())
        assert nowhere.take(bundle) is None
        assert "cannot be written" in caplog.text


class TestTemporary:
    def test_lasts_as_long_as_its_server(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with temporary_shelf(), temporary_shelf():
            assert len([*tmp_path.iterdir()]) == 2
        assert not [*tmp_path.iterdir()]

    def test_that_of_a_killed_server_is_deleted_by_the_next(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        (tmp_path / f"{shelf._NAME}old" / "version").mkdir(parents=True)
        with temporary_shelf():
            assert not (tmp_path / f"{shelf._NAME}old").exists()


class TestLoading:
    """A version that goes on from a shelf knows what one knows that is told all anew."""

    @pytest.fixture(autouse=True)
    def keep_all(self, monkeypatch):
        monkeypatch.setattr(loaded, "_WORTH_KEEPING", 1)

    @pytest.fixture
    def load(self, run_copy, tmp_path, serve):
        server = serve(run_copy)
        log = EventLog.in_file(server.log_file)

        def load(shelf=None, folder=None):
            folder = folder or find_version(run_copy)
            return server, Loaded.load(folder, log, clock=server.clock, shelf=shelf)

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
        assert one.recommender.state.users.ids == other.recommender.state.users.ids
        assert one.size() == other.size()

    def test_events_before_between_and_of_earlier_requests(self, load, shelf_of):
        server, _ = load()
        early = server.recommend(user="new here", k=5)
        server.report(event(early), event(early, ad=1), event(early, "click", ad=1))
        load(shelf_of)  # leaves what it was told
        server.clock.now_ms += 1_000
        server.report(event(early, "click"), event(early, "engagement", ad=1), event(early, ad=2))
        for user in ("later here", "new here", "17"):
            answer = server.recommend(user=user, k=5)
            server.report(*(event(answer, ad=ad) for ad in range(5)), event(answer, "click"))
            server.clock.now_ms += 1_000
        _, again = load(shelf_of)
        _, anew = load()
        self.same(again, anew, server)
        met = again.user("new here", server.clock.now_ms + DAY_MS).histories.values()
        assert max(len(items) for items in met) > 1

    def test_outcomes_of_what_was_told_before_are_added(self, load, shelf_of):
        server, _ = load()
        early = server.recommend(user="new here", k=2)
        server.report(event(early), event(early, "click"))
        load(shelf_of)
        _, again = load(shelf_of)
        _, anew = load()
        new = event(early, "engagement"), event(early, "revenue", value=2.5)
        server.report(*new)
        again.catch_up()
        anew.catch_up()
        self.same(again, anew, server)

    def test_ads_that_came_and_changed(self, load, shelf_of):
        """Their rows are those that the state counted them under."""
        server, _ = load()

        def put(ad_id):
            ad = {"ad_id": ad_id, "bid_micros": 5, "campaign_id": f"of {ad_id}"}
            assert server.http.put("/v1/ads", json={"ads": [ad]}).status_code == 204

        def click(user, ad_id):
            answer = server.recommend(user=user, k=1, only={"campaign_id": [f"of {ad_id}"]})
            assert answer["ads"][0]["ad_id"] == ad_id
            server.report(event(answer), event(answer, "click"))

        put("z")
        click("new here", "z")
        load(shelf_of)
        put("b")  # before z by its name
        click("later here", "b")
        server.http.put("/v1/ads/z/status", json={"status": "paused"})
        later = server.clock.now_ms + DAY_MS
        for _ in range(2):
            _, again = load(shelf_of)
            assert again.ad("z").status == "paused"
            for user, ad_id in (("new here", "z"), ("later here", "b")):
                met = again.user(user, later).histories.values()
                assert {item["ad_id"] for items in met for item in items} == {ad_id}

    def test_an_erased_user(self, load, shelf_of, run_copy):
        server, _ = load()
        for user in ("17", "new here"):
            answer = server.recommend(user=user)
            server.report(event(answer), event(answer, "click"))
        load(shelf_of)
        server.admin.delete("/admin/users/17")
        _, again = load(shelf_of)
        later = server.clock.now_ms + DAY_MS
        assert not any(again.user("17", later).histories.values())
        assert any(again.user("new here", later).histories.values())

    def test_no_shelf_keeps_a_user_who_was_erased(self, run_copy, serve, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        second = publish_copy(run_copy, "29990101T000000-second").name
        server = serve(run_copy)
        answer = server.recommend(user="new here")
        server.report(event(answer), event(answer, "click"))
        swap(server, second)
        (kept,) = tmp_path.glob(f"{shelf._NAME}*")
        assert [*kept.rglob("users.parquet")]
        server.admin.delete("/admin/users/new here")
        assert not [*kept.rglob("users.parquet")]
        server.service.close()
        assert not kept.exists()
        server.service.close = lambda: None

    def test_one_that_cannot_be_read_is_told_anew(self, load, shelf_of, tmp_path):
        server, _ = load()
        answer = server.recommend(user="new here")
        server.report(event(answer), event(answer, "click"))
        load(shelf_of)
        (place,) = (tmp_path / "shelf" / "states").iterdir()
        shutil.copy(place / "counter_0.parquet", place / "users.parquet")
        _, again = load(shelf_of)
        _, anew = load()
        self.same(again, anew, server)
