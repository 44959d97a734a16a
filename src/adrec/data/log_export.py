"""Log export: what a server logged, as the tables that the next version trains on.

The folder holds the log that the served version was trained on, under adrec's own names, and beside
its impressions a file for each day of serving. An impression is written once its outcomes are
settled, that is once the longest delay among the tasks is over. The same export again brings the
folder up to date, also after a version has been trained on it. What users did before they were
erased is in none of its files.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from adrec.data.event_log import EventLog
from adrec.data.files import SUFFIXES, reading
from adrec.data.log_entries import LoggedSlate, outcomes_of
from adrec.data.new_ads import parse_ads
from adrec.data.parsing import Column, raw_series
from adrec.data.tables import (
    Table,
    Tables,
    impression_columns,
    under_own_names,
    user_columns,
)
from adrec.errors import DataError, Problem
from adrec.progress import Progress
from adrec.schema import (
    AD_ID,
    POSITION,
    PROPENSITY,
    REQUEST_ID,
    TIMESTAMP_MS,
    USER_ID,
    Schema,
)

MS_PER_DAY = 86_400_000
SCHEMA_FILE = "schema.yaml"
_BEFORE = "0-before"  # sorts before every day
_ENDING = "-served"


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    days: tuple[str, ...]
    impressions: int
    """Of the days."""
    unsettled: int
    """Impressions left for a later export."""


def export_log(
    log: EventLog, known: Tables, out: Path, *, now_ms: int, progress: Progress, only_new: bool
) -> Exported:
    """Write a folder to train on; see above.

    Args:
        log: of a server.
        known: the log that its version was trained on.
        out: the folder; days that an earlier export wrote are kept unless the log still has them.
        now_ms: when outcomes have to be settled.
        progress: told of each day.
        only_new: leave out the impressions of `known`.

    Raises:
        DataError: a table of `known` cannot be read, or the folder holds another log.
        EventLogError: the event log cannot be read.
    """
    _require_ours(out)
    schema = under_own_names(known.schema)
    name = schema.name.removesuffix(_ENDING) + _ENDING  # a synthetic world's truth is not known
    schema = schema.model_copy(update={"name": name})
    ads, folder = _ads(log, known), out / "impressions"
    new_ms, settled_ms = _end_ms(known) + 1, now_ms - max(task.delay_ms for task in schema.tasks)
    erased_ms = log.erased() if schema.user_id else {}
    folder.mkdir(parents=True, exist_ok=True)
    if not only_new and not (folder / f"{_BEFORE}.parquet").exists():
        with reading(known.impressions.file):
            before = _without(known.impressions.frame(), erased_ms)
            _whole(folder / f"{_BEFORE}.parquet", before)
    for path in sorted(folder.glob("*.parquet")):
        _forget(path, erased_ms)
    profiles: dict[str, Mapping[str, Any]] = {}
    days, impressions = [], 0
    start_ms, end_ms = log.span_ms() or (0, -1)
    first, last = max(start_ms, new_ms) // MS_PER_DAY, end_ms // MS_PER_DAY
    with progress.track("export", max(last - first + 1, 0), "days") as advance:
        for day in range(first, last + 1):
            from_ms = max(day * MS_PER_DAY, new_ms)
            before_ms = min((day + 1) * MS_PER_DAY, settled_ms)
            shown = [
                (slate, outcomes_of(events, schema.tasks))
                for slate, events in log.shown(from_ms, before_ms)
                if slate.at_ms > erased_ms.get(slate.user_id or "", -1)
            ]
            profiles |= {
                slate.user_id: slate.profile
                for slate, _ in shown
                if slate.profile is not None and slate.user_id is not None
            }
            if shown:
                days.append(str(dt.datetime.fromtimestamp(from_ms / 1000, dt.UTC).date()))
                frame = impression_frame(schema, shown)
                impressions += frame.height
                path = folder / f"{days[-1]}.parquet"
                _whole(path, _beside_earlier(path, frame, _impressions(schema, frame, ads)))
            advance(1, "")
    if schema.ads_table:
        _whole(out / "ads.parquet", ads.lazy())
    users = known.user_frame()
    if users is not None:
        assert known.users is not None
        erased = [user for user, at_ms in erased_ms.items() if at_ms >= new_ms]
        users = users.filter(~pl.col(USER_ID).is_in(erased))
        users = _with_earlier(out / "users.parquet", users, known.users.file, erased_ms)
        users = _with_profiles(schema, users, profiles)
        _whole(out / "users.parquet", users.lazy())
    (out / SCHEMA_FILE).write_text(schema.dump())
    late = log.shown(max(settled_ms, new_ms), end_ms + 1)
    unsettled = sum(len({event.ad_id for event in events}) for _, events in late)
    return Exported(tuple(days), impressions, unsettled)


def impression_frame(
    schema: Schema, shown: Sequence[tuple[LoggedSlate, Mapping[str, Sequence[float]]]]
) -> pl.DataFrame:
    """Impressions of a log under adrec's own names; ads' fields are left out.

    Who came without an id is a new user each time, as while serving.

    Args:
        schema: under adrec's own names.
        shown: slates with the outcomes of their ads by id; ads without any are no impressions.
    """
    own = {field.name for field in schema.ad_fields}
    columns = [column for column in impression_columns(schema) if column.name not in own]
    names = [task.name for task in schema.tasks]
    slates = [
        {
            **slate.context,
            TIMESTAMP_MS: slate.at_ms,
            USER_ID: slate.user_id or f"anonymous {slate.request_id}",
            REQUEST_ID: slate.request_id,
        }
        for slate, _ in shown
    ]
    impressions = [
        (number, place, ad, outcomes[ad.ad_id])
        for number, (slate, outcomes) in enumerate(shown)
        for place, ad in enumerate(slate.ads, start=1)
        if ad.ad_id in outcomes
    ]
    ads = [
        {
            AD_ID: ad.ad_id,
            POSITION: place,
            PROPENSITY: ad.propensity,
            **dict(zip(names, outcomes, strict=True)),
        }
        for _, place, ad, outcomes in impressions
    ]
    slate_N = np.array([number for number, *_ in impressions], np.int64)
    of_ads = {AD_ID, POSITION, PROPENSITY, *names}
    parts = [
        _parsed("impressions", [c for c in columns if c.source not in of_ads], slates)[slate_N],
        _parsed("impressions", [c for c in columns if c.source in of_ads], ads),
    ]
    return pl.concat(parts, how="horizontal").select(column.name for column in columns)


def _require_ours(out: Path) -> None:
    """Refuse a folder that holds a log of somebody else's."""
    if there := [name for suffix in SUFFIXES if (out / (name := f"impressions{suffix}")).exists()]:
        problem = Problem(
            file=str(out / there[0]),
            problem="would stand beside the exported impressions",
            remedy="Choose another folder",
        )
        raise DataError("A log cannot be exported into another one:", [problem])


def _end_ms(known: Tables) -> int:
    """Time of the last impression."""
    with reading(known.impressions.file):
        last = known.impressions.frame().select(pl.col(TIMESTAMP_MS).max())
        return int(last.collect(engine="streaming").item())


def _without(rows: pl.LazyFrame, erased_ms: Mapping[str, int]) -> pl.LazyFrame:
    """Impressions without what users did before they were erased."""
    if not erased_ms:
        return rows
    at_ms = pl.col(USER_ID).replace_strict(erased_ms, default=None, return_dtype=pl.Int64)
    return rows.filter((pl.col(TIMESTAMP_MS) > at_ms).fill_null(True))


def _forget(path: Path, erased_ms: Mapping[str, int]) -> None:
    """Leave out of a file that an earlier export wrote what `_without` leaves out."""
    rows = pl.scan_parquet(path)
    remaining = _without(rows, erased_ms)
    counted = pl.len()
    if remaining.select(counted).collect().item() < rows.select(counted).collect().item():
        _whole(path, remaining)


def _beside_earlier(path: Path, logged: pl.DataFrame, new: pl.LazyFrame) -> pl.LazyFrame:
    """Impressions with those of the same day that an earlier export wrote and the log has no more:
    a version has learned from them, or they were pruned."""
    if not path.exists():
        return new
    old = pl.read_parquet(path)
    keys = [key for key in (TIMESTAMP_MS, USER_ID, REQUEST_ID, AD_ID) if key in old.columns]
    old = old.join(logged.select(keys), on=keys, how="anti", maintain_order="left")
    return pl.concat([old.lazy(), new]).sort(TIMESTAMP_MS, maintain_order=True)


def _impressions(schema: Schema, impressions: pl.DataFrame, ads: pl.DataFrame) -> pl.LazyFrame:
    """As the table of impressions has them; without those of ads that nothing is known of."""
    names = [column.name for column in impression_columns(schema)]
    fields = ads.lazy().select(name for name in ads.columns if name in (AD_ID, *names))
    joined = impressions.lazy().join(fields, on=AD_ID, how="inner", maintain_order="left")
    return joined.select(names)


def _ads(log: EventLog, known: Tables) -> pl.DataFrame:
    """The catalogue with the ads that were put while serving, under adrec's names."""
    ads = known.ad_frame()
    put = [change.fields for change in log.ad_changes() if change.fields is not None]
    if not put:
        return ads
    new = parse_ads(known.schema, put).select(ads.columns)
    return pl.concat([ads.join(new, on=AD_ID, how="anti"), new])


def _with_earlier(
    path: Path, users: pl.DataFrame, file: str, erased_ms: Mapping[str, int]
) -> pl.DataFrame:
    """Users with those that an earlier export wrote, with profiles that requests had brought: these
    may have been pruned. Who is in both stands as in the newer file."""
    if not path.exists():
        return users
    earlier = pl.read_parquet(path).filter(~pl.col(USER_ID).is_in(list(erased_ms)))
    newer, older = users, earlier.select(users.columns)
    if Path(file).exists() and path.stat().st_mtime_ns > Path(file).stat().st_mtime_ns:
        newer, older = older, newer
    return pl.concat([newer, older.join(newer, on=USER_ID, how="anti", maintain_order="left")])


def _with_profiles(
    schema: Schema, users: pl.DataFrame, profiles: Mapping[str, Mapping[str, Any]]
) -> pl.DataFrame:
    """The table of users with the profiles that requests brought in the place of older ones."""
    if not profiles:
        return users
    rows = [{**profile, USER_ID: user} for user, profile in profiles.items()]
    sequences = {field.name for field in schema.sequences}
    columns = [c for c in user_columns(schema) if c.name.partition(":")[0] not in sequences]
    new = _parsed("users", columns, rows)
    of_sequences = users.select(USER_ID, *(c for c in users.columns if c not in new.columns))
    new = new.join(of_sequences, on=USER_ID, how="left", maintain_order="left")
    rest = users.join(new, on=USER_ID, how="anti")
    return pl.concat([rest, new.select(users.columns)])


def _parsed(
    file: str, columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]
) -> pl.DataFrame:
    series = [raw_series(column, [row.get(column.source) for row in rows]) for column in columns]
    return Table(file, pl.LazyFrame(series), tuple(columns)).frame().collect()


def _whole(path: Path, frame: pl.LazyFrame) -> None:
    """Write a file so that it is there whole or not at all."""
    half = path.with_suffix(".half")
    frame.sink_parquet(half)
    half.replace(path)
