"""The schema: made, recognised, compared, and refused when it is not ours."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

import migrations
from gateway.db import migrate
from gateway.db.connect import DatabaseUnusable, open_postgres, open_sqlite, parse_address
from gateway.db.tables import metadata
from gateway.errors import Overloaded


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request, tmp_path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new/empty.db"
    return request.getfixturevalue("empty_postgres_url")


def engine_of(url):
    address = parse_address(url)
    if address.path is None:
        return open_postgres(address, connections=1)
    return open_sqlite(address, connections=1, busy_timeout_s=1)


def mark_version(url, version):
    engine = engine_of(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})
    engine.dispose()


def test_upgrade_makes_the_schema_and_is_idempotent(empty_url):
    """From nothing to the current version; a second time changes nothing."""
    assert migrate.current(empty_url) is None
    assert not migrate.is_current(empty_url)

    assert migrate.upgrade(empty_url) == migrate.head()
    assert migrate.upgrade(empty_url) == migrate.head()
    assert migrate.is_current(empty_url)


def test_the_migrations_make_what_the_tables_say(empty_url):
    """Alembic finds no difference between `tables.py` and a migrated database."""
    assert migrate.check(empty_url) == ()


def test_check_needs_no_database_of_its_own():
    """`make check` runs it without any setting."""
    assert migrate.check() == ()


def test_check_constraints_are_the_same_too(empty_url):
    """Alembic does not compare CHECK constraints, so this does."""
    migrate.upgrade(empty_url)
    engine = engine_of(empty_url)
    with engine.begin() as connection:
        migrated = _checks(connection)
        connection.execute(text("DROP TABLE alembic_version"))
        metadata.drop_all(connection)
        metadata.create_all(connection)
        assert _checks(connection) == migrated
    engine.dispose()


def _checks(connection):
    inspector = inspect(connection)
    return {
        table: sorted((check["name"], check["sqltext"]) for check in inspector.get_check_constraints(table))
        for table in sorted(metadata.tables)
    }


def test_upgrades_at_the_same_time_wait_for_each_other(empty_url):
    """Four at once: one migrates, the others find it done."""
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(migrate.upgrade, [empty_url] * 4)) == {migrate.head()}


def test_serving_makes_sqlite_current_by_itself(tmp_path):
    """An empty SQLite database needs no command."""
    url = f"sqlite:///{tmp_path}/var/gateway.db"

    migrate.ensure_schema(url)

    assert migrate.is_current(url)


def test_serving_refuses_postgresql_that_nobody_migrated(empty_postgres_url):
    """An operator decides when a server's schema changes, and is told how."""
    with pytest.raises(DatabaseUnusable, match="image-gateway migrate"):
        migrate.ensure_schema(empty_postgres_url)

    migrate.upgrade(empty_postgres_url)
    migrate.ensure_schema(empty_postgres_url)


@pytest.mark.parametrize("act", [migrate.current, migrate.upgrade, migrate.ensure_schema])
def test_a_database_of_a_newer_release_is_refused(database_url, act):
    """Nothing is done to a schema that this release does not know."""
    mark_version(database_url, "2999_01_01_0000")

    with pytest.raises(DatabaseUnusable, match="2999_01_01_0000"):
        act(database_url)


def test_an_unreachable_database_is_overload():
    """The same error as everywhere else."""
    with pytest.raises(Overloaded):
        migrate.upgrade("postgresql://nobody@127.0.0.1:9/none")


def test_alembic_agrees_on_the_newest_version():
    """The file names, which are read without Alembic, tell the same as its own chain of versions, which is one line."""
    config = Config()
    config.set_main_option("script_location", next(iter(migrations.__path__)))
    scripts = ScriptDirectory.from_config(config)

    assert scripts.get_heads() == [migrate.head()]
    assert all(Path(script.path).name.startswith(script.revision) for script in scripts.walk_revisions())


def test_every_version_can_be_undone(database_url):
    """The way back is possible, to an empty database."""
    from alembic import command

    with migrate._migrating(parse_address(database_url)) as connection:
        command.downgrade(migrate._config(connection), "base")

    assert migrate.current(database_url) is None
    assert migrate.upgrade(database_url) == migrate.head()


def test_a_current_database_is_recognised_without_alembic(sqlite_url):
    """Starting a server does not pay for importing Alembic."""
    code = (
        "import sys; from gateway.db.migrate import ensure_schema; ensure_schema(sys.argv[1]); sys.exit('alembic' in sys.modules)"
    )

    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code, sqlite_url], cwd=root, check=False).returncode == 0
