"""CPU and memory of the gateway process while it serves edits, beside a relay that only moves the same bytes.

`python -m bench.edits` starts everything on loopback by itself: a stub backend that answers with a picture it was given, the
gateway in front of it, and the relay. Exits with 1 if 64 edits of 8 MB in flight make the gateway grow by 200 MB or more.
"""

import asyncio
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench._loopback import Send, gateway, noise, sender, started

GROWTH_LIMIT_MB = 200


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
        upload, result = noise(case.upload_mb), noise(case.result_mb)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            picture = Path(folder) / "result.png"
            picture.write_bytes(result)
            with started("bench._stub_backend", str(picture), str(case.at_once)) as stub:
                with gateway(stub, case.at_once, Path(folder)) as served:
                    ours = asyncio.run(_measured(served.pid, case, sender(served, upload, case.result_mb)))
                with started("bench._relay", stub.address) as relaying:
                    relay = asyncio.run(_measured(relaying.pid, case, sender(relaying, upload, case.result_mb)))
        ratio = ours.cpu_ms / relay.cpu_ms
        print(
            f"{case.name:<22}{ours.cpu_ms:>16.2f}{relay.cpu_ms:>14.2f}{ratio:>7.1f}"
            f"{ours.grown_mb:>13.0f}{relay.grown_mb:>11.0f}{ours.failed + relay.failed:>8}"
        )
        grown = max(grown, ours.grown_mb if case.at_once == 64 else 0.0)
    print(f"64 edits of 8 MB in flight: the gateway grew by {grown:.0f} MB (limit {GROWTH_LIMIT_MB}).")
    sys.exit(0 if grown < GROWTH_LIMIT_MB else 1)


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
