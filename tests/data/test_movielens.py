"""MovieLens of every generation, read as its module says."""

from collections.abc import Callable
from pathlib import Path

import pytest

from adrec.data.checks import require_valid
from adrec.data.movielens import open_movielens
from adrec.errors import DataError
from data.folders import write_1m, write_100k, write_latest


@pytest.mark.parametrize("write", [write_latest, write_1m, write_100k])
def test_movielens_of_every_generation(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    tables = open_movielens(tmp_path)
    require_valid(tables)
    log = tables.ordered().collect()
    assert log["timestamp_ms"].to_list() == [100_000, 200_000, 300_000]
    assert log["user_id"].to_list() == ["1", "1", "2"]
    assert log["ad_id"].to_list() == ["2", "1", "1"]
    assert log["click"].to_list() == [0.0, 1.0, 1.0]
    assert log["rating"].to_list() == [3.0 if write is not write_latest else 3.5, 4.0, 5.0]
    ads = tables.ad_frame()
    assert ads["genre"].to_list() == ["Comedy", None]
    assert ads["genres"].to_list() == ["Comedy|Drama", None]
    assert ads["year"].to_list() == [1995.0, None]
    users = tables.user_frame()
    if write is write_latest:
        assert users is None
    else:
        assert users is not None
        assert users.select("user_id", "gender", "age", "occupation").rows() == [
            ("1", "F", "1", "10"),
            ("2", "M", "56", "16"),
        ]
    history = tables.schema.sequences[0]
    assert (history.column, history.grows_with) == (None, "click")


def test_movielens_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there are no ratings.*ratings\.csv, ratings\.dat"):
        open_movielens(tmp_path)
    write_1m(tmp_path)
    (tmp_path / "ratings.dat").write_text("1::1::4::200\n1::2::3\n")
    with pytest.raises(DataError, match=r"ratings\.dat, row 2: has 3 cells, not 4"):
        open_movielens(tmp_path)
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating\n1,1,4.0\n")
    with pytest.raises(DataError, match=r"movies\.csv: cannot be read"):
        open_movielens(tmp_path)
    write_latest(tmp_path)
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating\n1,1,4.0\n")
    with pytest.raises(DataError, match="column 'timestamp': the column is missing"):
        open_movielens(tmp_path)
