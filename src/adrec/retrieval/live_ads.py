"""Ads that come, change, pause and go while requests are answered.

A version on disk holds the ads of its training. What is changed here is in the next request's
answer, lasts as long as the process, and is left out when the version is loaded again.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from adrec.data.new_ads import parse_ads
from adrec.data.parsing import as_text
from adrec.errors import DataError
from adrec.features.catalogue import Catalogue
from adrec.features.state import State
from adrec.models.ad_rows import AdRows
from adrec.models.ranker import Ranker
from adrec.models.two_tower import TwoTower, embed_ads
from adrec.retrieval.ad_set import AdSet
from adrec.retrieval.eligibility import Eligibility
from adrec.retrieval.index import AdIndex
from adrec.retrieval.inputs import Bools, Floats, Ints
from adrec.retrieval.live import LiveConfig, LiveIndex


@dataclass(frozen=True)
class Offer:
    """What goes with the vectors of an instant: the ads' rows, and which may be shown."""

    catalogue: Catalogue
    eligibility: Eligibility
    ad_rows: AdRows | None
    """What the ranker makes of the ads, where it is kept."""


class AdModels(NamedTuple):
    """What makes vectors and rows of ads: both models, and the rows of the version's ads."""

    two_tower: TwoTower
    ranker: Ranker
    ad_rows: AdRows | None


class LiveAds:
    """The ads on offer, searchable, and what changes them. Changes take turns; readers never wait.

    A reader takes `index.now` once a request and finds in it the index, and in its `about` the
    catalogue and who is eligible, all of the same instant.
    """

    def __init__(
        self,
        index: AdIndex,
        config: LiveConfig,
        state: State,
        models: AdModels,
        *,
        clock: Callable[[], int],
        reading: threading.Lock,
    ) -> None:
        """Offer the ads of an index.

        Args:
            index: of the state's catalogue.
            config: when the index is built anew.
            state: whose catalogue changes with the offer, and whose counters say how ads stand.
            models: make vectors and rows of ads.
            clock: the time in UTC milliseconds.
            reading: held while the state is read.
        """
        offer = Offer(state.catalogue, Eligibility(state.catalogue.raw), models.ad_rows)
        self.index = LiveIndex(index, config, about=offer)
        self.changed = False
        """Whether these are still the ads of the version."""
        self._state, self._models, self._clock = state, models, clock
        self._reading, self._changing = reading, threading.Lock()

    def check(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Whether ads could be put.

        Raises:
            DataError: lists every value that does not fit.
        """
        parse_ads(self._state.schema, rows)

    def require(self, ids: Collection[str | int]) -> None:
        """Whether ads are there, paused or not.

        Raises:
            DataError: an id is unknown or was removed.
        """
        self._rows(self.index.now.about.catalogue, ids)

    def put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add ads, or change all of those whose id is known; a paused ad stays paused.

        Args:
            rows: raw values by column, as the ads table of the log has them; what is absent is
                missing.

        Raises:
            DataError: lists every value that does not fit; no ad is changed.
        """
        frame = parse_ads(self._state.schema, rows)
        with self._changing:
            before = self.index.now.about
            catalogue, at_N = before.catalogue.put(self._state.features, frame)
            active = before.eligibility.active
            if active is not None:
                new_N = at_N[at_N >= active.rows]
                active = active.resized(len(catalogue)).plus(new_N)
            offer = Offer(catalogue, Eligibility(catalogue.raw, active), before.ad_rows)
            at_N = at_N[~self._look_the_same(at_N, before.catalogue, catalogue)]
            vectors_ND = None
            if len(at_N):
                vectors_ND, offer = self._embedded(at_N, offer)
            self._state.catalogue = catalogue  # before a search can find a row that it lacks
            if vectors_ND is None:
                self.index.tell(offer)
            else:
                self.index.put(at_N, vectors_ND, about=offer)
            self.changed = True

    def pause(self, ids: Collection[str | int]) -> None:
        """Show some ads no more until they are resumed.

        Raises:
            DataError: an id is unknown or was removed; no ad is paused.
        """
        self._set_active(ids, AdSet.without)

    def resume(self, ids: Collection[str | int]) -> None:
        """Show some ads again, paused or not.

        Raises:
            DataError: an id is unknown or was removed; no ad is resumed.
        """
        self._set_active(ids, AdSet.plus)

    def remove(self, ids: Collection[str | int]) -> None:
        """Take some ads away; `put` brings one back, with its past and not paused.

        Raises:
            DataError: an id is unknown or was removed already; no ad is removed.
        """
        with self._changing:
            offer = self.index.now.about
            at_N = self._rows(offer.catalogue, ids)
            active = offer.eligibility.active
            if active is not None:
                eligibility = Eligibility(offer.catalogue.raw, active.plus(at_N))
                offer = replace(offer, eligibility=eligibility)
            self.index.remove(at_N, about=offer)
            self.changed = True

    def _look_the_same(self, at_N: Ints, before: Catalogue, after: Catalogue) -> Bools:
        """Which ads are there and are to the models as before, as where only a bid has changed."""
        old_N = at_N < len(before)
        old_N[old_N] = self.index.now.has(at_N[old_N])
        was, now = before.encoded.take(at_N[old_N]), after.encoded.take(at_N[old_N])
        same = (was.categorical == now.categorical).all(axis=1)
        same &= (was.dense == now.dense).all(axis=1)
        old_N[old_N] = same
        return old_N

    def _embedded(self, at_N: Ints, offer: Offer) -> tuple[Floats, Offer]:
        """Vectors of some ads of an offer as they stand, and the offer with what the ranker makes
        of them."""
        encoded, ad_rows = offer.catalogue.encoded, offer.ad_rows
        with self._reading:
            standing_NS = self._state.standing(self._clock(), at_N, offer.catalogue)
        vectors_ND = embed_ads(self._models.two_tower, encoded.take(at_N), standing_NS)
        if ad_rows is not None:
            offer = replace(offer, ad_rows=ad_rows.with_ads(self._models.ranker, encoded, at_N))
        return vectors_ND, offer

    def _set_active(
        self, ids: Collection[str | int], change: Callable[[AdSet, Ints], AdSet]
    ) -> None:
        with self._changing:
            offer = self.index.now.about
            at_N = self._rows(offer.catalogue, ids)
            active = offer.eligibility.active
            if active is None:
                active = ~AdSet.none(len(offer.catalogue))
            changed = change(active, at_N)
            everyone = len(changed) == changed.rows
            eligibility = Eligibility(offer.catalogue.raw, None if everyone else changed)
            self.index.tell(replace(offer, eligibility=eligibility))
            self.changed = True

    def _rows(self, catalogue: Catalogue, ids: Collection[str | int]) -> Ints:
        texts = [as_text(ad) or "" for ad in ids]
        rows = np.array([catalogue.directory.row(text) for text in texts], np.int64)
        there = self.index.now.has(rows) & (rows > 0)
        if not there.all():
            missing = [text for text, known in zip(texts, there, strict=True) if not known]
            raise DataError(
                f"no ad is called {', '.join(repr(text) for text in missing[:5])}"
                f"{' and others' if len(missing) > 5 else ''}; nothing was changed"
            )
        return rows
