"""Features: fitted on training rows once, then the same for a table and for one request.

A log's fields fall into three groups by when they are known: the user's (before any request), the
request's (with it) and the ad's (with the catalogue). Each group becomes an `Encoded`: one integer
a categorical field, and floats for numbers and vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adrec.data.files import reading
from adrec.data.tables import Tables
from adrec.errors import DataError
from adrec.features.encoders import (
    EmbeddingEncoder,
    NumericEncoder,
    Vocabulary,
)
from adrec.features.fitting import FeatureConfig, Fit, summarise
from adrec.schema import (
    AD_ID,
    TIMESTAMP_MS,
    USER_ID,
    AnyField,
    CategoricalField,
    ClockField,
    CounterSpec,
    Schema,
    Strict,
    load_schema,
)

Encoder = Vocabulary | NumericEncoder | EmbeddingEncoder


@dataclass(frozen=True)
class Encoded:
    """A group of fields for N things.

    categorical: int32 [N, F], codes within each field. dense: float32 [N, D].
    """

    categorical: NDArray[np.int32]
    dense: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.categorical)

    def take(self, rows: NDArray[np.integer]) -> "Encoded":
        """The things at some rows, in the shape of `rows`."""
        return Encoded(self.categorical[rows], self.dense[rows])

    def codes(self, rows: NDArray[np.integer]) -> "Encoded":
        """The categorical fields alone of the things at some rows."""
        return Encoded(self.categorical[rows], np.zeros((len(rows), 0), np.float32))

    def append(self, other: "Encoded") -> "Encoded":
        """These things, then the other's."""
        return Encoded(
            np.concatenate([self.categorical, other.categorical]),
            np.concatenate([self.dense, other.dense]),
        )


class FieldGroup:
    """The encoders of one group of fields, in the order of the schema."""

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        self.encoders = tuple(encoders)
        self._categorical = [e for e in encoders if isinstance(e, Vocabulary)]
        self._dense = [e for e in encoders if not isinstance(e, Vocabulary)]
        self.categorical_names = tuple(vocabulary.name for vocabulary in self._categorical)
        """Names of the categorical fields, [F]."""

    @property
    def categorical_sizes(self) -> tuple[int, ...]:
        """Number of codes of each categorical field, [F]."""
        return tuple(vocabulary.size for vocabulary in self._categorical)

    @property
    def dense_width(self) -> int:
        """Floats of all numeric and embedding fields, D."""
        return sum(encoder.width for encoder in self._dense)

    def vocabulary(self, name: str) -> Vocabulary:
        """The vocabulary of a categorical field."""
        return self._categorical[self.categorical_names.index(name)]

    def quantile_columns(self) -> dict[str, int]:
        """For each numeric field, the column of `dense` that holds its quantile."""
        starts = np.cumsum([0, *(encoder.width for encoder in self._dense)])
        return {
            encoder.name: int(start) + 1
            for encoder, start in zip(self._dense, starts, strict=False)
            if isinstance(encoder, NumericEncoder)
        }

    def encode_frame(self, frame: pl.DataFrame) -> Encoded:
        """Encode the rows of a table."""
        rows = frame.height
        codes = np.empty((rows, len(self._categorical)), np.int32)
        for i, vocabulary in enumerate(self._categorical):
            codes[:, i] = vocabulary.encode_column(frame[vocabulary.name])
        dense, start = np.empty((rows, self.dense_width), np.float32), 0
        for encoder in self._dense:
            column = frame[encoder.name]
            place = slice(start, start := start + encoder.width)
            if isinstance(encoder, EmbeddingEncoder):
                dense[:, place] = encoder.encode_column(column)
            else:
                dense[:, place] = encoder.encode_column(column.cast(pl.Float32).to_numpy())
        return Encoded(codes, dense)

    def encode(self, values: Mapping[str, Any]) -> Encoded:
        """Encode one thing from raw values by field name; what is absent is missing. N is 1.

        Raises:
            RequestError: a value that does not fit its field.
        """
        codes = np.array([[v.encode(values.get(v.name)) for v in self._categorical]], np.int32)
        if not self._dense:
            return Encoded(codes, np.zeros((1, 0), np.float32))
        dense = np.concatenate([e.encode(values.get(e.name)) for e in self._dense])
        return Encoded(codes, dense[None, :])


@dataclass(frozen=True)
class Layout:
    """The sizes that a model is built from."""

    user_sizes: tuple[int, ...]
    user_dense: int
    request_sizes: tuple[int, ...]
    request_dense: int
    ad_sizes: tuple[int, ...]
    ad_dense: int
    history_lengths: tuple[int, ...]
    impressions: tuple[bool, ...]
    """Which sequences hold all that was shown, not only what was met positively."""
    counters: int
    standing: int
    """Counter features of ads alone: how each stands when the index is built."""
    user_counters: tuple[bool, ...]
    """Which counter features are of the user, alone or with something else."""
    ad_counters: tuple[bool, ...]
    """Which counter features are of the ad's id, alone or with something else."""
    ad_id_buckets: int
    """Codes for ads never seen; 0 where the ad's id is no feature. The id is the first field."""
    positions: int
    """Slate positions with a bias of their own; 0 where the log has no positions."""
    task_kinds: tuple[str, ...]
    task_weights: tuple[float, ...]
    task_means: tuple[float, ...]
    """Training mean of each label (binary) or of log(1 + value)."""
    value_scales: tuple[float, ...]
    """Training mean of a positive value; 1 for binary tasks."""


class _Fitted(Strict):
    """What `save` writes as JSON: all but the vocabularies' values."""

    config: FeatureConfig
    positions: int
    task_means: tuple[float, ...]
    value_scales: tuple[float, ...]
    numerics: tuple[NumericEncoder, ...]
    embeddings: tuple[EmbeddingEncoder, ...]
    buckets: dict[str, int]
    train_rows: int


class Features:
    """Encoders of every field, and what else was learned from the training rows."""

    def __init__(self, schema: Schema, fitted: _Fitted, vocabularies: Mapping[str, Vocabulary]):
        self.schema = schema
        self._fitted = fitted
        self._vocabularies = dict(vocabularies)
        encoders: dict[str, Encoder] = dict(self._vocabularies)
        encoders |= {encoder.name: encoder for encoder in fitted.numerics}
        encoders |= {encoder.name: encoder for encoder in fitted.embeddings}
        user, request, ad = _groups(schema, fitted.config)
        self.user = FieldGroup([encoders[field.name] for field in user])
        self.request = FieldGroup([encoders[field.name] for field in request])
        self.ad = FieldGroup([encoders[field.name] for field in ad])

    @property
    def train_rows(self) -> int:
        """Impressions that the features were fitted on."""
        return self._fitted.train_rows

    @property
    def priors(self) -> NDArray[np.float64]:
        """Training mean of each task's outcome, [K]."""
        return np.array(self._fitted.task_means)

    @cached_property
    def layout(self) -> Layout:
        """The sizes that a model is built from."""
        tasks = self.schema.tasks
        return Layout(
            user_sizes=self.user.categorical_sizes,
            user_dense=self.user.dense_width,
            request_sizes=self.request.categorical_sizes,
            request_dense=self.request.dense_width,
            ad_sizes=self.ad.categorical_sizes,
            ad_dense=self.ad.dense_width,
            history_lengths=tuple(field.length for field in self.schema.sequences),
            impressions=tuple(field.of_impressions for field in self.schema.sequences),
            counters=self._width(self.schema.counters),
            standing=self._width(self.schema.standing),
            user_counters=self._counters_of(USER_ID),
            ad_counters=self._counters_of(AD_ID),
            ad_id_buckets=self._fitted.config.buckets if self._fitted.config.embed_ad_id else 0,
            positions=self._fitted.positions,
            task_kinds=tuple(task.kind for task in tasks),
            task_weights=tuple(task.weight for task in tasks),
            task_means=self._fitted.task_means,
            value_scales=self._fitted.value_scales,
        )

    def _width(self, counters: Sequence[CounterSpec]) -> int:
        """Number of counter features."""
        return sum(len(spec.half_lives_hours) for spec in counters) * (1 + len(self.schema.tasks))

    def _counters_of(self, key: str) -> tuple[bool, ...]:
        """Which counter features have a column in their key."""
        return tuple(
            key in spec.columns for spec in self.schema.counters for _ in range(self._width([spec]))
        )

    @classmethod
    def fit(cls, tables: Tables, config: FeatureConfig, *, train_until_ms: int) -> Self:
        """Learn vocabularies, scales and means from impressions before `train_until_ms`.

        Raises:
            DataError: there is no impression before that time.
        """
        schema = tables.schema
        train = tables.impressions.frame().filter(pl.col(TIMESTAMP_MS) < train_until_ms)
        with reading(tables.impressions.file):
            summary = train.select(summarise(schema)).collect(engine="streaming").row(0, named=True)
        if not summary["rows"]:
            raise DataError("No impression is early enough to train on; see the split settings")
        fit = Fit(tables, train, config, summary["rows"])
        groups = [field for group in _groups(schema, config) for field in group]
        vocabularies = {f.name: fit.vocabulary(f) for f in groups if f.kind == "categorical"}
        vocabularies |= {f.name: _clock_vocabulary(f) for f in schema.clocks}
        fitted = _Fitted(
            config=config,
            positions=int(summary["positions"]),
            task_means=tuple(float(summary[f"mean:{task.name}"]) for task in schema.tasks),
            value_scales=tuple(float(summary[f"scale:{t.name}"] or 1.0) for t in schema.tasks),
            numerics=tuple(fit.numeric(f.name) for f in groups if f.kind == "numeric"),
            embeddings=tuple(fit.embedding(f) for f in groups if f.kind == "embedding"),
            buckets={name: vocabulary.buckets for name, vocabulary in vocabularies.items()},
            train_rows=summary["rows"],
        )
        return cls(schema, fitted, vocabularies)

    def encode_requests(self, frame: pl.DataFrame, first: NDArray[np.int64]) -> Encoded:
        """Encode the requests' fields of impressions; `first` are where their requests begin."""
        names = [encoder.name for encoder in self.request.encoders]
        frame = frame.select(TIMESTAMP_MS, *(name for name in names if name in frame.columns))
        if len(first) < frame.height:
            frame = frame[first]
        clocks = {
            clock.name: pl.Series(clock.at(frame[TIMESTAMP_MS].to_numpy())).cast(pl.String)
            for clock in self.schema.clocks
        }
        return self.request.encode_frame(frame.with_columns(**clocks))

    def encode_request(self, values: Mapping[str, Any], at_ms: int) -> Encoded:
        """Encode one request from raw values by field name; what is absent is missing.

        Raises:
            RequestError: a value that does not fit its field.
        """
        clocks = {clock.name: clock.at(at_ms) for clock in self.schema.clocks}
        return self.request.encode({**values, **clocks})

    def save(self, directory: Path) -> None:
        """Write `schema.yaml`, `features.json` and `vocabularies.parquet`."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "schema.yaml").write_text(self.schema.dump(), encoding="utf-8")
        (directory / "features.json").write_text(self._fitted.model_dump_json(indent=1))
        pl.DataFrame(
            [(name, text) for name, v in self._vocabularies.items() for text in v.values],
            schema={"field": pl.String, "value": pl.String},
            orient="row",
        ).write_parquet(directory / "vocabularies.parquet")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote."""
        schema = load_schema(directory / "schema.yaml")
        fitted = _Fitted.model_validate_json((directory / "features.json").read_text())
        values = pl.read_parquet(directory / "vocabularies.parquet")
        by_field = dict(values.group_by("field").agg("value").rows())
        vocabularies = {
            name: Vocabulary(name=name, values=tuple(by_field.get(name, ())), buckets=buckets)
            for name, buckets in fitted.buckets.items()
        }
        return cls(schema, fitted, vocabularies)


def _clock_vocabulary(clock: ClockField) -> Vocabulary:
    return Vocabulary(
        name=clock.name, values=tuple(str(value) for value in range(clock.values)), buckets=1
    )


def _groups(
    schema: Schema, config: FeatureConfig
) -> tuple[list[AnyField], list[AnyField], list[AnyField]]:
    """Fields of the user, the request and the ad, ids included where they are features."""
    user, request, ad = (
        list(schema.user_fields),
        list(schema.request_fields),
        list(schema.ad_fields),
    )
    if config.embed_ad_id:
        ad.insert(0, CategoricalField(name=AD_ID, kind="categorical", role="ad"))
    if config.embed_user_id and schema.user_id is not None:
        known = user if schema.users_table else request
        known.insert(0, CategoricalField(name=USER_ID, kind="categorical", role="user"))
    return user, request, ad
