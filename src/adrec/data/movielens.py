"""MovieLens: ratings of films, as a log of impressions (GroupLens; Harper and Konstan, 2015).

GroupLens allows research use and forbids redistribution and commercial use without permission. The
folder is one of:

- ml-latest, ml-25m, ml-32m: `ratings.csv` and `movies.csv`;
- ml-1m: `ratings.dat`, `movies.dat` and `users.dat`, cells split by `::`, Latin-1;
- ml-100k: `u.data`, `u.item` and `u.user`, cells split by tabs and bars, Latin-1.

Film = ad; a rating of 4 or more is the click; the rating itself is a second task. A film's first
genre, all its genres and its year (out of the title) describe it; age, gender and occupation
describe a user where the folder has them. Times are seconds, files are not in time order. A log of
ratings holds no impressions that were ignored: it tells liked from disliked, not seen from unseen.
"""

from pathlib import Path

import polars as pl

from adrec.data.files import reading, scan
from adrec.data.tables import Tables, require_columns, tables_from
from adrec.errors import DataError, Problem
from adrec.schema import (
    AnyField,
    CategoricalField,
    CounterSpec,
    NumericField,
    Schema,
    SequenceField,
    Task,
)

LIKED = 4.0
_RATINGS = ("userId", "movieId", "rating", "timestamp")
# fmt: off
_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime",
    "Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical",
    "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
# fmt: on

_Source = tuple[str, pl.LazyFrame]


def open_movielens(directory: Path) -> Tables:
    """Open a MovieLens folder of any generation.

    Args:
        directory: the folder with the ratings.

    Returns:
        Lazy tables; the older generations' small files of films and users are read at once.

    Raises:
        DataError: no ratings, a file or a column is missing, or a line has the wrong cells.
    """
    if (directory / "ratings.csv").is_file():
        ratings, movies, users = _latest(directory)
    elif (directory / "ratings.dat").is_file():
        ratings, movies, users = _ml_1m(directory)
    elif (directory / "u.data").is_file():
        ratings, movies, users = _ml_100k(directory)
    else:
        problem = Problem(
            file=str(directory),
            problem="there are no ratings",
            remedy="Unpack MovieLens there: ratings.csv, ratings.dat (ml-1m) or u.data (ml-100k)",
        )
        raise DataError("Not a MovieLens folder:", [problem])
    require_columns(*ratings, _RATINGS)
    require_columns(*movies, ("movieId", "title", "genres"))
    frames = {
        "impressions": (ratings[0], _with_click(ratings[1])),
        "ads": (movies[0], _with_properties(movies[1])),
    }
    if users is not None:
        frames["users"] = users
    return tables_from(movielens_schema(users_table=users is not None), frames)


def movielens_schema(*, users_table: bool) -> Schema:
    """What each column is; only the older generations describe their users."""
    fields: list[AnyField] = [
        SequenceField(name="liked", kind="sequence", grows_with="click", length=20),
        CategoricalField(name="genre", kind="categorical", role="ad"),
        CategoricalField(name="genres", kind="categorical", role="ad"),
        NumericField(name="year", kind="numeric", role="ad"),
    ]
    if users_table:
        fields += [
            CategoricalField(name=name, kind="categorical", role="user")
            for name in ("gender", "age", "occupation")
        ]
    return Schema(
        name="movielens",
        user_id="userId",
        ad_id="movieId",
        timestamp="timestamp",
        timestamp_unit="s",
        users_table=users_table,
        ads_table=True,
        tasks=(Task(name="click"), Task(name="rating", kind="value", weight=0.3)),
        fields=tuple(fields),
        counters=(
            CounterSpec(columns=("user_id",)),
            CounterSpec(columns=("ad_id",)),
            CounterSpec(columns=("genre",)),
            CounterSpec(columns=("user_id", "genre")),
        ),
    )


def _with_click(ratings: pl.LazyFrame) -> pl.LazyFrame:
    liked = pl.col("rating").cast(pl.Float64, strict=False) >= LIKED
    return ratings.with_columns(click=liked.cast(pl.Int8))


def _with_properties(movies: pl.LazyFrame) -> pl.LazyFrame:
    listed = pl.col("genres") != "(no genres listed)"
    genres = pl.when(listed).then(pl.col("genres"))
    return movies.with_columns(
        genres=genres,
        genre=genres.str.split("|").list.first(),
        year=pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Float32),
    )


def _latest(directory: Path) -> tuple[_Source, _Source, None]:
    ratings, movies = directory / "ratings.csv", directory / "movies.csv"
    return (str(ratings), scan(ratings)), (str(movies), scan(movies)), None


def _ml_1m(directory: Path) -> tuple[_Source, _Source, _Source]:
    users = ("userId", "gender", "age", "occupation", "zip")
    return (
        _split(directory / "ratings.dat", "::", _RATINGS),
        _split(directory / "movies.dat", "::", ("movieId", "title", "genres")),
        _split(directory / "users.dat", "::", users),
    )


def _ml_100k(directory: Path) -> tuple[_Source, _Source, _Source]:
    users = ("userId", "age", "gender", "occupation", "zip")
    movies = ("movieId", "title", "released", "video_released", "url", *_GENRES_100K)
    file, frame = _split(directory / "u.item", "|", movies)
    genres = pl.concat_str(
        [pl.when(pl.col(name) == "1").then(pl.lit(name)) for name in _GENRES_100K],
        separator="|",
        ignore_nulls=True,
    )
    return (
        _split(directory / "u.data", "\t", _RATINGS),
        (file, frame.with_columns(genres=genres)),
        _split(directory / "u.user", "|", users),
    )


def _split(file: Path, separator: str, names: tuple[str, ...]) -> _Source:
    """Read a Latin-1 file whose cells are never quoted, split by any separator."""
    with reading(str(file)):
        # Not splitlines(): to it, some bytes of a Latin-1 title end a line.
        lines = file.read_text(encoding="latin-1").rstrip("\n").split("\n")
    frame = pl.DataFrame({"line": lines}, schema={"line": pl.String})
    cells = frame["line"].str.count_matches(separator, literal=True) + 1
    wrong = (cells != len(names)).arg_true()
    if len(wrong):
        problem = Problem(
            file=str(file),
            row=wrong[0] + 1,
            rows=len(wrong),
            problem=f"has {cells[wrong[0]]} cells, not {len(names)}",
            remedy=f"Give each line {', '.join(names[:5])} split by {separator!r}",
        )
        raise DataError("A line cannot be read:", [problem])
    parts = pl.col("line").str.split_exact(separator, len(names) - 1)
    fields = parts.struct.rename_fields(list(names))
    return str(file), frame.lazy().select(fields.alias("line")).unnest("line")
