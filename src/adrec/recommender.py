"""Recommender: from who asks to the ads that are shown. CLI, evaluation and server all call it.

visit (encode) ─► retrieve ─► rank (calibrated scores) ─► price and order ─► top k
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from adrec.bundle import Bundle, ServingConfig
from adrec.data.parsing import as_text
from adrec.errors import DataError, RequestError
from adrec.exploration import EpsilonGreedy
from adrec.features.batches import Past, Query, candidates_of, stack_queries
from adrec.features.bits import MOST_TASKS, UNKNOWN_MS
from adrec.features.catalogue import Catalogue
from adrec.features.dataset import Dataset, cut
from adrec.features.state import State
from adrec.features.transforms import Features
from adrec.features.visitor import Report, Visitor
from adrec.inference.backends import BackendName, Pool
from adrec.inference.runtime import Runtime
from adrec.inference.threads import side_by_side
from adrec.models.two_tower import embed_ads
from adrec.retrieval.ad_set import AdSet
from adrec.retrieval.eligibility import Terms
from adrec.retrieval.exclusion import search_without
from adrec.retrieval.index import AdIndex
from adrec.retrieval.live import LiveIndex, Snapshot
from adrec.retrieval.live_ads import AdModels, LiveAds, Offer
from adrec.slates import RankedAd, Reported, Request, Scored, Seen, Slate, past_of

Clock = Callable[[], int]
"""Gives the time in UTC milliseconds."""


def now_ms() -> int:
    """The time."""
    return time.time_ns() // 1_000_000


_SCORE_ROWS = 8192


class Recommender:
    """A model version with the state it answers from, and the ads on offer.

    `ads` are those of the version until they are changed through it (`ads.put`, `pause`, `resume`,
    `remove`), which may happen while requests are answered.

    A request is answered fastest on one thread (`adrec.use_threads(1)`); let other cores answer
    other requests.
    """

    def __init__(
        self,
        runtime: Runtime,
        index: AdIndex,
        state: State,
        serving: ServingConfig,
        *,
        version: str,
        clock: Clock,
        rng: np.random.Generator | None = None,
    ) -> None:
        """Put the parts together; `rng` explores, where the settings say so. None: a fresh one."""
        self._policy = EpsilonGreedy(serving.epsilon, rng or np.random.default_rng())
        self.runtime, self.state = runtime, state
        self.serving, self.version = serving, version
        self._clock = clock
        self._tasks = [task.name for task in state.schema.tasks]
        self._bids = state.schema.bid_micros is not None
        self._rank_by = serving.ordered_by(state.schema)
        self._reading = threading.Lock()  # what becomes known by now is taken in while reading
        self.ads = LiveAds(
            index,
            serving.live,
            state,
            AdModels(runtime.two_tower, runtime.ranker, runtime.ad_rows),
            clock=clock,
            reading=self._reading,
        )

    @classmethod
    def load(
        cls,
        directory: Path | str,
        *,
        clock: Clock | None = None,
        rng: np.random.Generator | None = None,
    ) -> Self:
        """Load a bundle: a version's folder, or a folder of versions.

        Args:
            directory: where `adrec train` published.
            clock: time of requests that carry none; None stands still just after the log's end,
                which is what the bundle's state knows.
            rng: explores, where the settings say so; None: a fresh one.

        Raises:
            BundleError: nothing is there, or it is damaged.
        """
        return cls.of(Bundle.open(Path(directory)), clock=clock, rng=rng)

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        *,
        clock: Clock | None = None,
        rng: np.random.Generator | None = None,
        mapped: bool | None = None,
        like: BackendName | None = None,
    ) -> Self:
        """Load an opened bundle; see `load`.

        Args:
            bundle: the version.
            clock, rng: as `load` takes them.
            mapped: whether the index stays on disk, where processes share its pages; None: as its
                settings say.
            like: the backend to run on, if this version may; None: the fastest.
        """
        after = bundle.manifest.log_end_ms + 1
        return cls(
            bundle.runtime(like=like),
            bundle.index(mapped=mapped),
            bundle.state(),
            bundle.manifest.serving,
            version=bundle.manifest.version,
            clock=clock or (lambda: after),
            rng=rng,
        )

    def with_state(self, state: State) -> "Recommender":
        """The same models answering from another state: for replaying a log.

        Raises:
            DataError: ads were changed since the version was loaded.
        """
        if self.ads.changed:
            raise DataError(
                f"ads were changed since version {self.version} was loaded; load it again to "
                "replay a log with it"
            )
        return Recommender(
            self.runtime,
            self.index.now.main,
            state,
            self.serving,
            version=self.version,
            clock=self._clock,
        )

    def as_of(self, state: State, at_ms: int) -> "Recommender":
        """The same models at another time: answering from the state of then, and with an index
        built anew from how ads stood."""
        vectors = embed_ads(self.runtime.two_tower, state.catalogue.encoded, state.standing(at_ms))
        index = AdIndex.build(
            vectors[1:],
            self.index.config,
            tower=self.index.tower,
            ads=np.arange(1, len(vectors), dtype=np.int64),
            threads=torch.get_num_threads(),
        )
        return Recommender(
            self.runtime, index, state, self.serving, version=self.version, clock=self._clock
        )

    @property
    def index(self) -> LiveIndex[Offer]:
        """The ads' vectors, searchable while they change."""
        return self.ads.index

    def recommend(
        self,
        user: str | int | None = None,
        k: int = 10,
        *,
        context: Mapping[str, Any] | None = None,
        profile: Mapping[str, Any] | None = None,
        at_ms: int | None = None,
        exclude: Collection[str | int] = (),
        only: Terms | None = None,
        never: Terms | None = None,
    ) -> Slate:
        """The best k ads for one user; see `Request` for the arguments.

        Raises:
            RequestError: k below 1, or a value that does not fit its field.
        """
        request = Request(
            user=user,
            context=context or {},
            profile=profile,
            at_ms=at_ms,
            exclude=exclude,
            only=only or {},
            never=never or {},
        )
        return self.recommend_batch([request], k)[0]

    def recommend_batch(self, requests: Sequence[Request], k: int = 10) -> list[Slate]:
        """The best k ads for each request; the models run once for all."""
        if k < 1:
            raise RequestError(f"k is {k}; ask for at least one ad")
        if not requests:
            return []
        watch = Stopwatch()
        now = self.index.now  # index, catalogue and eligibility of one instant
        catalogue, eligibility = now.about.catalogue, now.about.eligibility
        allowed = [eligibility.of(request.only, request.never) for request in requests]
        with watch("features"), self._reading:
            visitors = [self._visit(request) for request in requests]
            query = stack_queries([self.state.query(visitor) for visitor in visitors])
            excluded = [
                self._excluded(r, v, catalogue) for r, v in zip(requests, visitors, strict=True)
            ]
        with watch("retrieve"):
            count = max(self.serving.candidates, k)
            ads_BN = self.retrieve(query, count, excluded, allowed=allowed, now=now)
        with watch("rank"):
            pool = self.pool(visitors, query, ads_BN, now.about)
            scored = self._scored(query, pool, ads_BN, k, catalogue)
        with watch("order"):
            chosen = self._policy.choose(scored.order_BN, k)
            slates = [
                tuple(
                    self._ranked(scored, b, place, share, catalogue)
                    for place, share in zip(*of_request, strict=True)
                    if scored.ads_BN[b, place] > 0
                )
                for b, of_request in enumerate(zip(*chosen, strict=True))
            ]
        return [
            Slate(
                user=as_text(request.user),
                version=self.version,
                ads=slate,
                candidates=int((ads_BN[b] > 0).sum()),
                stage_ms=watch.stage_ms,
                seen=self._seen(query, pool, b, slate, catalogue) if request.explain else None,
            )
            for b, (request, slate) in enumerate(zip(requests, slates, strict=True))
        ]

    def check(self, request: Request) -> None:
        """Whether the values of a request fit their fields.

        Raises:
            RequestError: one does not.
        """
        with self._reading:
            self._visit(request)

    def histories(self, user: str | int, at_ms: int) -> dict[str, list[dict[str, Any]]]:
        """What is known of a user's past at a time: of each sequence its items, newest first, with
        their ad, time (None where the log had none) and the tasks that were met."""
        tasks, found = [task.name for task in self.state.schema.tasks], {}
        with self._reading:
            row, ids = self.state.users.row(as_text(user) or ""), self.state.catalogue.directory
            for field, history in zip(
                self.state.schema.sequences, self.state.histories, strict=True
            ):
                items = history.read(row, at_ms)
                found[field.name] = [
                    {
                        "ad_id": ids.id(ad),
                        "at_ms": None if time_ms == UNKNOWN_MS else time_ms,
                        "met": [task for k, task in enumerate(tasks[:MOST_TASKS]) if bits >> k & 1],
                    }
                    for ad, time_ms, bits in zip(*(part.tolist() for part in items), strict=True)
                    if ad
                ][::-1]
        return found

    def forget(self, users: Iterable[str | int]) -> None:
        """Erase the past of users: histories and counters. Their ids stay, as those of new ones."""
        with self._reading:
            self.state.forget(as_text(user) or "" for user in users)

    def report(self, request: Request, reported: Sequence[Reported]) -> None:
        """Take in what came of ads that were shown: the next request knows of it.

        Args:
            request: for which they were shown, with the time of then.
            reported: in the order in which it came. An ad that is unknown counts for the user all
                the same.

        Raises:
            RequestError: a value of the request does not fit its field.
        """
        row = self.index.now.about.catalogue.directory.row
        reports = [Report(row(as_text(one.ad_id) or ""), one.before, one.after) for one in reported]
        with self._reading:
            self.state.report(self._visit(request), reports)

    def observe_log(self, frame: pl.DataFrame) -> None:
        """Take in a piece of a log with all that came of it, as `State.take_in` does."""
        if frame.height:
            with self._reading:
                self.state.take_in(frame)

    def retrieve(
        self,
        query: Query,
        count: int,
        excluded: Sequence[NDArray[np.integer]] | None = None,
        *,
        allowed: Sequence[AdSet | None] | None = None,
        exact: bool = False,
        now: Snapshot[Offer] | None = None,
    ) -> NDArray[np.int64]:
        """Ads nearest to each of B requests, [B, count], best first, 0 where there are fewer.

        Args:
            excluded: rows never to return, for each request.
            allowed: what each request may get; None: every active ad. Requests with the same
                object are searched for together.
            exact: scan all ads instead of asking the index.
            now: what to search; None: the ads as they are.
        """
        now = now or self.index.now
        vectors = self.runtime.embed(query)
        count, requests = max(1, min(count, len(now))), range(len(vectors))
        if excluded is None:
            excluded = [np.zeros(0, np.int64)] * len(vectors)
        if allowed is None:
            allowed = [now.about.eligibility.active] * len(vectors)
        ads_BN = np.zeros((len(vectors), count), np.int64)
        for within in {id(one): one for one in allowed}.values():
            alike = [b for b in requests if allowed[b] is within]
            found = search_without(
                now,
                vectors[alike],
                count,
                [excluded[b] for b in alike],
                allowed=within,
                exact=exact,
            )
            ads_BN[alike] = np.maximum(found.ads_QK, 0)
        return ads_BN

    def rank(
        self,
        visitors: Sequence[Visitor],
        query: Query,
        ads_BN: NDArray[np.int64],
        *,
        shown: int = 10,
        offer: Offer | None = None,
    ) -> Scored:
        """Score candidates and compute what they are ordered by.

        Args:
            visitors: who asks.
            query: the same, encoded.
            ads_BN: their candidates, rows of the offer's catalogue; 0 where there is none.
            shown: how many of the best are wanted; these have the ranker's scores.
            offer: the ads of an instant; None: as they are now.
        """
        offer = offer or self.index.now.about
        pool = self.pool(visitors, query, ads_BN, offer)
        return self._scored(query, pool, ads_BN, shown, offer.catalogue)

    def pool(
        self,
        visitors: Sequence[Visitor],
        query: Query,
        ads_BN: NDArray[np.int64],
        offer: Offer | None = None,
    ) -> Pool:
        """Candidates with all that the ranker may read of them; see `rank` for the arguments."""
        offer = offer or self.index.now.about
        catalogue = offer.catalogue
        counters = []
        for visitor, ads_N in zip(visitors, ads_BN, strict=True):
            with self._reading:
                counters.append(self.state.counters(visitor, ads_N, catalogue))
        on_top = np.ones(ads_BN.shape, np.int32)
        candidates = candidates_of(catalogue.encoded, ads_BN, np.stack(counters), on_top)
        return Pool.of(self.runtime.ranker.layout, query, candidates, offer.ad_rows, ads_BN)

    def order(
        self,
        scores_BNK: NDArray[np.float64],
        ads_BN: NDArray[np.int64],
        *,
        catalogue: Catalogue | None = None,
    ) -> NDArray[np.float64]:
        """What ads are ordered by, given their scores, [B, N]; -inf where there is no ad.

        Args:
            catalogue: that the ads are rows of; None: as it is now.
        """
        catalogue = catalogue or self.index.now.about.catalogue
        if self._rank_by == "ecpm":
            order_BN = scores_BNK[..., 0] * catalogue.bid_micros_A[ads_BN]
        else:
            order_BN = scores_BNK[..., self._tasks.index(self._rank_by)]
        return np.where(ads_BN > 0, order_BN, -np.inf)

    def score_log(self, dataset: Dataset, requests: NDArray[np.int64]) -> NDArray[np.float64]:
        """Calibrated scores of logged impressions, [rows, K], in the order of `rows_of`.

        Raises:
            DataError: the log was prepared with other features than the models were trained on.
        """
        if _encoding(dataset.features) != _encoding(self.state.features):
            raise DataError(
                f"{dataset.directory} was prepared with other features than version {self.version} "
                "was trained on; train on it, or evaluate the run that it belongs to"
            )
        rows = max(512, _SCORE_ROWS // torch.get_num_threads())  # as many are in work at once
        parts = cut(requests, dataset.slate_R[requests], rows)
        scores = side_by_side(lambda part: self.runtime.score_batch(dataset.batch(part)), parts)
        return np.concatenate(list(scores))

    def _scored(
        self, query: Query, pool: Pool, ads_BN: NDArray[np.int64], shown: int, catalogue: Catalogue
    ) -> Scored:
        order_of = partial(self.order, catalogue=catalogue)
        scores, ranked_BN = self.runtime.score(query, pool, order_of, shown=shown)
        return Scored(ads_BN, scores, np.where(ranked_BN, order_of(scores, ads_BN), -np.inf))

    def _seen(
        self, query: Query, pool: Pool, b: int, slate: Sequence[RankedAd], catalogue: Catalogue
    ) -> Seen:
        ids, shown = catalogue.directory, {ad.ad_id for ad in slate}
        counters_NC = pool.candidates.counters_BNC[b].tolist()
        histories = {
            field.name: past_of(
                Past(
                    items.row_BL[b].numpy().astype(np.int32),
                    items.gap_BL[b].numpy(),
                    items.outcomes_BL[b].numpy(),
                ),
                ids,
            )
            for field, items in zip(self.state.schema.sequences, query.histories, strict=True)
        }
        rows = zip((ids.id(row) for row in pool.row_BN[b].tolist()), counters_NC, strict=True)
        return Seen(histories, {ad: counters for ad, counters in rows if ad in shown})

    def _visit(self, request: Request) -> Visitor:
        at_ms = self._clock() if request.at_ms is None else request.at_ms
        return self.state.visit(request.user, at_ms, request.context, request.profile)

    def _excluded(
        self, request: Request, visitor: Visitor, catalogue: Catalogue
    ) -> NDArray[np.int64]:
        rows = [catalogue.directory.row(as_text(ad) or "") for ad in request.exclude]
        if self.serving.skip_seen:
            rows += self.state.history_ads(visitor).tolist()
        return np.unique(np.array(rows, np.int64))

    def _ranked(
        self, scored: Scored, request: int, place: int, propensity: float, catalogue: Catalogue
    ) -> RankedAd:
        row = int(scored.ads_BN[request, place])
        scores = scored.scores_BNK[request, place]
        bid = int(catalogue.bid_micros_A[row])
        return RankedAd(
            ad_id=catalogue.directory.id(row),
            scores=dict(zip(self._tasks, scores.tolist(), strict=True)),
            value_micros=float(scores[0] * bid) if self._bids else None,
            order_by=float(scored.order_BN[request, place]),
            propensity=float(propensity),
        )


def _encoding(features: Features) -> tuple[object, ...]:
    """All that decides which number stands for what."""
    schema = features.schema
    groups = (features.user, features.request, features.ad)
    tasks = [(task.name, task.kind, task.delay_ms) for task in schema.tasks]
    fields = [group.encoders for group in groups]
    return fields, schema.sequences, schema.counters, tasks, features.priors.tolist()


class Stopwatch:
    """Milliseconds of named stages."""

    def __init__(self) -> None:
        self.stage_ms: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a stage."""
        begun = time.perf_counter()
        yield
        self.stage_ms[stage] = (time.perf_counter() - begun) * 1000.0
