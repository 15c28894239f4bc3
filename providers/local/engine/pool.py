"""A bounded set of worker processes. One that crashes takes a single run with it; the next run starts another."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from providers.local.engine.model import Cancelled, Value

_STOP_S = 1.0
"""How long a cancelled run may take to its next checkpoint before its process is killed."""
_LINE_BYTES = 1 << 20


class RunFailed(Exception):
    """The run ended without a result. The message is for the caller; `seconds` is how long it ran, if that is known."""

    def __init__(self, message: str, seconds: float | None = None) -> None:
        super().__init__(message)
        self.seconds = seconds


class WorkerPool:
    """Runs one model in at most `count` processes, each started when it is first needed and then kept."""

    def __init__(self, model: str, count: int) -> None:
        self.count = count
        self._model = model
        self._free = asyncio.Semaphore(count)
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()

    async def warm_up(self) -> None:
        """Start the first worker. Raises `RunFailed` if the model's setup fails."""
        async with self._free:
            self._idle.append(await self._take())

    async def run(
        self,
        inputs: Mapping[str, Value],
        output: Path,
        *,
        on_start: Callable[[], None],
        on_progress: Callable[[float], None],
    ) -> float:
        """Wait for a worker, run, and return the seconds of the run itself.

        Cancelling the calling task stops the run at its next checkpoint, or by force.

        Raises:
            RunFailed: If the model refuses the input, fails, or its process dies.
        """
        async with self._free:
            on_start()
            worker = await self._take()
            try:
                return await worker.run(inputs, output, on_progress)
            finally:
                self._put_back(worker)

    async def close(self) -> None:
        """End every worker, also those that are busy."""
        await asyncio.gather(*(worker.kill() for worker in self._all))
        self._all.clear()
        self._idle.clear()

    async def _take(self) -> "_Worker":
        if self._idle:
            return self._idle.pop()
        worker = await _Worker.start(self._model)
        self._all.add(worker)
        return worker

    def _put_back(self, worker: "_Worker") -> None:
        if worker.is_usable:
            self._idle.append(worker)
        else:
            worker.end()
            self._all.discard(worker)


class _Worker:
    """The server's end of one worker process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._busy = False
        self._stops = 0

    @classmethod
    async def start(cls, model: str) -> "_Worker":
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "providers.local.engine.worker",
            model,
            stdin=PIPE,
            stdout=PIPE,
            limit=_LINE_BYTES,
            env=_environment(),
        )
        worker = cls(process)
        try:
            await worker._reply()
        except BaseException:
            await worker.kill()
            raise
        return worker

    @property
    def is_usable(self) -> bool:
        return self._process.returncode is None and not self._busy

    async def run(self, inputs: Mapping[str, Value], output: Path, on_progress: Callable[[float], None]) -> float:
        stdin = self._process.stdin
        assert stdin is not None
        self._busy = True
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # then the reply says how it died
                task = {"inputs": inputs, "output": str(output), "stops": self._stops}
                stdin.write(json.dumps(task, default=str).encode() + b"\n")
                await stdin.drain()
            ended = await self._until_ended(on_progress)
        except asyncio.CancelledError:
            await self._stop()
            raise
        except RunFailed:
            await self.kill()
            raise
        self._busy = False
        return _seconds(ended)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def kill(self) -> None:
        self.end()
        await self._process.wait()

    async def _until_ended(self, on_progress: Callable[[float], None]) -> dict[str, Any]:
        while "ended" not in (reply := await self._reply()):
            on_progress(reply["progress"])
        return reply

    async def _reply(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        line = await stdout.readline()
        if not line:
            raise RunFailed(_death(await self._process.wait()))
        return json.loads(line)

    async def _stop(self) -> None:
        """Ask the worker to stop; kill it if it does not."""
        self._stops += 1
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)
        try:
            async with asyncio.timeout(_STOP_S):
                await self._until_ended(lambda _: None)
            self._busy = False
        except (TimeoutError, RunFailed):
            await self.kill()


def _seconds(ended: Mapping[str, Any]) -> float:
    match ended["ended"]:
        case "succeeded":
            return ended["seconds"]
        case "canceled":
            raise Cancelled
        case _:
            raise RunFailed(ended["error"], ended["seconds"])


def _death(code: int) -> str:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return f"the worker process {how}"


def _environment() -> dict[str, str]:
    """The server's own, with a path on which the worker finds this package, and no pools of threads for numpy."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
