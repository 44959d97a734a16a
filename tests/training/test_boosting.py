"""Trees learn from the training rows alone, stop where told, and answer alike wherever asked."""

import sys
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adrec import pipeline
from adrec.bundle import Bundle
from adrec.calibration import fit_calibration
from adrec.config import RunConfig
from adrec.errors import ConfigError
from adrec.evaluation.baselines import Popularity
from adrec.features.batches import stack_queries
from adrec.features.dataset import Dataset
from adrec.features.target_means import Means
from adrec.metrics import auc, log_loss
from adrec.models.trees import Trees, TreesConfig, codes_of, numbers_of
from adrec.progress import Progress
from adrec.recommender import Recommender
from adrec.training.boosting import _most_recent, _table, grow_trees, score_with_trees
from adrec.training.objectives import score_impressions

pytestmark = pytest.mark.usefixtures("on_one_thread")

FEW = TreesConfig(rounds=60, learning_rate=0.1, leaves=7, min_leaf=50, patience=5)


@pytest.fixture(scope="module")
def trees(tiny_dataset: Dataset) -> Trees:
    return grow_trees(FEW, tiny_dataset, progress=Progress())


def test_they_say_more_than_the_ad_s_popularity(trees: Trees, tiny_dataset: Dataset) -> None:
    test = tiny_dataset.requests("test")
    rows = tiny_dataset.rows_of(test)
    clicked = tiny_dataset.labels_NK[rows, 0]
    popularity = Popularity()
    popularity.fit(tiny_dataset)
    ours = score_with_trees(trees, tiny_dataset, test)
    assert ours.shape == (len(rows), 3)
    popular = popularity.score(tiny_dataset, rows)[:, 0]
    assert auc(ours[:, 0], clicked) > auc(popular, clicked) + 0.05
    assert ours[:, 2].sum() == pytest.approx(tiny_dataset.labels_NK[rows, 2].sum(), rel=0.5)


def test_the_validation_period_stops_them(trees: Trees, tiny_dataset: Dataset) -> None:
    assert 0 < min(trees.rounds) < 60
    joined = tiny_dataset.through_validation()  # has none: as many as the settings say
    grown = grow_trees(FEW.model_copy(update={"rounds": (3, 2, 1)}), joined, progress=Progress())
    assert grown.rounds == (3, 2, 1)


def test_a_training_row_does_not_see_its_own_label(tiny_dataset: Dataset) -> None:
    """Each row's target mean is that of the four other folds, by hand for the first field."""
    train = tiny_dataset.requests("train")
    means, table_NX = _table(tiny_dataset, train, FEW)
    rows = tiny_dataset.rows_of(train)
    labels = tiny_dataset.labels_NK[rows].astype(float)
    fold = np.random.default_rng(0).integers(0, 5, len(rows))
    request = np.searchsorted(tiny_dataset.offset_R, rows, side="right") - 1
    code = tiny_dataset.static.categorical[tiny_dataset.user_R[request], 0]
    prior = labels[:, 0].mean()
    for row in (0, 17, 3000):
        others = (code == code[row]) & (fold != fold[row])
        expected = (labels[others, 0].sum() + 20 * prior) / (others.sum() + 20)
        assert table_NX[row, 0] == pytest.approx(others.sum() * 5 / 4)
        assert table_NX[row, 1] == pytest.approx(expected, rel=1e-5)
    assert isinstance(means[0], Means)


def test_only_the_most_recent_rows(tiny_dataset: Dataset) -> None:
    train = tiny_dataset.requests("train")  # slates of 4
    np.testing.assert_array_equal(_most_recent(tiny_dataset, train, 41), train[-10:])
    np.testing.assert_array_equal(_most_recent(tiny_dataset, train, 40), train[-10:])
    np.testing.assert_array_equal(_most_recent(tiny_dataset, train, 1), train[-1:])
    np.testing.assert_array_equal(_most_recent(tiny_dataset, train, 10**9), train)


def test_columns(trees: Trees, tiny_dataset: Dataset) -> None:
    """Of a request whose histories are cut to two items: how many, how recent, what came of it."""
    batch = tiny_dataset.batch(tiny_dataset.requests("test")[:2])
    first = batch.query.histories[0]
    length = first.mask_BL.shape[1]
    mask = torch.arange(length).expand(2, -1) >= length - 2
    gap = torch.full((2, length), 0.5)
    gap[0, -1] = 3.0
    bits = torch.zeros(2, length, dtype=torch.uint8)
    bits[1, -1] = 5
    cut = replace(first, mask_BL=mask, gap_BL=gap, outcomes_BL=bits)
    query = replace(batch.query, histories=(cut, *batch.query.histories[1:]))
    numbers = numbers_of(query, batch.candidates, trees.impressions)
    at = query.user.dense.shape[1] + query.request.dense.shape[1]
    assert numbers[0, 0, at : at + 6].tolist() == pytest.approx([2, 1, 3.0, 0, 0, 0])
    assert numbers[1, 3, at : at + 6].tolist() == pytest.approx([2, 2, 0.5, 1, 0, 1])
    assert numbers[0, 2, -1] == 3  # the position
    codes = codes_of(query, batch.candidates)
    assert len(codes) == len(trees.means)
    assert all(code.shape == batch.candidates.mask_BN.shape for code in codes)


def test_what_is_loaded_predicts_the_same(
    trees: Trees, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    trees.save(tmp_path)
    loaded = Trees.load(tmp_path, tiny_dataset.features.layout)
    batch = tiny_dataset.batch(tiny_dataset.requests("test")[:5])
    before = trees.predict(batch.query, batch.candidates)
    np.testing.assert_array_equal(loaded.predict(batch.query, batch.candidates), before)
    assert loaded.rounds == trees.rounds


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ([300], "trees.rounds is \\[300\\]; give one number, or one for each of 3 tasks"),
        (-1, "rounds"),
        ([3, 0, 1], "rounds"),
    ],
)
def test_rounds_that_do_not_fit_cost_no_training(
    small_config: Callable[..., RunConfig], tmp_path: Path, rounds: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pipeline.run(small_config({"trees.rounds": rounds}), tmp_path)
    assert not (tmp_path / "training").exists()


def test_a_value_that_nobody_earned(tiny_dataset: Dataset) -> None:
    poor = copy(tiny_dataset)
    poor.labels_NK = tiny_dataset.labels_NK * np.array([1, 1, 0], np.float32)
    trees = grow_trees(FEW, poor, progress=Progress())
    scores = score_with_trees(trees, poor, poor.requests("test"))
    np.testing.assert_array_equal(scores[:, 2], 0.0)
    assert scores[:, 0].std() > 0.01


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tiny_dataset: Dataset) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ConfigError, match=r"pip install \"adrec\[trees\]\""):
        grow_trees(FEW, tiny_dataset, progress=Progress())


@pytest.fixture(scope="module")
def config(small_config: Callable[..., RunConfig]) -> RunConfig:
    return small_config({f"trees.{k}": v for k, v in FEW.model_dump().items()})


@pytest.fixture(scope="module")
def run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with_trees")
    pipeline.run(config, folder)
    return folder


class TestInTheRun:
    """Trained, weighed, published and served with the ranker."""

    def test_both_together_are_no_worse_than_either(self, run: Path) -> None:
        """On the rows that chose the weights it cannot be otherwise, up to the calibration."""
        dataset, runtime = Dataset(run / "dataset"), Bundle.open(run).runtime()
        assert runtime.trees is not None
        assert runtime.calibration.tree_weights is not None
        valid = dataset.requests("valid")
        clicked = dataset.labels_NK[dataset.rows_of(valid)]
        net = score_impressions(runtime.ranker, dataset, valid, torch.device("cpu"))
        forest = score_with_trees(runtime.trees, dataset, valid)
        both = log_loss(Recommender.load(run).score_log(dataset, valid)[:, 0], clicked[:, 0])
        kinds = dataset.features.layout.task_kinds
        for alone in (net, forest):
            rates: dict[str, Any] = {"negative_rate": 1.0, "positive_weight": 1.0}
            fitted = fit_calibration("platt", alone, clicked, kinds, **rates)
            assert both <= log_loss(fitted.apply(alone)[:, 0], clicked[:, 0]) + 1e-3

    def test_serving_scores_are_those_of_the_log(self, run: Path) -> None:
        """A request as it comes in, against the same as the dataset holds it."""
        dataset = Dataset(run / "dataset")
        recommender = Recommender.load(run).with_state(dataset.state("test"))
        request = int(dataset.requests("test")[0])
        batch = dataset.batch(np.array([request]))
        on_top = torch.ones_like(batch.candidates.position_BN)
        batch = replace(batch, candidates=replace(batch.candidates, position_BN=on_top))
        state = recommender.state
        schema = state.schema
        fields = dataset.features.request.categorical_names
        codes = dataset.request.categorical[request]
        context = {
            name: dataset.features.request.vocabulary(name).text(int(code))
            for name, code in zip(fields, codes, strict=True)
            if name in {field.name for field in schema.request_fields}
        }
        user = state.users.id(int(dataset.user_R[request]))
        visitor = state.visit(user, int(dataset.time_ms_R[request]), context)
        found = recommender.rank(
            [visitor], stack_queries([state.query(visitor)]), batch.ad_row_BN.numpy()
        )
        expected = recommender.runtime.score_batch(batch)
        np.testing.assert_allclose(found.scores_BNK[0], expected, rtol=1e-5)

    def test_nothing_is_grown_twice(self, run: Path, config: RunConfig) -> None:
        grown = run / "training" / "trees" / "run.json"
        before = grown.stat().st_mtime_ns
        pipeline.run(config, run)
        assert grown.stat().st_mtime_ns == before

    def test_a_refit_grows_as_many(self, run: Path, config: RunConfig) -> None:
        training = config.training.model_copy(update={"refit": True})
        pipeline.run(config.model_copy(update={"training": training}), run)
        layout = Dataset(run / "dataset").features.layout
        chosen = Trees.load(run / "training" / "trees", layout)
        refit = Trees.load(run / "refit" / "trees", layout)
        assert refit.rounds == chosen.rounds
        assert not np.array_equal(refit.means[0].table, chosen.means[0].table)
