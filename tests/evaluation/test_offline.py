"""The evaluation of a run: every number is one that can be had by hand, on any kind of log."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from rich.console import Console

from adrec import metrics, pipeline
from adrec.bundle import Bundle
from adrec.config import RunConfig
from adrec.data.synthetic import read_truth
from adrec.errors import ConfigError, DataError
from adrec.evaluation import offline
from adrec.evaluation.judged import OURS, EvaluationConfig, judged_impressions
from adrec.evaluation.measures import GAUC_AT_START
from adrec.evaluation.offline import compare, evaluate
from adrec.evaluation.report import write_report
from adrec.evaluation.retrieval import logged_visitor
from adrec.evaluation.retrieval_baselines import PopularAds
from adrec.evaluation.retrieval_queries import queries
from adrec.evaluation.slices import column_of
from adrec.evaluation.tables import result_tables
from adrec.features.dataset import Dataset
from adrec.models.two_tower import embed_ads
from adrec.recommender import Recommender
from adrec.retrieval.index import AdIndex
from adrec.retrieval.index_config import IndexConfig

Result = dict[str, Any]

CONFIG = EvaluationConfig(
    replicates=20,
    importance_rows=200,
    recall_at=(5, 20, 100, 1000),
    slices=("new user", "new ad", "position", "device", "category"),
    slice_values=3,
)


class Base:
    """A rival that knows the base rate only, and counts how often it is fitted."""

    name = "base rate"
    fitted = 0

    def fit(self, dataset: Dataset) -> None:
        self.fitted += 1
        rows = dataset.rows_of(dataset.requests("train"))
        self._mean = dataset.labels_NK[rows].mean(axis=0)

    def score(self, dataset: Dataset, rows_N: NDArray[np.int64]) -> NDArray[np.float64]:
        assert not set(rows_N.tolist()) & set(dataset.rows_of(dataset.requests("train")).tolist())
        return np.tile(self._mean.astype(np.float64), (len(rows_N), 1))


@pytest.fixture(scope="module")
def dataset(tiny_run: Path) -> Dataset:
    return Dataset(tiny_run / "dataset")


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    return Recommender.load(tiny_run)


@pytest.fixture(scope="module")
def rival() -> Base:
    return Base()


@pytest.fixture(scope="module")
def result(recommender: Recommender, dataset: Dataset, tiny_world: Path, rival: Base) -> Result:
    return evaluate(
        recommender,
        dataset,
        CONFIG,
        ranking_rivals=[rival],
        retrieval_rivals=[PopularAds()],
        references=read_truth(tiny_world),
    )


@pytest.fixture(scope="module")
def scores(recommender: Recommender, dataset: Dataset) -> NDArray[np.float64]:
    return recommender.score_log(dataset, dataset.requests("test"))


def estimates(models: dict[str, Any], model: str) -> dict[str, float]:
    return {name: value["estimate"] for name, value in models[model].items()}


class TestStructure:
    def test_parts(self, result: Result, recommender: Recommender, dataset: Dataset) -> None:
        assert set(result) == {
            "version", "test", "tasks", "ranking", "retrieval", "top", "deciles", "slices",
            "curves", "stage_ms", "over_time", "largest_slices", "worst_slices", "importance",
            "cold_start", "coverage",
        }  # fmt: skip
        assert result["version"] == recommender.version
        test = dataset.requests("test")
        assert result["test"] == {
            "impressions": len(dataset.rows_of(test)),
            "requests": len(test),
            "from_ms": int(dataset.time_ms_R[test[0]]),
            "to_ms": int(dataset.time_ms_R[-1]),
            "train_impressions": len(dataset.rows_of(dataset.requests("train"))),
            "catalogue": 400,
        }
        assert set(result["stage_ms"]) == {"features", "retrieve", "rank", "order", "total"}

    def test_it_is_json(self, result: Result) -> None:
        text = json.dumps(result, allow_nan=False)
        assert json.loads(text) == result

    def test_the_same_question_has_the_same_answer(
        self, recommender: Recommender, dataset: Dataset
    ) -> None:
        config = CONFIG.model_copy(update={"replicates": 5, "slices": ()})
        one, two = (evaluate(recommender, dataset, config) for _ in range(2))
        for found in (one, two):
            del found["stage_ms"]
        assert one == two

    def test_every_model_is_in_every_table(self, result: Result) -> None:
        models = {OURS, "base rate", "best possible (observable)", "true probabilities"}
        for task in result["tasks"]:
            assert set(task["models"]) == models
            assert set(task["differences"]) == models - {OURS}
        assert set(result["ranking"]["models"]) == models
        assert set(result["curves"]["roc"]) == {"click", "engagement"}
        assert set(result["curves"]["roc"]["click"]) == models

    def test_rivals_are_fitted_once(self, result: Result, rival: Base) -> None:
        del result
        assert rival.fitted == 1


class TestTasks:
    @pytest.mark.parametrize(("k", "name"), [(0, "click"), (1, "engagement")])
    def test_binary(
        self, result: Result, dataset: Dataset, scores: NDArray[np.float64], k: int, name: str
    ) -> None:
        shown = judged_impressions(dataset)
        predicted, labels = scores[:, k], shown.labels_NK[:, k]
        task = result["tasks"][k]
        assert (task["name"], task["kind"]) == (name, "binary")
        assert task["mean"] == pytest.approx(labels.mean(), abs=1e-6)
        found = estimates(task["models"], OURS)
        expected = {
            "AUC": metrics.auc(predicted, labels),
            "GAUC": metrics.gauc(predicted, labels, shown.group_N).value,
            "log loss": metrics.log_loss(predicted, labels),
            "normalised entropy": metrics.normalised_entropy(predicted, labels),
            "calibration error": metrics.calibration_error(predicted, labels),
            "mean predicted / actual": metrics.bias(predicted, labels),
            "PR-AUC": metrics.pr_auc(predicted, labels),
        }
        assert found == pytest.approx(expected, abs=1e-6)

    def test_value(self, result: Result, dataset: Dataset, scores: NDArray[np.float64]) -> None:
        predicted, labels = scores[:, 2], judged_impressions(dataset).labels_NK[:, 2]
        task = result["tasks"][2]
        assert (task["name"], task["kind"]) == ("revenue", "value")
        expected = {
            "AUC": metrics.value_auc(predicted, labels),
            "Spearman": metrics.spearman(predicted, labels),
            "normalised Gini": metrics.normalised_gini(predicted, labels),
            "RMSE": metrics.rmse(predicted, labels),
            "mean predicted / actual": metrics.bias(predicted, labels),
        }
        assert estimates(task["models"], OURS) == pytest.approx(expected, rel=1e-6, abs=1e-6)

    def test_references_are_of_the_judged_impressions(
        self, result: Result, dataset: Dataset, tiny_world: Path
    ) -> None:
        """The truth has a row for every impression of the log; the last ones are judged."""
        truth = read_truth(tiny_world)["true probabilities"]
        shown = judged_impressions(dataset)
        assert len(truth) == len(dataset.ad_N)
        auc = metrics.auc(truth[shown.rows_N, 0], shown.labels_NK[:, 0])
        found = estimates(result["tasks"][0]["models"], "true probabilities")
        assert found["AUC"] == pytest.approx(auc, abs=1e-6)
        assert auc > 0.75  # rows that do not belong together would be at 0.5

    def test_an_uninformed_rival(self, result: Result) -> None:
        found = estimates(result["tasks"][0]["models"], "base rate")
        assert found["AUC"] == found["GAUC"] == 0.5

    def test_intervals_surround_estimates(self, result: Result) -> None:
        for task in result["tasks"]:
            for name in ("AUC", "log loss") if task["kind"] == "binary" else ("AUC", "Spearman"):
                found = task["models"][OURS][name]
                assert found["low"] < found["estimate"] < found["high"]
                assert found["replicates"] == 20

    def test_differences_are_ours_less_theirs(self, result: Result) -> None:
        task = result["tasks"][0]
        for model, differences in task["differences"].items():
            for name, difference in differences.items():
                expected = (
                    task["models"][OURS][name]["estimate"] - task["models"][model][name]["estimate"]
                )
                assert difference["estimate"] == pytest.approx(expected, abs=2e-6)
                assert 0 < difference["p_value"] <= 1

    def test_without_replicates_there_are_no_intervals(
        self, recommender: Recommender, dataset: Dataset
    ) -> None:
        config = EvaluationConfig(replicates=0, pipeline_queries=0)
        found = evaluate(recommender, dataset, config, ranking_rivals=[Base()])
        for task in found["tasks"]:
            assert task["differences"] == {}
            assert "low" not in task["models"][OURS]["AUC"]
        assert found["retrieval"]["pipeline"] == {}


class TestRanking:
    def test_within_requests(
        self, result: Result, dataset: Dataset, scores: NDArray[np.float64]
    ) -> None:
        shown = judged_impressions(dataset)
        labels, predicted = shown.labels_NK[:, 0], scores[:, 0]
        assert shown.grouped_by == result["ranking"]["grouped_by"] == "request"
        ndcg = metrics.ndcg_at_k(predicted, labels, shown.group_N, 10)
        expected = {
            "NDCG@10": ndcg.value,
            "MAP@10": metrics.map_at_k(predicted, labels, shown.group_N, 10).value,
            "MRR": metrics.mrr(predicted, labels, shown.group_N, 4).value,
        }
        assert estimates(result["ranking"]["models"], OURS) == pytest.approx(expected, abs=1e-6)
        assert result["ranking"]["groups"] == ndcg.groups

    def test_groups_are_the_logged_slates(self, dataset: Dataset) -> None:
        sizes = np.unique(judged_impressions(dataset).group_N, return_counts=True)[1]
        np.testing.assert_array_equal(sizes, dataset.slate_R[dataset.requests("test")])


class TestRetrieval:
    def test_who_is_asked(self, result: Result, dataset: Dataset) -> None:
        asked = queries(dataset, CONFIG.queries)
        found = result["retrieval"]
        assert found["queries"] == len(asked.requests_Q) > 20
        assert found["targets"] == len(asked.targets.ads) >= found["queries"]
        assert found["catalogue"] == 400
        assert set(found["models"]) == {"adrec, exact search", "adrec, exact index", "popular ads"}

    def test_depths_beyond_the_catalogue_are_left_out(self, result: Result) -> None:
        for recalls in result["retrieval"]["models"].values():
            assert list(recalls) == ["recall@5", "recall@20", "recall@100", "NDCG@10"]

    def test_where_none_is_left_the_catalogue_is_one(
        self, recommender: Recommender, dataset: Dataset
    ) -> None:
        """A small shop is not refused for depths that it never asked for."""
        config = EvaluationConfig(replicates=0, recall_at=(401, 1000), pipeline_queries=0)
        found = evaluate(recommender, dataset, config)["retrieval"]["models"]
        assert [list(recalls) for recalls in found.values()] == [["recall@400", "NDCG@10"]] * 2
        assert found["adrec, exact search"]["recall@400"]["estimate"] == 1.0

    def test_recall_by_brute_force(
        self, result: Result, recommender: Recommender, dataset: Dataset
    ) -> None:
        """Inner products with every ad, those seen before struck out, the first 20 looked at.

        Ads stand as they did when the test period began: the published index knows its clicks.
        """
        asked = queries(dataset, CONFIG.queries)
        standing_AS = dataset.state("test").standing(dataset.split.test_from_ms)
        model, catalogue = recommender.runtime.two_tower, dataset.catalogue.encoded
        ads = embed_ads(model, catalogue, standing_AS)[1:]
        published = recommender.index.now.vectors()[1]
        assert np.abs(ads - published).max() > 1e-3
        found = []
        for q, request in enumerate(asked.requests_Q):
            user = recommender.runtime.embed(dataset.query(np.array([request])))[0]
            products = ads @ user
            seen = asked.seen.ads[asked.seen.offsets[q] : asked.seen.offsets[q + 1]]
            products[seen - 1] = -np.inf
            best = np.argsort(-products, kind="stable")[:20] + 1
            targets = asked.targets.ads[asked.targets.offsets[q] : asked.targets.offsets[q + 1]]
            found.append(np.isin(targets, best).mean())
        recall = estimates(result["retrieval"]["models"], "adrec, exact search")["recall@20"]
        assert recall == pytest.approx(np.mean(found), abs=0.01)  # of ties in float32, if any

    def test_the_index_and_the_full_scan_are_told_apart(
        self, tiny_run: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An index that looks into one list of 16 finds less near ads, and is judged by those."""
        bundle = Bundle.open(tiny_run)
        exact = bundle.index()
        narrow = AdIndex.build(
            exact.vectors()[1],
            IndexConfig(kind="ivf", nlist=16, nprobe=1, max_widening=1.0),
            ads=np.arange(1, 401),
            tower=bundle.manifest.tower,
        )
        found: dict[bool, list[NDArray[np.int64]]] = {True: [], False: []}
        retrieve = Recommender.retrieve

        def noted(*args: Any, exact: bool = False) -> Any:
            found[exact].append(retrieve(*args, exact=exact))
            return found[exact][-1]

        recommender = Recommender(
            bundle.runtime(),
            narrow,
            bundle.state(),
            bundle.manifest.serving,
            version="v",
            clock=lambda: bundle.manifest.log_end_ms + 1,
        )
        monkeypatch.setattr(Recommender, "retrieve", noted)
        monkeypatch.setattr(offline, "_latency", lambda *_: {})
        config = EvaluationConfig(replicates=0, recall_at=(2, 5), pipeline_queries=0)
        models = evaluate(recommender, dataset, config)["retrieval"]["models"]
        targets = queries(dataset, config.queries).targets
        lists = {kind: np.concatenate(parts) for kind, parts in found.items()}
        assert (lists[True] != lists[False]).any(axis=1).mean() > 0.2
        for kind, name in ((True, "exact search"), (False, "ivf index")):
            recalls = metrics.recall_at_k(lists[kind], (targets.offsets, targets.ads), [2, 5])
            expected = {f"recall@{k}": recall for k, recall in recalls.items()}
            ndcg = metrics.query_ndcg(lists[kind], (targets.offsets, targets.ads), 5)
            expected["NDCG@5"] = float(ndcg.mean())
            assert estimates(models, f"adrec, {name}") == pytest.approx(expected, abs=1e-6)

    def test_recall_rises_with_depth(self, result: Result) -> None:
        for recalls in result["retrieval"]["models"].values():
            values = [of["estimate"] for name, of in recalls.items() if "recall" in name]
            assert values == sorted(values)
            assert 0 <= values[0] <= values[-1] <= 1

    def test_the_ranker_only_changes_the_order(self, result: Result) -> None:
        """At the depth of all candidates nothing is lost or won; both ways of search agree."""
        found = result["retrieval"]
        assert set(found["pipeline"]) == {
            "adrec, exact search + ranker", "adrec, exact index + ranker"
        }  # fmt: skip
        assert found["pipeline_queries"] == found["queries"]
        exact, index = found["pipeline"].values()
        assert exact == index
        before = estimates(found["models"], "adrec, exact search")
        after = estimates(found["pipeline"], "adrec, exact search + ranker")
        assert after["recall@100"] == before["recall@100"]
        assert after != before

    def test_fewer_pipeline_queries(self, recommender: Recommender, dataset: Dataset) -> None:
        config = EvaluationConfig(replicates=0, queries=10, pipeline_queries=4)
        found = evaluate(recommender, dataset, config)["retrieval"]
        assert (found["queries"], found["pipeline_queries"]) == (10, 4)

    def test_a_logged_visitor_is_who_asked(
        self, recommender: Recommender, dataset: Dataset, tiny_world: Path
    ) -> None:
        request = int(dataset.requests("test")[0])
        visitor = logged_visitor(dataset, request)
        log = pl.read_parquet(tiny_world / "impressions.parquet")
        asked = log.row(int(dataset.offset_R[request]), named=True)
        raw = recommender.state.visit(
            str(asked["user_id"]),
            asked["timestamp_ms"],
            {"device": asked["device"], "place": asked["place"]},
        )
        assert (visitor.user, visitor.at_ms) == (raw.user, raw.at_ms)
        np.testing.assert_array_equal(visitor.static.categorical, raw.static.categorical)
        np.testing.assert_array_equal(visitor.request.categorical, raw.request.categorical)


class TestSlices:
    @staticmethod
    def of(result: Result, column: str) -> dict[str, dict[str, Any]]:
        return {s["value"]: s for s in result["slices"] if s["column"] == column}

    def test_by_position(
        self, result: Result, dataset: Dataset, scores: NDArray[np.float64]
    ) -> None:
        shown = judged_impressions(dataset)
        position = dataset.position_N[shown.rows_N]
        found = self.of(result, "position")
        assert len(found) == 3  # slice_values, of four positions
        for value, numbers in found.items():
            mine = position == int(value)
            labels, predicted = shown.labels_NK[mine, 0], scores[mine, 0]
            assert numbers["rows"] == mine.sum()
            assert numbers["mean"] == pytest.approx(labels.mean(), abs=1e-6)
            assert numbers["mean predicted"] == pytest.approx(predicted.mean(), abs=1e-6)
            assert numbers["AUC"] == pytest.approx(metrics.auc(predicted, labels), abs=1e-6)

    @pytest.mark.parametrize(("column", "id_"), [("new user", "user_id"), ("new ad", "ad_id")])
    def test_by_what_training_has_not_seen(
        self, result: Result, dataset: Dataset, tiny_world: Path, column: str, id_: str
    ) -> None:
        log = pl.read_parquet(tiny_world / "impressions.parquet")
        train = set(log.filter(pl.col("timestamp_ms") < dataset.split.valid_from_ms)[id_])
        test = log.filter(pl.col("timestamp_ms") >= dataset.split.test_from_ms)[id_]
        new = sum(value not in train for value in test)
        found = self.of(result, column)
        assert found.get("True", {"rows": 0})["rows"] == new
        assert found["False"]["rows"] == len(test) - new
        if column == "new ad":
            assert new > 0

    @pytest.mark.parametrize(("column", "table"), [("device", None), ("category", "ads")])
    def test_by_a_field_of_any_table(
        self, result: Result, dataset: Dataset, tiny_world: Path, column: str, table: str | None
    ) -> None:
        log = pl.read_parquet(tiny_world / "impressions.parquet")
        if table is not None:
            ads = pl.read_parquet(tiny_world / f"{table}.parquet").select("ad_id", column)
            log = log.join(ads, on="ad_id", how="left", maintain_order="left")
        test = log.filter(pl.col("timestamp_ms") >= dataset.split.test_from_ms)
        counts = dict(test[column].cast(pl.String).value_counts().rows())
        found = self.of(result, column)
        assert len(found) == min(3, len(counts))
        for value, numbers in found.items():
            assert numbers["rows"] == counts[value]
        largest = sorted(counts.values(), reverse=True)[: len(found)]
        assert [numbers["rows"] for numbers in found.values()] == largest

    def test_what_is_no_column(self, recommender: Recommender, dataset: Dataset) -> None:
        for column in ("shoe size", "content"):  # content is a vector
            config = EvaluationConfig(replicates=0, pipeline_queries=0, slices=(column,))
            with pytest.raises(ConfigError, match=f"slice '{column}'.*new user.*device.*price"):
                evaluate(recommender, dataset, config)

    def test_a_number_by_fifths(self, dataset: Dataset) -> None:
        shown = judged_impressions(dataset)
        codes, text = column_of(dataset, shown, "price")
        assert {text(int(code)) for code in codes} == {
            "(missing)", *(f"fifth {n} of 5" for n in range(1, 6))
        }  # fmt: skip
        # Each ad counts once in the quantiles: a fifth of those with a price is in each.
        ads, first = np.unique(dataset.ad_N[shown.rows_N], return_index=True)
        shares = np.bincount(codes[first], minlength=6)[:5] / (codes[first] != 5).sum()
        assert np.abs(shares - 0.2).max() < 0.1  # about 300 ads: 4 sd of .023
        assert len(ads) > 200


class TestCompare:
    def test_a_run_with_itself(self, recommender: Recommender, dataset: Dataset) -> None:
        found = compare(recommender, recommender, dataset, EvaluationConfig())
        assert found["first"] == found["second"] == recommender.version
        assert set(found["differences"]) == {"click", "engagement", "revenue"}
        for task in found["differences"].values():
            for difference in task.values():
                assert difference["estimate"] == difference["low"] == difference["high"] == 0
                assert difference["p_value"] == 1
        json.dumps(found, allow_nan=False)

    def test_the_sign(
        self, recommender: Recommender, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """First less second: against a turned-round copy of itself, ours has the higher AUC."""
        worse = recommender.with_state(recommender.state)
        plain = Recommender.score_log

        def turned(self: Recommender, dataset: Dataset, requests: Any) -> Any:
            scores = plain(self, dataset, requests)
            return 1 - scores if self is worse else scores

        auc = metrics.auc(
            recommender.score_log(dataset, dataset.requests("test"))[:, 0],
            judged_impressions(dataset).labels_NK[:, 0],
        )
        monkeypatch.setattr(Recommender, "score_log", turned)
        found = compare(recommender, worse, dataset, EvaluationConfig())["differences"]["click"]
        assert found["AUC"]["estimate"] == pytest.approx(2 * auc - 1, abs=1e-5)

    def test_runs_on_other_features_cannot_be_compared(
        self, recommender: Recommender, small_config: Callable[..., RunConfig], tmp_path: Path
    ) -> None:
        other = pipeline.prepare_log(
            small_config({"features.min_count": 50}), tmp_path, progress=pipeline.Progress()
        )
        with pytest.raises(DataError, match="other features"):
            compare(recommender, recommender, other, EvaluationConfig())


SCHEMA = """
name: plain
tasks: [{name: click, delay_ms: 86400000}]
fields:
  - {name: brand, kind: categorical, role: ad}
  - {name: price, kind: numeric, role: context}
  - {name: site, kind: categorical, role: context}
counters:
  - {columns: [ad_id]}
"""
HOUR_MS = 3_600_000


def write_plain(folder: Path, *, users: bool = False, silent: bool = False) -> Path:
    """A log of 1,200 rows over ten days: neither users, requests, positions nor bids.

    Args:
        folder: where to write.
        users: give it users after all, without a table; some come late.
        silent: nobody clicks in the last tenth.
    """
    rng = np.random.default_rng(0)
    rows = 1200
    ad = rng.integers(0, 30, rows)
    click = rng.random(rows) < np.where(ad % 3 == 0, 0.5, 0.1)
    if silent:
        click[rows * 9 // 10 :] = False
    columns = {
        "ad_id": [f"a{i}" for i in ad],
        "timestamp_ms": 1_700_000_000_000 + np.arange(rows) * HOUR_MS // 5,
        "click": click.astype(int),
        "brand": [f"b{i % 5}" for i in ad],
        "price": rng.random(rows),
        "site": rng.choice(["news", "shop"], rows),
    }
    schema = SCHEMA
    if users:
        late = np.arange(rows) > rows * 0.92  # a twelfth of the rows is of users who are new
        columns["user_id"] = np.where(late, 100, 0) + rng.integers(1, 40, rows)
        schema += "user_id: user_id\n"
    folder.mkdir()
    pl.DataFrame(columns).write_csv(folder / "impressions.csv")
    (folder / "schema.yaml").write_text(schema)
    return folder


def evaluated(
    folder: Path, small_config: Callable[..., RunConfig], **kind: bool
) -> tuple[Result, Dataset, Recommender]:
    log = write_plain(folder / "log", **kind)
    run = folder / "run"
    pipeline.run(small_config({"data.path": str(log)}), run)
    dataset, recommender = Dataset(run / "dataset"), Recommender.load(run)
    config = EvaluationConfig(
        replicates=10, recall_at=(1, 5, 20), slices=("site", "new user"), importance_rows=50
    )
    result = evaluate(recommender, dataset, config, retrieval_rivals=[PopularAds()])
    console = Console(width=200)
    with console.capture() as printed:
        for table in result_tables(result):
            console.print(table)
    assert "adrec" in printed.get()
    write_report(result, folder / "report.html", title="plain", training=None)
    json.dumps(result, allow_nan=False)
    return result, dataset, recommender


@pytest.mark.usefixtures("on_one_thread")
class TestPlainLogs:
    def test_neither_users_nor_requests(
        self, tmp_path: Path, small_config: Callable[..., RunConfig]
    ) -> None:
        result, dataset, recommender = evaluated(tmp_path, small_config)
        shown = judged_impressions(dataset)
        assert len(shown.rows_N) == 120
        assert len(set(shown.group_N)) == len(set(shown.unit_N)) == 120  # each row for itself
        assert result["ranking"]["grouped_by"] == "request"
        assert result["ranking"]["groups"] == 0
        assert result["ranking"]["models"][OURS]["NDCG@10"]["estimate"] is None
        assert result["tasks"][0]["models"][OURS]["GAUC"]["estimate"] is None
        clicks = int(shown.labels_NK[:, 0].sum())
        assert result["retrieval"]["queries"] == result["retrieval"]["targets"] == clicks
        slate = recommender.recommend(None, 5, context={"site": "news", "price": 0.5})
        assert len(slate.ads) == 5
        assert slate.ads[0].value_micros is None
        assert slate.ads[0].order_by == slate.ads[0].scores["click"]

    def test_users_without_a_table_are_grouped_by_day(
        self, tmp_path: Path, small_config: Callable[..., RunConfig]
    ) -> None:
        result, dataset, recommender = evaluated(tmp_path, small_config, users=True)
        shown = judged_impressions(dataset)
        assert result["ranking"]["grouped_by"] == "user and day"
        at_start = result["tasks"][0]["models"][OURS][GAUC_AT_START]
        as_it_is = result["tasks"][0]["models"][OURS]["GAUC"]
        assert at_start["groups"] == as_it_is["groups"]
        assert at_start["rows"] == as_it_is["rows"]
        log = pl.read_csv(tmp_path / "log" / "impressions.csv")[-120:]
        days = log.select("user_id", pl.col("timestamp_ms") // (24 * HOUR_MS)).n_unique()
        assert len(set(shown.group_N)) == days
        assert len(set(shown.unit_N)) == log["user_id"].n_unique()
        new = {s["value"]: s["rows"] for s in result["slices"] if s["column"] == "new user"}
        assert new["True"] == (log["user_id"] > 100).sum()
        # Clicks are known a day late: the second pass must not know what the first has learned.
        exact, index = result["retrieval"]["pipeline"].values()
        assert exact == index
        # A recommender of an earlier state than the dataset's end is judged just the same.
        early = recommender.with_state(dataset.state("test"))
        config = EvaluationConfig(replicates=0, recall_at=(1, 5, 20))
        again = evaluate(early, dataset, config)["retrieval"]["pipeline"]
        for name, recalls in result["retrieval"]["pipeline"].items():
            for depth, recall in recalls.items():
                assert again[name][depth]["estimate"] == recall["estimate"]

    def test_a_test_period_without_a_click(
        self, tmp_path: Path, small_config: Callable[..., RunConfig]
    ) -> None:
        result, _, _ = evaluated(tmp_path, small_config, silent=True)
        assert result["retrieval"] == {"queries": 0, "models": {}}
        assert result["tasks"][0]["mean"] == 0
        assert result["tasks"][0]["models"][OURS]["AUC"]["estimate"] is None
