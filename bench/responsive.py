"""Whether the gateway answers while it converts: `python -m bench.responsive`, on loopback, with everything started by itself.

A stub backend answers each of eight edits with a PNG of 16 megapixels, all at once, and all are to be delivered as AVIF. Meanwhile
`GET /health/live` is asked again and again. Prints its latency at rest and at work; exits with 1 if the 99th percentile at work is
above `LIMIT_MS`, or if an edit failed.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from statistics import quantiles

import numpy as np
from PIL import Image

from bench._loopback import Send, gateway, noise, sender, started

LIMIT_MS = 50.0
AT_ONCE = 8
_EDGE = 4096
_SMALLEST_ANSWER_MB = 0.05
_PAUSE_S = 0.01
"""Between two questions."""


def main() -> None:
    """Run the edits, ask meanwhile, print and compare."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        picture = Path(folder) / "result.png"
        picture.write_bytes(_landscape())
        size_mb = picture.stat().st_size / 1e6
        with started("bench._stub_backend", str(picture), str(AT_ONCE)) as stub, gateway(stub, AT_ONCE, Path(folder)) as served:
            send = sender(served, noise(0.05), _SMALLEST_ANSWER_MB, output_format="avif")
            rest, work, wall_s, done = asyncio.run(_measured(served.port, send))
    print(f"{AT_ONCE} edits of a {_EDGE}x{_EDGE} PNG ({size_mb:.1f} MB) to AVIF at once on {os.cpu_count()} cores: {wall_s:.1f} s")
    print(f"/health/live at rest:  {_figures(rest)}")
    print(f"/health/live at work:  {_figures(work)} (limit for the 99th percentile: {LIMIT_MS:.0f} ms)")
    if done < AT_ONCE:
        print(f"only {done} of {AT_ONCE} edits were answered with a picture")
    sys.exit(0 if _p99(work) <= LIMIT_MS and done == AT_ONCE else 1)


async def _measured(port: int, send: Send) -> tuple[list[float], list[float], float, int]:
    rest = await _asked_until(port, asyncio.ensure_future(asyncio.sleep(3)))
    began = time.perf_counter()
    edits = asyncio.gather(*(send() for _ in range(AT_ONCE)))
    work = await _asked_until(port, edits)
    return rest, work, time.perf_counter() - began, (await edits).count(True)


async def _asked_until(port: int, done: "asyncio.Future[object]") -> list[float]:
    """Milliseconds of each answer until `done`: one connection, one question after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    latencies: list[float] = []
    while not done.done():
        began = time.perf_counter()
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        assert b" 200 " in head
        latencies.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(_PAUSE_S)
    writer.close()
    return latencies


def _landscape() -> bytes:
    """A PNG of 16 megapixels that is neither flat nor noise: soft shapes with a little grain."""
    chance = np.random.default_rng(1)
    small = Image.fromarray(chance.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    soft = np.asarray(small.resize((_EDGE, _EDGE), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = chance.integers(-3, 4, (_EDGE, _EDGE, 1), dtype=np.int16)
    out = BytesIO()
    Image.fromarray(np.clip(soft + grain, 0, 255).astype(np.uint8)).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _p99(latencies: Sequence[float]) -> float:
    return quantiles(latencies, n=100)[-1]


def _figures(latencies: Sequence[float]) -> str:
    middle = quantiles(latencies, n=2)[0]
    return f"{len(latencies)} answers, p50 {middle:.1f} ms, p99 {_p99(latencies):.1f} ms, longest {max(latencies):.1f} ms"


if __name__ == "__main__":
    main()
