"""The pipeline's own ads against a world's truth, against a log, and values by tenths."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from rich.console import Console

from adrec import metrics
from adrec.data.synthetic import WorldTruth, read_truth
from adrec.errors import DataError
from adrec.evaluation.judged import BEST_POSSIBLE, OURS, EvaluationConfig, judged_impressions
from adrec.evaluation.known_world import KnownWorld, known_world
from adrec.evaluation.retrieval import judge_retrieval
from adrec.evaluation.retrieval_queries import queries
from adrec.evaluation.top_ads import _gaps, judge_deciles, judge_top, top_ads
from adrec.features.dataset import Dataset
from adrec.progress import Progress
from adrec.recommender import Recommender

CONFIG = EvaluationConfig(replicates=0, recall_at=(20, 100), pipeline_queries=40)


@pytest.fixture(scope="module")
def dataset(tiny_run: Path) -> Dataset:
    return Dataset(tiny_run / "dataset")


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    return Recommender.load(tiny_run)


@pytest.fixture(scope="module")
def world(dataset: Dataset, tiny_world: Path) -> KnownWorld:
    found = known_world(tiny_world, dataset, Progress())
    assert found is not None
    return found


@pytest.fixture(scope="module")
def ours(recommender: Recommender, dataset: Dataset) -> NDArray[np.float64]:
    return recommender.score_log(dataset, dataset.requests("test"))


def top_of(recommender: Recommender, dataset: Dataset, *rest: Any) -> dict[str, Any]:
    return judge_top(recommender, dataset, judged_impressions(dataset), *rest)


class TestKnownWorld:
    def test_rows_and_requests_are_those_of_the_log(
        self, dataset: Dataset, world: KnownWorld, tiny_world: Path
    ) -> None:
        """What the log showed on top has the probabilities of its truth table."""
        rows = np.flatnonzero(dataset.position_N == 1)
        requests = np.searchsorted(dataset.offset_R, rows, side="right") - 1
        found = world.true(requests, dataset.ad_N[rows].astype(np.int64))
        expected = read_truth(tiny_world)["true probabilities"][rows]
        np.testing.assert_allclose(found, expected, rtol=1e-6)  # the table is float32

    def test_another_log_is_refused(self, dataset: Dataset) -> None:
        class Later:
            request_times_ms = dataset.time_ms_R + 1

        with pytest.raises(DataError, match="not prepared from the world"):
            KnownWorld(dataset, Later())  # type: ignore[arg-type]

    def test_a_world_that_cannot_be_drawn_is_said_and_left_out(
        self, dataset: Dataset, tiny_world: Path, tmp_path: Path
    ) -> None:
        said = io.StringIO()
        progress = Progress(Console(file=said, width=400))
        assert known_world(tmp_path, dataset, progress) is None
        assert "no world.json" in said.getvalue()
        (tmp_path / "world.json").write_text("{}")
        (tmp_path / "truth.parquet").write_bytes((tiny_world / "truth.parquet").read_bytes())
        assert known_world(tmp_path, dataset, progress) is None
        assert "does not tell how the world was drawn" in said.getvalue()


class TestBestPossibleRecall:
    def test_it_beats_a_model_and_returns_nothing_seen(
        self, recommender: Recommender, dataset: Dataset, world: KnownWorld
    ) -> None:
        """Of 400 ads, a model of one epoch of 8,000 rows: .2 and more apart at 100."""
        asked = queries(dataset, CONFIG.queries)
        found = judge_retrieval(recommender, dataset, asked, CONFIG, (), Progress(), world)
        best = found["models"][BEST_POSSIBLE]["recall@100"]["estimate"]
        assert best > found["models"][f"{OURS}, exact search"]["recall@100"]["estimate"] + 0.1
        ads_QK = world.rank(asked, 400)
        for q, ads in enumerate(ads_QK):
            seen = asked.seen.ads[asked.seen.offsets[q] : asked.seen.offsets[q + 1]]
            assert not np.isin(ads, seen).any()
            assert 0 not in ads
        recall = metrics.recall_at_k(ads_QK, (asked.targets.offsets, asked.targets.ads), [100])
        assert best == pytest.approx(recall[100])


class TestTop:
    def test_the_ads_are_those_that_the_pipeline_would_have_served(
        self, recommender: Recommender, dataset: Dataset, tiny_world: Path
    ) -> None:
        """As `recommend` answers the raw request from the state at the test's start."""
        request = dataset.requests("test")[:1]
        ads, scores = top_ads(recommender, dataset, request, 10)
        log = pl.read_parquet(tiny_world / "impressions.parquet")
        asked = log.row(int(dataset.offset_R[request[0]]), named=True)
        replayed = recommender.as_of(dataset.state("test"), dataset.split.test_from_ms)
        slate = replayed.recommend(
            str(asked["user_id"]),
            10,
            context={"device": asked["device"], "place": asked["place"]},
            at_ms=asked["timestamp_ms"],
        )
        served = [dataset.catalogue.directory.row(ad.ad_id) for ad in slate.ads]
        assert ads[0].tolist() == served
        expected = [list(ad.scores.values()) for ad in slate.ads]
        np.testing.assert_allclose(scores[0], expected, rtol=1e-4)

    def test_gaps_by_hand(self) -> None:
        """Means .3 and .2, each of two bins .1 too high."""
        found = _gaps(np.array([0.2, 0.4]), np.array([0.1, 0.3]), np.array([0.2, 0.2]))
        assert found == pytest.approx(
            {
                "predicted": 0.3,
                "actual": 0.2,
                "predicted / actual": 1.5,
                "calibration error": 0.1,
                "best possible": 0.2,
            }
        )

    def test_against_the_truth(
        self,
        recommender: Recommender,
        dataset: Dataset,
        world: KnownWorld,
        ours: NDArray[np.float64],
    ) -> None:
        """Each user's first request is asked, clicked or not; the truth is that on top."""
        found = top_of(recommender, dataset, ours, CONFIG, world)
        assert (found["k"], found["requests"], found["rows"]) == (10, 40, 400)
        assert (found["judged_by"], found["enough"]) == ("true probabilities", True)
        test = dataset.requests("test")
        first = np.sort(test[np.unique(dataset.user_R[test], return_index=True)[1]])
        few = first[np.linspace(0, len(first) - 1, 40).astype(np.int64)]
        ads, scores = top_ads(recommender, dataset, few, 10)
        true = world.true(np.repeat(few, 10), ads.ravel())
        for t, name in enumerate(("click", "engagement", "revenue")):
            numbers = found["tasks"][name]
            assert numbers["predicted"] == pytest.approx(scores[..., t].mean())
            assert numbers["actual"] == pytest.approx(true[:, t].mean())
            assert numbers["predicted / actual"] == pytest.approx(
                numbers["predicted"] / numbers["actual"]
            )
            assert numbers["best possible"] > 0

    def test_against_the_log(
        self, recommender: Recommender, dataset: Dataset, ours: NDArray[np.float64]
    ) -> None:
        """The impressions that the pipeline would have shown, too: a few of hundreds."""
        config = CONFIG.model_copy(update={"pipeline_queries": 10_000, "k": 40})
        found = top_of(recommender, dataset, ours, config)
        test = dataset.requests("test")
        first = np.sort(test[np.unique(dataset.user_R[test], return_index=True)[1]])
        ads, _ = top_ads(recommender, dataset, first, 40)
        shown = judged_impressions(dataset)
        matched = [
            place
            for place, row in enumerate(shown.rows_N)
            for q in np.flatnonzero(first == shown.group_N[place])
            if dataset.ad_N[row] in ads[q]
        ]
        assert found["rows"] == len(matched) > 50
        assert found["judged_by"] == "matched impressions"
        assert found["enough"] == (len(matched) >= 200)
        clicks = found["tasks"]["click"]
        assert clicks["predicted"] == pytest.approx(ours[matched, 0].mean())
        assert clicks["actual"] == pytest.approx(shown.labels_NK[matched, 0].mean())
        assert "best possible" not in clicks

    def test_nothing_asked(
        self, recommender: Recommender, dataset: Dataset, ours: NDArray[np.float64]
    ) -> None:
        config = CONFIG.model_copy(update={"pipeline_queries": 0})
        assert top_of(recommender, dataset, ours, config) == {}


def test_deciles_by_sorting(dataset: Dataset, tiny_world: Path, ours: NDArray[np.float64]) -> None:
    """No two revenue predictions are alike, so tenths are tenths of the sorted rows."""
    shown = judged_impressions(dataset)
    known = {name: scores[shown.rows_N] for name, scores in read_truth(tiny_world).items()}
    [found] = judge_deciles(dataset, shown, ours, known)
    assert found["task"] == "revenue"
    order = np.argsort(ours[:, 2])
    place = np.floor((np.arange(len(order)) + 0.5) * 10 / len(order)).astype(int)
    tenths = [order[place == tenth] for tenth in range(10)]
    assert found["rows"].tolist() == [len(rows) for rows in tenths]
    for name, values in {"predicted": ours, "actual": shown.labels_NK, **known}.items():
        expected = [values[rows, 2].mean() for rows in tenths]
        np.testing.assert_allclose(found[name], expected)


def test_the_truth_is_as_of_the_tests_start(dataset: Dataset, tiny_world: Path) -> None:
    """Not one impression of the test period is known to the observer."""
    truth = WorldTruth.read(tiny_world, dataset.split.test_from_ms)
    assert truth is not None
    assert truth._n_before <= dataset.requests("test")[0]
