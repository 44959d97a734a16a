"""Dataset: prepared whole or not at all, in time order, and equal to one pass over the log."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from adrec.data.layouts import open_layout
from adrec.data.splits import SplitConfig
from adrec.data.tables import Tables, tables_from
from adrec.errors import ConfigError, DataError
from adrec.features import dataset as module
from adrec.features.dataset import Dataset, cut, prepare
from adrec.features.fitting import FeatureConfig
from adrec.features.rows import Rows
from adrec.features.state import State
from adrec.features.transforms import Encoded
from adrec.progress import Progress
from adrec.schema import AD_ID, TIMESTAMP_MS, parse_schema

HOUR_MS = 3_600_000
ARRAYS = ("user_R", "time_ms_R", "slate_R", "ad_N", "labels_NK", "position_N", "propensity_N")


def one_pass(tables: Tables, dataset: Dataset) -> Rows:
    """The whole log in one `State.advance`, with the dataset's features."""
    state = State.begin(dataset.features, dataset.catalogue, tables.user_frame())
    return state.advance(tables.ordered().collect())


def same(dataset: Dataset, rows: Rows) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(dataset, name), getattr(rows, name), err_msg=name)
    np.testing.assert_array_equal(dataset.request.categorical, rows.request.categorical)
    np.testing.assert_array_equal(dataset.request.dense, rows.request.dense)
    for one, other in zip(dataset.histories, rows.histories, strict=True):
        for part, expected in zip(one, other, strict=True):
            assert part.dtype == expected.dtype
            np.testing.assert_array_equal(part, expected)
    # Sums are rounded in another order where the log is cut.
    np.testing.assert_allclose(dataset.counters_NC, rows.counters_NC, atol=1e-6)


def prepared(tables: Tables, folder: Path, **settings: Any) -> Dataset:
    settings = {"split": SplitConfig(), "config": FeatureConfig()} | settings
    return prepare(tables, folder / "dataset", **settings)


class TestPrepare:
    @pytest.mark.parametrize("chunk_rows", [64, 1001, 250_000])
    def test_the_pieces_do_not_matter(
        self, tiny_world: Path, tmp_path: Path, chunk_rows: int
    ) -> None:
        tables = open_layout("synthetic", tiny_world)
        dataset = prepared(tables, tmp_path, chunk_rows=chunk_rows)
        same(dataset, one_pass(tables, dataset))
        assert len(dataset) == 2000
        assert len(dataset.ad_N) == tables.rows() == 8000

    def test_an_older_dataset_is_replaced(self, tiny_world: Path, tmp_path: Path) -> None:
        tables = open_layout("synthetic", tiny_world)
        prepared(tables, tmp_path)
        (tmp_path / "dataset" / "rest").write_text("of an older dataset")
        later = prepared(tables, tmp_path, split=SplitConfig(test_share=0.2))
        assert len(later.requests("test")) == 400
        assert not (tmp_path / "dataset" / "rest").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["dataset"]

    def test_an_interruption_leaves_no_dataset(
        self, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tables = open_layout("synthetic", tiny_world)
        advance, calls = State.advance, []

        def interrupted(self: State, frame: pl.DataFrame, encoded: Encoded) -> Rows:
            calls.append(frame.height)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return advance(self, frame, encoded)

        monkeypatch.setattr(State, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepared(tables, tmp_path, chunk_rows=1000)
        assert not (tmp_path / "dataset").exists()
        with pytest.raises(DataError, match="adrec prepare"):
            Dataset(tmp_path / "dataset")
        monkeypatch.undo()
        same(prepared(tables, tmp_path), one_pass(tables, Dataset(tmp_path / "dataset")))

    def test_an_interruption_keeps_the_older_dataset(
        self, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tables = open_layout("synthetic", tiny_world)
        before = prepared(tables, tmp_path)
        monkeypatch.setattr(module._Writer, "finish", lambda self, split, ads: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepared(tables, tmp_path)
        same(Dataset(tmp_path / "dataset"), one_pass(tables, before))

    def test_nothing_is_written_where_the_split_is_empty(
        self, tiny_world: Path, tmp_path: Path
    ) -> None:
        tables = open_layout("synthetic", tiny_world)
        never = {"valid_from": "2030-01-01", "test_from": "2030-02-01"}
        with pytest.raises(ConfigError, match="has no impression"):
            prepared(tables, tmp_path, split=SplitConfig.model_validate(never))
        assert not (tmp_path / "dataset").exists()

    def test_what_is_left_out_is_reported(self, tiny_world: Path, tmp_path: Path) -> None:
        """Ads that the catalogue lacks are row 0, and count as padding in every batch."""
        strange = tmp_path / "world"
        shutil.copytree(tiny_world, strange)
        ads = pl.read_parquet(strange / "ads.parquet")
        shown = pl.read_parquet(strange / "impressions.parquet")[AD_ID]
        most = shown.value_counts(sort=True)[AD_ID][0]
        ads.filter(pl.col(AD_ID) != most).write_parquet(strange / "ads.parquet")
        progress = Told()
        dataset = prepared(open_layout("synthetic", strange), tmp_path, progress=progress)
        missing = (shown == most).to_numpy()
        assert missing.sum() > 0
        assert f"left out: {missing.sum():,} impressions" in progress.lines[-1]
        np.testing.assert_array_equal(dataset.ad_N == 0, missing)
        everyone = np.arange(len(dataset))
        assert dataset.batch(everyone).rows == len(shown) - missing.sum()
        np.testing.assert_array_equal(dataset.rows_of(everyone), np.flatnonzero(~missing))

    def test_an_ad_that_stands_in_the_catalogue_twice(
        self, tiny_world: Path, tmp_path: Path
    ) -> None:
        strange = tmp_path / "world"
        shutil.copytree(tiny_world, strange)
        ads = pl.read_parquet(strange / "ads.parquet")
        pl.concat([ads, ads[5:6]]).write_parquet(strange / "ads.parquet")
        with pytest.raises(DataError, match=f"'{ads[AD_ID][5]}' stands there already"):
            prepared(open_layout("synthetic", strange), tmp_path)


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class TestPeriods:
    def test_follow_each_other_in_time(self, tiny_dataset: Dataset) -> None:
        train, valid, test = (tiny_dataset.requests(s) for s in ("train", "valid", "test"))
        assert np.concatenate([train, valid, test]).tolist() == list(range(len(tiny_dataset)))
        assert (len(train), len(valid), len(test)) == (1600, 200, 200)
        times, split = tiny_dataset.time_ms_R, tiny_dataset.split
        assert (np.diff(times) >= 0).all()
        assert times[train].max() < split.valid_from_ms <= times[valid].min()
        assert times[valid].max() < split.test_from_ms <= times[test].min()
        assert times[test].max() < split.end_ms

    def test_by_time(self, tiny_world: Path, tmp_path: Path) -> None:
        """The world has four days; the fourth is left out."""
        days = {"valid_from": "2026-01-06", "test_from": "2026-01-07", "test_to": "2026-01-08"}
        dataset = prepared(
            open_layout("synthetic", tiny_world),
            tmp_path,
            split=SplitConfig.model_validate(days),
            chunk_rows=500,
        )
        day = dataset.time_ms_R // 86_400_000
        for name, start in (("train", 20458), ("valid", 20459), ("test", 20460)):
            assert set(day[dataset.requests(name)].tolist()) == {start}  # 2026-01-05 is day 20,458
        times = pl.read_parquet(tiny_world / "impressions.parquet")[TIMESTAMP_MS]
        assert len(dataset.ad_N) == (times < 20461 * 86_400_000).sum()
        assert dataset.features.train_rows == (times < 20459 * 86_400_000).sum()

    def test_a_request_that_lasts_stays_whole(self, tmp_path: Path) -> None:
        """Rows of one request may differ in time: the request is of the period it began in."""
        schema = parse_schema("{name: lasting, request_id: request, tasks: [{name: click}]}")
        # (request, time): `x` begins before and ends after the boundary at 15, as `y` begins there.
        rows = [
            ("w", 1),
            ("w", 2),
            ("v", 10),
            ("x", 14),
            ("x", 20),
            ("y", 15),
            ("z", 21),
            ("z", 40),
        ]
        frame = pl.DataFrame(rows, schema=["request", "timestamp_ms"], orient="row").with_columns(
            ad_id=pl.col("timestamp_ms").cast(pl.String), click=pl.lit(0)
        )
        tables = tables_from(schema, {"impressions": ("log", frame.lazy())})
        limits = {"valid_from": 0.010, "test_from": 0.015, "test_to": 0.030}
        dataset = prepared(tables, tmp_path, split=SplitConfig.model_validate(limits))
        assert dataset.slate_R.tolist() == [2, 1, 2, 1, 2]
        assert dataset.time_ms_R.tolist() == [1, 10, 14, 15, 21]
        shown = [dataset.catalogue.directory.id(ad) for ad in dataset.ad_N.tolist()]
        assert shown == ["1", "2", "10", "14", "20", "15", "21", "40"]
        assert [dataset.requests(s).tolist() for s in ("train", "valid", "test")] == [
            [0], [1, 2], [3, 4],
        ]  # fmt: skip

    @pytest.mark.parametrize("chunk_rows", [300, 250_000])
    def test_the_state_at_the_start_of_the_test(
        self, tiny_world: Path, tmp_path: Path, chunk_rows: int
    ) -> None:
        tables = open_layout("synthetic", tiny_world)
        dataset = prepared(tables, tmp_path, chunk_rows=chunk_rows)
        log = tables.ordered().collect()
        before = log.filter(pl.col(TIMESTAMP_MS) < dataset.split.test_from_ms)
        replayed = State.begin(dataset.features, dataset.catalogue, tables.user_frame())
        replayed.advance(before)
        one, other = (s.advance(log[before.height :]) for s in (dataset.state("test"), replayed))
        test = dataset.requests("test")
        np.testing.assert_allclose(one.counters_NC, other.counters_NC, atol=1e-6)
        np.testing.assert_allclose(
            one.counters_NC, dataset.counters_NC[dataset.offset_R[test[0]] :], atol=1e-6
        )
        for sequence, past in enumerate(dataset.histories):
            for i, expected in enumerate(past.take(test)):
                np.testing.assert_array_equal(one.histories[sequence][i], expected)
                np.testing.assert_array_equal(other.histories[sequence][i], expected)

    def test_the_state_at_the_end(self, tiny_world: Path, tiny_dataset: Dataset) -> None:
        state, at = tiny_dataset.state("end"), tiny_dataset.split.end_ms + 10**9
        impressions = pl.read_parquet(tiny_world / "impressions.parquet")
        user, count = impressions["user_id"].value_counts(sort=True).row(0)
        visitor = state.visit(user, at, {})
        counted = state.counters(visitor, np.array([1]))[0, 0]
        assert counted == pytest.approx(np.log1p(count), rel=1e-5)


class TestThroughValidation:
    def test_the_validation_period_is_trained_on_and_the_rest_stays(
        self, tiny_dataset: Dataset
    ) -> None:
        before = tiny_dataset.split
        joined = tiny_dataset.through_validation()
        train, valid = tiny_dataset.requests("train"), tiny_dataset.requests("valid")
        assert len(valid)
        assert joined.requests("train").tolist() == [*train, *valid]
        assert joined.requests("valid").tolist() == []
        np.testing.assert_array_equal(joined.requests("test"), tiny_dataset.requests("test"))
        assert tiny_dataset.split == before  # it is a view: the dataset itself is as it was
        np.testing.assert_array_equal(tiny_dataset.requests("valid"), valid)
        assert joined.labels_NK is tiny_dataset.labels_NK
        some = train[:5]
        assert torch.equal(joined.batch(some).labels_BNK, tiny_dataset.batch(some).labels_BNK)
        np.testing.assert_array_equal(joined.periods(valid), tiny_dataset.periods(valid))


class TestHoldingOut:
    def test_one_side_is_trained_on_and_the_other_judged(self, tiny_dataset: Dataset) -> None:
        held_R = tiny_dataset.user_R % 3 == 0
        view = tiny_dataset.holding_out(held_R, "a third")
        for split, held in (("train", False), ("valid", False), ("test", True)):
            all_of_it = tiny_dataset.requests(split)
            expected = all_of_it[held_R[all_of_it] == held]
            assert 0 < len(expected) < len(all_of_it)
            np.testing.assert_array_equal(view.requests(split), expected)
        assert set(view.held_users.tolist()) == set(tiny_dataset.user_R[held_R].tolist())
        assert (view.fold, tiny_dataset.fold) == ("a third", "")
        assert len(tiny_dataset.held_users) == 0

    def test_everyone_is_back(self, tiny_dataset: Dataset) -> None:
        view = tiny_dataset.holding_out(tiny_dataset.user_R % 3 == 0, "a third").everyone()
        assert len(view.held_users) == 0
        assert view.fold == ""
        for split in ("train", "valid", "test"):
            np.testing.assert_array_equal(view.requests(split), tiny_dataset.requests(split))

    def test_it_stays_through_validation(self, tiny_dataset: Dataset) -> None:
        view = tiny_dataset.holding_out(tiny_dataset.user_R % 3 == 0, "a third")
        both = [*view.requests("train"), *view.requests("valid")]
        assert view.through_validation().requests("train").tolist() == both


class TestHistories:
    def test_all_that_was_shown_by_a_loop(self, tiny_world: Path, tiny_dataset: Dataset) -> None:
        frame = open_layout("synthetic", tiny_world).ordered().collect()
        schema, past = tiny_dataset.features.schema, tiny_dataset.histories[1]
        row_of = tiny_dataset.catalogue.directory.row
        assert [past.ads.dtype, past.outcomes.dtype] == [np.int32, np.uint8]
        assert tiny_dataset.features.layout.impressions == (False, True)
        for request in (0, 700, 1200, 1999):
            user, at = (
                frame[int(tiny_dataset.offset_R[request])].select("user_id", TIMESTAMP_MS).row(0)
            )
            before = frame.filter((pl.col("user_id") == user) & (pl.col(TIMESTAMP_MS) < at))
            expected = sorted(
                (row[TIMESTAMP_MS], row_of(row[AD_ID]), [
                    row[task.name] > 0 and row[TIMESTAMP_MS] + task.delay_ms < at
                    for task in schema.tasks
                ])
                for row in before.iter_rows(named=True)
            )[-40:]  # fmt: skip
            there = past.ads[request] != 0
            assert past.ads[request][there].tolist() == [ad for _, ad, _ in expected]
            bits = past.outcomes[request][there][:, None] >> np.arange(3) & 1
            assert bits.tolist() == [[int(known) for known in item[2]] for item in expected]
            assert not past.outcomes[request][~there].any()
        assert set(np.unique(past.outcomes)) >= {0, 1, 7}

    def test_those_that_were_met_are_not_those_that_were_shown(self, tiny_dataset: Dataset) -> None:
        assert [past.ads.shape[1] for past in tiny_dataset.met] == [50]
        assert [history.length for history in tiny_dataset.state("test").met] == [50]


class TestBuildsOfTheIndex:
    """Periods between two builds, and how ads stood when each began."""

    def test_are_counted_back_from_the_test(self, tiny_dataset: Dataset) -> None:
        split, starts = tiny_dataset.split, tiny_dataset.period_ms_P.tolist()
        days = [split.test_from_ms - n * 24 * HOUR_MS for n in range(20)]
        assert starts == [split.start_ms, *sorted(day for day in days if day > split.start_ms)]
        assert len(starts) > 3
        assert starts[-1] == split.test_from_ms
        size, layout = len(tiny_dataset.catalogue), tiny_dataset.features.layout
        assert tiny_dataset.standing_PAS.shape == (len(starts), size, layout.standing)

    @pytest.mark.parametrize("chunk_rows", [300, 250_000])
    def test_ads_stand_as_in_the_state_of_then(
        self, tiny_world: Path, tmp_path: Path, chunk_rows: int
    ) -> None:
        """Each period against a state that took in what came before it, and nothing else."""
        tables = open_layout("synthetic", tiny_world)
        config = FeatureConfig(refresh_hours=17.0)
        dataset = prepared(tables, tmp_path, chunk_rows=chunk_rows, config=config)
        log = tables.ordered().collect()
        starts = dataset.period_ms_P.tolist()
        assert set(np.diff(starts[1:])) == {17 * HOUR_MS}
        for start, standing_AS in zip(starts, dataset.standing_PAS, strict=True):
            state = State.begin(dataset.features, dataset.catalogue, tables.user_frame())
            before = log.filter(pl.col(TIMESTAMP_MS) < start)
            if before.height:
                state.advance(before)
            np.testing.assert_allclose(standing_AS, state.standing(start), atol=1e-6)
            assert standing_AS.any() == (before.height > 0)
        of_test = dataset.state("test").standing(dataset.split.test_from_ms)
        np.testing.assert_allclose(dataset.standing_PAS[-1], of_test, atol=1e-6)

    def test_nothing_of_a_period_is_known_when_it_begins(
        self, tiny_world: Path, tiny_dataset: Dataset, tmp_path: Path
    ) -> None:
        """Other outcomes from an instant on: how ads stood until then is the same to the bit."""
        strange = tmp_path / "world"
        shutil.copytree(tiny_world, strange)
        log = pl.read_parquet(strange / "impressions.parquet")
        from_ms = tiny_dataset.split.valid_from_ms  # the features are fitted on what was before
        late = pl.col(TIMESTAMP_MS) >= from_ms
        turned = pl.when(late).then(1 - pl.col("click")).otherwise("click")
        log.with_columns(turned.cast(log["click"].dtype).alias("click")).write_parquet(
            strange / "impressions.parquet"
        )
        other = prepared(open_layout("synthetic", strange), tmp_path)
        np.testing.assert_array_equal(other.period_ms_P, tiny_dataset.period_ms_P)
        same_P = (other.standing_PAS == tiny_dataset.standing_PAS).all(axis=(1, 2))
        np.testing.assert_array_equal(same_P, tiny_dataset.period_ms_P <= from_ms)
        assert not same_P[-1]

    def test_by_hand(self, tmp_path: Path) -> None:
        """Builds every 5 ms, counted back from 15: at 10 and 5; the log starts at 1."""
        schema = parse_schema(
            "{name: t, request_id: request, tasks: [{name: click}], counters: [{columns: [ad_id]}]}"
        )
        # (request, ad, time): nobody asks between 5 and 10; `x` ends after the build at 15.
        rows = [
            ("v", "a", 1), ("v", "b", 4), ("w", "a", 10), ("x", "a", 14), ("x", "b", 20),
            ("y", "c", 15),
        ]  # fmt: skip
        frame = pl.DataFrame(rows, schema=["request", "ad_id", "timestamp_ms"], orient="row")
        tables = tables_from(
            schema, {"impressions": ("log", frame.with_columns(click=pl.lit(0)).lazy())}
        )
        limits = SplitConfig.model_validate({"valid_from": 0.010, "test_from": 0.015})
        config = FeatureConfig(refresh_hours=5 / HOUR_MS)
        dataset = prepared(tables, tmp_path, split=limits, config=config)
        assert dataset.time_ms_R.tolist() == [1, 10, 14, 15]
        assert dataset.period_ms_P.tolist() == [1, 10, 15]  # of one without a request nothing
        assert dataset.periods(np.array([3, 0, 1, 2, 1])).tolist() == [2, 0, 1, 1, 1]
        abc = dataset.catalogue.directory.rows(pl.Series(["a", "b", "c"]))
        shown = np.expm1(dataset.standing_PAS[:, abc, 0])
        np.testing.assert_allclose(shown, [[0, 0, 0], [1, 1, 0], [3, 1, 0]], atol=1e-6)
        assert not dataset.standing_PAS[:, 0].any()

    def test_a_request_is_of_the_last_build_before_it(self, tiny_dataset: Dataset) -> None:
        requests = np.random.default_rng(0).permutation(len(tiny_dataset))[:300]
        found = tiny_dataset.periods(requests)
        for request, period in zip(requests, found, strict=True):
            came_ms = tiny_dataset.time_ms_R[request]
            assert period == (tiny_dataset.period_ms_P <= came_ms).sum() - 1
        np.testing.assert_array_equal(tiny_dataset.batch(requests).period_B, found)
        last = len(tiny_dataset.period_ms_P) - 1
        test = tiny_dataset.requests("test")
        assert (tiny_dataset.periods(test) == last).all()
        assert (tiny_dataset.periods(np.arange(test[0])) < last).all()

    def test_a_log_without_counters_has_periods_too(self, tmp_path: Path) -> None:
        dataset = slates([3, 1, 2], tmp_path)
        assert dataset.standing_PAS.shape == (2, 7, 0)  # the log's start, and the test's
        assert dataset.periods(np.arange(3)).tolist() == [0, 0, 1]


class TestBatch:
    REQUESTS = np.array([7, 3, 1999, 3])

    def test_shapes_and_content(self, tiny_dataset: Dataset) -> None:
        data, layout = tiny_dataset, tiny_dataset.features.layout
        batch = data.batch(self.REQUESTS)
        assert (len(batch.query), batch.rows) == (4, 16)
        assert batch.ad_row_BN.shape == (4, 4)
        assert batch.labels_BNK.shape == (4, 4, 3)
        assert batch.candidates.counters_BNC.shape == (4, 4, layout.counters)
        assert batch.candidates.ads.categorical.shape == (4, 4, len(layout.ad_sizes))
        assert batch.candidates.ads.dense.shape == (4, 4, layout.ad_dense)
        assert batch.query.user.categorical.shape == (4, len(layout.user_sizes))
        assert batch.query.request.categorical.shape == (4, len(layout.request_sizes))
        assert batch.query.histories[0].gap_BL.shape == (4, 50)
        for b, request in enumerate(self.REQUESTS):
            rows = slice(data.offset_R[request], data.offset_R[request + 1])
            np.testing.assert_array_equal(batch.ad_row_BN[b], data.ad_N[rows])
            np.testing.assert_array_equal(batch.labels_BNK[b], data.labels_NK[rows])
            np.testing.assert_array_equal(batch.candidates.counters_BNC[b], data.counters_NC[rows])
            assert batch.candidates.position_BN[b].tolist() == [1, 2, 3, 4]
            for items, past in zip(batch.query.histories, data.histories, strict=True):
                np.testing.assert_array_equal(items.row_BL[b], past.ads[request])
                np.testing.assert_array_equal(items.mask_BL[b], past.ads[request] != 0)
                np.testing.assert_array_equal(items.gap_BL[b], past.gap[request])
                np.testing.assert_array_equal(items.outcomes_BL[b], past.outcomes[request])

    def test_shorter_slates_are_padded(self, tmp_path: Path) -> None:
        dataset = slates([3, 1, 2], tmp_path)
        batch = dataset.batch(np.array([1, 0, 2]))
        assert batch.candidates.mask_BN.tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 0]]
        assert batch.ad_row_BN.tolist() == [[4, 0, 0], [1, 2, 3], [5, 6, 0]]
        assert batch.candidates.position_BN.tolist() == [[1, 0, 0], [1, 2, 3], [1, 2, 0]]
        assert batch.labels_BNK[..., 0].tolist()[0][0] == 0.0
        assert batch.labels_BNK[1, :, 0].tolist() == [1.0, 0.0, 1.0]
        assert batch.rows == 6

    def test_what_is_not_kept_counts_as_padding(self, tmp_path: Path) -> None:
        dataset = slates([3, 1, 2], tmp_path)
        keep = np.array([True, False, True, False, True, True])
        batch = dataset.batch(np.arange(3), keep)
        assert batch.candidates.mask_BN.tolist() == [[1, 0, 1], [0, 0, 0], [1, 1, 0]]
        assert batch.ad_row_BN.tolist() == [[1, 0, 3], [0, 0, 0], [5, 6, 0]]
        assert batch.candidates.position_BN.tolist() == [[1, 0, 3], [0, 0, 0], [1, 2, 0]]
        assert batch.rows == 4
        assert not dataset.batch(np.arange(3), np.zeros(6, bool)).candidates.mask_BN.any()

    def test_a_log_without_anything_but_ads_and_clicks(self, tmp_path: Path) -> None:
        dataset = slates([3, 1, 2], tmp_path)
        batch = dataset.batch(np.arange(3))
        assert batch.query.user.categorical.shape == (3, 0)
        assert batch.query.histories == ()
        assert batch.candidates.counters_BNC.shape == (3, 3, 0)
        assert dataset.user_R.tolist() == [0, 0, 0]
        assert dataset.propensity_N.tolist() == [1.0] * 6

    def test_batches_in_order_hold_every_impression_once(self, tiny_dataset: Dataset) -> None:
        requests = tiny_dataset.requests("valid")
        batches = list(tiny_dataset.in_order(requests, batch_rows=100))
        assert len(batches) == 8
        ads = np.concatenate([batch.ad_row_BN.numpy().ravel() for batch in batches])
        np.testing.assert_array_equal(ads, tiny_dataset.ad_N[tiny_dataset.rows_of(requests)])
        assert list(tiny_dataset.in_order(requests[:0], batch_rows=100)) == []

    def test_rows_of(self, tmp_path: Path) -> None:
        dataset = slates([3, 1, 2], tmp_path)
        assert dataset.rows_of(np.array([2, 0])).tolist() == [4, 5, 0, 1, 2]
        assert dataset.rows_of(np.zeros(0, np.int64)).tolist() == []


def slates(sizes: list[int], folder: Path) -> Dataset:
    """A log of slates of some sizes: ads 1, 2, ... in order, every other one clicked."""
    schema = parse_schema(
        "{name: slates, request_id: request, position: place, tasks: [{name: click}]}"
    )
    request = np.repeat(np.arange(len(sizes)), sizes)
    place = np.concatenate([np.arange(1, size + 1) for size in sizes])
    ad = np.arange(1, len(request) + 1)
    frame = pl.DataFrame(
        {"request": request, "place": place, "ad_id": ad, "timestamp_ms": request, "click": ad % 2}
    )
    tables = tables_from(schema, {"impressions": ("log", frame.lazy())})
    limits = {"valid_from": 0.001, "test_from": 0.002}  # request i comes at i ms
    return prepared(tables, folder, split=SplitConfig.model_validate(limits))


class TestCut:
    def test_by_hand(self) -> None:
        """Slates of 2, 2, 3, 1, 4 in batches of about 6: 12 rows are two of them."""
        parts = cut(np.array([5, 6, 7, 8, 9]), np.array([2, 2, 3, 1, 4]), 6)
        assert [part.tolist() for part in parts] == [[5, 6], [7, 8, 9]]

    @given(st.lists(st.integers(1, 9), max_size=60), st.integers(1, 40))
    def test_every_request_once_and_batches_alike(self, sizes: list[int], rows: int) -> None:
        slates: NDArray[np.int64] = np.array(sizes, np.int64)
        parts = cut(np.arange(len(sizes)), slates, rows)
        assert [r for part in parts for r in part.tolist()] == list(range(len(sizes)))
        assert all(len(part) for part in parts)
        if parts:
            wanted = slates.sum() / max(1, round(slates.sum() / rows))
            assert max(slates[part].sum() for part in parts) <= wanted + slates.max()


class TestDamage:
    FILES = (
        "dataset.json", "ad.bin", "counters.bin", "ads.parquet", "ads.safetensors",
        "features/features.json", "features/schema.yaml", "features/vocabularies.parquet",
    )  # fmt: skip

    @pytest.fixture
    def copy(self, tiny_dataset: Dataset, tmp_path: Path) -> Path:
        return Path(shutil.copytree(tiny_dataset.directory, tmp_path / "copy"))

    @pytest.mark.parametrize("name", FILES)
    def test_a_missing_file(self, copy: Path, name: str) -> None:
        (copy / name).unlink()
        with pytest.raises(DataError, match=r"copy is not a prepared dataset.*`adrec prepare`"):
            Dataset(copy)

    @pytest.mark.parametrize("name", FILES)
    def test_a_file_cut_short(self, copy: Path, name: str) -> None:
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=r"copy is not a prepared dataset.*`adrec prepare`"):
            Dataset(copy)

    @pytest.mark.parametrize(
        "content", [[], {}, {"arrays": {}}, {"arrays": {"ad": {"dtype": "x"}}}]
    )
    def test_a_list_of_contents_that_lacks_something(self, copy: Path, content: Any) -> None:
        (copy / "dataset.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match="adrec prepare"):
            Dataset(copy)

    @pytest.mark.parametrize("name", ["users.parquet", "users.safetensors", "counter_0.parquet"])
    def test_a_damaged_state(self, copy: Path, name: str) -> None:
        (copy / "state" / name).write_bytes(b"PAR1")
        with pytest.raises(DataError, match="adrec prepare"):
            Dataset(copy).state("end")

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="adrec prepare"):
            Dataset(tmp_path / "nowhere")


def test_opening_again_reads_the_same(tiny_dataset: Dataset) -> None:
    again = Dataset(tiny_dataset.directory)
    for name in (*ARRAYS, "counters_NC", "offset_R", "period_ms_P", "standing_PAS"):
        np.testing.assert_array_equal(getattr(again, name), getattr(tiny_dataset, name))
    assert isinstance(again.ad_N, np.memmap)
    assert not again.ad_N.flags.writeable
    assert again.split == tiny_dataset.split
    suffixes = {path.suffix for path in tiny_dataset.directory.rglob("*") if path.is_file()}
    assert suffixes == {".bin", ".json", ".parquet", ".safetensors", ".yaml"}
