"""Whether models serve on the numbers that they learn from."""

import pytest

from serving.events import event
from serving.test_versions import publish_copy

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
USERS = ("1", "2", "3", "new here", None)


def serve_a_while(server, hours=12):
    """Users come again and again; some click, which is reported at once."""
    for hour in range(hours):
        server.clock.now_ms += HOUR_MS
        for number, user in enumerate(USERS):
            answer = server.recommend(user=user, k=3, context={"device": "mobile"})
            events = [event(answer, ad=ad) for ad in range(len(answer["ads"]))]
            if (hour + number) % 2:
                events.append(event(answer, "click"))
            if (hour + number) % 3 == 0:
                events.append(event(answer, "revenue", value=1.5))
            server.report(*events)


def check(server):
    server.clock.now_ms += 2 * DAY_MS
    return server.admin.post("/admin/check").json()


def test_models_serve_on_what_they_learn_from(serve):
    server = serve(sample=1.0)
    serve_a_while(server)
    found = check(server)
    assert (found["checked"], found["different"], found["parts"]) == (60, 0, {})
    page = server.http.get("/metrics").text
    assert "adrec_skew_compared 60.0" in page
    assert "adrec_skew_different 0.0" in page


def test_also_over_ads_that_came_while_serving(serve):
    server = serve(sample=1.0)
    ad = server.http.get("/v1/ads?limit=1").json()["ads"][0]
    fresh = [{"ad_id": f"new {i}", "bid_micros": 10**9, **ad["fields"]} for i in range(3)]
    assert server.http.put("/v1/ads", json={"ads": fresh}).status_code == 204
    serve_a_while(server, hours=6)
    found = check(server)
    assert (found["checked"], found["different"]) == (30, 0)


def test_only_answers_of_the_version_are_compared(serve, run_copy):
    """Those before a swap were given with the means and fields of another one."""
    server = serve(run_copy, sample=1.0)
    serve_a_while(server, hours=2)
    second = publish_copy(run_copy, "29990101T000000-second").name
    assert server.admin.post(f"/admin/swap?version={second}").status_code == 200
    serve_a_while(server, hours=3)
    found = check(server)
    assert (found["checked"], found["different"]) == (3 * len(USERS), 0)


def test_an_outcome_that_comes_too_late_is_told(serve):
    """In the table a click is known an hour after its impression, whenever it was reported."""
    server = serve(sample=1.0)
    schema = server.service.current.schema
    delay_ms = schema.click.delay_ms
    answer = server.recommend(user="new here", k=1)
    server.report(event(answer))
    server.clock.now_ms += delay_ms + HOUR_MS
    meanwhile = server.recommend(user="new here", k=1)
    server.report(event(answer, "click"), event(meanwhile))
    found = check(server)
    assert (found["checked"], found["different"]) == (2, 1)
    assert found["examples"] == [meanwhile["request_id"]]
    assert any(part.startswith("history") for part in found["parts"])


def test_only_a_sample_is_kept(serve):
    server = serve(sample=0.0)
    serve_a_while(server, hours=1)
    assert check(server)["checked"] == 0


def test_a_client_may_ask_what_the_models_were_told(serve):
    server = serve(sample=1.0)
    answer = server.recommend(user="1", k=2)
    assert "seen" not in answer
    server.report(event(answer), event(answer, "click"))
    server.clock.now_ms += DAY_MS
    seen = server.recommend(user="1", k=2, explain=True)["seen"]
    assert any(answer["ads"][0]["ad_id"] in past["ads"] for past in seen["histories"].values())
    assert len(seen["counters"]) == 2
    assert all(any(counters) for counters in seen["counters"].values())
    names = seen["counter_names"]
    assert len(set(names)) == len(names)
    assert all(len(counters) == len(names) for counters in seen["counters"].values())
    assert {name.partition(": ")[2] for name in names} >= {"shown", "click"}


@pytest.mark.parametrize("damage", ["histories", "counters"])
def test_features_that_were_damaged_on_the_way_are_told(serve, damage, monkeypatch):
    """What a mistake in the feature code of one side would look like."""
    from adrec.features.counters import Counter
    from adrec.features.histories import History

    server = serve(sample=1.0)
    kind = {"histories": History, "counters": Counter}[damage]
    monkeypatch.setattr(kind, "observe", lambda self, *args: None)
    serve_a_while(server, hours=4)
    assert check(server)["different"] > 0


def test_what_is_told_as_a_table_comes_to_the_same(serve):
    """A server that starts reads the log as a table; the one before had been told live. Some
    outcomes are settled by then, some are not."""
    server = serve()
    serve_a_while(server, hours=6)
    server.clock.now_ms += 1_000
    late = server.recommend(user="2", k=3)
    server.report(event(late), event(late, "click"), event(late, ad=2))

    def known(of):
        answers = [of.recommend(user=user, k=5, explain=True) for user in USERS]
        return [(answer["ads"], answer["seen"]) for answer in answers]

    now_ms = server.clock.now_ms
    for wait_ms in (1, 90_000, DAY_MS):
        server.clock.now_ms = now_ms + wait_ms
        expected = known(server)
        again = serve()
        for (ads, seen), (expected_ads, expected_seen) in zip(known(again), expected, strict=True):
            assert seen["histories"] == expected_seen["histories"]
            for ad, counters in expected_seen["counters"].items():
                assert seen["counters"][ad] == pytest.approx(counters, abs=1e-5)
            assert [ad["ad_id"] for ad in ads] == [ad["ad_id"] for ad in expected_ads]
        server = again
