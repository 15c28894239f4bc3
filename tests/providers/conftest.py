"""What the provider tests share: a spool, clients, and servers that say exactly what a test wants."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from providers import http
from providers.spool import Spool

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Serve = Callable[[Script], Awaitable[str]]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """A spool of its own, gone after the test."""
    spool = Spool(tmp_path / "spools")
    yield spool
    spool.close()


@pytest.fixture
async def client() -> AsyncIterator[http.AsyncClient]:
    """A client that may connect to anything."""
    async with http.create_client(guard=None) as client:
        yield client


@pytest.fixture
async def guarded() -> AsyncIterator[http.AsyncClient]:
    """A client that connects to public addresses only."""
    async with http.create_client(guard=http.AddressGuard()) as client:
        yield client


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start servers that run a script for each connection; the address is returned."""
    async with AsyncExitStack() as servers:

        async def start(script: Script) -> str:
            return await servers.enter_async_context(_listening(script))

        yield start


@asynccontextmanager
async def _listening(script: Script) -> AsyncGenerator[str]:
    talks: set[asyncio.Task[None] | None] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.current_task())
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await script(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.close()
        running = [task for task in talks if task]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of one request, chunked or with a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
        return head, body
    if b"content-length:" in lower:
        length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
        return head, await reader.readexactly(length)
    return head, b""


def answer(body: bytes = b"{}", status: str = "200 OK", *headers: str) -> bytes:
    """A whole HTTP answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
