"""A catalogue with ads put into it is the one that was made with them; the old one stays."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from adrec.data.tables import Tables, open_tables
from adrec.errors import DataError
from adrec.features.catalogue import Catalogue
from adrec.features.directory import Directory
from adrec.features.fitting import FeatureConfig
from adrec.features.transforms import Features
from data.logs import SCHEMA, ads, write_log


def tables(folder: Path, **columns: list[Any]) -> Tables:
    folder.mkdir()
    return open_tables(SCHEMA, write_log(folder, ads=ads() | columns))


def arrays(catalogue: Catalogue) -> dict[str, Any]:
    return {
        "ids": catalogue.directory.ids,
        "categorical": catalogue.encoded.categorical.tolist(),
        "dense": catalogue.encoded.dense.tolist(),
        "bids": catalogue.bid_micros_A.tolist(),
        "brand": catalogue.raw["brand"].texts().to_list(),
        "size": len(catalogue),
    }


def test_put_equals_made_with_them(tmp_path: Path) -> None:
    """11 gets a brand and another bid, 13 is new, with a brand that nobody had."""
    log = tables(tmp_path / "log")
    features = Features.fit(log, FeatureConfig(min_count=1), train_until_ms=9000)
    before = Catalogue.of(features, log.ad_frame())
    kept = arrays(before)
    after = tables(
        tmp_path / "after",
        ad_id=[10, 11, 12, 13],
        bid=[500, 70, 900, 8],
        brand=["acme", "zeta", "zeta", "novel"],
        image=["0.5 1.5", "9 9", "3,4", "0 1"],
    ).ad_frame()
    put, rows = before.put(features, after[[3, 1]])
    assert rows.tolist() == [4, 2]
    assert arrays(put) == arrays(Catalogue.of(features, after))
    assert arrays(before) == kept
    other, rows = before.put(features, after[3:].with_columns(ad_id=pl.lit("14")))
    assert rows.tolist() == [4]
    assert (other.directory.row("14"), other.directory.row("13")) == (4, 0)
    assert (put.directory.row("14"), put.directory.row("13")) == (0, 4)
    assert before.directory.row("13") == before.directory.row("14") == 0


def test_saved_with_raw_values(tmp_path: Path) -> None:
    log = tables(tmp_path / "log")
    features = Features.fit(log, FeatureConfig(min_count=1), train_until_ms=9000)
    catalogue = Catalogue.of(features, log.ad_frame())
    catalogue.save(tmp_path)
    loaded = Catalogue.load(tmp_path)
    assert arrays(loaded) == arrays(catalogue)
    assert loaded.raw["brand"].texts().to_list() == ["acme", None, "zeta"]


def test_longer_directories_share_and_do_not_disturb() -> None:
    first = Directory(["a", "b"])
    second = first.extended(["c", "d"])
    assert (len(first), len(second)) == (3, 5)
    assert (first.ids, second.ids) == (["a", "b"], ["a", "b", "c", "d"])
    assert (first.row("c"), second.row("c")) == (0, 3)
    assert first.rows(pl.Series(["d", "a", "x"])).tolist() == [0, 1, 0]
    assert first.add("e") == 3  # the shorter one goes its own way
    assert (first.row("c"), second.row("e")) == (0, 0)
    assert first.extended([]).ids == ["a", "b", "e"]
    assert np.array_equal(second.rows(pl.Series(["c", "e"])), [3, 0])
    with pytest.raises(DataError, match="id 'a' stands"):
        Directory(["a", "a"])
