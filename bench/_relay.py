"""The baseline: the least a Python gateway does. Parses the form into a file, sends it on as base64, streams the answer back.

No keys, no plan, no journal, no store. `python -m bench._relay BACKEND` prints its address.
"""

import asyncio
import socket
import sys
import tempfile
from collections.abc import AsyncIterator

import pybase64
import uvicorn
from multipart import PushMultipartParser, parse_options_header

from providers import http


def make_app(backend: str):
    """The relay in front of one backend."""
    clients: list[http.AsyncClient] = []

    async def app(scope, receive, send) -> None:
        if scope["type"] != "http":
            await _lifespan(receive, send)
            return
        if not clients:
            clients.append(http.create_client(guard=None, timeout=http.Timeout(60)))
        headers = dict(scope["headers"])
        boundary = parse_options_header(headers[b"content-type"].decode())[1]["boundary"]
        with tempfile.TemporaryFile() as file:
            with PushMultipartParser(boundary) as parser:
                more = True
                while more:
                    message = await receive()
                    more = message.get("more_body", False)
                    for event in parser.parse(message["body"]):
                        if isinstance(event, bytearray) and event:
                            file.write(event)
            size = file.tell()
            file.seek(0)
            length = (size + 2) // 3 * 4 + len(_HEAD) + len(_TAIL)
            request = clients[0].build_request(
                "PUT", f"{backend}/predictions/x", content=_encoded(file), headers={"content-length": str(length)}
            )
            answer = await clients[0].send(request, stream=True)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
            async for piece in answer.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            await answer.aclose()

    return app


_HEAD, _TAIL = b'{"input":{"image":"data:image/png;base64,', b'"}}'


async def _encoded(file) -> AsyncIterator[bytes]:
    yield _HEAD
    while block := file.read(3 * 2**16):
        yield pybase64.b64encode(block)
    yield _TAIL


async def _lifespan(receive, send) -> None:
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def main() -> None:
    """Serve on a free port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(make_app(sys.argv[1]), log_level="error", access_log=False)
    asyncio.run(uvicorn.Server(config).serve([listener]))


if __name__ == "__main__":
    main()
