"""The durable log of slates and events."""

import threading
from concurrent.futures import wait

import pytest
import sqlalchemy as sa

from adrec.data.event_log import EventLog
from adrec.data.group_commit import GroupCommit
from adrec.data.log_entries import IMPRESSION, METADATA, AdChange, Event, LoggedSlate, Shown
from adrec.errors import EventLogError
from serving.stores import Postgres

DAY_MS = 86_400_000


def slate(number, *, at_ms=1_000, user="u1", **values):
    ads = (Shown(ad_id="a", propensity=0.5), Shown(ad_id="b"))
    return LoggedSlate(
        request_id=f"r{number}", at_ms=at_ms, user_id=user, version="v1", ads=ads, **values
    )


def event(number, *, request=1, kind=IMPRESSION, at_ms=1_500, **values):
    return Event(
        event_id=f"e{number}", kind=kind, request_id=f"r{request}", ad_id="a", at_ms=at_ms, **values
    )


@pytest.fixture(scope="module")
def postgres():
    server = Postgres()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def log(request, tmp_path):
    """The same contract holds of both databases."""
    if request.param == "sqlite":
        log = EventLog.in_file(tmp_path / "log" / "events.db")
    else:
        log = EventLog(request.getfixturevalue("postgres").url)
    yield log
    if request.param == "postgresql":
        with log._engine.begin() as connection:
            for table in reversed(METADATA.sorted_tables):
                connection.execute(sa.text(f"TRUNCATE {table.name} RESTART IDENTITY"))
    log.close()


def reopened(log):
    """The same database, opened once more."""
    return EventLog(log._url.render_as_string(hide_password=False))


def numbers(pairs):
    return [one.event_id for one, _ in pairs]


class TestAppend:
    def test_what_is_read_is_what_was_written(self, log):
        said = slate(1, context={"device": "mobile", "at": [1, None]}, profile={"age": 30})
        log.append([said], [event(1), event(2, kind="click", value=2.5)])
        assert log.slates(["r1", "unknown"]) == {"r1": said}
        found = list(log.events())
        assert [(one.seq, one.event_id, one.kind, one.value) for one, _ in found] == [
            (1, "e1", IMPRESSION, 1.0),
            (2, "e2", "click", 2.5),
        ]
        assert all(of == said for _, of in found)

    def test_an_event_counts_once(self, log):
        assert [one.seq for one in log.append([slate(1)], [event(1), event(1)])] == [1]
        assert log.append([slate(1)], [event(1), event(2)])[0].event_id == "e2"
        assert numbers(log.events()) == ["e1", "e2"]
        assert len(log) == 2

    def test_the_first_of_equal_ids_stays(self, log):
        log.append([slate(1)], [event(1, value=1.0), event(1, value=9.0)])
        assert [one.value for one, _ in log.events()] == [1.0]

    def test_all_is_there_after_a_restart(self, log):
        log.append([slate(1)], [event(1)])
        log.close()
        again = reopened(log)
        assert again.id == log.id
        assert numbers(again.events()) == ["e1"]
        assert again.append([], [event(2)])[0].seq == 2
        again.close()

    def test_order_is_that_of_the_appends(self, log):
        log.append([slate(1), slate(2)], [event(9, request=2), event(3), event(5, request=2)])
        log.append([], [event(1)])
        assert numbers(log.events()) == ["e9", "e3", "e5", "e1"]
        assert numbers(log.events(after=2)) == ["e5", "e1"]

    def test_many_at_once(self, log):
        log.append([slate(i) for i in range(1_200)], [event(i, request=i) for i in range(1_200)])
        assert len(log.slates([f"r{i}" for i in range(1_200)])) == 1_200
        assert numbers(log.events()) == [f"e{i}" for i in range(1_200)]


def test_slates_of_a_period_with_what_was_reported_of_them(log):
    """Many are read in parts; who is erased meanwhile is in none of the parts that follow."""
    count, most = 1_200, 500
    log.append([slate(n, at_ms=1_000 + n // 2, user=f"u{n % 2}") for n in range(count)], [])
    for part, kind in enumerate((IMPRESSION, "click")):
        log.append([], [event(2 * n + part, request=n, kind=kind) for n in reversed(range(count))])
    end = log.marks().last + 1
    log.append([slate("silent", at_ms=1_200)], [event("late", request=100)])
    shown = log.shown(1_010, 1_500, before=end)
    found = [next(shown)]
    log.erase_user("u1", at_ms=5_000)
    found += shown
    wanted = range(20, 1_000)
    wanted = [*wanted[:most], *wanted[most::2]]
    assert [one.request_id for one, _ in found] == [f"r{n}" for n in wanted]
    assert [[event.event_id for event in events] for _, events in found] == [
        [f"e{2 * n}", f"e{2 * n + 1}"] for n in wanted
    ]


def test_what_was_reported_of_some_requests(log):
    log.append(
        [slate(1), slate(2)],
        [event(1), event(2, request=2), event(3, kind="click"), event(4, kind="revenue")],
    )
    assert [one.event_id for one in log.reported(["r1", "r9"], before=4)] == ["e1", "e3"]


class TestLess:
    def test_from_an_instant_on(self, log):
        log.append([slate(1, at_ms=5), slate(2, at_ms=6)], [event(1), event(2, request=2)])
        assert numbers(log.events(from_ms=6)) == ["e2"]

    def test_pruned(self, log):
        log.append(
            [slate(1, at_ms=DAY_MS - 1), slate(2, at_ms=DAY_MS)], [event(1), event(2, request=2)]
        )
        assert log.prune(DAY_MS) == 1
        assert numbers(log.events()) == ["e2"]
        assert list(log.slates(["r1", "r2"])) == ["r2"]

    def test_a_user_is_erased(self, log):
        log.append([slate(1), slate(2, user="u2")], [event(1), event(2, request=2)])
        assert log.erase_user("u1", at_ms=9) == 1
        assert numbers(log.events()) == ["e2"]

    def test_numbers_are_not_given_twice(self, log):
        log.append([slate(1), slate(2)], [event(1), event(2, request=2)])
        log.prune(DAY_MS)
        assert log.append([slate(3)], [event(3, request=3)])[0].seq == 3


class TestAdChanges:
    def test_the_last_word_counts(self, log):
        log.change_ads([AdChange(ad_id="b", status="active", fields={"topic": "x", "bid": 3})])
        log.change_ads(
            [AdChange(ad_id="a", status="removed"), AdChange(ad_id="b", status="paused")]
        )
        assert log.ad_changes() == [
            AdChange(ad_id="a", status="removed"),
            AdChange(ad_id="b", status="paused", fields={"topic": "x", "bid": 3}),
        ]
        log.change_ads([AdChange(ad_id="b", status="active", fields={"topic": "y"})])
        assert log.ad_changes()[1].fields == {"topic": "y"}


class TestGroupCommit:
    def test_appends_of_many_threads(self, log):
        group, futures = GroupCommit(log), []

        def report(thread):
            for i in range(50):
                number = thread * 1_000 + i
                some = [event(number, request=number), event(0)]
                futures.append(group.append([slate(number)], some))

        threads = [threading.Thread(target=report, args=(n,)) for n in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait(futures)
        group.close()
        added = [one.event_id for future in futures for one in future.result()]
        assert sorted(added) == sorted(set(added))
        assert len(log) == len(added) == 201  # 4 x 50, and the one that all report

    def test_a_thread_s_appends_keep_their_order(self, log):
        group = GroupCommit(log)
        group.append([slate(1)], [])
        for i in range(30):
            group.append([], [event(i)])
        group.close()
        assert numbers(log.events()) == [f"e{i}" for i in range(30)]

    def test_told_before_those_who_wait_hear_of_it(self, log):
        told = []
        group = GroupCommit(log, on_commit=lambda slates, events: told.append((slates, events)))
        added = group.append([slate(1)], [event(1), event(1)]).result(timeout=10)
        assert told == [([slate(1)], added)]
        assert [one.seq for one in added] == [1]
        group.close()

    def test_what_nobody_waits_for_goes_with_what_is_urgent_or_by_itself(self, log):
        told = []
        group = GroupCommit(log, on_commit=lambda slates, events: told.append((slates, events)))
        group.append([slate(1)], [], urgent=False).result(timeout=10)
        early = group.append([slate(2)], [], urgent=False)
        added = group.append([slate(2)], [event(1, request=2)]).result(timeout=10)
        assert early.result(timeout=0) == []
        assert told == [([slate(1)], []), ([slate(2)], added)]
        group.append([slate(3)], [], urgent=False)
        group.close()
        assert log.slates(["r1", "r2", "r3"]).keys() == {"r1", "r2", "r3"}

    @pytest.mark.parametrize("log", ["sqlite"], indirect=True)
    def test_those_who_wait_hear_of_a_failure(self, log, tmp_path):
        log.append([slate(1)], [])
        for file in (tmp_path / "log").iterdir():
            file.write_bytes(b"no database")
        log.close()
        group = GroupCommit(log)
        with pytest.raises(EventLogError, match=r"event log sqlite.*events\.db"):
            group.append([], [event(1)]).result(timeout=10)
        group.close()

    def test_more_than_may_wait_are_refused(self, log):
        group = GroupCommit(log, most_waiting=1)
        group.close()  # nobody takes them
        assert not group.append([slate(1)], []).done()
        with pytest.raises(EventLogError, match="cannot keep up"):
            group.append([slate(1)], []).result()


class TestMarks:
    def test_each_change_counts(self, log):
        assert (log.marks().last, log.marks().ads, log.marks().versions) == (0, 0, 0)
        log.append([slate(1)], [event(1), event(2)])
        assert log.marks().last == 2
        assert [log.change_ads([AdChange(ad_id=ad, status="paused")]) for ad in "ab"] == [1, 2]
        assert [change.ad_id for change in log.ad_changes(after=1)] == ["b"]
        log.want_version("v2")
        marks = log.marks()
        assert (marks.ads, marks.version, marks.versions) == (2, "v2", 1)

    def test_erasures_last(self, log):
        log.append([slate(1)], [event(1)])
        assert log.erase_user("u1", at_ms=50) == 1
        assert log.erase_user("u2", at_ms=60) == 0
        assert set(log.erased()) == {"u1", "u2"}
        assert log.erased(after=1) == ["u2"]
        assert log.erased(from_ms=55) == ["u2"]


def test_who_reads_up_to_a_number_has_read_all_before_it(log):
    """Two processes append at the same time; a third follows and misses nothing."""
    both = [reopened(log), reopened(log)]

    def append(which):
        for i in range(40):
            number = 1_000 * which + i
            both[which].append([slate(number)], [event(number, request=number)])

    threads = [threading.Thread(target=append, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    told, seen = 0, []
    while any(thread.is_alive() for thread in threads) or log.marks().last > told:
        for one, _ in log.events(after=told):
            seen.append(one.event_id)
            told = one.seq
    assert len(seen) == len(set(seen)) == 80
    for one in both:
        one.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "cannot be opened"),
        ("sqlite:////no/such/folder/events.db", "unable to open"),
        ("oracle://host/name", "event log 'oracle"),
    ],
)
def test_what_cannot_be_opened(url, message):
    with pytest.raises(EventLogError, match=message):
        EventLog(url)
