"""The one door through which rows of tenants are read. A test refuses a `select` on them anywhere else in the gateway."""

from typing import Any

from sqlalchemy import ColumnElement, Select, Table, select


def of_tenant(table: Table, tenant_id: str, *columns: ColumnElement[Any]) -> Select[*tuple[Any, ...]]:
    """Select rows of one tenant: all columns, or those given. Narrow it further with `.where`.

    Raises:
        ValueError: If a column is another table's, which would bring rows of other tenants in.
    """
    return _from(table, columns).where(table.c.tenant_id == tenant_id)


def across_tenants(table: Table, *columns: ColumnElement[Any], reason: str) -> Select[*tuple[Any, ...]]:
    """Select rows of all tenants, for the few tasks that are nobody's: authentication, recovery, expiry.

    `reason` says why no tenant is known, to whoever reads the call.

    Raises:
        ValueError: If there is no reason, or a column is another table's.
    """
    if not reason.strip():
        raise ValueError("reading across tenants needs a reason")
    return _from(table, columns)


def _from(table: Table, columns: tuple[ColumnElement[Any], ...]) -> Select[*tuple[Any, ...]]:
    foreign = [column for column in columns if getattr(column, "table", table) is not table]
    if foreign:
        raise ValueError(f"{foreign[0]} is not a column of {table.name}")
    return select(*columns).select_from(table) if columns else select(table)
