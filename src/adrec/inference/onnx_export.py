"""The ranker as ONNX files, for other runtimes: what depends on an ad, on a request, on both.

    ads.onnx          fields of A ads                    ─► what the ranker makes of each, [A, 2D]
    prefix.onnx       B requests with their histories    ─► keys, values, mask, summary
    candidates.onnx   those, and N ads of each           ─► predictions [B, N, K], uncalibrated

`interface.json` names every input and output with its type and shape, and `example.safetensors`
holds inputs and what torch makes of them, to check a runtime with. A, B and N may be any numbers;
all other sizes are fixed, as TensorRT likes them. What the model was not told of (no histories, no
counters) has no input.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.export import Dim

from adrec.errors import ConfigError
from adrec.features.batches import Candidates, Query, candidates_of, stack_queries
from adrec.features.state import State
from adrec.inference.choice import is_installed
from adrec.inference.graphs import AdGraph, CandidateGraph, PrefixGraph, RequestInputs, tensors
from adrec.models.matches import histories_of, known_together
from adrec.models.ranker import Ranker
from adrec.schema import Strict

ADS, PREFIX, CANDIDATES = "ads.onnx", "prefix.onnx", "candidates.onnx"
INTERFACE, EXAMPLE = "interface.json", "example.safetensors"
OPSET = 20

_SAMPLE_ADS = 8  # of each request

_SIZES = {"A": Dim("A"), "B": Dim("B"), "N": Dim("N")}


class Port(Strict):
    """An input or output of a graph. shape: sizes, or the letter of one that is free."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Graph(Strict):
    """What one file takes and gives."""

    file: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


class Interface(Strict):
    """All files. tasks: of the predictions' last axis, a probability each, or of a value the
    expected one."""

    format: Literal[1] = 1
    opset: int = OPSET
    version: str
    tasks: tuple[str, ...]
    graphs: tuple[Graph, ...]


class _Input(NamedTuple):
    """An input of a graph. free: letters of the axes whose sizes are free. fill: what stands for
    it, so that the exported graph does not ask for it."""

    name: str
    example: Tensor
    free: dict[int, str]
    fill: float | None = None

    @property
    def filled(self) -> bool:
        return self.fill is not None or self.example.numel() == 0


def export_onnx(
    ranker: Ranker,
    query: Query,
    candidates: Candidates,
    folder: Path,
    *,
    version: str,
    tasks: Sequence[str],
) -> Interface:
    """Write the files named above.

    Args:
        ranker: frozen.
        query: two requests or more, any: they tell sizes.
        candidates: two or more of each.
        folder: made if need be; files of these names in it are replaced.
        version: of the model.
        tasks: their names.

    Raises:
        ConfigError: `onnx` or `onnxscript` is not installed, or the ranker is told nothing of a
            request.
    """
    if missing := [name for name in ("onnx", "onnxscript") if not is_installed(name)]:
        raise ConfigError(f"{' and '.join(missing)}: not installed; pip install 'adrec[onnx]'")
    layout = ranker.layout
    if not (layout.user_sizes or layout.user_dense or layout.request_sizes or layout.request_dense):
        raise ConfigError("the ranker knows no field of user or request; there is no prefix")
    folder.mkdir(parents=True, exist_ok=True)
    example: dict[str, Tensor] = {}
    with torch.no_grad(), _quietly():
        graphs = (
            _export_ads(ranker, candidates, folder, example),
            _export_prefix(ranker, query, folder, example),
            _export_candidates(ranker, query, candidates, folder, example),
        )
    arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in example.items()}
    save_file(arrays, folder / EXAMPLE)
    interface = Interface(version=version, tasks=tuple(tasks), graphs=graphs)
    (folder / INTERFACE).write_text(interface.model_dump_json(indent=1) + "\n")
    return interface


def sample_requests(state: State, at_ms: int) -> tuple[Query, Candidates]:
    """Two requests of the first users, with the first few ads of the catalogue."""
    visitors = [state.visit(user, at_ms, {}) for user in [*state.users.ids[:2], None, None][:2]]
    row_BN = np.arange(2 * _SAMPLE_ADS).reshape(2, -1) % len(state.catalogue)
    counters = [
        state.counters(visitor, rows) for visitor, rows in zip(visitors, row_BN, strict=True)
    ]
    query = stack_queries([state.query(visitor) for visitor in visitors])
    on_top = np.ones(row_BN.shape, np.int32)
    return query, candidates_of(state.catalogue.encoded, row_BN, np.stack(counters), on_top)


def _export_ads(
    ranker: Ranker, candidates: Candidates, folder: Path, example: dict[str, Tensor]
) -> Graph:
    fields = candidates.ads
    inputs = [
        _Input("ad_codes", fields.categorical.flatten(end_dim=-2), {0: "A"}),
        _Input("ad_dense", fields.dense.flatten(end_dim=-2), {0: "A"}),
    ]
    outputs = {"ads": {0: "A"}}
    return _export(AdGraph(ranker), inputs, outputs, folder / ADS, example)


def _export_prefix(ranker: Ranker, query: Query, folder: Path, example: dict[str, Tensor]) -> Graph:
    names = {"item_codes": "item_ads"}  # exact, the first half of the items' rows of ADS
    fills = {"item_scales": 1.0}
    if not ranker.layout.history_lengths:
        fills |= {name: 0.0 for name in RequestInputs._fields if name.startswith("item_")}
    inputs = [
        _Input(names.get(name, name), tensor, {0: "B"}, fills.get(name))
        for name, tensor in zip(
            RequestInputs._fields, tensors(RequestInputs.of(ranker, query)), strict=True
        )
    ]
    outputs = {"keys": {1: "B"}, "values": {1: "B"}, "mask": {0: "B"}, "summary": {0: "B"}}
    return _export(PrefixGraph(ranker), inputs, outputs, folder / PREFIX, example)


def _export_candidates(
    ranker: Ranker, query: Query, candidates: Candidates, folder: Path, example: dict[str, Tensor]
) -> Graph:
    each = {0: "B", 1: "N"}
    together_BNX = known_together(histories_of(query, ranker.layout.impressions), candidates)
    position_BN = candidates.position_BN
    inputs = [
        *(_Input(name, example[name], {1: "B"}) for name in ("keys", "values")),
        *(_Input(name, example[name], {0: "B"}) for name in ("mask", "summary")),
        _Input("ads", ranker.ads(candidates.ads), each),
        _Input("ad_scales", torch.ones(*position_BN.shape, 2), each, 1.0),
        _Input("together", together_BNX, each),
        _Input("position", position_BN, each),
    ]
    outputs = {"predictions": each}
    return _export(CandidateGraph(ranker), inputs, outputs, folder / CANDIDATES, example)


def _export(
    graph: nn.Module,
    inputs: Sequence[_Input],
    outputs: dict[str, dict[int, str]],
    file: Path,
    example: dict[str, Tensor],
) -> Graph:
    """Write one file; its inputs and outputs are added to the example."""
    asked = [one for one in inputs if not one.filled]
    given = tuple(one.example for one in asked)
    whole = _Filled(graph.eval(), inputs)
    torch.onnx.export(
        whole,
        given,
        file,
        dynamo=True,
        external_data=False,
        verbose=False,
        opset_version=OPSET,
        input_names=[one.name for one in asked],
        output_names=list(outputs),
        dynamic_shapes=(
            tuple({axis: _SIZES[letter] for axis, letter in one.free.items()} for one in asked),
        ),
    )
    made = whole(*given)
    made = (made,) if isinstance(made, Tensor) else made
    results = dict(zip(outputs, made, strict=True))
    example |= results | {one.name: one.example for one in asked if one.name not in results}
    return Graph(
        file=file.name,
        inputs=tuple(_port(one.name, one.example, one.free) for one in asked),
        outputs=tuple(_port(name, results[name], free) for name, free in outputs.items()),
    )


class _Filled(nn.Module):
    """A graph that is given only what varies; the rest of its inputs is filled in."""

    def __init__(self, graph: nn.Module, inputs: Sequence[_Input]) -> None:
        super().__init__()
        self.inner, self._inputs = graph, inputs  # FX has a `graph` of its own

    def forward(self, *given: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Outputs of the graph."""
        asked = [one for one in self._inputs if not one.filled]
        sizes = {
            letter: tensor.shape[axis]
            for one, tensor in zip(asked, given, strict=True)
            for axis, letter in one.free.items()
        }
        rest = iter(given)
        whole = []
        for one in self._inputs:
            if not one.filled:
                whole.append(next(rest))
                continue
            shape = [
                sizes[one.free[a]] if a in one.free else n for a, n in enumerate(one.example.shape)
            ]
            whole.append(torch.full(shape, one.fill or 0, dtype=one.example.dtype))
        outputs: Tensor | tuple[Tensor, ...] = self.inner(*whole)
        return outputs


def _port(name: str, tensor: Tensor, free: dict[int, str]) -> Port:
    shape = tuple(free.get(axis, size) for axis, size in enumerate(tensor.shape))
    return Port(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=shape)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's notes about other libraries."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
