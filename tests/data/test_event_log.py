"""The durable log of slates and events."""

import asyncio
import itertools
import threading
from concurrent.futures import wait
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from adrec.data import event_log
from adrec.data.event_log import EventLog
from adrec.data.group_commit import GroupCommit
from adrec.data.log_entries import (
    IMPRESSION,
    METADATA,
    AdChange,
    Event,
    LoggedSlate,
    Shown,
    Wanted,
)
from adrec.errors import DataError, EventLogError
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
    return EventLog(log.url)


@pytest.fixture
def by_twos(monkeypatch):
    """Two slates are deleted in a transaction."""
    monkeypatch.setattr(event_log, "_DELETED", 2)


@contextmanager
def at_commits(log, act):
    """Call something with the number of each commit before it takes place, from 1 on."""
    commits = itertools.count(1)

    def commit(connection):
        del connection
        act(next(commits))

    sa.event.listen(log._engine, "commit", commit)
    try:
        yield
    finally:
        sa.event.remove(log._engine, "commit", commit)


def interrupted(number):
    if number == 2:
        raise KeyboardInterrupt


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

    @pytest.mark.usefixtures("by_twos")
    def test_pruned_in_parts_oldest_first(self, log):
        log.append(
            [slate(n, at_ms=10 - n) for n in range(6)], [event(n, request=n) for n in range(6)]
        )
        other, before = reopened(log), []
        with at_commits(log, lambda _: before.append((other.span_ms(), len(other)))):
            assert log.prune(10) == 5
        assert before[:3] == [((5, 10), 6), ((7, 10), 4), ((9, 10), 2)]
        assert numbers(log.events()) == ["e0"]
        assert len(log) == 1
        other.close()

    @pytest.mark.usefixtures("by_twos")
    def test_what_was_pruned_before_an_interruption_stays_so(self, log):
        log.append([slate(n, at_ms=n) for n in range(6)], [event(n, request=n) for n in range(6)])
        with pytest.raises(KeyboardInterrupt), at_commits(log, interrupted):
            log.prune(5)
        assert numbers(log.events()) == ["e2", "e3", "e4", "e5"]
        assert log.prune(5) == 3
        assert numbers(log.events()) == ["e5"]

    @pytest.mark.usefixtures("by_twos")
    def test_pruning_ends_soon_when_it_is_told_to(self, log):
        log.append([slate(n, at_ms=n) for n in range(6)], [])
        stop = threading.Event()
        with at_commits(log, lambda number: number == 2 and stop.set()):
            assert log.prune(6, stop=stop) == 4
        assert log.span_ms() == (4, 5)

    @pytest.mark.parametrize("log", ["sqlite"], indirect=True)
    def test_others_write_while_much_is_pruned(self, log, monkeypatch):
        """They wait for a part or a few, of which there are 40 here; not for all."""
        monkeypatch.setattr(event_log, "_DELETED", 50)
        many = 2_000
        log.append(
            [slate(n, at_ms=n) for n in range(many)],
            [event(2 * n + i, request=n) for n in range(many) for i in range(2)],
        )
        over, started, written = threading.Event(), threading.Event(), []

        def write():
            other = reopened(log)
            started.set()
            while not over.wait(0.005):
                number = many + len(written)
                other.append([slate(number, at_ms=many)], [event(f"new{number}", request=number)])
                written.append(number)
            other.close()

        writer = threading.Thread(target=write)
        writer.start()
        started.wait()
        before = len(written)
        assert log.prune(many) == many
        during = len(written) - before
        over.set()
        writer.join()
        assert during >= 3
        assert len(log) == len(written)

    @pytest.mark.parametrize("log", ["sqlite"], indirect=True)
    def test_what_is_deleted_is_found_by_an_index(self, log):
        log.append([slate(1), slate(2, user="u2")], [event(1), event(2, request=2)])
        deletions = []

        def note(connection, cursor, statement, parameters, *_):
            del connection, cursor
            if statement.startswith("DELETE"):
                deletions.append((statement, parameters))

        sa.event.listen(log._engine, "before_cursor_execute", note)
        assert log.erase_user("u2", at_ms=9) == log.prune(DAY_MS) == 1
        with log._engine.connect() as connection:
            steps = [
                row.detail
                for statement, parameters in deletions
                for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            ]
        assert {"slates", "events"} == {step.split()[1] for step in steps if "SEARCH" in step}
        assert not [step for step in steps if step.startswith(("SCAN", "USE TEMP B-TREE"))]

    @pytest.mark.usefixtures("by_twos")
    def test_a_user_of_many_slates_is_erased_in_parts(self, log):
        log.append(
            [slate(n, user=f"u{n % 2}") for n in range(10)],
            [event(n, request=n) for n in range(10)],
        )
        other, before = reopened(log), []
        with at_commits(log, lambda _: before.append((len(other), list(other.erased())))):
            assert log.erase_user("u1", at_ms=9) == 5
        assert before == [(10, []), (8, []), (6, [])]
        assert (len(other), list(other.erased())) == (5, ["u1"])
        other.close()

    @pytest.mark.usefixtures("by_twos")
    def test_a_user_is_noted_as_erased_once_nothing_is_left(self, log):
        log.append([slate(n) for n in range(5)], [event(n, request=n) for n in range(5)])
        with pytest.raises(KeyboardInterrupt), at_commits(log, interrupted):
            log.erase_user("u1", at_ms=9)
        assert (len(log), log.erased()) == (3, {})
        assert log.erase_user("u1", at_ms=9) == 3
        assert (len(log), list(log.erased())) == (0, ["u1"])

    def test_a_user_is_erased(self, log):
        log.append([slate(1), slate(2, user="u2")], [event(1), event(2, request=2)])
        assert log.erase_user("u1", at_ms=9) == 1
        assert numbers(log.events()) == ["e2"]

    def test_the_place_of_the_nth_event_after_another(self, log):
        log.append([slate(1)], [event(i) for i in range(1, 4)])
        log.append([], [event(i) for i in range(1, 4)])  # which may use numbers up
        last = log.append([], [event(4)])[0].seq
        assert [log.place(after=1, count=n) for n in (1, 2, 3, 4)] == [2, 3, last, None]

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

    def test_a_paused_ad_stays_paused_when_its_fields_are_put(self, log):
        def put(status, fields=None):
            log.change_ads([AdChange(ad_id="a", status=status, fields=fields)])
            return log.ad_changes()[0].status

        assert put("paused") == "paused"
        assert put("active", {"bid": 1}) == "paused"
        assert put("active") == "active"
        assert put("removed") == "removed"
        assert put("active", {"bid": 2}) == "active"


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


class TestValues:
    def test_what_the_log_cannot_hold(self, log):
        """PostgreSQL has no place for the sign NUL."""
        odd = [slate(1, user="a\x00")]
        if log.url.startswith("sqlite"):
            assert log.append(odd, []) == []
            return
        with pytest.raises(DataError, match="cannot hold"):
            log.append(odd, [])
        assert log.append([slate(1)], [event(1)])

    def test_nothing_is_written_all_the_same(self, log):
        marks = log.marks()
        assert log.append([], []) == []
        assert log.marks() == marks


class TestMarks:
    def test_each_change_counts(self, log):
        assert (log.marks().last, log.marks().ads, log.marks().versions) == (0, 0, 0)
        log.append([slate(1)], [event(1), event(2)])
        assert log.marks().last == 2
        assert [log.change_ads([AdChange(ad_id=ad, status="paused")]) for ad in "ab"] == [1, 2]
        assert [change.ad_id for change in log.ad_changes(after=1)] == ["b"]
        assert log.want_version(Wanted("v2", "v1", "v0")) == 1
        marks = log.marks()
        assert (marks.ads, marks.wanted, marks.versions) == (2, Wanted("v2", "v1", "v0"), 1)

    def test_erasures_last(self, log):
        log.append([slate(1)], [event(1)])
        assert log.erase_user("u1", at_ms=50) == 1
        assert log.erase_user("u2", at_ms=60) == 0
        assert set(log.erased()) == {"u1", "u2"}
        assert list(log.erased(after=1)) == ["u2"]
        assert list(log.erased(from_ms=55)) == ["u2"]


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


@pytest.mark.parametrize(
    "url",
    [
        "mysql+nothing://me:hush@host/name",
        "postgresql//me:hush@host/name",
        "postgresql+psycopg://me:h@ush@127.0.0.1:1/name",
        "postgresql+psycopg://me:p@hush:word@host/name",
        "postgresql+psycopg://127.0.0.1:1/name?password=hush",
        "postgresql+psycopg:/127.0.0.1/name?password=hush",
        "sqlite://me:hush@host/name",
    ],
)
def test_passwords_are_not_shown(url):
    with pytest.raises(EventLogError, match="event log") as caught:
        EventLog(url)
    assert "ush" not in str(caught.value)

    def test_one_that_cannot_be_written_stays_alone(self, log, monkeypatch):
        def append(slates, events, whole=log.append):
            if any(one.event_id == "e13" for one in events):
                raise DataError("cannot be held")
            return whole(slates, events)

        monkeypatch.setattr(log, "append", append)
        group = GroupCommit(log)
        waiting = [group.append([slate(i)], [event(i, request=i)]) for i in range(10, 20)]
        wait(waiting)
        assert [i for i, one in enumerate(waiting, 10) if one.exception()] == [13]
        assert len(log) == 9
        group.close()

    def test_it_goes_on_when_nobody_waits_any_more(self, log, monkeypatch):
        stalled, whole = threading.Event(), log.append

        def append(slates, events):
            stalled.wait(10.0)
            return whole(slates, events)

        monkeypatch.setattr(log, "append", append)
        group = GroupCommit(log)

        async def give_up():
            for number in (1, 2):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(
                        asyncio.wrap_future(group.append([slate(1)], [event(number)])), 0.05
                    )

        asyncio.run(give_up())
        stalled.set()
        assert len(group.append([], [event(1), event(3)]).result(timeout=10)) == 1
        assert numbers(log.events()) == ["e1", "e2", "e3"]  # given up, and written all the same
        group.close()

    def test_what_fails_once_it_is_on_disk_is_no_failure(self, log):
        def fail(slates, events):
            raise ValueError("cannot be told")

        group = GroupCommit(log, on_commit=fail)
        assert len(group.append([slate(1)], [event(1)]).result(timeout=10)) == 1
        assert len(log) == 1
        group.close()
