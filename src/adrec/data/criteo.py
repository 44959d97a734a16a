"""Criteo display advertising: label, I1-I13, C1-C26, tab-separated, no header (Criteo Labs).

This is the layout of the Kaggle challenge and of the Terabyte logs (CC BY-NC-SA 4.0): `train.txt`,
`train.tsv` or either with `.gz`; an empty cell is a missing value, rows are in time order. The
layout gives no time, user or ad, so:

- the row's number, from 0, is its time in milliseconds;
- which fields describe the user and which the ad is declared here (by default I1-I13 and C1-C6 the
  user, C7-C26 the ad); fields in neither list are context;
- an ad is a distinct combination of its key fields, named by xxHash (XXH3, 64 bits) of their values
  and so by the same id on every machine and in every version. `adrec prepare` prints how
  many ads a key makes and how many of them were shown only once; a narrower key makes fewer and
  better known ads.
"""

from pathlib import Path

import polars as pl
import xxhash

from adrec.data.files import reading
from adrec.data.tables import Tables, tables_from
from adrec.errors import ConfigError, DataError, Problem
from adrec.schema import (
    AD_ID,
    TIMESTAMP_MS,
    AnyField,
    CategoricalField,
    CounterSpec,
    NumericField,
    Role,
    Schema,
    Task,
)

NUMBERS = tuple(f"I{i}" for i in range(1, 14))
CATEGORIES = tuple(f"C{i}" for i in range(1, 27))
COLUMNS = ("label", *NUMBERS, *CATEGORIES)
FILES = ("train.txt", "train.tsv", "train.txt.gz", "train.tsv.gz")

USER_FIELDS = (*NUMBERS, *CATEGORIES[:6])
AD_FIELDS = CATEGORIES[6:]
COUNTER_FIELDS = ("C7", "C11", "C18")


def open_criteo(
    path: Path,
    *,
    user_fields: tuple[str, ...] = USER_FIELDS,
    ad_fields: tuple[str, ...] = AD_FIELDS,
    ad_key: tuple[str, ...] | None = None,
    counter_fields: tuple[str, ...] = COUNTER_FIELDS,
) -> Tables:
    """Open a Criteo log.

    Args:
        path: the file, or a folder with exactly one of `FILES`.
        user_fields: what describes the user, out of I1-I13 and C1-C26.
        ad_fields: what describes the ad. An ad field outside `ad_key` takes its value from the
            ad's first impression.
        ad_key: the ad fields that together identify an ad; None: all of them.
        counter_fields: categorical fields whose past impressions and clicks are counted.

    Returns:
        Lazy tables: nothing but the first lines has been read.

    Raises:
        ConfigError: a field is unknown, used twice, or the key is empty or not of the ad.
        DataError: no such file, or not 40 columns.
    """
    schema = criteo_schema(
        user_fields=user_fields, ad_fields=ad_fields, counter_fields=counter_fields
    )
    key = ad_fields if ad_key is None else ad_key
    if not key or not set(key) <= set(ad_fields) or len(set(key)) < len(key):
        raise ConfigError(
            f"ad_key {key}: name at least one of the ad's fields, none twice; "
            f"ad_fields are {', '.join(ad_fields) or 'empty'}"
        )
    file = _find_file(path)
    frame = _scan(file).with_columns(_ad_id(key).alias(AD_ID))
    return tables_from(schema, {"impressions": (str(file), frame)})


def criteo_schema(
    *,
    user_fields: tuple[str, ...] = USER_FIELDS,
    ad_fields: tuple[str, ...] = AD_FIELDS,
    counter_fields: tuple[str, ...] = COUNTER_FIELDS,
) -> Schema:
    """What each column of a Criteo log is; see `open_criteo`."""
    known = (*NUMBERS, *CATEGORIES)
    unknown = sorted({*user_fields, *ad_fields} - set(known))
    twice = sorted(set(user_fields) & set(ad_fields))
    if unknown or twice:
        raise ConfigError(
            f"Criteo has the fields I1-I13 and C1-C26, each the user's or the ad's; "
            f"unknown: {', '.join(unknown) or 'none'}; both: {', '.join(twice) or 'none'}"
        )
    if not set(counter_fields) <= set(CATEGORIES):
        raise ConfigError(f"counter_fields {counter_fields}: choose from C1-C26")
    roles: dict[str, Role] = dict.fromkeys(user_fields, "user")
    roles |= dict.fromkeys(ad_fields, "ad")
    fields: list[AnyField] = []
    for name in known:
        role = roles.get(name, "context")
        if name in NUMBERS:
            fields.append(NumericField(name=name, kind="numeric", role=role))
        else:
            fields.append(CategoricalField(name=name, kind="categorical", role=role))
    return Schema(
        name="criteo",
        tasks=(Task(name="click", column="label"),),
        fields=tuple(fields),
        # Time is a row's number, so a half-life in hours would mean nothing.
        counters=tuple(CounterSpec(columns=(name,)) for name in counter_fields),
    )


def _find_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = [file for name in FILES if (file := path / name).is_file()]
    if len(found) == 1:
        return found[0]
    what = f"there are {', '.join(f.name for f in found)}" if found else "there is no log"
    raise DataError(
        "A Criteo log is one file:",
        [
            Problem(
                file=str(path), problem=what, remedy=f"Put exactly one there of {', '.join(FILES)}"
            )
        ],
    )


def _scan(file: Path) -> pl.LazyFrame:
    """All cells as text, each row's number as its time."""
    with reading(str(file)):
        if file.stat().st_size == 0:
            raise DataError(
                "A table has no content:",
                [Problem(file=str(file), problem="is empty", remedy="Download it again")],
            )
        first = pl.scan_csv(file, separator="\t", has_header=False, infer_schema_length=1)
        width = len(first.collect_schema())
    if width != len(COLUMNS):
        problem = Problem(
            file=str(file),
            row=1,
            problem=f"has {width} cells",
            remedy="A Criteo log has 40 without a header: label, I1-I13, C1-C26, split by tabs",
        )
        raise DataError("Not a Criteo log:", [problem])
    with reading(str(file)):
        return pl.scan_csv(
            file,
            separator="\t",
            has_header=False,
            quote_char=None,
            schema=dict.fromkeys(COLUMNS, pl.String()),
            row_index_name=TIMESTAMP_MS,
        )


def _ad_id(key: tuple[str, ...]) -> pl.Expr:
    """XXH3 of the key's values, in hexadecimal; a missing value counts as an empty one."""
    values = pl.concat_str([pl.col(name).fill_null("") for name in key], separator="\t")
    return values.map_batches(_hash, return_dtype=pl.String, is_elementwise=True)


def _hash(values: pl.Series) -> pl.Series:
    distinct = values.unique()
    hashes = [xxhash.xxh3_64_hexdigest(v) for v in distinct.cast(pl.Binary)]
    return values.replace_strict(distinct, pl.Series(hashes, dtype=pl.String))
