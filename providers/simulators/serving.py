"""The smallest web server that a simulator needs: a request, an answer, and the ways in which an answer can go wrong.

A plain ASGI app on uvicorn, so that connections can be cut in the middle of an answer or before it.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import parse_qsl, unquote

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_BODY_BYTES = 256 << 20
_PIECES = 16
"""Into so many an answer is divided that is sent slowly."""
_CLOSE = "providers.simulators.close"
_GRACE_S = 2

_Message: TypeAlias = dict[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[_Message]]
_Send: TypeAlias = Callable[[_Message], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked, body included."""

    method: str
    scheme: str
    host: str
    """As the client wrote it, with the port."""
    path: str
    """Unquoted."""
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = field(repr=False)

    @property
    def origin(self) -> str:
        """Scheme and host: what addresses in the answer begin with, so that the client can follow them."""
        return f"{self.scheme}://{self.host}"

    def json(self) -> Any:
        """The body as JSON. Raises `msgspec.DecodeError`, a `ValueError`."""
        return msgspec.json.decode(self.body)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered, and how badly."""

    status: int
    body: bytes | AsyncIterator[bytes] = b""
    """Pieces have no Content-Length."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    cut_at: int | None = None
    """After so many bytes of the body the connection is closed, though more was announced."""
    takes_s: float = 0.0
    """How long the body is on its way."""


class NoAnswer(Exception):
    """Raised by a simulator to close the connection without a word."""


class Simulator(Protocol):
    """One provider."""

    async def handle(self, request: Request) -> Answer:
        """Answer, or raise `NoAnswer`."""
        ...

    async def close(self) -> None:
        """End whatever still runs."""
        ...


def json_answer(status: int, value: object, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer in JSON."""
    return Answer(status, msgspec.json.encode(value), {"content-type": "application/json", **(headers or {})})


@dataclass(frozen=True, slots=True)
class Tls:
    """Where the certificate and its key lie, both PEM."""

    cert: Path
    key: Path


@asynccontextmanager
async def serving(simulator: Simulator, *, host: str = "127.0.0.1", port: int = 0, tls: Tls | None = None) -> AsyncGenerator[str]:
    """Serve inside the block, and close the simulator after it. Yields the origin, such as `http://127.0.0.1:4711`."""
    listener = socket.create_server((host, port), backlog=256)
    # Inherited by connections: asyncio sets it only on sockets that name their protocol, and answers would wait 40 ms without.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        _app(simulator),
        http=_Protocol,
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=tls.cert if tls else None,
        ssl_keyfile=tls.key if tls else None,
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await server.listens(running)
        yield f"{'https' if tls else 'http'}://{host}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await running
        listener.close()
        await simulator.close()


def add_serving_options(parser: argparse.ArgumentParser) -> None:
    """The options that every simulator has: where it listens, how fast and how faulty it is."""
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (default %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="the port to listen at; 0 takes a free one (default)")
    parser.add_argument("--tls-cert", type=Path, help="certificate, PEM; with it and the key, https is spoken")
    parser.add_argument("--tls-key", type=Path, help="the certificate's key, PEM")
    parser.add_argument("--speed", type=float, default=10.0, help="how many times faster than life jobs run (default %(default)g)")
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="NAME[=ARG][@N]",
        help="misbehave: always, the first N times (@N), or N times in a hundred (@N%%); may be given repeatedly",
    )


def run_simulator(simulator: Simulator, options: argparse.Namespace, urls: Callable[[str], Mapping[str, str]]) -> None:
    """Serve until SIGTERM or SIGINT; print one line of JSON, the addresses that `urls` makes of the origin, once it listens."""
    tls = Tls(options.tls_cert, options.tls_key) if options.tls_cert and options.tls_key else None

    async def until_stopped() -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        async with serving(simulator, host=options.host, port=options.port, tls=tls) as origin:
            os.write(1, msgspec.json.encode(urls(origin)) + b"\n")
            await stopped.wait()

    asyncio.run(until_stopped())


class _Server(uvicorn.Server):
    """One that leaves signals alone and can be waited for."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield

    async def listens(self, running: asyncio.Task[None]) -> None:
        while not self.started:
            if running.done():
                running.result()
            await asyncio.sleep(0.001)


class _Protocol(HttpToolsProtocol):
    """One that lets the app close its connection."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope.setdefault("extensions", {})[_CLOSE] = {"close": self.transport.close}


def _app(simulator: Simulator) -> Any:
    async def app(scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            return
        try:
            request = await _received(scope, receive)
            await _answered(await simulator.handle(request), request, scope, receive, send)
        except _Gone:
            return
        except NoAnswer:
            await _hang_up(scope, receive)

    return app


class _Gone(Exception):
    """The client has left."""


async def _received(scope: _Message, receive: _Receive) -> Request:
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            raise NoAnswer
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    return Request(
        method=scope["method"],
        scheme=scope["scheme"],
        host=headers.get("host", ""),
        path=unquote(scope["path"]),
        query=dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)),
        headers=headers,
        body=bytes(body),
    )


async def _answered(answer: Answer, request: Request, scope: _Message, receive: _Receive, send: _Send) -> None:
    headers = {name.lower(): value for name, value in answer.headers.items()}
    if isinstance(answer.body, bytes):
        headers.setdefault("content-length", str(len(answer.body)))
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    if isinstance(answer.body, bytes):
        sent = b"" if request.method == "HEAD" else answer.body[: answer.cut_at]
        await _sent(sent, answer.takes_s, send)
    else:
        async for piece in answer.body:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    if answer.cut_at is not None:
        await _hang_up(scope, receive)
        return
    await send({"type": "http.response.body"})


async def _sent(body: bytes, takes_s: float, send: _Send) -> None:
    size = max(1, -(-len(body) // _PIECES)) if takes_s else max(1, len(body))
    for at in range(0, len(body), size):
        await send({"type": "http.response.body", "body": body[at : at + size], "more_body": True})
        if takes_s:
            await asyncio.sleep(takes_s / _PIECES)


async def _hang_up(scope: _Message, receive: _Receive) -> None:
    scope["extensions"][_CLOSE]["close"]()
    # Returning earlier would make uvicorn answer 500.
    while (await receive())["type"] != "http.disconnect":
        pass
