"""State: what is known now of users and ads. Prepared from a log, then moved on event by event.

The same state answers for a table (`advance`, for training and evaluation) and for one request
(`query` and `counters`, then `observe`): encoded users and ads, histories and counters. What either
gives is strictly older than the request.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adrec.data.parsing import as_text
from adrec.features.batches import Past, Query, query_of
from adrec.features.bits import outcome_bits
from adrec.features.catalogue import Catalogue
from adrec.features.counter_keys import CounterKeys, Keyed
from adrec.features.counters import Counter, counter_features, outcomes
from adrec.features.directory import Directory
from adrec.features.histories import History, Items, start_histories
from adrec.features.past import MS_PER_HOUR, numbered
from adrec.features.rows import Piece, Rows, first_rows
from adrec.features.transforms import Encoded, Features
from adrec.features.visitor import Report, Visitor, require_known
from adrec.schema import (
    AD_ID,
    POSITION,
    PROPENSITY,
    TIMESTAMP_MS,
    USER_ID,
    Schema,
    SequenceField,
)


class State:
    """Users, histories and counters as of the last event taken in."""

    def __init__(self, features: Features, catalogue: Catalogue) -> None:
        schema = features.schema
        self.features = features
        self.catalogue = catalogue
        self.users = Directory()
        self.static = features.user.encode({})
        delays = {task.name: task.delay_ms for task in schema.tasks}
        self.histories = [
            History(
                field.length,
                delay_ms=delays.get(field.grows_with or "", 0),
                outcome_delays_ms=tuple(delays.values()),
            )
            for field in schema.sequences
        ]
        self._keys = CounterKeys(features)
        self.all_counters = [
            Counter(
                half_lives_ms=np.array(
                    [np.inf if h is None else h * MS_PER_HOUR for h in spec.half_lives_hours]
                ),
                delays_ms=np.array([task.delay_ms for task in schema.tasks], np.int64),
            )
            for spec in schema.counters
        ]

    @property
    def schema(self) -> Schema:
        """The schema of the log."""
        return self.features.schema

    @classmethod
    def begin(
        cls,
        features: Features,
        catalogue: Catalogue,
        user_frame: pl.DataFrame | None,
        *,
        before_ms: int | None = None,
    ) -> Self:
        """The state before the first impression, from the table of users if there is one.

        `before_ms` is the log's start: history items that are known to be later are left out, as a
        table of users may have been exported when the log had ended.
        """
        state = cls(features, catalogue)
        if user_frame is None:
            return state
        state.users = Directory(user_frame[USER_ID].to_list())
        state.static = state.static.append(features.user.encode_frame(user_frame))
        start_histories(state.histories, state.schema, user_frame, catalogue.directory, before_ms)
        return state

    def advance(self, frame: pl.DataFrame, encoded: Encoded | None = None) -> Rows:
        """Read before, then take in, a piece of the log in time order, requests uncut.

        `encoded` are its requests, where they have been encoded already.
        """
        schema, rows = self.schema, frame.height
        piece = self._piece(frame, encoded)
        times, first, labels = piece.times_ms_N, piece.first_R, piece.labels_NK
        summed = outcomes(labels, schema.tasks)
        counters = [
            self._seen(counter.advance(key, times, summed, piece.happened_ms_N))
            for counter, key in zip(self.all_counters, piece.keys, strict=True)
        ]
        histories = [
            Past.of(items, times[first]) for items in self._advance_histories(piece, first)
        ]
        position = frame[POSITION].to_numpy() if schema.position else np.zeros(rows, np.int32)
        propensity = frame[PROPENSITY].to_numpy() if schema.propensity else np.ones(rows)
        return Rows(
            user_R=piece.user_N[first],
            time_ms_R=times[first],
            request=piece.request,
            histories=tuple(histories),
            slate_R=np.diff(np.append(first, rows)),
            ad_N=piece.ad_N,
            counters_NC=self._join(counters, rows),
            labels_NK=labels,
            position_N=position.astype(np.int32),
            propensity_N=propensity.astype(np.float32),
        )

    def take_in(self, frame: pl.DataFrame) -> None:
        """What `advance` takes in, in less time: without reading before."""
        piece = self._piece(frame)
        summed = outcomes(piece.labels_NK, self.schema.tasks)
        for counter, key in zip(self.all_counters, piece.keys, strict=True):
            counter.take_in(key, piece.times_ms_N, summed, piece.happened_ms_N)
        self._advance_histories(piece, np.zeros(0, np.int64))

    def _piece(self, frame: pl.DataFrame, encoded: Encoded | None = None) -> Piece:
        """A piece of the log in numbers; users who are new are known from then on."""
        schema, rows = self.schema, frame.height
        happened = frame[TIMESTAMP_MS].to_numpy()
        ads = self.catalogue.directory.rows(frame[AD_ID]).astype(np.int32)
        users = np.zeros(rows, np.int64)
        if schema.user_id is not None:
            users = self.users.rows(frame[USER_ID], grow=True)
        first = first_rows(frame, schema)
        slates = np.diff(np.append(first, rows))
        if encoded is None:
            encoded = self.features.encode_requests(frame, first)
        of_row = np.repeat(np.arange(len(first)), slates)
        static = self.static.codes(self._known(users))
        return Piece(
            user_N=users,
            ad_N=ads,
            first_R=first,
            times_ms_N=np.repeat(happened[first], slates),
            happened_ms_N=happened,
            labels_NK=frame.select(task.name for task in schema.tasks)
            .to_numpy()
            .astype(np.float32),
            request=encoded,
            keys=self._keys.all(self._keyed(users, static, encoded.codes(of_row), ads)),
        )

    def _advance_histories(self, piece: Piece, queries: NDArray[np.int64]) -> list[Items]:
        """Take a piece into the histories; what stands there before some of its rows."""
        bits, found = outcome_bits(piece.labels_NK), []
        for field, history in zip(self.schema.sequences, self.histories, strict=True):
            joins = self._joins(field, piece.labels_NK) & (piece.ad_N != 0)
            happened, times = piece.happened_ms_N, piece.times_ms_N
            rows = piece.user_N, piece.ad_N, times, joins, bits
            found.append(history.advance(*rows, queries, happened))
        return found

    def visit(
        self,
        user: str | int | None,
        at_ms: int,
        context: Mapping[str, Any],
        profile: Mapping[str, Any] | None = None,
    ) -> Visitor:
        """Encode who asks.

        Args:
            user: id; None or one never seen is a new user.
            at_ms: time of the request.
            context: raw values of the request's fields by name; what is absent is missing.
            profile: raw values of the user's fields; None takes what is stored.

        Raises:
            RequestError: a field that the schema does not have, or a value that does not fit it.
        """
        require_known(context, self.features.request.encoders, "context")
        user_id = as_text(user) or "" if self.schema.user_id is not None else ""
        row = self.users.row(user_id)
        if profile is None:
            static = self.static.take(self._known(np.array([row])))
        else:
            require_known(profile, self.features.user.encoders, "user")
            static = self.features.user.encode({**profile, USER_ID: user})
        request = self.features.encode_request({**context, USER_ID: user}, at_ms)
        return Visitor(row, at_ms, static, request, user_id)

    def query(self, visitor: Visitor) -> Query:
        """What a model is told of one request: B is 1."""
        at_ms = np.array([visitor.at_ms])
        items = [history.read(visitor.user, visitor.at_ms) for history in self.histories]
        sequences = [Past.of(one.as_row(), at_ms) for one in items]
        return query_of(visitor.static, visitor.request, self.catalogue.encoded, sequences)

    def counters(
        self,
        visitor: Visitor,
        ads_N: NDArray[np.integer],
        catalogue: Catalogue | None = None,
    ) -> NDArray[np.float32]:
        """Counter features of some candidates of one request, [N, C]; of the state's own catalogue,
        or of the one that is given."""
        user = np.array([visitor.user])
        keyed = self._keyed(user, visitor.static, visitor.request, ads_N, catalogue)
        return self._read(self.all_counters, self._keys.all(keyed), len(ads_N), visitor.at_ms)

    def standing(
        self,
        at_ms: int,
        ads_N: NDArray[np.integer] | None = None,
        catalogue: Catalogue | None = None,
    ) -> NDArray[np.float32]:
        """Counter features of ads alone, [N, S].

        Args:
            at_ms: when.
            ads_N: rows; None: every row of the catalogue.
            catalogue: that they are rows of; None: the state's own.
        """
        catalogue = catalogue or self.catalogue
        rows = np.arange(len(catalogue)) if ads_N is None else ads_N
        keyed = self._keyed(np.zeros(1, np.int64), self.static, self.static, rows, catalogue)
        counters, keys = [], []
        for spec, counter in zip(self.schema.counters, self.all_counters, strict=True):
            if spec in self.schema.standing:
                counters.append(counter)
                keys.append(self._keys.of(spec, keyed))
        found = self._read(counters, keys, len(rows), at_ms)
        found[rows == 0] = 0.0
        return found

    def observe(self, visitor: Visitor, ad: int, labels_K: Sequence[float]) -> None:
        """Take in one impression and its outcomes. A new user is known from then on."""
        self.report(visitor, [Report(ad, None, labels_K)])

    def amend(
        self, visitor: Visitor, ad: int, before_K: Sequence[float], after_K: Sequence[float]
    ) -> None:
        """Take in outcomes that were reported after their impression was observed: all so far, and
        those that were taken in before."""
        self.report(visitor, [Report(ad, before_K, after_K)])

    def report(self, visitor: Visitor, reports: Sequence[Report]) -> None:
        """Take in what came of impressions of one request, one after the other.

        Outcomes that are reported after their impression count from the impression's time, once the
        delay of their task is over: what was reported before that stands as if it had been observed
        with the impression.

        Args:
            visitor: as the request was answered for.
            reports: in the order in which they came.
        """
        new = [i for i, report in enumerate(reports) if report.before_K is None]
        amended = [i for i, report in enumerate(reports) if report.before_K is not None]
        user = visitor.user
        if visitor.user_id:
            user = (self.users.add if new else self.users.row)(visitor.user_id)
        ads_N = np.array([report.ad for report in reports])
        nothing = [0.0] * len(self.schema.tasks)
        before_NK = np.array([report.before_K or nothing for report in reports], np.float32)
        after_NK = np.array([report.after_K for report in reports], np.float32)
        summed_NK = outcomes(after_NK, self.schema.tasks)
        added_NK = summed_NK - outcomes(before_NK, self.schema.tasks)
        keyed = self._keyed(np.array([user]), visitor.static, visitor.request, ads_N)
        keys = zip(self.schema.counters, self.all_counters, self._keys.all(keyed), strict=True)
        for spec, counter, keys_N in keys:
            if not user and USER_ID in spec.columns:  # nobody has no past
                continue
            of_all = keys_N.tolist() * (1 if len(keys_N) == len(reports) else len(reports))
            if new:
                counter.observe([of_all[i] for i in new], visitor.at_ms, summed_NK[new])
            for i in amended:
                counter.amend(of_all[i], visitor.at_ms, added_NK[i])
        bits_N = outcome_bits(after_NK).tolist()
        for field, history in zip(self.schema.sequences, self.histories, strict=True):
            joined_N, joins_N = self._joins(field, before_NK), self._joins(field, after_NK)
            for i, report in enumerate(reports):
                if not (report.ad and joins_N[i]):
                    continue
                if report.before_K is None or not joined_N[i]:
                    history.observe(user, report.ad, visitor.at_ms, bits_N[i])
                else:
                    history.amend(user, report.ad, visitor.at_ms, bits_N[i])

    def forget(self, user_ids: Iterable[str]) -> None:
        """Erase what is known of users: fields, histories, and counters of their own.

        Counters that many users share keep what these did.
        """
        rows = np.unique([self.users.row(user_id) for user_id in user_ids]).astype(np.int64)
        rows = rows[rows > 0]
        if not len(rows):
            return
        for history in self.histories:
            history.forget(rows)
        for spec, counter in zip(self.schema.counters, self.all_counters, strict=True):
            if (theirs := self._keys.of_users(spec, rows)) is not None:
                counter.forget(theirs)
        known = rows[rows < len(self.static)]
        self.static.categorical[known] = self.static.categorical[0]
        self.static.dense[known] = self.static.dense[0]

    @property
    def met(self) -> list[History]:
        """The histories of ads that were met positively, not merely shown."""
        pairs = zip(self.schema.sequences, self.histories, strict=True)
        return [history for field, history in pairs if not field.of_impressions]

    def history_ads(self, visitor: Visitor) -> NDArray[np.int32]:
        """Ads that the one who asks met positively: those in `met`."""
        ads = [history.read(visitor.user, visitor.at_ms).ads for history in self.met]
        return np.unique(np.concatenate([np.zeros(0, np.int32), *ads]))

    def parts(self) -> Iterator[tuple[str, History | Counter]]:
        """Histories and counters by name."""
        for field, history in zip(self.schema.sequences, self.histories, strict=True):
            yield f"history_{field.name}", history
        for i, counter in enumerate(self.all_counters):
            yield f"counter_{i}", counter

    def _joins(self, field: SequenceField, labels_NK: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which impressions join a sequence, [N]."""
        if field.of_impressions or field.grows_with is None:
            return np.full(len(labels_NK), field.of_impressions)
        names = [task.name for task in self.schema.tasks]
        positive: NDArray[np.bool_] = labels_NK[:, names.index(field.grows_with)] > 0
        return positive

    def _known(self, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of each user in the table of users; 0 for one that only the log knows."""
        known: NDArray[np.int64] = np.where(users < len(self.static), users, 0)
        return known

    def _keyed(
        self,
        users_N: NDArray[np.int64],
        static: Encoded,
        request: Encoded,
        ads_N: NDArray[np.integer],
        catalogue: Catalogue | None = None,
    ) -> Keyed:
        return Keyed(users_N, static, request, ads_N, (catalogue or self.catalogue).encoded)

    def _read(
        self,
        counters: Sequence[Counter],
        keys: Sequence[NDArray[np.int64]],
        rows: int,
        at_ms: int,
    ) -> NDArray[np.float32]:
        """Features of each counter's keys as of a request, [rows, C]: a key for each row, or one
        for all. Most rows share their keys with others."""
        if not counters:
            return self._join([], rows)
        places, sums = [], []
        for counter, key_N in zip(counters, keys, strict=True):
            distinct, place_N = numbered(key_N)
            places.append(place_N)
            sums.append(counter.read(distinct, at_ms))
        # All at once: a key's half-lives one after the other, as if each were a key.
        seen = self._seen(np.concatenate([part.reshape(-1, 1, part.shape[-1]) for part in sums]))
        ends = np.cumsum([part.shape[0] * part.shape[1] for part in sums])
        parts = []
        for place_N, part, of_keys in zip(places, sums, np.split(seen, ends[:-1]), strict=True):
            seen_UC = of_keys.reshape(len(part), -1)
            one_for_all = len(place_N) != rows
            parts.append(
                np.broadcast_to(seen_UC, (rows, seen_UC.shape[1]))
                if one_for_all
                else seen_UC[place_N]
            )
        return self._join(parts, rows)

    def _seen(self, sums: NDArray[np.float64]) -> NDArray[np.float32]:
        return counter_features(sums, self.features.priors, self.schema.tasks)

    def _join(self, parts: Sequence[NDArray[np.float32]], rows: int) -> NDArray[np.float32]:
        return np.concatenate(parts, axis=1) if parts else np.zeros((rows, 0), np.float32)
