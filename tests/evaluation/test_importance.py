"""What a feature is worth: all where it decides alone, nothing where a model does not look."""

import numpy as np
import pytest

from adrec.evaluation.columns import counter_columns
from adrec.evaluation.importance import features_of, judge_importance
from adrec.evaluation.judged import EvaluationConfig
from adrec.evaluation.views import Excerpt
from adrec.features.dataset import Dataset

CONFIG = EvaluationConfig(replicates=20)


@pytest.fixture(scope="module")
def part(tiny_dataset: Dataset) -> Excerpt:
    return Excerpt(tiny_dataset, tiny_dataset.requests("test"))


def test_a_planted_feature_is_worth_all_there_is(part: Excerpt) -> None:
    """A model that reads the click out of a counter that holds it: its AUC is 1, then ½."""
    spec, columns = counter_columns(part.features.schema)[0]
    counters = part.counters_NC.copy()
    counters[:, columns.start] = part.labels_NK[:, 0]
    planted = part.changed(counters_NC=counters)

    def score(log: Excerpt) -> np.ndarray:
        told = log.counters_NC[log.every_row(), columns.start]
        return np.where(told > 0, 0.9, 0.1).astype(np.float64)[:, None]

    found = judge_importance(planted, score, CONFIG)
    assert found["AUC"] == 1.0
    assert found["log loss"] == pytest.approx(-np.log(0.9))
    assert found["impressions"] == len(part.ad_N)
    assert found["requests"] == len(part)
    first, *others = found["features"]
    assert (first["kind"], first["feature"]) == ("counter", spec.name)
    # c clicks among N rows: the permuted AUC has an sd of about .5 / sqrt(c) < .08 at c ≥ 40.
    assert part.labels_NK[:, 0].sum() >= 40
    assert first["AUC drop"]["estimate"] == pytest.approx(0.5, abs=0.2)
    assert first["AUC drop"]["low"] < first["AUC drop"]["estimate"] < first["AUC drop"]["high"]
    assert first["log loss rise"] > 0
    assert {one["AUC drop"]["estimate"] for one in others} == {0.0}
    assert {one["log loss rise"] for one in others} == {0.0}
    assert len(others) + 1 == len(list(features_of(part)))


def test_a_field_of_the_user_counts_where_the_model_reads_it(part: Excerpt) -> None:
    """Rates by gender: only the user's gender is worth anything, and the AUC says how much."""
    place = part.features.user.categorical_names.index("gender")

    def score(log: Excerpt) -> np.ndarray:
        batch = log.batch(np.arange(len(log)))
        gender_B = batch.query.user.categorical[:, place].numpy()
        scores = (0.1 + 0.3 * (gender_B % 2))[:, None].repeat(batch.ad_row_BN.shape[1], axis=1)
        return scores[batch.candidates.mask_BN.numpy()][:, None].astype(np.float64)

    found = judge_importance(part, score, EvaluationConfig(replicates=0))
    worth = {(f["kind"], f["feature"]): f["AUC drop"]["estimate"] for f in found["features"]}
    changed = {name for name, drop in worth.items() if drop != 0.0}
    assert changed == {("user field", "gender")}
    assert "low" not in found["features"][0]["AUC drop"]


def test_a_model_that_guesses_has_no_important_feature(part: Excerpt) -> None:
    found = judge_importance(part, lambda log: np.full((len(log.every_row()), 1), 0.1), CONFIG)
    assert found["AUC"] == 0.5
    assert all(one["AUC drop"]["estimate"] == 0.0 for one in found["features"])


def test_the_same_seed_deals_the_same(part: Excerpt) -> None:
    def score(log: Excerpt) -> np.ndarray:
        return (0.1 + 0.01 * log.position_N[log.every_row()]).astype(np.float64)[:, None]

    one, two = (judge_importance(part, score, CONFIG) for _ in range(2))
    assert one == two
    other = judge_importance(part, score, EvaluationConfig(replicates=20, seed=1))
    assert one["features"] != other["features"]
