"""Everything that the benches start on loopback: modules of this folder, the gateway, and a client that sends edits."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

_BOUNDARY = b"bench-boundary"
_MODEL = "detail-upscaler"

Send = Callable[[], Awaitable[bool]]
"""Sends one edit; whether it was answered with a picture."""


@dataclass(frozen=True, slots=True)
class Started:
    """A process that listens."""

    port: int
    pid: int
    key: str = "none"
    """What its clients show."""

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def started(module: str, *arguments: str) -> Iterator[Started]:
    """Run a module of this folder; it prints its address when it listens."""
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Started(int(process.stdout.readline().strip().rpartition(":")[2]), process.pid)
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def gateway(stub: Started, at_once: int, folder: Path) -> Iterator[Started]:
    """A gateway whose only backend is the stub, with its database and pictures in `folder`."""
    backends = [{"name": "stub", "url": stub.address, "models": [_MODEL], "slots": at_once}]
    env = {
        **os.environ,
        "GATEWAY_LOCAL__BACKENDS": json.dumps(backends),
        "GATEWAY_LOG__LEVEL": "error",
        "GATEWAY_DATABASE_URL": f"sqlite:///{folder}/bench.db",
        "GATEWAY_STORAGE_URL": f"file://{folder}/pictures",
        "GATEWAY_SECRET_KEY": "bench",
        "TMPDIR": str(folder),
    }
    made = subprocess.run(
        [sys.executable, "-m", "gateway", "keys", "create", "--tenant", "bench", "--json"], env=env, check=True, capture_output=True
    )
    port = _free_port()
    process = subprocess.Popen([sys.executable, "-m", "gateway", "serve", "--port", str(port)], env=env)
    try:
        _wait_for(port)
        yield Started(port, process.pid, json.loads(made.stdout)["key"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def sender(to: Started, upload: bytes, result_mb: float, **fields: str) -> Send:
    """A client that sends the same edit each time, and wants an answer of more than `result_mb` megabytes."""
    head = b"--%b\r\nContent-Disposition: form-data; name=" % _BOUNDARY
    texts = {"model": _MODEL, "scale_factor": "1", "response_format": "b64_json", **fields}
    body = [
        b"".join(head + f'"{name}"\r\n\r\n{value}\r\n'.encode() for name, value in texts.items()),
        head + b'"image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n',
        upload,
        b"\r\n--%b--\r\n" % _BOUNDARY,
    ]
    request = (
        f"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {to.key}\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary={_BOUNDARY.decode()}\r\nContent-Length: {sum(map(len, body))}\r\n\r\n"
    ).encode()

    async def send() -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", to.port, limit=2**20)
        writer.write(request)
        for part in body:
            for at in range(0, len(part), 2**18):
                writer.write(part[at : at + 2**18])
                await writer.drain()
        status = await reader.readline()
        received = 0
        while block := await reader.read(2**18):
            received += len(block)
        writer.close()
        return b" 200 " in status and received > result_mb * 1e6

    return send


def noise(megabytes: float) -> bytes:
    """A valid PNG of about that size: noise does not compress."""
    edge = max(8, int((megabytes * 1e6 / 3) ** 0.5))
    pixels = np.random.default_rng(1).integers(0, 256, (edge, edge, 3), dtype=np.uint8)
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port: int) -> None:
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            time.sleep(1.0)
            return
    raise TimeoutError("the gateway did not start")
