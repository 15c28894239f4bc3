"""The only place where objects are built and wired. `create_app` for the server; `open_gateway` for the shell."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from uuid import uuid4

from litestar import Litestar
from litestar.di import Provide
from litestar.middleware import DefineMiddleware
from litestar.types import ASGIApp
from prometheus_client import CollectorRegistry
from structlog.typing import FilteringBoundLogger

from gateway.api.assets import asset_route
from gateway.api.auth import Authentication
from gateway.api.body import DrainedBody
from gateway.api.health import Readiness, health_router
from gateway.api.hooks import Hooks, hooks_router
from gateway.api.images import Links, images_router
from gateway.api.jobs import jobs_router
from gateway.api.measured import Measured
from gateway.api.models import models_router
from gateway.api.openapi import openapi_config, openapi_document
from gateway.api.rendering import RequestId, error_handlers
from gateway.assets.retention import Retention
from gateway.assets.store import AssetStore, open_store
from gateway.backend import MODELS, BundledBackend
from gateway.db.engine import Database
from gateway.db.migrate import ensure_schema
from gateway.db.presence import HEARTBEAT
from gateway.errors import Overloaded
from gateway.images.health import Health, Thresholds
from gateway.images.journal import Journal
from gateway.images.pixel_pool import PixelPool
from gateway.images.routing import unknown_names
from gateway.images.services import Services
from gateway.jobs.service import Jobs
from gateway.observe.metrics import Metrics
from gateway.settings import Settings, secret_key
from gateway.tenants.service import Caller, Tenants
from gateway.times import now
from providers import http
from providers.base import Provider
from providers.catalog import Shelf, load_catalog
from providers.drive import Nudges
from providers.fal import FalProvider, FalSettings
from providers.fal_webhooks import FalWebhooks
from providers.local.cog import BackendState, CogProvider, LocalBackend
from providers.replicate import ReplicateProvider, ReplicateSettings
from providers.spool import Spool

RETENTION_EVERY_S = 60.0

BUNDLED = "bundled"
"""The name of the backend that comes with the gateway."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """Every part of one process, wired."""

    settings: Settings
    db: Database
    tenants: Tenants
    services: Services
    jobs: Jobs
    links: Links
    readiness: Readiness
    hooks: Hooks
    """Webhooks of providers that may come in."""


@asynccontextmanager
async def open_gateway(
    settings: Settings, store: AssetStore, secret: bytes, log: FilteringBoundLogger, metrics: Metrics
) -> AsyncGenerator[Gateway]:
    """Build every part, start what runs by itself, and stop it in order at the end: work first, then what it stands on.

    Args:
        settings: Read before.
        store: Where results are kept.
        secret: Signs links and keys the hashes of API keys.
        log: Where to.
        metrics: Counts.

    Raises:
        DatabaseUnusable, CatalogError, BackendFailed: What keeps a gateway from starting.
    """
    shelf = Shelf(lambda: load_catalog(settings.catalog.folder, settings.local.usd_per_second))
    await asyncio.to_thread(ensure_schema, settings.database_url)
    db = Database(settings.database_url)
    spool = Spool()
    try:
        async with (
            http.create_client(guard=http.AddressGuard(settings.fetch.allow_hosts)) as outside,
            http.create_client(guard=None) as own,
            _replicate(settings, own, spool) as replicate,
            _local(settings, own, spool, log, metrics) as local,
        ):
            providers: dict[str, Provider] = {one.name: one for one in (_fal(settings, own, spool), replicate, local)}
            journal = Journal(db, now, f"boot_{uuid4().hex}")
            pixels = _pixel_pool(settings)
            services = Services(
                settings=settings,
                shelf=shelf,
                providers=providers,
                nudges=Nudges(),
                webhooked=frozenset({"fal", "replicate"}) if _webhook(settings, "") else frozenset(),
                unavailable=lambda offer: providers[offer.provider].refusal(offer.endpoint),
                health=Health(Thresholds.of(settings.routing), time.monotonic),
                journal=journal,
                pixels=pixels,
                store=store,
                spool=spool,
                client=outside,
                metrics=metrics,
                log=log,
                clock=now,
            )
            for name in unknown_names(settings.routing, shelf.catalog):
                log.warning("routing.unknown_offer", offer=name)
            await pixels.warm()
            jobs = Jobs(metrics.jobs_in_flight.set)
            metrics.queue_depth.labels("pixels").set_function(lambda: pixels.waiting)
            await journal.recover()
            async with (
                _repeated(journal.recover, HEARTBEAT.total_seconds(), log),
                _repeated(Retention(db, store, now, log).remove_expired, RETENTION_EVERY_S, log),
            ):
                try:
                    yield Gateway(
                        settings=settings,
                        db=db,
                        tenants=Tenants(db, secret, now),
                        services=services,
                        jobs=jobs,
                        links=Links(secret, settings.public_url, settings.storage.link_s, time.time),
                        readiness=_readiness(db, store, jobs),
                        hooks={
                            "fal": FalWebhooks(settings.fal.rest_url, client=own, now=now).verify,
                            "replicate": replicate.verify_webhook,
                        },
                    )
                finally:
                    stopped = await jobs.drain(settings.limits.drain_s)
                    interrupted = await journal.leave()
                    log.info("gateway.drained", stopped=stopped, interrupted=interrupted)
                    await pixels.close()
    finally:
        await db.close()
        spool.close()


def create_app(
    settings: Settings, log: FilteringBoundLogger, *, on_ready: Callable[[Gateway], Awaitable[None]] | None = None
) -> ASGIApp:
    """Make the server's application.

    Args:
        settings: Read before.
        log: Where to.
        on_ready: Awaited once everything runs, before the first request.
    """
    metrics = Metrics(CollectorRegistry())
    store, secret = open_pictures(settings), secret_key(settings)
    wired: list[Gateway] = []

    def gateway() -> Gateway:
        if not wired:
            raise Overloaded("The gateway is not running.", retry_after_s=1.0)
        return wired[0]

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncGenerator[None]:
        async with open_gateway(settings, store, secret, log, metrics) as parts:
            wired.append(parts)
            if on_ready is not None:
                await on_ready(parts)
            yield

    async def authenticate(key: str) -> Caller | None:
        return await gateway().tenants.authenticate(key)

    app = Litestar(
        route_handlers=[
            images_router,
            hooks_router,
            jobs_router,
            models_router,
            health_router,
            openapi_document,
            asset_route(store, secret, time.time),
        ],
        lifespan=[lifespan],
        middleware=[DefineMiddleware(Authentication, authenticate=authenticate)],
        exception_handlers=error_handlers(log),
        dependencies={
            "services": Provide(lambda: gateway().services, sync_to_thread=False),
            "jobs": Provide(lambda: gateway().jobs, sync_to_thread=False),
            "links": Provide(lambda: gateway().links, sync_to_thread=False),
            "catalog": Provide(lambda: gateway().services.catalog, sync_to_thread=False),
            "hooks": Provide(lambda: gateway().hooks, sync_to_thread=False),
            "nudges": Provide(lambda: gateway().services.nudges, sync_to_thread=False),
            "readiness": Provide(lambda: gateway().readiness, sync_to_thread=False),
            "metrics": Provide(lambda: metrics, sync_to_thread=False),
        },
        openapi_config=openapi_config(),
        request_max_body_size=None,  # counted while it is read, by what reads it
        logging_config=None,
    )
    return RequestId(Measured(DrainedBody(app), metrics=metrics), log=log)


def open_pictures(settings: Settings) -> AssetStore:
    """The asset store that the settings name."""
    endpoint = settings.s3.endpoint_url
    return open_store(settings.pictures_url, s3={"endpoint": endpoint} if endpoint else None)


@asynccontextmanager
async def _local(
    settings: Settings, client: http.AsyncClient, spool: Spool, log: FilteringBoundLogger, metrics: Metrics
) -> AsyncGenerator[CogProvider]:
    """The provider `local`: the operator's backends, or the bundled one, started here."""
    if settings.local.backends is not None:
        named = [LocalBackend(one.name, one.url, one.models, one.slots) for one in settings.local.backends]
        local = CogProvider(named, client=client, spool=spool, now=now)
        try:
            yield local
        finally:
            await local.close()
        return

    async def healthy() -> bool:
        states = {health.backend: health.state for health in await local.health()}
        metrics.backend_up.labels(BUNDLED).set(states.get(BUNDLED) is not BackendState.DOWN)
        return states.get(BUNDLED) is not BackendState.DOWN

    backend = BundledBackend(log, healthy=healthy, on_restart=metrics.backend_restarts.inc)
    facts = LocalBackend(BUNDLED, backend.url, MODELS, slots=os.cpu_count() or 1)
    local = CogProvider((facts,), client=client, spool=spool, now=now)
    await backend.start()
    try:
        yield local
    finally:
        await local.close()
        await backend.stop()


def _webhook(settings: Settings, provider: str) -> str | None:
    """Where a provider can tell that work is over: with a public https address only."""
    base = settings.public_url
    return f"{base.rstrip('/')}/webhooks/{provider}" if base is not None and base.startswith("https://") else None


def _fal(settings: Settings, client: http.AsyncClient, spool: Spool) -> FalProvider:
    """The provider `fal`; without a key it says so when asked."""
    key = settings.fal_key.get_secret_value().strip() if settings.fal_key is not None else None
    return FalProvider(
        FalSettings(key=key or None, **settings.fal.model_dump()),
        client=client,
        spool=spool,
        now=now,
        start_timeout_s=settings.limits.job_deadline_s,
        webhook_url=_webhook(settings, "fal"),
    )


@asynccontextmanager
async def _replicate(settings: Settings, client: http.AsyncClient, spool: Spool) -> AsyncGenerator[ReplicateProvider]:
    """The provider `replicate`; without a token it says so when asked."""
    token = settings.replicate_api_token.get_secret_value().strip() if settings.replicate_api_token is not None else None
    own = ReplicateSettings(
        token=token or None,
        base_url=settings.replicate.base_url,
        cancel_after_s=settings.limits.job_deadline_s,
        webhook_url=_webhook(settings, "replicate"),
    )
    replicate = ReplicateProvider(own, client=client, spool=spool, now=now)
    try:
        yield replicate
    finally:
        await replicate.close()


def _pixel_pool(settings: Settings) -> PixelPool:
    pixels = settings.pixels
    return PixelPool(pixels.workers, pixels.queue, pixels.megapixels_in_flight * 1_000_000, pixels.deadline_s)


def _readiness(db: Database, store: AssetStore, jobs: Jobs) -> Readiness:
    async def taking_work() -> None:
        jobs.check_open()

    return {"database": db.ping, "pictures": store.ping, "jobs": taking_work}


@asynccontextmanager
async def _repeated(work: Callable[[], Awaitable[object]], every_s: float, log: FilteringBoundLogger) -> AsyncGenerator[None]:
    """Do something again and again meanwhile."""

    async def go_on() -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await work()
            except Exception:  # the top of a loop: whatever happened, the next turn may do better
                log.exception("gateway.heartbeat_failed")

    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
