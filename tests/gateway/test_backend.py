"""The bundled backend as a child: comes up, is watched, comes back, goes."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator

import httpx
import pytest
import structlog

from gateway.backend import BackendFailed, BundledBackend
from tests.gateway.conftest import until


class Watched:
    """A backend and what it is told."""

    def __init__(self, **options: float) -> None:
        self.healthy = True
        self.restarts = 0
        self.backend = BundledBackend(
            structlog.get_logger(), healthy=self._is_healthy, on_restart=self._count, check_every_s=0.05, **options
        )

    async def _is_healthy(self) -> bool:
        return self.healthy

    def _count(self) -> None:
        self.restarts += 1


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    """Started; ended at last."""
    watched = Watched()
    await watched.backend.start()
    yield watched
    await watched.backend.stop()


async def health(backend: BundledBackend) -> str:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"{backend.url}/health-check")).json()["status"]


async def test_started_backend_is_ready_and_stopped_one_is_gone(watched: Watched):
    """`start` returns once it listens; `stop` once it has ended."""
    pid = watched.backend.pid
    assert pid is not None
    await until_ready(watched.backend)

    await watched.backend.stop()

    assert watched.backend.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert watched.restarts == 0


async def test_crashed_backend_is_started_again_at_the_same_address(watched: Watched):
    """Whoever talks to it need not be told."""
    url, pid = watched.backend.url, watched.backend.pid
    assert pid is not None

    os.kill(pid, signal.SIGKILL)
    await until(lambda: watched.backend.pid not in (None, pid), within_s=20)

    assert (watched.restarts, watched.backend.url) == (1, url)
    await until_ready(watched.backend)


async def test_backend_that_no_longer_answers_is_replaced(watched: Watched):
    """Three missed checks in a row."""
    pid = watched.backend.pid

    watched.healthy = False
    await until(lambda: watched.restarts == 1)
    watched.healthy = True

    await until(lambda: watched.backend.pid not in (None, pid), within_s=20)
    await until_ready(watched.backend)


async def test_backend_that_hangs_is_replaced_whatever_its_user_says():
    """Its own `/health-check` is asked too: the parent of several workers uses it for nothing, and hears of it only so."""
    watched = Watched(answer_deadline_s=0.2)
    await watched.backend.start()
    try:
        await until_ready(watched.backend)
        pid = watched.backend.pid
        assert pid is not None

        os.kill(pid, signal.SIGSTOP)
        await until(lambda: watched.restarts == 1, within_s=20)

        await until(lambda: watched.backend.pid not in (None, pid), within_s=20)
    finally:
        await watched.backend.stop()


async def test_backend_that_does_not_come_up_is_an_error(monkeypatch: pytest.MonkeyPatch):
    """And nothing of it stays."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    watched = Watched(start_deadline_s=5.0)

    with pytest.raises(BackendFailed):
        await watched.backend.start()

    assert watched.backend.pid is None


async def until_ready(backend: BundledBackend) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                if await health(backend) == "READY":
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.02)
