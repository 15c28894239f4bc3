"""Running an ASGI app as somebody's child process: it tells its address, drains before it stops, dies with its parent."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import msgspec
import uvicorn

GRACE_S = 9.0
"""What running work gets to end after SIGTERM, so that the process is gone within 10 s."""


class Stopping:
    """Whether the process has been asked to stop, and how long it may still take."""

    def __init__(self) -> None:
        self._ends_s: float | None = None
        self._listener: Callable[[], None] | None = None

    @property
    def is_asked(self) -> bool:
        """Whether no new work should begin."""
        return self._ends_s is not None

    @property
    def left_s(self) -> float:
        """Seconds that running work may still take; 0 when none are left, or when nobody asked in an orderly way."""
        return 0.0 if self._ends_s is None else max(0.0, self._ends_s - time.monotonic())

    def ask(self, grace_s: float = GRACE_S) -> None:
        """Ask the process to stop, within `grace_s`. Asked again, it stops at once."""
        self._ends_s = time.monotonic() + (0.0 if self.is_asked else grace_s)
        if self._listener is not None:
            self._listener()

    def then(self, do: Callable[[], None]) -> None:
        """Call `do` whenever it is asked."""
        self._listener = do


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one."""
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=256)


async def serve_until_stopped(app: Any, listener: socket.socket, stopping: Stopping, *, exit_with_parent: bool) -> None:
    """Serve `app` until SIGTERM, SIGINT or `stopping.ask`, and print `{"url": ...}` on stdout once it listens.

    With `exit_with_parent`, also until stdin ends: then at once, since nobody is left who could fetch a result.
    """
    server = _Server(
        uvicorn.Config(
            app,
            lifespan="off",  # not run when a shutdown is forced, so what must be closed is closed by the caller
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(GRACE_S),
        ),
        announce=lambda: _announce(listener),
    )

    def stop() -> None:
        server.should_exit = True
        server.force_exit = stopping.left_s == 0

    stopping.then(stop)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.ask)
    if exit_with_parent:
        _when_stdin_ends(lambda: loop.call_soon_threadsafe(stopping.ask, 0))
    await server.serve(sockets=[listener])


def fast_loop() -> asyncio.AbstractEventLoop:
    """A new event loop: uvloop's where it is installed, since it reads large bodies with less work."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class _Server(uvicorn.Server):
    """One that leaves signals to us and tells when it listens."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()


def _announce(listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    os.write(1, msgspec.json.encode({"url": url}) + b"\n")


def _when_stdin_ends(do: Callable[[], object]) -> None:
    """Call `do`, in another thread, when whoever holds the other end of stdin is gone, by whatever death."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        with contextlib.suppress(RuntimeError):  # the loop has ended before
            do()

    threading.Thread(target=watch, daemon=True, name="stdin").start()
