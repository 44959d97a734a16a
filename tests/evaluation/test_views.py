"""Excerpts of a log: a model is given the same numbers, and a change changes one thing only."""

import numpy as np
import pytest
import torch

from adrec.evaluation.columns import request_of
from adrec.evaluation.importance import Feature, features_of, permuted
from adrec.evaluation.views import Excerpt, moments
from adrec.features.batches import Batch
from adrec.features.dataset import Dataset


@pytest.fixture(scope="module")
def part(tiny_dataset: Dataset) -> Excerpt:
    return Excerpt(tiny_dataset, tiny_dataset.requests("test")[::3])


def told(batch: Batch) -> dict[str, torch.Tensor]:
    """All that the ranker reads, histories by the fields of their ads."""
    query, candidates = batch.query, batch.candidates
    found = {
        "user categorical": query.user.categorical,
        "user dense": query.user.dense,
        "request categorical": query.request.categorical,
        "request dense": query.request.dense,
        "ad categorical": candidates.ads.categorical,
        "ad dense": candidates.ads.dense,
        "counters": candidates.counters_BNC,
        "position": candidates.position_BN,
        "mask": candidates.mask_BN,
        "labels": batch.labels_BNK,
        "period": batch.period_B,
    }
    for i, items in enumerate(query.histories):
        found[f"history {i} ads"] = query.history_ads.categorical[items.place_BL]
        found[f"history {i} vectors"] = query.history_ads.dense[items.place_BL]
        found[f"history {i} gap"] = items.gap_BL
        found[f"history {i} outcomes"] = items.outcomes_BL
        found[f"history {i} mask"] = items.mask_BL
    return found


def batch_of(log: Dataset) -> dict[str, torch.Tensor]:
    return told(log.batch(np.arange(len(log))))


def test_an_excerpt_tells_what_the_log_tells(tiny_dataset: Dataset, part: Excerpt) -> None:
    requests = tiny_dataset.requests("test")[::3]
    whole = told(tiny_dataset.batch(requests))
    for log in (part, part.apart()):
        found = batch_of(log)
        assert set(found) == set(whole)
        for name, tensor in whole.items():
            assert torch.equal(found[name], tensor), name


def test_an_excerpt_of_a_fold_is_of_the_fold(tiny_dataset: Dataset) -> None:
    """Its mask goes by its own requests: all of them are judged."""
    view = tiny_dataset.holding_out(tiny_dataset.user_R % 3 == 0, "a third")
    part = Excerpt(view, view.requests("test")[::2])
    assert part.requests("test").tolist() == list(range(len(part)))
    assert part.apart().requests("test").tolist() == list(range(len(part)))


def test_rows_are_those_of_the_requests(tiny_dataset: Dataset, part: Excerpt) -> None:
    requests = tiny_dataset.requests("test")[::3]
    rows = tiny_dataset.rows_of(requests)
    np.testing.assert_array_equal(part.labels_NK[part.every_row()], tiny_dataset.labels_NK[rows])
    np.testing.assert_array_equal(part.requests("test"), np.arange(len(requests)))
    log, moment = moments(part, request_of(part, part.every_row()))
    assert log is tiny_dataset
    np.testing.assert_array_equal(moment, request_of(tiny_dataset, rows))
    assert moments(tiny_dataset, requests) == (tiny_dataset, requests)


def where(feature: Feature) -> tuple[str, slice]:
    """The tensor of `told` that a feature is in, and its columns."""
    if feature.kind in ("user field", "request field", "ad field"):
        side = feature.kind.split()[0]
        return f"{side} {'categorical' if feature.categorical else 'dense'}", feature.columns
    return {"counter": "counters", "position": "position"}[feature.kind], feature.columns


def test_a_permuted_feature_is_all_that_changes(part: Excerpt) -> None:
    apart = part.apart()
    before = batch_of(apart)
    features = list(features_of(apart))
    assert len({(feature.kind, feature.name) for feature in features}) == len(features)
    for feature in features:
        after = batch_of(permuted(apart, feature, np.random.default_rng(0)))
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        if feature.kind == "history":
            place = feature.columns.start
            assert changed
            assert all(name.startswith(f"history {place} ") for name in changed)
            continue
        name, columns = where(feature)
        assert changed <= {name}
        if feature.kind == "position":
            continue
        others = [c for c in range(before[name].shape[-1]) if c not in range(*columns.indices(999))]
        assert torch.equal(before[name][..., others], after[name][..., others])
        # The same values as before, dealt anew: whole rows of them, where they are several.
        rows = [
            sorted(map(tuple, tensors[name][..., columns].reshape(-1, width).tolist()))
            for tensors in (before, after)
            for width in [columns.stop - columns.start]
        ]
        assert rows[0] == rows[1]
    assert torch.equal(batch_of(apart)["counters"], before["counters"])  # itself is as it was


def test_every_part_of_the_ranker_s_input_is_a_feature(part: Excerpt) -> None:
    features = list(features_of(part))
    layout = part.features.layout
    widths = {
        "user field": len(layout.user_sizes) + layout.user_dense,
        "request field": len(layout.request_sizes) + layout.request_dense,
        "ad field": len(layout.ad_sizes) + layout.ad_dense,
        "counter": layout.counters,
        "history": len(layout.history_lengths),
        "position": 1,
    }
    for kind, width in widths.items():
        spans = [f.columns.stop - f.columns.start for f in features if f.kind == kind]
        assert sum(spans) == width, kind
