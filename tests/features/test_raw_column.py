"""Exact values of a field by ad row, and what changing some of them leaves alone."""

import numpy as np
import polars as pl

from adrec.features.raw_column import RawColumn


def test_a_changed_column_keeps_the_other_rows() -> None:
    """Row 2 changes, 4 is new, and so is a value; the old column stays as it is."""
    column = RawColumn.of(pl.Series(["de", "en", None], dtype=pl.String))
    longer = column.changed(np.array([2, 4]), pl.Series(["fr", None], dtype=pl.String), 5)
    assert column.texts().to_list() == ["de", "en", None]
    assert longer.texts().to_list() == ["de", "fr", None, None]
    assert column.codes(["fr", "de"]) == [1]
    assert longer.codes(["fr", "de", None]) == [3, 1, 0]
    again = column.changed(np.array([1]), pl.Series(["it"]), 4)  # a second branch of the same
    assert again.texts().to_list() == ["it", "en", None]
    assert longer.texts().to_list() == ["de", "fr", None, None]


def test_many_values_fit() -> None:
    """300 values need two bytes an ad."""
    values = [str(i) for i in range(255)]
    column = RawColumn.of(pl.Series(values))
    assert column.codes_A.dtype == np.uint8
    longer = column.changed(np.array([256]), pl.Series(["x"]), 257)
    assert longer.codes_A.dtype == np.uint16
    assert longer.texts().to_list() == [*values, "x"]
