"""The ranker on OpenVINO: float32, bf16, or int8 weights with activations rounded as they come.

In the last case every linear layer's weight is kept as int8 with one scale an output; OpenVINO then
rounds groups of activations to 8 bits on the fly, where the processor multiplies those faster.
Beside int8, the preranker and what else is not in 8 bits are bf16 if the processor has that, else
float32.

Requests and their candidates go through one graph, in its precision: with few candidates, which is
what a preranker leaves, half of the time is that of reading the weights, which then happens once.
Its last layers are exact in every precision: a logit of 3 in bf16 is off by up to .008, and so is
the logarithm of a click rate.
"""

import threading
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adrec.features.batches import Query
from adrec.inference.backends import Engine, Example, Opened, Pool, Precision, Usual
from adrec.inference.graphs import (
    PRERANK_FREE,
    SCORE_FREE,
    CandidateInputs,
    FreeAxes,
    PrerankGraph,
    RequestInputs,
    ScoreGraph,
    UserGraph,
    tensors,
    user_inputs,
)
from adrec.inference.silent_openvino import PrePostProcessor, openvino, ops
from adrec.inference.threads import available_cores
from adrec.models.preranker import Preranker
from adrec.models.ranker import Ranker
from adrec.models.two_tower import TwoTower
from adrec.training.optimiser import has_native_bf16

SCORE, PRERANK, USERS = "score.xml", "prerank.xml", "users.xml"

_AD_CODES = len(RequestInputs._fields)  # which input they are
_HINTS: dict[Precision, str] = {"float32": "f32", "bf16": "bf16"}
_GROUP = 128  # activations that share a scale
_LEAST_WEIGHTS = 16_384  # smaller layers stay as they are


class OpenVinoBackend:
    """The compiled graphs of one precision."""

    engine: Engine = "openvino"

    def __init__(self, ranker: Ranker, precision: Precision, graphs: "Graphs") -> None:
        self._ranker, self._graphs = ranker, graphs
        self.precision: Precision = precision

    @classmethod
    def several(
        cls,
        ranker: Ranker,
        graphs: Path,
        precisions: Sequence[Precision],
        *,
        threads: int,
        usual: Usual | None = None,
    ) -> "list[OpenVinoBackend]":
        """Compile what `convert` wrote; what precisions have in common is compiled once.

        Args:
            ranker: frozen.
            graphs: folder of the graphs.
            precisions: wanted.
            threads: that work on one call.
            usual: see `Usual`.
        """
        guessed, scored = ((1, usual.guessed), (1, usual.scored)) if usual else ((), ())
        usually_exact = scored if "float32" in precisions else ()
        exact = Compiled(graphs / SCORE, "float32", threads, usual=usually_exact)

        @cache
        def prerank(precision: Precision) -> Compiled | None:
            if not (graphs / PRERANK).exists():
                return None
            graph = graphs / PRERANK
            return Compiled(graph, precision, threads, codes=_AD_CODES, usual=guessed)

        def of(precision: Precision) -> Graphs:
            if precision == "float32":
                return Graphs(exact, prerank("float32"), coarse=None)
            graph = graphs / SCORE
            coarse = Compiled(graph, precision, threads, codes=_AD_CODES, usual=scored)
            return Graphs(exact, prerank(_beside(precision)), coarse)

        return [cls(ranker, precision, of(precision)) for precision in precisions]

    def open(self, query: Query) -> Opened:
        """See `Backend`."""
        return _OpenedOnOpenVino(self._ranker, query, self._graphs)


class Graphs(NamedTuple):
    """Of one precision. prerank: None without a preranker; coarse: None if it is float32."""

    exact: "Compiled"
    prerank: "Compiled | None"
    coarse: "Compiled | None"


class _OpenedOnOpenVino:
    @torch.inference_mode()
    def __init__(self, ranker: Ranker, query: Query, graphs: Graphs) -> None:
        self._ranker, self._graphs = ranker, graphs
        self._request = RequestInputs.of(ranker, query)

    def prerank(self, pool: Pool) -> NDArray[np.float32]:
        assert self._graphs.prerank is not None
        own = *pool.stored_cross(), pool.together_BNX.numpy()
        return self._graphs.prerank(*self._request, *own)[0]

    @torch.inference_mode()
    def score(self, pool: Pool) -> NDArray[np.float32]:
        if self._graphs.coarse is None:
            return self.score_exactly(pool)
        return self._graphs.coarse(*self._request, *self._inputs(pool, pool.stored()))[0]

    @torch.inference_mode()
    def score_exactly(self, pool: Pool) -> NDArray[np.float32]:
        return self._graphs.exact(*self._request, *self._inputs(pool, None))[0]

    def _inputs(
        self, pool: Pool, stored: tuple[NDArray[np.int8], NDArray[np.float32]] | None
    ) -> CandidateInputs:
        return CandidateInputs.of(self._ranker, pool.together_BNX, pool.candidates, stored)


class UserEncoder:
    """The user tower, in float32. Safe to use from many threads at once."""

    def __init__(self, two_tower: TwoTower, graphs: Path, threads: int) -> None:
        self._two_tower = two_tower
        self._compiled = Compiled(graphs / USERS, "float32", threads, usual=(1,))

    @torch.inference_mode()
    def __call__(self, query: Query) -> NDArray[np.float32]:
        """Vectors of B requests, [B, output_dim]."""
        return self._compiled(*user_inputs(self._two_tower, query))[0]


class Compiled:
    """A graph compiled for this processor, with inference requests of their own for each thread.

    Where sizes are free, OpenVINO works out those of every step anew for each call, a quarter of
    the time of a lone request; so there is a second one for the usual sizes.
    """

    def __init__(
        self,
        graph: Path,
        precision: Precision,
        threads: int,
        *,
        codes: int | None = None,
        usual: tuple[int, ...] = (),
    ) -> None:
        """Compile.

        Args:
            graph: file.
            precision: of its arithmetic.
            threads: that work on one call.
            codes: which input holds the ads' rows in 8 bits, if any.
            usual: numbers of requests and candidates that calls mostly have; (): of any.
        """
        model = _core().read_model(graph)
        if codes is not None:
            steps = PrePostProcessor(model)
            steps.input(codes).tensor().set_element_type(openvino.Type.i8)
            model = steps.build()
        if precision != "float32":
            _keep_ends_exact(model)
        if precision == "int8":
            _round_weights(model)
        if precision == "int8" and any(_is_empty(port.partial_shape) for port in model.inputs):
            usual = ()  # OpenVINO 2026.4 does not compile such ones
        self._usual = usual
        self._any = _compiled(model, precision, threads)
        self._outputs = len(self._any.outputs)
        self._fixed: Any = None
        if usual:
            model.reshape({port: _with_sizes(port.partial_shape, usual) for port in model.inputs})
            self._fixed = _compiled(model, precision, threads)
        self._own = threading.local()

    def __call__(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        """Outputs for inputs, in the graph's order. Inputs have the graph's types."""
        usual = self.is_usual(inputs)
        request, own = self._request(usual)
        if usual:  # to copy them takes a tenth of the time that it takes to hand them over
            for place, array in zip(own, inputs, strict=True):
                np.copyto(place, array, casting="no")
        else:
            # Set one by one: what `infer` does to inputs of any kind takes longer than small graphs
            for i, array in enumerate(inputs):
                whole = array if array.flags.c_contiguous else np.ascontiguousarray(array)
                request.set_input_tensor(i, openvino.Tensor(whole, shared_memory=True))
        request.infer()
        return [np.array(request.get_output_tensor(i).data) for i in range(self._outputs)]

    def is_usual(self, inputs: Sequence[NDArray[Any]]) -> bool:
        """Whether inputs have the usual sizes. The last input has all that are free."""
        usual = self._usual
        return (
            self._fixed is not None
            and inputs[-1].shape[: len(usual)] == usual
            and all(len(array) == usual[0] for array in inputs)
        )

    def _request(self, usual: bool) -> tuple[Any, list[NDArray[Any]]]:
        """This thread's own, and where its inputs stand if their sizes are known."""
        if not hasattr(self._own, "requests"):
            self._own.requests = {}
        requests: dict[bool, tuple[Any, list[NDArray[Any]]]] = self._own.requests
        if usual not in requests:
            request = (self._fixed if usual else self._any).create_infer_request()
            places = range(len(self._any.inputs)) if usual else ()
            requests[usual] = request, [request.get_input_tensor(i).data for i in places]
        return requests[usual]


def _compiled(model: Any, precision: Precision, threads: int) -> Any:
    # A thread that calls works by itself, which saves handing over to another and back: no streams.
    # Where several work on one call, they are as many as can run side by side.
    streams = 0 if threads == 1 else max(1, available_cores() // threads)
    return _core().compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads * max(1, streams),
            "ENABLE_CPU_PINNING": False,  # other processes would be pinned to the same cores
            "INFERENCE_PRECISION_HINT": _HINTS[_beside(precision)],
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": _GROUP if precision == "int8" else 0,
        },
    )


def _is_empty(shape: Any) -> bool:
    """Whether there is nothing in an input of such a shape."""
    return any(size.is_static and size.get_length() == 0 for size in shape)


def _with_sizes(shape: Any, sizes: tuple[int, ...]) -> Any:
    """A shape whose free axes, the first ones, have these sizes."""
    return openvino.PartialShape(
        [sizes[axis] if size.is_dynamic else size for axis, size in enumerate(shape)]
    )


def _beside(precision: Precision) -> Precision:
    """What is not in 8 bits beside what is: bf16, where the processor need not imitate that."""
    if precision == "int8":
        return "bf16" if has_native_bf16() else "float32"
    return precision


@cache
def _core() -> openvino.Core:
    """One for the process, never let go: unloading its plugin while threads live kills them."""
    return openvino.Core()


@torch.inference_mode()
def convert(two_tower: TwoTower, ranker: Ranker, example: Example, folder: Path) -> None:
    """Write the models' graphs in OpenVINO's format: SCORE and USERS.

    Models that are told nothing of a request, neither fields nor histories, are left to torch:
    OpenVINO loses count of the requests.

    Args:
        two_tower, ranker: frozen.
        example: tells all sizes but those that are free.
        folder: made if need be.
    """
    layout = ranker.layout
    if not (layout.user_sizes or layout.request_sizes or layout.history_lengths):
        return
    query, pool = example.query, _pool(ranker, example)
    request = RequestInputs.of(ranker, query)
    own = CandidateInputs.of(ranker, pool.together_BNX, pool.candidates, None)
    folder.mkdir(parents=True, exist_ok=True)
    _convert(ScoreGraph(ranker), tensors([*request, *own]), SCORE_FREE, folder / SCORE)
    users = tensors(user_inputs(two_tower, query))
    _convert(UserGraph(two_tower), users, ((0,),) * len(users), folder / USERS)


@torch.inference_mode()
def convert_preranker(ranker: Ranker, preranker: Preranker, example: Example, folder: Path) -> None:
    """Write the graph of a preranker beside the ranker's, PRERANK, where that is."""
    if not (folder / SCORE).exists():
        return
    pool = _pool(ranker, example)
    ads, scales, together, _ = CandidateInputs.of(ranker, pool.together_BNX, pool.candidates, None)
    own = ads[..., ranker.config.width :], scales[..., 1], together
    inputs = tensors([*RequestInputs.of(ranker, example.query), *own])
    _convert(PrerankGraph(ranker, preranker), inputs, PRERANK_FREE, folder / PRERANK)


def _pool(ranker: Ranker, example: Example) -> Pool:
    return Pool.of(ranker.layout, example.query, example.candidates, None, example.row_BN)


def _convert(graph: nn.Module, inputs: tuple[Tensor, ...], free: FreeAxes, file: Path) -> None:
    with warnings.catch_warnings():  # OpenVINO traces with what torch calls deprecated
        warnings.simplefilter("ignore")
        model = openvino.convert_model(graph.eval(), example_input=inputs)
    shapes = {}
    for port, tensor, axes in zip(model.inputs, inputs, free, strict=True):
        shape = [-1 if axis in axes else size for axis, size in enumerate(tensor.shape)]
        shapes[port] = openvino.PartialShape(shape)
    model.reshape(shapes)
    openvino.save_model(model, file, compress_to_fp16=False)


def _keep_ends_exact(model: Any) -> None:
    """Have the last layers computed in float32, as sums of products: OpenVINO leaves what comes
    after the last product of matrices in the precision of the outputs."""
    met: set[str] = set()
    waiting = [result.get_node() for result in model.outputs]
    while waiting:
        node = waiting.pop()
        if node.get_name() in met:
            continue
        met.add(node.get_name())
        weight_OI = _weight(node)
        if weight_OI is not None:
            across = ops.unsqueeze(node.input_value(0), ops.constant(np.array([-2])))
            products = ops.multiply(across, ops.constant(weight_OI))
            node.output(0).replace(ops.reduce_sum(products, ops.constant(np.array([-1]))).output(0))
        elif node.get_type_name() != "MatMul":
            waiting += [value.get_node() for value in node.input_values()]


def _weight(node: Any) -> NDArray[np.float32] | None:
    """Weight [O, I] of a linear layer; None if a node is something else."""
    if node.get_type_name() != "MatMul" or not node.get_attributes()["transpose_b"]:
        return None
    constant = node.input_value(1).get_node()
    if constant.get_type_name() != "Constant" or constant.data.ndim != 2:
        return None
    weight_OI: NDArray[np.float32] = constant.data.astype(np.float32)
    return weight_OI


def _round_weights(model: Any) -> None:
    """Keep the weight of every large linear layer as int8, times a scale for each output."""
    for node in model.get_ordered_ops():
        weight_OI = _weight(node)
        if weight_OI is None or weight_OI.size < _LEAST_WEIGHTS:
            continue
        scale_O1 = np.abs(weight_OI).max(axis=1, keepdims=True) / 127.0
        codes = ops.constant(np.rint(weight_OI / scale_O1).astype(np.int8))
        rounded = ops.multiply(ops.convert(codes, openvino.Type.f32), ops.constant(scale_O1))
        node.input(1).replace_source_output(rounded.output(0))
