"""A search's folder: whose it is, what it is of, and how to start afresh."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adrec import pipeline
from adrec.config import RunConfig
from adrec.errors import ConfigError
from adrec.stages import INCIDENTAL
from adrec.tuning.config import Judge, TuneConfig
from adrec.tuning.results import FILES
from adrec.tuning.space import Space


def discard(out: Path) -> None:
    """Remove what an earlier search left."""
    for name in ("tune.json", "study.db", *FILES):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "trials", ignore_errors=True)


def remember(out: Path, config: RunConfig, search: TuneConfig, space: Space, judge: Judge) -> None:
    """Write down all that a trial's value depends on, or find it as it was.

    Raises:
        ConfigError: the folder has a search of something else; it names what differs.
    """
    stages = ("two_tower", "ranker") if search.stage == "ranker" else ("two_tower",)
    training = {stage: getattr(config.training, stage) for stage in stages}
    parts: dict[str, Any] = {
        "stage": search.stage,
        "metric": judge.metric,
        "sampler": search.sampler,
        "seed": search.seed,
        **config.model_dump(mode="json", include={"data", "split", "features", *stages}),
        "training": {
            stage: one.model_dump(mode="json", exclude=INCIDENTAL)
            for stage, one in training.items()
        },
        "task weights": config.training.task_weights if search.stage == "ranker" else None,
        "space": {
            path: one.model_dump(mode="json", by_alias=True, exclude_none=True)
            for path, one in space.items()
        },
        "files of the log": pipeline.log_key(config),
    }
    path = out / "tune.json"
    if not path.exists():
        path.write_text(json.dumps(parts, indent=1))
        return
    before, now = _flat(json.loads(path.read_text())), _flat(parts)
    changed = [
        f"  {key}: was {before.get(key)}, is {now.get(key)}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]
    if len(changed) > 1:  # of which the log's key would be the least telling
        changed = [line for line in changed if not line.startswith("  files of the log")]
    if changed:
        raise ConfigError(
            f"{out} has trials of another search; take another --out, or start afresh with "
            "--no-resume. What differs:\n" + "\n".join(changed[:10])
        )


def _flat(content: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by path, as JSON gives them back."""
    found: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(content)).items():
        path = f"{before}{key}"
        found |= _flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return found
