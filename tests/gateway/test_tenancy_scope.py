"""The one door: rows of tenants are read through `gateway/db/scope.py` and nowhere else."""

import ast
from pathlib import Path

import pytest

from gateway.db.scope import across_tenants, of_tenant
from gateway.db.tables import TENANT_TABLES, api_key, asset, job

ROOT = Path(__file__).parents[2]
DOOR = ROOT / "gateway" / "db" / "scope.py"
READS = {"select", "exists"}
RAW_SQL = {"text", "exec_driver_sql", "literal_column"}
GROUND = ROOT / "gateway" / "db"


def offences(source: str, *, raw_allowed: bool = False) -> list[str]:
    """Every place in a module that could read tenant rows past the door."""
    tree = ast.parse(source)
    tables = _names_of_tables(tree)
    from_sqlalchemy = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sqlalchemy")
        for alias in node.names
    }
    found: list[str] = []
    for statement in _statements(tree):
        called = {_called(node, from_sqlalchemy) for node in ast.walk(statement) if isinstance(node, ast.Call)}
        if called & READS and _mentions(statement, tables):
            found.append(f"line {statement.lineno}: reads {sorted(_mentions(statement, tables))}")
        if called & RAW_SQL and not raw_allowed:
            found.append(f"line {statement.lineno}: raw SQL")
    return found


def _names_of_tables(tree: ast.Module) -> set[str]:
    """Tenant tables by the names they have in this module."""
    names = set(TENANT_TABLES)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "gateway.db.tables":
            names |= {alias.asname for alias in node.names if alias.name in TENANT_TABLES and alias.asname}
    return names


def _statements(tree: ast.Module) -> list[ast.stmt]:
    """Simple statements: those that hold no others."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and not hasattr(node, "body")]


def _called(call: ast.Call, from_sqlalchemy: dict[str, str]) -> str:
    match call.func:
        case ast.Name(id=name):
            return from_sqlalchemy.get(name, "")
        case ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _mentions(statement: ast.stmt, tables: set[str]) -> set[str]:
    names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    attributes = {node.attr for node in ast.walk(statement) if isinstance(node, ast.Attribute)}
    return (names | attributes) & tables


@pytest.mark.parametrize("path", sorted((ROOT / "gateway").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_tenant_rows_are_read_through_the_door_only(path):
    """No module of the gateway selects from a tenant's table, or writes SQL by hand outside the ground."""
    if path == DOOR:
        return
    assert offences(path.read_text(), raw_allowed=GROUND in path.parents) == []


@pytest.mark.parametrize(
    "source",
    [
        "from sqlalchemy import select\nfrom gateway.db.tables import job\nrows = select(job).where(True)",
        "from sqlalchemy import select\nfrom gateway.db import tables\nrows = select(tables.job.c.id)",
        "import sqlalchemy as sa\nfrom gateway.db.tables import asset\nrows = sa.select(asset)",
        "from gateway.db.tables import job\nrows = job.select()",
        "from sqlalchemy import select as pick\nfrom gateway.db.tables import job as work\nrows = pick(work)",
        "from sqlalchemy import select, tenant\nrows = select(tenant).join(api_key)",
        "from sqlalchemy import text\nrows = text('SELECT * FROM job')",
        "connection.exec_driver_sql('SELECT 1')",
    ],
)
def test_a_way_around_the_door_is_found(source):
    """The check sees what it is for."""
    assert offences(source)


@pytest.mark.parametrize(
    "source",
    [
        "from sqlalchemy import select\nfrom gateway.db.tables import tenant\nrows = select(tenant.c.name)",
        "from sqlalchemy import update\nfrom gateway.db.tables import job\nwrite = update(job).values(state='failed')",
        "from gateway.db.scope import of_tenant\nfrom gateway.db.tables import job\nrows = of_tenant(job, 'ten_1')",
    ],
)
def test_what_is_no_reading_of_tenant_rows_is_left_alone(source):
    """The check does not stand in the way."""
    assert offences(source) == []


def test_the_door_narrows_to_one_tenant():
    """Every statement of one tenant says so in its WHERE."""
    assert "WHERE job.tenant_id = " in str(of_tenant(job, "ten_1"))
    assert "WHERE asset.tenant_id = " in str(of_tenant(asset, "ten_1", asset.c.key))


def test_the_door_refuses_columns_of_another_table():
    """They would bring rows of all tenants in."""
    with pytest.raises(ValueError, match="not a column of job"):
        of_tenant(job, "ten_1", api_key.c.digest)


def test_reading_across_tenants_needs_a_reason():
    """The few who may, say why."""
    assert "WHERE" not in str(across_tenants(job, reason="recovery"))
    with pytest.raises(ValueError, match="reason"):
        across_tenants(job, reason=" ")
