"""How a connection is made to either database, and what their errors mean to a caller."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from gateway.db.locks import LockBusy
from gateway.errors import Overloaded

_TRANSIENT_SQLITE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
    }
)
"""Primary result codes that speak of the machine, not of the statement. Source: https://www.sqlite.org/rescode.html"""

_POSTGRES_DEADLINES = {"connect_timeout": "5", "tcp_user_timeout": "15000", "keepalives_idle": "30"}
"""So that a host that vanished is noticed. Source: https://www.postgresql.org/docs/current/libpq-connect.html"""


class DatabaseUnusable(Exception):
    """The database cannot be used as it is set up; the message says what to do. For whoever starts the gateway."""


class ConstraintBroken(Exception):
    """A row contradicts another one or a rule of its table. Names the constraint or columns, never values."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the database is."""

    url: URL
    """With the driver that the gateway uses."""
    path: Path | None
    """SQLite's file; None for PostgreSQL."""

    @property
    def lock_path(self) -> Path:
        """The file whose lock is held around every write to a SQLite file, whichever process does it."""
        assert self.path is not None
        return self.path.with_name(self.path.name + ".lock")


def parse_address(url: str) -> Address:
    """Understand `GATEWAY_DATABASE_URL`.

    Raises:
        DatabaseUnusable: If it names no database that the gateway can use. The message never holds the password.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise DatabaseUnusable("the database address is not a URL; use sqlite:///path or postgresql://user@host/name") from error
    match parsed.drivername:
        case "sqlite" | "sqlite+pysqlite":
            return _sqlite_address(parsed)
        case "postgresql" | "postgres" | "postgresql+psycopg":
            return _postgres_address(parsed)
        case other:
            raise DatabaseUnusable(f"the database address begins with {other}:; use sqlite:///path or postgresql://user@host/name")


def _sqlite_address(url: URL) -> Address:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise DatabaseUnusable("SQLite needs a plain file, such as sqlite:///var/gateway.db")
    path = Path(url.database).absolute()
    return Address(URL.create("sqlite+pysqlite", database=str(path)), path)


def _postgres_address(url: URL) -> Address:
    if find_spec("psycopg") is None:
        raise DatabaseUnusable("PostgreSQL needs its driver: pip install 'image-gateway[postgres]'")
    return Address(url.set(drivername="postgresql+psycopg"), None)


def open_postgres(address: Address, *, connections: int, read_only: bool = False) -> Engine:
    """An engine with at most `connections` connections, each tested before it is used again."""
    deadlines = {name: value for name, value in _POSTGRES_DEADLINES.items() if name not in address.url.query}
    return create_engine(
        address.url,
        pool_size=connections,
        max_overflow=0,
        pool_pre_ping=True,
        hide_parameters=True,  # prompts are among them
        connect_args=deadlines,
        execution_options={"postgresql_readonly": True} if read_only else {},
    )


def open_sqlite(
    address: Address, *, connections: int, busy_timeout_s: float, read_only: bool = False, foreign_keys: bool = True
) -> Engine:
    """An engine on a SQLite file, which is made, for its owner only, if it is not there."""
    assert address.path is not None
    path = address.path
    engine = create_engine(
        address.url,
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        pool_reset_on_return=None,  # every use is one `begin` block, which has ended the transaction itself
        hide_parameters=True,  # prompts are among them
        connect_args={"check_same_thread": False, "timeout": busy_timeout_s},
    )
    event.listen(engine, "do_connect", lambda *_: _make_private_file(path))
    event.listen(engine, "connect", _prepare_sqlite(read_only=read_only, foreign_keys=foreign_keys))
    event.listen(engine, "begin", _begin_deferred if read_only else _begin_immediate)
    return engine


def _make_private_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # SQLite gives its -wal and -shm files the mode of the main one.
    # Never open a file that is there: closing it would give back every lock that SQLite holds on it in this process.
    # Source: https://www.sqlite.org/howtocorrupt.html section 2.2
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _prepare_sqlite(*, read_only: bool, foreign_keys: bool) -> Callable[[DBAPIConnection, object], None]:
    def prepare(connection: DBAPIConnection, _record: object) -> None:
        # The driver must leave BEGIN to us: its own comes too late for reads and never for savepoints.
        raw: Any = connection  # it is a sqlite3.Connection, which the protocol does not know
        raw.isolation_level = None
        if read_only:
            raw.execute("PRAGMA query_only = ON")
            return
        raw.execute("PRAGMA journal_mode = WAL")
        raw.execute("PRAGMA synchronous = FULL")
        raw.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")

    return prepare


def _begin_deferred(connection: Any) -> None:
    connection.connection.driver_connection.execute("BEGIN")


def _begin_immediate(connection: Any) -> None:
    # A transaction that begins by reading could not become a writing one if another process wrote in between.
    connection.connection.driver_connection.execute("BEGIN IMMEDIATE")


def translated(error: BaseException) -> BaseException:
    """The error in our words: `Overloaded` if the database is busy, full or gone, `ConstraintBroken`, or the error itself."""
    if isinstance(error, IntegrityError):
        # Further lines of PostgreSQL's message quote the row.
        return ConstraintBroken(str(error.orig).partition("\n")[0])
    if not _is_out_of_reach(error):
        return error
    busy = Overloaded(
        "The gateway's database is busy or cannot be reached at the moment. Try again shortly.",
        code="database_unavailable",
        detail=str(error.orig if isinstance(error, DBAPIError) else error),
        retry_after_s=1,
    )
    busy.__cause__ = error
    return busy


def _is_out_of_reach(error: BaseException) -> bool:
    if isinstance(error, (PoolTimeout, LockBusy)):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _TRANSIENT_SQLITE
    return isinstance(error, (OperationalError, InterfaceError))
