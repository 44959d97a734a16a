"""Retrieval rivals against other derivations of the same numbers; queries by hand and by loops."""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from adrec.data.layouts import open_layout
from adrec.data.splits import SplitConfig
from adrec.data.tables import open_tables
from adrec.errors import DataError
from adrec.evaluation.collaborative import Ease, Ials, IalsConfig, ItemKnn
from adrec.evaluation.retrieval_baselines import PopularAds, item_to_item, retrieval_rivals
from adrec.evaluation.retrieval_queries import (
    AdLists,
    RetrievalRival,
    queries,
    user_item_pairs,
)
from adrec.features.dataset import Dataset, prepare
from adrec.features.fitting import FeatureConfig
from adrec.metrics import recall_at_k
from adrec.schema import parse_schema

DAY_MS = 86_400_000
SCHEMA = """
name: toy
ad_id: ad
timestamp: at_ms
tasks:
  - {name: click}
"""
USERS = """
user_id: user
fields:
  - {name: shown, kind: sequence, grows_with: impression, length: 9}
  - {name: clicked, kind: sequence, grows_with: click, length: 2}
"""
LOG = [  # day, user, ad, click: training is day 0 and 1, validation 2, test 3
    (0, "u", "a", 1),
    (0, "u", "b", 1),
    (0, "v", "a", 1),
    (0, "w", "d", 0),
    (1, "u", "c", 1),
    (1, "v", "b", 1),
    (2, "u", "d", 1),
    (2, "v", "e", 0),
    (3, "u", "a", 1),
    (3, "v", "a", 1),
    (3, "v", "e", 1),
    (3, "w", "d", 0),
    (3, "v", "c", 1),
    (3, "x", "b", 1),
]
TEST_FROM = 8


def toy(directory: Path, schema: str) -> Dataset:
    log = pl.DataFrame(LOG, schema=["day", "user", "ad", "click"], orient="row")
    log = log.with_columns(at_ms=pl.col("day") * DAY_MS + 1000 * pl.int_range(pl.len()) + DAY_MS)
    log.write_parquet(directory / "impressions.parquet")
    dates = [f"1970-01-0{day + 2}T00:00:00Z" for day in (2, 3)]
    split = SplitConfig.model_validate({"valid_from": dates[0], "test_from": dates[1]})
    tables = open_tables(parse_schema(schema), directory)
    return prepare(tables, directory / "dataset", split=split, config=FeatureConfig(min_count=1))


@pytest.fixture(scope="module")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return toy(tmp_path_factory.mktemp("toy"), SCHEMA + USERS)


@pytest.fixture(scope="module")
def anonymous(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return toy(tmp_path_factory.mktemp("anonymous"), SCHEMA)


def names(dataset: Dataset, ads: np.ndarray) -> list[str]:
    return [dataset.catalogue.directory.id(int(ad)) for ad in ads]


def lists(dataset: Dataset, found: AdLists) -> list[str]:
    """One word a query: its ads, sorted."""
    parts = np.split(found.ads, found.offsets[1:-1])
    return ["".join(sorted(names(dataset, part))) for part in parts]


def histories(dataset: Dataset, *words: str) -> AdLists:
    rows = [dataset.catalogue.directory.row(letter) for word in words for letter in word]
    return AdLists(np.append(0, np.cumsum([len(word) for word in words])), np.array(rows, np.int64))


def ranked(dataset: Dataset, rival: RetrievalRival, k: int, *words: str) -> list[str]:
    found = rival.rank(histories(dataset, *words), k)
    assert found.shape == (len(words), k)
    return ["".join(names(dataset, row[row >= 0])) + "-" * int((row < 0).sum()) for row in found]


# ------------------------------------------------------------------------------------ queries


def test_queries_by_hand(toy_dataset: Dataset) -> None:
    asked = queries(toy_dataset)
    # u clicks only a, which it had clicked before the history of two forgot it: no query. w does
    # not click. v clicks a again and e, c anew; x has no past.
    assert asked.requests_Q.tolist() == [TEST_FROM + 1, TEST_FROM + 5]
    assert lists(toy_dataset, asked.seen) == ["ab", ""]
    assert lists(toy_dataset, asked.targets) == ["ce", "b"]


def test_queries_of_a_log_without_users_are_its_requests_with_a_click(anonymous: Dataset) -> None:
    asked = queries(anonymous)
    assert asked.requests_Q.tolist() == [TEST_FROM + i for i in (0, 1, 2, 4, 5)]
    assert lists(anonymous, asked.targets) == ["a", "a", "e", "c", "b"]
    assert len(asked.seen.ads) == 0


def test_queries_are_thinned_evenly(anonymous: Dataset) -> None:
    asked = queries(anonymous, most=3)
    assert asked.requests_Q.tolist() == [TEST_FROM + i for i in (0, 2, 5)]
    assert lists(anonymous, asked.targets) == ["a", "e", "b"]


def test_queries_equal_a_loop_over_the_tables(tiny_world: Path, tiny_dataset: Dataset) -> None:
    tables = open_layout("synthetic", tiny_world)
    users, length = tables.user_frame(), tiny_dataset.features.layout.history_lengths[0]
    assert users is not None
    seen = {
        row["user_id"]: set((row["history"] or [])[-length:]) for row in users.iter_rows(named=True)
    }
    wanted: dict[str, set[str]] = {}
    first: dict[str, tuple[int, str]] = {}
    for row in tables.impressions.frame().collect().iter_rows(named=True):
        user, at_ms = row["user_id"], row["timestamp_ms"]
        test = at_ms >= tiny_dataset.split.test_from_ms
        if test:
            first.setdefault(user, (at_ms, row["request_id"]))
        if row["click"]:
            (wanted if test else seen).setdefault(user, set()).add(row["ad_id"])
    expected = {
        first[user]: ("".join(sorted(seen[user])), "".join(sorted(clicked - seen[user])))
        for user, clicked in wanted.items()
        if clicked - seen[user]
    }
    asked = queries(tiny_dataset)
    found = list(zip(*(lists(tiny_dataset, side) for side in (asked.seen, asked.targets)),
                     strict=True))  # fmt: skip
    assert found == [expected[key] for key in sorted(expected)]
    times = [at_ms for at_ms, _ in sorted(expected)]
    assert tiny_dataset.time_ms_R[asked.requests_Q].tolist() == times


def test_users_who_are_held_out_keep_their_past_and_teach_nobody(toy_dataset: Dataset) -> None:
    """v and w are: of their requests only those of the test are judged, u's and x's are not."""
    directory = toy_dataset.state("end").users
    held_R = np.isin(toy_dataset.user_R, [directory.row("v"), directory.row("w")])
    view = toy_dataset.holding_out(held_R, "v and w")
    asked = queries(view)
    assert asked.requests_Q.tolist() == [TEST_FROM + 1]
    assert lists(view, asked.seen) == ["ab"]
    assert lists(view, asked.targets) == ["ce"]
    users, ads = user_item_pairs(view)
    assert {directory.id(int(user)) for user in users} == {"u"}
    assert "".join(sorted(names(view, ads))) == "abcd"
    rival = PopularAds()
    rival.fit(view)
    assert ranked(view, rival, 5, "") == ["abdc-"]  # u's, each once: in order of the catalogue


def test_lists_can_be_taken_in_any_order() -> None:
    whole = AdLists(np.array([0, 2, 2, 5]), np.array([1, 2, 3, 4, 5]))
    part = whole.take(np.array([2, 0, 1]))
    assert part.offsets.tolist() == [0, 3, 5, 5]
    assert part.ads.tolist() == [3, 4, 5, 1, 2]


# ------------------------------------------------------------------------------------- rivals


def test_pairs_reach_back_further_than_the_last_history(toy_dataset: Dataset) -> None:
    users, ads = user_item_pairs(toy_dataset)
    pairs = sorted(
        toy_dataset.state("test").users.id(int(user)) + name
        for user, name in zip(users, names(toy_dataset, ads), strict=True)
    )
    assert pairs == ["ua", "ub", "uc", "ud", "va", "vb"]


def test_pairs_equal_a_loop_over_the_tables(tiny_world: Path, tiny_dataset: Dataset) -> None:
    tables = open_layout("synthetic", tiny_world)
    users, length = tables.user_frame(), tiny_dataset.features.layout.history_lengths[0]
    assert users is not None
    expected = {
        (row["user_id"], ad)
        for row in users.iter_rows(named=True)
        for ad in (row["history"] or [])[-length:]
    }
    expected |= {
        (row["user_id"], row["ad_id"])
        for row in tables.impressions.frame().collect().iter_rows(named=True)
        if row["click"] and row["timestamp_ms"] < tiny_dataset.split.test_from_ms
    }
    found, ads = user_item_pairs(tiny_dataset)
    directory = tiny_dataset.state("test").users
    named = [directory.id(int(user)) for user in found]
    assert sorted(zip(named, names(tiny_dataset, ads), strict=True)) == sorted(expected)


def test_without_a_history_popularity_decides(tiny_dataset: Dataset) -> None:
    ads = user_item_pairs(tiny_dataset)[1].tolist()
    expected = sorted(set(ads), key=lambda ad: (-ads.count(ad), ad))[:100]
    for rival in (Ease(), ItemKnn(), Ials()):
        rival.fit(tiny_dataset)
        nobody = AdLists(np.array([0, 0]), np.zeros(0, np.int64))
        assert rival.rank(nobody, 100).tolist() == [expected]


def test_popular_ads_count_clicks_before_the_test_and_leave_out_the_history(
    toy_dataset: Dataset,
) -> None:
    rival = PopularAds()
    rival.fit(toy_dataset)
    # a and b have 2 clicks, d and c 1; equal ones in catalogue order, by first impression: d, c.
    assert ranked(toy_dataset, rival, 5, "", "a", "bdc") == ["abdc-", "bdc--", "a----"]


def test_item_to_item_ranks_by_weights_from_the_history(toy_dataset: Dataset) -> None:
    ease, knn = Ease(regulariser=1.0), ItemKnn(shrinkage=0.0)
    for rival in (ease, knn):
        rival.fit(toy_dataset)
    # c and d were met by u alone: together; a and b by u and v. From c: d first.
    for rival in (ease, knn):
        assert ranked(toy_dataset, rival, 2, "c", "a") == ["da", "bd"]
        # Nothing known in the history: by popularity. e was never clicked: unknown.
        assert ranked(toy_dataset, rival, 3, "", "e") == ["abd", "abd"]
        assert ranked(toy_dataset, rival, 5, "abcd", "abc") == ["-----", "d----"]


def test_ease_keeps_the_most_frequent_ads(toy_dataset: Dataset) -> None:
    rival = Ease(max_ads=3)
    rival.fit(toy_dataset)
    assert sorted(ranked(toy_dataset, rival, 4, "")[0]) == ["-", "a", "b", "d"]


@pytest.mark.parametrize("rival", [PopularAds(), Ease(), ItemKnn(), Ials()], ids=lambda r: r.name)
def test_every_rival_keeps_the_contract(rival: RetrievalRival, tiny_dataset: Dataset) -> None:
    rival.fit(tiny_dataset)
    asked = queries(tiny_dataset)
    found = rival.rank(asked.seen, 50)
    assert found.shape == (len(asked.requests_Q), 50)
    assert found.dtype == np.int64
    for row, start, end in zip(found, asked.seen.offsets, asked.seen.offsets[1:], strict=False):
        real = row[row >= 0]
        assert len(np.unique(real)) == len(real)
        assert (row[: len(real)] == real).all()  # padding comes last
        assert not np.isin(real, asked.seen.ads[start:end]).any()
        assert (real > 0).all()
    # A query's answer does not depend on the others, nor the best ten on how many are wanted.
    few = np.array([7, 2])
    np.testing.assert_array_equal(rival.rank(asked.seen.take(few), 10), found[few, :10])


def test_collaborative_rivals_find_more_than_popularity(tiny_dataset: Dataset) -> None:
    asked = queries(tiny_dataset)
    recall = {}
    ials = Ials(IalsConfig(regulariser=0.1))
    for rival in (PopularAds(), Ease(regulariser=50.0), ItemKnn(), ials):
        rival.fit(tiny_dataset)
        recall[rival.name] = recall_at_k(rival.rank(asked.seen, 50), asked.targets, [50])[50]
    # 50 of 400 ads by chance: .13. Users' tastes show in their histories.
    assert recall["EASE"] > recall["popular ads"] + 0.05
    assert recall["item kNN"] > recall["popular ads"] + 0.05
    assert recall["iALS"] > recall["popular ads"] + 0.05


def test_the_choice_of_rivals(
    tiny_dataset: Dataset, anonymous: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(dataset: Dataset) -> list[str]:
        return [rival.name for rival in retrieval_rivals(dataset)]

    assert isinstance(item_to_item(tiny_dataset), Ease)
    assert chosen(tiny_dataset) == ["popular ads", "EASE", "iALS"]
    assert chosen(anonymous) == ["popular ads"]
    pairs = len(user_item_pairs(tiny_dataset)[0])
    for most, expected in ((pairs, ["iALS"]), (pairs - 1, [])):
        monkeypatch.setattr("adrec.evaluation.retrieval_baselines.IALS_PAIRS", most)
        assert chosen(tiny_dataset) == ["popular ads", "EASE", *expected]
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "implicit", None)  # what is not installed
    assert chosen(tiny_dataset) == ["popular ads", "EASE"]


def test_a_large_catalogue_is_left_to_nearest_neighbours(
    tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adrec.evaluation.retrieval_baselines.EASE_ADS", 10)
    assert isinstance(item_to_item(tiny_dataset), ItemKnn)


def test_what_cannot_be_fitted_says_so(anonymous: Dataset) -> None:
    for rival in (Ease(), Ials()):
        with pytest.raises(DataError, match="PopularAds"):
            rival.fit(anonymous)
