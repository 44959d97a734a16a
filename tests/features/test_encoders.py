"""Encoders: a column and one value give the same numbers, and the numbers never change."""

import json
import math

import numpy as np
import polars as pl
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from adrec.data.parsing import as_text
from adrec.errors import RequestError
from adrec.features.encoders import (
    EmbeddingEncoder,
    NumericEncoder,
    Vocabulary,
    fit_embedding,
    fit_numeric,
    fit_vocabulary,
)

# Published test vectors of xxHash64 with seed 0 (github.com/Cyan4973/xxHash).
XXH64 = {"a": 0xD24EC4F1A98C6E5B, "abc": 0x44BC2CF5AD770999}

# What a JSON request may bring as a single value.
SCALARS = st.one_of(
    st.none(), st.text(max_size=6), st.sampled_from(["red", "blue", "9", "9.0", ""]),
    st.integers(-12, 12), st.floats(), st.booleans(),
)  # fmt: skip

COLOURS = Vocabulary(name="colour", values=("red", "blue", "9", "true"), buckets=8)


def counts(**of: int) -> pl.DataFrame:
    return pl.DataFrame({"value": list(of), "count": list(of.values())})


class TestVocabulary:
    @given(st.lists(SCALARS, max_size=30))
    def test_a_column_and_its_values_one_by_one_get_the_same_codes(self, values: list) -> None:
        column = pl.Series([as_text(value) for value in values], dtype=pl.String)
        codes = COLOURS.encode_column(column)
        assert codes.dtype == np.int32
        assert codes.tolist() == [COLOURS.encode(value) for value in values]

    def test_codes_are_missing_then_buckets_then_values(self) -> None:
        assert COLOURS.size == 1 + 8 + 4
        assert [COLOURS.encode(v) for v in (None, "", math.nan)] == [0, 0, 0]
        assert [COLOURS.encode(v) for v in ("red", "blue", "9", True)] == [9, 10, 11, 12]
        assert 1 <= COLOURS.encode("green") <= 8

    def test_one_value_has_one_code_however_it_is_spelt(self) -> None:
        assert COLOURS.encode(9) == COLOURS.encode(9.0) == COLOURS.encode("9.0") == 11

    def test_every_code_can_be_told_to_people(self) -> None:
        assert COLOURS.text(COLOURS.encode("blue")) == "blue"
        assert COLOURS.text(0) == "(missing)"
        assert COLOURS.text(COLOURS.encode("green")) == f"(rare {COLOURS.encode('green')})"

    @pytest.mark.parametrize("text", sorted(XXH64))
    def test_rare_values_get_the_bucket_that_xxhash64_gives(self, text: str) -> None:
        """A saved model's embeddings belong to buckets: another hash would shuffle them."""
        rare = Vocabulary(name="id", values=(), buckets=1000)
        assert rare.encode(text) == 1 + XXH64[text] % 1000
        assert rare.encode_column(pl.Series([text, text])).tolist() == [rare.encode(text)] * 2

    def test_pinned_buckets(self) -> None:
        rare = Vocabulary(name="id", values=("known",), buckets=1_000_003)
        codes = {text: rare.encode(text) for text in ("ad_1", "日本", "known")}
        expected = {text: 1 + xxhash.xxh64_intdigest(text.encode()) % 1_000_003 for text in codes}
        assert codes == expected | {"known": 1 + 1_000_003}
        assert (codes["ad_1"], codes["日本"]) == (280_568, 578_008)

    def test_without_values_of_its_own_everything_is_rare(self) -> None:
        empty = Vocabulary(name="id", values=(), buckets=1)
        assert empty.encode_column(pl.Series(["a", None, "b", ""])).tolist() == [1, 0, 1, 0]
        assert empty.encode_column(pl.Series([None, None], dtype=pl.String)).tolist() == [0, 0]
        assert empty.encode_column(pl.Series([], dtype=pl.String)).tolist() == []

    @pytest.mark.parametrize("value", [["red"], {"colour": "red"}, ("red",)])
    def test_a_value_that_is_not_single_is_refused(self, value: object) -> None:
        with pytest.raises(RequestError, match="field 'colour'"):
            COLOURS.encode(value)

    def test_half_a_surrogate_pair_is_just_another_rare_value(self) -> None:
        """Python's json reads "\\ud800", which no UTF-8 column could hold."""
        assert 1 <= COLOURS.encode(json.loads('"\\ud800"')) <= 8

    def test_fit_keeps_what_is_frequent_enough_most_frequent_first(self) -> None:
        seen = counts(b=5, a=5, c=9, d=4)
        fitted = fit_vocabulary("x", seen, min_count=5, max_size=10, buckets=2)
        assert fitted.values == ("c", "a", "b")  # a tie: by value, so a fit can be repeated
        assert fit_vocabulary("x", seen, min_count=5, max_size=2, buckets=2).values == ("c", "a")

    def test_fit_gives_no_code_to_what_is_missing(self) -> None:
        seen = pl.DataFrame({"value": [None, "", "a"], "count": [100, 100, 100]})
        assert fit_vocabulary("x", seen, min_count=1, max_size=9, buckets=2).values == ("a",)


class TestNumeric:
    PRICE = fit_numeric("price", np.array([0.0, 1.0, 3.0, 7.0, np.nan]))

    @given(st.lists(st.one_of(st.none(), st.floats(), st.integers(-(10**40), 10**40)), max_size=20))
    def test_a_column_and_its_values_one_by_one_get_the_same_numbers(self, values: list) -> None:
        floats = [math.nan if value is None else float(value) for value in values]
        column = self.PRICE.encode_column(np.array(floats, np.float64))
        assert column.shape == (len(values), 3)
        assert np.isfinite(column).all()
        for row, value in zip(column, values, strict=True):
            np.testing.assert_array_equal(row, self.PRICE.encode(value))

    def test_by_hand(self) -> None:
        # log1p of 0, 1, 3, 7 is ln 2 times 0, 1, 2, 3: mean 1.5, variance (2.25+.25+.25+2.25)/4.
        spread = math.sqrt(1.25)
        zero, one, three, seven = self.PRICE.encode_column(np.array([0.0, 1.0, 3.0, 7.0]))
        assert zero[0] == pytest.approx(-1.5 / spread)
        assert three[0] == pytest.approx(0.5 / spread)
        # Of 4 values, 1 is a third of the way from the least to the greatest.
        assert [zero[1], seven[1]] == [-1.0, 1.0]
        assert one[1] == pytest.approx(-1 + 2 / 3, abs=0.02)  # 65 knots: not exactly a third
        assert [zero[2], seven[2]] == [0.0, 0.0]

    @pytest.mark.parametrize("value", [None, "", math.nan, math.inf, -math.inf, 1e300, "nan"])
    def test_what_is_missing_or_not_finite_is_a_flag(self, value: object) -> None:
        assert self.PRICE.encode(value).tolist() == [0.0, 0.0, 1.0]

    def test_outliers_are_clipped(self) -> None:
        narrow = fit_numeric("x", np.linspace(100.0, 101.0, 50))
        assert narrow.encode(1e30).tolist() == [5.0, 1.0, 0.0]
        assert narrow.encode(-1e30).tolist() == [-5.0, -1.0, 0.0]

    def test_the_quantile_ignores_how_far_away_an_outlier_is(self) -> None:
        near = fit_numeric("x", np.append(np.arange(1000.0), 1e3))
        far = fit_numeric("x", np.append(np.arange(1000.0), 1e9))
        assert far.encode(500.0)[1] == pytest.approx(near.encode(500.0)[1], abs=0.01)

    @pytest.mark.parametrize("constant", [0.0, 0.1, -7.3, 1e6])
    @pytest.mark.parametrize("rows", [1, 3, 10, 1000])
    def test_a_constant_column_is_in_the_middle(self, constant: float, rows: int) -> None:
        fitted = fit_numeric("x", np.full(rows, constant, np.float32))
        np.testing.assert_allclose(fitted.encode(constant), [0.0, 0.0, 0.0], atol=1e-6)
        assert abs(fitted.encode(constant * 1.01 + 0.01)[0]) < 0.1

    def test_a_column_without_any_value_can_be_fitted(self) -> None:
        fitted = fit_numeric("x", np.full(3, np.nan))
        assert np.isfinite(fitted.encode(3.0)).all()

    @pytest.mark.parametrize("value", ["abc", [1.0], {"a": 1}, 10**400])
    def test_what_is_not_a_number_is_refused(self, value: object) -> None:
        with pytest.raises(RequestError, match=r"field 'price'.*not a number"):
            self.PRICE.encode(value)

    @given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=50), st.data())
    def test_a_greater_value_never_gets_less(self, sample: list, data: st.DataObject) -> None:
        fitted = fit_numeric("x", np.array(sample))
        low, high = sorted(data.draw(st.tuples(*[st.floats(-1e7, 1e7)] * 2)))
        assert (fitted.encode(low)[:2] <= fitted.encode(high)[:2]).all()

    def test_a_saved_encoder_gives_the_same_numbers(self) -> None:
        fitted = fit_numeric("x", np.random.default_rng(0).lognormal(size=500))
        again = NumericEncoder.model_validate_json(fitted.model_dump_json())
        assert again == fitted


class TestEmbedding:
    IMAGE = EmbeddingEncoder(name="image", dim=2, scale=0.5)
    VECTORS = st.one_of(st.none(), st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=2))

    @given(st.lists(VECTORS, min_size=1, max_size=12))
    def test_a_column_and_its_values_one_by_one_get_the_same_numbers(self, values: list) -> None:
        series = pl.Series(values, dtype=pl.Array(pl.Float32, 2))
        one_by_one = np.stack([self.IMAGE.encode(value) for value in values])
        np.testing.assert_array_equal(self.IMAGE.encode_column(series), one_by_one)
        assert one_by_one.dtype == np.float32

    def test_by_hand(self) -> None:
        assert self.IMAGE.width == 3
        assert self.IMAGE.encode([4.0, -2.0]).tolist() == [2.0, -1.0, 0.0]
        assert self.IMAGE.encode(None).tolist() == [0.0, 0.0, 1.0]

    def test_a_table_without_rows(self) -> None:
        empty = pl.Series([], dtype=pl.Array(pl.Float32, 2))
        assert self.IMAGE.encode_column(empty).shape == (0, 3)

    @pytest.mark.parametrize(
        "value",
        [[1.0], [1.0, 2.0, 3.0], [], 1.0, [[1.0, 2.0]], [1.0, math.nan], [1.0, math.inf],
         [1.0, None], [1.0, 1e300], ["a", "b"], "ab", {"x": 1.0}],
    )  # fmt: skip
    def test_what_is_not_a_vector_of_its_length_is_refused(self, value: object) -> None:
        with pytest.raises(RequestError, match="field 'image'"):
            self.IMAGE.encode(value)

    def test_fit_scales_to_a_mean_square_of_one(self) -> None:
        # Squares 9, 16, 0, 25 have the mean 12.5.
        vectors = pl.Series([[3.0, 4.0], None, [0.0, 5.0]], dtype=pl.Array(pl.Float32, 2))
        fitted = fit_embedding("image", 2, vectors)
        assert fitted.scale == pytest.approx(1 / math.sqrt(12.5))
        assert np.square(fitted.encode_column(vectors)[[0, 2], :2]).mean() == pytest.approx(1.0)

    @pytest.mark.parametrize("vectors", [[None, None], [[0.0, 0.0]], []])
    def test_fit_without_a_length_leaves_vectors_as_they_are(self, vectors: list) -> None:
        fitted = fit_embedding("image", 2, pl.Series(vectors, dtype=pl.Array(pl.Float32, 2)))
        assert fitted.scale == 1.0

    @pytest.mark.parametrize("size", [1e-25, 1e25])
    def test_fit_stands_tiny_and_huge_vectors(self, size: float) -> None:
        vectors = pl.Series([[size, -size]], dtype=pl.Array(pl.Float32, 2))
        encoded = fit_embedding("image", 2, vectors).encode_column(vectors)
        np.testing.assert_allclose(encoded, [[1.0, -1.0, 0.0]], rtol=1e-5)
