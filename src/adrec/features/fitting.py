"""What the training rows teach: vocabularies, scales and means, one field at a time.

`Fit` makes the passes over a log's tables; `Features.fit` asks it for an encoder of each field.
"""

import polars as pl
from pydantic import Field

from adrec.data.files import reading
from adrec.data.tables import Tables
from adrec.features.encoders import (
    EmbeddingEncoder,
    NumericEncoder,
    Vocabulary,
    fit_embedding,
    fit_numeric,
    fit_vocabulary,
)
from adrec.schema import (
    AD_ID,
    POSITION,
    USER_ID,
    AnyField,
    CategoricalField,
    Schema,
    Strict,
)

_COUNT = "adrec:count"  # no field's name
_ROW = "adrec:row"


class FeatureConfig(Strict):
    """How fields become numbers."""

    min_count: int = Field(default=5, ge=1)
    """Training impressions that a value needs for a code of its own."""
    max_vocabulary: int = Field(default=1_000_000, ge=1)
    """Most codes of one field; the most frequent values get them."""
    buckets: int = Field(default=64, ge=1)
    """Hashed codes a field for rare and new values."""
    embed_ad_id: bool = True
    """Whether an ad's id is a feature of the ad."""
    embed_user_id: bool = False
    """Whether a user's id is a feature of the user. Histories and counters tell more of most."""
    refresh_hours: float = Field(default=24.0, gt=0.0)
    """How often the index will be built anew: retrieval learns from ads as they stood at the start
    of such a period."""
    sample_rows: int = Field(default=500_000, ge=1000)
    """Training rows from which quantiles and scales are taken."""


def summarise(schema: Schema) -> list[pl.Expr]:
    """Rows, positions, and mean and scale of each task."""
    wanted = [pl.len().alias("rows")]
    wanted.append(
        (pl.col(POSITION).max() if schema.position is not None else pl.lit(0)).alias("positions")
    )
    for task in schema.tasks:
        label = pl.col(task.name).cast(pl.Float64)
        value = task.kind == "value"
        wanted.append((label.log1p() if value else label).mean().alias(f"mean:{task.name}"))
        scale = label.filter(label > 0).mean() if value else pl.lit(1.0)
        wanted.append(scale.alias(f"scale:{task.name}"))
    return wanted


class Fit:
    """The passes over the tables that fitting needs."""

    def __init__(self, tables: Tables, train: pl.LazyFrame, config: FeatureConfig, rows: int):
        self._tables = tables
        self._config = config
        self._train = train
        self._step = max(1, rows // config.sample_rows)
        self._users = tables.user_frame()
        self._ads = tables.ad_frame()
        with reading(tables.impressions.file):
            self._shown = self._counted(AD_ID)
            self._active = self._counted(USER_ID) if tables.schema.user_id is not None else None
        self._sampled: pl.DataFrame | None = None

    def _counted(self, name: str) -> pl.DataFrame:
        """How many training impressions each id or category has."""
        counts = self._train.group_by(name).len(_COUNT).collect(engine="streaming")
        return counts.with_columns(pl.col(name).cast(pl.String))

    def _things(self, field: AnyField) -> pl.DataFrame | None:
        """The users or ads that carry a field, with their number of training impressions."""
        table = "ads" if field.role == "ad" else self._tables.schema.table_of(field)
        if table == "ads":
            return self._ads.join(self._shown, on=AD_ID, how="left")
        if table == "users" and self._users is not None and self._active is not None:
            return self._users.join(self._active, on=USER_ID, how="left")
        return None

    def vocabulary(self, field: CategoricalField) -> Vocabulary:
        """Codes by number of training impressions."""
        if field.name == USER_ID and self._active is not None:
            counts = self._active.rename({USER_ID: "value", _COUNT: "count"})
        else:
            things = self._things(field)
            if things is None:
                with reading(self._tables.impressions.file):
                    counts = self._counted(field.name).rename(
                        {field.name: "value", _COUNT: "count"}
                    )
            else:
                counts = things.group_by(pl.col(field.name).alias("value")).agg(
                    pl.col(_COUNT).sum().alias("count")
                )
        return fit_vocabulary(
            field.name,
            counts,
            min_count=self._config.min_count,
            max_size=self._config.max_vocabulary,
            buckets=self._config.buckets,
        )

    def _sample(self, name: str) -> pl.Series:
        field = next(f for f in self._tables.schema.fields if f.name == name)
        things = self._things(field)
        if things is not None:
            return things.drop_nulls(_COUNT)[name]
        if self._sampled is None:
            sampled = [f.name for f in self._tables.schema.fields if self._is_sampled(f)]
            rows = self._train.select(sampled).with_row_index(_ROW)
            with reading(self._tables.impressions.file):
                kept = rows.filter(pl.col(_ROW) % self._step == 0)
                self._sampled = kept.collect(engine="streaming")
        return self._sampled[name]

    def _is_sampled(self, field: AnyField) -> bool:
        """Whether a field's numbers are those of a sample of the impressions."""
        return field.kind in ("numeric", "embedding") and self._things(field) is None

    def numeric(self, name: str) -> NumericEncoder:
        """Mean, spread and quantiles; each user or ad of the training rows counts once."""
        return fit_numeric(name, self._sample(name).cast(pl.Float64).to_numpy())

    def embedding(self, field: AnyField) -> EmbeddingEncoder:
        """The scale of the vectors."""
        assert field.kind == "embedding"
        return fit_embedding(field.name, field.dim, self._sample(field.name))
