"""The database as the rest of the gateway meets it: `await db.read(fn)` and `await db.write(fn)`.

`fn` takes a connection and is one transaction, run in a thread of the database's own, so no transaction is ever held across
an await. SQLite has one writing thread, which commits whatever waits as one; PostgreSQL has a few.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from gateway.db.connect import Address, open_postgres, open_sqlite, parse_address, translated
from gateway.db.locks import FileLock, LockBusy
from gateway.errors import Overloaded

T = TypeVar("T")

_LARGEST_GROUP = 256
"""Writes in one SQLite transaction, so that a flood still gives the lock back now and then."""


class Database:
    """A database and the threads that talk to it. Opening it touches nothing; the first use connects."""

    def __init__(self, url: str, *, threads: int = 4, patience_s: float = 10.0) -> None:
        """Understand the address and set up the threads.

        Args:
            url: `sqlite:///path` or `postgresql://…`.
            threads: How many read at once, and on PostgreSQL also how many write at once.
            patience_s: How long a SQLite write waits, in seconds, for another process that is writing.

        Raises:
            DatabaseUnusable: If the address cannot be used.
        """
        self._address = parse_address(url)
        self._closing = False
        if self._address.path is None:
            self._reading: _Lane = _Pool(open_postgres(self._address, connections=threads, read_only=True), threads, "db-read")
            self._writing: _Lane = _Pool(open_postgres(self._address, connections=threads), threads, "db-write")
        else:
            readers = open_sqlite(self._address, connections=threads, busy_timeout_s=patience_s, read_only=True)
            self._reading = _Pool(readers, threads, "db-read")
            self._writing = _SqliteWriter(self._address, patience_s)

    @property
    def sqlite_path(self) -> Path | None:
        """SQLite's file; None for PostgreSQL."""
        return self._address.path

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` in a transaction that cannot write, and return what it returns.

        Raises:
            Overloaded: If the database is busy or cannot be reached.
        """
        return await self._ask(self._reading, fn)

    async def write(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` in a transaction, and return what it returns once that is committed.

        If `fn` raises, what it wrote is undone, and nothing else. Once asked for, it runs: a caller that is cancelled no
        longer hears of it, but the row is written. `fn` neither commits nor rolls back.

        Raises:
            Overloaded: If the database is busy, full or cannot be reached.
            ConstraintBroken: If a row contradicts another.
        """
        return await self._ask(self._writing, fn)

    async def ping(self, timeout_s: float = 5.0) -> None:
        """Return if the database answers and has a schema.

        Raises:
            Overloaded: If it does not, within `timeout_s` seconds.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self.read(lambda connection: connection.execute(text("SELECT version_num FROM alembic_version")).one())
        except (SQLAlchemyError, TimeoutError) as error:
            raise Overloaded("The gateway's database is not ready.", code="database_unavailable", detail=str(error)) from error

    async def close(self) -> None:
        """Finish what was asked for, then end threads and connections. Later calls are refused."""
        self._closing = True
        await asyncio.to_thread(self._writing.close)
        await asyncio.to_thread(self._reading.close)

    async def _ask(self, lane: "_Lane", fn: Callable[[Connection], T]) -> T:
        if self._closing:
            raise Overloaded("The gateway is shutting down.", code="shutting_down")
        asked = _Asked(fn, asyncio.get_running_loop())
        lane.submit(asked)
        return await asked.future


class _Asked:
    """A transaction that somebody waits for."""

    __slots__ = ("_error", "_fn", "_result", "future", "loop")

    def __init__(self, fn: Callable[[Connection], Any], loop: asyncio.AbstractEventLoop) -> None:
        self._fn = fn
        self.loop = loop
        self._result: Any = None
        self._error: BaseException | None = None
        self.future: asyncio.Future[Any] = loop.create_future()

    def run(self, connection: Connection) -> None:
        """Run it; its own failure is raised."""
        self._result = self._fn(connection)

    def fail(self, error: BaseException) -> None:
        """Remember that it has failed."""
        self._error = translated(error)

    def settle(self) -> None:
        """Answer whoever waits, in the loop's own thread."""
        if self.future.done():  # cancelled meanwhile
            return
        if self._error is None:
            self.future.set_result(self._result)
        else:
            self.future.set_exception(self._error)


def _tell(group: list[_Asked]) -> None:
    """Answer all who wait, from any thread, waking each loop once."""
    for loop in {asked.loop for asked in group}:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, [asked for asked in group if asked.loop is loop])


def _settle(group: list[_Asked]) -> None:
    for asked in group:
        asked.settle()


class _Lane(Protocol):
    """Something that runs transactions in threads."""

    def submit(self, asked: _Asked) -> None: ...

    def close(self) -> None: ...


class _Pool:
    """Threads that each run one transaction at a time, on a connection each."""

    def __init__(self, engine: Engine, threads: int, name: str) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def submit(self, asked: _Asked) -> None:
        self._threads.submit(self._run, asked)

    def close(self) -> None:
        self._threads.shutdown(wait=True)
        self._engine.dispose()

    def _run(self, asked: _Asked) -> None:
        try:
            with self._engine.begin() as connection:
                asked.run(connection)
        except BaseException as error:  # noqa: BLE001 -- whatever it is, it is the caller's answer
            asked.fail(error)
        _tell([asked])


class _SqliteWriter:
    """The one thread that writes to a SQLite file: all that waits becomes one transaction, with a savepoint for each.

    Two connections that write or checkpoint at the same time can corrupt the file in SQLite 3.7.0 to 3.51.2 (the "WAL-reset
    bug", https://www.sqlite.org/wal.html), so every transaction is under a lock that other processes take too.
    """

    def __init__(self, address: Address, patience_s: float) -> None:
        self._engine = open_sqlite(address, connections=1, busy_timeout_s=patience_s)
        self._lock = FileLock(address.lock_path)
        self._patience_s = patience_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="db-write")
        self._guard = Lock()
        self._queue: deque[_Asked] = deque()
        self._draining = False

    def submit(self, asked: _Asked) -> None:
        with self._guard:
            self._queue.append(asked)
            if not self._draining:
                self._draining = True
                self._thread.submit(self._drain)

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        # The last connection to close checkpoints: that is a write like any other. Who cannot have the lock is not the last.
        with suppress(LockBusy), self._lock.held(self._patience_s):
            self._engine.dispose()
        self._engine.dispose()
        self._lock.close()

    def _drain(self) -> None:
        while group := self._next_group():
            self._commit(group)
            _tell(group)

    def _next_group(self) -> list[_Asked]:
        with self._guard:
            group = [self._queue.popleft() for _ in range(min(len(self._queue), _LARGEST_GROUP))]
            self._draining = bool(group)
        return group

    def _commit(self, group: list[_Asked]) -> None:
        try:
            with self._lock.held(self._patience_s), self._engine.begin() as connection:
                for asked in group:
                    _run_alone(connection, asked)
        except BaseException as error:  # noqa: BLE001 -- nothing of the group is in the database, and each caller must know
            for asked in group:
                asked.fail(error)


def _run_alone(connection: Connection, asked: _Asked) -> None:
    raw: Any = connection.connection.driver_connection  # the toolkit's own way is ten times the work, for every write
    raw.execute("SAVEPOINT alone")
    try:
        asked.run(connection)
    except BaseException as error:  # noqa: BLE001 -- whatever it is, it is the caller's answer
        asked.fail(error)
        # Fails if SQLite has undone the whole transaction by itself (disk full): then the group fails as one.
        raw.execute("ROLLBACK TO alone")
    raw.execute("RELEASE alone")
