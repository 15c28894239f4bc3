"""Which gateway processes are alive, so that what a dead one left unfinished can be closed.

SQLite has all its processes on one machine: each holds a lock on a file beside the database, which the system frees at the
moment it dies. On PostgreSQL each writes a heartbeat; hosts' clocks must agree within some seconds.
"""

import os
import socket
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, insert, select, update

from gateway.db.engine import Database
from gateway.db.locks import FileLock
from gateway.db.tables import process

HEARTBEAT = timedelta(seconds=10)
"""How often a process says that it lives."""

DEAD_AFTER = timedelta(seconds=60)
"""Silence on PostgreSQL after which a process counts as dead."""


class Presence:
    """Our own process's entry, and the look at the others'. The methods are parts of a caller's transaction."""

    def __init__(self, db: Database, clock: Callable[[], datetime], boot_id: str) -> None:
        self._clock = clock
        self._boot_id = boot_id
        self._database = db.sqlite_path
        self._lock = FileLock(self._file(boot_id)) if db.sqlite_path is not None else None

    def announce(self, connection: Connection) -> None:
        """Say that this process lives. From now on others take its unfinished work for its own."""
        if self._lock is not None and not self._lock.try_take():
            raise RuntimeError(f"another process runs as {self._boot_id}")
        now = self._clock()
        mine = update(process).where(process.c.id == self._boot_id).values(seen_at=now, ended_at=None)
        if connection.execute(mine).rowcount == 0:
            row = {"id": self._boot_id, "host": socket.gethostname(), "pid": os.getpid(), "started_at": now, "seen_at": now}
            connection.execute(insert(process).values(row))

    def leave(self, connection: Connection) -> None:
        """Say that this process ends."""
        connection.execute(update(process).where(process.c.id == self._boot_id).values(ended_at=self._clock()))

    def forget(self) -> None:
        """Give the lock back, once `leave` is committed."""
        if self._lock is not None:
            self._lock.path.unlink(missing_ok=True)
            self._lock.close()

    def bury_dead(self, connection: Connection) -> list[str]:
        """Mark the processes that have died since the last look, and return their boot ids."""
        others = select(process.c.id, process.c.seen_at).where(process.c.ended_at.is_(None), process.c.id != self._boot_id)
        now = self._clock()
        dead = [row.id for row in connection.execute(others) if self._is_dead(row.id, now - row.seen_at)]
        if dead:
            connection.execute(update(process).where(process.c.id.in_(dead)).values(ended_at=now))
        return dead

    def _is_dead(self, boot_id: str, silence: timedelta) -> bool:
        if self._lock is None:
            return silence > DEAD_AFTER
        path = self._file(boot_id)
        if not path.exists():
            return True
        lock = FileLock(path)
        try:
            free = lock.try_take()
            if free:
                path.unlink(missing_ok=True)
            return free
        finally:
            lock.close()

    def _file(self, boot_id: str) -> Path:
        assert self._database is not None
        return self._database.with_name(f"{self._database.name}.{boot_id}.alive")
