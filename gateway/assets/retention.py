"""Retention: results are kept for as long as the settings say, then removed, file first and row second."""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Connection, delete, func
from structlog.typing import FilteringBoundLogger

from gateway.assets.store import AssetStore, StorageFailed
from gateway.db.engine import Database
from gateway.db.scope import across_tenants
from gateway.db.tables import asset

_AT_ONCE = 1_000
"""Pictures removed in one go, so that a long absence is made up for in small steps; drawn by chance, so that none is in the way."""


class Retention:
    """Removes what is no longer to be kept."""

    def __init__(self, db: Database, store: AssetStore, clock: Callable[[], datetime], log: FilteringBoundLogger) -> None:
        self._log = log
        self._db = db
        self._store = store
        self._clock = clock

    async def remove_expired(self) -> int:
        """Remove expired pictures, some at a time, and return how many there were. A repeated run does no harm."""
        now = self._clock()

        def read(connection: Connection) -> list[tuple[str, str]]:
            expired = across_tenants(asset, asset.c.id, asset.c.key, reason="time runs out for every tenant's pictures")
            rows = connection.execute(expired.where(asset.c.expires_at <= now).order_by(func.random()).limit(_AT_ONCE))
            return [(row.id, row.key) for row in rows]

        expired = await self._db.read(read)
        removed = [identifier for identifier, key in expired if await self._remove(key)]
        if removed:
            gone = delete(asset).where(asset.c.id.in_(removed))
            await self._db.write(lambda connection: connection.execute(gone).rowcount)
        return len(removed)

    async def _remove(self, key: str) -> bool:
        """Remove one file. One that cannot be removed now stays for the next run, and keeps no other from going."""
        try:
            await self._store.delete(key)
        except StorageFailed as error:
            self._log.warning("retention.kept", key=key, reason=str(error))
            return False
        return True
