"""Cross-validation: the whole pipeline several times over, for how far its numbers can be trusted.

    rolling   a rolling origin (Tashman 2000): each fold ends earlier and knows nothing later. Do
              the numbers hold from one period to the next?
    kfold     folds of users: each fold's are left out of training. Do they hold for users that the
              models have never trained on?

Each fold is a run in a folder of its own. What it found is kept beside it as `result.json`, so the
same command goes on where it was stopped.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from adrec.bundle import FORMAT
from adrec.config import RunConfig
from adrec.data.splits import rolling_splits
from adrec.errors import ConfigError
from adrec.evaluation.folds import FoldRow, fold_rows
from adrec.features.dataset import Dataset, SplitName
from adrec.keys import files_of, key_of
from adrec.pipeline import evaluate_run, open_log, prepare_log, run_on
from adrec.progress import Progress
from adrec.stages import INCIDENTAL

Method = Literal["rolling", "kfold"]
FOLDS: Mapping[Method, int] = {"rolling": 3, "kfold": 5}
"""How many there are if nobody says."""

_HASH_SEED = 1  # folds have nothing to do with the hashed buckets of values


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One run of several."""

    name: str
    about: str
    config: RunConfig
    view: Dataset | None = None
    """Of a log that is prepared once for all folds; None: each prepares its own."""


def crossvalidate(
    config: RunConfig,
    out: Path,
    *,
    method: Method = "rolling",
    folds: int | None = None,
    rivals: bool = False,
    progress: Progress | None = None,
    resume: bool = True,
) -> list[FoldRow]:
    """Run and judge every fold that is not judged yet.

    Args:
        config: of each run; its split is that of the newest rolling fold, and that of all folds of
            users. Bootstrap intervals are left out, as the folds make their own, and so is the
            importance of features.
        out: folder of the folds' runs, `fold-1` and so on.
        method: rolling origin, or folds of users.
        folds: how many, at least 2; None: 3 rolling ones, 5 of users.
        rivals: whether each fold trains the rivals, too.
        progress: where to show how far it is.
        resume: take up what an earlier run left; else start afresh.

    Returns:
        Each metric's mean, spread and interval, and each fold's value.

    Raises:
        ConfigError: fewer than two folds, or a log that is too small for so many.
    """
    progress = progress or Progress()
    count = FOLDS[method] if folds is None else folds
    if count < 2:
        raise ConfigError(
            f"folds is {count}; one alone has nothing to vary from, so take 2 or more"
        )
    changes = {"rivals": rivals, "replicates": 0, "importance_rows": 0}
    evaluation = config.evaluation.model_copy(update=changes)
    config = config.model_copy(update={"evaluation": evaluation})
    if method == "rolling":
        chosen = rolling_folds(config, count)
    else:
        dataset = prepare_log(config, out, progress=progress, resume=resume)
        chosen = user_folds(config, dataset, count)
    results = [
        _judge(fold, out / f"fold-{number}", progress, resume=resume)
        for number, fold in enumerate(chosen, start=1)
    ]
    return fold_rows(results)


def rolling_folds(config: RunConfig, count: int) -> list[Fold]:
    """Folds by time, oldest first; see `rolling_splits`.

    Each prepares its log only up to its end: vocabularies, scales, histories, counters and, where
    the log has no table of ads, the catalogue come from its own past.
    """
    splits = rolling_splits(open_log(config.data), config.split, count)
    return [
        Fold(
            name=f"fold {number} of {count}",
            about=f"chosen by {_span(split.valid_from, split.test_from)}, tested on "
            f"{_span(split.test_from, split.test_to)}",
            config=config.model_copy(update={"split": split}),
        )
        for number, split in enumerate(splits, start=1)
    ]


def user_folds(config: RunConfig, dataset: Dataset, count: int) -> list[Fold]:
    """Folds by user; by request where the log has no users.

    A fold is trained on the others' requests of the training period, chosen and calibrated by the
    others' of the validation period, and judged on its own users' of the test period. Their
    earlier requests are not judged: ads change, and a model that has trained on the others until
    later would know what became of them. So neither user nor time is known, and together the folds
    judge each test request once.

    Features are the whole log's. Histories and counters, also those of a user left out, are
    strictly past, as in a running system; vocabularies, scales and mean outcomes come from all
    users' training period.

    Raises:
        ConfigError: a fold without a request in one of the periods.
    """
    fold_R = fold_of_requests(dataset, count)
    found = []
    for number in range(1, count + 1):
        name = f"fold {number} of {count}"
        view = dataset.holding_out(fold_R == number, f"{name} by user")
        _require_requests(view, name)
        users, requests = len(view.held_users), len(view.requests("test"))
        about = f"{requests:,} requests tested, {users:,} users left out"
        found.append(Fold(name=name, about=about, config=config, view=view))
    return found


def fold_of_requests(dataset: Dataset, count: int) -> NDArray[np.int64]:
    """Fold of each request, [R] from 1: by a hash of its user's id, so it stays with a user from
    run to run and from log to log; without users, of its place in the log.

    Raises:
        ConfigError: there are fewer users than folds.
    """
    if dataset.features.schema.user_id is None:
        names, of_R = [str(place) for place in range(len(dataset))], np.arange(len(dataset))
    else:
        users, of_R = np.unique(dataset.user_R, return_inverse=True)
        directory = dataset.state("end").users
        names = [directory.id(user) for user in users.tolist()]
    if len(names) < count:
        raise ConfigError(
            f"{count} folds of users: the log has {len(names)}; take fewer folds, or rolling ones"
        )
    hashes = (
        xxhash.xxh64_intdigest(name.encode(errors="surrogatepass"), _HASH_SEED) for name in names
    )
    fold_U = np.fromiter((1 + digest % count for digest in hashes), np.int64, len(names))
    return fold_U[of_R]


def _require_requests(view: Dataset, name: str) -> None:
    periods: tuple[tuple[SplitName, str], ...] = (
        ("train", "to train on"),
        ("valid", "to choose by"),
        ("test", "to be judged on"),
    )
    for period, purpose in periods:
        if not len(view.requests(period)):
            raise ConfigError(
                f"{name}, by user, has no request {purpose}: too few users have one in the "
                f"{period} period; take fewer folds or longer periods"
            )


def _judge(fold: Fold, folder: Path, progress: Progress, *, resume: bool) -> dict[str, Any]:
    """What `evaluate` found of a fold, from its folder if it is there."""
    stages = dict.fromkeys(("two_tower", "ranker"), INCIDENTAL)
    settings = fold.config.model_dump_json(exclude={"training": stages})
    data = fold.config.data
    view = fold.view.fold if fold.view is not None else ""
    key = key_of(FORMAT, settings, view, *(files_of(p) for p in (data.path, data.schema_file)))
    file = folder / "result.json"
    if resume and (known := _known(file, key)) is not None:
        progress.say(f"{fold.name}: judged already")
        return known
    file.unlink(missing_ok=True)
    progress.say(f"{fold.name}: {fold.about}")
    dataset = fold.view
    if dataset is None:
        dataset = prepare_log(fold.config, folder, progress=progress, resume=resume)
    run_on(fold.config, dataset, folder, progress=progress, resume=resume)
    _, _, result = evaluate_run(fold.config, folder, progress=progress, dataset=dataset)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({"key": key, "result": result}, indent=1))
    unfinished.replace(file)
    return result


def _known(file: Path, key: str) -> dict[str, Any] | None:
    """A result that was found with the same settings."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    result: dict[str, Any] | None = found.get("result") if found.get("key") == key else None
    return result


def _span(start: datetime | None, end: datetime | None) -> str:
    return " to ".join(t.isoformat(" ", "minutes")[:16] for t in (start, end) if t is not None)
