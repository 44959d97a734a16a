"""The ranker on OpenVINO: float32, bf16, or int8 weights with activations rounded as they come.

In the last case every linear layer's weight is kept as int8 with one scale an output; OpenVINO then
rounds groups of activations to 8 bits on the fly, where the processor multiplies those faster. The
prefix is float32 in any case: it is a small part of the work, and exact scores need it too.
"""

import threading
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from openvino import opset13 as ops
from openvino.preprocess import PrePostProcessor

from adrec.features.batches import Candidates, Query
from adrec.inference.backends import CandidateRows, Engine, Example, Opened, Precision
from adrec.inference.graphs import (
    CANDIDATE_FREE,
    PREFIX_FREE,
    CandidateGraph,
    CandidateInputs,
    PrefixGraph,
    PrefixInputs,
    PrefixOutputs,
    graph_inputs,
)
from adrec.models.ranker import Ranker, histories_of, known_together

PREFIX, CANDIDATES = "prefix.xml", "candidates.xml"

_AD_CODES = 4  # input of the candidates' graph
_GROUP = 128  # activations that share a scale
_LEAST_WEIGHTS = 16_384  # smaller layers stay as they are


class OpenVinoBackend:
    """The compiled graphs of one precision."""

    engine: Engine = "openvino"

    def __init__(
        self,
        ranker: Ranker,
        precision: Precision,
        *,
        prefix: "Compiled",
        exact: "Compiled",
        coarse: "Compiled | None",
    ) -> None:
        self._ranker = ranker
        self.precision: Precision = precision
        self._prefix, self._exact, self._coarse = prefix, exact, coarse

    @classmethod
    def several(
        cls,
        ranker: Ranker,
        graphs: Path,
        precisions: Sequence[Precision],
        *,
        threads: int,
    ) -> "list[OpenVinoBackend]":
        """Compile what `convert` wrote; what precisions have in common is compiled once.

        Args:
            ranker: frozen.
            graphs: folder of the graphs.
            precisions: wanted.
            threads: that work on one call.
        """
        prefix = Compiled(graphs / PREFIX, "float32", threads)
        exact = Compiled(graphs / CANDIDATES, "float32", threads)
        coarse: dict[Precision, Compiled] = {
            precision: Compiled(graphs / CANDIDATES, precision, threads)
            for precision in precisions
            if precision != "float32"
        }
        return [
            cls(
                ranker,
                precision,
                prefix=prefix,
                exact=exact,
                coarse=coarse.get(precision),
            )
            for precision in precisions
        ]

    def open(self, query: Query) -> Opened:
        """See `Backend`."""
        return _OpenedOnOpenVino(self._ranker, query, self._prefix, self._exact, self._coarse)


class _OpenedOnOpenVino:
    @torch.inference_mode()
    def __init__(
        self,
        ranker: Ranker,
        query: Query,
        prefix: "Compiled",
        exact: "Compiled",
        coarse: "Compiled | None",
    ) -> None:
        self._ranker, self._exact, self._coarse = ranker, exact, coarse
        self._histories = histories_of(query, ranker.layout.impressions)
        self._prefix = PrefixOutputs(*prefix(*PrefixInputs.of(ranker, query)))

    @torch.inference_mode()
    def score(self, candidates: Candidates, stored: CandidateRows) -> NDArray[np.float32]:
        if self._coarse is None:
            return self.score_exactly(candidates)
        together = known_together(self._histories, candidates)
        assert stored.rows is not None
        wanted = CandidateInputs.of(
            self._ranker, together, candidates, stored.rows.take(stored.row_BN)
        )
        return self._coarse(*self._prefix, *wanted)[0]

    @torch.inference_mode()
    def score_exactly(self, candidates: Candidates) -> NDArray[np.float32]:
        together = known_together(self._histories, candidates)
        wanted = CandidateInputs.of(self._ranker, together, candidates, None)
        return self._exact(*self._prefix, *wanted)[0]


class Compiled:
    """A graph compiled for this processor, with inference requests of their own for each thread.

    Other than in float32, it reads the ads' rows in 8 bits.
    """

    def __init__(self, graph: Path, precision: Precision, threads: int) -> None:
        model = _core().read_model(graph)
        if precision != "float32":
            steps = PrePostProcessor(model)
            steps.input(_AD_CODES).tensor().set_element_type(openvino.Type.i8)
            model = steps.build()
        if precision == "int8":
            _round_weights(model)
        self._model = _core().compile_model(
            model,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16",
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": _GROUP if precision == "int8" else 0,
            },
        )
        self._own = threading.local()

    def __call__(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        """Outputs for inputs, in the graph's order."""
        if not hasattr(self._own, "request"):
            self._own.request = self._model.create_infer_request()
        found = self._own.request.infer(list(inputs), share_inputs=True)
        return [found[i] for i in range(len(self._model.outputs))]


@cache
def _core() -> openvino.Core:
    """One for the process, never let go: unloading its plugin while threads live kills them."""
    return openvino.Core()


@torch.inference_mode()
def convert(ranker: Ranker, example: Example, folder: Path) -> None:
    """Write the ranker's graphs in OpenVINO's format, PREFIX and CANDIDATES.

    A ranker that is told nothing of a request, neither fields nor histories, is left to torch:
    OpenVINO loses count of the requests.

    Args:
        ranker: frozen.
        example: tells all sizes but those that are free.
        folder: made if need be.
    """
    layout = ranker.layout
    if not (layout.user_sizes or layout.request_sizes or layout.history_lengths):
        return
    prefix, candidates = graph_inputs(ranker, example)
    for name, graph, inputs, free in (
        (PREFIX, PrefixGraph(ranker), prefix, PREFIX_FREE),
        (CANDIDATES, CandidateGraph(ranker), candidates, CANDIDATE_FREE),
    ):
        with warnings.catch_warnings():  # OpenVINO traces with what torch calls deprecated
            warnings.simplefilter("ignore")
            model = openvino.convert_model(graph.eval(), example_input=inputs)
        shapes = {}
        for port, tensor, axes in zip(model.inputs, inputs, free, strict=True):
            shape = [-1 if axis in axes else size for axis, size in enumerate(tensor.shape)]
            shapes[port] = openvino.PartialShape(shape)
        model.reshape(shapes)
        folder.mkdir(parents=True, exist_ok=True)
        openvino.save_model(model, folder / name, compress_to_fp16=False)


def _round_weights(model: Any) -> None:
    """Keep the weight of every large linear layer as int8, times a scale for each output."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        constant = node.input_value(1).get_node()
        if constant.get_type_name() != "Constant" or constant.data.size < _LEAST_WEIGHTS:
            continue
        weight_OI = constant.data.astype(np.float32)
        scale_O1 = np.abs(weight_OI).max(axis=1, keepdims=True) / 127.0
        codes = ops.constant(np.rint(weight_OI / scale_O1).astype(np.int8))
        rounded = ops.multiply(ops.convert(codes, openvino.Type.f32), ops.constant(scale_O1))
        node.input(1).replace_source_output(rounded.output(0))
