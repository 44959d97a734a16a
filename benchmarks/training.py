"""How fast do our models train, beside a plain DNN of the same width and LightGBM?

    python benchmarks/training.py --json FILE
    python benchmarks/training.py --config examples/kuairand.yaml --data DIR --json FILE
    python benchmarks/training.py --json FILE --quick

On one prepared log (without `--data`: the demo's synthetic world) each of them is trained once, one
epoch of the networks and as many trees of each task as `--trees` says. The plain DNN gets all
that the ranker gets but the histories' items: embeddings of the same size, the same counters and
matches, three hidden layers as wide as the ranker, the same heads. Prints rows a second; LightGBM
sees a row once for each tree, so its whole training counts as one pass over the rows. Of the
networks it also says which share of the time they waited for batches. `--quick` takes a tiny world
and few trees.
"""

import argparse
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import Row, machine_line, write_rows
from rich.console import Console
from torch import Tensor, nn

from adrec import pipeline
from adrec.config import RunConfig, load_config
from adrec.data.layouts import synthetic_schema
from adrec.data.synthetic import PRESETS, generate, write_world
from adrec.features.batches import Batch, to_device
from adrec.features.dataset import Dataset
from adrec.features.transforms import Layout
from adrec.metrics import auc
from adrec.models.heads import TaskHeads
from adrec.models.layers import FieldEncoder, StandardScore, evaluating, mlp
from adrec.models.matches import histories_of, known_together
from adrec.models.ranker import RankerConfig
from adrec.models.trees import TreesConfig
from adrec.progress import Progress
from adrec.stages import train_stages
from adrec.training.boosting import grow_trees
from adrec.training.loop import train
from adrec.training.objectives import thin

_VALID_ROWS = 8192
_SCALED_REQUESTS = 5000


def main() -> None:
    """Train each and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of a log; else the demo world")
    parser.add_argument("--config", type=Path, help="settings of both stages")
    parser.add_argument("--trees", type=int, default=200)
    parser.add_argument("--work", type=Path, help="where to keep the prepared log")
    parser.add_argument("--quick", action="store_true", help="a tiny world: does it run at all?")
    parser.add_argument("--json", type=Path, help="also write rows {case, metric, value, unit}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        preset = "tiny" if arguments.quick else "demo"
        data = arguments.data or _world(Path(temporary) / "world", preset)
        once = {f"training.{stage}.epochs": 1 for stage in ("two_tower", "ranker")}
        config = load_config(arguments.config, {"data.path": str(data.absolute())} | once)
        rows = measure(config, work / "training", 10 if arguments.quick else arguments.trees)
    print(machine_line())
    print(f"{'case':<30}{'rows':>12}{'seconds':>10}{'rows/s':>12}{'waited':>10}{'valid AUC':>12}")
    for case in dict.fromkeys(row["case"] for row in rows):
        of = {row["metric"]: row["value"] for row in rows if row["case"] == case}
        found = f"{of['valid AUC']:>12.4f}" if "valid AUC" in of else f"{'–':>12}"
        waited = (
            f"{of['waited for batches']:>10.1%}" if "waited for batches" in of else f"{'–':>10}"
        )
        rate = f"{of['time']:>10.1f}{of['rate']:>12,.0f}"
        print(f"{case:<30}{of['rows']:>12,.0f}{rate}{waited}{found}")
    write_rows(arguments.json, rows)


def measure(config: RunConfig, work: Path, trees: int) -> list[Row]:
    """Rows {case, metric, value, unit} of every model."""
    progress = Progress(Console(stderr=True))
    dataset = pipeline.prepare_log(config, work, progress=progress)
    with tempfile.TemporaryDirectory() as folder:
        stages = train_stages(config, dataset, Path(folder), progress=progress)
        settings = config.training.ranker
        network = PlainNetwork(config.ranker, dataset.features.layout)
        plain = PlainObjective(network, dataset, settings.valid_requests)
        plain_run = train(plain, dataset, settings, Path(folder) / "plain", name="plain DNN")
    begun = time.monotonic()
    grow_trees(TreesConfig(rounds=trees, patience=trees), dataset, progress=progress)
    grown = time.monotonic() - begun
    count = min(len(dataset.rows_of(dataset.requests("train"))), TreesConfig().max_rows)
    found: list[Row] = []
    for case, run, judged in (
        ("two-tower", stages.two_tower_run, False),
        ("ranker", stages.ranker_run, True),
        ("plain DNN", plain_run, True),
    ):
        found += _speed(case, run.rows, run.seconds)
        share = run.waited_s / run.seconds
        found.append({"case": case, "metric": "waited for batches", "value": share, "unit": "1"})
        if judged:
            found.append({"case": case, "metric": "valid AUC", "value": run.best, "unit": "1"})
    return found + _speed(f"LightGBM, {trees} trees a task", count, grown)


def _speed(case: str, rows: int, seconds: float) -> list[Row]:
    return [
        {"case": case, "metric": "rows", "value": rows, "unit": "rows"},
        {"case": case, "metric": "time", "value": seconds, "unit": "s"},
        {"case": case, "metric": "rate", "value": rows / seconds, "unit": "rows/s"},
    ]


class PlainNetwork(nn.Module):
    """All fields and numbers of an impression into one MLP."""

    def __init__(self, config: RankerConfig, layout: Layout) -> None:
        super().__init__()
        self.layout, dim, width = layout, config.embedding_dim, config.width
        self.user = FieldEncoder(layout.user_sizes, layout.user_dense, dim)
        self.request = FieldEncoder(layout.request_sizes, layout.request_dense, dim)
        self.ad = FieldEncoder(layout.ad_sizes, layout.ad_dense, dim)
        matches = sum(5 if impressions else 3 for impressions in layout.impressions)
        numbers = layout.counters + matches * len(layout.ad_sizes)
        self.scores = StandardScore(numbers)
        inputs = self.user.width + self.request.width + self.ad.width + numbers
        self.hidden = mlp((inputs, width, width, width), config.dropout)
        self.heads = TaskHeads(
            width,
            config.head_hidden,
            config.dropout,
            kinds=layout.task_kinds,
            means=layout.task_means,
            scales=layout.value_scales,
            positions=layout.positions,
        )

    def numbers(self, batch: Batch) -> Tensor:
        """What is known of user and ad together, [B, N, X]."""
        return known_together(histories_of(batch.query, self.layout.impressions), batch.candidates)

    def forward(self, batch: Batch) -> list[Tensor]:
        """Parameters of each task for each candidate, [B, N, 1 or 3]."""
        query, candidates = batch.query, batch.candidates
        known = torch.cat([self.user(query.user), self.request(query.request)], dim=-1)
        shape = candidates.mask_BN.shape
        parts = [known[:, None].expand(*shape, -1), self.ad(candidates.ads)]
        x = self.hidden(torch.cat([*parts, self.scores(self.numbers(batch))], dim=-1))
        outputs: list[Tensor] = self.heads(x, candidates.position_BN)
        return outputs


class PlainObjective:
    """The ranker's losses and its first metric, for the plain network."""

    def __init__(self, model: PlainNetwork, dataset: Dataset, valid_requests: int) -> None:
        self.model, self._dataset, self._valid_requests = model, dataset, valid_requests
        sample = dataset.requests("train")[:_SCALED_REQUESTS]
        numbers = [
            model.numbers(batch)[batch.candidates.mask_BN]
            for batch in dataset.in_order(sample, _VALID_ROWS)
        ]
        model.scores.fit(torch.cat(numbers))

    def groups(self, requests_R: Any) -> Any:
        """Any requests may share a batch."""
        return np.zeros(len(requests_R), np.int64)

    def loss(self, batch: Batch, rng: np.random.Generator) -> Tensor:
        """Weighted sum of the tasks' losses."""
        del rng
        layout, mask = self.model.layout, batch.candidates.mask_BN
        ones = [1.0] * len(layout.task_kinds)
        losses: Iterable[Tensor] = self.model.heads.losses(
            self.model(batch), batch.labels_BNK, ones
        )
        weighted = zip(layout.task_weights, losses, strict=True)
        return torch.stack([weight * loss[mask].mean() for weight, loss in weighted]).sum()

    def validate(self) -> Mapping[str, float]:
        """The first task's AUC."""
        requests = thin(self._dataset.requests("valid"), self._valid_requests)
        device = next(self.model.parameters()).device
        with evaluating(self.model):
            scores = [
                self.model(batch)[0][batch.candidates.mask_BN][:, 0].float().cpu().numpy()
                for batch in (
                    to_device(one, device) for one in self._dataset.in_order(requests, _VALID_ROWS)
                )
            ]
        labels = self._dataset.labels_NK[self._dataset.rows_of(requests), 0]
        return {"AUC": auc(np.concatenate(scores), labels)}


def _world(folder: Path, preset: str) -> Path:
    world = generate(PRESETS[preset], 0)
    write_world(world, folder, layout="generic", schema_yaml=synthetic_schema().dump())
    return folder


if __name__ == "__main__":
    main()
