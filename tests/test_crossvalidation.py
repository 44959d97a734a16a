"""Cross-validation: what each fold knows, what it is judged on, and that it can be stopped."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest

from adrec import crossvalidation, options, pipeline
from adrec.config import RunConfig
from adrec.crossvalidation import crossvalidate, fold_of_requests, rolling_folds, user_folds
from adrec.data.layouts import open_layout
from adrec.data.splits import SplitConfig
from adrec.data.tables import tables_from
from adrec.errors import ConfigError
from adrec.evaluation.folds import FoldRow
from adrec.features.dataset import Dataset, prepare
from adrec.features.fitting import FeatureConfig
from adrec.schema import parse_schema

Make = Callable[..., RunConfig]

FEW = {"data.rows": 4000, "evaluation.pipeline_queries": 5}
"""1,000 requests: what makes a fold take two seconds."""


def files(folder: Path) -> dict[str, int]:
    """When each file that training or judging wrote was last written."""
    found = (path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json"))
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def rolled(
    small_config: Make, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[FoldRow]]:
    """Two rolling folds, made in one go; for reading only."""
    folder = tmp_path_factory.mktemp("rolled")
    return folder, crossvalidate(small_config(FEW), folder, folds=2)


@pytest.mark.usefixtures("on_one_thread")
class TestRolling:
    def test_nothing_of_a_later_time_is_in_a_fold(
        self, rolled: tuple[Path, list[FoldRow]], small_config: Make
    ) -> None:
        config = small_config(FEW)
        log = pipeline.open_log(config.data).impressions.frame().collect()
        folds = rolling_folds(config, 2)
        for number, fold in enumerate(folds, start=1):
            dataset, split = Dataset(rolled[0] / f"fold-{number}" / "dataset"), fold.config.split
            assert split.valid_from is not None
            assert split.test_to is not None
            times_ms = log["timestamp_ms"].to_numpy()
            end_ms = dataset.split.end_ms
            assert len(dataset.ad_N) == (times_ms < end_ms).sum()
            assert int(dataset.time_ms_R[-1]) < end_ms == round(split.test_to.timestamp() * 1000)
            trained = (times_ms < dataset.split.valid_from_ms).sum()
            assert dataset.features.train_rows == trained
        assert folds[0].config.split.test_to == folds[1].config.split.test_from
        assert folds[0].config.split.test_from == folds[1].config.split.valid_from

    def test_rows_are_those_of_the_evaluations(self, rolled: tuple[Path, list[FoldRow]]) -> None:
        folder, rows = rolled
        results = [json.loads((folder / f"fold-{n}" / "evaluation.json").read_text())
                   for n in (1, 2)]  # fmt: skip
        of = {(row.part, row.model, row.metric): row for row in rows}
        for k, task in enumerate(("click", "engagement", "revenue")):
            found = [result["tasks"][k]["models"]["adrec"]["AUC"] for result in results]
            assert of[task, "adrec", "AUC"].folds == tuple(each["estimate"] for each in found)
            assert "low" not in found[0]  # the folds make the interval
        wanted = {"log loss", "calibration error", "GAUC"}
        assert wanted <= {metric for part, _, metric in of if part == "click"}
        assert ("ranking", "adrec", "NDCG@10") in of
        assert ("retrieval", "adrec, exact search", "recall@10") in of
        models = {model for part, model, _ in of if part == "click"}
        assert models == {"adrec", "best possible (observable)", "true probabilities"}

    def test_finished_folds_are_read_back(
        self, rolled: tuple[Path, list[FoldRow]], small_config: Make
    ) -> None:
        folder, rows = rolled
        before = files(folder)
        workers = {"training.ranker.checkpoint_every_s": 5.0}  # changes nothing that counts
        assert crossvalidate(small_config(FEW | workers), folder, folds=2) == rows
        assert files(folder) == before

    def test_stopped_between_training_and_judging_it_goes_on_there(
        self,
        rolled: tuple[Path, list[FoldRow]],
        small_config: Make,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        judged: list[Path] = []
        really = crossvalidation.evaluate_run

        def once(config: RunConfig, folder: Path, **options: Any) -> Any:
            judged.append(folder)
            if len(judged) == 2:
                raise KeyboardInterrupt
            return really(config, folder, **options)

        monkeypatch.setattr(crossvalidation, "evaluate_run", once)
        with pytest.raises(KeyboardInterrupt):
            crossvalidate(small_config(FEW), tmp_path, folds=2)
        before = files(tmp_path)
        assert "fold-1/result.json" in before
        assert "fold-2/result.json" not in before
        assert crossvalidate(small_config(FEW), tmp_path, folds=2) == rolled[1]
        assert judged == [tmp_path / f"fold-{n}" for n in (1, 2, 2)]
        after = files(tmp_path)
        trained = [name for name in before if "/best/" in name or "/last/" in name]
        assert len(trained) > 8
        kept = [name for name in before if name.startswith("fold-1")]
        assert all(after[name] == before[name] for name in (*kept, *trained))

    def test_a_changed_evaluation_judges_again_but_does_not_train(
        self, rolled: tuple[Path, list[FoldRow]], small_config: Make, tmp_path: Path
    ) -> None:
        folder = Path(shutil.copytree(rolled[0], tmp_path / "rolled"))
        before = files(folder)
        rows = crossvalidate(small_config(FEW | {"evaluation.k": 3}), folder, folds=2)
        assert {row.metric for row in rows if row.part == "ranking"} == {"NDCG@3", "MAP@3", "MRR"}
        after = files(folder)
        trained = [name for name in before if "/best/" in name or "/last/" in name]
        assert all(after[name] == before[name] for name in trained)


@pytest.mark.usefixtures("on_one_thread")
class TestUsers:
    def test_folds_partition_users_and_the_test_period(
        self, tiny_dataset: Dataset, small_config: Make
    ) -> None:
        folds = user_folds(small_config(), tiny_dataset, 5)
        views = [fold.view for fold in folds if fold.view is not None]
        users = np.concatenate([view.held_users for view in views])
        assert sorted(users.tolist()) == np.unique(tiny_dataset.user_R).tolist()
        tested = np.concatenate([view.requests("test") for view in views])
        assert sorted(tested.tolist()) == tiny_dataset.requests("test").tolist()
        for view in views:
            mine = view.held_users
            assert np.isin(tiny_dataset.user_R[view.requests("test")], mine).all()
            for split in ("train", "valid"):
                learned = view.requests(split)
                assert not np.isin(tiny_dataset.user_R[learned], mine).any()
                assert len(learned) > 0.6 * len(tiny_dataset.requests(split))
        # Folds are alike: 500 users, 100 a fold, give or take four standard errors of 8.9.
        assert all(abs(len(view.held_users) - len(users) / 5) < 36 for view in views)

    def test_a_user_stays_in_a_fold(self, tiny_world: Path, tmp_path: Path) -> None:
        """Also where the log is another: here its first half."""
        whole, half = open_layout("synthetic", tiny_world), {}
        for name, tables in (("whole", whole), ("half", whole.head(4000))):
            split, config = SplitConfig(), FeatureConfig()
            dataset = prepare(tables, tmp_path / name, split=split, config=config)
            directory = dataset.state("end").users
            fold_R = fold_of_requests(dataset, 5)
            half[name] = {
                directory.id(user): fold
                for user, fold in zip(dataset.user_R.tolist(), fold_R.tolist(), strict=True)
            }
        assert len(half["half"]) > 100
        assert half["half"].items() <= half["whole"].items()

    def test_end_to_end(self, small_config: Make, tmp_path: Path) -> None:
        """Stages see the others' impressions alone; each test impression is judged once."""
        config = small_config(FEW)
        rows = crossvalidate(config, tmp_path, method="kfold", folds=2)
        dataset = Dataset(tmp_path / "dataset")
        tested = 0
        for number, fold in enumerate(user_folds(config, dataset, 2), start=1):
            assert fold.view is not None
            folder = tmp_path / f"fold-{number}"
            expected = len(dataset.rows_of(fold.view.requests("train")))
            for stage in ("two-tower", "ranker"):
                ended = json.loads((folder / "training" / stage / "last" / "position.json")
                                   .read_text())  # fmt: skip
                assert ended["rows"] == expected < 3200
            about = json.loads((folder / "evaluation.json").read_text())["test"]
            assert about["train_impressions"] == expected
            tested += about["impressions"]
        assert tested == len(dataset.rows_of(dataset.requests("test")))
        assert all(len(row.folds) == 2 for row in rows)
        before = files(tmp_path)
        assert crossvalidate(config, tmp_path, method="kfold", folds=2) == rows
        assert files(tmp_path) == before

    def test_without_users_requests_are_divided(self, tmp_path: Path) -> None:
        folds = fold_of_requests(log_of(None, tmp_path), 3)
        assert np.bincount(folds, minlength=4)[0] == 0
        assert (np.bincount(folds)[1:] > 10).all()  # of 60

    def test_a_log_of_one_user(self, tmp_path: Path, small_config: Make) -> None:
        dataset = log_of(1, tmp_path)
        with pytest.raises(ConfigError, match="2 folds of users: the log has 1; take fewer"):
            user_folds(small_config(), dataset, 2)

    def test_a_fold_without_requests(self, tmp_path: Path, small_config: Make) -> None:
        """Three users, of whom one alone has requests in the test period."""
        dataset = log_of(3, tmp_path)
        with pytest.raises(ConfigError, match="has no request to be judged on: too few users"):
            user_folds(small_config(), dataset, 3)


def log_of(users: int | None, folder: Path) -> Dataset:
    """60 impressions by some users, one after the other; or a log that knows of no users."""
    user = "" if users is None else "user_id: user_id, "
    schema = parse_schema(f"{{name: plain, {user}tasks: [{{name: click}}]}}")
    place = np.arange(60)
    columns = {"ad_id": place % 7, "timestamp_ms": place, "click": place % 2}
    if users is not None:
        columns["user_id"] = place * users // 60
    tables = tables_from(schema, {"impressions": ("log", pl.DataFrame(columns).lazy())})
    return prepare(tables, folder / "dataset", split=SplitConfig(), config=FeatureConfig())


class TestWrongFromTheStart:
    @pytest.mark.parametrize("folds", [1, 0, -2])
    @pytest.mark.parametrize("method", ["rolling", "kfold"])
    def test_fewer_than_two_folds(
        self, method: crossvalidation.Method, folds: int, small_config: Make, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match=f"folds is {folds}; .*take 2 or more"):
            crossvalidate(small_config(), tmp_path / "out", method=method, folds=folds)
        assert not (tmp_path / "out").exists()

    def test_a_log_that_is_too_short(self, small_config: Make, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="9 folds: the log is long enough for 8"):
            crossvalidate(small_config(), tmp_path / "out", folds=9)
        assert not (tmp_path / "out").exists()


def test_the_command_offers_each_method() -> None:
    """They are written out where help is made, so that help need not wait for torch."""
    assert get_args(options.FoldMethod) == get_args(crossvalidation.Method)
