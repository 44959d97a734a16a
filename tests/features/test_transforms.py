"""Features: fitted on the past alone, saved and loaded whole, alike for a table and a request."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from adrec.data.tables import Tables, tables_from
from adrec.errors import DataError, RequestError
from adrec.features.catalogue import Catalogue
from adrec.features.fitting import FeatureConfig
from adrec.features.state import State
from adrec.features.transforms import Encoded, Features
from adrec.schema import Schema, parse_schema

SHOP = """
name: shop
user_id: user
ad_id: ad
timestamp: at
position: place
users_table: {tables}
ads_table: {tables}
tasks:
  - {{name: click}}
  - {{name: paid, kind: value, weight: 0.3}}
fields:
  - {{name: age, kind: numeric, role: user}}
  - {{name: city, kind: categorical, role: user}}
  - {{name: taste, kind: embedding, role: user, dim: 3}}
  {sequence}
  - {{name: brand, kind: categorical, role: ad}}
  - {{name: price, kind: numeric, role: ad}}
  - {{name: image, kind: embedding, role: ad, dim: 2}}
  - {{name: device, kind: categorical, role: context}}
  - {{name: battery, kind: numeric, role: context}}
  - {{name: words, kind: embedding, role: context, dim: 2}}
  - {{name: hour, kind: clock, part: hour, utc_offset_hours: 5.5}}
counters:
  - {{columns: [ad_id], half_lives_hours: [null, 24]}}
  - {{columns: [user_id, brand]}}
"""
WITH_TABLES = parse_schema(
    SHOP.format(
        tables="true",
        sequence="- {name: seen, kind: sequence, column: seen, grows_with: click, length: 4}",
    )
)
WITHOUT_TABLES = parse_schema(
    SHOP.format(
        tables="false", sequence="- {name: seen, kind: sequence, grows_with: click, length: 4}"
    )
)
HOUR = 3_600_000
ROWS, USERS, ADS, TRAIN_ROWS = 400, 12, 25, 300
UNTIL = TRAIN_ROWS * HOUR  # row i happens at hour i
CONFIG = FeatureConfig(min_count=3, buckets=4, embed_user_id=True)

USER_FIELDS = ("age", "city", "taste")
AD_FIELDS = ("brand", "price", "image")
CONTEXT = ("device", "battery", "words")


def maybe(rng: np.random.Generator, value: Any) -> Any:
    return None if rng.random() < 0.15 else value


def shop(seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Raw rows with every kind of field and of hole: ids are numbers, as JSON would bring them."""
    rng = np.random.default_rng(seed)
    users = [
        {
            "user": 100 + i,
            "age": maybe(rng, float(rng.integers(18, 80))),
            "city": maybe(rng, ["Rome", "Oslo", "Kyoto"][int(rng.integers(3))]),
            "taste": maybe(rng, rng.normal(size=3).astype(np.float32).tolist()),
            "seen": [str(9000 + int(ad)) for ad in rng.integers(0, ADS, rng.integers(0, 7))],
        }
        for i in range(USERS)
    ]
    ads = [
        {
            "ad": 9000 + i,
            "brand": maybe(rng, int(rng.integers(1, 6))),
            "price": maybe(rng, float(np.float32(rng.lognormal()))),
            "image": maybe(rng, rng.normal(size=2).astype(np.float32).tolist()),
        }
        for i in range(ADS)
    ]
    impressions = []
    for i in range(ROWS):
        user, ad = users[int(rng.integers(USERS))], ads[int(rng.integers(ADS - 5))]
        if i >= TRAIN_ROWS:
            ad = ads[int(rng.integers(ADS))]  # some are new
        click = int(rng.random() < 0.3)
        impressions.append(
            {
                "user": user["user"],
                "ad": ad["ad"],
                "at": i * HOUR,
                "place": 1 + i % 3,
                "click": click,
                "paid": click * float(rng.integers(0, 3)),
                "device": maybe(
                    rng, ["phone", "tablet", True, 7, f"rare{i}"][int(rng.integers(5))]
                ),
                "battery": maybe(rng, float(rng.integers(0, 101))),
                "words": maybe(rng, rng.normal(size=2).astype(np.float32).tolist()),
                **{name: user[name] for name in USER_FIELDS},
                **{name: ad[name] for name in AD_FIELDS},
            }
        )
    return {"impressions": impressions, "users": users, "ads": ads}


def opened(schema: Schema, raw: Mapping[str, list[dict[str, Any]]]) -> Tables:
    """The tables of raw rows. A column of mixed types is text, as in a CSV file."""
    frames = {}
    for name, rows in raw.items():
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        if "device" in columns:
            columns["device"] = [None if v is None else str(v).lower() for v in columns["device"]]
        frames[name] = (name, pl.DataFrame(columns).lazy())
    return tables_from(schema, frames)


def fit(schema: Schema, raw: Mapping[str, list[dict[str, Any]]]) -> Features:
    return Features.fit(opened(schema, raw), CONFIG, train_until_ms=UNTIL)


def saved(features: Features, folder: Path) -> dict[str, bytes]:
    features.save(folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def same(one: Encoded, other: Encoded) -> None:
    np.testing.assert_array_equal(one.categorical, other.categorical)
    np.testing.assert_array_equal(one.dense, other.dense)
    assert one.categorical.dtype == other.categorical.dtype == np.int32
    assert one.dense.dtype == other.dense.dtype == np.float32


class TestFit:
    @pytest.mark.parametrize("schema", [WITH_TABLES, WITHOUT_TABLES], ids=["tables", "log alone"])
    def test_what_comes_later_changes_nothing(self, schema: Schema, tmp_path: Path) -> None:
        raw = shop()
        before = saved(fit(schema, raw), tmp_path / "before")
        for row in raw["impressions"][TRAIN_ROWS:]:
            row |= {"click": 1, "paid": 1e6, "device": "later", "battery": 1e6, "place": 9}
            row |= {"words": [1e6, 1e6], "brand": 77, "price": 1e6, "image": [1e6, 1e6]}
            row |= {"age": 1e6, "city": "Later", "taste": [1e6] * 3, "ad": 9999, "user": 111}
        after = saved(fit(schema, raw), tmp_path / "after")
        assert after == before

    def test_what_comes_before_does_change_it(self, tmp_path: Path) -> None:
        """So that the test above is known to compare something."""
        raw = shop()
        before = saved(fit(WITHOUT_TABLES, raw), tmp_path / "before")
        raw["impressions"][TRAIN_ROWS - 1]["battery"] = 1e6
        assert saved(fit(WITHOUT_TABLES, raw), tmp_path / "after") != before

    def test_means_and_scales_by_hand(self) -> None:
        raw = shop()
        layout = fit(WITH_TABLES, raw).layout
        train = raw["impressions"][:TRAIN_ROWS]
        clicks, paid = [row["click"] for row in train], [row["paid"] for row in train]
        assert layout.task_means[0] == pytest.approx(sum(clicks) / TRAIN_ROWS)
        assert layout.task_means[1] == pytest.approx(sum(map(math.log1p, paid)) / TRAIN_ROWS)
        positive = [value for value in paid if value > 0]
        assert layout.value_scales == pytest.approx((1.0, sum(positive) / len(positive)))

    def test_a_value_needs_enough_training_impressions(self) -> None:
        raw = shop()
        features = fit(WITH_TABLES, raw)
        train = raw["impressions"][:TRAIN_ROWS]
        for group, name, shown in (
            (features.request, "device", [row["device"] for row in train]),
            (features.ad, "brand", [row["brand"] for row in train]),
            (features.ad, "ad_id", [row["ad"] for row in train]),
            (features.user, "city", [row["city"] for row in train]),
            (features.user, "user_id", [row["user"] for row in train]),
        ):
            texts = [str(v).lower() if v is True else str(v) for v in shown if v is not None]
            expected = {text for text in texts if texts.count(text) >= CONFIG.min_count}
            assert set(group.vocabulary(name).values) == expected, name
        assert not any(v.startswith("rare") for v in features.request.vocabulary("device").values)

    def test_names_that_polars_or_adrec_might_use_themselves(self) -> None:
        """A shop may well have fields called `count`, `value` or `rows`."""
        schema = parse_schema("""
name: names
user_id: user
users_table: true
ads_table: true
tasks: [{name: click}]
fields:
  - {name: count, kind: numeric, role: ad}
  - {name: value, kind: categorical, role: ad}
  - {name: row, kind: categorical, role: user}
  - {name: len, kind: numeric, role: user}
  - {name: seen, kind: sequence, column: seen, grows_with: click}
  - {name: rows, kind: categorical, role: context}
""")
        raw = {
            "impressions": [
                {"user": 1, "ad_id": 2, "timestamp_ms": t, "click": 0, "rows": "a"}
                for t in range(9)
            ],
            "users": [{"user": 1, "row": "x", "len": 4.0, "seen": ["2"]}],
            "ads": [{"ad_id": 2, "count": 3.5, "value": "y"}],
        }
        tables = opened(schema, raw)
        features = Features.fit(tables, FeatureConfig(min_count=2), train_until_ms=8)
        assert features.ad.vocabulary("value").values == ("y",)
        assert features.user.vocabulary("row").values == ("x",)
        np.testing.assert_allclose(features.ad.encode({"count": 3.5}).dense, 0.0, atol=1e-6)
        state = State.begin(
            features, Catalogue.of(features, tables.ad_frame()), tables.user_frame()
        )
        assert state.histories[0].read(1, 5)[0][-1] == 1

    def test_nothing_to_train_on(self) -> None:
        with pytest.raises(DataError, match="No impression is early enough"):
            Features.fit(opened(WITH_TABLES, shop()), CONFIG, train_until_ms=0)


class TestLayout:
    def test_sizes(self) -> None:
        layout = fit(WITH_TABLES, shop()).layout
        own = 1 + CONFIG.buckets  # codes for what is missing or rare
        assert layout.user_sizes == (own + USERS, own + 3)  # user_id, city
        assert layout.user_dense == 3 + (3 + 1)  # age: log, quantile, missing; taste and missing
        assert layout.ad_sizes == (own + ADS - 5, own + 5)  # ad_id, brand
        assert layout.ad_dense == 3 + (2 + 1)
        # phone, tablet, true and 7; a clock has every hour, one bucket, and no floats
        assert layout.request_sizes == (own + 4, 1 + 1 + 24)
        assert layout.request_dense == 3 + (2 + 1)
        assert layout.history_lengths == (4,)
        assert layout.counters == (2 + 1) * (1 + 2)  # half-lives times count and two rates
        assert layout.positions == 3
        assert layout.task_kinds == ("binary", "value")
        assert layout.task_weights == (1.0, 0.3)

    def test_codes_stay_below_their_size(self) -> None:
        raw = shop()
        features, tables = fit(WITH_TABLES, raw), opened(WITH_TABLES, raw)
        encoded = features.ad.encode_frame(tables.ad_frame())
        assert encoded.categorical.shape == (ADS, len(features.layout.ad_sizes))
        assert encoded.dense.shape == (ADS, features.layout.ad_dense)
        assert (encoded.categorical.max(0) < features.layout.ad_sizes).all()
        assert (encoded.categorical >= 0).all()

    def test_without_ids_or_positions(self) -> None:
        config = FeatureConfig(embed_ad_id=False)
        tables = opened(WITH_TABLES.model_copy(update={"position": None}), shop())
        layout = Features.fit(tables, config, train_until_ms=UNTIL).layout
        assert (len(layout.ad_sizes), len(layout.user_sizes), layout.positions) == (1, 1, 0)


class TestSavedAndLoaded:
    def test_gives_the_same_numbers(self, tmp_path: Path) -> None:
        raw = shop()
        tables, features = opened(WITH_TABLES, raw), fit(WITH_TABLES, raw)
        features.save(tmp_path)
        again = Features.load(tmp_path)
        assert again.layout == features.layout
        assert again.schema == features.schema
        assert again.train_rows == features.train_rows == TRAIN_ROWS
        np.testing.assert_array_equal(again.priors, features.priors)
        impressions, rows = tables.ordered().collect(), np.arange(ROWS)
        table = features.encode_requests(impressions, rows)
        same(again.encode_requests(impressions, rows), table)
        same(again.ad.encode_frame(tables.ad_frame()), features.ad.encode_frame(tables.ad_frame()))
        users = tables.user_frame()
        assert users is not None
        same(again.user.encode_frame(users), features.user.encode_frame(users))

    def test_as_json_yaml_and_parquet_only(self, tmp_path: Path) -> None:
        files = saved(fit(WITH_TABLES, shop()), tmp_path)
        assert set(files) == {"features.json", "schema.yaml", "vocabularies.parquet"}

    def test_saving_again_writes_the_same_bytes(self, tmp_path: Path) -> None:
        first = saved(fit(WITH_TABLES, shop()), tmp_path / "first")
        second = saved(Features.load(tmp_path / "first"), tmp_path / "second")
        assert first == second == saved(fit(WITH_TABLES, shop()), tmp_path / "third")


class TestRequestAndTable:
    """A raw row sent as a request gives the numbers that the same row gave in the table."""

    def test_users(self) -> None:
        raw = shop()
        features, users = fit(WITH_TABLES, raw), opened(WITH_TABLES, raw).user_frame()
        assert users is not None
        table = features.user.encode_frame(users)
        for i, row in enumerate(raw["users"]):
            values = {"user_id": row["user"]} | {name: row[name] for name in USER_FIELDS}
            same(features.user.encode(values), table.take(np.array([i])))

    def test_ads(self) -> None:
        raw = shop()
        features = fit(WITH_TABLES, raw)
        table = features.ad.encode_frame(opened(WITH_TABLES, raw).ad_frame())
        for i, row in enumerate(raw["ads"]):
            values = {"ad_id": row["ad"]} | {name: row[name] for name in AD_FIELDS}
            same(features.ad.encode(values), table.take(np.array([i])))

    @pytest.mark.parametrize("schema", [WITH_TABLES, WITHOUT_TABLES], ids=["tables", "log alone"])
    def test_requests(self, schema: Schema) -> None:
        raw = shop()
        features = fit(schema, raw)
        impressions = opened(schema, raw).ordered().collect()
        table = features.encode_requests(impressions, np.arange(ROWS))
        names = CONTEXT if schema.users_table else (*USER_FIELDS, *CONTEXT)
        for i, row in enumerate(raw["impressions"]):
            values = {name: row[name] for name in names} | {"user_id": row["user"]}
            same(features.encode_request(values, row["at"]), table.take(np.array([i])))

    def test_what_is_left_out_is_missing(self) -> None:
        features = fit(WITH_TABLES, shop())
        nothing = dict.fromkeys(CONTEXT)
        same(features.encode_request({}, 5), features.encode_request(nothing, 5))
        same(features.ad.encode({}), features.ad.encode(dict.fromkeys(AD_FIELDS)))

    def test_the_clock_is_local(self) -> None:
        """20:00 UTC is 01:30 in Delhi."""
        features = fit(WITH_TABLES, shop())
        code = int(features.encode_request({}, 20 * HOUR).categorical[0, -1])
        assert features.request.vocabulary("hour").text(code) == "1"

    @pytest.mark.parametrize(
        ("field", "value"),
        [("device", ["phone"]), ("battery", "full"), ("words", [1.0]), ("words", "hello")],
    )
    def test_a_value_that_does_not_fit_is_refused(self, field: str, value: Any) -> None:
        with pytest.raises(RequestError, match=f"field '{field}'"):
            fit(WITH_TABLES, shop()).encode_request({field: value}, 5)

    def test_unknown_fields_are_refused(self) -> None:
        raw = shop()
        features, tables = fit(WITH_TABLES, raw), opened(WITH_TABLES, raw)
        catalogue = Catalogue.of(features, tables.ad_frame())
        state = State.begin(features, catalogue, tables.user_frame())
        with pytest.raises(RequestError, match=r"context: no field called devise;.*device"):
            state.visit(100, 5, {"devise": "phone"})
        with pytest.raises(RequestError, match=r"user: no field called shoe;.*age"):
            state.visit(100, 5, {}, profile={"shoe": 43})


def test_take_and_append() -> None:
    one = Encoded(np.array([[1], [2]], np.int32), np.array([[0.5], [1.5]], np.float32))
    both = one.append(one.take(np.array([1, 0])))
    assert (len(both), both.categorical.ravel().tolist()) == (4, [1, 2, 2, 1])
    assert one.take(np.array([[0, 1], [1, 1]])).dense.shape == (2, 2, 1)
