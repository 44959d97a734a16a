"""Open Bandit: a fashion shop's recommendations with propensities (Saito et al., 2021; CC BY 4.0).

The folder holds the data set's own files (`random/all/all.csv`, `item_context.csv` beside it, ...),
or `{bts,random}_{all,men,women}.parquet` and `items_{all,men,women}.parquet` (or CSV, TSV). bts
is Bernoulli Thompson sampling, random is uniform; both were logged side by side, so each can judge
an estimate made from the other. Item = ad. Position is 1 to 3; the propensity is that of the item
at that position. There are no user ids and no request ids: four hashed user features and
the affinities of the visitor to each item (one vector, `affinity`) arrive with the request.
"""

import re
from pathlib import Path
from typing import Literal, get_args

import polars as pl

from adrec.data.files import scan_table
from adrec.data.tables import Tables, require_columns, tables_from
from adrec.errors import DataError, Problem
from adrec.schema import (
    AnyField,
    CategoricalField,
    CounterSpec,
    EmbeddingField,
    NumericField,
    Schema,
    Task,
)

LoggingPolicy = Literal["bts", "random"]
Campaign = Literal["all", "men", "women"]
POLICIES: tuple[LoggingPolicy, ...] = get_args(LoggingPolicy)
CAMPAIGNS: tuple[Campaign, ...] = get_args(Campaign)

_AFFINITY = re.compile(r"user-item_affinity_(\d+)")


def open_open_bandit(directory: Path, *, policy: LoggingPolicy, campaign: Campaign) -> Tables:
    """Open the log of one policy in one campaign.

    Args:
        directory: the folder with the six logs and three tables of items.
        policy: which policy chose the items.
        campaign: which part of the shop.

    Returns:
        Lazy tables.

    Raises:
        DataError: a file or a column is missing.
    """
    tables = directory, f"{policy}_{campaign}", f"items_{campaign}"
    if (own := own_log(directory, policy, campaign)).is_file():
        tables = own.parent, campaign, "item_context"
    folder, log, catalogue = tables
    file, impressions = scan_table(folder, log)
    items_file, items = scan_table(folder, catalogue)
    require_columns(file, impressions, ("timestamp",))
    columns = impressions.collect_schema()
    affinities = sorted(
        (name for name in columns if _AFFINITY.fullmatch(name)),
        key=lambda name: int(name.rpartition("_")[2]),
    )
    if not affinities:
        problem = Problem(
            file=file,
            column="user-item_affinity_0",
            problem="there is no column of affinities",
            remedy="Take the files of the data set as they are",
        )
        raise DataError("Not an Open Bandit log:", [problem])
    numbers = [pl.col(name).cast(pl.Float32, strict=False) for name in affinities]
    impressions = impressions.with_columns(affinity=pl.concat_arr(numbers))
    return tables_from(
        open_bandit_schema(affinities=len(affinities)),
        {"impressions": (file, impressions), "ads": (items_file, items)},
    )


def own_log(directory: Path, policy: LoggingPolicy, campaign: Campaign) -> Path:
    """Where the data set itself has the log of a policy in a campaign."""
    return directory / policy / campaign / f"{campaign}.csv"


def open_bandit_schema(*, affinities: int) -> Schema:
    """What each column is; `affinities` is the number of items in the campaign."""
    fields: list[AnyField] = [
        *(
            CategoricalField(name=f"user_feature_{i}", kind="categorical", role="user")
            for i in range(4)
        ),
        EmbeddingField(name="affinity", kind="embedding", role="user", dim=affinities),
        NumericField(name="item_feature_0", kind="numeric", role="ad"),
        *(
            CategoricalField(name=f"item_feature_{i}", kind="categorical", role="ad")
            for i in range(1, 4)
        ),
    ]
    return Schema(
        name="open_bandit",
        ad_id="item_id",
        timestamp="timestamp",
        timestamp_unit="iso8601",
        position="position",
        propensity="propensity_score",
        ads_table=True,
        tasks=(Task(name="click"),),
        fields=tuple(fields),
        counters=(CounterSpec(columns=("ad_id",)),),
    )
