"""News through a real Redis: what one server takes in, another knows before its next answer."""

import json
import threading
import time
import traceback

import pytest

from adrec.data.log_entries import Event, LoggedSlate, Shown
from adrec.errors import ConfigError, EventLogError
from adrec.serving.news import News
from serving.events import event
from serving.stores import Redis

SLATE = LoggedSlate(
    request_id="r1", at_ms=5, user_id="u", version="v", context={"device": "x"},
    ads=(Shown(ad_id="a", propensity=0.5, score=0.1),),
)  # fmt: skip
EVENT = Event(event_id="e1", kind="click", request_id="r1", ad_id="a", at_ms=6, seq=3)


@pytest.fixture
def redis(tmp_path):
    server = Redis(tmp_path)
    yield server
    server.close()


@pytest.fixture
def pair(redis):
    """Two servers' ends of one stream."""
    both = [News(redis.url, "log", timeout_ms=200.0) for _ in range(2)]
    yield both
    for one in both:
        one.close()


class TestNews:
    def test_what_is_told_is_read_once_by_each(self, pair):
        first, second = pair
        other = LoggedSlate(request_id="r2", at_ms=5, user_id="u", version="v", ads=())
        first.publish([SLATE, other], [EVENT])
        for one in pair:
            assert one.read() == [([SLATE], [EVENT])]  # of the slates those with an event
            assert one.read() == []
        second.publish([], [EVENT])
        assert first.read() == [([], [EVENT])]

    def test_much_is_read_at_once(self, pair, monkeypatch):
        monkeypatch.setattr("adrec.serving.news._MOST", 2)
        for _ in range(5):
            pair[0].publish([SLATE], [EVENT])
        assert pair[1].read() == [([SLATE], [EVENT])] * 5
        assert pair[1].read() == []

    def test_what_cannot_be_read_is_left_to_the_log(self, pair):
        """As another release may tell it."""
        pair[0]._redis.xadd(pair[0]._name, {"message": json.dumps({"slates": [], "events": [{}]})})
        pair[0].publish([SLATE], [EVENT])
        assert pair[1].read() is None
        assert pair[1].read() == []

    def test_what_is_to_be_forgotten_goes_first_once_redis_is_back(self, redis, pair):
        pair[0].publish([SLATE], [EVENT])
        redis.stall()
        pair[0].forget()
        assert pair[0].read() is None
        redis.resume()
        deadline = time.monotonic() + 20
        while pair[0].read() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert pair[1].read() == []
        pair[0].publish([SLATE], [EVENT])
        assert pair[1].read() == [([SLATE], [EVENT])]

    def test_what_was_told_before_is_in_the_log(self, redis, pair):
        pair[0].publish([SLATE], [EVENT])
        late = News(redis.url, "log", timeout_ms=200.0)
        assert late.read() == []
        late.close()

    def test_logs_do_not_hear_of_each_other(self, redis, pair):
        other = News(redis.url, "another log", timeout_ms=200.0)
        other.publish([SLATE], [EVENT])
        assert pair[0].read() == []
        other.close()

    def test_a_stalled_server_holds_nobody_up(self, redis, pair):
        redis.stall()
        begun = time.monotonic()
        assert pair[0].read() is None
        pair[0].publish([SLATE], [EVENT])
        assert pair[0].read() is None  # it is left alone for a while
        assert time.monotonic() - begun < 0.9
        redis.resume()
        deadline = time.monotonic() + 20
        while pair[0].read() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def test_a_server_that_is_not_there_yet(self, redis):
        redis.kill()
        news = News(redis.url, "log", timeout_ms=200.0)
        assert news.read() is None
        redis.start()
        deadline = time.monotonic() + 20
        while news.read() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        news.close()

    @pytest.mark.parametrize(
        "url", ["nonsense", "http://:secret@host", "redis://:secret/more@host", "redis://h:secret"]
    )
    def test_what_is_no_url(self, url):
        """It may hold a password all the same."""
        with pytest.raises(ConfigError, match="is no URL of a Redis") as refused:
            News(url, "log", timeout_ms=1.0)
        assert "secret" not in "".join(traceback.format_exception(refused.value, limit=0))


@pytest.fixture
def two(redis, serve, tiny_run, tmp_path):
    """Two servers of one log, which they do not look into on their own for a minute."""
    from serving.conftest import Server

    settings = {"redis": redis.url, "redis_timeout_ms": 200.0, "follow_ms": 60_000.0}
    first = serve(**settings)
    given = {"timeout_ms": 30_000.0, "batching": {"at_once": 1}} | settings
    given |= {"answer_in": "threads"}
    second = Server(tiny_run, tmp_path / "events.db", first.clock, given)
    yield first, second
    second.service.close()


def test_the_next_answer_of_another_server_knows(two):
    first, second = two
    answer = first.recommend(user="new here", k=2)
    before = second.recommend(user="new here", k=2)
    first.report(event(answer), event(answer, "click"), event(answer, ad=1))
    first.clock.now_ms += 24 * 3_600_000
    after = second.recommend(user="new here", k=2)
    assert after["ads"] != before["ads"]
    assert (
        second.http.get("/v1/users/new here").json() == first.http.get("/v1/users/new here").json()
    )
    assert not after["degraded"]
    # And the other way round, with an event of a request that the first answered.
    assert second.report(event(answer, "engagement"))["accepted"] == 1
    assert (
        first.recommend(user="new here", k=2)["ads"]
        == second.recommend(user="new here", k=2)["ads"]
    )


def test_without_redis_answers_are_degraded_and_nothing_is_lost(two, redis):
    first, second = two
    answer = first.recommend(user="new here", k=2)
    redis.kill()
    assert first.report(event(answer))["accepted"] == 1
    for server in two:
        assert server.recommend(user="17")["degraded"]
    assert not second.http.get("/v1/users/new here").json()["known"]
    redis.start()
    deadline = time.monotonic() + 20
    while second.recommend(user="17")["degraded"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # The next event tells that one was missed, and the log has it.
    assert first.report(event(answer, "click"))["accepted"] == 1
    assert not second.recommend(user="17")["degraded"]
    assert second.http.get("/v1/users/new here").json()["known"]
    assert "adrec_degraded_total" in second.http.get("/metrics").text


def test_an_answer_waits_for_what_another_thread_has_read(two, monkeypatch):
    """Who reads next finds nothing new, but may not answer before that is told."""
    first, second = two
    answer = first.recommend(user="new here", k=2)
    read, telling, may_tell = [], threading.Event(), threading.Event()
    tell = second.service.versions.tell

    def slow(slates, events):
        telling.set()
        assert may_tell.wait(20)
        tell(slates, events)

    def hear():
        read.append(second.service._hear())

    monkeypatch.setattr(second.service.versions, "tell", slow)
    first.report(event(answer))
    threads = [threading.Thread(target=hear) for _ in range(2)]
    threads[0].start()
    assert telling.wait(20)
    threads[1].start()
    threads[1].join()
    assert read == [False]  # it went on without, and says so
    may_tell.set()
    threads[0].join()
    assert read == [False, True]


def test_a_log_out_of_reach_is_left_alone_while_news_comes(two, monkeypatch):
    first, second = two
    asked = []

    def fail(slates, events):
        asked.append(time.monotonic())
        time.sleep(0.05)
        raise EventLogError("no route to host")

    monkeypatch.setattr(second.service.versions, "tell", fail)
    for _ in range(5):
        first.report(event(first.recommend(user="new here")))
        assert second.recommend(user="17")["degraded"]
    assert len(asked) == 1
