"""The tables behind the metrics, from a diagnosis that is written by hand."""

import pytest

from adrec.evaluation import sheets
from adrec.evaluation.diagnosis_plots import importance_plot, over_time_plot
from evaluation.written_diagnosis import diagnosis, nothing_to_diagnose

RESULT = diagnosis() | {
    "ranking": {"task": "click"},
    "retrieval": {"cold": diagnosis()["cold"]},
}


def test_every_row_has_every_column() -> None:
    parts = (sheets.over_time, sheets.largest_slices, sheets.worst_slices, sheets.importance)
    for part in (*parts, sheets.cold_start, sheets.cold_retrieval, sheets.coverage):
        found = part(RESULT)
        assert found
        for sheet in found:
            assert sheet.rows
            assert {len(row) for row in sheet.rows} == {len(sheet.columns)}
            assert "None" not in str(sheet.rows)


def test_numbers_in_print() -> None:
    # .061 / .0512 = 1.191
    assert sheets.over_time(RESULT)[0].rows[0] == (
        "2026-03-01 00:00", "20,400", "0.0512", "0.0610", "1.191", "0.7301"
    )  # fmt: skip
    assert sheets.worst_slices(RESULT)[0].rows[0] == (
        "country", "<b>X", "1,204", "0.0500", "0.0600", "1.200", "0.5523", "0.0213", "0.0187"
    )  # fmt: skip
    assert sheets.importance(RESULT)[0].rows == [
        ("history", "history", "+0.0812", "+0.0611 to +0.1022", "+0.0123"),
        ("price", "ad field", "−0.0004", "–", "−0.0001"),
    ]
    assert sheets.cold_start(RESULT)[0].rows == [
        ("adrec", "0.6620", "0.1961", "0.7377", "0.2120"),
        ("LightGBM", "0.6544", "0.1992", "–", "0.2131"),
    ]
    assert sheets.cold_retrieval(RESULT)[0].rows == [("adrec, exact search", "0.0431", "0.4012")]
    assert sheets.coverage(RESULT)[0].rows == [
        ("country", "user", "131", "98.1%", "1.6%", "0.2%", "411", "30,211", "99,120")
    ]


def test_groups_without_a_row_are_left_out() -> None:
    (sheet,) = sheets.cold_start(RESULT)
    assert not [column for column in sheet.columns if "new ads" in column]
    assert len(sheets.cold_retrieval(RESULT)) == 1


def test_nothing_to_show() -> None:
    result = nothing_to_diagnose() | {
        "ranking": {"task": "click"},
        "retrieval": {"queries": 0, "models": {}},
    }
    for part in (sheets.worst_slices, sheets.importance, sheets.cold_start, sheets.cold_retrieval):
        assert part(result) == []
    assert importance_plot(None) is None
    assert over_time_plot("click", result["over_time"]["click"]) is None


def test_brief_for_the_terminal() -> None:
    (sheet,) = sheets.worst_slices(RESULT)
    brief = sheet.brief(1)
    assert "mean predicted" not in brief.columns
    assert [row[1] for row in brief.rows] == ["<b>X"]
    assert {len(row) for row in brief.rows} == {len(brief.columns)}


def test_plots_say_what_they_show() -> None:
    time = over_time_plot("click", RESULT["over_time"]["click"])
    assert time is not None
    assert "2026-03-01 08:00: predicted 0.0610, actual 0.0643" in time.label
    worth = importance_plot(RESULT["importance"])
    assert worth is not None
    assert "history (history) 0.0812, price (ad field) −0.0004" in worth.label
    assert "price (ad field)" in worth.svg


@pytest.mark.parametrize("name", ["$x$", "a_b^c"])
def test_names_are_no_formulas(name: str) -> None:
    features = [{"feature": name, "kind": "ad field", "AUC drop": {"estimate": 0.1}}]
    plot = importance_plot({"features": features})
    assert plot is not None
    assert f"{name} (ad field)" in plot.svg
