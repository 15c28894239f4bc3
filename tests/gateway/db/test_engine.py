"""The database as the gateway meets it: transactions in threads, alone or in groups."""

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, insert, select
from sqlalchemy.exc import DBAPIError

from gateway.db.connect import ConstraintBroken, DatabaseUnusable, parse_address
from gateway.db.engine import Database
from gateway.db.locks import FileLock
from gateway.db.tables import tenant
from gateway.errors import Overloaded

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def adding(name: str) -> Callable[[Connection], str]:
    """A transaction that makes a tenant."""

    def add(connection: Connection) -> str:
        connection.execute(insert(tenant).values(id=f"ten_{name}", name=name, created_at=NOW))
        return name

    return add


def count(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(tenant)).scalar_one()


async def test_a_write_is_seen_by_the_next_read(db):
    """What a write returned from is committed."""
    assert await db.write(adding("a")) == "a"

    assert await db.read(count) == 1


async def test_hundreds_of_writes_at_once_each_succeed_or_fail_alone(db):
    """One failing write in three undoes itself and no other."""

    def failing(connection: Connection) -> None:
        adding("doomed")(connection)
        raise ZeroDivisionError

    work = [db.write(failing if i % 3 == 0 else adding(f"t{i}")) for i in range(300)]
    results = await asyncio.gather(*work, return_exceptions=True)

    assert [isinstance(result, ZeroDivisionError) for result in results] == [i % 3 == 0 for i in range(300)]
    assert await db.read(count) == 200


async def test_a_broken_constraint_fails_its_own_write_without_quoting_values(db):
    """The second of two equal names is refused, in words that name the constraint and not the row."""
    outcomes = await asyncio.gather(*(db.write(adding("same-secret-name")) for _ in range(2)), return_exceptions=True)

    broken = next(outcome for outcome in outcomes if not isinstance(outcome, str))
    assert isinstance(broken, ConstraintBroken)
    assert "tenant" in str(broken)
    assert "secret-name" not in str(broken)
    assert await db.read(count) == 1


async def test_a_read_cannot_write(db):
    """Reading transactions are read-only on both engines."""
    with pytest.raises((DBAPIError, Overloaded)):
        await db.read(adding("a"))

    assert await db.read(count) == 0


async def test_a_cancelled_caller_leaves_the_writer_at_work(db):
    """A write that was asked for is done, though its caller was cancelled, and later ones are served."""
    given_up = asyncio.create_task(db.write(adding("given-up")))
    await asyncio.sleep(0)
    given_up.cancel()

    await db.write(adding("next"))
    with pytest.raises(asyncio.CancelledError):
        await given_up
    await db.close()
    reopened = Database(db._address.url.render_as_string(hide_password=False))
    assert await reopened.read(count) == 2
    await reopened.close()


async def test_close_finishes_what_is_queued(database_url):
    """Writes that were asked for before `close` are committed; later ones are refused."""
    database = Database(database_url)
    queued = [asyncio.create_task(database.write(adding(f"t{i}"))) for i in range(50)]
    await asyncio.sleep(0)

    await database.close()

    assert len(await asyncio.gather(*queued)) == 50
    with pytest.raises(Overloaded, match="shutting down"):
        await database.write(adding("late"))


async def test_ping_answers_on_a_migrated_database(db):
    """A database with a schema is ready."""
    await db.ping()


async def test_ping_refuses_an_empty_database(tmp_path):
    """A database without a schema is not ready."""
    database = Database(f"sqlite:///{tmp_path}/empty.db")

    with pytest.raises(Overloaded):
        await database.ping()
    await database.close()


async def test_an_unreachable_server_is_overload():
    """A PostgreSQL that is not there gives 503, in public words."""
    database = Database("postgresql://nobody:hunter2@127.0.0.1:9/none")

    with pytest.raises(Overloaded) as caught:
        await database.write(count)
    assert "hunter2" not in caught.value.message + (caught.value.detail or "")
    await database.close()


async def test_sqlite_keeps_every_acknowledged_write(sqlite_url):
    """The journal mode is WAL, every commit is synced, and references are checked."""
    database = Database(sqlite_url)

    def pragmas(connection: Connection) -> list[object]:
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous", "foreign_keys")]

    assert await database.write(pragmas) == ["wal", 2, 1]
    await database.close()


async def test_a_lock_that_others_keep_is_overload(sqlite_url):
    """A write waits for another process no longer than its patience, and then says so."""
    database = Database(sqlite_url, patience_s=0.01)
    other = FileLock(database._address.lock_path)
    assert other.try_take()

    with pytest.raises(Overloaded):
        await database.write(adding("a"))
    other.close()
    assert await database.write(adding("b")) == "b"
    await database.close()


async def test_a_full_database_is_overload_and_recovers(sqlite_url):
    """When SQLite has no room, the writes of the group are refused with 503, and the database stays usable."""
    database = Database(sqlite_url)

    def fill(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")  # as low as the file is long
        connection.exec_driver_sql("CREATE TABLE ballast (x)")
        connection.exec_driver_sql("INSERT INTO ballast VALUES (zeroblob(1000000))")

    with pytest.raises(Overloaded):
        await database.write(fill)
    await database.write(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 100000").scalar())
    assert await database.write(adding("after")) == "after"
    await database.close()


def test_a_new_sqlite_file_is_its_owners_alone(tmp_path):
    """Prompts are in it: nobody else may read the file."""
    from gateway.db.migrate import upgrade

    upgrade(f"sqlite:///{tmp_path}/var/new.db")

    assert (tmp_path / "var" / "new.db").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite://", "plain file"),
        ("sqlite:///:memory:", "plain file"),
        ("mysql://u:hunter2@h/d", "begins with mysql"),
        ("nonsense", "not a URL"),
    ],
)
def test_an_address_that_cannot_be_used_says_what_can(url, words):
    """Other databases and unkept ones are refused, without showing the password."""
    with pytest.raises(DatabaseUnusable, match=words) as caught:
        parse_address(url)
    assert "hunter2" not in str(caught.value)


def test_postgresql_without_its_driver_says_how_to_get_it(monkeypatch):
    """The optional driver's absence is a sentence, not an ImportError."""
    monkeypatch.setattr("gateway.db.connect.find_spec", lambda _: None)

    with pytest.raises(DatabaseUnusable, match=r"pip install 'image-gateway\[postgres\]'"):
        parse_address("postgresql://u@h/d")


WRITER = """
import asyncio, sys
from datetime import UTC, datetime
from sqlalchemy import insert
from gateway.db.engine import Database
from gateway.db.tables import tenant

async def main(url, label, times):
    db = Database(url)
    for i in range(int(times)):
        row = dict(id=f"ten_{label}{i}", name=f"{label}{i}", created_at=datetime.now(UTC))
        await db.write(lambda c: c.execute(insert(tenant).values(row)).rowcount)
    print("written", flush=True)
    if label == "stay":
        await asyncio.sleep(3600)
    await db.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def write_elsewhere(url: str, label: str, times: int) -> asyncio.subprocess.Process:
    root = Path(__file__).parents[3]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WRITER, url, label, str(times)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


async def test_two_processes_and_this_one_write_the_same_sqlite_file(sqlite_url):
    """Every write of every process is kept, and the file stays whole."""
    database = Database(sqlite_url)
    others = [await write_elsewhere(sqlite_url, label, 150) for label in "ab"]

    for i in range(150):
        await database.write(adding(f"here{i}"))

    assert [await other.wait() for other in others] == [0, 0]
    assert await database.read(count) == 450
    await database.close()
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    raw.close()


async def test_an_acknowledged_write_outlives_a_killed_process(database_url):
    """A row whose write had returned is there after SIGKILL."""
    process = await write_elsewhere(database_url, "stay", 3)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"written\n"

    process.send_signal(signal.SIGKILL)
    await process.communicate()

    database = Database(database_url)
    assert await database.read(count) == 3
    assert await database.write(adding("after")) == "after"
    await database.close()
