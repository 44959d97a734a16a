"""How well are those served whom training never met: new users, new ads, and both known apart.

Shapes: N impressions, K tasks, Q queries, k depth.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from adrec import metrics
from adrec.evaluation.columns import Trained, request_of
from adrec.evaluation.judged import Impressions, Scores
from adrec.evaluation.retrieval_queries import Queries
from adrec.features.dataset import Dataset

Ints = npt.NDArray[np.int64]

NEW_USERS, NEW_ADS, BOTH_KNOWN = "new users", "new ads", "both known"


def judge_cold_start(
    dataset: Dataset, shown: Impressions, scores: Mapping[str, Scores]
) -> list[dict[str, Any]]:
    """AUC and log loss of binary tasks, by whether training met the user and the ad.

    An impression of a new user with a new ad is in both groups.

    Args:
        dataset: the prepared log; what is new is new to its training period.
        shown: what is judged.
        scores: of every model, [N, K].

    Returns:
        For each task and group: `task`, `group`, `rows`, and `models` by name and metric; empty
        where the group has no row.
    """
    trained = Trained.by(dataset)
    new_user_N = trained.new_users(dataset.user_R[request_of(dataset, shown.rows_N)])
    new_ad_N = trained.new_ads(dataset.ad_N[shown.rows_N])
    groups = {NEW_USERS: new_user_N, NEW_ADS: new_ad_N, BOTH_KNOWN: ~(new_user_N | new_ad_N)}
    return [
        {
            "task": task.name,
            "group": group,
            "rows": int(mine_N.sum()),
            "models": {
                model: _both_metrics(predicted[mine_N, k], shown.labels_NK[mine_N, k])
                for model, predicted in scores.items()
                if mine_N.any()
            },
        }
        for k, task in enumerate(dataset.features.schema.tasks)
        if task.kind == "binary"
        for group, mine_N in groups.items()
    ]


def _both_metrics(predicted: Scores, labels: Scores) -> dict[str, dict[str, float]]:
    clipped = np.clip(predicted, 1e-7, 1 - 1e-7)
    return {
        "AUC": {"estimate": metrics.auc(predicted, labels)},
        "log loss": {"estimate": metrics.log_loss(clipped, labels)},
    }


def cold_retrieval(
    dataset: Dataset, asked: Queries, found: Mapping[str, Ints], depths: Sequence[int]
) -> dict[str, Any]:
    """Recall of the queries of new users, and of the targets that are new ads.

    Of new ads, all are counted together: Σ_q |first k of q ∩ new targets of q| over Σ_q |new
    targets of q|.

    Args:
        dataset: the prepared log.
        asked: the queries.
        found: by model, the ads it found for each query, [Q, k], best first.
        depths: of recall.

    Returns:
        `new users` with `queries`, `new ads` with `targets`, and `models` in each; empty where
        there is none.
    """
    trained, targets = Trained.by(dataset), asked.targets
    new_Q = np.flatnonzero(trained.new_users(dataset.user_R[asked.requests_Q]))
    own = targets.take(new_Q)
    cold = trained.new_ads(targets.ads)
    query_M = np.repeat(np.arange(len(asked.requests_Q)), np.diff(targets.offsets))
    return {
        NEW_USERS: {
            "queries": len(new_Q),
            "models": {
                model: {
                    f"recall@{k}": {"estimate": recall}
                    for k, recall in metrics.recall_at_k(
                        ads_QK[new_Q], (own.offsets, own.ads), depths
                    ).items()
                }
                for model, ads_QK in found.items()
                if len(new_Q)
            },
        },
        NEW_ADS: {
            "targets": int(cold.sum()),
            "models": {
                model: {
                    f"recall@{k}": {"estimate": float(hit_M.mean())}
                    for k in depths
                    for hit_M in [
                        (ads_QK[query_M[cold], :k] == targets.ads[cold][:, None]).any(axis=1)
                    ]
                }
                for model, ads_QK in found.items()
                if cold.any()
            },
        },
    }
