"""Offline evaluation: a bundle's recommender on the test period, beside its rivals.

Three questions, each with every model in the same table: how well are impressions scored (per
task), how well are slates ordered (within a request), and how many of the ads that users go on to
click are found (retrieval, and the whole pipeline). The result is plain JSON; `report` draws it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adrec import metrics
from adrec.errors import ConfigError
from adrec.evaluation.baselines import RankingRival
from adrec.evaluation.bootstrap import bootstrap, paired_bootstrap
from adrec.evaluation.latency import stage_latency
from adrec.evaluation.retrieval_baselines import Queries, RetrievalRival, queries
from adrec.features.dataset import Dataset
from adrec.features.state import Visitor
from adrec.features.transforms import FieldGroup
from adrec.metrics import Grouped
from adrec.progress import Progress
from adrec.recommender import Recommender, Request
from adrec.schema import Strict

OURS = "adrec"

Scores = NDArray[np.float64]

_QUERY_BATCH = 256
_RANK_BATCH = 8
_LATENCY_REQUESTS = 100


class EvaluationConfig(Strict):
    """How much is evaluated, and how."""

    replicates: int = Field(default=200, ge=0)
    """Bootstrap replicates of each interval, clustered by user (by request without users); 0: no
    intervals."""
    k: int = Field(default=10, ge=1)
    """Depth of NDCG and MAP."""
    recall_at: tuple[int, ...] = (10, 50, 100, 500)
    """Depths of recall."""
    queries: int = Field(default=2000, ge=1)
    """Users (requests without users) whose clicked ads retrieval must find, evenly spread."""
    pipeline_queries: int = Field(default=200, ge=0)
    """Queries of those for which the ranker also orders the candidates."""
    slices: tuple[str, ...] = ()
    """Categorical fields, or `new user`, `new ad`, `position`, by whose values to look closer."""
    slice_values: int = Field(default=20, ge=1)
    """Most frequent values of each that are shown."""
    rivals: bool = True
    """Whether popularity, an item-to-item model and LightGBM (if installed) are trained too."""
    seed: int = Field(default=0, ge=0)
    """Of the bootstrap."""


@dataclass(frozen=True)
class Impressions:
    """The test period's impressions: rows of the dataset, labels, and what they are grouped by."""

    rows_N: NDArray[np.int64]
    labels_NK: Scores
    unit_N: NDArray[np.int64]
    """User, or request where there are no users: what the bootstrap draws."""
    group_N: NDArray[np.int64]
    """Request where the log has requests, else user and day: what is ranked together."""
    grouped_by: str


def evaluate(
    recommender: Recommender,
    dataset: Dataset,
    config: EvaluationConfig,
    *,
    ranking_rivals: Sequence[RankingRival] = (),
    retrieval_rivals: Sequence[RetrievalRival] = (),
    references: Mapping[str, Scores] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge a recommender on the test period.

    Args:
        recommender: with any state; retrieval is replayed from the state at the test's start.
        dataset: the prepared log.
        config: how much.
        ranking_rivals: trained here, on the training period.
        retrieval_rivals: likewise.
        references: scores of every impression of the log, [N, K], by name: known truths.
        progress: where to show how far it is.

    Returns:
        JSON-ready: `test`, `tasks`, `ranking`, `retrieval`, `slices`, `curves`, `stage_ms`.
    """
    progress = progress or Progress()
    shown = judged_impressions(dataset)
    progress.say(f"evaluating {len(shown.rows_N):,} impressions of the test period")
    scores = {OURS: recommender.score_log(dataset, dataset.requests("test"))}
    for rival in ranking_rivals:
        progress.say(f"fitting {rival.name}")
        rival.fit(dataset)
        scores[rival.name] = rival.score(dataset, shown.rows_N)
    for name, reference in (references or {}).items():
        scores[name] = reference[shown.rows_N]
    asked = queries(dataset, config.queries)
    retrieval = _retrieval(recommender, dataset, asked, config, retrieval_rivals, progress)
    result: dict[str, Any] = _plain(
        {
            "version": recommender.version,
            "test": _about(dataset, shown),
            "tasks": [_task(dataset, shown, scores, k, config) for k in range(_tasks(dataset))],
            "ranking": _ranking(dataset, shown, scores, config),
            "retrieval": retrieval,
            "slices": [
                entry
                for column in config.slices
                for entry in _slice(dataset, shown, scores[OURS], column, config)
            ],
            "curves": _curves(dataset, shown, scores),
            "stage_ms": _latency(recommender, dataset, asked),
        }
    )
    return result


def compare(
    first: Recommender, second: Recommender, dataset: Dataset, config: EvaluationConfig
) -> dict[str, Any]:
    """Two bundles on the same impressions: first less second, paired bootstrap by user."""
    shown = judged_impressions(dataset)
    test = dataset.requests("test")
    scores = {"first": first.score_log(dataset, test), "second": second.score_log(dataset, test)}
    replicates = max(config.replicates, 200)
    found = {}
    for k, task in enumerate(dataset.features.schema.tasks):
        found[task.name] = {
            name: asdict(
                paired_bootstrap(
                    metric,
                    (scores["first"][:, k], shown.labels_NK[:, k]),
                    (scores["second"][:, k], shown.labels_NK[:, k]),
                    shown.unit_N,
                    replicates,
                    np.random.default_rng(config.seed),
                )
            )
            for name, metric in _compared(task.kind).items()
        }
    plain: dict[str, Any] = _plain(
        {"first": first.version, "second": second.version, "differences": found}
    )
    return plain


def judged_impressions(dataset: Dataset) -> Impressions:
    """The impressions that everything is judged on."""
    test = dataset.requests("test")
    rows = dataset.rows_of(test)
    request_N = np.searchsorted(dataset.offset_R, rows, side="right") - 1
    user_N = dataset.user_R[request_N]
    schema = dataset.features.schema
    group_N, grouped_by = request_N, "request"
    if schema.request_id is None and schema.user_id is not None:
        day_N = dataset.time_ms_R[request_N] // 86_400_000
        group_N, grouped_by = (user_N << 20) + day_N, "user and day"
    return Impressions(
        rows_N=rows,
        labels_NK=dataset.labels_NK[rows].astype(np.float64),
        unit_N=request_N if schema.user_id is None else user_N,
        group_N=group_N,
        grouped_by=grouped_by,
    )


def _tasks(dataset: Dataset) -> int:
    return len(dataset.features.schema.tasks)


def _about(dataset: Dataset, shown: Impressions) -> dict[str, Any]:
    test = dataset.requests("test")
    return {
        "impressions": len(shown.rows_N),
        "requests": len(test),
        "from_ms": int(dataset.time_ms_R[test[0]]),
        "to_ms": int(dataset.time_ms_R[test[-1]]),
        "train_impressions": dataset.features.train_rows,
        "catalogue": len(dataset.catalogue) - 1,
    }


def _task(
    dataset: Dataset,
    shown: Impressions,
    scores: Mapping[str, Scores],
    k: int,
    config: EvaluationConfig,
) -> dict[str, Any]:
    """Every metric of one task for every model, and ours less each rival."""
    task = dataset.features.schema.tasks[k]
    labels = shown.labels_NK[:, k]
    models = {}
    for model, predicted in scores.items():
        found = _task_metrics(task.kind, predicted[:, k], labels, shown.group_N)
        found |= _intervals(task.kind, predicted[:, k], labels, shown.unit_N, config)
        models[model] = found
    differences = {
        model: {
            name: asdict(
                paired_bootstrap(
                    metric,
                    (scores[OURS][:, k], labels),
                    (predicted[:, k], labels),
                    shown.unit_N,
                    config.replicates,
                    np.random.default_rng(config.seed),
                )
            )
            for name, metric in _compared(task.kind).items()
        }
        for model, predicted in scores.items()
        if model != OURS and config.replicates
    }
    mean = float(labels.mean())
    return {
        "name": task.name,
        "kind": task.kind,
        "mean": mean,
        "models": models,
        "differences": differences,
    }


Metric = Callable[[Scores, Scores], float]


def _compared(kind: str) -> dict[str, Metric]:
    """The metrics with intervals."""
    if kind == "binary":
        return {"AUC": metrics.auc, "log loss": metrics.log_loss}
    return {"AUC": metrics.value_auc, "Spearman": metrics.spearman}


def _task_metrics(
    kind: str, predicted: Scores, labels: Scores, groups: NDArray[np.int64]
) -> dict[str, Any]:
    if kind == "value":
        return {
            "AUC": {"estimate": metrics.value_auc(predicted, labels)},
            "Spearman": {"estimate": metrics.spearman(predicted, labels)},
            "normalised Gini": {"estimate": metrics.normalised_gini(predicted, labels)},
            "RMSE": {"estimate": metrics.rmse(predicted, labels)},
            "mean predicted / actual": {"estimate": metrics.bias(predicted, labels)},
        }
    clipped = np.clip(predicted, 1e-7, 1 - 1e-7)
    grouped = metrics.gauc(predicted, labels, groups)
    return {
        "AUC": {"estimate": metrics.auc(predicted, labels)},
        "GAUC": {"estimate": grouped.value, "groups": grouped.groups, "rows": grouped.rows},
        "log loss": {"estimate": metrics.log_loss(clipped, labels)},
        "normalised entropy": {"estimate": metrics.normalised_entropy(clipped, labels)},
        "calibration error": {"estimate": metrics.calibration_error(clipped, labels)},
        "mean predicted / actual": {"estimate": metrics.bias(clipped, labels)},
        "PR-AUC": {"estimate": metrics.pr_auc(predicted, labels)},
    }


def _intervals(
    kind: str,
    predicted: Scores,
    labels: Scores,
    units: NDArray[np.int64],
    config: EvaluationConfig,
) -> dict[str, Any]:
    if not config.replicates:
        return {}
    return {
        name: asdict(
            bootstrap(
                metric,
                (predicted, labels),
                units,
                config.replicates,
                np.random.default_rng(config.seed),
            )
        )
        for name, metric in _compared(kind).items()
    }


def _ranking(
    dataset: Dataset, shown: Impressions, scores: Mapping[str, Scores], config: EvaluationConfig
) -> dict[str, Any]:
    """NDCG, MAP and MRR of the first task within each group."""
    labels = shown.labels_NK[:, 0]
    k = config.k
    measures: dict[str, Callable[[Scores, Scores, NDArray[np.int64], int], Grouped]] = {
        f"NDCG@{k}": metrics.ndcg_at_k,
        f"MAP@{k}": metrics.map_at_k,
        "MRR": metrics.mrr,
    }
    models: dict[str, dict[str, Any]] = {}
    groups = rows = 0
    for model, predicted in scores.items():
        models[model] = {}
        for name, measure in measures.items():
            depth = k if name != "MRR" else int(dataset.slate_R.max()) + len(labels)
            found = measure(predicted[:, 0], labels, shown.group_N, depth)
            models[model][name] = {"estimate": found.value}
            groups, rows = found.groups, found.rows
    return {
        "task": dataset.features.schema.click.name,
        "grouped_by": shown.grouped_by,
        "groups": groups,
        "rows": rows,
        "models": models,
    }


def _retrieval(
    recommender: Recommender,
    dataset: Dataset,
    asked: Queries,
    config: EvaluationConfig,
    rivals: Sequence[RetrievalRival],
    progress: Progress,
) -> dict[str, Any]:
    """Recall of clicked ads: by exact search, by the index, by rivals, and after the ranker."""
    if not len(asked.requests_Q):
        return {"queries": 0, "models": {}}
    progress.say(f"retrieval: {len(asked.requests_Q):,} queries")
    depths = [k for k in config.recall_at if k < len(dataset.catalogue)]
    if not depths:
        raise ConfigError("evaluation.recall_at: every depth is beyond the catalogue's size")
    deepest = max(depths)
    found = {
        f"{OURS}, exact search": _retrieve(recommender, dataset, asked, deepest, exact=True),
        f"{OURS}, {recommender.index.kind} index": _retrieve(
            recommender, dataset, asked, deepest, exact=False
        ),
    }
    for rival in rivals:
        progress.say(f"fitting {rival.name}")
        rival.fit(dataset)
        found[rival.name] = rival.rank(asked.seen, deepest)
    models = {name: _recalls(ads, asked, depths) for name, ads in found.items()}
    few = np.linspace(
        0, len(asked.requests_Q) - 1, min(config.pipeline_queries, len(asked.requests_Q))
    ).astype(np.int64)
    pipeline = {}
    if len(few):
        progress.say(f"pipeline: the ranker orders the candidates of {len(few):,} queries")
        part = Queries(
            requests_Q=asked.requests_Q[few],
            seen=asked.seen.take(few),
            targets=asked.targets.take(few),
        )
        for name in list(found)[:2]:
            replayed = recommender.with_state(dataset.state("test"))  # each pass starts afresh
            ranked = _rerank(replayed, dataset, part, found[name][few])
            pipeline[f"{name} + ranker"] = _recalls(ranked, part, depths)
    return {
        "queries": len(asked.requests_Q),
        "targets": len(asked.targets.ads),
        "catalogue": len(dataset.catalogue) - 1,
        "models": models,
        "pipeline_queries": len(few),
        "pipeline": pipeline,
    }


def _recalls(ads_QK: NDArray[np.int64], asked: Queries, depths: Sequence[int]) -> dict[str, Any]:
    recalls = metrics.recall_at_k(ads_QK, (asked.targets.offsets, asked.targets.ads), depths)
    return {f"recall@{k}": {"estimate": recall} for k, recall in recalls.items()}


def _retrieve(
    recommender: Recommender, dataset: Dataset, asked: Queries, count: int, *, exact: bool
) -> NDArray[np.int64]:
    """Nearest unseen ads of each query, [Q, count], -1 where there are fewer."""
    found = []
    for part in np.array_split(
        np.arange(len(asked.requests_Q)), max(1, len(asked.requests_Q) // _QUERY_BATCH)
    ):
        query = dataset.query(asked.requests_Q[part])
        seen = [_list(asked, int(q)) for q in part]
        found.append(recommender.retrieve(query, count, seen, exact=exact))
    ads = np.concatenate(found)
    return np.where(ads == 0, -1, ads)


def _list(asked: Queries, q: int) -> NDArray[np.int64]:
    return asked.seen.ads[asked.seen.offsets[q] : asked.seen.offsets[q + 1]]


def _rerank(
    replayed: Recommender, dataset: Dataset, asked: Queries, ads_QK: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The same ads in the ranker's order of click probability."""
    found = []
    for part in np.array_split(
        np.arange(len(asked.requests_Q)), max(1, len(asked.requests_Q) // _RANK_BATCH)
    ):
        requests = asked.requests_Q[part]
        visitors = [logged_visitor(dataset, int(request)) for request in requests]
        scored = replayed.rank(visitors, dataset.query(requests), np.maximum(ads_QK[part], 0))
        click = np.where(scored.ads_BN > 0, scored.scores_BNK[..., 0], -np.inf)
        order = np.argsort(-click, axis=1, kind="stable")
        found.append(np.take_along_axis(ads_QK[part], order, axis=1))
    return np.concatenate(found)


def logged_visitor(dataset: Dataset, request: int) -> Visitor:
    """Who asked in a request of the log."""
    user = int(dataset.user_R[request])
    known = user if user < len(dataset.static) else 0
    return Visitor(
        user=user,
        at_ms=int(dataset.time_ms_R[request]),
        static=dataset.static.take(np.array([known])),
        request=dataset.request.take(np.array([request])),
    )


def _slice(
    dataset: Dataset, shown: Impressions, ours: Scores, column: str, config: EvaluationConfig
) -> list[dict[str, Any]]:
    """Our metrics of the first task for each frequent value of a column."""
    codes_N, texts = _column(dataset, shown, column)
    values, counts = np.unique(codes_N, return_counts=True)
    found = []
    for value in values[np.argsort(-counts, kind="stable")][: config.slice_values]:
        mine = codes_N == value
        predicted, labels = ours[mine, 0], shown.labels_NK[mine, 0]
        found.append(
            {
                "column": column,
                "value": texts(int(value)),
                "rows": int(mine.sum()),
                "mean": float(labels.mean()),
                "mean predicted": float(predicted.mean()),
                "AUC": metrics.auc(predicted, labels),
                "log loss": metrics.log_loss(predicted, labels),
            }
        )
    return found


def _column(
    dataset: Dataset, shown: Impressions, column: str
) -> tuple[NDArray[np.integer[Any]], Callable[[int], str]]:
    """Codes of a column for each impression, and how a code reads."""
    rows, features = shown.rows_N, dataset.features
    request_N = np.searchsorted(dataset.offset_R, rows, side="right") - 1
    if column == "position":
        return dataset.position_N[rows], str
    if column in ("new user", "new ad"):
        train = dataset.requests("train")
        known = (
            dataset.user_R[train] if column == "new user" else dataset.ad_N[dataset.rows_of(train)]
        )
        these = dataset.user_R[request_N] if column == "new user" else dataset.ad_N[rows]
        return (~np.isin(these, np.unique(known))).astype(np.int64), lambda new: str(bool(new))
    user_N = dataset.user_R[request_N]
    static_N = np.where(user_N < len(dataset.static), user_N, 0)
    places: list[tuple[FieldGroup, NDArray[np.int32], NDArray[np.integer[Any]]]] = [
        (features.user, dataset.static.categorical, static_N),
        (features.request, dataset.request.categorical, request_N),
        (features.ad, dataset.catalogue.encoded.categorical, dataset.ad_N[rows]),
    ]
    for group, codes, of_row in places:
        if column in group.categorical_names:
            place = group.categorical_names.index(column)
            return codes[of_row, place], group.vocabulary(column).text
    names = [name for group, _, _ in places for name in group.categorical_names]
    raise ConfigError(
        f"slice '{column}' is not a categorical field; choose from new user, new ad, position, "
        + ", ".join(names)
    )


def _curves(dataset: Dataset, shown: Impressions, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """ROC of every model and our reliability, for each binary task."""
    roc: dict[str, Any] = {}
    reliability: dict[str, Any] = {}
    for k, task in enumerate(dataset.features.schema.tasks):
        if task.kind != "binary":
            continue
        labels = shown.labels_NK[:, k]
        roc[task.name] = {}
        for model, predicted in scores.items():
            false, true = metrics.roc_curve_points(predicted[:, k], labels)
            roc[task.name][model] = {"false_positive_rate": false, "true_positive_rate": true}
        bins = metrics.reliability(np.clip(scores[OURS][:, k], 1e-7, 1 - 1e-7), labels)
        reliability[task.name] = {
            "predicted": bins.prediction,
            "actual": bins.label,
            "rows": bins.count,
        }
    return {"roc": roc, "reliability": reliability}


def _latency(recommender: Recommender, dataset: Dataset, asked: Queries) -> dict[str, Any]:
    """Milliseconds of each stage of single requests of the users that were asked for."""
    users = dataset.user_R[asked.requests_Q[:_LATENCY_REQUESTS]].tolist() or [0]
    known = recommender.state.users
    requests = [Request(user=known.id(user) if 0 < user < len(known) else None) for user in users]
    stages: dict[str, Any] = stage_latency(recommender, requests, k=10)["stages"]
    return stages


def _plain(value: Any) -> Any:
    """JSON-ready: arrays to lists, NaN to null."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return round(value, 6) if np.isfinite(value) else None
    return value
