"""Pictures go when their time is over, and not before."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
from sqlalchemy import func, insert, select

from gateway.assets.retention import Retention
from gateway.assets.store import AssetMissing, open_store
from gateway.db.engine import Database
from gateway.db.tables import asset, job, process, tenant

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def test_expired_pictures_go_with_file_and_row(db: Database, tmp_path: Path):
    """Only what has expired is removed; a second run finds nothing."""
    store = open_store(f"file://{tmp_path}/pictures")
    source = tmp_path / "a"
    source.write_bytes(b"picture")
    for key in ("img_old.png", "img_new.png"):
        await store.put_file(source, key)
    await db.write(_rows)
    retention = Retention(db, store, lambda: NOW, structlog.get_logger())

    removed = [await retention.remove_expired(), await retention.remove_expired()]

    assert removed == [1, 0]
    assert await store.size("img_new.png") == 7
    with pytest.raises(AssetMissing):
        await store.size("img_old.png")
    assert await db.read(lambda connection: connection.execute(select(func.count()).select_from(asset)).scalar_one()) == 1


def _rows(connection):
    connection.execute(insert(tenant), {"id": "ten_1", "name": "t", "created_at": NOW})
    connection.execute(insert(process), {"id": "boot_1", "host": "h", "pid": 1, "started_at": NOW, "seen_at": NOW})
    row = {"id": "req_1", "tenant_id": "ten_1", "process": "boot_1", "route": "images.edits", "model": "m", "mode": "edit"}
    connection.execute(insert(job), {**row, "state": "completed", "request": {}, "controls": {}, "created_at": NOW})
    for position, (name, days) in enumerate((("old", -1), ("new", 1))):
        size = {"format": "png", "width": 1, "height": 1, "size_bytes": 7, "created_at": NOW}
        where = {"id": f"img_{name}", "tenant_id": "ten_1", "job_id": "req_1", "position": position, "key": f"img_{name}.png"}
        connection.execute(insert(asset), {**where, **size, "expires_at": NOW + timedelta(days=days)})
