"""Slices of all fields, and how large a calibration error is by chance."""

import numpy as np
import pytest

from adrec import metrics
from adrec.evaluation.judged import Impressions, judged_impressions
from adrec.evaluation.slices import calibration_error_by_chance, column_of, largest_and_worst
from adrec.features.dataset import Dataset

FIELDS = ("new user", "new ad", "device", "category", "topic", "gender", "region", "hour")


@pytest.fixture(scope="module")
def shown(tiny_dataset: Dataset) -> Impressions:
    return judged_impressions(tiny_dataset)


@pytest.fixture(scope="module")
def ours(shown: Impressions) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.01, 0.2, shown.labels_NK.shape)


class TestChance:
    def test_one_row(self) -> None:
        """|0 − ½| = |1 − ½| = ½, whatever is drawn."""
        assert calibration_error_by_chance(np.array([0.5]), np.random.default_rng(0)) == 0.5

    def test_what_is_certain(self) -> None:
        predicted = np.array([0.0, 1.0] * 50)
        assert calibration_error_by_chance(predicted, np.random.default_rng(0)) == 0.0

    def test_by_drawing_labels(self) -> None:
        """The metric itself on labels drawn from the predictions, 2,000 times."""
        rng = np.random.default_rng(1)
        predicted = rng.uniform(0.0, 0.3, 1000)
        errors = [
            metrics.calibration_error(predicted, (rng.random(1000) < predicted).astype(float))
            for _ in range(2000)
        ]
        found = calibration_error_by_chance(predicted, np.random.default_rng(0))
        # 50 draws of sd .0054: 4 standard errors are .003.
        assert found == pytest.approx(np.mean(errors), abs=4 * np.std(errors) / np.sqrt(50))

    def test_it_falls_with_rows(self) -> None:
        few, many = (
            calibration_error_by_chance(np.full(n, 0.1), np.random.default_rng(0))
            for n in (400, 40_000)
        )
        # Equal predictions share a bin: E|gap| = sqrt(2 p (1 − p) / (π n)), .0120 and .00120;
        # a mean of 50 draws of a half-normal has a relative sd of .755 / √50 = .107.
        assert few == pytest.approx(0.0120, rel=0.4)
        assert many == pytest.approx(0.00120, rel=0.4)


class TestLargestAndWorst:
    def test_largest(self, tiny_dataset: Dataset, shown: Impressions, ours: np.ndarray) -> None:
        largest, _ = largest_and_worst(tiny_dataset, shown, ours)
        rows = [one["rows"] for one in largest]
        assert len(rows) == 10
        assert rows == sorted(rows, reverse=True)
        assert rows[0] <= 0.9 * len(shown.rows_N)
        # No slice of a field that could have been there is larger than the smallest shown.
        named = {(one["column"], one["value"]) for one in largest}
        for column in FIELDS:
            codes, texts = column_of(tiny_dataset, shown, column)
            for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
                if (column, texts(int(code))) not in named:
                    assert count <= rows[-1] or count > 0.9 * len(codes)

    def test_worst(self, tiny_dataset: Dataset, shown: Impressions, ours: np.ndarray) -> None:
        """The scores are made worthless for one device, and perfect for the others."""
        codes, texts = column_of(tiny_dataset, shown, "device")
        device = np.bincount(codes).argmax()
        labels = shown.labels_NK[:, 0]
        planted = ours.copy()
        planted[:, 0] = np.where(codes == device, 0.3 - 0.2 * labels, 0.1 + 0.2 * labels)
        _, worst = largest_and_worst(tiny_dataset, shown, planted)
        first = worst[0]
        assert (first["column"], first["value"]) == ("device", texts(int(device)))
        mine = codes == device
        assert first["AUC"] == 0.0
        assert first["rows"] == mine.sum() >= 200
        assert first["mean"] == pytest.approx(labels[mine].mean())
        assert first["mean predicted"] == pytest.approx(planted[mine, 0].mean())
        assert first["calibration error"] == pytest.approx(
            metrics.calibration_error(planted[mine, 0], labels[mine])
        )
        assert first["calibration error by chance"] < first["calibration error"]
        aucs = [one["AUC"] for one in worst]
        assert aucs == sorted(aucs)
        assert len(worst) <= 20
        assert min(one["rows"] for one in worst) >= 200
