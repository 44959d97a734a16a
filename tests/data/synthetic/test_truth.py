"""A world drawn again says of logged impressions what its log says, and of others what if."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from adrec.data.synthetic import World, WorldTruth, write_world
from adrec.data.synthetic.columns import DEVICE_PRIOR, DEVICES
from adrec.data.synthetic.config import DAY_MS, HOUR_MS
from adrec.data.synthetic.drawing import Ints
from adrec.errors import DataError

LAST_DAY = 24 * 3


@pytest.fixture(scope="module")
def written(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(world, folder, layout="generic")
    return folder


@pytest.fixture(scope="module")
def truth(world: World, written: Path) -> WorldTruth:
    """As of the start of the last day."""
    found = WorldTruth.read(written, world.config.start_ms + 3 * DAY_MS + HOUR_MS - 1)
    assert found is not None
    return found


def pairs(log: pl.DataFrame) -> Iterator[Ints]:
    """Request, ad and position (from 0) of impressions."""
    yield log["request_id"].to_numpy()
    yield log["ad_id"].to_numpy()
    yield log["position"].to_numpy() - 1


def columns(truth: pl.DataFrame, kind: str) -> pl.DataFrame:
    return truth.select(f"p_click_{kind}", f"p_engagement_{kind}", f"revenue_{kind}_micros")


def test_logged_impressions_have_the_very_probabilities_of_the_log(
    world: World, truth: WorldTruth
) -> None:
    found = truth.true(*pairs(world.impressions)).astype(np.float32)
    np.testing.assert_array_equal(found, columns(world.truth, "true").to_numpy())


@pytest.mark.parametrize("tick", [30, LAST_DAY])
def test_in_the_next_hour_the_observer_forecasts_as_it_did(world: World, tick: int) -> None:
    """Within a day and over midnight, when tastes drift. float32 sums, in another order."""
    truth = WorldTruth(world.config, 0, tick)
    hour_ms = world.config.start_ms + tick * HOUR_MS
    inside = world.impressions["timestamp_ms"].is_between(hour_ms, hour_ms + HOUR_MS - 1)
    assert inside.sum() > 20
    found = truth.best(*pairs(world.impressions.filter(inside)))
    expected = columns(world.truth.filter(inside), "best").to_numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_another_place_in_the_slate_is_looked_at_more_or_less_often(
    world: World, truth: WorldTruth
) -> None:
    """examination(s) = s^−0.2, so everything at the third position is 3^−0.2 of the first."""
    request, ad = np.arange(50), np.arange(50) * 7
    on_top, third = truth.true(request, ad), truth.true(request, ad, 2)
    np.testing.assert_allclose(third, on_top * 3**-0.2, rtol=1e-12)
    forecast, beneath = truth.best(request, ad), truth.best(request, ad, 2)
    np.testing.assert_allclose(beneath, forecast * 3**-0.2, rtol=1e-4)


def test_the_best_ads_run_on_the_day_and_were_not_seen(world: World, truth: WorldTruth) -> None:
    log = world.impressions.filter(pl.col("timestamp_ms") >= world.config.start_ms + 3 * DAY_MS)
    requests = log["request_id"].unique().sort().to_numpy()[[0, 40]]
    seen = [np.array([3, 5, 8]), np.arange(0, 400, 2)]
    start_ms = world.config.start_ms + 3 * DAY_MS
    running = world.ads.filter(pl.col("start_ms") <= start_ms, pl.col("end_ms") > start_ms)
    for ads, not_these in zip(truth.rank(requests, seen, 400), seen, strict=True):
        # A user's device may be any, so every ad that runs may be shown.
        expected = np.setdiff1d(running["ad_id"].to_numpy(), not_these)
        np.testing.assert_array_equal(np.sort(ads[ads >= 0]), expected)
        assert (ads[len(expected) :] == -1).all()


def test_the_best_order_is_by_the_chance_of_a_logged_click(world: World, truth: WorldTruth) -> None:
    """P(shown) Σ_device P(device) · propensity, times P(click), each from its own source."""
    log = world.impressions
    start_ms = world.config.start_ms + 3 * DAY_MS
    later = log.filter(pl.col("timestamp_ms") >= start_ms, pl.col("position") == 1)
    request, user, device = later.select("request_id", "user_id", "device").row(25)
    mine = log.filter(pl.col("user_id") == user, pl.col("position") == 1)
    asked = [*mine.filter(pl.col("timestamp_ms") < start_ms)["device"].to_list(), device]
    count_D = DEVICE_PRIOR + [asked.count(name) for name in DEVICES]
    ads = truth.rank(np.array([request]), [np.zeros(0, np.int64)], 30)[0]
    segment = world.users["segment"].unique().sort().index_of(world.users["segment"][user])
    shown = sum(
        share * truth._policy.propensity(np.int64(segment), np.int64(d), ads)
        for d, share in enumerate(count_D / count_D.sum())
    )
    score = shown * truth.best(np.full(30, request), ads)[:, 0]
    assert (np.diff(score) <= 0).all()
    assert score[-1] > 0


def test_the_observer_does_not_know_the_weight_of_what_it_never_saw_shown(
    world: World, truth: WorldTruth
) -> None:
    """The mean of exp(N(0, .8²)) is e^.32 = 1.377."""
    start_ms = world.config.start_ms + 3 * DAY_MS
    before = world.impressions.filter(pl.col("timestamp_ms") < start_ms)["ad_id"].unique()
    weights = pl.Series(truth._policy.weight_N)
    is_new = ~world.ads["ad_id"].is_in(before.implode())
    assert is_new.sum() >= 0.07 * 400
    np.testing.assert_allclose(weights.filter(is_new), np.exp(0.32))
    assert weights.filter(~is_new).n_unique() == 400 - is_new.sum()


def test_a_folder_that_does_not_tell_has_none(written: Path, world: World, tmp_path: Path) -> None:
    for name in ("truth.parquet", "world.json"):
        assert WorldTruth.read(tmp_path, world.config.start_ms) is None
        (tmp_path / name).write_bytes((written / name).read_bytes())
    assert WorldTruth.read(tmp_path, world.config.start_ms) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "does not lead to the truth.parquet"),
        ({"format": 99}, "format 99, and this version reads"),
        ({"config": {"n_users": 5}}, "does not tell how the world was drawn"),
    ],
)
def test_a_world_that_cannot_be_drawn_again_is_refused(
    written: Path, world: World, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    content = json.loads((written / "world.json").read_text(encoding="utf-8"))
    (tmp_path / "world.json").write_text(json.dumps(content | change), encoding="utf-8")
    (tmp_path / "truth.parquet").write_bytes((written / "truth.parquet").read_bytes())
    with pytest.raises(DataError, match=message):
        WorldTruth.read(tmp_path, world.config.start_ms)
