"""A stand-in for a backend of the operator's own, at the edge of the network: Cog's `PUT /predictions/{id}`, no model."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from PIL import Image

Reply = tuple[int, bytes]
"""A status and a body."""


class StandIn:
    """Answers every prediction at once with a picture of the asked size, unless a test says otherwise."""

    def __init__(self) -> None:
        self.url = ""
        self.reset()

    def reset(self) -> None:
        """As new."""
        self.inputs: list[dict[str, Any]] = []
        """The `input` of every prediction so far."""
        self.cancelled: list[str] = []
        self.asked = asyncio.Event()
        """Set once a prediction has come."""
        self.go_on = asyncio.Event()
        """Cleared by `hold`: predictions wait for it."""
        self.go_on.set()
        self.replies: list[Reply | None] = []
        """What the next predictions are answered with, first come first served; None closes the connection."""
        self.picture: Callable[[dict[str, Any]], bytes] = enlarged
        """What a prediction makes of its input."""

    def hold(self) -> None:
        """Let predictions wait until `go_on` is set."""
        self.go_on.clear()

    def fails(self, why: str, times: int = 1) -> None:
        """The next predictions end as `failed`."""
        self.replies += [(200, json.dumps({"status": "failed", "error": why}).encode())] * times

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                body = await _body(head, reader)
                reply = await self._reply(*head.split(" ", 2)[:2], body)
                if reply is None:
                    break
                status, content = reply
                lines = f"HTTP/1.1 {status} .\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
                writer.write(lines.encode() + content)
                await writer.drain()
        writer.close()

    async def _reply(self, method: str, path: str, body: bytes) -> Reply | None:
        if path == "/health-check":
            return 200, b'{"status":"READY"}'
        if method == "POST" and path.endswith("/cancel"):
            self.cancelled.append(path)
            self.go_on.set()
            return 200, b"{}"
        if method != "PUT":
            return 405, b"{}"
        self.inputs.append(json.loads(body)["input"])
        self.asked.set()
        await self.go_on.wait()
        if self.replies:
            return self.replies.pop(0)
        return 200, succeeded(await asyncio.to_thread(self.picture, self.inputs[-1]))


def succeeded(picture: bytes) -> bytes:
    """The body of a prediction that made this."""
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return json.dumps({"status": "succeeded", "output": url, "metrics": {"predict_time": 0.5}}).encode()


def enlarged(given: dict[str, Any]) -> bytes:
    """The input's picture, enlarged by its factor without finesse."""
    with Image.open(io.BytesIO(base64.b64decode(given["image"].partition(",")[2]))) as image:
        factor = given.get("scale_factor", 2)
        size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        out = io.BytesIO()
        image.resize(size, Image.Resampling.NEAREST).save(out, "PNG", icc_profile=None)
    return out.getvalue()


@asynccontextmanager
async def standing_in() -> AsyncIterator[StandIn]:
    """A stand-in that listens on loopback."""
    stand_in, talks = StandIn(), set[asyncio.Task[Any]]()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        talks.add(task)
        try:
            with suppress(asyncio.CancelledError):
                await stand_in.serve(reader, writer)
        finally:
            talks.discard(task)

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    stand_in.url = "http://{}:{}".format(*server.sockets[0].getsockname())
    try:
        yield stand_in
    finally:
        server.close()
        for task in tuple(talks):
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


async def _body(head: str, reader: asyncio.StreamReader) -> bytes:
    lines = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    if "content-length" in lines:
        return await reader.readexactly(int(lines["content-length"]))
    body = bytearray()
    while lines.get("transfer-encoding") == "chunked":
        size = int(await reader.readline(), 16)
        body += await reader.readexactly(size)
        await reader.readline()
        if not size:
            break
    return bytes(body)
