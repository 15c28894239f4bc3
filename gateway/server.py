"""Running the server: uvicorn around the app, in one process or several, and the greeting of `image-gateway dev`."""

import asyncio
import json
import os
import shlex
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
import uvicorn
from litestar.types import ASGIApp

from gateway.app import BUNDLED, Gateway, create_app
from gateway.backend import MODELS, BundledBackend
from gateway.observe.log import configure_logging
from gateway.settings import VAR, Settings, SettingsError, read_settings
from providers.catalog import CatalogError

EXAMPLE = Path("examples") / "harbour.jpg"

_CONFIG_VARIABLE = "IMAGE_GATEWAY_CONFIG"
"""Tells worker processes which settings file their parent was given."""

_GREETING = """
Image Gateway is running at {address}

  API key   {key}
  Docs      {address}/docs

Try it: this doubles a picture.

  {curl}

Ctrl-C ends it.
"""


def run_server(settings: Settings, host: str, port: int, workers: int = 1, config: Path | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C, then let running work end.

    Raises:
        SettingsError: If several processes are asked for on SQLite, or the address cannot be used.
    """
    configure_logging(settings.log.level, settings.log.format)
    if workers == 1:
        _serve(settings, host, port, _announce(host))
        return
    if settings.database_url.startswith("sqlite"):
        raise SettingsError("--workers above 1 needs PostgreSQL: set GATEWAY_DATABASE_URL=postgresql://…")
    if config is not None:
        os.environ[_CONFIG_VARIABLE] = str(config)
    with _shared_backend(settings):
        uvicorn.run("gateway.server:worker_app", factory=True, workers=workers, host=host, port=port, **_uvicorn_options(settings))


def run_development(settings: Settings, host: str, port: int) -> None:
    """Serve on one machine for trying it out, and say how."""
    configure_logging("warning" if settings.log.level == "info" else settings.log.level, settings.log.format)

    async def greet(gateway: Gateway, address: str) -> None:
        key = await _development_key(gateway)
        picture = EXAMPLE.absolute()
        form = ("model=detail-upscaler", f"image=@{picture}", "scale_factor=2")
        parts = ["curl", "-sS", f"{address}/v1/images/edits", "-H", f"Authorization: Bearer {key}"]
        parts += [part for field in form for part in ("-F", field)]
        print(_GREETING.format(address=address, key=key, curl=shlex.join(parts)), flush=True)  # noqa: T201 -- for a person

    _serve(settings, host, port, greet)


def worker_app() -> ASGIApp:
    """The application of one of several worker processes."""
    os.umask(0o077)
    config = os.environ.get(_CONFIG_VARIABLE)
    settings = read_settings(Path(config) if config else None)
    configure_logging(settings.log.level, settings.log.format)
    return create_app(settings, structlog.get_logger())


OnReady = Callable[[Gateway, str], Awaitable[None]]
"""Told, once it runs, the gateway and its address."""


class _Server(uvicorn.Server):
    """Closes the door for new work the moment it is told to stop, so that all of the grace is for work that runs."""

    on_stop: Callable[[], None] = staticmethod(lambda: None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.on_stop()
        await super().shutdown(sockets)


def _serve(settings: Settings, host: str, port: int, on_ready: OnReady) -> None:
    os.umask(0o077)  # pictures, database and keys are for the gateway's own user
    listener = _listen(host, port)
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "localhost") else host  # noqa: S104 -- only compared
    address = f"http://{f'[{shown}]' if ':' in shown else shown}:{listener.getsockname()[1]}"

    async def ready(gateway: Gateway) -> None:
        server.on_stop = gateway.jobs.close_door
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload_catalog, gateway)
        await on_ready(gateway, address)

    app = create_app(settings, structlog.get_logger(), on_ready=ready)
    server = _Server(uvicorn.Config(app, **_uvicorn_options(settings)))
    # uvicorn ends in order, then raises the signal again for whoever had it before: that must not look like a crash.
    signal.signal(signal.SIGTERM, _ignored)
    signal.signal(signal.SIGINT, _ignored)
    with listener:
        server.run([listener])
    if not server.started:
        raise SettingsError("the gateway did not start; the reason is above")


def _reload_catalog(gateway: Gateway) -> None:
    """Read the model files again; if one cannot be used, keep what there is and say so."""
    log = gateway.services.log
    try:
        log.info("catalog.reloaded", models=len(gateway.services.shelf.reload().models))
    except (CatalogError, OSError) as error:
        log.error("catalog.kept", reason=str(error))


def _ignored(_signal: int, _frame: FrameType | None) -> None:
    pass


def _uvicorn_options(settings: Settings) -> dict[str, Any]:
    return {
        "lifespan": "on",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": max(1, round(settings.limits.drain_s)),
    }


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port") from error
    listener.setblocking(False)
    return listener


def _announce(host: str) -> OnReady:
    async def announce(gateway: Gateway, address: str) -> None:
        models = len(gateway.services.catalog.models)
        gateway.services.log.info("gateway.started", address=address, host=host, models=models)

    return announce


async def _development_key(gateway: Gateway) -> str:
    """The development key: made once, kept under `var/` for its owner only."""
    path = VAR / "development-key"
    if await asyncio.to_thread(path.exists):
        key = (await asyncio.to_thread(path.read_text, "ascii")).strip()
        if await gateway.tenants.authenticate(key) is not None:
            return key
    made = await gateway.tenants.create_key("development", "make dev")

    def keep() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(made.secret, encoding="ascii")

    await asyncio.to_thread(keep)
    return made.secret


@contextmanager
def _shared_backend(settings: Settings) -> Generator[None]:
    """The bundled backend of several worker processes: one, kept by their parent in a loop of its own."""
    if settings.local.backends is not None:
        yield
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="backend", daemon=True)
    thread.start()

    async def healthy() -> bool:
        return True  # its end is noticed all the same; workers see by themselves when it does not answer

    backend = BundledBackend(structlog.get_logger(), healthy=healthy, on_restart=lambda: None)
    asyncio.run_coroutine_threadsafe(backend.start(), loop).result()
    facts = {"name": BUNDLED, "url": backend.url, "models": MODELS, "slots": os.cpu_count() or 1}
    os.environ["GATEWAY_LOCAL__BACKENDS"] = json.dumps([facts])
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(backend.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
