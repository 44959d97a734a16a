"""New users, new ads and both known, apart: counted by hand from the log."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from adrec import metrics
from adrec.evaluation.cold_start import cold_retrieval, judge_cold_start
from adrec.evaluation.coverage import judge_coverage
from adrec.evaluation.judged import Impressions, judged_impressions
from adrec.evaluation.retrieval_queries import queries
from adrec.features.dataset import Dataset


@pytest.fixture(scope="module")
def shown(tiny_dataset: Dataset) -> Impressions:
    return judged_impressions(tiny_dataset)


@pytest.fixture(scope="module")
def log(tiny_world: Path) -> pl.DataFrame:
    return pl.read_parquet(tiny_world / "impressions.parquet")


def unseen(dataset: Dataset, log: pl.DataFrame, id_: str) -> np.ndarray:
    """Of each test impression, whether its id is not in the training period."""
    train = log.filter(pl.col("timestamp_ms") < dataset.split.valid_from_ms)[id_]
    test = log.filter(pl.col("timestamp_ms") >= dataset.split.test_from_ms)[id_]
    return (~test.is_in(train.unique().implode())).to_numpy()


def test_groups_by_the_log(tiny_dataset: Dataset, shown: Impressions, log: pl.DataFrame) -> None:
    ours = np.random.default_rng(0).uniform(0.01, 0.2, shown.labels_NK.shape)
    found = judge_cold_start(tiny_dataset, shown, {"adrec": ours, "rival": 1 - ours})
    assert [(one["task"], one["group"]) for one in found] == [
        (task, group)
        for task in ("click", "engagement")  # revenue is a value
        for group in ("new users", "new ads", "both known")
    ]
    user, ad = (unseen(tiny_dataset, log, id_) for id_ in ("user_id", "ad_id"))
    assert ad.any()
    masks = {"new users": user, "new ads": ad, "both known": ~user & ~ad}
    for one in found:
        mine = masks[one["group"]]
        k = ("click", "engagement").index(one["task"])
        assert one["rows"] == mine.sum()
        if not mine.any():
            assert one["models"] == {}
            continue
        labels = shown.labels_NK[mine, k]
        models = {"adrec": ours[mine, k], "rival": 1 - ours[mine, k]}
        for model, predicted in models.items():
            numbers = one["models"][model]
            np.testing.assert_equal(numbers["AUC"]["estimate"], metrics.auc(predicted, labels))
            assert numbers["log loss"]["estimate"] == metrics.log_loss(predicted, labels)


def test_retrieval_of_what_is_new(tiny_dataset: Dataset, log: pl.DataFrame) -> None:
    """By loops over queries, with a ranking of random ads that finds some targets."""
    asked = queries(tiny_dataset)
    rng = np.random.default_rng(0)
    size = len(tiny_dataset.catalogue)
    ads = np.stack([rng.permutation(np.arange(1, size))[:200] for _ in asked.requests_Q])
    found = cold_retrieval(tiny_dataset, asked, {"random": ads}, [50, 200])
    train = tiny_dataset.requests("train")
    users = set(tiny_dataset.user_R[train].tolist())
    known_ads = set(tiny_dataset.ad_N[tiny_dataset.rows_of(train)].tolist())
    recalls: list[float] = []
    hits = cold = 0
    for q, request in enumerate(asked.requests_Q):
        targets = asked.targets.ads[asked.targets.offsets[q] : asked.targets.offsets[q + 1]]
        if int(tiny_dataset.user_R[request]) not in users:
            recalls.append(np.isin(targets, ads[q, :50]).mean())
        new = [int(ad) for ad in targets if int(ad) not in known_ads]
        cold += len(new)
        hits += sum(ad in ads[q, :50].tolist() for ad in new)
    assert found["new users"]["queries"] == len(recalls)
    if recalls:
        numbers = found["new users"]["models"]["random"]
        assert numbers["recall@50"]["estimate"] == pytest.approx(np.mean(recalls))
    assert found["new ads"]["targets"] == cold > 0
    numbers = found["new ads"]["models"]["random"]
    assert numbers["recall@50"]["estimate"] == pytest.approx(hits / cold)
    assert numbers["recall@200"]["estimate"] >= numbers["recall@50"]["estimate"]


class TestCoverage:
    def test_ids(self, tiny_dataset: Dataset, shown: Impressions, log: pl.DataFrame) -> None:
        found = {one["field"]: one for one in judge_coverage(tiny_dataset, shown)}
        train = log.filter(pl.col("timestamp_ms") < tiny_dataset.split.valid_from_ms)
        test = log.filter(pl.col("timestamp_ms") >= tiny_dataset.split.test_from_ms)
        for name, id_ in (("user id", "user_id"), ("ad id", "ad_id")):
            one = found[name]
            new = unseen(tiny_dataset, log, id_).mean()
            assert one["known"] == pytest.approx(1 - new)
            assert one["rare or new"] == pytest.approx(new)
            assert one["missing"] == 0.0
            assert one["values"] == train[id_].n_unique()
            counts = dict(train[id_].value_counts().rows())
            of_rows = sorted(counts.get(value, 0) for value in test[id_])
            # The smallest count that at least half of the rows do not exceed.
            assert one["training rows"]["p50"] == of_rows[(len(of_rows) + 1) // 2 - 1]

    @pytest.mark.parametrize(("field", "of"), [("device", "request"), ("category", "ad")])
    def test_fields(
        self,
        tiny_dataset: Dataset,
        tiny_world: Path,
        shown: Impressions,
        log: pl.DataFrame,
        field: str,
        of: str,
    ) -> None:
        if of == "ad":
            ads = pl.read_parquet(tiny_world / "ads.parquet").select("ad_id", field)
            log = log.join(ads, on="ad_id", how="left", maintain_order="left")
        train = log.filter(pl.col("timestamp_ms") < tiny_dataset.split.valid_from_ms)[field]
        test = log.filter(pl.col("timestamp_ms") >= tiny_dataset.split.test_from_ms)[field]
        counts = dict(train.drop_nulls().value_counts().rows())
        often = {value for value, count in counts.items() if count >= 5}
        one = next(o for o in judge_coverage(tiny_dataset, shown) if o["field"] == field)
        assert (one["of"], one["values"]) == (of, len(often))
        known = sum(value in often for value in test) / len(test)
        assert one["known"] == pytest.approx(known)
        assert one["missing"] == pytest.approx(test.null_count() / len(test))
        assert one["known"] + one["rare or new"] + one["missing"] == pytest.approx(1.0)
        if one["known"] == 1.0:
            of_rows = sorted(counts[value] for value in test)
            assert one["training rows"]["p10"] == of_rows[-(-len(of_rows) // 10) - 1]
