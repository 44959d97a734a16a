"""What the preranker loses is counted by hand, and a version serves with it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from adrec import pipeline
from adrec.bundle import Bundle
from adrec.config import RunConfig
from adrec.evaluation.preranking import agreements, teach
from adrec.features.dataset import Dataset
from adrec.progress import Progress
from adrec.recommender import Recommender


def test_agreement_by_hand() -> None:
    """The ranker's ten are the first ten; another order puts two of them at places 12 and 15."""
    place_QN = np.arange(20)[None]
    order = [*range(20)]
    order[3], order[12] = order[12], order[3]
    order[7], order[15] = order[15], order[7]
    order_QN = -np.array(order, float)[None]
    found = agreements(order_QN, place_QN, (8, 10, 13, 16))
    assert found == {8: pytest.approx(0.6), 10: 0.8, 13: 0.9, 16: 1.0}


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    return Recommender.load(tiny_run)


class TestTeach:
    def test_more_is_considered_until_the_top_10_is_found(
        self, recommender: Recommender, tiny_dataset: Dataset
    ) -> None:
        found = {}
        for considered in (10, 12, 30):
            taught = teach(recommender, tiny_dataset, considered, seed=0, progress=Progress())
            assert taught is not None
            assert taught[1].considered == considered
            found[considered] = taught[1].top_agreement
        assert 0.5 < found[10] <= found[12] <= found[30] <= 1.0
        assert found[30] > 0.9  # of 100 candidates; chance would find .3

    def test_few_candidates_need_none(
        self, recommender: Recommender, tiny_dataset: Dataset
    ) -> None:
        assert teach(recommender, tiny_dataset, 100, seed=0, progress=Progress()) is None

    def test_auto_is_enough_or_nothing(
        self, recommender: Recommender, tiny_dataset: Dataset
    ) -> None:
        taught = teach(recommender, tiny_dataset, "auto", seed=0, progress=Progress())
        assert taught is None or taught[1].top_agreement >= 0.995


def test_a_version_serves_with_it(
    tiny_run: Path, small_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Its answers are the ranker's: exact scores, the order and nearly all of the ads."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    pipeline.run(small_config({"serving.considered": 60}), run)
    preranking = Bundle.open(run).manifest.preranking
    assert preranking is not None
    assert preranking.considered == 60
    with_it, without = Recommender.load(run), Recommender.load(tiny_run)
    assert with_it.runtime.considered == 60
    same = []
    for user in without.state.users.ids[:40]:
        exact = {ad.ad_id: ad for ad in without.recommend(user, 100).ads}
        slate = with_it.recommend(user, 10).ads
        assert [ad.order_by for ad in slate] == sorted((a.order_by for a in slate), reverse=True)
        for ad in slate:
            assert ad.scores == pytest.approx(exact[ad.ad_id].scores, rel=1e-4)
        same.append(len({ad.ad_id for ad in slate} & set(list(exact)[:10])))
    assert np.mean(same) > 9.0
    assert len(with_it.recommend(k=80).ads) == 80  # as many as are asked for


def test_what_it_misses_is_not_laid_to_a_backend(
    tiny_run: Path, small_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Of so few candidates some of the ranker's top 10 are missing, on whichever backend."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    changes = {"serving.considered": 10, "serving.engine": "auto", "serving.precision": "auto"}
    pipeline.run(small_config(changes), run)
    manifest = Bundle.open(run).manifest
    assert manifest.preranking is not None
    assert manifest.preranking.top_agreement < 0.98
    exact = {(one.engine, one.precision): one for one in manifest.admissions}["openvino", "float32"]
    assert exact.top_agreement == exact.first_pass_agreement == 1.0
    assert abs(exact.first_pass_shift) < 1e-5
    assert exact.admitted
    assert not exact.needs_rescoring
    for one in manifest.admissions:
        if one.precision != "float32":
            assert 0.0 <= one.first_pass_agreement <= 1.0
            assert one.first_pass_shift != 0.0


def test_a_new_ad_is_guessed_and_ranked_at_once(
    tiny_run: Path, small_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Coarse backend, preranker: what they read of an ad is there when the ad is."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    coarse = {"serving.considered": 30, "serving.precision": "bf16", "serving.rescored": 10}
    pipeline.run(small_config(coarse), run)
    recommender = Recommender.load(run)
    assert (recommender.runtime.considered, recommender.runtime.backend.precision) == (30, "bf16")
    table = pl.read_parquet(small_config().data.path / "ads.parquet")
    best = recommender.recommend("7", 1).ads[0]
    table = table.drop("daily_budget_micros", "start_ms", "end_ms")  # which the schema leaves out
    row = table.row(by_predicate=pl.col("ad_id").cast(pl.String) == best.ad_id, named=True)
    recommender.ads.put([row | {"ad_id": "new", "bid_micros": 3 * row["bid_micros"]}])
    slate = recommender.recommend("7", 10).ads
    assert slate[0].ad_id == "new"
    assert slate[0].order_by > 2 * best.order_by
    exact = recommender.recommend("7", len(recommender.index)).ads[0]  # nothing is guessed
    assert slate[0].scores == pytest.approx(exact.scores, rel=1e-4)
