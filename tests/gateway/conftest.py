"""What the tests of the whole gateway share: the real application under a real server, in front of a stand-in backend."""

import asyncio
import base64
import io
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import structlog
import uvicorn
from PIL import Image

from gateway.app import Gateway, create_app
from gateway.images.records import JobRecord
from gateway.settings import Settings
from tests.gateway.backend import StandIn, standing_in

MODEL = "detail-upscaler"
Sent = Mapping[str, object]
Open = Callable[..., Awaitable["Live"]]


def picture(width: int = 6, height: int = 4, kind: str = "PNG", mode: str = "RGB", color: object = "red", **options: Any) -> bytes:
    """A tiny picture."""
    out = io.BytesIO()
    Image.new(mode, (width, height), color).save(out, kind, **options)  # pyright: ignore[reportArgumentType] -- any colour
    return out.getvalue()


@dataclass(frozen=True, slots=True, repr=False)
class Live:
    """A gateway that is serving, and what stands around it."""

    url: str
    key: str
    tenant_id: str
    parts: Gateway
    client: httpx.AsyncClient
    """With the key."""
    backend: StandIn
    logged: list[Mapping[str, Any]]
    """Every event of the log."""

    def __repr__(self) -> str:
        return f"Live({self.url})"

    async def edit(
        self,
        image: bytes | Sequence[bytes] | None = None,
        *,
        mask: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **fields: object,
    ) -> httpx.Response:
        """One edit in the multipart form, of a tiny picture and with the bundled model unless told otherwise."""
        images = [image] if isinstance(image, bytes) else [picture()] if image is None else image
        name = "image" if len(images) == 1 else "image[]"
        files = [(name, ("in.png", each)) for each in images] + ([("mask", ("mask.png", mask))] if mask else [])
        data = {key: str(value) for key, value in {"model": MODEL, **fields}.items() if value is not None}
        # a part without a file name is text: so the body is a form even where there is no picture
        parts = [*files, *((key, (None, value)) for key, value in data.items())]
        return await self.client.post("/v1/images/edits", files=parts, headers=headers)

    async def job(self, request_id: str) -> JobRecord:
        """What the journal says."""
        found = await self.parts.services.journal.get_job(self.tenant_id, request_id)
        assert found is not None
        return found

    async def ended(self, request_id: str) -> JobRecord:
        """What the journal says once nothing runs any more."""
        tasks = [job.task for job in self.parts.jobs._running.values()]
        await asyncio.gather(*tasks, return_exceptions=True)
        return await self.job(request_id)

    @property
    def spooled(self) -> list[str]:
        """The files in the spool, which must be none between requests."""
        return sorted(path.name for path in self.parts.services.spool.folder.iterdir())


@pytest.fixture
async def backend() -> AsyncIterator[StandIn]:
    """A stand-in backend."""
    async with standing_in() as stand_in:
        yield stand_in


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """While a gateway starts: a temporary folder of its own and nothing of the developer's settings."""
    (folder / "tmp").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in tuple(os.environ):
            if name.startswith("GATEWAY_"):
                patch.delenv(name)
        patch.setattr(tempfile, "tempdir", str(folder / "tmp"))
        yield


@pytest.fixture
async def open_live(tmp_path: Path, backend: StandIn) -> AsyncIterator[Open]:
    """Opens gateways with settings of the test's choice."""
    async with AsyncExitStack() as stack:

        async def open_one(database_url: str, **sections: Any) -> Live:
            with in_folder(tmp_path):
                settings = settings_of(database_url, backend, tmp_path, sections)
                return await stack.enter_async_context(serving_gateway(settings, backend))

        yield open_one


@pytest.fixture
async def live(open_live: Open, sqlite_url: str) -> Live:
    """A gateway on SQLite."""
    return await open_live(sqlite_url)


@pytest.fixture
async def on_both(open_live: Open, database_url: str) -> Live:
    """A gateway, once on each kind of database."""
    return await open_live(database_url)


in_one_loop = pytest.mark.asyncio(loop_scope="module")
"""For tests that use `shared`."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _one_for_all(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> AsyncIterator[Live]:
    folder = tmp_path_factory.mktemp("shared")
    shutil.copyfile(sqlite_template, folder / "gateway.db")
    async with standing_in() as backend, AsyncExitStack() as stack:
        with in_folder(folder):
            settings = settings_of(f"sqlite:///{folder / 'gateway.db'}", backend, folder, {})
            live = await stack.enter_async_context(serving_gateway(settings, backend))
        yield live


@pytest_asyncio.fixture(loop_scope="module")
async def shared(_one_for_all: Live) -> Live:
    """A gateway that the tests of a module share, its backend in its usual mood. Such tests are marked `in_one_loop`."""
    _one_for_all.backend.reset()
    return _one_for_all


def settings_of(database_url: str, backend: StandIn, place: Path, sections: Mapping[str, Any]) -> Settings:
    mine = {"name": "stand-in", "url": backend.url, "models": [MODEL], "slots": 8}
    given: dict[str, Any] = {
        "database_url": database_url,
        "storage_url": f"file://{place / 'pictures'}",
        "secret_key": "a secret of the tests",
        "local": {"backends": [mine]},
        "pixels": {"workers": 1},
    }
    return Settings(**{**given, **sections})


@asynccontextmanager
async def serving_gateway(settings: Settings, backend: StandIn) -> AsyncIterator[Live]:
    logged: list[Mapping[str, Any]] = []
    opened: list[Gateway] = []

    async def ready(gateway: Gateway) -> None:
        opened.append(gateway)

    app = create_app(settings, _recorder(logged), on_ready=ready)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, timeout_graceful_shutdown=5))
        running = asyncio.create_task(_run(server, listener))
        try:
            await until(lambda: server.started or running.done())
            assert opened, "the gateway did not start; the log says why"
            made = await opened[0].tenants.create_key("acme", "tests")
            headers = {"authorization": f"Bearer {made.secret}"}
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30, trust_env=False) as client:
                yield Live(url, made.secret, made.tenant_id, opened[0], client, backend, logged)
        finally:
            backend.go_on.set()
            server.should_exit = True
            await running


async def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    with suppress(SystemExit):  # uvicorn's way to say that the start failed
        await server.serve(sockets=[listener])


def _recorder(logged: list[Mapping[str, Any]]) -> Any:
    """A logger that keeps every event, with what is bound to it and the trace."""

    def keep(_logger: object, method: str, event: Mapping[str, Any]) -> str:
        logged.append({**event, "level": method})
        raise structlog.DropEvent

    processors = [structlog.contextvars.merge_contextvars, structlog.processors.format_exc_info, keep]
    return structlog.wrap_logger(structlog.PrintLogger(), processors=processors)


async def delivered(live: Live, response: httpx.Response) -> list[Image.Image]:
    """The pictures of an answer, decoded; links are followed without a key."""
    assert response.status_code == 200, response.text
    contents: list[bytes] = []
    async with httpx.AsyncClient(trust_env=False) as anyone:
        for entry in response.json()["data"]:
            embedded = entry.get("b64_json")
            contents.append(base64.b64decode(embedded) if embedded else (await anyone.get(entry["url"])).content)
    images = [Image.open(io.BytesIO(content)) for content in contents]
    for image in images:
        image.load()
    return images


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of an answer, in OpenAI's shape and with the request's id; no client is told to repeat it in vain."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    error = response.json()["error"]
    assert list(error)[:4] == ["message", "type", "param", "code"]
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    assert error["request_id"] == response.headers["x-request-id"]
    return error


async def until(true: Callable[[], bool], within_s: float = 10.0) -> None:
    """Return once something has come true."""
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110 -- what is waited for happens elsewhere and tells nobody
            await asyncio.sleep(0.005)


def chunked(content: bytes) -> bytes:
    """A body as it goes over the wire without a length."""
    blocks = [content[start : start + 65_536] for start in range(0, len(content), 65_536)]
    return b"".join(b"%x\r\n%s\r\n" % (len(block), block) for block in blocks) + b"0\r\n\r\n"


def form_body(image: bytes, boundary: str = "b0undary", **fields: str) -> bytes:
    """A multipart body, whole."""
    head = f"--{boundary}\r\ncontent-disposition: form-data; name="
    texts = "".join(f'{head}"{name}"\r\n\r\n{value}\r\n' for name, value in {"model": MODEL, **fields}.items())
    start = f'{texts}{head}"image"; filename="a.png"\r\ncontent-type: image/png\r\n\r\n'
    return start.encode() + image + f"\r\n--{boundary}--\r\n".encode()
