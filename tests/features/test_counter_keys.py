"""Counter keys: one integer tells an impression's values apart, and whose it is."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from adrec.data.tables import open_tables
from adrec.features.catalogue import Catalogue
from adrec.features.counter_keys import CounterKeys, Keyed
from adrec.features.fitting import FeatureConfig
from adrec.features.transforms import Features
from adrec.schema import parse_schema

BIG = 1 << 31


@pytest.fixture
def features(tmp_path: Path) -> tuple[Features, Catalogue]:
    log = pl.DataFrame(
        {
            "user_id": ["u", "v", "u"],
            "ad_id": ["x", "y", "x"],
            "timestamp_ms": [1_000, 2_000, 3_000],
            "click": [1, 0, 0],
            "brand": ["b", "c", "b"],
            "site": ["s", "t", "t"],
        }
    )
    log.write_parquet(tmp_path / "impressions.parquet")
    schema = parse_schema(
        "{name: t, user_id: user_id, tasks: [{name: click}], fields:"
        " [{name: brand, kind: categorical, role: ad},"
        " {name: site, kind: categorical, role: context}], counters: [{columns: [user_id]},"
        " {columns: [ad_id, site]}, {columns: [user_id, brand]}, {columns: [site, user_id]}]}"
    )
    tables = open_tables(schema, tmp_path)
    features = Features.fit(tables, FeatureConfig(min_count=1), train_until_ms=10**7)
    return features, Catalogue.of(features, tables.ad_frame())


def keyed(features: Features, catalogue: Catalogue, users: list[int], ads: list[int]) -> Keyed:
    nobody = features.user.encode({})
    request = features.encode_request({"site": "t"}, 5)
    return Keyed(np.array(users), nobody, request, np.array(ads), catalogue.encoded)


def test_by_hand(features: tuple[Features, Catalogue]) -> None:
    encoded, catalogue = features
    of_users, of_ads, first, second = CounterKeys(encoded).all(keyed(*features, [1, 2], [2, 1]))
    brand = encoded.ad.categorical_names.index("brand")
    brands = catalogue.encoded.categorical[[2, 1], brand].astype(np.int64)
    site = encoded.request.categorical_names.index("site")
    (of_site,) = encoded.encode_request({"site": "t"}, 5).categorical[:, site].tolist()
    assert brands[0] != brands[1]
    assert of_users.tolist() == [1, 2]
    assert of_ads.tolist() == [2 * BIG + of_site, BIG + of_site]
    assert first.tolist() == [BIG + brands[0], 2 * BIG + brands[1]]
    assert second.tolist() == [of_site * BIG + 1, of_site * BIG + 2]


def test_a_single_user_stands_for_all_ads(features: tuple[Features, Catalogue]) -> None:
    of_user, of_ads, both, _ = CounterKeys(features[0]).all(keyed(*features, [7], [1, 2, 1]))
    assert [len(keys) for keys in (of_user, of_ads, both)] == [1, 3, 3]
    assert (both >> 31).tolist() == [7, 7, 7]


def test_keys_of_some_users(features: tuple[Features, Catalogue]) -> None:
    keys, users = CounterKeys(features[0]), np.array([2, BIG - 1])
    all_keys = keys.all(keyed(*features, [1, 2, BIG - 1, 0], [2, 1, 2, 2]))
    for spec, mine in zip(features[0].schema.counters, all_keys, strict=True):
        theirs = keys.of_users(spec, users)
        if "user_id" in spec.columns:
            assert theirs is not None
            assert theirs(mine).tolist() == [False, True, True, False]
        else:
            assert theirs is None
