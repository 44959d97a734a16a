"""Features of a group's start: they know nothing of the group, and only the user's change."""

import numpy as np
import polars as pl
import pytest

from adrec import metrics
from adrec.data.layouts import open_layout
from adrec.data.splits import SplitConfig
from adrec.evaluation.columns import counter_columns
from adrec.evaluation.group_start import GroupStart, frozen
from adrec.evaluation.impression_table import ImpressionTable
from adrec.evaluation.judged import BY_DAY, judged_impressions
from adrec.evaluation.views import Excerpt
from adrec.features.dataset import Dataset, prepare
from adrec.features.fitting import FeatureConfig

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
SCHEMA = """
name: days
user_id: user_id
tasks: [{name: click}]
fields:
  - {name: brand, kind: categorical, role: ad}
  - {name: site, kind: categorical, role: context}
  - {name: shown, kind: sequence, grows_with: impression, length: 5}
counters:
  - {columns: [user_id]}
  - {columns: [user_id, brand]}
  - {columns: [user_id, site]}
  - {columns: [ad_id]}
"""


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    """40 users over 12 days, one impression every 6 minutes: about 6 a user and day."""
    rng = np.random.default_rng(0)
    rows = 2880
    ad = rng.integers(0, 30, rows)
    return pl.DataFrame(
        {
            "user_id": rng.integers(1, 41, rows),
            "ad_id": [f"a{i}" for i in ad],
            "timestamp_ms": 19_700 * DAY_MS + np.arange(rows) * HOUR_MS // 10,
            "click": (rng.random(rows) < 0.3).astype(int),
            "brand": [f"b{i % 4}" for i in ad],
            "site": rng.choice(["news", "shop"], rows),
        }
    )


@pytest.fixture(scope="module")
def dataset(log: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("days")
    log.write_csv(folder / "impressions.csv")
    (folder / "schema.yaml").write_text(SCHEMA)
    return prepare(
        open_layout("generic", folder),
        folder / "dataset",
        split=SplitConfig(),
        config=FeatureConfig(),
    )


@pytest.fixture(scope="module")
def groups(dataset: Dataset) -> np.ndarray:
    test = dataset.requests("test")
    return dataset.user_R[test] * 100_000 + dataset.time_ms_R[test] // DAY_MS


@pytest.fixture(scope="module")
def part(dataset: Dataset) -> Excerpt:
    return Excerpt(dataset, dataset.requests("test"))


def columns_of(part: Excerpt, name: str) -> slice:
    return next(c for spec, c in counter_columns(part.features.schema) if spec.name == name)


@pytest.mark.parametrize("key", ["user_id", "user_id*brand", "user_id*site"])
def test_counters_know_only_what_was_before_the_day(
    log: pl.DataFrame, part: Excerpt, groups: np.ndarray, key: str
) -> None:
    """log(1 + count), with the user's impressions with that key before the day, from the log."""
    after = frozen(part, groups)
    names = key.split("*")
    test = log[-len(part) :]
    assert test["click"].to_list() == part.labels_NK[:, 0].tolist()
    expected = []
    for row in test.iter_rows(named=True):
        day_ms = row["timestamp_ms"] // DAY_MS * DAY_MS
        # The log is cut where the test period begins: what the user did before it on that first
        # day is not of the group, which begins with the first judged impression.
        begun_ms = max(day_ms, test["timestamp_ms"][0])
        past = log.filter(pl.col("timestamp_ms") < begun_ms)
        for name in names:
            past = past.filter(pl.col(name) == row[name])
        expected.append(np.log1p(past.height))
    found = after.counters_NC[:, columns_of(part, key).start]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not np.allclose(part.counters_NC[:, columns_of(part, key).start], expected)


def test_histories_are_those_of_the_first_request(part: Excerpt, groups: np.ndarray) -> None:
    after = frozen(part, groups)
    first: dict[int, int] = {}
    for place, group in enumerate(groups.tolist()):
        start = first.setdefault(group, place)
        for now, before in zip(after.histories, part.histories, strict=True):
            for of_now, of_before in zip(now, before, strict=True):
                np.testing.assert_array_equal(of_now[place], of_before[start])
    assert any((a.ads != b.ads).any() for a, b in zip(after.histories, part.histories, strict=True))


def test_all_else_stays(part: Excerpt, groups: np.ndarray) -> None:
    after = frozen(part, groups)
    for name in ("ad_N", "labels_NK", "position_N", "slate_R", "time_ms_R", "user_R"):
        np.testing.assert_array_equal(getattr(after, name), getattr(part, name))
    np.testing.assert_array_equal(after.request.categorical, part.request.categorical)
    ads = columns_of(part, "ad_id")
    np.testing.assert_array_equal(after.counters_NC[:, ads], part.counters_NC[:, ads])
    assert after.catalogue is part.catalogue


def test_the_session_is_that_of_the_first_request(
    dataset: Dataset, part: Excerpt, groups: np.ndarray
) -> None:
    train = dataset.rows_of(dataset.requests("train"))
    table, _ = ImpressionTable.fit(dataset, train, np.arange(len(train)) % 2, counters=True)
    test = dataset.rows_of(dataset.requests("test"))
    whole = table.read(dataset, test)
    np.testing.assert_array_equal(table.read(part, part.every_row()), whole)
    after = table.read(frozen(part, groups), part.every_row())
    _, first, place = np.unique(groups, return_index=True, return_inverse=True)
    for name in ("hours since last request", "requests in last hour"):
        column = table.names.index(name)
        np.testing.assert_array_equal(after[:, column], whole[first[place], column])
        assert (np.nan_to_num(after[:, column]) != np.nan_to_num(whole[:, column])).any()
    for name in ("hour UTC", "ad brand count", "request site mean click", "user row count"):
        column = table.names.index(name)
        np.testing.assert_array_equal(after[:, column], whole[:, column])


def test_only_groups_with_both_outcomes_are_scored(dataset: Dataset) -> None:
    shown = judged_impressions(dataset)
    assert shown.grouped_by == BY_DAY
    start = GroupStart.of(dataset, shown)
    assert start is not None
    assert 0 < len(start.rows_N) < len(shown.rows_N)
    # A model whose scores do not depend on what is frozen has the same GAUC as on all rows.
    by_ad = np.random.default_rng(0).random(len(dataset.catalogue))
    whole = metrics.gauc(by_ad[dataset.ad_N[shown.rows_N]], shown.labels_NK[:, 0], shown.group_N)
    found = start.judge(lambda log, rows: by_ad[log.ad_N[rows]][:, None])
    expected = {"estimate": pytest.approx(whole.value), "groups": whole.groups, "rows": whole.rows}
    assert found == [expected]


def test_a_model_that_has_learned_from_the_day_is_no_longer_punished(dataset: Dataset) -> None:
    """Chance alone: a user's click rate so far orders a day worse than ½, frozen it is all ties.

    With 6 impressions a day one click more or less in those left is much, and the counter, which
    never forgets, holds about 60.
    """
    shown = judged_impressions(dataset)
    start = GroupStart.of(dataset, shown)
    assert start is not None
    column = columns_of(start.part, "user_id").start + 1

    def score(log: Dataset, rows: np.ndarray) -> np.ndarray:
        return log.counters_NC[rows, column][:, None].astype(np.float64)

    gauc = metrics.gauc(score(dataset, shown.rows_N)[:, 0], shown.labels_NK[:, 0], shown.group_N)
    assert gauc.value < 0.45
    assert start.judge(score)[0] == pytest.approx(
        {"estimate": 0.5, "groups": gauc.groups, "rows": gauc.rows}
    )


def test_groups_that_are_requests_need_no_such_thing(tiny_dataset: Dataset) -> None:
    assert GroupStart.of(tiny_dataset, judged_impressions(tiny_dataset)) is None
