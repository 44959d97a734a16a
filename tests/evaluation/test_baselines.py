"""Ranking rivals: popularity by hand, the trees' table by brute force, and what trees must find."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from adrec.data.splits import SplitConfig
from adrec.data.tables import open_tables
from adrec.errors import ConfigError
from adrec.evaluation.baselines import (
    LightGBM,
    LightGBMConfig,
    Popularity,
    ranking_rivals,
)
from adrec.evaluation.impression_table import ImpressionTable, Means, _matches, _numbers
from adrec.features.counters import outcomes
from adrec.features.dataset import Dataset, prepare
from adrec.features.fitting import FeatureConfig
from adrec.metrics import auc, log_loss
from adrec.schema import parse_schema

START = datetime(2026, 1, 5, tzinfo=UTC)
SCHEMA = """
name: toy
user_id: user
ad_id: ad
timestamp: at_ms
tasks:
  - {name: click}
  - {name: spent, kind: value}
"""
FEW_TREES = LightGBMConfig(rounds=60, patience=20, learning_rate=0.1, min_leaf=20)


def toy(directory: Path, rows: list[tuple[int, str, str, int, float]]) -> Dataset:
    """Prepare (hour, user, ad, click, spent): training until hour 10, test from hour 20."""
    names = ["hour", "user", "ad", "click", "spent"]
    log = pl.DataFrame(rows, schema=names, orient="row")
    start_ms = int(START.timestamp() * 1000)
    log = log.with_columns(at_ms=pl.col("hour") * 3_600_000 + start_ms).drop("hour")
    log.write_parquet(directory / "impressions.parquet")
    return prepare(
        open_tables(parse_schema(SCHEMA), directory),
        directory / "dataset",
        split=SplitConfig(
            valid_from=START + timedelta(hours=10), test_from=START + timedelta(hours=20)
        ),
        config=FeatureConfig(min_count=1),
    )


def rows_and_labels(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    rows = dataset.rows_of(dataset.requests("test"))
    return rows, dataset.labels_NK[rows]


def test_popularity_is_the_smoothed_mean_of_the_training_period(tmp_path: Path) -> None:
    shown = [(hour, "u", "a", 1, 3.0) for hour in range(5)] + [(5, "v", "b", 0, 1.0)] * 5
    later = [(11, "u", "a", 0, 9.0), (21, "u", "b", 1, 0.0), (22, "v", "a", 0, 0.0)]
    dataset = toy(tmp_path, [*shown, *later, (23, "u", "new", 0, 0.0)])
    rival = Popularity()
    rival.fit(dataset)
    rows, _ = rows_and_labels(dataset)
    # Means 1/2 and 2, weight 20. b: (0 + 10) / 25, (5 + 40) / 25; a: (5 + 10) / 25, (15 + 40) / 25.
    expected = np.array([[0.4, 1.8], [0.6, 2.2], [0.5, 2.0]])
    assert rival.score(dataset, rows) == pytest.approx(expected)


def test_means_of_values_seen_between_and_beyond() -> None:
    means = Means.of(np.array([0, 2, 2]), np.array([[1.0], [0.0], [1.0]]), np.array([0.25]))
    # Prior 1/4 with the weight of 20: (1 + 5) / 21, 5 / 20 where none, (1 + 5) / 22.
    expected = np.array([[1, 6 / 21], [0, 0.25], [2, 6 / 22], [0, 0.25], [0, 0.25]])
    assert means.read(np.arange(5)) == pytest.approx(expected)


def test_out_of_fold_means_by_brute_force(tiny_dataset: Dataset) -> None:
    rows = tiny_dataset.rows_of(tiny_dataset.requests("train"))[:300]
    fold_N = np.arange(300) % 3
    table, table_NF = ImpressionTable.fit(tiny_dataset, rows, fold_N, counters=True)
    tasks = tiny_dataset.features.schema.tasks
    outcome_NK = outcomes(tiny_dataset.labels_NK[rows], tasks)
    ads = tiny_dataset.ad_N[rows]
    column = table.names.index("ad row count")
    for i in (0, 17, 298):
        others = (fold_N != fold_N[i]) & (ads == ads[i])
        sums = outcome_NK[others].sum(axis=0) + 20 * outcome_NK.mean(axis=0)
        expected = np.append(others.sum() * 3 / 2, sums / (others.sum() + 20))
        assert table_NF[i, column : column + 1 + len(tasks)] == pytest.approx(expected, rel=1e-6)


def test_numbers_by_brute_force(tiny_dataset: Dataset) -> None:
    rows = tiny_dataset.rows_of(tiny_dataset.requests("test"))[::40]
    numbers = _numbers(tiny_dataset, rows, counters=True)
    topic = tiny_dataset.features.ad.categorical_names.index("topic")
    codes = tiny_dataset.catalogue.encoded.categorical[:, topic]
    offsets, user_R, time_R = tiny_dataset.offset_R, tiny_dataset.user_R, tiny_dataset.time_ms_R
    for n, row in enumerate(rows):
        request = int(np.flatnonzero((offsets[:-1] <= row) & (row < offsets[1:]))[0])
        history = [ad for ad in tiny_dataset.histories[0][0][request].tolist() if ad]
        ad = int(tiny_dataset.ad_N[row])
        assert numbers["history length"][n] == len(history)
        assert numbers["history same ad"][n] == history.count(ad)
        assert numbers["history same topic"][n] == sum(codes[i] == codes[ad] for i in history)
        past = tiny_dataset.histories[1].take(np.array([request]))
        shown = [(ad, bits) for ad, bits in zip(past.ads[0], past.outcomes[0], strict=True) if ad]
        clicked = [ad for ad, bits in shown if bits % 2]
        assert numbers["shown length"][n] == len(shown)
        assert numbers["shown clicked length"][n] == len(clicked)
        assert numbers["shown clicked same ad"][n] == clicked.count(ad)
        same_topic = sum(codes[i] == codes[ad] for i in clicked)
        assert numbers["shown clicked same topic"][n] == same_topic
        earlier = time_R[(user_R == user_R[request]) & (time_R < time_R[request])]
        hours = (time_R[request] - earlier) / 3_600_000
        expected = hours.min() if len(hours) else np.nan
        assert numbers["hours since last request"][n] == pytest.approx(expected, nan_ok=True)
        assert numbers["requests in last hour"][n] == (hours <= 1).sum()
    assert np.isfinite(np.stack([v for k, v in numbers.items() if "since" not in k])).all()


def test_a_missing_value_matches_neither_another_nor_padding(tiny_dataset: Dataset) -> None:
    unknown, padded = np.zeros(1, np.int32), np.array([[0, 0, 5]], np.int32)
    found = _matches(tiny_dataset, padded, unknown)
    assert found["length"] == 1
    assert found["same topic"] == found["same category"] == 0


@pytest.fixture(scope="module")
def trees(tiny_dataset: Dataset) -> LightGBM:
    rival = LightGBM(FEW_TREES)
    rival.fit(tiny_dataset)
    return rival


def test_trees_predict_every_task_and_beat_popularity(
    trees: LightGBM, tiny_dataset: Dataset
) -> None:
    rows, labels = rows_and_labels(tiny_dataset)
    scores = trees.score(tiny_dataset, rows)
    assert scores.shape == labels.shape
    assert ((scores[:, :2] > 0) & (scores[:, :2] < 1)).all()
    assert (scores[:, 2] > 0).all()
    popularity = Popularity()
    popularity.fit(tiny_dataset)
    rival = popularity.score(tiny_dataset, rows)
    # 800 impressions, about 100 clicks: the AUC's standard error is .03, the gap about .1.
    assert auc(scores[:, 0], labels[:, 0]) > auc(rival[:, 0], labels[:, 0]) + 0.05
    assert log_loss(scores[:, 0], labels[:, 0]) < log_loss(rival[:, 0], labels[:, 0])


def test_trees_are_the_same_for_any_part_of_the_rows(
    trees: LightGBM, tiny_dataset: Dataset
) -> None:
    rows, _ = rows_and_labels(tiny_dataset)
    chosen = np.array([5, 3, 100])
    whole = trees.score(tiny_dataset, rows)
    assert trees.score(tiny_dataset, rows[chosen]) == pytest.approx(whole[chosen])
    again = LightGBM(FEW_TREES)
    again.fit(tiny_dataset)
    np.testing.assert_array_equal(again.score(tiny_dataset, rows), whole)


def test_trees_find_a_planted_signal_and_the_scale_of_a_value(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    # Ads a and b: of a's impressions 80% are clicked and spend 300 each, of b's 20%.
    rows = []
    for i in range(3000):
        ad = str(rng.choice(["a", "b"]))
        click = int(rng.random() < {"a": 0.8, "b": 0.2}[ad])
        rows.append((i // 100, f"u{i}", ad, click, 300.0 * click))
    dataset = toy(tmp_path, rows)
    rival = LightGBM(FEW_TREES)
    rival.fit(dataset)
    test, _ = rows_and_labels(dataset)
    scores = rival.score(dataset, test)
    of_a = dataset.ad_N[test] == dataset.catalogue.directory.row("a")
    # 1,000 training impressions: rates are known to ±.018 each; 3 of those and some slack.
    assert scores[of_a].mean(axis=0) == pytest.approx([0.8, 240], rel=0.1)
    assert scores[~of_a].mean(axis=0) == pytest.approx([0.2, 60], rel=0.3)


def test_trees_without_counters_have_no_column_of_them_nor_of_the_session(
    tiny_dataset: Dataset,
) -> None:
    rows = tiny_dataset.rows_of(tiny_dataset.requests("train"))[:300]
    names = {}
    for counters in (True, False):
        table, table_NF = ImpressionTable.fit(
            tiny_dataset, rows, np.arange(300) % 3, counters=counters
        )
        names[counters] = table.names
        assert table_NF.shape == (300, len(table.names))
        # The same table for rows that come later, without a column left unfilled.
        later_NF = table.read(tiny_dataset, rows[:7])
        numbers = _numbers(tiny_dataset, rows[:7], counters)
        assert table.names[-len(numbers) :] == tuple(numbers)
        expected = np.stack([*numbers.values()], axis=1).astype(np.float32)
        np.testing.assert_array_equal(later_NF[:, -len(numbers) :], expected)
    without = set(names[True]) - set(names[False])
    assert without == {n for n in names[True] if n.startswith("counter ")} | {
        "hours since last request",
        "requests in last hour",
    }
    assert len(without) == tiny_dataset.counters_NC.shape[1] + 2 > 2
    assert not set(names[False]) - set(names[True])


def test_trees_without_counters_say_so_and_are_others(
    trees: LightGBM, tiny_dataset: Dataset
) -> None:
    rival = LightGBM(FEW_TREES.model_copy(update={"counters": False}))
    rival.fit(tiny_dataset)
    assert (trees.name, rival.name) == ("LightGBM", "LightGBM without counters")
    rows, labels = rows_and_labels(tiny_dataset)
    scores = rival.score(tiny_dataset, rows)
    assert (scores != trees.score(tiny_dataset, rows)).any()
    assert auc(scores[:, 0], labels[:, 0]) > 0.55  # fields and histories alone say something


def test_refitted_trees_learn_from_both_periods_as_many_trees_as_were_best(
    trees: LightGBM, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown: list[tuple[int, int, Any, tuple[int, ...]]] = []
    grow = LightGBM._grow

    def noted(
        self: LightGBM,
        config: LightGBMConfig,
        dataset: Dataset,
        train: np.ndarray,
        valid: np.ndarray,
    ) -> tuple[int, ...]:
        best = grow(self, config, dataset, train, valid)
        grown.append((len(train), len(valid), config.rounds, best))
        return best

    monkeypatch.setattr(LightGBM, "_grow", noted)
    rival = LightGBM(FEW_TREES.model_copy(update={"refit": True}))
    rival.fit(tiny_dataset)
    (train, valid, most, best), (both, none, fixed, trees_K) = grown
    assert (train, valid, most) == (6400, 800, 60)
    assert (both, none, fixed) == (7200, 0, best)
    assert trees_K == best == tuple(model.num_trees() for model in rival._models)
    assert min(best) < 60  # else nothing shows that growing was stopped
    rows, labels = rows_and_labels(tiny_dataset)
    assert (rival.score(tiny_dataset, rows) != trees.score(tiny_dataset, rows)).any()
    assert rival.name == "LightGBM"
    popularity = Popularity()
    popularity.fit(tiny_dataset)
    auc_of = [auc(r.score(tiny_dataset, rows)[:, 0], labels[:, 0]) for r in (rival, popularity)]
    assert auc_of[0] > auc_of[1] + 0.05


def test_without_lightgbm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [rival.name for rival in ranking_rivals()] == ["popularity", "LightGBM"]
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ConfigError, match=r"pip install \"adrec\[trees\]\""):
        LightGBM()


def test_popularity_may_know_the_validation_period(tiny_dataset: Dataset) -> None:
    rows = tiny_dataset.rows_of(tiny_dataset.requests("test"))
    short, known = Popularity(), Popularity(refit=True)
    short.fit(tiny_dataset)
    known.fit(tiny_dataset)
    by_hand = Popularity()
    by_hand.fit(tiny_dataset.through_validation())
    expected = by_hand.score(tiny_dataset, rows)
    np.testing.assert_array_equal(known.score(tiny_dataset, rows), expected)
    assert not np.array_equal(short.score(tiny_dataset, rows), expected)
