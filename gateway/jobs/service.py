"""Jobs of this process: started once, awaited by whoever wants, run to their end whoever leaves."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from gateway.errors import Overloaded, TimedOut
from gateway.images.pipeline import ImageResult


@dataclass(frozen=True, slots=True)
class Job:
    """One request that runs."""

    id: str
    task: asyncio.Task[ImageResult]


class Jobs:
    """What runs in this process."""

    def __init__(self, on_change: Callable[[int], None]) -> None:
        """Take whom to tell how many jobs run."""
        self._running: dict[str, Job] = {}
        self._on_change = on_change
        self._closed_at: float | None = None

    def check_open(self) -> None:
        """Raise `Overloaded` if no new work is taken."""
        if self._closed_at is not None:
            raise Overloaded("The gateway is shutting down; try again in a moment.", code="shutting_down", retry_after_s=2.0)

    def close_door(self) -> None:
        """Take no new work from now on."""
        self._closed_at = self._closed_at or time.monotonic()

    def start(self, job_id: str, work: Awaitable[ImageResult]) -> Job:
        """Let a job run on its own."""
        task = asyncio.ensure_future(work)
        job = self._running[job_id] = Job(job_id, task)
        task.add_done_callback(lambda _: self._forget(job_id))
        self._on_change(len(self._running))
        return job

    async def wait(self, job: Job, deadline_s: float) -> ImageResult:
        """Wait for a job, which goes on if the waiting ends.

        Raises:
            TimedOut: After `deadline_s` seconds; names the job.
            Overloaded: If the gateway stops before the work is done.
            GatewayError: As the job failed.
        """
        done, _ = await asyncio.wait([job.task], timeout=deadline_s)
        if not done:
            raise TimedOut(
                f"The work takes longer than {deadline_s:g} s and goes on; GET /v1/jobs/{job.id} tells how it ended.",
                extra={"job": job.id, "billed_usd": None, "retry_safe": False},
            )
        if job.task.cancelled():
            raise interrupted(job)
        return job.task.result()

    async def drain(self, grace_s: float) -> int:
        """Let what runs end within `grace_s` seconds of the closing of the door, stop the rest. Returns how many were stopped."""
        self.close_door()
        left_s = grace_s - (time.monotonic() - (self._closed_at or 0.0))
        tasks = [job.task for job in self._running.values()]
        if not tasks:
            return 0
        _, late = await asyncio.wait(tasks, timeout=max(0.0, left_s))
        for task in late:
            task.cancel()
        for task in late:
            with suppress(asyncio.CancelledError, Exception):
                await task
        return len(late)

    def _forget(self, job_id: str) -> None:
        job = self._running.pop(job_id)
        if not job.task.cancelled():
            job.task.exception()  # looked at: if nobody waits any more, asyncio would report it as forgotten
        self._on_change(len(self._running))


def interrupted(job: Job) -> Overloaded:
    """What a caller is told whose work does not end before the gateway does. The work may have been done, and paid."""
    return Overloaded(
        f"The gateway stopped while the work was running; GET /v1/jobs/{job.id} tells what became of it.",
        code="interrupted",
        extra={"job": job.id, "billed_usd": None, "retry_safe": False},
    )
