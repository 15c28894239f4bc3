"""The predictions that a backend knows: those that wait and run, and for a while those that have ended."""

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from uuid import uuid4

from providers.local.engine.model import Cancelled
from providers.local.engine.pool import RunFailed, WorkerPool
from providers.local.engine.request_body import Task
from providers.spool import Spool


class Status(StrEnum):
    """The states of a prediction, in Cog's words. The first two can change."""

    STARTING = "starting"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class AtCapacity(Exception):
    """All workers are busy and the queue is full."""


@dataclass(frozen=True, slots=True)
class Kept:
    """For how long, how many and how large finished predictions are kept, so that a repeated PUT is answered and not run again."""

    seconds: float = 900
    count: int = 64
    bytes: int = 512 << 20


@dataclass(eq=False, slots=True)
class Prediction:
    """One prediction. It changes while it runs; everybody sees the same one."""

    id: str
    created_at: datetime
    logs: str = ""
    """For people: what there is to say about the inputs."""
    status: Status = Status.STARTING
    progress: float = 0.0
    output: Path | None = None
    """The result, once it has succeeded: a PNG file."""
    output_bytes: int = 0
    error: str | None = None
    seconds: float | None = None
    """How long the run itself took, without the wait for a worker."""
    started_at: datetime | None = None
    completed_at: datetime | None = None
    asked_again: bool = False
    """Whether somebody besides the first caller wants to know of it; then it outlives that caller's connection."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    started_s: float | None = None
    ended_s: float = 0.0
    """These two are on the monotonic clock."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing about it can change any more."""
        return self.ended.is_set()

    def mark_started(self) -> None:
        """A worker has taken it."""
        self.status = Status.PROCESSING
        self.started_at = datetime.now(UTC)
        self.started_s = time.monotonic()

    def mark_progress(self, done: float) -> None:
        """The worker says that the part `done`, 0..1, is done."""
        self.progress = max(self.progress, done)

    def mark_ended(self) -> None:
        """The run is over, however it went."""
        self.completed_at = datetime.now(UTC)
        self.ended_s = time.monotonic()
        if self.started_s is not None:
            self.seconds = round(self.ended_s - self.started_s, 6)

    def mark_succeeded(self, output: Path, seconds: float) -> None:
        """The result is at `output`, after `seconds` of work as the worker measured it."""
        self.status = Status.SUCCEEDED
        self.output, self.output_bytes = output, output.stat().st_size
        self.progress, self.seconds = 1.0, seconds

    def mark_failed(self, error: str, seconds: float | None) -> None:
        """There is no result, because of `error`."""
        self.status = Status.FAILED
        self.error = error
        self.seconds = self.seconds if seconds is None else seconds


class Predictions:
    """Starts predictions, cancels them, and keeps finished ones within `kept`."""

    def __init__(self, pool: WorkerPool, spool: Spool, queue_length: int, kept: Kept | None = None) -> None:
        """Let `queue_length` predictions wait while all workers are busy."""
        self._pool = pool
        self._spool = spool
        self._capacity = pool.count + queue_length
        self._kept = kept or Kept()
        self._known: dict[str, Prediction] = {}
        self._tasks: dict[str, asyncio.Task[float]] = {}

    @property
    def is_busy(self) -> bool:
        """Whether a new prediction would have to wait."""
        return len(self._tasks) >= self._pool.count

    @property
    def is_full(self) -> bool:
        """Whether a new prediction would be refused."""
        return len(self._tasks) >= self._capacity

    @property
    def waiting(self) -> int:
        """How many wait for a worker."""
        return sum(1 for id_ in self._tasks if self._known[id_].status is Status.STARTING)

    def find(self, id_: str) -> Prediction | None:
        """The prediction of that id, if it is still known."""
        self.forget_old()
        return self._known.get(id_)

    def start(self, id_: str, task: Task) -> Prediction:
        """Begin a prediction; the task's files are removed when it has ended. Raises `AtCapacity`."""
        if self.is_full:
            raise AtCapacity
        prediction = Prediction(id_, datetime.now(UTC), _remarks(task))
        output = self._spool.path(".png")
        running = asyncio.create_task(self._run(prediction, task, output))
        # As a callback, this happens even to a task that is cancelled before it has begun.
        running.add_done_callback(lambda ended: self._end(prediction, task, output, ended))
        self._known[id_] = prediction
        self._tasks[id_] = running
        return prediction

    async def cancel(self, prediction: Prediction) -> None:
        """Stop it and wait until it has stopped. Not an error if it has ended already."""
        task = self._tasks.get(prediction.id)
        if task is not None and not prediction.has_ended:
            task.cancel()
            await prediction.ended.wait()

    async def drain(self, timeout_s: float) -> None:
        """Let what runs end within `timeout_s`, and cancel the rest."""
        tasks = list(self._tasks.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=max(timeout_s, 0.01))
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _run(self, prediction: Prediction, task: Task, output: Path) -> float:
        return await self._pool.run(task.inputs, output, on_start=prediction.mark_started, on_progress=prediction.mark_progress)

    def _end(self, prediction: Prediction, task: Task, output: Path, ended: asyncio.Task[float]) -> None:
        """Whatever happened becomes the prediction's end, and files that are not needed any more are removed."""
        del self._tasks[prediction.id]
        prediction.mark_ended()
        match None if ended.cancelled() else ended.exception():
            case None if not ended.cancelled():
                prediction.mark_succeeded(output, ended.result())
            case None | Cancelled():
                prediction.status = Status.CANCELED
            case RunFailed() as failure:
                prediction.mark_failed(str(failure), failure.seconds)
            case error:
                prediction.mark_failed(f"{type(error).__name__}: {error}", None)
        for path in task.files if prediction.output else (*task.files, output):
            path.unlink(missing_ok=True)
        prediction.ended.set()

    def forget_old(self) -> None:
        """Drop finished predictions, the oldest first, until the rest is within the bounds."""
        finished = sorted((p for p in self._known.values() if p.has_ended), key=lambda p: p.ended_s)
        size = sum(p.output_bytes for p in finished)
        too_old = time.monotonic() - self._kept.seconds
        for position, prediction in enumerate(finished):
            left = len(finished) - position
            # The newest stays however large it is: whoever waits for it has yet to read it.
            if left == 1 or (prediction.ended_s >= too_old and left <= self._kept.count and size <= self._kept.bytes):
                break
            size -= prediction.output_bytes
            del self._known[prediction.id]
            if prediction.output is not None:
                prediction.output.unlink(missing_ok=True)


def new_id() -> str:
    """An id for a prediction that came without one."""
    return uuid4().hex


def _remarks(task: Task) -> str:
    return f"ignored, because this model has no such input: {', '.join(task.ignored)}\n" if task.ignored else ""
