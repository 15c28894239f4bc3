"""The database's schema: which version it has, bringing it to ours, and whether ours is what `tables.py` says.

Migrations are found as an installed package, so this works from a wheel. Alembic, which is slow to import, is loaded only
where it is needed; an up-to-date database is recognised without it. Everything here blocks: call it from a thread if a loop runs.
"""

import re
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import DBAPIError

import migrations
from gateway.db.connect import Address, DatabaseUnusable, open_postgres, open_sqlite, parse_address, translated
from gateway.db.locks import FileLock
from gateway.db.tables import metadata

if TYPE_CHECKING:  # at run time it would cost every start 0.8 s of CPU
    from alembic.config import Config

_PATIENCE_S = 60.0
"""How long one process waits for another that migrates, in seconds."""

_ADVISORY_LOCK = 7_401_953_212_746_311_890
"""PostgreSQL's name for the right to migrate; any number that no other program uses."""

_REVISION = re.compile(r"^(\d{4}_\d{2}_\d{2}_\d{4})_\w+$")
"""A version's file is named by when it was made, and that is its id: so the order of names is the order of versions."""


def upgrade(url: str) -> str:
    """Bring the database to the current schema, making it if need be, and return the version. Safe to run twice at once.

    Raises:
        DatabaseUnusable: If a newer release has migrated it.
        Overloaded: If it cannot be reached.
    """
    with _migrating(parse_address(url)) as connection:
        if _version(connection) != head():
            _upgrade(connection)
    return head()


def current(url: str) -> str | None:
    """The version that the database has; None if it has none or does not exist.

    Raises:
        DatabaseUnusable: If a newer release has migrated it.
        Overloaded: If it cannot be reached.
    """
    address = parse_address(url)
    if address.path is not None and not address.path.exists():
        return None
    with _looking(address) as connection:
        return _version(connection)


def is_current(url: str) -> bool:
    """Whether the database has the schema of this release. Raises what `current` raises."""
    return current(url) == head()


def ensure_schema(url: str) -> None:
    """Make sure that a server may start: SQLite is migrated, PostgreSQL is refused unless an operator has done it.

    Raises:
        DatabaseUnusable: If PostgreSQL has an old schema or none, or a newer release has migrated the database.
        Overloaded: If it cannot be reached.
    """
    found = current(url)
    if found == head():
        return
    if parse_address(url).path is not None:
        upgrade(url)
        return
    state = f"is at version {found}" if found else "has no schema yet"
    raise DatabaseUnusable(f"the database {state}, and this release needs {head()}; run: image-gateway migrate")


def check(url: str | None = None) -> tuple[str, ...]:
    """How the migrations differ from `tables.py`, one line each; empty when they agree.

    Args:
        url: A database to migrate and compare; without it, a SQLite file made for the purpose.
    """
    if url is not None:
        return _differences(url)
    with tempfile.TemporaryDirectory(prefix="image-gateway-check-") as folder:
        return _differences(f"sqlite:///{folder}/check.db")


def draft(what: str, now: datetime) -> Path:
    """Write the next version's file, for its author to finish, from how `tables.py` differs from the migrations.

    Args:
        what: A few words for the file's name.
        now: For its id; local or UTC, as long as it is later than the newest version's.
    """
    from alembic import command

    with tempfile.TemporaryDirectory(prefix="image-gateway-draft-") as folder:
        url = f"sqlite:///{folder}/draft.db"
        upgrade(url)
        with _migrating(parse_address(url)) as connection:
            script = command.revision(_config(connection), what, autogenerate=True, rev_id=now.strftime("%Y_%m_%d_%H%M"))
    assert script is not None
    assert not isinstance(script, list)
    return Path(script.path)


def head() -> str:
    """The version that this release needs."""
    return _known()[-1]


def _known() -> list[str]:
    found = (_REVISION.match(path.stem) for path in (_folder() / "versions").glob("*.py"))
    return sorted(match.group(1) for match in found if match)


def _folder() -> Path:
    return Path(next(iter(migrations.__path__)))


@contextmanager
def _looking(address: Address) -> Generator[Connection]:
    if address.path is None:
        engine = open_postgres(address, connections=1, read_only=True)
    else:
        engine = open_sqlite(address, connections=1, busy_timeout_s=_PATIENCE_S, read_only=True)
    with _transaction(engine) as connection:
        yield connection


@contextmanager
def _migrating(address: Address) -> Generator[Connection]:
    """One transaction that nobody else migrates or, on SQLite, writes beside."""
    if address.path is None:
        with _transaction(open_postgres(address, connections=1)) as connection:
            connection.execute(text(f"SET LOCAL lock_timeout = '{_PATIENCE_S:.0f}s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:name)"), {"name": _ADVISORY_LOCK})
            yield connection
        return
    address.path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(address.lock_path)
    # Rebuilding a table, which is how SQLite alters one, must not cascade: keys are checked at the end instead.
    engine = open_sqlite(address, connections=1, busy_timeout_s=_PATIENCE_S, foreign_keys=False)
    try:
        with _lock_held(lock), _transaction(engine) as connection:
            yield connection
            _check_foreign_keys(connection)
    finally:
        lock.close()


@contextmanager
def _lock_held(lock: FileLock) -> Generator[None]:
    try:
        with lock.held(_PATIENCE_S):
            yield
    except Exception as error:
        raise translated(error) from error


@contextmanager
def _transaction(engine: Engine) -> Generator[Connection]:
    try:
        with engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        raise translated(error) from error
    finally:
        engine.dispose()


def _check_foreign_keys(connection: Connection) -> None:
    broken = connection.execute(text("PRAGMA foreign_key_check")).all()
    if broken:
        raise RuntimeError(f"the migration would leave {len(broken)} rows that refer to nothing, the first in {broken[0][0]}")


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    if found is not None and found not in _known():
        raise DatabaseUnusable(
            f"the database is at version {found}, which this release does not know: its newest is {head()}; "
            "run the release that migrated it, or a newer one"
        )
    return found


def _upgrade(connection: Connection) -> None:
    from alembic import command

    command.upgrade(_config(connection), "head")


def _config(connection: Connection) -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    config.attributes["connection"] = connection
    return config


def _differences(url: str) -> tuple[str, ...]:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    upgrade(url)
    with _looking(parse_address(url)) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return tuple(str(difference) for difference in compare_metadata(context, metadata))
