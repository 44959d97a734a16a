"""HTTP: what is asked, what is answered, and what is refused."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import quote

import pytest

from adrec.bundle import Bundle
from adrec.data.event_log import EventLog
from adrec.data.log_entries import AdChange
from adrec.errors import EventLogError
from adrec.recommender import Recommender
from adrec.serving.loaded import Loaded
from serving.events import event

EVENTS_TOKEN, ADMIN_TOKEN = "events-token-of-a-test", "admin-token-of-a-test"


class TestRecommend:
    def test_answers_what_the_recommender_would(self, server):
        loaded = Recommender.load(server.run, clock=server.clock)
        expected = loaded.recommend(user="17", k=3, context={"device": "mobile"})
        answer = server.recommend(user="17", k=3, context={"device": "mobile"})
        assert [ad["ad_id"] for ad in answer["ads"]] == [ad.ad_id for ad in expected.ads]
        for found, ad in zip(answer["ads"], expected.ads, strict=True):
            assert found["scores"] == pytest.approx(dict(ad.scores), abs=1e-6)
            assert found["value_micros"] == pytest.approx(ad.value_micros, abs=1)
            assert found["price_micros"] == found["value_micros"]
            assert (found["currency"], found["propensity"]) == ("USD", 1.0)
        assert [ad["position"] for ad in answer["ads"]] == [1, 2, 3]
        assert answer["version"] == expected.version
        assert set(answer["stage_ms"]) == {
            "features", "retrieve", "rank", "order",
        }  # fmt: skip
        assert answer["at_ms"] == server.clock.now_ms
        assert not answer["degraded"]

    def test_a_number_is_a_user_too(self, server):
        assert server.recommend(user=17)["user"] == "17"

    def test_filters(self, server):
        ads = server.recommend(user="17", k=5)["ads"]
        less = server.recommend(user="17", k=5, exclude=[ads[0]["ad_id"]])["ads"]
        assert ads[0]["ad_id"] not in {ad["ad_id"] for ad in less}
        info = server.http.get(f"/v1/ads/{ads[0]['ad_id']}").json()
        name, value = next((n, v) for n, v in info["fields"].items() if v is not None)
        only = server.recommend(user="17", k=5, only={name: [value]})["ads"]
        assert only
        for ad in only:
            fields = server.http.get(f"/v1/ads/{ad['ad_id']}").json()["fields"]
            assert fields[name] == value

    def test_a_batch_is_answered_one_by_one(self, server):
        asked = [{"user": "17", "k": 2}, {"user": "3", "context": {"nonsense": 1}}, {"k": 1}]
        found = server.http.post("/v1/recommend", json={"requests": asked}).json()["answers"]
        assert [len(one.get("ads", [])) for one in found] == [2, 0, 1]
        assert "no field called nonsense" in found[1]["detail"]
        alone = server.recommend(user="17", k=2)
        assert [ad["ad_id"] for ad in found[0]["ads"]] == [ad["ad_id"] for ad in alone["ads"]]

    def test_exploration_tells_its_propensities(self, serve, run_copy):
        version = Bundle.open(run_copy).path
        manifest = json.loads((version / "manifest.json").read_text())
        manifest["serving"]["epsilon"] = 1.0
        (version / "manifest.json").write_text(json.dumps(manifest))
        server = serve(run_copy)
        answers = [server.recommend(user="17", k=3) for _ in range(4)]
        shares = {ad["propensity"] for answer in answers for ad in answer["ads"]}
        assert len(shares) == 1  # one in all that the ranker looked at
        assert 0.0 < shares.pop() < 0.2
        assert len({tuple(ad["ad_id"] for ad in answer["ads"]) for answer in answers}) > 1


class TestRefused:
    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ({"user": "17", "context": {"nonsense": 1}}, "no field called nonsense"),
            ({"user": "17", "k": 0}, "greater than or equal to 1"),
            ({"user": "17", "k": 101}, "at most 100 ads"),
            ({"user": "17", "surprise": 1}, "Extra inputs"),
            ({"requests": []}, "at least 1"),
            ({"requests": [{}] * 65}, "at most 64"),
            ({"user": "17", "context": {"device": {"a": 1}}}, "valid"),
            ({"user": "x" * 513}, "at most 512"),
            ({"user": "17", "only": {"nonsense": ["1"]}}, "nonsense"),
        ],
    )
    def test_with_the_reason(self, server, body, reason):
        found = server.http.post("/v1/recommend", json=body)
        assert found.status_code == 422
        assert reason in found.text

    @pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"NaN", b"null"])
    def test_what_is_no_request(self, server, body):
        found = server.http.post(
            "/v1/recommend", content=body, headers={"content-type": "application/json"}
        )
        assert found.status_code in (400, 422)

    def test_a_body_that_is_too_large(self, serve):
        server = serve(limits={"body_bytes": 2_000})
        body = json.dumps({"user": "17", "exclude": ["x" * 100] * 50}).encode()
        found = server.http.post("/v1/recommend", content=body)
        assert (found.status_code, "2,000 bytes" in found.text) == (413, True)

        def in_parts():
            yield body[:1_500]
            yield body[1_500:]

        found = server.http.post(  # does not say how long it is
            "/v1/recommend", content=in_parts(), headers={"content-type": "application/json"}
        )
        assert (found.status_code, "2,000 bytes" in found.text) == (413, True)

    def test_what_cannot_be_answered_in_time(self, server):
        server.service.batcher.close()
        found = server.http.post("/v1/recommend", json={"user": "17"})
        assert found.status_code == 429
        assert found.headers["retry-after"] == "1"
        assert "adrec_refused_total 1.0" in server.http.get("/metrics").text


class TestEvents:
    def test_the_next_request_knows_of_them(self, server):
        before = server.recommend(user="new here", k=4)
        assert not server.http.get("/v1/users/new here").json()["known"]
        taken = server.report(event(before), event(before, "click"), event(before, ad=1))
        assert taken == {"accepted": 3, "duplicates": 0, "rejected": []}
        server.clock.now_ms += 24 * 3_600_000  # whatever the tasks' delays
        user = server.http.get("/v1/users/new here").json()
        assert user["known"]
        clicked = [item for items in user["histories"].values() for item in items]
        assert {item["ad_id"] for item in clicked} >= {before["ads"][0]["ad_id"]}
        after = server.recommend(user="new here", k=4)
        scores = {ad["ad_id"]: ad["scores"]["click"] for ad in after["ads"]}
        assert scores != {ad["ad_id"]: ad["scores"]["click"] for ad in before["ads"]}

    def test_each_counts_once(self, server):
        answer = server.recommend(user="17")
        assert server.report(event(answer), event(answer))["accepted"] == 1
        taken = server.report(event(answer), event(answer, "click"))
        assert (taken["accepted"], taken["duplicates"]) == (1, 1)

    def test_those_that_make_no_sense_are_told(self, server):
        answer = server.recommend(user="17", k=1)
        odd = [
            event(answer, "glance"),
            event(answer, event_id="e2") | {"request_id": "unknown"},
            event(answer, event_id="e3") | {"ad_id": "no such ad"},
            event(answer, event_id="e4", at_ms=server.clock.now_ms + 3_600_000),
            event(answer, event_id="e5") | {"request_id": "mine", "context": {"nonsense": 1}},
        ]
        taken = server.report(*odd, event(answer))
        assert taken["accepted"] == 1
        reasons = [one["reason"] for one in taken["rejected"]]
        expected = ("kind is 'glance'", "no answer has", "has no ad", "in the future", "nonsense")
        assert len(reasons) == len(expected)
        assert all(part in reason for part, reason in zip(expected, reasons, strict=True))

    def test_of_an_ad_that_was_shown_elsewhere(self, server):
        ad = server.http.get("/v1/ads?limit=1").json()["ads"][0]["ad_id"]
        shown = {"kind": "impression", "request_id": "mine", "ad_id": ad, "user": "from elsewhere"}
        clicked = {"event_id": "b", "kind": "click", "request_id": "mine", "ad_id": ad}
        assert server.report({"event_id": "a"} | shown)["accepted"] == 1
        assert server.report(clicked)["accepted"] == 1
        assert server.http.get("/v1/users/from elsewhere").json()["known"]

    def test_they_are_there_after_a_restart(self, serve):
        server = serve()
        answer = server.recommend(user="new here", k=4)
        server.report(event(answer), event(answer, "click"))
        server.clock.now_ms += 24 * 3_600_000
        known = server.http.get("/v1/users/new here").json()
        scores = server.recommend(user="new here", k=4)["ads"]
        again = serve()
        assert again.http.get("/v1/users/new here").json() == known
        assert again.recommend(user="new here", k=4)["ads"] == scores
        more = again.report(event(answer, "click"), event(answer, "revenue", value=2.5))
        assert (more["accepted"], more["duplicates"]) == (1, 1)

    def test_when_the_log_cannot_be_written(self, server, monkeypatch):
        def fail(self, slates, events):
            raise EventLogError("event log: disk full")

        answer = server.recommend(user="17")
        with monkeypatch.context() as broken:
            broken.setattr(EventLog, "append", fail)
            meanwhile = server.recommend(user="17")  # is answered all the same
            found = server.http.post("/v1/events", json={"events": [event(answer)]})
            assert (found.status_code, "disk full" in found.text) == (503, True)
            assert found.headers["retry-after"] == "1"
            assert server.http.get("/v2/health/ready").status_code == 503
            assert server.http.get("/v2/health/live").status_code == 200
        assert server.http.get("/v2/health/ready").status_code == 200
        assert server.report(event(answer), event(meanwhile))["accepted"] == 2
        server.service.close()
        with closing(EventLog.in_file(server.log_file)) as log:
            assert log.slates([meanwhile["request_id"]])  # goes with its first event

    def test_when_the_log_stalls(self, serve, monkeypatch):
        """Reports time out, nothing else fails, and all goes on once it is back."""
        server = serve(events_timeout_s=0.2)
        monkeypatch.setattr("adrec.serving.service._READY_S", 0.1)
        answer, back, append = server.recommend(user="17"), threading.Event(), EventLog.append

        def stall(self, slates, events):
            back.wait(60.0)
            return append(self, slates, events)

        with monkeypatch.context() as stalled:
            stalled.setattr(EventLog, "append", stall)
            for kind in ("impression", "click"):
                body = {"events": [event(answer, kind)]}
                found = server.http.post("/v1/events", json=body)
                assert (found.status_code, found.headers["retry-after"]) == (503, "1")
            found = server.http.get("/v2/health/ready")
            assert (found.status_code, found.headers["retry-after"]) == (503, "1")
            assert server.http.post("/v1/recommend", json={"user": "17"}).status_code == 200
            back.set()
        assert server.report(event(answer), event(answer, "click"))["duplicates"] == 2
        assert server.http.get("/v2/health/ready").status_code == 200

    @pytest.mark.parametrize("where", ["event_id", "request_id", "user", "ad_id", "kind"])
    def test_a_sign_that_not_every_log_can_hold(self, server, where):
        ad = server.recommend(user="17")["ads"][0]["ad_id"]
        shown = {"event_id": "a", "kind": "impression", "request_id": "mine", "ad_id": ad}
        odd = shown | {"user": "17"} | {where: "a\u0000"}
        found = server.http.post("/v1/events", json={"events": [odd]})
        assert found.status_code == 422
        assert server.http.post("/v1/recommend", json={"user": "a\u0000"}).status_code == 422
        assert server.http.get("/v1/users/a%00").status_code == 422


class TestIds:
    @pytest.mark.parametrize("name", ["a/b", "a b", "ä?#", "status", "100%"])
    def test_of_any_kind(self, server, name):
        path = quote(name, safe="")
        ad = {"ad_id": name, "bid_micros": 5}
        assert server.http.put("/v1/ads", json={"ads": [ad]}).status_code == 204
        put = server.http.put(f"/v1/ads/{path}/status", json={"status": "paused"})
        assert put.status_code == 204
        assert server.http.get(f"/v1/ads/{path}").json()["status"] == "paused"
        assert server.http.delete(f"/v1/ads/{path}").status_code == 204
        assert server.http.get(f"/v1/ads/{path}").json()["status"] == "removed"
        assert server.http.delete(f"/v1/ads/{path}").status_code == 404

        answer = server.recommend(user=name)
        server.report(event(answer))
        found = server.http.get(f"/v1/users/{path}").json()
        assert (found["user"], found["known"]) == (name, True)
        assert server.admin.delete(f"/admin/users/{path}").json() == {"slates": 1}

    def test_are_spelt_as_a_table_spells_them(self, server):
        server.report(event(server.recommend(user="93.0")))
        assert server.http.get("/v1/users/93.0").json()["known"]
        assert server.http.get("/v1/users/93").json()["known"]
        assert server.admin.delete("/admin/users/93.0").json() == {"slates": 1}


class TestCatalogue:
    def test_an_ad_comes_changes_pauses_and_goes(self, serve):
        server = serve()
        name = next(iter(server.http.get("/v1/ads?limit=1").json()["ads"][0]["fields"]))
        ad = {"ad_id": "fresh", "bid_micros": 5, name: "value of a test"}
        assert server.http.put("/v1/ads", json={"ads": [ad]}).status_code == 204

        def found(of):
            answer = of.recommend(user="17", only={name: ["value of a test"]})
            return [one["ad_id"] for one in answer["ads"]]

        assert found(server) == ["fresh"]
        assert server.http.get("/v1/ads/fresh").json()["bid_micros"] == 5
        server.http.put("/v1/ads/fresh/status", json={"status": "paused"})
        assert found(server) == []
        again = serve()  # and after a restart
        assert again.http.get("/v1/ads/fresh").json()["status"] == "paused"
        assert again.http.put("/v1/ads", json={"ads": [ad]}).status_code == 204
        assert again.http.get("/v1/ads/fresh").json()["status"] == "paused"
        again = serve()
        assert again.http.get("/v1/ads/fresh").json()["status"] == "paused"
        again.http.put("/v1/ads/fresh/status", json={"status": "active"})
        assert found(again) == ["fresh"]
        assert again.http.delete("/v1/ads/fresh").status_code == 204
        assert again.http.get("/v1/ads/fresh").json()["status"] == "removed"
        assert found(again) == []
        last = serve()
        assert last.http.get("/v1/ads/fresh").json()["status"] == "removed"

    def test_the_last_ad_goes(self, serve):
        server = serve()
        ids = server.service.versions.current.recommender.index.now.about.catalogue.directory.ids
        gone = [AdChange(ad_id=ad_id, status="removed") for ad_id in ids]
        server.service.versions.change_ads(gone)
        assert server.recommend(user="17")["ads"] == []
        again = serve()  # which answers a few requests before it begins
        assert again.recommend(user="17")["ads"] == []
        assert (
            again.http.put(
                "/v1/ads", json={"ads": [{"ad_id": "fresh", "bid_micros": 5}]}
            ).status_code
            == 204
        )
        assert [ad["ad_id"] for ad in again.recommend(user="17")["ads"]] == ["fresh"]

    def test_what_could_not_be_written_has_not_happened(self, server, monkeypatch):
        """Else the client would find its change done when it tries again, and it would be lost."""
        ad = server.http.get("/v1/ads?limit=1").json()["ads"][0]
        changes = [
            ("PUT", "/v1/ads", {"ads": [{**ad["fields"], "ad_id": ad["ad_id"], "bid_micros": 7}]}),
            ("PUT", f"/v1/ads/{ad['ad_id']}/status", {"status": "paused"}),
            ("DELETE", f"/v1/ads/{ad['ad_id']}", None),
        ]

        def broken(log, changes):
            raise EventLogError("the disk is full")

        for method, path, body in changes:
            before = server.http.get(f"/v1/ads/{ad['ad_id']}").json()
            with monkeypatch.context() as broken_log:
                broken_log.setattr(EventLog, "change_ads", broken)
                assert server.http.request(method, path, json=body).status_code == 503
            assert server.http.get(f"/v1/ads/{ad['ad_id']}").json() == before
            assert server.http.request(method, path, json=body).status_code == 204
            assert server.http.get(f"/v1/ads/{ad['ad_id']}").json() != before

    def test_search(self, server):
        found = server.http.get("/v1/ads", params={"search": "1", "limit": 2}).json()
        assert found["total"] > 2
        assert len(found["ads"]) == 2
        assert all("1" in ad["ad_id"] for ad in found["ads"])

    def test_search_finds_ads_that_were_added(self, server):
        def found(text, limit=20):
            answer = server.http.get("/v1/ads", params={"search": text, "limit": limit}).json()
            return answer["total"], [ad["ad_id"] for ad in answer["ads"]]

        all_ads = found("", 1_000)[1]
        ones = [ad for ad in all_ads if "1" in ad]
        assert (len(all_ads), found("1", 3)) == (400, (len(ones), ones[:3]))
        assert found("no such ad") == (0, [])
        for count, ad in enumerate(["Fresh (1)", "fresh.Ünder", "FRESH"], start=1):
            server.http.put("/v1/ads", json={"ads": [{"ad_id": ad, "bid_micros": 5}]})
            assert found("fREsh")[0] == count
        assert found("(1)") == (1, ["Fresh (1)"])
        assert found("ÜNDER") == found(".ü") == (1, ["fresh.Ünder"])
        assert found("1", 1_000) == (len(ones) + 1, [*ones, "Fresh (1)"])
        server.http.delete("/v1/ads/FRESH")
        assert found("fresh")[0] == 3

    def test_one_search_at_a_time(self, server, monkeypatch):
        begun, ended = threading.Event(), threading.Event()

        def search(self, text, count):
            begun.set()
            assert ended.wait(60.0)
            return 0, []

        with monkeypatch.context() as slow, ThreadPoolExecutor(1) as other:
            slow.setattr(Loaded, "find_ads", search)
            first = other.submit(server.http.get, "/v1/ads?search=1")
            assert begun.wait(60.0)
            second = server.http.get("/v1/ads?search=2")
            ended.set()
            assert (first.result().status_code, second.status_code) == (200, 429)
        assert second.headers["retry-after"] == "1"
        assert server.http.get("/v1/ads?search=2").json()["total"] > 0
        assert "adrec_refused_total 0.0" in server.http.get("/metrics").text  # of those for ads

    def test_what_is_wrong_is_told(self, server):
        assert server.http.get("/v1/ads/none").status_code == 404
        assert server.http.delete("/v1/ads/none").status_code == 404
        found = server.http.put("/v1/ads", json={"ads": [{"ad_id": "x", "bid_micros": "much"}]})
        assert found.status_code == 422
        assert "bid_micros" in found.text
        assert server.http.get("/v1/ads/x").status_code == 404


class TestTokens:
    def test_events_and_changes_need_theirs(self, serve):
        server = serve(events_token=EVENTS_TOKEN, admin_token=ADMIN_TOKEN)
        answer = server.recommend(user="17")
        body = {"events": [event(answer)]}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": ADMIN_TOKEN}):
            assert server.http.post("/v1/events", json=body, headers=headers).status_code == 401
            assert server.http.delete("/v1/ads/1", headers=headers).status_code == 401
            assert server.http.get("/v1/users/17", headers=headers).status_code == 401
            assert server.admin.post("/admin/swap", headers=headers).status_code == 401
        mine = {"Authorization": f"Bearer {EVENTS_TOKEN}"}
        assert server.http.post("/v1/events", json=body, headers=mine).status_code == 200
        assert server.admin.post("/admin/swap", headers=mine).status_code == 401
        admins = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        assert server.admin.post("/admin/swap", headers=admins).status_code == 200
        assert EVENTS_TOKEN not in repr(server.service.config)


class TestOperations:
    def test_metrics(self, server):
        answer = server.recommend(user="17")
        server.report(event(answer))
        page = server.http.get("/metrics").text
        assert 'adrec_http_requests_total{route="/v1/recommend",status="200"} 1.0' in page
        assert 'adrec_events_total{kind="impression",result="accepted"} 1.0' in page
        assert 'adrec_stage_seconds_count{stage="rank"} 1.0' in page

    def test_a_user_is_erased(self, server):
        answer = server.recommend(user="17", k=2)
        server.report(event(answer), event(answer, "click"))
        server.clock.now_ms += 24 * 3_600_000
        assert any(server.http.get("/v1/users/17").json()["histories"].values())
        assert server.admin.delete("/admin/users/17").json() == {"slates": 1}
        assert not any(server.http.get("/v1/users/17").json()["histories"].values())

    def test_who_is_erased_while_an_answer_is_worked_out(self, server, monkeypatch):
        current, begun, erased = (
            server.service.versions.current,
            threading.Event(),
            threading.Event(),
        )
        answer = current.answer

        def slow(asks):
            found = answer(asks)
            begun.set()
            assert erased.wait(20)
            return found

        monkeypatch.setattr(current, "answer", slow)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(server.recommend, user="17", timeout_ms=30_000)
            assert begun.wait(20)
            server.admin.delete("/admin/users/17")
            erased.set()
            late = waiting.result()
        monkeypatch.undo()
        assert "no answer has" in server.report(event(late))["rejected"][0]["reason"]
        server.clock.now_ms += 1
        after = server.recommend(user="17")
        assert server.report(event(after))["accepted"] == 1
        with closing(EventLog.in_file(server.log_file)) as log:
            found = log.slates([late["request_id"], after["request_id"]])
            assert found.keys() == {after["request_id"]}

    def test_it_drains(self, server):
        assert server.http.get("/v2/health/ready").status_code == 200
        assert server.admin.post("/admin/drain").status_code == 204
        found = server.http.get("/v2/health/ready")
        assert (found.status_code, "drains" in found.text) == (503, True)
        assert server.http.get("/v2/models/adrec/ready").status_code == 503
        assert server.http.get("/v2/health/live").status_code == 200
        assert server.report(event(server.recommend(user="17")))["accepted"] == 1

    def test_old_days_are_pruned_by_themselves(self, serve):
        server = serve()
        answer = server.recommend(user="17")
        server.report(event(answer))
        server.clock.now_ms += 2 * 24 * 3_600_000
        again = serve(keep_days=1)
        deadline = time.monotonic() + 20.0
        with closing(EventLog.in_file(again.log_file)) as log:
            while log.slates([answer["request_id"]]):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert len(log) == 0

    def test_old_days_are_pruned(self, serve):
        server = serve(keep_days=1)
        server.report(event(server.recommend(user="17")))
        assert server.admin.post("/admin/prune").json() == {"slates": 0}
        server.clock.now_ms += 2 * 24 * 3_600_000
        assert server.admin.post("/admin/prune").json() == {"slates": 1}

    def test_the_page_of_all_requests(self, server):
        paths = server.http.get("/openapi.json").json()["paths"]
        assert {"/v1/recommend", "/v1/events", "/v1/ads", "/v2/health/ready"} <= paths.keys()
