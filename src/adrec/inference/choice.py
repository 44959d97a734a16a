"""Which backend serves: of those admitted by measurement, the fastest on this machine.

OpenVINO is imported only where it is used: without it everything runs on torch.
"""

import time
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from adrec.errors import ConfigError
from adrec.features.batches import candidates_of
from adrec.features.state import State
from adrec.inference.backends import (
    Backend,
    BackendName,
    Engine,
    Example,
    Pool,
    Precision,
    TorchBackend,
    Usual,
)
from adrec.inference.runtime import RESCORED, TOP, Runtime, UserTower, embed_users
from adrec.models.preranker import Preranker
from adrec.models.ranker import Ranker
from adrec.models.two_tower import TwoTower
from adrec.schema import Strict
from adrec.training.optimiser import has_native_bf16

MOST_AUC_CHANGE = 0.0005
LEAST_AGREEMENT = 0.99
MOST_SHIFT = 0.002
REFERENCE: tuple[Engine, Precision] = ("torch", "float32")
PRECISIONS: dict[Engine, tuple[Precision, ...]] = {
    "torch": ("float32", "bf16"),
    "openvino": ("float32", "bf16", "int8"),
}


_TRIALS, _AHEAD = 5, 1.1


class Admission(Strict):
    """How near to float32 a backend was found to be when the version was made."""

    engine: Engine
    precision: Precision
    auc_change: dict[str, float]
    """By binary task: AUC of the first pass less that of float32, on the validation period."""
    top_agreement: float
    """Share of the top 10 that float32 has, too, after the best are rescored."""
    first_pass_agreement: float
    """The same if nothing is rescored."""
    first_pass_shift: float
    """By which share the first pass moves scores on average, of the task of which it moves them
    most."""
    native_bf16: bool
    """Whether the processor had bf16, which is used beside int8 where it is there."""

    def __str__(self) -> str:
        changes = ", ".join(f"{name} {by:+.5f}" for name, by in self.auc_change.items())
        verdict = "admitted" if self.admitted else "not admitted"
        return (
            f"{self.engine} {self.precision}: AUC {changes}, "
            f"top 10 {self.top_agreement:.1%} the same, without rescoring "
            f"{self.first_pass_agreement:.1%} and scores {self.first_pass_shift:+.2%}: {verdict}"
        )

    @property
    def admitted(self) -> bool:
        """Whether it may serve."""
        return (
            max(map(abs, self.auc_change.values()), default=0.0) < MOST_AUC_CHANGE
            and self.top_agreement >= LEAST_AGREEMENT
        )

    @property
    def needs_rescoring(self) -> bool:
        """Whether the top 10 are float32's only if the best are rescored, or the scores."""
        as_good = self.first_pass_agreement >= LEAST_AGREEMENT
        return not as_good or abs(self.first_pass_shift) > MOST_SHIFT

    @property
    def admitted_here(self) -> bool:
        """Whether it may serve on this machine: int8 with bf16 beside it must be measured so."""
        coarser = self.precision == "int8" and has_native_bf16() and not self.native_bf16
        return self.admitted and not coarser


class Preranking(Strict):
    """How many candidates the ranker looks at, and what that loses."""

    considered: int
    """Of a request, for 10 ads shown."""
    top_agreement: float
    """Share of the ranker's top 10 of all candidates that are among them."""

    def __str__(self) -> str:
        return (
            f"preranker: of the top 10 of all candidates, {self.top_agreement:.1%} are among the "
            f"{self.considered} that the ranker looks at"
        )


class Wanted(Protocol):
    """What `ServingConfig` says of backends."""

    @property
    def engine(self) -> Literal["auto"] | Engine:
        """Of the ranker."""

    @property
    def precision(self) -> Literal["auto"] | Precision:
        """Of the first pass."""

    @property
    def threads(self) -> int:
        """For one request."""


def rescored(
    wanted: Literal["auto"] | int, backend: BackendName, admissions: Sequence[Admission]
) -> int:
    """How many of the best candidates a backend's runtime is to score once more.

    Args:
        wanted: what the settings say; auto: none if the first pass was found to do, else RESCORED.
        backend: which.
        admissions: what was measured when the version was made.
    """
    if wanted != "auto":
        return wanted
    does = any(
        (one.engine, one.precision) == backend and one.admitted_here and not one.needs_rescoring
        for one in admissions
    )
    return 0 if does else RESCORED


def fastest(runtimes: Sequence[Runtime], example: Example) -> Runtime:
    """The one that scores an example in the least time; median of a few trials, taken in turns."""
    if len(runtimes) == 1:
        return runtimes[0]
    seconds: list[list[float]] = [[] for _ in runtimes]
    for trial in range(1 + _TRIALS):
        for runtime, found in zip(runtimes, seconds, strict=True):
            layout = runtime.ranker.layout
            pool = Pool.of(
                layout, example.query, example.candidates, runtime.ad_rows, example.row_BN
            )
            begun = time.perf_counter()
            runtime.score(example.query, pool, lambda scores, _: scores[..., 0], shown=TOP)
            if trial:  # the first one warms up
                found.append(time.perf_counter() - begun)
    precisions = [runtime.backend.precision for runtime in runtimes]
    return runtimes[first_choice(precisions, [float(np.median(found)) for found in seconds])]


def first_choice(precisions: Sequence[Precision], seconds: Sequence[float]) -> int:
    """Which is the fastest. A coarser one must be a tenth ahead: less than that is noise."""
    even = [
        s if precision == "float32" else s * _AHEAD
        for precision, s in zip(precisions, seconds, strict=True)
    ]
    return int(np.argmin(even))


def serving_backends(
    ranker: Ranker,
    preranker: Preranker | None,
    graphs: Path,
    wanted: Wanted,
    admissions: Sequence[Admission],
    *,
    like: BackendName | None = None,
    usual: Usual | None = None,
) -> list[Backend]:
    """Backends that may serve. Engine and precision that are named need no admission.

    Args:
        ranker, preranker: frozen.
        graphs: folder of OpenVINO's graphs, if there is one.
        wanted: what the settings say.
        admissions: what was measured when the version was made.
        like: only this one, if it may serve.
        usual: see `Usual`.

    Raises:
        ConfigError: an engine is wanted that is not installed, or has no such precision.
    """
    admitted: set[tuple[Engine, Precision]] = {
        REFERENCE,
        *((one.engine, one.precision) for one in admissions if one.admitted_here),
    }
    named = wanted.engine != "auto" and wanted.precision != "auto"
    choices = [
        (engine, precision)
        for engine, precision in possible(graphs)
        if wanted.engine in ("auto", engine)
        and wanted.precision in ("auto", precision)
        and (named or (engine, precision) in admitted)
    ]
    if not choices:
        raise ConfigError(
            f"serving.engine={wanted.engine} with serving.precision={wanted.precision}: "
            + _why_not(wanted, graphs)
        )
    if like in choices:
        choices = [like]
    return make_backends(ranker, preranker, graphs, choices, threads=wanted.threads, usual=usual)


def possible(graphs: Path) -> list[tuple[Engine, Precision]]:
    """Engines that are installed and have what they need, with their precisions."""
    return [
        (engine, precision)
        for engine, precisions in PRECISIONS.items()
        if engine == "torch" or (is_installed("openvino") and graphs.exists())
        for precision in precisions
    ]


def make_backends(
    ranker: Ranker,
    preranker: Preranker | None,
    graphs: Path,
    choices: Sequence[tuple[Engine, Precision]],
    *,
    threads: int = 1,
    usual: Usual | None = None,
) -> list[Backend]:
    """Backends ready to run, in the order of PRECISIONS; see `serving_backends`."""
    made: list[Backend] = []
    for precision in ("float32", "bf16"):
        if ("torch", precision) in choices:
            made.append(TorchBackend(ranker, precision, preranker))
    compiled = [precision for engine, precision in choices if engine == "openvino"]
    if compiled:
        from adrec.inference.openvino_backend import OpenVinoBackend

        made += OpenVinoBackend.several(ranker, graphs, compiled, threads=threads, usual=usual)
    return made


def convert(two_tower: TwoTower, ranker: Ranker, example: Example, graphs: Path) -> None:
    """Write the models' graphs for OpenVINO, which must be installed."""
    from adrec.inference import openvino_backend

    openvino_backend.convert(two_tower, ranker, example, graphs)


def user_encoder(two_tower: TwoTower, graphs: Path, wanted: Wanted) -> UserTower:
    """What embeds users: OpenVINO where it may be used, else the model as it is."""
    if wanted.engine == "torch" or not is_installed("openvino") or not graphs.exists():
        return partial(embed_users, two_tower)
    from adrec.inference.openvino_backend import UserEncoder

    return UserEncoder(two_tower, graphs, wanted.threads)


def convert_preranker(ranker: Ranker, preranker: Preranker, example: Example, graphs: Path) -> None:
    """Write the preranker's graph beside the ranker's, if there are any."""
    if graphs.exists():
        from adrec.inference import openvino_backend

        openvino_backend.convert_preranker(ranker, preranker, example, graphs)


def example_of(state: State, count: int) -> Example:
    """A new user's request with the first `count` ads of the catalogue."""
    visitor = state.visit(None, 0, {})
    row_BN = np.arange(1, min(count + 1, len(state.catalogue)), dtype=np.int64)[None, :]
    candidates = candidates_of(
        state.catalogue.encoded,
        row_BN,
        state.counters(visitor, row_BN[0])[None],
        np.ones(row_BN.shape, np.int32),
    )
    return Example(state.query(visitor), candidates, row_BN)


def is_installed(library: str) -> bool:
    """Whether the library can be imported."""
    return find_spec(library) is not None


def _why_not(wanted: Wanted, graphs: Path) -> str:
    if wanted.engine == "openvino" and not is_installed("openvino"):
        return "OpenVINO is not installed; run `pip install openvino`, or set engine to auto"
    if wanted.engine == "openvino" and not graphs.exists():
        return f"{graphs} is missing: OpenVINO was not installed when the version was made"
    of_engine = PRECISIONS.get(wanted.engine, ()) if wanted.engine != "auto" else ()
    if of_engine and wanted.precision != "auto" and wanted.precision not in of_engine:
        return f"{wanted.engine} has {', '.join(of_engine)}"
    return "it was not admitted when the version was made; name both to serve it all the same"
