"""Folds as one: mean, spread and interval by hand, and what is printed of them."""

import io
from typing import Any

import pytest
from rich.console import Console

from adrec.evaluation.folds import FoldRow, fold_rows, fold_tables


def result(auc: float | None, recall: float, **more: float) -> dict[str, Any]:
    """What `evaluate` returns, as far as it is read."""
    models = {"adrec": {"AUC": {"estimate": auc}, "RMSE": {"estimate": 3.0}}}
    models |= {name: {"AUC": {"estimate": value}} for name, value in more.items()}
    return {
        "tasks": [{"name": "click", "models": models}],
        "ranking": {"models": {"adrec": {"NDCG@3": {"estimate": 0.5}}}},
        "retrieval": {
            "models": {"adrec, exact search": {"recall@9": {"estimate": recall}}},
            "pipeline": {"adrec, exact search + ranker": {"recall@9": {"estimate": recall}}},
        },
    }


def only(rows: list[FoldRow], **wanted: str) -> FoldRow:
    (row,) = [r for r in rows if all(getattr(r, key) == value for key, value in wanted.items())]
    return row


def test_mean_and_interval_by_hand() -> None:
    """Of .6, .7 and .8: mean .7, deviation .1; t(.975; 2) = 4.30265, and 4.30265 x .1 / sqrt 3."""
    rows = fold_rows([result(0.6, 0.1), result(0.7, 0.1), result(0.8, 0.1)])
    auc = only(rows, part="click", metric="AUC")
    assert auc.folds == (0.6, 0.7, 0.8)
    assert (auc.mean, auc.std) == (pytest.approx(0.7), pytest.approx(0.1))
    half = 4.302653 * 0.1 / 3**0.5
    assert (auc.low, auc.high) == (pytest.approx(0.7 - half), pytest.approx(0.7 + half))
    same = only(rows, part="retrieval", model="adrec, exact search")
    assert (same.mean, same.std) == (pytest.approx(0.1), pytest.approx(0.0))
    assert [row.part for row in rows] == ["click", "click", "ranking", "retrieval", "retrieval"]


@pytest.mark.parametrize(
    ("values", "mean", "std"),
    [((0.5, None, 0.7), 0.6, 0.1 * 2**0.5), ((None, 0.4), 0.4, None), ((None, None), None, None)],
)
def test_what_is_undefined_is_left_out(
    values: tuple[float | None, ...], mean: float | None, std: float | None
) -> None:
    row = only(fold_rows([result(v, 0.1) for v in values]), part="click", metric="AUC")
    assert row.folds == values
    assert row.mean == (None if mean is None else pytest.approx(mean))
    assert row.std == (None if std is None else pytest.approx(std))
    assert (row.low is None) == (row.high is None) == (std is None)


def test_a_fold_without_queries_or_a_rival_has_no_value_there() -> None:
    without = result(0.6, 0.1) | {"retrieval": {"queries": 0, "models": {}}}
    rows = fold_rows([without, result(0.7, 0.3, popularity=0.55)])
    assert only(rows, model="adrec, exact search").folds == (None, 0.3)
    assert only(rows, model="popularity").folds == (None, 0.55)


def test_tables_have_a_line_for_each_metric_and_fit_a_terminal() -> None:
    rows = fold_rows([result(0.6, 0.1, popularity=0.5), result(0.7, 0.2, popularity=0.5)])
    console = Console(file=io.StringIO(), width=80)
    for table in fold_tables(rows):
        console.print(table)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [line.split() for line in printed.splitlines()]
    assert ["AUC", "0.6500", "0.0707", "0.6353", "0.6000", "0.7000"] in lines
    assert ["popularity"] in lines
    assert ["NDCG@3", "0.5000", "0.0000", "0.0000", "0.5000", "0.5000"] in lines
    assert "RMSE" not in printed
    assert printed.count("recall@9") == 2
