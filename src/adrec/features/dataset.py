"""Dataset: a prepared log on disk, read through memory maps, request by request.

`prepare` passes over the log once in time order. Each array is a file of raw numbers that grows as
the pass goes on, so memory does not grow with the log; `dataset.json` says what each holds.
"""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from adrec.data.splits import Split, SplitConfig, split_times
from adrec.data.spool import Spool, spool
from adrec.data.tables import Tables
from adrec.errors import ConfigError, DataError
from adrec.features.batches import Batch, Past, Query, candidates_of, query_of
from adrec.features.catalogue import Catalogue, load_encoded
from adrec.features.fitting import FeatureConfig
from adrec.features.memory import load_state, save_state
from adrec.features.past import MS_PER_HOUR
from adrec.features.rows import Rows, first_rows
from adrec.features.state import State
from adrec.features.transforms import Encoded, Features
from adrec.progress import Progress
from adrec.schema import REQUEST_ID, TIMESTAMP_MS, Schema

SplitName = Literal["train", "valid", "test"]
ItemT = TypeVar("ItemT")

_SPOOL = "spool"

_READ_ERRORS = (pl.exceptions.PolarsError, SafetensorError, ConfigError)


def prepare(
    tables: Tables,
    directory: Path,
    *,
    split: SplitConfig,
    config: FeatureConfig,
    chunk_rows: int = 125_000,
    progress: Progress | None = None,
) -> "Dataset":
    """Fit the features, then turn a log into arrays ready for training.

    The folder appears whole or not at all. It also holds the features, the encoded ads, and the
    state of users and counters at the start of the test period and at the end of the log.

    Raises:
        DataError: a table cannot be read, or nothing is left to train on.
        ConfigError: a split without impressions.
    """
    progress = progress or Progress()
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = directory.with_name(directory.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    log = spool(tables, unfinished / _SPOOL, piece_rows=chunk_rows, progress=progress)
    times = split_times(log, split)
    progress.say("fitting features")
    features = Features.fit(log, config, train_until_ms=times.valid_from_ms)
    ads = log.ad_frame(before_ms=None if split.test_to is None else times.end_ms)
    catalogue = Catalogue.of(features, ads)
    state = State.begin(features, catalogue, log.user_frame(), before_ms=times.start_ms)
    starts_ms = _period_starts(times, config.refresh_hours)
    with _Writer(unfinished) as writer, progress.track("prepare", log.rows()) as advance:
        for piece in _ahead(_encoded(log, features, [*starts_ms[1:], times.end_ms])):
            for start_ms, part in zip(starts_ms, piece, strict=True):
                if part is None:
                    continue
                if start_ms not in writer.period_ms:
                    writer.begin_period(start_ms, state.standing(start_ms))
                    if start_ms == times.test_from_ms:
                        save_state(state, unfinished / "state_at_test")
                writer.write(state.advance(*part))
                advance(part[0].height, "")
        writer.finish(times, len(catalogue))
    features.save(unfinished / "features")
    catalogue.save(unfinished)
    save_state(state, unfinished / "state")
    shutil.rmtree(unfinished / _SPOOL)
    prepared = Dataset(unfinished)
    _require_requests(prepared)
    if directory.exists():
        shutil.rmtree(directory)
    unfinished.rename(directory)
    if unknown := prepared.unknown_ads:
        progress.say(f"left out: {unknown:,} impressions of ads that the ads table does not have")
    return Dataset(directory)


_Part = tuple[pl.DataFrame, Encoded]


def _encoded(log: Spool, features: Features, ends_ms: list[int]) -> Iterator[list[_Part | None]]:
    """Each piece of a log, cut where a request of it comes at or after one of some times; each part
    with its requests encoded, None where it has no rows. What is after the last is left out."""
    for frame in log.frames():
        asked_ms = _request_times(frame, log.schema)
        bounds = [0, *np.searchsorted(asked_ms, ends_ms).tolist()]
        parts = [frame[start:end] for start, end in pairwise(bounds)]
        yield [
            (part, features.encode_requests(part, first_rows(part, log.schema)))
            if part.height
            else None
            for part in parts
        ]


def _ahead(items: Iterator[ItemT]) -> Iterator[ItemT]:
    """The same items, each made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(next, items, None)
        while (item := made.result()) is not None:
            made = thread.submit(next, items, None)
            yield item


def _require_requests(dataset: "Dataset") -> None:
    """Impressions may be there, and their requests have begun in an earlier period."""
    names: tuple[SplitName, ...] = ("train", "valid", "test")
    for name in names:
        if not len(dataset.requests(name)):
            raise ConfigError(f"split: no request begins in the {name} period; choose other times")


def _period_starts(times: Split, refresh_hours: float) -> list[int]:
    """When the index would have been built: at the log's start, every so many hours counted back
    from the start of the test period, and there for the last time."""
    every_ms = max(1, round(refresh_hours * MS_PER_HOUR))
    back = range(times.test_from_ms, times.start_ms, -every_ms)
    return [times.start_ms, *reversed(back)]


def _request_times(frame: pl.DataFrame, schema: Schema) -> NDArray[np.int64]:
    """When the request of each row came: the time of its first row, [N] ascending."""
    time = pl.col(TIMESTAMP_MS)
    if schema.request_id is not None:
        time = time.first().over(REQUEST_ID)
    return frame.select(time).to_series().to_numpy()


@dataclass(frozen=True)
class ArraySpec:
    """What a file of raw numbers holds."""

    dtype: str
    shape: tuple[int, ...]


class _Writer:
    """Appends pieces of a log to one file an array."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = ExitStack()
        self._open: dict[str, Any] = {}
        self._specs: dict[str, ArraySpec] = {}
        self._shown_A: NDArray[np.int64] = np.zeros(1, np.int64)
        self._impressions = 0
        self.period_ms: list[int] = []

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def write(self, rows: Rows) -> None:
        """Append one piece."""
        arrays: dict[str, NDArray[Any]] = {
            "user": rows.user_R,
            "time_ms": rows.time_ms_R,
            "request_categorical": rows.request.categorical,
            "request_dense": rows.request.dense,
            "slate": rows.slate_R,
            "offset": self._impressions + np.cumsum(rows.slate_R) - rows.slate_R,
            "ad": rows.ad_N,
            "counters": rows.counters_NC,
            "labels": rows.labels_NK,
            "position": rows.position_N,
            "propensity": rows.propensity_N,
        }
        for i, (ads, gap, bits) in enumerate(rows.histories):
            arrays |= {f"history_{i}": ads, f"gap_{i}": gap, f"outcome_{i}": bits}
        for name, array in arrays.items():
            self._append(name, array)
        self._impressions += len(rows.ad_N)
        shown_A = np.bincount(rows.ad_N, minlength=len(self._shown_A))
        shown_A[: len(self._shown_A)] += self._shown_A
        self._shown_A = shown_A

    def begin_period(self, start_ms: int, standing_AS: NDArray[np.float32]) -> None:
        """Append how all ads stand when a period begins."""
        self.period_ms.append(start_ms)
        self._append("standing", standing_AS[None])

    def _append(self, name: str, array: NDArray[Any]) -> None:
        if name not in self._open:
            file = (self._directory / f"{name}.bin").open("wb")
            self._open[name] = self._files.enter_context(file)
            self._specs[name] = ArraySpec(array.dtype.str, (0, *array.shape[1:]))
        self._open[name].write(np.ascontiguousarray(array).data)
        spec = self._specs[name]
        self._specs[name] = ArraySpec(spec.dtype, (spec.shape[0] + len(array), *spec.shape[1:]))

    def finish(self, split: Split, ads: int) -> None:
        """Write how often each ad was shown, what the files hold and where the periods begin."""
        self._append("offset", np.array([self._impressions]))
        self._append("shown", np.append(self._shown_A, np.zeros(ads, np.int64))[:ads])
        arrays = {name: asdict(spec) for name, spec in self._specs.items()}
        content = {
            "arrays": arrays,
            "split": asdict(split),
            "period_ms": self.period_ms,
        }
        (self._directory / "dataset.json").write_text(json.dumps(content, indent=1))


class Dataset:
    """A prepared log: R requests, N impressions, in time order."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fold = ""
        """Name of the fold that is held out, if one is: a view of another is another log."""
        self._held_R: NDArray[np.bool_] | None = None
        self._static: Encoded | None = None
        with _whole(directory):
            content = json.loads((directory / "dataset.json").read_text())
            specs = {name: ArraySpec(**spec) for name, spec in content["arrays"].items()}
            arrays = {name: _map_array(directory / f"{name}.bin", s) for name, s in specs.items()}
            self.split = Split(**content["split"])
            self.features = Features.load(directory / "features")
            self.catalogue = Catalogue.load(directory)
            self.user_R, self.time_ms_R = arrays["user"], arrays["time_ms"]
            self.request = Encoded(arrays["request_categorical"], arrays["request_dense"])
            self.histories = tuple(
                Past(arrays[f"history_{i}"], arrays[f"gap_{i}"], arrays[f"outcome_{i}"])
                for i in range(len(self.features.schema.sequences))
            )
            self.slate_R, self.ad_N = arrays["slate"], arrays["ad"]
            self.counters_NC, self.labels_NK = arrays["counters"], arrays["labels"]
            self.position_N, self.propensity_N = arrays["position"], arrays["propensity"]
            self.period_ms_P = np.array(content["period_ms"], np.int64)
            self.standing_PAS = arrays["standing"]
            self.offset_R, self._shown_A = arrays["offset"], arrays["shown"]

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.user_R)

    @property
    def met(self) -> list[Past]:
        """The histories of ads that were met positively, not merely shown."""
        pairs = zip(self.features.schema.sequences, self.histories, strict=True)
        return [past for field, past in pairs if not field.of_impressions]

    @property
    def static(self) -> Encoded:
        """Encoded fields of the users in the table of users; row 0 for all others."""
        if self._static is None:
            with _whole(self.directory):
                self._static = load_encoded(self.directory / "state" / "users.safetensors")
        return self._static

    def state(self, when: Literal["test", "end"]) -> State:
        """What was known at the start of the test period, or at the end of the log."""
        folder = self.directory / ("state_at_test" if when == "test" else "state")
        with _whole(self.directory):
            return load_state(folder, self.features, self.catalogue)

    def through_validation(self) -> "Dataset":
        """The same log with the validation period as a part of the training period."""
        joined = copy(self)
        joined.split = replace(self.split, valid_from_ms=self.split.test_from_ms)
        return joined

    def holding_out(self, held_R: NDArray[np.bool_], fold: str) -> "Dataset":
        """The same log with a fold of its requests held out: not trained on, and alone judged.

        Training and validation requests are those of the others, test requests those of the fold.
        Arrays, features and states are the whole log's.

        Args:
            held_R: which requests the fold has, [R]; all of a user's or none.
            fold: its name, which tells this view from others.
        """
        view = copy(self)
        view.fold, view._held_R = fold, held_R
        return view

    def everyone(self) -> "Dataset":
        """The same log with nobody held out."""
        view = copy(self)
        view.fold, view._held_R = "", None
        return view

    @property
    def held_users(self) -> NDArray[np.int64]:
        """Users who are held out, ascending; none where no fold is."""
        held_R = np.zeros(len(self), bool) if self._held_R is None else self._held_R
        users: NDArray[np.int64] = np.unique(self.user_R[held_R])
        return users[users > 0]

    def requests(self, split: SplitName) -> NDArray[np.int64]:
        """Requests of a period, in time order; where a fold is held out, those of one side."""
        bounds = np.searchsorted(
            self.time_ms_R, [self.split.valid_from_ms, self.split.test_from_ms]
        ).tolist()
        start, end = {
            "train": (0, bounds[0]),
            "valid": (bounds[0], bounds[1]),
            "test": (bounds[1], len(self)),
        }[split]
        requests: NDArray[np.int64] = np.arange(start, end)
        if self._held_R is None:
            return requests
        mine: NDArray[np.int64] = requests[self._held_R[start:end] == (split == "test")]
        return mine

    def periods(self, requests_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Period of each request, between two builds of the index: a place in `standing_PAS`."""
        times_ms = self.time_ms_R[requests_B]
        periods: NDArray[np.int64] = np.searchsorted(self.period_ms_P, times_ms, side="right") - 1
        return periods

    def rows_of(self, requests_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Impressions of some requests, in order, whose ad is in the catalogue."""
        slates = self.slate_R[requests_B]
        first = np.repeat(self.offset_R[requests_B] - (np.cumsum(slates) - slates), slates)
        rows: NDArray[np.int64] = first + np.arange(int(slates.sum()))
        known: NDArray[np.int64] = rows[self.ad_N[rows] != 0]
        return known

    def shown_once(self) -> float:
        """Share of the ads that have exactly one impression in the log."""
        return float((self._shown_A[1:] == 1).mean())

    @property
    def unknown_ads(self) -> int:
        """Impressions of ads that the catalogue does not have."""
        return int(self._shown_A[0])

    def query(self, requests_B: NDArray[np.int64]) -> Query:
        """What a model is told of some requests."""
        users = self.user_R[requests_B]
        known = np.where(users < len(self.static), users, 0)
        return query_of(
            self.static.take(known),
            self.request.take(requests_B),
            self.catalogue.encoded,
            [past.take(requests_B) for past in self.histories],
        )

    def batch(
        self, requests_B: NDArray[np.int64], keep_N: NDArray[np.bool_] | None = None
    ) -> Batch:
        """Some requests with their slates, padded to the longest.

        Args:
            requests_B: which requests.
            keep_N: impressions to use, of the whole log; others count as padding.
        """
        slates = self.slate_R[requests_B]
        place = np.arange(int(slates.max()))[None, :]
        real = place < slates[:, None]
        rows = np.where(real, self.offset_R[requests_B][:, None] + place, 0)
        if keep_N is not None:
            real &= keep_N[rows]
        ads = np.where(real, self.ad_N[rows], 0)
        position = np.where(real, self.position_N[rows], 0).astype(np.int32)
        return Batch(
            query=self.query(requests_B),
            candidates=candidates_of(self.catalogue.encoded, ads, self.counters_NC[rows], position),
            ad_row_BN=torch.from_numpy(ads.astype(np.int64)),
            period_B=torch.from_numpy(self.periods(requests_B)),
            labels_BNK=torch.from_numpy(self.labels_NK[rows]),
        )

    def in_order(self, requests: NDArray[np.int64], batch_rows: int) -> Iterator[Batch]:
        """Batches of about `batch_rows` impressions, in the order of `requests`."""
        for part in cut(requests, self.slate_R[requests], batch_rows):
            yield self.batch(part)


def cut(
    requests: NDArray[np.int64], slates: NDArray[np.int64], batch_rows: int
) -> list[NDArray[np.int64]]:
    """Cut requests into runs of about `batch_rows` impressions."""
    ends = np.cumsum(slates)
    steps = max(1, round(int(ends[-1]) / batch_rows)) if len(ends) else 0
    marks = (
        np.searchsorted(ends, np.arange(1, steps) * (ends[-1] / steps), side="right")
        if steps
        else []
    )
    return [part for part in np.split(requests, marks) if len(part)]


@contextmanager
def _whole(directory: Path) -> Iterator[None]:
    """Turn whatever goes wrong with the files of a dataset into a DataError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, *_READ_ERRORS) as error:
        what = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{directory} is not a prepared dataset, or it is damaged ({what}); make it again with "
            "`adrec prepare`"
        ) from error


def _map_array(path: Path, spec: ArraySpec) -> NDArray[Any]:
    shape = tuple(spec.shape)
    if not int(np.prod(shape)):
        return np.zeros(shape, spec.dtype)
    return np.memmap(path, dtype=spec.dtype, mode="r", shape=shape)
