"""CPU and memory of the gateway process while it serves edits, beside a relay that only moves the same bytes.

`python -m bench.edits` starts everything on loopback by itself: a stub backend that answers with a picture it was given, the
gateway in front of it, and the relay. Exits with 1 if 64 edits of 8 MB in flight make the gateway grow by 200 MB or more.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

GROWTH_LIMIT_MB = 200
_BOUNDARY = b"bench-boundary"


@dataclass(frozen=True, slots=True)
class Case:
    """How large the pictures are, and how many requests there are."""

    name: str
    upload_mb: float
    result_mb: float
    at_once: int
    requests: int


CASES = (
    Case("small, 16 at once", 0.0625, 0.1, 16, 400),
    Case("1.5 MB, 16 at once", 1.5, 1.5, 16, 96),
    Case("8 MB, 64 at once", 8.0, 8.0, 64, 64),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run cost the process under test."""

    cpu_ms: float
    """Per request."""
    grown_mb: float
    """Peak resident memory over what it had at rest."""
    failed: int


def main() -> None:
    """Run every case against the gateway and the relay, and print both."""
    print(f"{'case':<22}{'gateway CPU ms':>16}{'relay CPU ms':>14}{'ratio':>7}{'gateway +MB':>13}{'relay +MB':>11}{'failed':>8}")
    grown = 0.0
    for case in CASES:
        upload, result = _noise(case.upload_mb), _noise(case.result_mb)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            picture = Path(folder) / "result.png"
            picture.write_bytes(result)
            with _started("bench._stub_backend", str(picture), str(case.at_once)) as stub:
                ours = _measure_gateway(case, upload, stub, Path(folder))
                relay = _measure_relay(case, upload, stub)
        ratio = ours.cpu_ms / relay.cpu_ms
        print(
            f"{case.name:<22}{ours.cpu_ms:>16.2f}{relay.cpu_ms:>14.2f}{ratio:>7.1f}"
            f"{ours.grown_mb:>13.0f}{relay.grown_mb:>11.0f}{ours.failed + relay.failed:>8}"
        )
        grown = max(grown, ours.grown_mb if case.at_once == 64 else 0.0)
    print(f"64 edits of 8 MB in flight: the gateway grew by {grown:.0f} MB (limit {GROWTH_LIMIT_MB}).")
    sys.exit(0 if grown < GROWTH_LIMIT_MB else 1)


def _measure_gateway(case: Case, upload: bytes, stub: str, folder: Path) -> Figures:
    backends = [{"name": "stub", "url": stub, "models": ["detail-upscaler"], "slots": case.at_once}]
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
    key = json.loads(made.stdout)["key"]
    port = _free_port()
    process = subprocess.Popen([sys.executable, "-m", "gateway", "serve", "--port", str(port)], env=env)
    try:
        _wait_for(port)
        send = _sender(port, key, upload, case)
        return asyncio.run(_measured(process.pid, case, send))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _measure_relay(case: Case, upload: bytes, stub: str) -> Figures:
    with _started("bench._relay", stub) as address:
        port = int(address.rpartition(":")[2])
        return asyncio.run(_measured(_LAST_PID[0], case, _sender(port, "none", upload, case)))


Send = Callable[[], Awaitable[bool]]


async def _measured(pid: int, case: Case, send: Send) -> Figures:
    await asyncio.gather(*(send() for _ in range(case.at_once)))  # warm, all at once: the stub waits for as many
    await asyncio.sleep(0.5)
    before_cpu, rest = _cpu_s(pid), _memory_mb(pid, "VmRSS")
    _forget_peak(pid)
    failed = 0
    for _ in range(max(1, case.requests // case.at_once)):
        answers = await asyncio.gather(*(send() for _ in range(case.at_once)))
        failed += answers.count(False)
    rounds = max(1, case.requests // case.at_once) * case.at_once
    return Figures((_cpu_s(pid) - before_cpu) * 1000 / rounds, _memory_mb(pid, "VmHWM") - rest, failed)


def _sender(port: int, key: str, upload: bytes, case: Case) -> Send:
    head = b"--%b\r\nContent-Disposition: form-data; name=" % _BOUNDARY
    body = [
        head + b'"model"\r\n\r\ndetail-upscaler\r\n' + head + b'"response_format"\r\n\r\nb64_json\r\n',
        head + b'"image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n',
        upload,
        b"\r\n--%b--\r\n" % _BOUNDARY,
    ]
    length = sum(map(len, body))
    request = (
        f"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary={_BOUNDARY.decode()}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()

    async def send() -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
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
        return b" 200 " in status and received > case.result_mb * 1e6

    return send


def _noise(megabytes: float) -> bytes:
    """A valid PNG of about that size: noise does not compress."""
    edge = max(8, int((megabytes * 1e6 / 3) ** 0.5))
    pixels = np.random.default_rng(1).integers(0, 256, (edge, edge, 3), dtype=np.uint8)
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


_LAST_PID = [0]


@contextmanager
def _started(module: str, *arguments: str) -> Iterator[str]:
    """Run a module of this folder; it prints its address when it listens."""
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True)
    _LAST_PID[0] = process.pid
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(20)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port: int) -> None:
    import socket

    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            time.sleep(1.0)
            return
    raise TimeoutError("the gateway did not start")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mb(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def _forget_peak(pid: int) -> None:
    """Start the peak (VmHWM) anew. Source: Linux, Documentation/filesystems/proc, clear_refs."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
