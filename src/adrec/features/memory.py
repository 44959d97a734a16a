"""Memory: what a state knows of the past, as tables and as files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from adrec.features.catalogue import Catalogue, load_encoded, save_encoded
from adrec.features.directory import Directory
from adrec.features.state import State
from adrec.features.transforms import Encoded, Features
from adrec.schema import USER_ID

Memory = dict[str, pl.DataFrame]
"""Tables by name."""

_ROW = "adrec:row"  # no field's name
_STATIC, _CATEGORICAL, _DENSE, _SETTLED = "static", "categorical", "dense", "settled_ms"


def memory_of(state: State) -> Memory:
    """All that a state knows of the past; another one may `remember` it."""
    fields = {_CATEGORICAL: state.static.categorical, _DENSE: state.static.dense}
    static = {
        f"{kind} {i}": values_UF[:, i]
        for kind, values_UF in fields.items()
        for i in range(values_UF.shape[1])
    }
    rows = np.arange(len(state.static))
    settled_ms = [history.settled_ms for history in state.histories]
    return _tables(state) | {
        _STATIC: pl.DataFrame({_ROW: rows} | static),
        _SETTLED: pl.DataFrame({_SETTLED: settled_ms}, schema={_SETTLED: pl.Int64}),
    }


def remember(state: State, memory: Memory) -> None:
    """Have a state know what another of the same features knew, whose ads had the same rows, and
    that alone."""
    again = State(state.features, state.catalogue)
    _restore(again, memory.__getitem__)
    static = memory[_STATIC]
    fields = [
        np.stack([np.zeros(static.height), *static.select(f"^{kind} .*$")], axis=1)[:, 1:]
        for kind in (_CATEGORICAL, _DENSE)
    ]
    state.static = Encoded(fields[0].astype(np.int32), fields[1].astype(np.float32))
    for history, settled_ms in zip(again.histories, memory[_SETTLED][_SETTLED], strict=True):
        history.settled_ms = settled_ms
    state.users = again.users
    state.histories, state.all_counters = again.histories, again.all_counters


def save_state(state: State, directory: Path) -> None:
    """Write everything but the features and the catalogue."""
    directory.mkdir(parents=True, exist_ok=True)
    save_encoded(state.static, directory / "users.safetensors")
    for name, table in _tables(state).items():
        table.write_parquet(directory / f"{name}.parquet")


def load_state(directory: Path, features: Features, catalogue: Catalogue) -> State:
    """Read what `save_state` wrote."""
    state = State(features, catalogue)
    _restore(state, lambda name: pl.read_parquet(directory / f"{name}.parquet"))
    state.static = load_encoded(directory / "users.safetensors")
    return state


def _tables(state: State) -> Memory:
    """Users, histories and counters."""
    found = {"users": pl.DataFrame({USER_ID: state.users.ids}, schema={USER_ID: pl.String})}
    for name, part in state.parts():
        found[name], found[f"{name}.pending"] = part.tables()
    return found


def _restore(state: State, table: Callable[[str], pl.DataFrame]) -> None:
    """Take what `_tables` gave."""
    state.users = Directory(table("users")[USER_ID].to_list())
    for name, part in state.parts():
        part.restore(table(name), table(f"{name}.pending"))
