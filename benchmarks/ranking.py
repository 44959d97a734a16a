"""How long does it take to rank the candidates of one request?

    python benchmarks/ranking.py --json FILE
    python benchmarks/ranking.py --run runs/mine --json FILE
    python benchmarks/ranking.py --quick --json FILE

A version with a ranker of full size (without `--run`: trained briefly on a synthetic world of
20,000 ads) ranks 100 to 2,000 candidates of real users, in turns:

- each backend and precision on all candidates, the best rescored exactly where the version found
  that it is too coarse without;
- the same with the preranker, which is how the version serves;
- the ranker's ONNX files on ONNX Runtime, if that is installed;
- a plain ranker in PyTorch and float32, as it is trained: nothing computed beforehand;
- a naive transformer of the same sizes, in which each candidate is a sequence of its own.

The time is that from a request's fields and its candidates' rows to calibrated scores. Medians of
many requests on one thread. How near to float32 each backend comes, the version knows itself.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from machine import Row, machine_line, write_rows
from numpy.typing import NDArray
from torch import Tensor, nn
from worlds import version_with

from adrec.bundle import GRAPHS, PRERANKER, Bundle
from adrec.features.batches import Candidates, Fields, Query, stack_queries
from adrec.inference.backends import Backend, BackendName, Pool, Usual
from adrec.inference.choice import is_installed, make_backends, possible, rescored
from adrec.inference.graphs import RequestInputs
from adrec.inference.onnx_export import CANDIDATES, PREFIX, export_onnx, sample_requests
from adrec.inference.runtime import Runtime
from adrec.models.ad_rows import AdRows
from adrec.models.matches import histories_of, known_together
from adrec.models.preranker import Preranker
from adrec.models.ranker import Ranker
from adrec.recommender import Recommender
from adrec.training.checkpoint import load_weights

COUNTS = (100, 500, 1000, 2000)

Rank = Callable[["Asked"], Any]


class Asked(NamedTuple):
    """A request with candidates, rows of the catalogue."""

    query: Query
    candidates: Candidates
    row_BN: NDArray[np.int64]


def main() -> None:
    """Time every way at every count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="folder of a run; else one is trained")
    parser.add_argument("--work", type=Path, help="where to keep what is trained")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a small ranker, few requests")
    parser.add_argument("--json", type=Path, help="also write rows {case, metric, value, unit}")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        ads = 3_000 if arguments.quick else 20_000
        run = arguments.run or version_with(ads, work, small=arguments.quick)
        counts = (100, 500) if arguments.quick else COUNTS
        requests = 8 if arguments.quick else arguments.requests
        rows = measure(run, counts, requests, arguments.threads, Path(temporary))
    write_rows(arguments.json, rows)


def measure(
    run: Path, counts: Sequence[int], requests: int, threads: int, folder: Path
) -> list[Row]:
    """Rows of all ways and counts; printed as they come."""
    bundle, recommender = Bundle.open(run), Recommender.load(run)
    ways = all_ways(bundle, recommender.runtime, threads, folder)
    print(
        f"{machine_line()}; {threads} thread(s), median ms of {requests} requests, p99 in brackets"
    )
    print(f"{'':<34}" + "".join(f"{count:>18,}" for count in counts))
    times = {count: in_turns(ways, ask(bundle, recommender, requests, count)) for count in counts}
    rows: list[Row] = []
    for name in ways:
        line = f"{name:<34}"
        for count in counts:
            p50, p99 = np.quantile(times[count][name], (0.5, 0.99))
            line += f"{p50:>9.2f} ({p99:>6.2f})"
            case = f"{name}, {count} candidates"
            rows.append({"case": case, "metric": "p50", "value": float(p50), "unit": "ms"})
            rows.append({"case": case, "metric": "p99", "value": float(p99), "unit": "ms"})
        print(line)
    rows += parity(bundle)
    return rows


def all_ways(bundle: Bundle, served: Runtime, threads: int, folder: Path) -> dict[str, Rank]:
    """By name, what ranks a request."""
    ranker, rows = bundle.ranker(), AdRows.load(bundle.path / "ad_rows.safetensors")
    preranking, preranker = bundle.manifest.preranking, None
    if preranking is not None:
        preranker = Preranker(ranker.config.width, ranker.layout.task_kinds)
        load_weights(bundle.path / PRERANKER, preranker)
        preranker.eval()
    graphs = bundle.path / GRAPHS

    def serve(backend: Backend, considered: int | None) -> Rank:
        runtime = Runtime(
            served.two_tower,
            ranker,
            served.calibration,
            backend,
            ad_rows=rows,
            considered=considered,
            rescored=rescored(
                bundle.manifest.serving.rescored,
                BackendName(backend.engine, backend.precision),
                bundle.manifest.admissions,
            ),
        )

        def rank(asked: Asked) -> object:
            pool = Pool.of(ranker.layout, asked.query, asked.candidates, rows, asked.row_BN)
            return runtime.score(asked.query, pool, by_click, shown=10)

        return rank

    ways: dict[str, Rank] = {
        "naive, a sequence a candidate": Naive(ranker),
        "plain PyTorch float32": lambda asked: ranker.predict(asked.query, asked.candidates),
    }
    if is_installed("onnxruntime"):
        ways["ONNX Runtime float32"] = OnnxRanker(bundle, ranker, threads, folder)
    most = bundle.manifest.serving.candidates
    for considered in (None, preranking.considered) if preranking is not None else (None,):
        made = make_backends(
            ranker,
            preranker,
            graphs,
            possible(graphs),
            threads=threads,
            usual=Usual(most, considered or most),  # as the version serves
        )
        then = "" if considered is None else f", preranker to {considered}"
        ways |= {f"{b.engine} {b.precision}{then}": serve(b, considered) for b in made}
    return ways


def in_turns(ways: dict[str, Rank], asked: Sequence[Asked]) -> dict[str, list[float]]:
    """Milliseconds of each way for each request; the first two requests warm up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for place, one in enumerate([*asked[:2], *asked]):
        for name, rank in ways.items():
            begun = time.perf_counter()
            with torch.inference_mode():
                rank(one)
            if place >= 2:
                found[name].append((time.perf_counter() - begun) * 1000.0)
    return found


def ask(bundle: Bundle, recommender: Recommender, requests: int, count: int) -> list[Asked]:
    """Requests of known users with the ads nearest to them."""
    state, at_ms = recommender.state, bundle.manifest.log_end_ms + 1
    users = state.users.ids
    asked = []
    for user in users[:: max(1, len(users) // requests)][:requests]:
        visitor = state.visit(user, at_ms, {})
        query = stack_queries([state.query(visitor)])
        row_BN = recommender.retrieve(query, count)
        asked.append(Asked(query, recommender.pool([visitor], query, row_BN).candidates, row_BN))
    return asked


def by_click(scores_BNK: NDArray[np.float64], row_BN: NDArray[np.int64]) -> NDArray[np.float64]:
    """What candidates are ordered by."""
    return np.where(row_BN > 0, scores_BNK[..., 0], -np.inf)


class Naive:
    """A transformer encoder of the ranker's sizes over a sequence a candidate: the request's tokens
    and the candidate's. Weights and tokens are random: only its time is asked for."""

    def __init__(self, ranker: Ranker) -> None:
        config = ranker.config
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, config.feed_forward, batch_first=True, norm_first=True
        )
        self._encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self._encoder.eval()
        self._tokens = config.field_tokens + len(ranker.sequence_S)
        self._width = config.width

    def __call__(self, asked: Asked) -> Tensor:
        """Encode all candidates."""
        count = asked.row_BN.shape[1]
        encoded: Tensor = self._encoder(torch.zeros(count, self._tokens + 1, self._width))
        return encoded[:, -1]


class OnnxRanker:
    """The exported files on ONNX Runtime, what depends on an ad alone computed beforehand."""

    def __init__(self, bundle: Bundle, ranker: Ranker, threads: int, folder: Path) -> None:
        import onnxruntime

        state, tasks = bundle.state(), [task.name for task in bundle.features.schema.tasks]
        sample = sample_requests(state, bundle.manifest.log_end_ms + 1)
        export_onnx(ranker, *sample, folder, version="", tasks=tasks)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._prefix, self._candidates = (
            onnxruntime.InferenceSession(folder / name, options) for name in (PREFIX, CANDIDATES)
        )
        self._ranker = ranker
        with torch.inference_mode():
            self._ads_AP = ranker.ads(Fields.of(bundle.catalogue.encoded)).numpy()

    def __call__(self, asked: Asked) -> object:
        """Predictions."""
        known = RequestInputs.of(self._ranker, asked.query)._asdict()
        known["item_ads"] = known["item_codes"]
        prefix = self._run(self._prefix, known)
        histories = histories_of(asked.query, self._ranker.layout.impressions)
        own = {
            "ads": self._ads_AP[asked.row_BN],
            "together": known_together(histories, asked.candidates).numpy(),
            "position": asked.candidates.position_BN.numpy(),
        }
        names = [output.name for output in self._prefix.get_outputs()]
        return self._run(self._candidates, own | dict(zip(names, prefix, strict=True)))

    def _run(self, session: Any, arrays: dict[str, Any]) -> list[Any]:
        found: list[Any] = session.run(
            None, {port.name: arrays[port.name] for port in session.get_inputs()}
        )
        return found


def parity(bundle: Bundle) -> list[Row]:
    """How near to float32 each backend was found to be when the version was made."""
    manifest = bundle.manifest
    rows: list[Row] = []
    for one in manifest.admissions:
        case = f"{one.engine} {one.precision}"
        worst = max(map(abs, one.auc_change.values()), default=0.0)
        rows.append({"case": case, "metric": "AUC change", "value": worst, "unit": "1"})
        rows.append(
            {"case": case, "metric": "top 10 the same", "value": one.top_agreement, "unit": "1"}
        )
        alone = one.first_pass_agreement
        rows.append(
            {"case": case, "metric": "top 10 the same, not rescored", "value": alone, "unit": "1"}
        )
        print(one)
    if manifest.preranking is not None:
        found = manifest.preranking
        case = f"preranker to {found.considered}"
        rows.append(
            {"case": case, "metric": "top 10 found", "value": found.top_agreement, "unit": "1"}
        )
        print(found)
    return rows


if __name__ == "__main__":
    main()
