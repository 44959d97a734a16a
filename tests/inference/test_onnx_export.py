"""ONNX files give another runtime what torch gives, for any numbers of requests and candidates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from adrec.errors import ConfigError
from adrec.features.batches import Candidates, Query, candidates_of, stack_queries
from adrec.features.dataset import Dataset
from adrec.inference.graphs import RequestInputs
from adrec.inference.onnx_export import EXAMPLE, INTERFACE, Interface, export_onnx, sample_requests
from adrec.models.matches import histories_of, known_together
from adrec.models.ranker import Ranker, RankerConfig

SMALL = RankerConfig(
    embedding_dim=4, width=32, heads=4, layers=2, feed_forward=64, field_tokens=2,
    history_tokens=5, cross_layers=2, cross_rank=8, head_hidden=16,
)  # fmt: skip
Arrays = dict[str, NDArray[np.generic]]


@pytest.fixture(scope="module")
def ranker(tiny_dataset: Dataset) -> Ranker:
    torch.manual_seed(0)
    return Ranker(SMALL, tiny_dataset.features.layout).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(ranker: Ranker, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "new"
    export(ranker, tiny_dataset, folder)
    return folder


def export(ranker: Ranker, dataset: Dataset, folder: Path) -> Interface:
    query, candidates = sample_requests(dataset.state("end"), int(dataset.time_ms_R[-1]) + 1)
    return export_onnx(
        ranker, query, candidates, folder, version="1", tasks=["click", "engagement", "revenue"]
    )


def run(folder: Path, file: str, inputs: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    asked = {one.name: inputs[one.name] for one in session.get_inputs()}
    return dict(zip(names, session.run(names, asked), strict=True))


def predict(folder: Path, ranker: Ranker, query: Query, candidates: Candidates) -> Arrays:
    """All three files, one after the other, as another runtime would."""
    shape = candidates.position_BN.shape
    fields = candidates.ads
    ads = run(folder, "ads.onnx", {
        "ad_codes": fields.categorical.flatten(end_dim=-2).numpy(),
        "ad_dense": fields.dense.flatten(end_dim=-2).numpy(),
    })["ads"]  # fmt: skip
    known = RequestInputs.of(ranker, query)._asdict()
    prefix = run(folder, "prefix.onnx", known | {"item_ads": known["item_codes"]})
    together = known_together(histories_of(query, ranker.layout.impressions), candidates)
    return run(folder, "candidates.onnx", prefix | {
        "ads": ads.reshape(*shape, -1),
        "together": together.numpy(),
        "position": candidates.position_BN.numpy(),
    })  # fmt: skip


@pytest.mark.parametrize(("requests", "count"), [(1, 1), (1, 500), (3, 7)])
def test_it_predicts_what_torch_does(
    requests: int, count: int, folder: Path, ranker: Ranker, tiny_dataset: Dataset
) -> None:
    query, candidates = asked(tiny_dataset, requests, count)
    expected = ranker.predict(query, candidates).numpy()
    found = predict(folder, ranker, query, candidates)["predictions"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_interface_is_what_the_files_say(folder: Path) -> None:
    interface = Interface.model_validate_json((folder / INTERFACE).read_text())
    assert interface.tasks == ("click", "engagement", "revenue")
    assert [graph.file for graph in interface.graphs] == [
        "ads.onnx", "prefix.onnx", "candidates.onnx",
    ]  # fmt: skip
    types = {"float32": "float", "bool": "bool", "uint8": "uint8", "int32": "int32"}
    for graph in interface.graphs:
        session = onnxruntime.InferenceSession(folder / graph.file)
        for ports, there in (
            (graph.inputs, session.get_inputs()),
            (graph.outputs, session.get_outputs()),
        ):
            assert [(p.name, f"tensor({types[p.dtype]})", list(p.shape)) for p in ports] == [
                (one.name, one.type, one.shape) for one in there
            ]


def test_the_example_checks_a_runtime(folder: Path) -> None:
    example = load_file(folder / EXAMPLE)
    for graph in ("prefix.onnx", "candidates.onnx"):
        for name, found in run(folder, graph, example).items():
            np.testing.assert_allclose(found, example[name], rtol=1e-4, atol=1e-5)


def test_what_the_model_was_not_told_of_is_no_input(tiny_dataset: Dataset, tmp_path: Path) -> None:
    whole = tiny_dataset.features.layout
    bare = replace(whole, history_lengths=(), impressions=(), counters=0)
    torch.manual_seed(0)
    model = Ranker(SMALL, bare).eval().requires_grad_(False)
    query, candidates = asked(tiny_dataset, 2, 3)
    query = replace(query, histories=())
    candidates = replace(candidates, counters_BNC=candidates.counters_BNC[..., :0])
    interface = export_onnx(model, query, candidates, tmp_path, version="1", tasks=["click"])
    names = {port.name for graph in interface.graphs for port in graph.inputs}
    assert not names & {"item_ads", "item_mask", "history_lengths", "together"}
    found = predict(tmp_path, model, query, candidates)["predictions"]
    np.testing.assert_allclose(found, model.predict(query, candidates).numpy(), rtol=1e-4)


def test_a_ranker_that_knows_nothing_of_a_request_is_refused(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    bare = replace(
        tiny_dataset.features.layout, user_sizes=(), user_dense=0, request_sizes=(), request_dense=0
    )
    with pytest.raises(ConfigError, match="no field of user or request"):
        export(Ranker(SMALL, bare), tiny_dataset, tmp_path)


def test_it_says_what_to_install(
    ranker: Ranker, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adrec.inference.onnx_export.is_installed", lambda name: name == "onnx")
    with pytest.raises(
        ConfigError, match=r"onnxscript: not installed; pip install 'adrec\[onnx\]'"
    ):
        export(ranker, tiny_dataset, tmp_path)


def asked(dataset: Dataset, requests: int, count: int) -> tuple[Query, Candidates]:
    """Known users, each with `count` ads and counters drawn at random."""
    state, at_ms = dataset.state("end"), int(dataset.time_ms_R[-1]) + 1
    rng = np.random.default_rng(count)
    visitors = [state.visit(user, at_ms, {}) for user in state.users.ids[5 : 5 + requests]]
    row_BN = rng.integers(0, len(state.catalogue), (requests, count))
    counters = rng.normal(size=(*row_BN.shape, dataset.counters_NC.shape[1])).astype(np.float32)
    position_BN = np.ones(row_BN.shape, np.int32)
    query = stack_queries([state.query(visitor) for visitor in visitors])
    return query, candidates_of(state.catalogue.encoded, row_BN, counters, position_BN)
