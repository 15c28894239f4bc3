"""A bounded pool of worker processes for pixels, with a bounded queue, so that codecs cannot take the gateway with them.

A process of its own for each worker: one that crashes, hangs or runs out of memory fails one call only.
"""

import asyncio
import math
import os
import pickle
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar, TypeVarTuple

from gateway.errors import Overloaded
from gateway.images.pixel_worker import LENGTH_BYTES

Result = TypeVar("Result")
Args = TypeVarTuple("Args")

_START = "import sys; sys.path[:] = sys.argv[2:]; from gateway.images.pixel_worker import serve; serve(int(sys.argv[1]))"
_KEPT_VARIABLES = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "TMPDIR", "TZ")
"""Of the environment. The rest holds keys, and workers read hostile bytes."""
_WEIGHT = 0.2
"""Of the newest duration in the mean."""


class WorkFailure(StrEnum):
    """Why a worker gave no answer."""

    CRASHED = "crashed"
    MEMORY = "memory"
    DEADLINE = "deadline"


class PixelWorkFailed(Exception):
    """A worker ended without an answer. A half-written target may be left: whoever named it removes it."""

    def __init__(self, failure: WorkFailure, detail: str) -> None:
        super().__init__(failure, detail)
        self.failure = failure
        self.detail = detail
        """For the operator."""


@dataclass(eq=False, slots=True)
class _Turn:
    """A place in the queue, then among the running."""

    pixels: int
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    running: bool = False


class PixelPool:
    """Runs functions of `gateway.images.pixel_work` in worker processes; made and used within one event loop."""

    def __init__(
        self, workers: int, max_queue: int, max_pixels_in_flight: int, deadline_s: float, memory_bytes: int = 4 * 1024**3
    ) -> None:
        """Nothing is started before `warm` or the first `run`.

        Args:
            workers: Processes at most, and so calls at a time.
            max_queue: Calls that may wait.
            max_pixels_in_flight: Pixels of all running calls together. A call with more than that runs alone.
            deadline_s: Seconds for one call, waiting not counted.
            memory_bytes: Address space of one worker.
        """
        self._max_workers = workers
        self._max_queue = max_queue
        self._max_pixels = max_pixels_in_flight
        self._deadline_s = deadline_s
        self._memory_bytes = memory_bytes
        self._turns: deque[_Turn] = deque()
        self._pixels = 0
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._mean_s = 1.0
        self._closed = False
        self.running = 0
        """Calls that a worker has, now."""

    @property
    def waiting(self) -> int:
        """Calls in the queue, now."""
        return len(self._turns)

    def check_room(self) -> None:
        """Raise `Overloaded` if the queue is full: before work begins whose result will need the pool."""
        if len(self._turns) >= self._max_queue:
            raise self._overloaded()

    async def warm(self) -> None:
        """Start all workers, so that the first pictures do not wait for them. Raises `PixelWorkFailed` if one does not come up."""
        nothing = pickle.dumps((os.getpid, ()))
        await asyncio.gather(*(self._ask(nothing) for _ in range(self._max_workers - len(self._workers))))

    async def run(self, fn: Callable[[*Args], Result], *args: *Args, pixels: int, patient: bool = False) -> Result:
        """Call `fn(*args)` in a worker and return what it returns. First come, first served.

        Args:
            fn: A function that a worker can import, of `gateway.images.pixel_work`.
            args: Small values: paths, not pictures.
            pixels: Pixels of the largest picture it decodes or makes, for admission.
            patient: Wait though the queue is full: for results that have been paid for.

        Raises:
            Overloaded: If the queue is full or the pool is closed.
            PixelWorkFailed: If the worker crashed, ran out of memory or took too long. It is gone; the next call has another.
            Exception: Whatever `fn` raised, with the worker's trace as a note.
        """
        call = pickle.dumps((fn, args))
        async with self._admitted(pixels, patient=patient):
            started = asyncio.get_running_loop().time()
            done, value = await self._ask(call)
            self._mean_s += _WEIGHT * (asyncio.get_running_loop().time() - started - self._mean_s)
        if done:
            return value
        raise value

    async def close(self) -> None:
        """End all workers, whatever they do; calls that wait or run fail."""
        self._closed = True
        while self._turns:
            self._turns.popleft().ready.set()
        await asyncio.gather(*(worker.end() for worker in tuple(self._workers)))

    @asynccontextmanager
    async def _admitted(self, pixels: int, *, patient: bool) -> AsyncGenerator[None]:
        """Wait for a worker and for room among the pixels in flight."""
        if self._closed:
            raise self._overloaded()
        turn = _Turn(pixels)
        self._turns.append(turn)
        try:
            self._admit()
            if not turn.running and not patient and len(self._turns) > self._max_queue:
                raise self._overloaded()
            await turn.ready.wait()
            if not turn.running:
                raise self._overloaded()
            yield
        finally:
            self._leave(turn)

    def _admit(self) -> None:
        """Let the first in the queue run while there is room. Nobody overtakes, so that large pictures get their turn."""
        while self._turns and self.running < self._max_workers:
            first = self._turns[0]
            if self.running and self._pixels + first.pixels > self._max_pixels:
                return
            self._turns.popleft()
            self.running += 1
            self._pixels += first.pixels
            first.running = True
            first.ready.set()

    def _leave(self, turn: _Turn) -> None:
        if turn.running:
            self.running -= 1
            self._pixels -= turn.pixels
        elif turn in self._turns:
            self._turns.remove(turn)
        self._admit()

    def _overloaded(self) -> Overloaded:
        if self._closed:
            return Overloaded("the gateway is shutting down; try again in a moment", retry_after_s=5)
        wait_s = min(60, max(1, math.ceil(self._mean_s * (self.waiting + 1) / self._max_workers)))
        return Overloaded(f"too many pictures are waiting to be worked on; try again in {wait_s} s", retry_after_s=wait_s)

    async def _ask(self, call: bytes) -> tuple[bool, Any]:
        """What a worker answers; a worker that does not, or is out of memory, is ended."""
        worker = self._worker_at_rest() or await self._start()
        healthy = False
        try:
            async with asyncio.timeout(self._deadline_s):
                done, value = await worker.ask(call)
            if isinstance(value, MemoryError):
                raise PixelWorkFailed(WorkFailure.MEMORY, f"a picture needed more than {self._memory_bytes} bytes")
            healthy = True
        except TimeoutError as exc:
            raise PixelWorkFailed(WorkFailure.DEADLINE, f"a picture took longer than {self._deadline_s} s") from exc
        except (EOFError, ConnectionError) as exc:
            raise PixelWorkFailed(WorkFailure.CRASHED, f"a worker ended with {await worker.ended()}") from exc
        finally:
            if healthy and not self._closed:
                self._idle.append(worker)
            else:
                self._workers.discard(worker)
                await worker.end()
        return done, value

    def _worker_at_rest(self) -> "_Worker | None":
        """An idle worker, the one last used; those that died meanwhile are forgotten."""
        while self._idle:
            worker = self._idle.pop()
            if worker.alive:
                return worker
            self._workers.discard(worker)
        return None

    async def _start(self) -> "_Worker":
        worker = await _Worker.start(self._memory_bytes)
        self._workers.add(worker)
        return worker


class _Worker:
    """One process, which does one call after the other."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._calls = process.stdin
        self._answers = process.stdout

    @classmethod
    async def start(cls, memory_bytes: int) -> "_Worker":
        """Start a process. It can be asked at once; the question waits until it is up."""
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                *("-c", _START, str(memory_bytes), *sys.path),
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,  # codecs write what hostile files tell them to
                env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
                start_new_session=True,  # Ctrl-C is for the gateway, which ends its workers itself
            )
        )

    @property
    def alive(self) -> bool:
        """Whether the process has not ended, as far as is known."""
        return self._process.returncode is None

    async def ask(self, call: bytes) -> tuple[bool, Any]:
        """`(True, value)` or `(False, exception)`. Raises EOFError or ConnectionError if the process ends instead."""
        self._calls.write(len(call).to_bytes(LENGTH_BYTES, "big") + call)
        await self._calls.drain()
        length = int.from_bytes(await self._answers.readexactly(LENGTH_BYTES), "big")
        return pickle.loads(await self._answers.readexactly(length))  # noqa: S301 - from a process of our own

    async def ended(self) -> int:
        """The exit status (negative: the signal it died by) of a process that has closed its end of the pipes."""
        # Not killed at once: that would bury it behind asyncio's back, and its status would be lost.
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                return await self._process.wait()
        return await self.end()

    async def end(self) -> int:
        """Kill the process, whatever it does, and return its exit status."""
        if self.alive:
            with suppress(ProcessLookupError):
                self._process.kill()
        self._calls.close()
        return await self._process.wait()
