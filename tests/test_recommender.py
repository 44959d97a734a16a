"""Serving scores equal training scores, and a slate is what was asked for."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from adrec.bundle import Bundle, ServingConfig
from adrec.data.layouts import open_layout
from adrec.errors import ConfigError, DataError, RequestError
from adrec.features.batches import stack_queries
from adrec.features.dataset import Dataset
from adrec.features.fitting import FeatureConfig
from adrec.models.two_tower import embed_ads
from adrec.recommender import Recommender
from adrec.schema import AD_ID, REQUEST_ID, TIMESTAMP_MS, USER_ID
from adrec.slates import Request, Slate

CONTEXT = {"device": "mobile", "place": "feed"}
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def dataset(tiny_run: Path) -> Dataset:
    return Dataset(tiny_run / "dataset")


@pytest.fixture
def recommender(tiny_run: Path) -> Recommender:
    """Fresh for each test: answering moves the state on in time."""
    return Recommender.load(tiny_run)


@pytest.fixture
def served(tiny_run: Path) -> Callable[..., Recommender]:
    """Makes a recommender with some serving settings changed."""

    def make(**changes: Any) -> Recommender:
        bundle = Bundle.open(tiny_run)
        serving = ServingConfig.model_validate(bundle.manifest.serving.model_dump() | changes)
        now = bundle.manifest.log_end_ms + 1
        return Recommender(
            bundle.runtime(),
            bundle.index(),
            bundle.state(),
            serving,
            version="v",
            clock=lambda: now,
        )

    return make


def ids(slate: Slate) -> list[str]:
    return [ad.ad_id for ad in slate.ads]


def same_slates(one: Slate, other: Slate, rtol: float = 1e-4) -> None:
    """The same ads with the same scores, up to the rounding of sums of another length."""
    assert ids(one) == ids(other)
    for a, b in zip(one.ads, other.ads, strict=True):
        assert dict(a.scores) == pytest.approx(dict(b.scores), rel=rtol)
        assert a.order_by == pytest.approx(b.order_by, rel=rtol)


class TestServingEqualsTraining:
    def test_live_replay_of_the_test_period(
        self, recommender: Recommender, dataset: Dataset, tiny_world: Path
    ) -> None:
        """Requests arrive as raw values, outcomes as events; scores are those of the dataset.

        Serving asks what would be on top, so the dataset's scores are taken at position 1.
        """
        state = dataset.state("test")
        live = recommender.with_state(state)
        tasks = [task.name for task in state.schema.tasks]
        log = open_layout("synthetic", tiny_world).ordered().collect()
        log = log.filter(pl.col(TIMESTAMP_MS) >= dataset.split.test_from_ms)
        test, replayed, logged = dataset.requests("test"), 0, []
        for number, (_, slate) in enumerate(log.group_by(REQUEST_ID, maintain_order=True)):
            request = int(test[number])
            asked = slate.row(0, named=True)
            context = {name: asked[name] for name in ("device", "place")}
            visitor = state.visit(asked[USER_ID], asked[TIMESTAMP_MS], context)
            ads = state.catalogue.directory.rows(slate[AD_ID])
            found = live.rank([visitor], stack_queries([state.query(visitor)]), ads[None, :])
            batch = dataset.batch(np.array([request]))
            on_top = torch.ones_like(batch.candidates.position_BN)
            batch = replace(batch, candidates=replace(batch.candidates, position_BN=on_top))
            expected = recommender.runtime.score_batch(batch)
            np.testing.assert_array_equal(ads, batch.ad_row_BN[0].numpy())
            np.testing.assert_allclose(found.scores_BNK[0], expected, rtol=1e-5, atol=1e-5)
            logged.append(expected)
            for row, ad in zip(slate.iter_rows(named=True), ads.tolist(), strict=True):
                state.observe(visitor, ad, [row[task] for task in tasks])
            replayed += 1
        assert replayed == len(test) > 150
        assert np.concatenate(logged)[:, 0].std() > 0.01  # scores that differ can be compared

    def test_position_one_is_what_serving_asks(
        self, recommender: Recommender, dataset: Dataset
    ) -> None:
        """Scores of the log are at the logged position: those in place 1 are the serving ones."""
        test = dataset.requests("test")
        scores = recommender.score_log(dataset, test)
        rows = dataset.rows_of(test)
        position = dataset.position_N[rows]
        assert len(scores) == len(rows)
        assert set(position.tolist()) == {1, 2, 3, 4}
        batches = []
        for batch in dataset.in_order(test, 200):
            on_top = torch.ones_like(batch.candidates.position_BN)
            batch = replace(batch, candidates=replace(batch.candidates, position_BN=on_top))
            batches.append(recommender.runtime.score_batch(batch))
        on_top_scores = np.concatenate(batches)
        first = position == 1
        np.testing.assert_allclose(scores[first], on_top_scores[first], rtol=1e-5)
        assert np.abs(scores[~first, 0] - on_top_scores[~first, 0]).max() > 1e-4

    def test_recommend_is_rank_of_what_was_retrieved(self, recommender: Recommender) -> None:
        """One ad at a time through `rank` gives the scores that `recommend` shows."""
        slate = recommender.recommend("7", 5, context=CONTEXT)
        state = recommender.state
        visitor = state.visit("7", _now(recommender), CONTEXT)
        for ad in slate.ads:
            row = np.array([[state.catalogue.directory.row(ad.ad_id)]])
            alone = recommender.rank([visitor], state.query(visitor), row)
            assert dict(ad.scores) == pytest.approx(
                dict(zip(ad.scores, alone.scores_BNK[0, 0].tolist(), strict=True)), rel=1e-5
            )

    def test_a_log_prepared_with_other_features_is_refused(
        self,
        recommender: Recommender,
        small_config: Callable[..., Any],
        tmp_path: Path,
    ) -> None:
        """Its codes mean other things: scores would be silently wrong."""
        from adrec.pipeline import prepare_log
        from adrec.progress import Progress

        config = small_config({"features.min_count": 50})
        assert config.features != FeatureConfig()
        other = prepare_log(config, tmp_path, progress=Progress())
        with pytest.raises(DataError, match="other features"):
            recommender.score_log(other, other.requests("test"))


class TestSlate:
    @pytest.mark.parametrize("k", [1, 3, 10])
    def test_k_ads(self, recommender: Recommender, tiny_run: Path, k: int) -> None:
        slate = recommender.recommend("7", k, context=CONTEXT)
        assert len(slate.ads) == len(set(ids(slate))) == k
        assert slate.candidates == 100
        assert slate.user == "7"
        assert slate.version == (tiny_run / "current").read_text().strip()
        assert set(slate.stage_ms) == {"features", "retrieve", "rank", "order"}
        assert all(ms >= 0 for ms in slate.stage_ms.values())

    @pytest.mark.parametrize("k", [0, -1])
    def test_k_below_one(self, recommender: Recommender, k: int) -> None:
        with pytest.raises(RequestError, match=f"k is {k}"):
            recommender.recommend("7", k)

    def test_more_than_all_ads(self, recommender: Recommender) -> None:
        slate = recommender.recommend("7", 100_000)
        assert len(slate.ads) == len(recommender.state.catalogue) - 1 == slate.candidates
        assert len(set(ids(slate))) == len(slate.ads)

    def test_more_than_the_candidates(self, recommender: Recommender) -> None:
        slate = recommender.recommend("7", 150)  # serving.candidates is 100
        assert len(slate.ads) == slate.candidates == 150

    def test_no_requests(self, recommender: Recommender) -> None:
        assert recommender.recommend_batch([], 3) == []

    def test_tasks_are_named_and_probabilities(self, recommender: Recommender) -> None:
        for ad in recommender.recommend("7", 20).ads:
            assert list(ad.scores) == ["click", "engagement", "revenue"]
            assert 0 < ad.scores["click"] < 1
            assert 0 < ad.scores["engagement"] < 1
            assert ad.scores["revenue"] > 0

    def test_the_same_question_has_the_same_answer(
        self, recommender: Recommender, tiny_run: Path
    ) -> None:
        one = recommender.recommend("7", 10, context=CONTEXT)
        again = recommender.recommend("7", 10, context=CONTEXT)
        fresh = Recommender.load(tiny_run).recommend("7", 10, context=CONTEXT)
        assert one.ads == again.ads == fresh.ads

    def test_users_differ(self, recommender: Recommender) -> None:
        assert len({tuple(ids(recommender.recommend(str(u), 10))) for u in range(1, 9)}) > 4

    def test_context_matters(self, recommender: Recommender) -> None:
        mobile = recommender.recommend("7", 10, context=CONTEXT)
        desktop = recommender.recommend("7", 10, context={"device": "desktop", "place": "sidebar"})
        assert mobile.ads != desktop.ads

    def test_an_id_is_its_spelling(self, recommender: Recommender) -> None:
        one, two = recommender.recommend("7", 5), recommender.recommend(7, 5)
        assert one.ads == two.ads
        assert one.user == two.user == "7"


class TestBatch:
    def test_a_batch_answers_as_singles_do(self, recommender: Recommender) -> None:
        requests = [
            Request(user="7", context=CONTEXT),
            Request(user="8", exclude=["1", "2", "3"]),
            Request(),
            Request(user="nobody", context={"device": "desktop"}),
            Request(user="9", profile={"age": "25-34"}),
        ]
        together = recommender.recommend_batch(requests, 8)
        assert [slate.user for slate in together] == ["7", "8", None, "nobody", "9"]
        for request, slate in zip(requests, together, strict=True):
            same_slates(slate, recommender.recommend_batch([request], 8)[0])

    def test_four_threads_give_the_same_answers(self, tiny_run: Path) -> None:
        """Even where outcomes become known between: whoever comes first must take them all in."""

        def busy() -> Recommender:
            """Everyone has just clicked, and it is not known yet."""
            recommender = Recommender.load(tiny_run)
            for user in users:
                visitor = recommender.state.visit(user, _now(recommender), CONTEXT)
                for ad in range(1, 11):
                    recommender.state.observe(visitor, ad, [1.0, 1.0, 1e6])
            return recommender

        def ask(recommender: Recommender, user: str) -> Slate:
            return recommender.recommend(user, 5, context=CONTEXT, at_ms=later)

        users = [str(user) for user in range(1, 41)]
        alone = busy()
        later = _now(alone) + DAY_MS
        expected = [ask(alone, user).ads for user in users]
        assert expected != [alone.recommend(user, 5, context=CONTEXT).ads for user in users]
        for _ in range(3):
            shared = busy()
            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(ask, [shared] * len(users), users))
            assert [slate.ads for slate in found] == expected


class TestWhoAsks:
    def test_an_unknown_user_is_a_new_one(self, recommender: Recommender) -> None:
        nobody = recommender.recommend(None, 5, context=CONTEXT)
        never_seen = recommender.recommend("never seen", 5, context=CONTEXT)
        assert nobody.ads == never_seen.ads
        assert nobody.user is None
        assert never_seen.user == "never seen"
        assert nobody.ads != recommender.recommend("7", 5, context=CONTEXT).ads

    def test_asking_does_not_make_a_user_known(self, recommender: Recommender) -> None:
        before = len(recommender.state.users)
        recommender.recommend("never seen", 5)
        assert len(recommender.state.users) == before

    def test_a_profile_speaks_for_an_unknown_user(
        self, recommender: Recommender, tiny_world: Path
    ) -> None:
        """With the stored profile of a user, a new user differs by history and counters only."""
        stored = pl.read_parquet(tiny_world / "users.parquet").row(6, named=True)
        fields = {f.name: stored[f.source] for f in recommender.state.schema.user_fields}
        user = str(stored["user_id"])
        own = recommender.recommend(user, 5, context=CONTEXT)
        same_slates(own, recommender.recommend(user, 5, context=CONTEXT, profile=fields), 1e-9)
        new = recommender.recommend("never seen", 5, context=CONTEXT, profile=fields)
        assert new.ads != recommender.recommend("never seen", 5, context=CONTEXT).ads
        state = recommender.state
        visitor = state.visit("never seen", _now(recommender), CONTEXT, fields)
        known = state.visit(user, _now(recommender), CONTEXT)
        np.testing.assert_array_equal(visitor.static.categorical, known.static.categorical)

    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            ({"context": {"weather": "rain"}}, "no field called weather.*device"),
            ({"profile": {"shoe": "44"}}, "no field called shoe"),
            ({"context": {"device": ["a", "b"]}}, "device.*not a single value"),
            ({"context": {"device": {"a": 1}}}, "device"),
            ({"context": "mobile"}, "context"),
            ({"profile": ["young"]}, "profile"),
            ({"at_ms": "yesterday"}, "at_ms"),
            ({"at_ms": 1.5}, "at_ms"),
            ({"user": {"id": 7}}, "user"),
            ({"exclude": "12"}, "exclude"),
            ({"exclude": [["12"]]}, "exclude"),
            ({"exclude": None}, "exclude"),
            ({"only": ["banner"]}, "only is.*lists of values by field"),
            ({"only": {"format": "banner"}}, "only"),
            ({"never": {"format": [["banner"]]}}, "never"),
            ({"never": None}, "never"),
            ({"only": {"colour": ["red"]}}, "only: ads have no .*field called colour.*format"),
            ({"never": {"price": [3]}}, "never: ads have no categorical field called price"),
        ],
    )
    def test_what_does_not_fit(
        self, recommender: Recommender, request_: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(RequestError, match=message):
            recommender.recommend_batch([Request(**request_)], 3)


class TestTime:
    def test_now_is_just_after_the_log(self, recommender: Recommender, dataset: Dataset) -> None:
        end = int(dataset.time_ms_R[-1])
        assert _now(recommender) == end + 1
        plain = recommender.recommend("7", 5, context=CONTEXT)
        given = recommender.recommend("7", 5, context=CONTEXT, at_ms=end + 1)
        assert plain.ads == given.ads

    def test_the_clock_is_asked(self, tiny_run: Path) -> None:
        asked = []

        def clock() -> int:
            asked.append(1)
            return later

        later = _now(Recommender.load(tiny_run)) + DAY_MS // 2
        ticking = Recommender.load(tiny_run, clock=clock)
        by_clock = ticking.recommend("7", 5, context=CONTEXT)
        assert len(asked) == 1
        explicit = Recommender.load(tiny_run).recommend("7", 5, context=CONTEXT, at_ms=later)
        assert by_clock.ads == explicit.ads
        assert by_clock.ads != Recommender.load(tiny_run).recommend("7", 5, context=CONTEXT).ads
        ticking.recommend("7", 5, at_ms=later)
        assert len(asked) == 1  # a request that brings its time needs no clock

    def test_with_state_keeps_models_and_clock(
        self, recommender: Recommender, dataset: Dataset
    ) -> None:
        other = recommender.with_state(dataset.state("test"))
        assert other.runtime is recommender.runtime
        assert other.version == recommender.version
        assert _now(other) == _now(recommender)
        assert other.state is not recommender.state


class TestAsOf:
    def test_the_log_s_end_is_what_was_published(
        self, recommender: Recommender, dataset: Dataset
    ) -> None:
        again = recommender.as_of(dataset.state("end"), _now(recommender))
        assert again.runtime is recommender.runtime
        assert again.version == recommender.version
        assert again.index.tower == recommender.index.tower
        assert again.index.config == recommender.index.config
        for user in ("7", "8", None):
            one, other = (r.recommend(user, 20, context=CONTEXT) for r in (recommender, again))
            assert one.ads == other.ads

    def test_the_index_answers_as_of_then(self, recommender: Recommender, dataset: Dataset) -> None:
        """The nearest ads by vectors of how they stood when the test period began."""
        then = dataset.split.test_from_ms
        state = dataset.state("test")
        early = recommender.as_of(state, then)
        assert early.state is state
        model = recommender.runtime.two_tower
        ads = embed_ads(model, dataset.catalogue.encoded, dataset.state("test").standing(then))
        query = dataset.query(dataset.requests("test")[:20])
        scores = recommender.runtime.embed(query) @ ads[1:].T
        for exact in (True, False):
            found = early.retrieve(query, 10, exact=exact)
            np.testing.assert_allclose(  # of equal scores either may come first
                np.take_along_axis(scores, found - 1, axis=1),
                -np.sort(-scores, axis=1)[:, :10],
                rtol=1e-5,
            )
        assert (early.retrieve(query, 10) != recommender.retrieve(query, 10)).any()
        slate = early.recommend("7", 5, context=CONTEXT, at_ms=then)
        assert len(slate.ads) == 5


class TestExcluded:
    def test_excluded_ads_never_come_back(self, served: Callable[..., Recommender]) -> None:
        recommender = served(candidates=400)  # all ads: none can come in from behind
        best = ids(recommender.recommend("7", 10))
        left = recommender.recommend("7", 10, exclude=best[:4])
        assert not set(ids(left)) & set(best[:4])
        assert len(left.ads) == 10
        assert ids(left)[:6] == best[4:]  # none of the others changes place

    def test_the_order_and_spelling_of_exclusions_do_not_matter(
        self, recommender: Recommender
    ) -> None:
        best = ids(recommender.recommend("7", 4))
        one = recommender.recommend("7", 10, exclude=[int(ad) for ad in reversed(best)])
        assert one.ads == recommender.recommend("7", 10, exclude=(*best, best[0])).ads

    def test_an_unknown_exclusion_excludes_nothing(self, recommender: Recommender) -> None:
        plain = recommender.recommend("7", 10)
        assert recommender.recommend("7", 10, exclude=["no such ad", ""]).ads == plain.ads

    def test_all_but_two(self, recommender: Recommender) -> None:
        everything = recommender.state.catalogue.directory.ids
        slate = recommender.recommend("7", 10, exclude=everything[2:])
        assert set(ids(slate)) == set(everything[:2])
        assert slate.candidates == 2

    def test_all(self, recommender: Recommender) -> None:
        slate = recommender.recommend("7", 10, exclude=recommender.state.catalogue.directory.ids)
        assert slate.ads == ()
        assert slate.candidates == 0

    def test_skip_seen(self, served: Callable[..., Recommender]) -> None:
        plain, skipping = served(), served(skip_seen=True)
        state = plain.state
        seen = {
            state.catalogue.directory.id(int(row))
            for row in state.history_ads(state.visit("7", _now(plain), {}))
            if row
        }
        assert seen
        everything = len(state.catalogue) - 1
        assert seen <= set(ids(plain.recommend("7", everything)))
        left = ids(skipping.recommend("7", everything))
        assert set(left) == set(ids(plain.recommend("7", everything))) - seen
        assert len(ids(skipping.recommend(None, everything))) == everything  # nobody saw anything


class TestFilters:
    @pytest.fixture(scope="class")
    @classmethod
    def table(cls, tiny_world: Path) -> pl.DataFrame:
        return pl.read_parquet(tiny_world / "ads.parquet").with_columns(
            pl.col("ad_id").cast(pl.String), pl.col("advertiser_id").cast(pl.String)
        )

    def test_only_and_never(self, served: Callable[..., Recommender], table: pl.DataFrame) -> None:
        """Of all ads, exactly those of the table that fit, in the order that they have without."""
        recommender = served(candidates=400)
        blocked = table["advertiser_id"].value_counts(sort=True)["advertiser_id"][:3].to_list()
        fits = table.filter(
            pl.col("format").is_in(["banner", "video"]) & ~pl.col("advertiser_id").is_in(blocked)
        )
        slate = recommender.recommend(
            "7",
            400,
            context=CONTEXT,
            only={"format": ["banner", "video", "hologram"]},
            never={"advertiser_id": [int(blocked[0]), *blocked[1:]]},
        )
        everything = ids(recommender.recommend("7", 400, context=CONTEXT))
        fitting = set(fits["ad_id"])
        assert 20 < len(fitting) < 200
        assert ids(slate) == [ad for ad in everything if ad in fitting]
        assert slate.candidates == len(fitting)

    def test_candidates_are_filled_with_ads_that_fit(
        self, recommender: Recommender, table: pl.DataFrame
    ) -> None:
        """Filtering afterwards would leave a fifth of the 100 candidates."""
        video = table.filter(pl.col("format") == "video")["ad_id"]
        slate = recommender.recommend("7", 100, only={"format": ["video"]})
        assert slate.candidates == min(100, len(video))
        assert set(ids(slate)) <= set(video)

    def test_with_exclusions(self, recommender: Recommender) -> None:
        only = {"format": ["video"]}
        best = ids(recommender.recommend("7", 5, only=only))
        left = ids(recommender.recommend("7", 5, only=only, exclude=best[:2]))
        assert not set(left) & set(best[:2])

    def test_nothing_fits(self, recommender: Recommender) -> None:
        assert recommender.recommend("7", 5, only={"format": ["hologram"]}).ads == ()
        assert recommender.recommend("7", 5, only={"format": []}).ads == ()

    def test_a_batch_of_different_filters(self, recommender: Recommender) -> None:
        requests = [
            Request(user="7", only={"format": ["video"]}),
            Request(user="8"),
            Request(user="9", only={"format": ["video"]}, exclude=["1", "2"]),
            Request(user="7", never={"format": ["video"]}),
        ]
        together = recommender.recommend_batch(requests, 8)
        for request, slate in zip(requests, together, strict=True):
            same_slates(slate, recommender.recommend_batch([request], 8)[0])


class TestOrder:
    def test_by_expected_revenue_where_ads_carry_bids(
        self, recommender: Recommender, tiny_world: Path
    ) -> None:
        bids = dict(
            pl.read_parquet(tiny_world / "ads.parquet")
            .select(pl.col("ad_id").cast(pl.String), "bid_micros")
            .rows()
        )
        slate = recommender.recommend("7", 50)
        for ad in slate.ads:
            assert ad.value_micros == pytest.approx(ad.scores["click"] * bids[ad.ad_id])
            assert ad.order_by == ad.value_micros
        assert _falling([ad.order_by for ad in slate.ads])
        assert not _falling([ad.scores["click"] for ad in slate.ads])  # the bid decides too

    @pytest.mark.parametrize("task", ["click", "engagement", "revenue"])
    def test_by_a_task(self, served: Callable[..., Recommender], task: str) -> None:
        slate = served(rank_by=task).recommend("7", 50)
        assert [ad.order_by for ad in slate.ads] == [ad.scores[task] for ad in slate.ads]
        assert _falling([ad.order_by for ad in slate.ads])
        assert all(ad.value_micros is not None for ad in slate.ads)

    def test_the_best_of_the_candidates_not_of_the_first_k(
        self, served: Callable[..., Recommender]
    ) -> None:
        """All ads are candidates: the top 5 are the 5 best of the whole catalogue."""
        everything = served(candidates=400).recommend("7", 400)
        by_hand = sorted(everything.ads, key=lambda ad: -ad.order_by)[:5]
        same_slates(
            served(candidates=400).recommend("7", 5), replace(everything, ads=tuple(by_hand))
        )

    def test_by_click_without_bids(self, tiny_run: Path) -> None:
        recommender = _without_bids(tiny_run, "auto")
        slate = recommender.recommend("7", 20)
        assert [ad.order_by for ad in slate.ads] == [ad.scores["click"] for ad in slate.ads]
        assert _falling([ad.order_by for ad in slate.ads])
        assert [ad.value_micros for ad in slate.ads] == [None] * 20

    def test_what_cannot_be_ordered_by(
        self, served: Callable[..., Recommender], tiny_run: Path
    ) -> None:
        with pytest.raises(ConfigError, match=r"rank_by is 'profit'.*ecpm, click, engagement"):
            served(rank_by="profit")
        with pytest.raises(ConfigError, match="rank_by is 'ecpm'; choose auto, click"):
            _without_bids(tiny_run, "ecpm")


def _now(recommender: Recommender) -> int:
    return recommender._clock()


def _falling(values: list[float]) -> bool:
    return values == sorted(values, reverse=True)


def _without_bids(run: Path, rank_by: str) -> Recommender:
    """The same models under a schema whose ads carry no bids."""
    bundle = Bundle.open(run)
    features = bundle.features
    features.schema = features.schema.model_copy(update={"bid_micros": None})
    serving = bundle.manifest.serving.model_copy(update={"rank_by": rank_by})
    now = bundle.manifest.log_end_ms + 1
    return Recommender(
        bundle.runtime(), bundle.index(), bundle.state(), serving, version="v", clock=lambda: now
    )
