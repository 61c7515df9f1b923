"""Open a ledger's database: which URLs are allowed, transactions that hold up, and errors in one line."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, insert, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from cutaway.errors import CutawayError, UsageError
from cutaway.ledger import schema
from cutaway.ledger.records import now
from cutaway.study import cache_home

_FORMS = "use sqlite:///ledger.db or postgresql://user@host/database"
_LOCK = 0x6375746177  # any constant: everyone who creates the tables must use the same


def default_url(home: Path | None = None) -> URL:
    """The ledger in ``home`` (default: the cache home): an SQLite file ``ledger.db``."""
    return URL.create("sqlite", database=str((home or cache_home()) / "ledger.db"))


def parse_url(given: str | URL) -> URL:
    """Check a ledger URL and choose its driver; UsageError for anything but SQLite and PostgreSQL."""
    try:
        url = make_url(given)
    except ArgumentError:
        shown = re.sub(r"//[^/@]*@", "//***@", str(given))
        raise UsageError(f"ledger {shown!r} is not a database URL; {_FORMS}") from None
    kind = url.get_backend_name()
    if kind in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if kind != "sqlite":
        raise UsageError(f"ledger {url.render_as_string()!r}: {kind!r} is not supported; {_FORMS}")
    return url.set(drivername="sqlite")


def open_engine(url: URL, timeout: float) -> Engine:
    """Connect; create the tables in an empty database. ``timeout``: seconds to wait for another writer."""
    name = str(url.database or "") if url.get_backend_name() == "sqlite" else ""
    # What SQLite reads as a URI (file:...) is no path of ours to make.
    if name and name != ":memory:" and not name.startswith("file:"):
        folder = Path(name).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CutawayError(f"ledger {url.database}: cannot make its folder: {error.strerror}") from error
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": timeout})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = _postgresql(url, timeout)
    try:
        with one_line(url):
            _create_tables(engine, url)
    except CutawayError:
        engine.dispose()
        raise
    return engine


@contextmanager
def one_line(url: URL) -> Iterator[None]:
    """Turn a database error into a CutawayError of one line that says what to do."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()
        message = cause[0] if cause else type(error).__name__
        raise CutawayError(f"ledger {url.render_as_string()}: {_advice(message)}") from error


def _advice(message: str) -> str:
    told = {
        "not a database": "this file is not an SQLite database; move it away or name another ledger",
        "malformed": "the database file is damaged; restore a copy or name another ledger",
        "locked": "another process kept it locked; try again when that one has finished",
        "unable to open": "cannot be opened; check that the folder exists and that you may write there",
        "readonly": "may not be written by you; change its permissions or name another ledger",
        "disk is full": "no room left on the disk; free some and run again",
        "disk I/O error": "the disk refused to write (full, or a file size limit); free some and run again",
        schema.APPEND_ONLY: f"{schema.APPEND_ONLY}; rows are never changed or removed",
    }
    return next((advice for sign, advice in told.items() if sign in message), message)


def _postgresql(url: URL, timeout: float) -> Engine:
    try:
        return create_engine(url, connect_args={"connect_timeout": max(2, int(timeout))})
    except ModuleNotFoundError as error:
        raise UsageError(
            f"a PostgreSQL ledger needs {error.name}: pip install 'cutaway[postgres]', or {_FORMS}"
        ) from error


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Python's own transaction handling would begin late and deferred; `_begin_sqlite` begins instead.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", "recursive_triggers=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # Taking the write lock at once makes writers queue; upgrading a read later fails without waiting.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _create_tables(engine: Engine, url: URL) -> None:
    with engine.connect() as connection:
        found = _version(connection)
    if found is None:
        with engine.execution_options(writes=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            found = _version(connection)
            if found is None:
                _refuse_strangers(connection, url)
                schema.metadata.create_all(connection)
                connection.execute(insert(schema.version).values(version=schema.SCHEMA, made=now()))
                return
    if found != schema.SCHEMA:
        raise CutawayError(
            f"ledger {url.render_as_string()} has schema {found}, this Cutaway reads {schema.SCHEMA}; "
            "upgrade Cutaway or name another ledger"
        )


def _version(connection: Connection) -> int | None:
    if not inspect(connection).has_table(schema.version.name):
        return None
    return connection.scalar(select(schema.version.c.version).order_by(schema.version.c.version.desc()))


def _refuse_strangers(connection: Connection, url: URL) -> None:
    theirs = sorted(set(inspect(connection).get_table_names()) & set(schema.metadata.tables))
    if theirs:
        raise UsageError(
            f"ledger {url.render_as_string()} holds a table {theirs[0]!r} that Cutaway did not make; "
            "give the ledger a database of its own"
        )
