"""Feed: whatever the log is told in, each event counts once."""

import time

import numpy as np
import pytest

from adrec.bundle import Bundle
from adrec.data.event_log import EventLog
from adrec.data.log_entries import IMPRESSION, Event, LoggedSlate, Shown
from adrec.errors import EventLogError
from adrec.recommender import Recommender
from adrec.serving import feed as module
from adrec.serving.feed import Feed

DAY_MS = 86_400_000


class Failing(EventLog):
    """A log that fails while its events are read, once a few have been."""

    def __init__(self, url, after):
        super().__init__(url)
        self.left = [True] * after + [False]

    def events(self, **which):
        for pair in super().events(**which):
            if self.left and not self.left.pop(0):
                raise EventLogError("the disk is gone")
            yield pair


class World:
    """A log, and recommenders that are told of it."""

    def __init__(self, run, path):
        self.log, self._bundle = EventLog.in_file(path), Bundle.open(run)
        self.end_ms = self._bundle.manifest.log_end_ms
        self.ads = self._bundle.catalogue.directory.ids[:3]
        self.feeds, self.slates = [], {}

    def feed(self):
        return Feed(Recommender.of(self._bundle), log_end_ms=self.end_ms)

    def answer(self, number, user="17", **values):
        slate = LoggedSlate(
            request_id=f"r{number}",
            at_ms=self.end_ms + number,
            user_id=user,
            version="v",
            ads=tuple(Shown(ad_id=ad) for ad in self.ads),
            **values,
        )
        self.slates[slate.request_id] = slate
        self.log.append([slate], [])

    def report(self, *events):
        """Pairs of a request's number and a kind, or a kind and its value."""
        first = len(self.log)
        return self.log.append([], [
            Event(
                event_id=f"e{first + i}", kind=kind, request_id=f"r{number}", ad_id=self.ads[0],
                at_ms=self.end_ms + 100, value=value[0] if value else 1.0,
            )
            for i, (number, kind, *value) in enumerate(events)
        ])  # fmt: skip

    def known(self, feed, users=("17", "23", None)):
        """What a recommender knows of ads and users, long after."""
        state, at_ms = feed.recommender.state, self.end_ms + 30 * DAY_MS
        rows = np.arange(len(state.catalogue))
        counters = [state.counters(state.visit(user, at_ms, {}), rows) for user in users]
        return np.concatenate([state.standing(at_ms), *counters], axis=1)


@pytest.fixture
def world(tiny_run, tmp_path):
    world = World(tiny_run, tmp_path / "events.db")
    yield world
    world.log.close()


@pytest.fixture
def remembering_one(monkeypatch):
    monkeypatch.setattr(module, "_REMEMBERED", 1)


class TestForgotten:
    @pytest.mark.usefixtures("remembering_one")
    def test_an_event_of_a_request_that_one_of_the_same_commit_pushes_out(self, world, monkeypatch):
        world.answer(1)
        world.answer(2, user="23")
        feed = world.feed()
        feed.tell(world.log, world.report((1, IMPRESSION)), world.slates)
        feed.tell(world.log, world.report((2, IMPRESSION), (1, "click")), world.slates)
        monkeypatch.undo()
        anew = world.feed()
        anew.catch_up(world.log)
        np.testing.assert_allclose(world.known(feed), world.known(anew), rtol=1e-6)

    @pytest.mark.usefixtures("remembering_one")
    def test_requests_are_forgotten_once_they_are_told(self, world):
        feed, table = world.feed(), world.feed()
        for number in range(1, 5):
            world.answer(number)
            feed.tell(world.log, world.report((number, IMPRESSION)), world.slates)
        table.begin(world.log, world.end_ms + DAY_MS)
        assert [*feed._heard] == [*table._heard] == ["r4"]
        click = world.report((1, "click"), (4, "click"))
        for one in (feed, table):
            one.tell(world.log, click, world.slates)
        anew = world.feed()
        anew.begin(world.log, world.end_ms + DAY_MS)
        for one in (feed, table):
            np.testing.assert_allclose(world.known(one), world.known(anew), rtol=1e-5, atol=1e-6)


class TestCatchingUp:
    def test_goes_on_from_where_it_failed(self, world, monkeypatch):
        monkeypatch.setattr(module, "_PART", 1)
        world.answer(1)
        world.report((1, IMPRESSION), (1, "revenue", 5.0), (1, "click"))
        failing, feed, anew = Failing(world.log.url, after=2), world.feed(), world.feed()
        with pytest.raises(EventLogError):
            feed.catch_up(failing)
        assert feed.told == 2
        feed.catch_up(failing)
        failing.close()
        anew.catch_up(world.log)
        assert feed.told == anew.told == 3
        np.testing.assert_allclose(world.known(feed), world.known(anew), rtol=1e-6)

    @pytest.mark.parametrize("tell", ["begin", "catch_up"])
    def test_up_to_a_place(self, world, tell):
        world.answer(1)
        world.report((1, IMPRESSION), (1, "click"))
        feed, anew = world.feed(), world.feed()
        anew.catch_up(world.log)
        world.answer(2)
        world.report((1, "engagement"), (2, IMPRESSION))
        if tell == "begin":
            feed.begin(world.log, world.end_ms + DAY_MS, last=2)
        else:
            feed.catch_up(world.log, last=2)
        assert feed.told == 2
        assert feed.newest_ms == anew.newest_ms
        np.testing.assert_allclose(world.known(feed), world.known(anew), rtol=1e-5, atol=1e-6)
        feed.catch_up(world.log, last=1)  # is known already
        assert feed.told == 2
        for one in (feed, anew):
            one.catch_up(world.log)
        assert feed.told == anew.told == 4
        np.testing.assert_allclose(world.known(feed), world.known(anew), rtol=1e-5, atol=1e-6)


def test_a_log_that_cannot_be_read_is_left_alone_for_a_while(world, monkeypatch):
    """Answers wait behind what is told."""
    feed, asked = world.feed(), []
    world.answer(1)
    world.report((1, IMPRESSION))
    (missed,) = world.report((1, "click"))

    def fail(log):
        asked.append(time.monotonic())
        time.sleep(0.02)
        raise EventLogError("no route to host")

    with monkeypatch.context() as broken:
        broken.setattr(EventLog, "marks", fail)
        for _ in range(3):
            with pytest.raises(EventLogError):
                feed.tell(world.log, [missed], world.slates)
    assert (len(asked), feed.told) == (1, 0)
    time.sleep(0.25)
    feed.tell(world.log, [missed], world.slates)
    assert feed.told == missed.seq
