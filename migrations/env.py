"""What Alembic runs around the versions. The connection, its transaction and its lock come from `gateway/db/migrate.py`."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection

from gateway.db.tables import metadata


def _own_types(kind: str, value: Any, _context: object) -> str | Literal[False]:
    """Write our column types into a new version as what they are in the database: versions must not change with the code."""
    if kind == "type" and type(value).__module__ == "gateway.db.types":
        return f"sa.{value.impl!r}"
    return False


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,  # SQLite alters a table by making it anew
        compare_server_default=True,
        render_item=_own_types,
    )
    context.run_migrations()


if context.is_offline_mode():
    raise RuntimeError("migrations are not written out as SQL; run: image-gateway migrate")
_run(context.config.attributes["connection"])
