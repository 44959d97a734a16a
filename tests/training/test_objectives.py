"""Objectives: batches of one period, with ads as they stood when it began."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adrec.features.batches import Batch
from adrec.features.dataset import Dataset
from adrec.metrics import recall_at_k
from adrec.models.ranker import Ranker, RankerConfig
from adrec.models.two_tower import Draws, Shares, TwoTower, TwoTowerConfig, embed_ads
from adrec.training import objectives
from adrec.training.config import TrainConfig
from adrec.training.loop import train
from adrec.training.objectives import (
    RankerObjective,
    TwoTowerObjective,
    clicked_ads,
    embed_requests,
    positive_shares,
)

CPU = torch.device("cpu")
TOWER = TwoTowerConfig(
    embedding_dim=4, hidden=(16,), output_dim=8, history_dim=8, history_heads=1, dropout=0.0
)
CONFIG = TrainConfig(epochs=1, batch_rows=800, precision="float32")


class Noted(TwoTower):
    """Keeps what it was given."""

    def __init__(self, config: TwoTowerConfig, dataset: Dataset) -> None:
        super().__init__(config, dataset.features.layout)
        self.given: list[tuple[Batch, Draws, Shares]] = []

    def loss(self, batch: Batch, draws: Draws, shares: Shares) -> Tensor:
        self.given.append((batch, draws, shares))
        return super().loss(batch, draws, shares)


def objective_of(dataset: Dataset, **changes: Any) -> tuple[TwoTowerObjective, Noted]:
    torch.manual_seed(0)
    model = Noted(TOWER.model_copy(update=changes), dataset)
    return TwoTowerObjective(model, dataset, valid_requests=50, device=CPU), model


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
        config = RankerConfig(embedding_dim=4, width=16, layers=1, heads=2, feed_forward=32)
        objective = RankerObjective(
            Ranker(config, tiny_dataset.features.layout),
            tiny_dataset,
            positive_weights=(1.0, 1.0, 1.0),
            valid_requests=50,
            device=CPU,
        )
        assert set(objective.groups(tiny_dataset.requests("train")).tolist()) == {0}


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
        standing_PAS = tiny_dataset.standing_PAS
        requests = 0
        for batch, draws, shares in model.given:
            (period,) = set(batch.period_B.tolist())
            rows = draws.row_U.numpy()
            assert len(rows) == 64
            assert rows.min() >= 1
            np.testing.assert_array_equal(draws.standing_US, standing_PAS[period][rows])
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

    def test_histories_over_all_periods(self, tiny_dataset: Dataset) -> None:
        """A request draws one of its items: each of n counts for one n-th."""
        _, histories_A = positive_shares(tiny_dataset)
        expected = np.zeros(len(tiny_dataset.catalogue))
        for items in tiny_dataset.histories[0][0][tiny_dataset.requests("train")]:
            known = items[items != 0]
            np.add.at(expected, known, 1 / max(len(known), 1))
        np.testing.assert_allclose(histories_A, expected / expected.sum(), rtol=1e-5)
