"""Objectives: batches of one period, with ads as they stood when it began."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adrec.data.layouts import open_layout
from adrec.data.splits import SplitConfig
from adrec.features.batches import Batch
from adrec.features.dataset import Dataset, prepare
from adrec.features.fitting import FeatureConfig
from adrec.metrics import recall_at_k
from adrec.models.ranker import Ranker, RankerConfig
from adrec.models.two_tower import Draws, Shares, TwoTower, TwoTowerConfig, embed_ads
from adrec.schema import Schema
from adrec.training import objectives
from adrec.training.config import TrainConfig
from adrec.training.loop import train
from adrec.training.objectives import (
    RankerObjective,
    TwoTowerObjective,
    clicked_ads,
    embed_requests,
    first_periods,
    positive_shares,
    thin,
)

CPU = torch.device("cpu")
TOWER = TwoTowerConfig(
    embedding_dim=4, hidden=(16,), output_dim=8, history_dim=8, history_heads=1, dropout=0.0
)
RANKER = RankerConfig(
    embedding_dim=4, width=16, layers=1, heads=2, feed_forward=32, cross_rank=4, head_hidden=8
)
CONFIG = TrainConfig(epochs=1, batch_rows=800, precision="float32")


class Noted(TwoTower):
    """Keeps what it was given."""

    def __init__(self, config: TwoTowerConfig, dataset: Dataset) -> None:
        super().__init__(config, dataset.features.layout)
        self.given: list[tuple[Batch, Draws, Shares]] = []

    def loss(
        self, batch: Batch, draws: Draws, shares: Shares, *, positive_weight: float = 1.0
    ) -> Tensor:
        self.given.append((batch, draws, shares))
        return super().loss(batch, draws, shares, positive_weight=positive_weight)


def objective_of(dataset: Dataset, **changes: Any) -> tuple[TwoTowerObjective, Noted]:
    torch.manual_seed(0)
    model = Noted(TOWER.model_copy(update=changes), dataset)
    return TwoTowerObjective(model, dataset, valid_requests=50, device=CPU), model


def ranker_of(dataset: Dataset, seed: int = 0) -> RankerObjective:
    torch.manual_seed(seed)
    return RankerObjective(
        Ranker(RANKER, dataset.features.layout),
        dataset,
        positive_weights=(1.0, 1.0, 1.0),
        valid_requests=50,
        device=CPU,
    )


def clicked(dataset: Dataset) -> np.ndarray:
    """Which requests have a click."""
    return (dataset.labels_NK[:, 0].reshape(-1, 4) > 0).any(axis=1)  # slates of 4


class TestGroups:
    def test_of_the_two_tower_are_periods(self, tiny_dataset: Dataset) -> None:
        objective, _ = objective_of(tiny_dataset)
        requests = np.random.default_rng(0).permutation(tiny_dataset.requests("train"))
        found = objective.groups(requests)
        np.testing.assert_array_equal(found, tiny_dataset.periods(requests))
        assert len(set(found.tolist())) > 2

    def test_without_the_pointwise_loss_requests_without_a_click_are_left_out(
        self, tiny_dataset: Dataset
    ) -> None:
        objective, _ = objective_of(tiny_dataset, pointwise_weight=0.0)
        requests = np.random.default_rng(0).permutation(tiny_dataset.requests("train"))
        found, clicks = objective.groups(requests), clicked(tiny_dataset)[requests]
        assert 0 < clicks.sum() < len(requests)
        assert (found[~clicks] == -1).all()
        np.testing.assert_array_equal(found[clicks], tiny_dataset.periods(requests[clicks]))

    def test_of_the_ranker_are_one(self, tiny_dataset: Dataset) -> None:
        objective = ranker_of(tiny_dataset)
        assert set(objective.groups(tiny_dataset.requests("train")).tolist()) == {0}


class TestScales:
    """The ranker's scales of numbers are there before its first step."""

    def test_they_are_of_the_training_period(self, tiny_dataset: Dataset) -> None:
        found = ranker_of(tiny_dataset).model
        expected = Ranker(RANKER, tiny_dataset.features.layout)
        expected.fit_numbers([tiny_dataset.batch(tiny_dataset.requests("train"))])
        for name, buffer in expected.scores.named_buffers():
            np.testing.assert_allclose(found.scores.get_buffer(name), buffer, rtol=1e-4, atol=1e-6)
        everything = np.concatenate([tiny_dataset.requests(s) for s in ("train", "valid", "test")])
        expected.fit_numbers([tiny_dataset.batch(everything)])  # a mean shifts by a tenth or so
        assert not np.allclose(found.scores.mean_X, expected.scores.mean_X, rtol=1e-3)

    @pytest.mark.parametrize("most", [4, 400])
    def test_a_long_period_is_thinned_evenly(
        self, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch, most: int
    ) -> None:
        monkeypatch.setattr(objectives, "_SCALED_ROWS", most)
        found = ranker_of(tiny_dataset).model
        expected = Ranker(RANKER, tiny_dataset.features.layout)
        sample = thin(tiny_dataset.requests("train"), most // 4)  # slates are of 4
        assert len(sample) == most // 4
        expected.fit_numbers([tiny_dataset.batch(sample)])
        assert all(map(torch.equal, found.scores.buffers(), expected.scores.buffers()))

    def test_they_are_the_same_each_time_and_draw_nothing(self, tiny_dataset: Dataset) -> None:
        one, other = (ranker_of(tiny_dataset, seed).model for seed in (0, 1))
        assert all(map(torch.equal, one.scores.buffers(), other.scores.buffers()))
        torch.manual_seed(1)
        Ranker(RANKER, tiny_dataset.features.layout)
        drawn = torch.get_rng_state()
        ranker_of(tiny_dataset, 1)
        assert torch.equal(torch.get_rng_state(), drawn)

    def test_training_leaves_them_alone(self, tiny_dataset: Dataset, tmp_path: Path) -> None:
        objective = ranker_of(tiny_dataset)
        before = [buffer.clone() for buffer in objective.model.scores.buffers()]
        weight = objective.model.pair_cross.weight.clone()
        train(objective, tiny_dataset, CONFIG, tmp_path, name="model")
        assert not torch.equal(objective.model.pair_cross.weight, weight)
        assert all(map(torch.equal, objective.model.scores.buffers(), before))


class TestTraining:
    @pytest.mark.parametrize("pointwise", [0.5, 0.0])
    def test_a_batch_is_of_one_period_and_ads_stand_as_when_it_began(
        self, tiny_dataset: Dataset, tmp_path: Path, pointwise: float
    ) -> None:
        objective, model = objective_of(
            tiny_dataset, pointwise_weight=pointwise, uniform_negatives=64
        )
        train(objective, tiny_dataset, CONFIG, tmp_path, name="model")
        clicks_PA, histories_A = positive_shares(tiny_dataset)
        standing_PAS, first_A = tiny_dataset.standing_PAS, first_periods(tiny_dataset)
        requests = 0
        for batch, draws, shares in model.given:
            (period,) = set(batch.period_B.tolist())
            rows = draws.row_U.numpy()
            assert len(rows) == 64
            assert rows.min() >= 1
            np.testing.assert_array_equal(draws.standing_US, standing_PAS[period][rows])
            np.testing.assert_array_equal(draws.later_U, first_A[rows] > period)
            np.testing.assert_array_equal(draws.never_U, first_A[rows] > 1000)
            slates = batch.ad_row_BN.numpy()
            np.testing.assert_array_equal(draws.standing_BNS, standing_PAS[period][slates])
            np.testing.assert_array_equal(shares.clicks_A, clicks_PA[period])
            np.testing.assert_array_equal(shares.histories_A, histories_A)
            requests += len(slates)
            if not pointwise:
                assert (batch.labels_BNK[..., 0] > 0).any(dim=1).all()
        periods = {int(batch.period_B[0]) for batch, _, _ in model.given}
        of_train = tiny_dataset.requests("train")
        assert periods == set(tiny_dataset.periods(of_train).tolist())
        used = of_train if pointwise else of_train[clicked(tiny_dataset)[of_train]]
        assert requests == len(used)

    @pytest.mark.parametrize(("negatives", "whole"), [(399, False), (400, True), (2048, True)])
    def test_a_pool_as_large_as_the_catalogue_is_the_catalogue(
        self, tiny_dataset: Dataset, negatives: int, whole: bool
    ) -> None:
        objective, model = objective_of(tiny_dataset, uniform_negatives=negatives)
        batch = tiny_dataset.batch(tiny_dataset.requests("train")[-20:])
        objective.loss(batch, np.random.default_rng(0))
        rows = model.given[0][1].row_U.tolist()
        assert (rows == list(range(1, 401))) == whole
        assert len(rows) == min(negatives, 400)

    def test_validation_is_by_the_index_of_the_last_build_before_it(
        self, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        objective, model = objective_of(tiny_dataset)
        built = tiny_dataset.period_ms_P <= tiny_dataset.split.valid_from_ms
        standing_AS = tiny_dataset.standing_PAS[built][-1]
        ads = embed_ads(model, tiny_dataset.catalogue.encoded, standing_AS)
        valid = tiny_dataset.requests("valid")
        offsets, targets, requests = clicked_ads(tiny_dataset, valid, 50)
        users = embed_requests(model, tiny_dataset, requests, CPU)
        ranked = np.argsort(-(users @ ads[1:].T), axis=1)[:, :40] + 1
        expected = recall_at_k(ranked, (offsets, targets), [40])[40]
        embedded = []

        def noted(*args: Any) -> Any:
            embedded.append(embed_ads(*args))
            return embedded[-1]

        monkeypatch.setattr(objectives, "embed_ads", noted)
        assert objective.validate() == {"recall@40": pytest.approx(expected)}
        (found,) = embedded  # a recall of 50 requests is too coarse to tell it from another build's
        np.testing.assert_array_equal(found, ads)


class TestWithoutAValidationPeriod:
    """As where a run is refitted through it."""

    def test_there_are_no_metrics(self, tiny_dataset: Dataset) -> None:
        joined = tiny_dataset.through_validation()
        assert ranker_of(joined).validate() == {}
        objective, _ = objective_of(joined)
        assert objective.validate() == {}
        assert ranker_of(tiny_dataset).validate()

    def test_clicked_ads_of_no_requests_are_none(self, tiny_dataset: Dataset) -> None:
        offsets, ads, requests = clicked_ads(tiny_dataset, np.zeros(0, np.int64), 10)
        assert (offsets.tolist(), ads.tolist(), requests.tolist()) == ([0], [], [])

    def test_clicked_ads_of_some_requests_equal_a_loop(self, tiny_dataset: Dataset) -> None:
        """Also where others lie in between, as where a fold is held out."""
        some = tiny_dataset.requests("train")[5::3]
        expected = {}
        for request in some.tolist():
            rows = tiny_dataset.rows_of(np.array([request]))
            clicked = tiny_dataset.ad_N[rows[tiny_dataset.labels_NK[rows, 0] > 0]]
            if len(clicked):
                expected[request] = clicked.tolist()
        offsets, ads, requests = clicked_ads(tiny_dataset, some, 10_000)
        assert requests.tolist() == list(expected)
        assert [part.tolist() for part in np.split(ads, offsets[1:-1])] == list(expected.values())
        few = clicked_ads(tiny_dataset, some, 7)
        assert [part.tolist() for part in np.split(few[1], few[0][1:-1])] == [
            expected[request] for request in few[2].tolist()
        ]
        assert len(few[2]) == 7

    def test_the_two_tower_knows_the_clicks_of_its_last_period(
        self, tiny_dataset: Dataset, tmp_path: Path
    ) -> None:
        """Shares are of all that is trained on, or its batches would lack theirs."""
        joined = tiny_dataset.through_validation()
        clicks_PA, _ = positive_shares(joined)
        assert len(clicks_PA) == 1 + joined.periods(joined.requests("train")).max()
        done = train(objective_of(joined)[0], joined, CONFIG, tmp_path, name="two-tower")
        assert done.rows == 7200


class TestPositiveShares:
    def test_clicks_by_period(self, tiny_dataset: Dataset) -> None:
        clicks_PA, _ = positive_shares(tiny_dataset)
        requests = tiny_dataset.requests("train")
        counts: dict[int, dict[int, int]] = {}
        for request in requests.tolist():
            period = int((tiny_dataset.period_ms_P <= tiny_dataset.time_ms_R[request]).sum()) - 1
            for row in range(*tiny_dataset.offset_R[request : request + 2].tolist()):
                if tiny_dataset.labels_NK[row, 0] > 0:
                    of_period = counts.setdefault(period, {})
                    ad = int(tiny_dataset.ad_N[row])
                    of_period[ad] = of_period.get(ad, 0) + 1
        assert len(clicks_PA) == 1 + max(counts)
        for period, of_ads in counts.items():
            expected = np.zeros(len(tiny_dataset.catalogue))
            expected[list(of_ads)] = list(of_ads.values())
            np.testing.assert_allclose(clicks_PA[period], expected / expected.sum(), rtol=1e-6)

    @staticmethod
    def of_history(dataset: Dataset, sequence: int) -> np.ndarray:
        expected = np.zeros(len(dataset.catalogue))
        for items in dataset.histories[sequence].ads[dataset.requests("train")]:
            known = items[items != 0]
            np.add.at(expected, known, 1 / max(len(known), 1))
        share: np.ndarray = expected / expected.sum()
        return share

    def test_histories_over_all_periods(self, tiny_dataset: Dataset) -> None:
        """A request draws one of its items: each of n counts for one n-th."""
        _, histories_A = positive_shares(tiny_dataset)
        np.testing.assert_allclose(histories_A, self.of_history(tiny_dataset, 0), rtol=1e-5)

    @staticmethod
    def with_fields(world: Path, folder: Path, change: Callable[[list[Any]], list[Any]]) -> Dataset:
        """The world prepared under a schema with other fields."""
        tables = open_layout("synthetic", world)
        content = tables.schema.model_dump()
        content["fields"] = change(content["fields"])
        tables = replace(tables, schema=Schema.model_validate(content))
        return prepare(tables, folder / "d", split=SplitConfig(), config=FeatureConfig())

    def test_histories_are_of_what_was_met_also_where_they_do_not_come_first(
        self, tiny_world: Path, tmp_path: Path
    ) -> None:
        dataset = self.with_fields(tiny_world, tmp_path, lambda fields: fields[::-1])
        assert dataset.features.layout.impressions == (True, False)
        _, histories_A = positive_shares(dataset)
        np.testing.assert_allclose(histories_A, self.of_history(dataset, 1), rtol=1e-5)
        assert np.abs(histories_A - self.of_history(dataset, 0)).max() > 1e-3

    def test_what_was_merely_shown_is_no_positive(self, tiny_world: Path, tmp_path: Path) -> None:
        dataset = self.with_fields(
            tiny_world, tmp_path, lambda fields: [f for f in fields if f["name"] != "history"]
        )
        assert dataset.features.layout.impressions == (True,)
        clicks_PA, histories_A = positive_shares(dataset)
        assert clicks_PA.any()
        assert not histories_A.any()


def test_the_period_in_which_an_ad_was_first_there(tiny_dataset: Dataset) -> None:
    """By looking at one impression after another."""
    first_A = first_periods(tiny_dataset)
    train = tiny_dataset.requests("train").tolist()
    found: dict[int, int] = {}
    visited: set[int] = set()
    for request in train:
        period = int(tiny_dataset.periods(np.array([request]))[0])
        user = int(tiny_dataset.user_R[request])
        if user not in visited:
            visited.add(user)
            for past in tiny_dataset.met:
                found |= dict.fromkeys(past.ads[request].tolist(), 0)
        for row in range(tiny_dataset.offset_R[request], tiny_dataset.offset_R[request + 1]):
            ad = int(tiny_dataset.ad_N[row])
            found[ad] = min(found.get(ad, period), period)
    never = [ad for ad in range(1, len(first_A)) if ad not in found]
    later = [ad for ad, period in found.items() if period > 0]
    assert len(never) > 5
    assert len(later) > 5
    assert (first_A[never] > 10**9).all()
    found.pop(0, None)
    assert {ad: int(first_A[ad]) for ad in found} == found


def test_a_clicks_weight_is_in_the_pointwise_loss_alone(tiny_dataset: Dataset) -> None:
    """The loss of a batch less that with another weight is what the clicks' log loss gained."""
    batch = tiny_dataset.batch(tiny_dataset.requests("train")[:64])
    losses = []
    for weight, pointwise in ((1.0, 1.0), (3.0, 1.0), (5.0, 1.0), (1.0, 0.0), (3.0, 0.0)):
        torch.manual_seed(0)
        model = TwoTower(
            TOWER.model_copy(update={"pointwise_weight": pointwise}), tiny_dataset.features.layout
        )
        objective = TwoTowerObjective(
            model, tiny_dataset, valid_requests=50, device=CPU, positive_weight=weight
        )
        losses.append(float(objective.loss(batch, np.random.default_rng(0)).detach()))
    once, thrice, five_times, softmax, same = losses
    assert thrice > once
    assert five_times - thrice == pytest.approx(thrice - once, rel=1e-4)
    assert same == softmax
