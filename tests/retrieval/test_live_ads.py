"""Ads that come, change, pause and go are so in the next answer, and a mistake changes nothing."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from adrec.bundle import Bundle, ServingConfig
from adrec.errors import DataError
from adrec.features.dataset import Dataset
from adrec.recommender import Recommender
from adrec.slates import Slate

CONTEXT = {"device": "mobile", "place": "feed"}
ALL = 400  # ads of the tiny world


@pytest.fixture
def recommender(tiny_run: Path) -> Recommender:
    """Every ad is a candidate, so that only the ranker and the filter decide; rebuilds come
    early."""
    bundle = Bundle.open(tiny_run)
    changes = {"candidates": ALL + 10, "live": {"rebuild_least": 20}}
    serving = ServingConfig.model_validate(bundle.manifest.serving.model_dump() | changes)
    now = bundle.manifest.log_end_ms + 1
    return Recommender(
        bundle.runtime(), bundle.index(), bundle.state(), serving, version="v", clock=lambda: now
    )


@pytest.fixture(scope="module")
def raw(tiny_world: Path) -> Callable[..., dict[str, Any]]:
    """Gives the raw row of an ad of the tiny world, with some values changed."""
    table = pl.read_parquet(tiny_world / "ads.parquet")
    wanted = {"ad_id", "bid_micros"}

    def row(ad: str, recommender: Recommender, **changes: Any) -> dict[str, Any]:
        fields = {field.source for field in recommender.state.schema.ad_fields}
        found = table.row(by_predicate=pl.col("ad_id") == int(ad), named=True)
        return {k: v for k, v in found.items() if k in fields | wanted} | changes

    return row


def ids(slate: Slate) -> list[str]:
    return [ad.ad_id for ad in slate.ads]


def everything(recommender: Recommender, **asked: Any) -> list[str]:
    return ids(recommender.recommend("7", ALL + 10, context=CONTEXT, **asked))


def test_a_new_ad_is_recommended_to_the_next_request_that_it_fits(recommender, raw) -> None:
    """It is like the best ad of all and bids a hundred times as much."""
    best = ids(recommender.recommend("7", 1, context=CONTEXT))[0]
    bid = raw(best, recommender)["bid_micros"]
    new = raw(best, recommender, ad_id="new", bid_micros=100 * bid, category="novelties")
    recommender.ads.put([new])
    slate = recommender.recommend("7", 10, context=CONTEXT)
    assert ids(slate)[0] == "new"
    top = slate.ads[0]
    assert top.value_micros == pytest.approx(top.scores["click"] * 100 * bid)
    only = {"category": ["novelties"]}
    assert ids(recommender.recommend("7", 10, context=CONTEXT, only=only)) == ["new"]
    never = recommender.recommend("7", ALL + 10, context=CONTEXT, never=only)
    assert "new" not in ids(never)
    assert len(never.ads) == ALL
    assert "new" not in everything(recommender, exclude=["new"])


def test_the_same_values_again_change_nothing(recommender, raw) -> None:
    """The vector that is put is the one that was indexed: ads are embedded as in training."""
    before = everything(recommender)
    some = before[:10]
    recommender.ads.put([raw(ad, recommender, category="another") for ad in some])
    recommender.ads.put([raw(ad, recommender) for ad in some])
    assert everything(recommender) == before
    now = recommender.index.now
    assert len(now.rows_N) == 10
    vectors = dict(zip(*map(list, now.main.vectors()), strict=True))
    for row, vector in zip(now.rows_N.tolist(), now.vectors_ND, strict=True):
        np.testing.assert_allclose(vector, vectors[row], atol=1e-6)


def test_an_ad_of_which_only_the_bid_changes_stays_where_it_is(recommender, raw) -> None:
    """In the index that may be mapped from disk, and in the ranker's rows."""
    offer = recommender.index.now.about
    for bid in range(1, 100):
        recommender.ads.put([raw("5", recommender, bid_micros=bid)])
    now = recommender.index.now
    assert len(now.rows_N) == 0
    assert now.about.ad_rows is offer.ad_rows
    row = now.about.catalogue.directory.row("5")
    assert now.about.catalogue.bid_micros_A[row] == 99


def test_without_any_ad_slates_are_empty(recommender, raw) -> None:
    recommender.ads.remove(everything(recommender))
    assert everything(recommender) == []
    recommender.ads.put([raw("5", recommender)])
    assert everything(recommender) == ["5"]


def test_a_changed_ad_keeps_its_place_in_the_past(recommender, raw) -> None:
    """Whoever clicked on it has still clicked on it: its row stays."""
    state = recommender.state
    ad = state.catalogue.directory.id(5)
    before = {a.ad_id: a for a in recommender.recommend("7", ALL, context=CONTEXT).ads}[ad]
    double = 2 * raw(ad, recommender)["bid_micros"]
    recommender.ads.put([raw(ad, recommender, bid_micros=double)])
    assert state.catalogue.directory.row(ad) == 5
    after = {a.ad_id: a for a in recommender.recommend("7", ALL, context=CONTEXT).ads}[ad]
    assert dict(after.scores) == pytest.approx(dict(before.scores), rel=1e-4)
    assert after.value_micros == pytest.approx(2 * before.value_micros, rel=1e-4)


def test_a_changed_field_moves_an_ad_between_filters(recommender, raw) -> None:
    ad = everything(recommender)[0]
    old = raw(ad, recommender)["format"]
    assert ad in everything(recommender, only={"format": [old]})
    recommender.ads.put([raw(ad, recommender, format="hologram")])
    assert ad not in everything(recommender, only={"format": [old]})
    assert everything(recommender, only={"format": ["hologram"]}) == [ad]


def test_pause_and_resume(recommender, raw) -> None:
    before = everything(recommender)
    recommender.ads.pause(before[:3])
    assert everything(recommender) == before[3:]
    assert before[0] not in everything(
        recommender, only={"format": [raw(before[0], recommender)["format"]]}
    )
    recommender.ads.put([raw(before[0], recommender), raw(before[5], recommender, ad_id="new")])
    assert before[0] not in everything(recommender)  # changed, but paused still
    assert "new" in everything(recommender)
    recommender.ads.resume([int(before[0]), before[7]])  # that one was not paused
    assert set(everything(recommender)) == {*before, "new"} - set(before[1:3])
    recommender.ads.resume(before)
    assert recommender.index.now.about.eligibility.active is None
    recommender.ads.pause([*before, "new"])
    slate = recommender.recommend("7", 10)
    assert slate.ads == ()
    assert slate.candidates == 0


def test_remove_and_bring_back(recommender, raw) -> None:
    before = everything(recommender)
    recommender.ads.pause(before[:1])
    recommender.ads.remove(before[:2])
    assert everything(recommender) == before[2:]
    assert len(recommender.index) == ALL - 2
    recommender.ads.put([raw(ad, recommender) for ad in before[:2]])
    assert set(everything(recommender)) == set(before)  # and the first is not paused


def test_enough_changes_rebuild_the_index(recommender, raw) -> None:
    before = everything(recommender)
    built = recommender.index.now.main
    new = [raw(ad, recommender, ad_id=f"copy {ad}") for ad in before[:25]]
    recommender.ads.put(new)
    recommender.ads.remove(before[100:130])
    recommender.index.settle(60)
    now = recommender.index.now
    assert now.main is not built
    assert len(now) == ALL + 25 - 30
    expected = {*before[:100], *before[130:], *(row["ad_id"] for row in new)}
    found = set(ids(recommender.recommend("7", 500, context=CONTEXT)))
    assert found == expected


def test_mistakes_change_nothing(recommender, raw) -> None:
    before, now = everything(recommender), recommender.index.now
    good = raw(before[0], recommender, ad_id="good")
    recommender.state.catalogue.directory.row("good")
    with pytest.raises(DataError, match=r"'bid_micros', row 2"):
        recommender.ads.put([good, raw(before[0], recommender, ad_id="bad", bid_micros=-5)])
    with pytest.raises(DataError, match=r"'wingspan', row 1: no such column"):
        recommender.ads.put([good | {"wingspan": 3}])
    for change in (recommender.ads.pause, recommender.ads.resume, recommender.ads.remove):
        with pytest.raises(DataError, match=r"no ad is called 'good', ''; nothing was changed"):
            change([before[0], "good", ""])
    assert recommender.index.now is now
    assert not recommender.ads.changed
    assert everything(recommender) == before
    recommender.ads.remove(before[:1])
    with pytest.raises(DataError, match=f"no ad is called '{before[0]}'"):
        recommender.ads.pause(before[:1])  # it is gone


def test_a_version_on_disk_keeps_its_ads(recommender, raw, tiny_run: Path) -> None:
    before = everything(recommender)
    recommender.ads.remove(before[:1])
    assert before[0] in everything(Recommender.load(tiny_run))
    with pytest.raises(DataError, match="ads were changed since version v was loaded"):
        recommender.with_state(Dataset(tiny_run / "dataset").state("test"))


def test_requests_never_see_half_of_a_change(recommender, raw) -> None:
    """Two ads swap their formats again and again while requests demand one format: each answer has
    exactly one of them, and its value is of that ad's bid of then."""
    one, two = everything(recommender)[:2]
    bids = {"hologram": 1_000_000, "scent": 3_000_000}

    def rows(first: str, second: str) -> list[dict[str, Any]]:
        pairs = ((one, first), (two, second))
        return [raw(ad, recommender, format=form, bid_micros=bids[form]) for ad, form in pairs]

    recommender.ads.put(rows("hologram", "scent"))
    done = threading.Event()

    def read() -> int:
        answers = 0
        while not done.is_set() or answers == 0:
            slate = recommender.recommend("7", 5, only={"format": ["hologram"]})
            assert len(slate.ads) == 1
            assert slate.ads[0].ad_id in (one, two)
            click = slate.ads[0].scores["click"]
            assert slate.ads[0].value_micros == pytest.approx(click * bids["hologram"])
            answers += 1
        return answers

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for _ in range(15):
                recommender.ads.put(rows("scent", "hologram"))
                recommender.ads.put(rows("hologram", "scent"))
        finally:
            done.set()
        assert all(reader.result() > 0 for reader in readers)
