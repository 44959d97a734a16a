"""Layouts: open a folder whatever data set it holds, and guess which one that is."""

from importlib.resources import files
from pathlib import Path
from typing import Literal

from adrec.data.criteo import FILES as CRITEO_FILES
from adrec.data.criteo import open_criteo
from adrec.data.files import SUFFIXES
from adrec.data.kuairand import open_kuairand, own_files
from adrec.data.movielens import open_movielens
from adrec.data.open_bandit import CAMPAIGNS, POLICIES, open_open_bandit, own_log
from adrec.data.tables import Tables, open_tables
from adrec.errors import ConfigError, DataError, Problem
from adrec.schema import Schema, load_schema, parse_schema

Layout = Literal["generic", "criteo", "kuairand", "movielens", "open_bandit", "synthetic"]

SCHEMA_FILE = "schema.yaml"


def open_layout(layout: Layout, directory: Path, schema: Schema | None = None) -> Tables:
    """Open a folder of a known layout with its reader's defaults.

    Args:
        layout: `generic` and `synthetic` are tables beside a schema; the others are public data
            sets that bring their own. Open Bandit is opened as its log of the uniform policy over
            all campaigns; call `open_open_bandit` for another, and `open_criteo` to say which
            fields are the ad's.
        directory: the folder.
        schema: the schema of a generic folder; None: the folder's own `schema.yaml`.

    Returns:
        Lazy tables.

    Raises:
        ConfigError: a generic folder without a schema, or a schema for a layout that has its own.
        DataError: a file or a column is missing.
    """
    if layout not in ("generic", "synthetic") and schema is not None:
        raise ConfigError(
            f"the layout {layout} brings its own schema; leave yours out, or say generic"
        )
    match layout:
        case "generic" | "synthetic":
            return open_tables(schema or _own_schema(directory), directory)
        case "criteo":
            return open_criteo(directory)
        case "kuairand":
            return open_kuairand(directory)
        case "movielens":
            return open_movielens(directory)
        case "open_bandit":
            return open_open_bandit(directory, policy="random", campaign="all")


def detect_layout(directory: Path) -> Layout:
    """Guess a folder's layout from the names of its files; Criteo's file may stand for its folder.

    Raises:
        DataError: not a folder, or nothing in it is known; says what was looked for.
    """
    if _has(directory, SCHEMA_FILE):
        return (
            "synthetic" if load_schema(directory / SCHEMA_FILE).name == "synthetic" else "generic"
        )
    is_criteo_file = directory.is_file() and directory.name in CRITEO_FILES
    if is_criteo_file or any(_has(directory, name) for name in CRITEO_FILES):
        return "criteo"
    prepared = all(_has_table(directory, name) for name in ("impressions", "videos", "histories"))
    if prepared or own_files(directory, "impressions"):
        return "kuairand"
    if any(_has(directory, name) for name in ("ratings.csv", "ratings.dat", "u.data")):
        return "movielens"
    if any(
        _has_table(directory, f"{policy}_{campaign}")
        or own_log(directory, policy, campaign).is_file()
        for policy in POLICIES
        for campaign in CAMPAIGNS
    ):
        return "open_bandit"
    found = sorted(p.name for p in directory.iterdir())[:12] if directory.is_dir() else []
    problem = Problem(
        file=str(directory),
        problem=f"holds {', '.join(found) or 'nothing'}" if directory.is_dir() else "is no folder",
        remedy=(
            f"Looked for {SCHEMA_FILE} with tables beside it (generic, synthetic); "
            f"{' or '.join(CRITEO_FILES)} (criteo); log_standard_*.csv, or impressions, videos and "
            "histories (kuairand); ratings.csv, ratings.dat or u.data (movielens); "
            "random/all/all.csv or random_all (open_bandit); "
            f"tables end in {', '.join(SUFFIXES)}. Name the layout, or add a {SCHEMA_FILE}"
        ),
    )
    raise DataError("The layout of a folder is not known:", [problem])


def synthetic_schema() -> Schema:
    """The schema that the synthetic world is written with."""
    text = files("adrec.data.synthetic").joinpath("schema.yaml").read_text(encoding="utf-8")
    return parse_schema(text, source="synthetic/schema.yaml")


def _own_schema(directory: Path) -> Schema:
    if not _has(directory, SCHEMA_FILE):
        raise ConfigError(
            f"{directory}: which column is what? Give a schema, or put it there as {SCHEMA_FILE}"
        )
    return load_schema(directory / SCHEMA_FILE)


def _has(directory: Path, name: str) -> bool:
    return (directory / name).is_file()


def _has_table(directory: Path, name: str) -> bool:
    return any(_has(directory, f"{name}{suffix}") for suffix in SUFFIXES)
