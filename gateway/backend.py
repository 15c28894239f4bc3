"""The bundled local backend as a child process: started, watched, restarted, stopped with the gateway."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

import msgspec
from structlog.typing import FilteringBoundLogger

import providers
from providers import http

MODELS = ("detail-upscaler",)
"""What it serves. Not every local offer of the catalog: others need backends of the operator's own."""

HEALTHY_RUN_S = 60.0
"""After running this long, the next crash counts as the first again."""


class BackendFailed(Exception):
    """The bundled backend did not come up."""


class BundledBackend:
    """One child process that speaks Cog's prediction API on a loopback port, for as long as the gateway lives.

    The child gets a pipe as its standard input and ends when that closes, so that it goes even when the gateway is killed.
    """

    def __init__(
        self,
        log: FilteringBoundLogger,
        *,
        healthy: Callable[[], Awaitable[bool]],
        on_restart: Callable[[], None],
        device: str = "cpu",
        check_every_s: float = 5.0,
        start_deadline_s: float = 60.0,
        answer_deadline_s: float = 5.0,
    ) -> None:
        """Nothing is started yet.

        Args:
            log: Where to.
            healthy: What its user makes of its state; asked after the child itself has answered.
            on_restart: Told of every restart.
            device: What it computes on.
            check_every_s: Between two checks.
            start_deadline_s: How long it may take to listen.
            answer_deadline_s: How long it may take to answer a check.
        """
        self._log = log
        self._healthy = healthy
        self._on_restart = on_restart
        self._device = device
        self._check_every_s = check_every_s
        self._start_deadline_s = start_deadline_s
        self._answer_deadline_s = answer_deadline_s
        self._port = _free_port()
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it listens; stays the same over restarts."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """The child that runs now."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start it and wait until it listens.

        Raises:
            BackendFailed: If it does not come up within the deadline.
        """
        await self._spawn()
        self._watch = asyncio.create_task(self._keep_running())

    async def stop(self, grace_s: float = 12.0) -> None:
        """End it: asked first, killed after `grace_s` seconds."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        await self._end(grace_s)

    async def _spawn(self) -> None:
        # The child imports the same code as this process, wherever that was started from.
        root = str(Path(next(iter(providers.__path__))).parent)
        path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "providers.local.server", "--host", "127.0.0.1", "--port", str(self._port)),
            *("--device", self._device, "--exit-with-parent"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C in the terminal is for the gateway, which stops it in order
        )
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), self._start_deadline_s)
            msgspec.json.decode(line)
        except (TimeoutError, msgspec.DecodeError) as error:
            await self._end(1.0)
            raise BackendFailed("the bundled backend did not start; its own words are above") from error
        self._log.info("backend.started", pid=self._process.pid, url=self.url)

    async def _keep_running(self) -> None:
        loop, failures = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            await self._until_broken()
            failures = 1 if loop.time() - began > HEALTHY_RUN_S else failures + 1
            await self._end(1.0)
            self._on_restart()
            await asyncio.sleep(min(30.0, 0.25 * 2**failures))
            with suppress(BackendFailed):
                await self._spawn()

    async def _until_broken(self) -> None:
        """Return once the child has exited or stopped answering three checks in a row."""
        missed = 0
        async with http.create_client(guard=None) as client:
            while self._process is not None and self._process.returncode is None and missed < 3:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), self._check_every_s)
                    break
                missed = 0 if await self._answers(client) and await self._healthy() else missed + 1
        code = self._process.returncode if self._process is not None else None
        self._log.error("backend.broken", returncode=code, missed_checks=missed)

    async def _answers(self, client: http.AsyncClient) -> bool:
        """Whether the child says anything at all of its state; what it says is for who uses it to judge."""
        try:
            return (await client.get(f"{self.url}/health-check", timeout=self._answer_deadline_s)).status_code == HTTPStatus.OK
        except http.HTTPError:
            return False

    async def _end(self, grace_s: float) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), grace_s)
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
