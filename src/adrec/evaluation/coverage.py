"""How much of what the test period holds has training met: values of fields, users and ads.

A value without a code of its own shares one with others, and a code with few training rows has
learned little. Shapes: N impressions, V codes, U users, A ads, R requests.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from adrec.evaluation.columns import Side, Trained, request_of, sides
from adrec.evaluation.judged import Impressions
from adrec.features.dataset import Dataset

Ints = npt.NDArray[np.int64]

_PERCENTILES = (10, 50, 90)


def judge_coverage(dataset: Dataset, shown: Impressions) -> list[dict[str, Any]]:
    """What training knows of the test impressions' users, ads and categorical fields.

    Args:
        dataset: the prepared log.
        shown: what is judged.

    Returns:
        For each: `field` and `of` (user, request or ad); `values`, those with a code of their own
        (ids: those that training met); the shares `known`, `rare or new` and `missing` of the test
        impressions; and `training rows`, the 10th, 50th and 90th percentile over test impressions
        of how many training impressions had the same code.
    """
    trained, request_N = Trained.by(dataset), request_of(dataset, shown.rows_N)
    found = []
    if dataset.features.schema.user_id is not None:
        found.append(_of_ids("user", trained.of_user_U, dataset.user_R[request_N]))
    found.append(_of_ids("ad", trained.of_ad_A, dataset.ad_N[shown.rows_N]))
    train = dataset.rows_of(dataset.requests("train"))
    weights = {
        "user": _by_thing(trained.of_user_U, len(dataset.static)),
        "request": np.bincount(request_of(dataset, train), minlength=len(dataset)),
        "ad": trained.of_ad_A,
    }
    for side in sides(dataset, shown.rows_N):
        found += [
            _of_field(side, name, weights[side.name]) for name in side.group.categorical_names
        ]
    return found


def _by_thing(of_user_U: Ints, known: int) -> Ints:
    """Training impressions by row of the table of users; users outside of it are row 0."""
    rows = np.zeros(known, np.int64)
    inside = of_user_U[:known]
    rows[: len(inside)] = inside
    rows[0] += of_user_U[known:].sum()
    return rows


def _of_ids(name: str, rows_I: Ints, id_N: npt.NDArray[np.integer[Any]]) -> dict[str, Any]:
    known_N = (rows_I[id_N] > 0) & (id_N != 0)
    missing_N = id_N == 0
    return {
        "field": f"{name} id",
        "of": name,
        "values": int((rows_I[1:] > 0).sum()),
        **_shares(known_N, missing_N),
        "training rows": _percentiles(np.where(missing_N, 0, rows_I[id_N])),
    }


def _of_field(side: Side, name: str, weight_T: Ints) -> dict[str, Any]:
    """One categorical field; `weight_T` are the training impressions of each of its things."""
    vocabulary = side.group.vocabulary(name)
    place = side.group.categorical_names.index(name)
    code_N = side.codes(name)
    rows_V = np.bincount(
        side.encoded.categorical[:, place], weight_T, minlength=vocabulary.size
    ).astype(np.int64)
    return {
        "field": name,
        "of": side.name,
        "values": len(vocabulary.values),
        **_shares(code_N > vocabulary.buckets, code_N == 0),
        "training rows": _percentiles(rows_V[code_N]),
    }


def _shares(known_N: npt.NDArray[np.bool_], missing_N: npt.NDArray[np.bool_]) -> dict[str, float]:
    return {
        "known": float(known_N.mean()),
        "rare or new": float((~known_N & ~missing_N).mean()),
        "missing": float(missing_N.mean()),
    }


def _percentiles(rows_N: Ints) -> dict[str, int]:
    values = np.percentile(rows_N, _PERCENTILES, method="inverted_cdf")
    return {f"p{p}": int(value) for p, value in zip(_PERCENTILES, values, strict=True)}
