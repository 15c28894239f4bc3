"""A backend that answers Cog's `PUT /predictions/{id}` with one prepared picture, once all announced requests are there.

`python -m bench._stub_backend PICTURE AT_ONCE` prints its address.
"""

import asyncio
import base64
import sys
from pathlib import Path


async def serve(picture: bytes, at_once: int) -> None:
    """Answer until ended."""
    encoded = base64.b64encode(picture)
    body = b'{"id":"x","status":"succeeded","output":"data:image/png;base64,' + encoded + b'","metrics":{"predict_time":0.01}}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    waiting: list[asyncio.Event] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
                while length > 0:
                    length -= len(await reader.read(min(length, 2**18)))
                if head.startswith((b"PUT ", b"POST /predictions")):
                    await _together(waiting, at_once)
                    writer.write(answer)
                    for at in range(0, len(body), 2**18):
                        writer.write(body[at : at + 2**18])
                        await writer.drain()
                else:
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=2**20)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


async def _together(waiting: list[asyncio.Event], at_once: int) -> None:
    """Wait until `at_once` requests are in flight, so that the gateway holds all of them at the same time."""
    mine = asyncio.Event()
    waiting.append(mine)
    if len(waiting) >= at_once:
        for event in waiting:
            event.set()
        waiting.clear()
    try:
        await asyncio.wait_for(mine.wait(), 20)
    except TimeoutError:
        if mine in waiting:
            waiting.remove(mine)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]).read_bytes(), int(sys.argv[2])))
