"""Spool: a log read once gives the rows that its tables give, in the order of requests."""

import itertools
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from adrec.data.checks import check_tables
from adrec.data.files import count_lines
from adrec.data.spool import Spool, spool
from adrec.data.tables import Tables, open_tables, tables_from
from adrec.data.texts import Texts
from adrec.errors import DataError
from adrec.progress import Progress
from data.logs import PLAIN, SCHEMA, impressions, plain, plain_csv, write_log

SLATES = PLAIN.model_copy(update={"request_id": "request"})


def spooled(tables: Tables, folder: Path, rows: int = 3) -> Spool:
    return spool(tables, folder / "spool", piece_rows=rows, progress=Progress())


def as_text(log: Spool) -> pl.DataFrame:
    """All impressions, categories as text; what is missing is null."""
    text = pl.col(pl.Categorical).cast(pl.String).replace("", None)
    return pl.concat(frame.with_columns(text) for frame in log.frames())


def log_of(rows: list[tuple[str, int]]) -> Tables:
    frame = pl.DataFrame(rows, schema=["request", "timestamp_ms"], orient="row").with_columns(
        ad_id=pl.int_range(pl.len()), click=pl.lit(0), brand=pl.lit("x"), price=pl.lit(1)
    )
    return tables_from(SLATES, {"impressions": ("log", frame.lazy())})


def test_it_holds_what_the_tables_hold(tmp_path: Path) -> None:
    tables = open_tables(SCHEMA, write_log(tmp_path))
    log = spooled(tables, tmp_path, rows=2)
    assert_frame_equal(as_text(log), tables.ordered().collect(), check_column_order=False)
    assert (log.rows(), log.times_ms().tolist()) == (4, [1000, 1000, 2000, 3000])
    assert_frame_equal(log.ad_frame(), tables.ad_frame())


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 5)), min_size=1, max_size=60),
    st.integers(1, 8),
)
def test_requests_are_never_cut_and_stand_in_the_order_of_their_first_row(
    rows: list[tuple[str, int]], size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tables = log_of(rows)
        log = spooled(tables, Path(folder), size)
        pieces = list(log.frames())
        assert_frame_equal(log.ad_frame(before_ms=4), tables.ad_frame(before_ms=4))
        assert log.times_ms().tolist() == sorted(time for _, time in rows)
    got = [(r["request_id"], r["timestamp_ms"]) for c in pieces for r in c.iter_rows(named=True)]
    assert sorted(got) == sorted(rows)
    for before, after in itertools.pairwise(pieces):
        assert before["request_id"][-1] != after["request_id"][0]
    starts = [r for i, r in enumerate(got) if i == 0 or got[i - 1][0] != r[0]]
    assert len(starts) == len({request for request, _ in rows})  # each request is in one piece
    assert [t for _, t in starts] == sorted(t for _, t in starts)


def test_a_file_out_of_order_is_sorted_and_ties_stay(tmp_path: Path) -> None:
    rows = "".join(f"a{i},{t},0,x,1\n" for i, t in enumerate([5, 3, 5, 4, 3]))
    log = spooled(plain_csv(tmp_path, "ad_id,timestamp_ms,click,brand,price\n" + rows), tmp_path)
    assert as_text(log)["ad_id"].to_list() == ["a1", "a4", "a3", "a0", "a2"]


def test_an_ad_is_described_by_its_first_impression(tmp_path: Path) -> None:
    tables = plain(
        ad_id=["a", "b", "a", 9.0, "9"], timestamp_ms=[1, 2, 3, 4, 5], click=[0] * 5,
        brand=["x", "", "y", "2.0", "z"], price=[1.0] * 5,
    )  # fmt: skip
    found = spooled(tables, tmp_path, rows=2).ad_frame()
    assert found.rows() == [("a", "x"), ("b", None), ("9", "2")]
    assert_frame_equal(found, tables.ad_frame())


@pytest.mark.parametrize(
    "wrong",
    [
        {"click": [1, 0, 2, 1]},
        {"timestamp_ms": [1000, 1000, "soon", 3000]},
        {"user_id": [7, 7, "", 7]},
        {"request": ["r1", "r1", "r2", "r1"], "user_id": [7, 7, 8, 9]},
    ],
    ids=["label", "time", "user", "request"],
)
def test_what_is_wrong_is_what_the_checks_say(tmp_path: Path, wrong: dict[str, list[Any]]) -> None:
    tables = open_tables(SCHEMA, write_log(tmp_path, impressions=impressions() | wrong))
    expected = check_tables(tables)
    assert expected
    with pytest.raises(DataError) as error:
        spooled(tables, tmp_path, rows=2)
    assert error.value.problems == tuple(expected)


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [("a.csv", "h\n1\n2\n", 2), ("a.csv", "h\n1\n2", 2), ("a.tsv", "h\n", 0), ("a.txt", "1\n", 1)],
)
def test_lines_are_counted_without_the_header(
    tmp_path: Path, name: str, text: str, rows: int
) -> None:
    (tmp_path / name).write_text(text)
    assert count_lines(str(tmp_path / name)) == rows


def test_only_plain_text_has_lines_to_count(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(b"\n\n")
    assert count_lines(str(tmp_path / "a.csv.gz")) is None


class TestTexts:
    def test_spellings_of_a_value_share_a_number(self) -> None:
        texts = Texts()
        first = texts.codes(pl.Series(["9.0", "x", None, ""]))
        then = texts.codes(pl.Series(["y", "9", "x", "9.00"]))
        assert first[2] == first[3] == 0
        assert first[0] == then[1] == then[3]
        assert first[1] == then[2]
        assert len({first[0], first[1], then[0], 0}) == 4

    def test_numbers_become_their_texts_again(self) -> None:
        texts = Texts()
        codes = pl.Series("a", texts.codes(pl.Series(["b", None, "7.0"])))
        restored = codes.to_frame().select(texts.restored("a")).to_series()
        assert restored.cast(pl.String).to_list() == ["b", "", "7"]
