"""Databases of event logs: opened by a URL, durable, and with their errors in our own words."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from adrec.errors import DataError, EventLogError

_BUSY_S = 30.0
_PATIENCE, _LONGEST_S = 10.0, 30.0
_TIMEOUTS = {
    "connect_timeout": 3,
    "options": "-c statement_timeout=10000 -c lock_timeout=10000",
    "tcp_user_timeout": 5000,
}


def open_database(url: str, tables: sa.MetaData) -> sa.Engine:
    """Open a database, SQLite or PostgreSQL, and make the tables that are missing.

    Raises:
        EventLogError: it cannot be opened.
    """
    parsed = _parsed(url)
    shown, kind = _shown(parsed), parsed.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise EventLogError(
            f"event log '{shown}': give a sqlite or postgresql database, not {kind}"
        )
    far = kind == "postgresql"
    try:
        engine = sa.create_engine(parsed, pool_pre_ping=far, connect_args=_TIMEOUTS if far else {})
        if not far:
            sa.event.listen(engine, "connect", _make_durable)
        with Translated(engine):
            tables.create_all(engine)
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError) as error:
        raise EventLogError(f"event log '{shown}' cannot be opened: {error}") from error
    return engine


class Translated:
    """Errors of the database as `EventLogError`; of values that it cannot hold as `DataError`."""

    def __init__(self, engine: sa.Engine) -> None:
        """Args: engine: of the database."""
        self._url = engine.url

    def __enter__(self) -> None:
        """Begin to translate."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise what became of an error."""
        if isinstance(error, sa.exc.DataError):
            raise DataError(f"the event log cannot hold this: {error.orig}") from error
        if isinstance(error, sa.exc.DBAPIError | sa.exc.TimeoutError):
            cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
            raise EventLogError(f"event log {_shown(self._url)}: {cause}") from error


class LeftAloneError(EventLogError):
    """A log was out of reach a moment ago, and is not asked again yet."""


class Patience:
    """Leaves a log alone that was out of reach, for ten times as long as it took to find that out,
    and half a minute at most. So who would rather go on without it is not held up for most of the
    time. For one thread.
    """

    def __init__(self) -> None:
        self._until_s = 0.0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Ask.

        Raises:
            LeftAloneError: it is left alone just now.
        """
        begun_s = time.monotonic()
        if begun_s < self._until_s:
            raise LeftAloneError("the event log was out of reach a moment ago")
        try:
            yield
        except EventLogError:
            now_s = time.monotonic()
            self._until_s = now_s + min(_PATIENCE * (now_s - begun_s), _LONGEST_S)
            raise


def _parsed(url: str) -> sa.URL:
    """Nothing is repeated of a URL that is none: it may hold a password."""
    with contextlib.suppress(sa.exc.ArgumentError, ValueError):
        parsed = sa.make_url(url)
        if parsed.password is None or url.count("@") == 1:
            return parsed
    raise EventLogError(
        "the event log cannot be opened: what is set is no URL, such as sqlite:///events.db or "
        "postgresql+psycopg://USER:PASSWORD@HOST/NAME; write @ in a password as %40"
    )


def _shown(url: sa.URL) -> str:
    """Without its password, which may stand among its parameters."""
    return url.set(query={}).render_as_string(hide_password=True)


def _make_durable(connection: Any, record: object) -> None:
    """Settings of an SQLite connection."""
    del record
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute(f"PRAGMA busy_timeout={round(_BUSY_S * 1000)}")
    cursor.close()
