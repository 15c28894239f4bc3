"""A gateway whose two hosted providers are the stand-ins, and a stranger who notes what he is sent."""

import asyncio
import io
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from PIL import Image

from gateway.images.records import JobRecord
from providers.catalog import load_catalog
from providers.simulators.fal import FalSimulator
from providers.simulators.kit import Kit
from providers.simulators.replicate import ReplicateSimulator
from providers.simulators.serving import serving
from tests.gateway.backend import standing_in
from tests.gateway.conftest import Live, in_folder, serving_gateway, settings_of

FAL_KEY = "fal-id:fal-secret"
REPLICATE_TOKEN = "r8_a-token-of-the-tests"
MODEL = "clarity-upscaler"
SPEED = 1000


def photograph(width: int = 24, height: int = 16) -> bytes:
    """A small picture that is neither black nor flat."""
    out = io.BytesIO()
    Image.radial_gradient("L").resize((width, height)).convert("RGB").save(out, "PNG")
    return out.getvalue()


@dataclass(slots=True)
class Stranger:
    """A server that belongs to nobody we know; answers 404 and keeps the heads of what it is asked."""

    origin: str = ""
    heads: list[str] = field(default_factory=list[str])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await writer.drain()
        writer.close()


@dataclass(slots=True)
class World:
    """All of it."""

    live: Live
    fal: FalSimulator
    replicate: ReplicateSimulator
    stranger: Stranger

    def reset(self) -> None:
        """As new: no faults, no bills, no counts, no memory of failures."""
        for kit in self.kits.values():
            kit.faults.switch(())
            kit.bill.charges.clear()
            kit.counters.clear()
        self.stranger.heads.clear()
        self.live.logged.clear()
        self.live.parts.services.health._records.clear()

    @property
    def kits(self) -> dict[str, Kit]:
        """By provider."""
        return {"fal": self.fal.kit, "replicate": self.replicate.kit}

    async def upscale(
        self, *order: str, model: str = MODEL, picture: bytes | None = None, headers: dict[str, str] | None = None, **fields: object
    ) -> httpx.Response:
        """One enlargement, the providers asked in this order."""
        told = {**(headers or {}), **({"x-gateway-provider-order": ",".join(order)} if order else {})}
        return await self.live.edit(picture or photograph(), headers=told, model=model, **fields)

    async def job(self, response: httpx.Response) -> JobRecord:
        """What the journal says."""
        return await self.live.job(response.headers["x-request-id"])

    def submits(self, provider: str) -> int:
        """How often the provider was handed work."""
        name = {"fal": "submit", "replicate": "create"}[provider]
        return sum(routes.get(name, 0) for routes in self.kits[provider].counters.as_json().values())

    def counted(self, words: str) -> int:
        """How often a route was asked whose name has these words, at either provider."""
        every = (routes for kit in self.kits.values() for routes in kit.counters.as_json().values())
        return sum(times for routes in every for route, times in routes.items() if words in route)

    def bill(self, *providers: str) -> Decimal:
        """What the providers would charge; all of them if none is named."""
        charges = (charge for name in providers or self.kits for charge in self.kits[name].bill.charges)
        return sum((charge.usd or Decimal(0) for charge in charges), Decimal(0))


@asynccontextmanager
async def world_in(folder: Path, database: Path, concurrency: int = 40, **sections: Any) -> AsyncIterator[World]:
    """Start all of it, with settings of one's choice."""
    shutil.copyfile(database, folder / "gateway.db")
    catalog, stranger = load_catalog(), Stranger()
    fal = FalSimulator(catalog, speed=SPEED, concurrency=concurrency)
    replicate = ReplicateSimulator(catalog, speed=SPEED)
    async with AsyncExitStack() as stack:
        server = await asyncio.start_server(stranger.serve, "127.0.0.1", 0)
        stack.callback(server.close)
        stranger.origin = "http://{}:{}".format(*server.sockets[0].getsockname())
        at_fal = await stack.enter_async_context(serving(fal))
        at_replicate = await stack.enter_async_context(serving(replicate))
        backend = await stack.enter_async_context(standing_in())
        hosts = [origin.removeprefix("http://") for origin in (at_fal, at_replicate, stranger.origin)]
        given: dict[str, Any] = {
            "fal_key": FAL_KEY,
            "fal": fal_urls(at_fal),
            "replicate_api_token": REPLICATE_TOKEN,
            "replicate": {"base_url": f"{at_replicate}/v1"},
            "fetch": {"allow_hosts": hosts},
            "limits": {"job_deadline_s": 3.0},
        }
        with in_folder(folder):
            settings = settings_of(f"sqlite:///{folder / 'gateway.db'}", backend, folder, {**given, **sections})
            live = await stack.enter_async_context(serving_gateway(settings, backend))
        yield World(live, fal, replicate, stranger)


def fal_urls(origin: str) -> dict[str, str]:
    """The settings of fal's addresses, where all of fal is at one origin."""
    hosts = {f"{service}_url": f"{origin}/{service}" for service in ("queue", "run", "rest", "cdn")}
    return {**hosts, "api_url": f"{origin}/api/v1"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _one_world(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path_factory.mktemp("world"), sqlite_template) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(_one_world: World) -> World:
    """What the tests of a module share, as new. Such tests are marked `in_one_loop`."""
    _one_world.reset()
    return _one_world


def told(response: httpx.Response) -> Sequence[str]:
    """The attempts of an answer or an error, such as `fal: rate_limit`."""
    body = response.json()
    account = body["metadata"] if response.status_code == 200 else body["error"]
    return [f"{each['provider']}: {each['outcome']}" for each in account["attempts"]]
