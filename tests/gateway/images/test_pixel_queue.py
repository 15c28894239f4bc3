"""A full queue of pixel work, as a caller meets it."""

import asyncio
import os
from pathlib import Path

from tests.gateway.conftest import Open, error_of, until


async def test_full_queue_answers_503_with_a_time_to_come_back(open_live: Open, sqlite_url: str, tmp_path: Path):
    """While one conversion runs and one waits, an edit is refused before it is begun; once there is room, it is served."""
    live = await open_live(sqlite_url, pixels={"workers": 1, "queue": 1})
    pool, gate = live.parts.services.pixels, tmp_path / "gate"
    os.mkfifo(gate)
    running = asyncio.create_task(pool.run(Path.read_bytes, gate, pixels=1))
    await until(lambda: pool.running == 1)
    waiting = asyncio.create_task(pool.run(len, "abc", pixels=1))
    await until(lambda: pool.waiting == 1)

    refused = await live.edit(output_format="webp")

    error = error_of(refused, 503)
    assert (error["code"], int(refused.headers["retry-after"]) >= 1) == ("overloaded", True)
    assert (live.backend.inputs, live.spooled) == ([], [])
    await asyncio.to_thread(gate.write_bytes, b"")
    assert (await running, await waiting) == (b"", 3)
    assert (await live.edit(output_format="webp")).status_code == 200
