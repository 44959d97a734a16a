"""State: living through a log gives what reading it in one go gave, and no outcome leaks."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from adrec.data.layouts import open_layout
from adrec.data.splits import SplitConfig
from adrec.data.tables import Tables, open_tables
from adrec.features import counters, histories
from adrec.features.batches import Query, gaps, query_of, stack_queries
from adrec.features.bits import UNKNOWN_MS
from adrec.features.catalogue import Catalogue
from adrec.features.dataset import prepare
from adrec.features.fitting import FeatureConfig
from adrec.features.memory import load_state, save_state
from adrec.features.past import count_strictly_before
from adrec.features.rows import Rows
from adrec.features.state import State
from adrec.features.transforms import Features
from adrec.features.visitor import Report as Reported
from adrec.features.visitor import Visitor
from adrec.schema import AD_ID, REQUEST_ID, TIMESTAMP_MS, USER_ID, Schema, parse_schema

CONFIG = FeatureConfig(embed_user_id=True)
DAY_MS = 24 * 3_600_000


def with_users(schema: Schema) -> Schema:
    return schema


def without_users_table(schema: Schema) -> Schema:
    """Users have ids, but everyone is new: a history grows from nothing."""
    return _changed(schema, users_table=False)


def without_users(schema: Schema) -> Schema:
    """As in Criteo's log: nobody has an id."""
    return _changed(schema, users_table=False, user_id=None)


def without_requests(schema: Schema) -> Schema:
    """Each row is a request; those of one slate have the same time."""
    return _changed(schema, request_id=None, position=None, propensity=None)


def slow_outcomes(schema: Schema) -> Schema:
    """Clicks are known after an hour, revenue after two days."""
    delays = {"click": 3_600_000, "engagement": 0, "revenue": 2 * 24 * 3_600_000}
    tasks = [t.model_dump() | {"delay_ms": delays[t.name]} for t in schema.tasks]
    return _changed(schema, tasks=tasks)


def all_known_after_a_day(schema: Schema) -> Schema:
    return _changed(schema, tasks=[t.model_dump() | {"delay_ms": DAY_MS} for t in schema.tasks])


def _changed(schema: Schema, **changes: Any) -> Schema:
    content = schema.model_dump() | changes
    if not content["users_table"]:
        content["fields"] = [f for f in content["fields"] if f["role"] != "user"]
        if content["user_id"] is not None:
            grown = {"name": "history", "kind": "sequence", "grows_with": "click", "length": 5}
            content["fields"] += [grown, grown | {"name": "shown", "grows_with": "impression"}]
        else:
            content["counters"] = [c for c in content["counters"] if USER_ID not in c["columns"]]
    return Schema.model_validate(content)


VARIANTS = [with_users, without_users_table, without_users, without_requests, slow_outcomes]


def opened(folder: Path, variant: Callable[[Schema], Schema] = with_users) -> Tables:
    return open_tables(variant(open_layout("synthetic", folder).schema), folder)


def begin(tables: Tables, config: FeatureConfig = CONFIG) -> State:
    times = tables.impressions.frame().select(TIMESTAMP_MS).collect().to_series()
    features = Features.fit(tables, config, train_until_ms=int(times.quantile(0.8)))
    return State.begin(features, Catalogue.of(features, tables.ad_frame()), tables.user_frame())


def whole_log(tables: Tables) -> pl.DataFrame:
    return tables.ordered().collect()


Report = tuple[int, Visitor, int, list[float], list[float]]


def live_through(
    state: State, log: pl.DataFrame, *, reported: str = "with the impression"
) -> tuple[Query, NDArray[np.float32]]:
    """Serve a log request by request: visit, query, counters of the slate, then its outcomes.

    These come with the impression, one after it, or each at the last instant at which it is still
    in time.
    """
    waiting: list[Report] = []
    queries, seen = [], []
    tasks = [task.name for task in state.schema.tasks]
    raw = {field.name for field in state.schema.request_fields}
    rows = list(log.iter_rows(named=True))
    start = 0
    while start < len(rows):
        end, first = start + 1, rows[start]
        if state.schema.request_id is not None:
            while end < len(rows) and rows[end][REQUEST_ID] == first[REQUEST_ID]:
                end += 1
        context = {name: first[name] for name in raw if name in first}
        for report in sorted(waiting, key=itemgetter(0)):
            if reported == "one by one" or report[0] < first[TIMESTAMP_MS]:
                state.amend(*report[1:])
                waiting.remove(report)
        visitor = state.visit(first.get(USER_ID), first[TIMESTAMP_MS], context)
        queries.append(state.query(visitor))
        ads = [state.catalogue.directory.row(row[AD_ID]) for row in rows[start:end]]
        seen.append(state.counters(visitor, np.array(ads)))
        for row, ad in zip(rows[start:end], ads, strict=True):
            labels = [row[task] for task in tasks]
            if reported == "with the impression":
                state.observe(visitor, ad, labels)
            else:
                state.observe(visitor, ad, [0.0] * len(tasks))
                waiting += in_parts(state, visitor, ad, labels)
        start = end
    return stack_queries(queries), np.concatenate(seen)


def in_parts(state: State, visitor: Visitor, ad: int, labels: list[float]) -> list[Report]:
    """Outcomes one task at a time, in the order in which they are known."""
    delays = [task.delay_ms for task in state.schema.tasks]
    so_far, parts = [0.0] * len(labels), []
    for k in np.argsort(delays, kind="stable"):
        if labels[k]:
            after = [*so_far[:k], labels[k], *so_far[k + 1 :]]
            parts.append((visitor.at_ms + delays[k], visitor, ad, so_far, after))
            so_far = after
    return parts


def query_of_rows(state: State, rows: Rows) -> Query:
    """What `Dataset.query` would make of the rows of a log."""
    known = np.where(rows.user_R < len(state.static), rows.user_R, 0)
    return query_of(state.static.take(known), rows.request, state.catalogue.encoded, rows.histories)


def spread_out(query: Query) -> Query:
    """The same query with the ads of each item in its place: two may list them differently."""
    codes, dense = query.history_ads.categorical, query.history_ads.dense
    return replace(
        query,
        history_ads=query.user,
        histories=tuple(
            replace(
                items,
                place_BL=torch.cat(
                    [codes[items.place_BL].flatten(1).float(), dense[items.place_BL].flatten(1)], 1
                ),
            )
            for items in query.histories
        ),
    )


def same(one: Any, other: Any) -> None:
    """Bit for bit, tensor by tensor."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, tuple):
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        for name in one.__dataclass_fields__:
            same(getattr(one, name), getattr(other, name))


def same_histories(one: Rows, other: Rows) -> None:
    for past, expected in zip(one.histories, other.histories, strict=True):
        for part, expected_part in zip(past, expected, strict=True):
            np.testing.assert_array_equal(part, expected_part)


class TestServingEqualsBatch:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_row_by_row(self, tiny_world: Path, variant: Callable[[Schema], Schema]) -> None:
        tables = opened(tiny_world, variant)
        log = whole_log(tables)
        log = log[: log.height if variant is with_users else 2400]
        batch, live = begin(tables), begin(tables)
        rows = batch.advance(log)
        query, seen = live_through(live, log)
        same(spread_out(query), spread_out(query_of_rows(batch, rows)))
        np.testing.assert_allclose(seen, rows.counters_NC, atol=1e-5)
        assert rows.counters_NC.any()
        assert (rows.user_R > 0).all() == (batch.schema.user_id is not None)
        if rows.histories:
            assert all((past.ads > 0).any() for past in rows.histories)
            assert set(np.unique(rows.histories[1].outcomes)) >= {0, 1}

    @pytest.mark.parametrize("reported", ["one by one", "at the last instant"])
    @pytest.mark.parametrize(
        "variant", [with_users, without_users_table, without_users, slow_outcomes]
    )
    def test_outcomes_that_are_reported_in_time(
        self, tiny_world: Path, variant: Callable[[Schema], Schema], reported: str
    ) -> None:
        tables = opened(tiny_world, variant)
        log = whole_log(tables)[:2400]
        batch, live = begin(tables), begin(tables)
        rows = batch.advance(log)
        query, seen = live_through(live, log, reported=reported)
        same(spread_out(query), spread_out(query_of_rows(batch, rows)))
        np.testing.assert_allclose(seen, rows.counters_NC, atol=1e-5)

    @pytest.mark.parametrize("variant", [with_users, without_users_table, slow_outcomes])
    def test_all_leave_the_same_state_behind(
        self, tiny_world: Path, variant: Callable[[Schema], Schema]
    ) -> None:
        tables = opened(tiny_world, variant)
        log = whole_log(tables)
        batch, live, unread = begin(tables), begin(tables), begin(tables)
        batch.advance(log[:1200])
        live_through(live, log[:1200])
        unread.take_in(log[:800])
        unread.take_in(log[800:1200])
        rows = batch.advance(log[1200:])
        for state in (live, unread):
            same_log = state.advance(log[1200:])
            assert state.users.ids == batch.users.ids
            np.testing.assert_allclose(rows.counters_NC, same_log.counters_NC, atol=1e-5)
            same_histories(rows, same_log)

    def test_wherever_the_log_is_cut(self, tiny_world: Path) -> None:
        tables = opened(tiny_world, slow_outcomes)
        log = whole_log(tables)
        whole, pieces = begin(tables), begin(tables)
        rows = whole.advance(log)
        cuts = [0, 4, 8, 1000, 1004, 5000, log.height]  # slates of four stay whole
        parts = [pieces.advance(log[a:b]) for a, b in pairwise(cuts)]
        for name in ("user_R", "time_ms_R", "slate_R", "ad_N", "labels_NK", "position_N"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(rows, name))
        for i, past in enumerate(rows.histories):
            for column, expected in enumerate(past):
                joined = np.concatenate([part.histories[i][column] for part in parts])
                np.testing.assert_array_equal(joined, expected)
        joined = np.concatenate([part.counters_NC for part in parts])
        np.testing.assert_allclose(joined, rows.counters_NC, atol=1e-6)


def test_reports_of_one_request_are_taken_in_together_as_one_by_one(tiny_world: Path) -> None:
    """New impressions and later outcomes, an ad that is reported twice, one user for all."""
    tables = opened(tiny_world)
    log = whole_log(tables)
    at = int(log[TIMESTAMP_MS][-1]) + 1000
    nothing, click, bought = [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 5.0]
    reports = [
        Reported(3, None, click),
        Reported(4, None, nothing),
        Reported(3, click, bought),
        Reported(0, None, nothing),
        Reported(4, None, click),
        Reported(4, nothing, click),
    ]
    found = []
    for together in (True, False):
        state = begin(tables)
        visitor = state.visit(7, at, {})
        for some in [reports] if together else [[report] for report in reports]:
            state.report(visitor, some)
        later = state.visit(7, at + 10**8, {})
        histories = state.query(later).histories
        found.append((state.counters(later, np.arange(6)), [h.row_BL for h in histories]))
    (counted, histories), (expected, expected_histories) = found
    np.testing.assert_allclose(counted, expected, rtol=1e-6)
    assert counted[4, 0] > 0
    for history, expected_history in zip(histories, expected_histories, strict=True):
        assert history.tolist() == expected_history.tolist()


class TestNewUsers:
    def at(self, log: pl.DataFrame) -> int:
        return int(log[TIMESTAMP_MS][-1]) + 1000

    def test_strangers_share_nothing(self, tiny_world: Path) -> None:
        """One stranger's clicks must not look like another's past."""
        tables = opened(tiny_world)
        log, state = whole_log(tables), begin(tables)
        at = self.at(log)
        ads = np.arange(1, 6)
        for name in ("stranger", None):
            visitor = state.visit(name, at, {})
            for ad in range(1, 6):
                state.observe(visitor, ad, [1.0, 1.0, 5.0])
        other = state.counters(state.visit("another", at + 10**7, {}), ads)
        nobody = state.counters(state.visit(None, at + 10**7, {}), ads)
        np.testing.assert_array_equal(other, nobody)
        of_user = 2 * (1 + 3)  # half-lives of [user_id], the first counter
        assert not other[:, :of_user].any()
        assert other[:, of_user:].any()  # of the ads themselves much is known
        assert not state.query(state.visit("another", at + 10**7, {})).histories[0].mask_BL.any()

    def test_a_new_user_is_remembered(self, tiny_world: Path) -> None:
        tables = opened(tiny_world)
        log, state = whole_log(tables), begin(tables)
        at = self.at(log)
        visitor = state.visit("stranger", at, {"device": "mobile"})
        assert visitor.user == 0
        state.observe(visitor, 3, [1.0, 0.0, 0.0])
        state.observe(visitor, 4, [0.0, 0.0, 0.0])
        later = state.visit("stranger", at + 10**7, {})
        assert later.user == len(state.users) - 1
        assert state.history_ads(later).tolist() == [0, 3]
        counted = state.counters(later, np.array([7]))
        assert counted[0, 0] == pytest.approx(np.log(3))  # two impressions, never forgotten

    def test_an_id_is_the_same_as_number_and_as_text(self, tiny_world: Path) -> None:
        state = begin(opened(tiny_world, without_users_table))
        state.observe(state.visit(7, 1000, {}), 3, [1.0, 0.0, 0.0])
        assert state.visit("7", 10**7, {}).user == state.visit(7.0, 10**7, {}).user == 1

    def test_a_profile_stands_in_for_what_is_stored(self, tiny_world: Path) -> None:
        tables = opened(tiny_world)
        state, users = begin(tables), tables.user_frame()
        assert users is not None
        row = users.row(0, named=True)
        profile = {field.name: row[field.name] for field in state.schema.user_fields}
        stored = state.visit(row[USER_ID], 5, {})
        told = state.visit(row[USER_ID], 5, {}, profile=profile)
        assert stored.user == told.user == 1
        np.testing.assert_array_equal(stored.static.categorical, told.static.categorical)
        other = state.visit(row[USER_ID], 5, {}, profile={"segment": "no such segment"})
        assert not np.array_equal(other.static.categorical, stored.static.categorical)

    def test_a_log_without_users_knows_nobody(self, tiny_world: Path) -> None:
        state = begin(opened(tiny_world, without_users))
        visitor = state.visit("someone", 1000, {})
        state.observe(visitor, 3, [1.0, 0.0, 0.0])
        assert state.visit("someone", 10**7, {}).user == 0
        assert state.users.ids == []
        assert state.history_ads(visitor).tolist() == []


class TestForgetting:
    def test_users_are_as_new_ones(self, tiny_world: Path, tmp_path: Path) -> None:
        """Also those that wait, and those of a file, which stays as it is."""
        tables = opened(tiny_world, slow_outcomes)
        log, state = whole_log(tables), begin(tables)
        state.advance(log)
        save_state(state, tmp_path)
        gone, at_ms = state.users.ids[:2], int(log[TIMESTAMP_MS][-1]) + 1
        ads = np.arange(len(state.catalogue))
        of_user = np.array(state.features.layout.user_counters)
        loaded = load_state(tmp_path, state.features, state.catalogue)
        for one in (state, loaded):
            visitor = one.visit(gone[0], at_ms, {})
            assert one.counters(visitor, ads)[:, of_user].any()
            assert one.query(visitor).histories[0].mask_BL.any()
            one.forget([*gone, "never seen"])
            one.forget([])
            for later_ms in (at_ms, at_ms + 3 * DAY_MS):
                new = one.visit("new here", later_ms, {})
                for user in gone:
                    visitor = one.visit(user, later_ms, {})
                    assert not one.counters(visitor, ads)[:, of_user].any()
                    same(spread_out(one.query(visitor)), spread_out(one.query(new)))
        again = load_state(tmp_path, state.features, state.catalogue)
        assert not loaded.static.categorical[1:3].any()
        assert again.static.categorical[1:3].any()

    def test_others_are_as_they_were(self, tiny_world: Path) -> None:
        tables = opened(tiny_world, slow_outcomes)
        log, state, other = whole_log(tables), begin(tables), begin(tables)
        for one in (state, other):
            one.advance(log)
        other.forget(state.users.ids[:2])
        ads = np.arange(len(state.catalogue))
        for later_ms in (1, 3 * DAY_MS):
            at_ms = int(log[TIMESTAMP_MS][-1]) + later_ms
            np.testing.assert_array_equal(state.standing(at_ms), other.standing(at_ms))
            for user in state.users.ids[2:5]:
                mine, theirs = (one.visit(user, at_ms, {}) for one in (state, other))
                same(spread_out(state.query(mine)), spread_out(other.query(theirs)))
                np.testing.assert_array_equal(
                    state.counters(mine, ads), other.counters(theirs, ads)
                )


class TestAds:
    def test_ads_that_are_not_in_the_catalogue(self, tiny_world: Path) -> None:
        tables = opened(tiny_world)
        log, state, known = whole_log(tables), begin(tables), begin(tables)
        strange = log.with_columns(
            pl.when(pl.int_range(pl.len()) % 3 == 0).then(pl.lit("who?")).otherwise(AD_ID)
            .alias(AD_ID)
        )  # fmt: skip
        rows = state.advance(strange)
        assert ((rows.ad_N == 0) == (strange[AD_ID] == "who?").to_numpy()).all()
        assert np.isfinite(rows.counters_NC).all()
        # A click on an ad that nobody knows is no history.
        expected = known.advance(log).histories
        for past, more in zip(rows.histories, expected, strict=True):
            assert 0 < (past.ads != 0).sum() < (more.ads != 0).sum()
        _, seen = live_through(begin(tables), strange[:2000])
        np.testing.assert_allclose(seen, rows.counters_NC[:2000], atol=1e-5)

    def test_a_start_leaves_out_ads_that_are_not_in_the_catalogue(self, tiny_world: Path) -> None:
        tables = opened(tiny_world)
        state, users = begin(tables), tables.user_frame()
        assert users is not None
        known = state.catalogue.directory
        strange = pl.lit(["?"])
        changed = users.with_columns(history=pl.concat_list(strange, "history", strange))
        changed = changed.with_columns(
            pl.concat_list(pl.lit([1]), "history:times_ms", pl.lit([2])).alias("history:times_ms")
        )
        again = State.begin(state.features, state.catalogue, changed)
        history, expected = again.histories[0], state.histories[0]
        np.testing.assert_array_equal(history.ads_UL, expected.ads_UL)
        np.testing.assert_array_equal(history.times_ms_UL, expected.times_ms_UL)
        row = int(users["history"].list.len().arg_max() or 0)
        last = [known.row(ad) for ad in users["history"][row].to_list()[-history.length :]]
        assert expected.read(row + 1, 10**13)[0].tolist() == last

    def test_row_zero_is_an_ad_of_which_nothing_is_known(self, tiny_world: Path) -> None:
        state = begin(opened(tiny_world))
        assert not state.catalogue.encoded.categorical[0].any()
        assert state.catalogue.bid_micros_A[0] == 0
        assert (state.catalogue.bid_micros_A[1:] > 0).all()

    def test_a_catalogue_is_saved_and_loaded(self, tiny_world: Path, tmp_path: Path) -> None:
        catalogue = begin(opened(tiny_world)).catalogue
        catalogue.save(tmp_path)
        again = Catalogue.load(tmp_path)
        assert again.directory.ids == catalogue.directory.ids
        np.testing.assert_array_equal(again.bid_micros_A, catalogue.bid_micros_A)
        np.testing.assert_array_equal(again.encoded.categorical, catalogue.encoded.categorical)
        np.testing.assert_array_equal(again.encoded.dense, catalogue.encoded.dense)


def leaking_rows(
    tables: Tables, log: pl.DataFrame, from_ms: int, delay_ms: int = 0
) -> tuple[int, int]:
    """Permute the outcomes of all rows from an instant on; count rows whose features change.

    Returns:
        How many rows that come at most `delay_ms` after that instant, and how many that come later.
    """
    tasks = [task.name for task in tables.schema.tasks]
    later = (log[TIMESTAMP_MS] >= from_ms).to_numpy()
    order = np.arange(log.height)
    order[later] = np.random.default_rng(0).permutation(order[later])
    shuffled = log.with_columns(log[tasks][order])
    one, other = begin(tables).advance(log), begin(tables).advance(shuffled)
    changed_R = np.zeros(len(one.user_R), bool)
    for past, other_past in zip(one.histories, other.histories, strict=True):
        for part, other_part in zip(past, other_past, strict=True):
            changed_R |= (part != other_part).any(1)
    changed_R |= (one.request.categorical != other.request.categorical).any(1)
    changed_R |= (one.request.dense != other.request.dense).any(1)
    changed_N = np.repeat(changed_R, one.slate_R)
    changed_N |= (one.counters_NC != other.counters_NC).any(1)
    at_N = np.repeat(one.time_ms_R, one.slate_R)
    soon_N = at_N <= from_ms + delay_ms
    return int(changed_N[soon_N].sum()), int(changed_N[~soon_N].sum())


class TestNoLabelLeaks:
    @pytest.mark.parametrize("share", [0.05, 0.8, 0.9])
    @pytest.mark.parametrize("variant", [with_users, without_requests])
    def test_shuffled_outcomes_change_nothing_before(
        self, tiny_world: Path, variant: Callable[[Schema], Schema], share: float
    ) -> None:
        tables = opened(tiny_world, variant)
        log = whole_log(tables)
        from_ms = int(log[TIMESTAMP_MS][int(log.height * share)])
        before, after = leaking_rows(tables, log, from_ms)
        assert before == 0
        assert after > 0.5 * log.height * (1 - share)  # so the shuffle did reach the features

    def test_the_detector_notices_ties_that_are_counted(
        self, tiny_world: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def including_ties(groups: NDArray, known: NDArray, of: NDArray, at: NDArray) -> NDArray:
            return count_strictly_before(groups, known, of, at + 1)

        def known_at_once(schema: Schema) -> Schema:
            return _changed(schema, tasks=[t.model_dump() | {"delay_ms": 0} for t in schema.tasks])

        tables = opened(tiny_world, known_at_once)
        log = whole_log(tables)
        clicked_at = log.filter(pl.col("click") == 1)[TIMESTAMP_MS]
        from_ms = int(clicked_at[int(len(clicked_at) * 0.8)])  # the shuffle takes its click away
        assert leaking_rows(tables, log, from_ms)[0] == 0
        for module in (counters, histories):
            monkeypatch.setattr(module, "count_strictly_before", including_ties)
            assert leaking_rows(tables, log, from_ms)[0] > 0
            monkeypatch.undo()

    def test_no_outcome_is_told_before_its_delay_is_over(
        self, tiny_world: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tables = opened(tiny_world, all_known_after_a_day)
        log = whole_log(tables)
        from_ms = int(log[TIMESTAMP_MS][log.height // 2])
        before, after = leaking_rows(tables, log, from_ms, DAY_MS)
        assert before == 0
        assert after > 0.2 * log.height
        # The detector notices a history that shows what came of an item as soon as the item.
        monkeypatch.setattr(histories, "known_bits", lambda bits, *_: bits)
        assert leaking_rows(tables, log, from_ms, DAY_MS)[0] > 0


def test_a_history_of_impressions_by_hand(tmp_path: Path) -> None:
    # Clicks are known after 10 ms, sales after 100. Of what the user had clicked before, which is
    # the start of both, the second tells nothing: it might have been shown for any reason.
    pl.DataFrame({"user_id": ["1"], "past": [["z"]]}).write_parquet(tmp_path / "users.parquet")
    log = pl.DataFrame(
        {
            "user_id": ["1", "1", "2", "1", "1", "1"],
            "ad_id": ["x", "y", "x", "z", "x", "x"],
            "timestamp_ms": [1_000, 1_000, 1_000, 1_010, 1_011, 1_101],
            "click": [0, 1, 1, 1, 0, 0],
            "sale": [0.0, 7.5, 2.0, 0.0, 0.0, 0.0],
        }
    )
    log.write_parquet(tmp_path / "impressions.parquet")
    schema = parse_schema(
        "{name: t, user_id: user_id, users_table: true, tasks: [{name: click, delay_ms: 10},"
        " {name: sale, kind: value, delay_ms: 100}], fields:"
        " [{name: liked, kind: sequence, column: past, grows_with: click, length: 3},"
        " {name: shown, kind: sequence, column: past, grows_with: impression, length: 4}]}"
    )
    tables = open_tables(schema, tmp_path)
    features = Features.fit(tables, FeatureConfig(min_count=1), train_until_ms=10**7)
    state = State.begin(features, Catalogue.of(features, tables.ad_frame()), tables.user_frame())
    liked, shown = state.advance(whole_log(tables)).histories
    ads = np.array([" ", *state.catalogue.directory.ids])
    words = [["".join(row) for row in ads[past.ads]] for past in (liked, shown)]
    assert words[0] == ["  z", "  z", "   ", "  z", " zy", "zyz"]
    assert liked.outcomes.tolist() == [
        [0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 3, 1]
    ]  # fmt: skip
    # Rows of one instant do not see each other. At 1,010 y's click is not known yet, at 1,011 it
    # is, and at 1,101 its sale: 0b11.
    assert words[1] == ["   z", "   z", "    ", " zxy", "zxyz", "xyzx"]
    assert shown.outcomes.tolist() == [
        [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 3, 1, 0]
    ]  # fmt: skip
    # What was merely shown is not met.
    visitor = state.visit("2", 2_000, {})
    state.observe(visitor, state.catalogue.directory.row("y"), [0.0, 0.0])
    later = state.visit("2", 3_000, {})
    assert state.query(later).histories[1].row_BL.count_nonzero() == 2
    assert sorted(ads[state.history_ads(later)]) == [" ", "x"]


class TestStanding:
    """How ads stand: what is known of each whoever asks."""

    def test_is_what_serving_reads_of_each_ad_alone(self, tiny_world: Path) -> None:
        tables = opened(tiny_world)
        log, state = whole_log(tables), begin(tables)
        state.advance(log)
        at = int(log[TIMESTAMP_MS][-1]) + DAY_MS
        found = state.standing(at)
        # Of users are the first 2 half-lives and the last 2 counters, each of 1 + 3 features; of
        # ads alone: 2 of their id, 1 of their advertiser and 1 of their topic.
        columns = slice(8, 24)
        assert found.shape == (len(state.catalogue), 16)
        assert state.features.layout.standing == 16
        assert found.dtype == np.float32
        someone = state.visit(log[USER_ID][0], at, {"device": "mobile"})
        for visitor in (someone, state.visit(None, at, {})):
            for ad in range(1, len(state.catalogue), 7):
                alone = state.counters(visitor, np.array([ad]))[0, columns]
                np.testing.assert_array_equal(found[ad], alone)
        assert found[1:].any(axis=1).mean() > 0.9

    def test_of_an_unknown_ad_nothing_is_known(self, tiny_world: Path) -> None:
        tables = opened(tiny_world)
        log, state = whole_log(tables), begin(tables)
        state.advance(log.with_columns(pl.lit("who?").alias(AD_ID)))
        at = int(log[TIMESTAMP_MS][-1]) + DAY_MS
        assert state.counters(state.visit(None, at, {}), np.zeros(1, np.int64)).any()
        assert not state.standing(at).any()

    def test_by_hand(self, tmp_path: Path) -> None:
        """Clicks are known 1,000 ms after; counters of the user and of the site are left out."""
        log = pl.DataFrame(
            {
                "user_id": ["u"] * 5,
                "ad_id": ["x", "x", "y", "z", "x"],
                "timestamp_ms": [1_000, 2_000, 2_000, 3_000, 4_000],
                "click": [1, 0, 0, 1, 0],
                "brand": ["b", "b", "b", "c", "b"],
                "site": ["s"] * 5,
            }
        )
        log.write_parquet(tmp_path / "impressions.parquet")
        schema = parse_schema(
            "{name: t, user_id: user_id, tasks: [{name: click, delay_ms: 1000}], fields:"
            " [{name: brand, kind: categorical, role: ad},"
            " {name: site, kind: categorical, role: context}], counters: [{columns: [site]},"
            " {columns: [brand]}, {columns: [ad_id, site]}, {columns: [user_id, ad_id]},"
            " {columns: [ad_id]}]}"
        )
        assert [spec.columns for spec in schema.standing] == [("brand",), ("ad_id",)]
        tables = open_tables(schema, tmp_path)
        features = Features.fit(tables, FeatureConfig(min_count=1), train_until_ms=10**7)
        catalogue = Catalogue.of(features, tables.ad_frame())
        state = State.begin(features, catalogue, None)
        state.advance(log)
        (p,) = features.priors

        def seen(shown: int, clicks: int) -> list[float]:
            return [np.log1p(shown), np.log((clicks + 20 * p) / (shown + 20) / p)]

        nothing = [0.0] * 4
        x, y, z = (catalogue.directory.row(ad) for ad in "xyz")
        # Each instant alone, as a state only moves on: (brand, ad) of x, y and z.
        for at, expected in (
            (5_000, [seen(3, 1) + seen(2, 1), seen(3, 1) + seen(1, 0), seen(1, 1) * 2]),
            (5_001, [seen(4, 1) + seen(3, 1), seen(4, 1) + seen(1, 0), seen(1, 1) * 2]),
        ):
            found = state.standing(at)
            np.testing.assert_allclose(found[[x, y, z]], expected, rtol=1e-5)
            np.testing.assert_array_equal(found[0], nothing)
        # Another state, as none goes back in time: it took in the first impression only.
        early = State.begin(features, catalogue, None)
        early.advance(log[:1])
        np.testing.assert_array_equal(early.standing(2_000), np.zeros((4, 4)))
        np.testing.assert_allclose(early.standing(2_001)[x], seen(1, 1) * 2, rtol=1e-5)

    def test_without_counters(self, tiny_world: Path) -> None:
        state = begin(opened(tiny_world, lambda schema: _changed(schema, counters=[])))
        assert state.standing(10**13).shape == (len(state.catalogue), 0)


def test_gaps_by_hand() -> None:
    """log(1 + hours): 1 hour and 7 hours ago, and a time that is not known."""
    hour = 3_600_000
    times = np.array([[UNKNOWN_MS, 2 * hour, 8 * hour]])
    expected = [[-1.0, np.log(8.0), np.log(2.0)]]
    np.testing.assert_allclose(gaps(times, np.array([9 * hour])), expected, rtol=1e-6)


def test_what_happens_late_in_a_lasting_request_is_unknown_until_then(tmp_path: Path) -> None:
    # Request a comes at 1,000 and shows a second ad at 900,000; what happens there must not reach
    # request b, which comes at 500,000, nor c at 600,000, both of them before it.
    def read(late_click: int) -> Rows:
        frame = pl.DataFrame(
            {
                "request_id": ["a", "a", "b", "c", "d"],
                "user_id": ["1", "1", "2", "1", "1"],
                "ad_id": ["x", "y", "y", "y", "y"],
                "timestamp_ms": [1_000, 900_000, 500_000, 600_000, 900_001],
                "click": [0, late_click, 0, 0, 0],
            }
        )
        folder = tmp_path / str(late_click)
        folder.mkdir()
        frame.write_parquet(folder / "impressions.parquet")
        schema = parse_schema(
            "{name: t, user_id: user_id, request_id: request_id, tasks: [{name: click}],"
            " fields: [{name: past, kind: sequence, grows_with: click}],"
            " counters: [{columns: [ad_id]}, {columns: [user_id]}]}"
        )
        tables = open_tables(schema, folder)
        features = Features.fit(tables, FeatureConfig(min_count=1), train_until_ms=10**7)
        state = State.begin(features, Catalogue.of(features, tables.ad_frame()), None)
        return state.advance(tables.ordered().collect())

    quiet, clicked = read(0), read(1)
    # The prior is the mean click rate, which differs; counts and histories must not, but for d.
    assert np.array_equal(quiet.counters_NC[:4, ::2], clicked.counters_NC[:4, ::2])
    # By then c knows of one impression of y (b's) and one of its user (a's first).
    expected = [[0, 0], [0, 0], [0, 0], [np.log(2), np.log(2)]]
    np.testing.assert_allclose(quiet.counters_NC[:4, ::2], expected, rtol=1e-6)
    assert np.array_equal(quiet.histories[0][0][:3], clicked.histories[0][0][:3])
    assert (quiet.histories[0][0][3] == 0).all()
    assert (clicked.histories[0][0][3] != 0).sum() == 1


def test_a_table_of_users_that_knows_the_future_does_not_tell_it(tmp_path: Path) -> None:
    # The users were exported after the log: of 3's three items one is from before its start.
    users = pl.DataFrame(
        {"user_id": ["3"], "past": [["x", "y", "x"]], "past_ms": [[500, 1_000, 5_000]]}
    )
    log = pl.DataFrame(
        {
            "user_id": ["3"] * 3,
            "ad_id": ["x", "y", "y"],
            "timestamp_ms": [1_000, 2_000, 9_000],
            "click": [0, 0, 1],
        }
    )
    users.write_parquet(tmp_path / "users.parquet")
    log.write_parquet(tmp_path / "impressions.parquet")
    schema = parse_schema(
        "{name: t, user_id: user_id, users_table: true, tasks: [{name: click}], fields:"
        " [{name: h, kind: sequence, column: past, times: past_ms, grows_with: click}]}"
    )
    dataset = prepare(
        open_tables(schema, tmp_path),
        tmp_path / "dataset",
        split=SplitConfig(valid_share=0.3, test_share=0.3),
        config=FeatureConfig(min_count=1),
    )
    items = (dataset.histories[0][0] != 0).sum(axis=1)
    assert items.tolist() == [1, 1, 1]
