"""fal's queue: jobs that wait, run and end, whatever the customer does meanwhile."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pybase64

from providers.simulators.fal_files import Files, StoredFile
from providers.simulators.fal_inputs import InputRefused, parse_input
from providers.simulators.fal_models import COMPUTE_S, Endpoint, Fetch, Made, ModelFailed, bill_of, output, perform
from providers.simulators.fal_webhooks import Webhooks
from providers.simulators.kit import Fault, Kit
from providers.simulators.pictures import read_data_uri

_QUEUE_S = 0.3
_RUN_S = 3.0
"""In life; the speed divides them."""
_MOST_ATTEMPTS = 10
"""Source: https://docs.fal.ai, "queue retries"."""

JOB_FAULTS = (
    "stalled_queue",
    "status_500_every_second",
    "still_in_progress",
    "result_404",
    "result_500",
    "cuda_oom",
    "content_policy",
    "nsfw",
    "black",
    "wrong_size",
    "corrupt",
    "truncated_download",
    "cut_download_twice",
    "slow_download",
    "expired_result",
    "foreign_urls",
    "foreign_result",
    "redirect",
    "webhook_lost",
)
"""Decided once for each job, when it is submitted."""


class State(StrEnum):
    """What the status says."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the result's address answers."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    error: str | None = None
    error_type: str | None = None
    """Both also in the status, where the infrastructure failed and not the model."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A job as it was submitted."""

    name: str
    """The endpoint's, as it stood in the address."""
    endpoint: Endpoint | None
    """None for a path that the app does not have."""
    input: Any = field(repr=False)
    """JSON, or an `InputRefused` where it was none."""
    files_base: str
    """What the addresses of results begin with."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    webhook: str | None = None
    answered: bool = True


@dataclass(slots=True)
class Job:
    """One request in the queue."""

    id: str
    asked: Asked
    faults: Mapping[str, Fault]
    state: State = State.IN_QUEUE
    outcome: Outcome | None = None
    logs: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    polls: int = 0
    results: int = 0
    """How often the result was asked for after it was there."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def log(self, message: str) -> None:
        """Write a line that the customer may read."""
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self.logs.append({"message": message, "level": "INFO", "source": "USER", "timestamp": stamp})

    def becomes(self, state: State, outcome: Outcome | None = None) -> None:
        """Move on."""
        self.outcome = outcome
        self.state = state
        self.changed.set()
        self.changed = asyncio.Event()


class Jobs:
    """All jobs, and the runners."""

    def __init__(self, kit: Kit, files: Files, webhooks: Webhooks, *, speed: float, concurrency: int) -> None:
        """Take what the jobs use; `concurrency` jobs run at once, the others wait."""
        self._kit = kit
        self._files = files
        self._webhooks = webhooks
        self._speed = speed
        self._concurrency = concurrency
        self._runners = asyncio.Semaphore(concurrency)
        self._jobs: dict[str, Job] = {}
        self._deliveries: set[asyncio.Task[int]] = set()

    @property
    def is_busy(self) -> bool:
        """Whether no runner is free."""
        return self._runners.locked()

    @property
    def waiting(self) -> int:
        """How many jobs are in the queue."""
        return sum(job.state is State.IN_QUEUE for job in self._jobs.values())

    def find(self, job_id: str) -> Job | None:
        """The job, if there is one."""
        return self._jobs.get(job_id)

    def position(self, job: Job) -> int:
        """How many jobs are before it, of those that still wait."""
        before = 0
        for other in self._jobs.values():
            if other is job:
                break
            before += other.state is State.IN_QUEUE
        return before

    def submit(self, asked: Asked) -> Job:
        """Take a job and begin to work on it."""
        struck = {name: self._kit.faults.strike(name) for name in JOB_FAULTS}
        job = Job(str(uuid4()), asked, {name: fault for name, fault in struck.items() if fault is not None})
        self._jobs[job.id] = job
        job.task = asyncio.create_task(self._work(job))
        return job

    async def run(self, asked: Asked) -> Job:
        """Do a job while the customer waits: no queue, no retries."""
        job = self.submit(asked)
        while job.state is not State.COMPLETED:
            await job.changed.wait()
        return job

    def cancel(self, job: Job) -> bool:
        """Stop a job. False if it has ended already."""
        if job.state is State.COMPLETED or job.task is None:
            return False
        job.task.cancel()
        self._end(job, _infrastructure(499, "Request was cancelled by the client", "client_cancelled"))
        return True

    def listing(self) -> list[dict[str, Any]]:
        """What came in, for `GET /_sim/jobs`: without keys, and without pictures."""
        return [
            {
                "id": job.id,
                "endpoint": job.asked.name,
                "state": job.state.value,
                "status": job.outcome.status if job.outcome else None,
                "headers": {name: value for name, value in job.asked.headers.items() if name.startswith("x-")},
                "input": _without_pictures(job.asked.input),
                "webhook": job.asked.webhook,
                "polls": job.polls,
                "answered": job.asked.answered,
            }
            for job in self._jobs.values()
        ]

    async def close(self) -> None:
        """End whatever runs."""
        working = [job.task for job in self._jobs.values() if job.task is not None]
        tasks: list[asyncio.Task[Any]] = [*working, *self._deliveries]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, job: Job) -> None:
        try:
            async with asyncio.timeout(_start_timeout_s(job)):
                await self._queued(job)
                await self._runners.acquire()
        except TimeoutError:
            self._end(job, _infrastructure(504, "Request timed out", "request_timeout", {"x-fal-request-timeout-type": "user"}))
            return
        try:
            self._end(job, await self._attempted(job))
        finally:
            self._runners.release()

    def _end(self, job: Job, outcome: Outcome) -> None:
        job.asked = replace(job.asked, input=_without_pictures(job.asked.input))  # they are large, and no longer needed
        job.becomes(State.COMPLETED, outcome)
        self._notify(job, outcome)

    async def _queued(self, job: Job) -> None:
        if "stalled_queue" in job.faults:
            await asyncio.Event().wait()
        await asyncio.sleep(_QUEUE_S / self._speed)

    async def _attempted(self, job: Job) -> Outcome:
        """Run it, again where the runner was lost and the customer did not forbid it."""
        forbidden = job.asked.headers.get("x-fal-no-retry", "").lower() in ("1", "true", "yes")
        for _ in range(1 if forbidden else _MOST_ATTEMPTS):
            self._kit.counters.count(job.asked.name, "attempt")
            job.becomes(State.IN_PROGRESS)
            if self._kit.faults.strike("runner_lost") is None:
                return await self._performed(job)
        return _infrastructure(503, "Runner disconnected", "runner_disconnected", {"x-fal-needs-retry": "1"})

    async def _performed(self, job: Job) -> Outcome:
        endpoint, asked = job.asked.endpoint, job.asked
        if endpoint is None:
            path = asked.name.split("/", 2)[-1]
            return Outcome(404, {"detail": f"Path /{path} not found"}, {"x-fal-billable-units": "0"})
        job.log(f"Running {asked.name}")
        try:
            if isinstance(asked.input, InputRefused):
                raise asked.input
            given = parse_input(asked.input, endpoint.fields)
            fetch = _fetching(self._files, asked.files_base)
            made, _ = await asyncio.gather(perform(endpoint, given, fetch, job.faults), asyncio.sleep(_RUN_S / self._speed))
        except InputRefused as refused:
            headers = {"x-fal-needs-retry": "false", "x-fal-billable-units": "0"}
            return Outcome(422, {"detail": list(refused.detail)}, headers)
        except ModelFailed as failed:
            return Outcome(failed.status, {"detail": failed.detail}, {"x-fal-billable-units": "0", "x-fal-needs-retry": "true"})
        return self._delivered(job, endpoint, made, inline=given.get("sync_mode") is True)

    def _delivered(self, job: Job, endpoint: Endpoint, made: Made, *, inline: bool) -> Outcome:
        """Put the results where they can be fetched, and the job on the bill."""
        billed = bill_of(endpoint, made)
        self._kit.bill.charge(
            job.id, endpoint.name, units=billed.units, seconds=COMPUTE_S, usd=billed.usd, answered=job.asked.answered
        )
        urls = [self._address(job, data, facts.mime, inline=inline) for data, facts in made.files]
        return Outcome(200, output(endpoint, made, urls), {"x-fal-billable-units": f"{billed.units.normalize():f}"})

    def _address(self, job: Job, data: bytes, mime: str, *, inline: bool) -> str:
        if inline:
            return data_uri(data, mime)
        lifecycle = job.asked.headers.get("x-fal-object-lifecycle-preference")
        path = self._files.store(StoredFile(data, mime, job.asked.name, job.faults, lifecycle))
        foreign = job.faults.get("foreign_result")
        return (elsewhere(foreign) if foreign else job.asked.files_base) + path

    def _notify(self, job: Job, outcome: Outcome) -> None:
        if job.asked.webhook is None or "webhook_lost" in job.faults:
            return
        told: dict[str, Any] = {"status": "OK", "payload": outcome.body}
        if outcome.status != 200:
            told = {"status": "ERROR", "error": outcome.error or f"Invalid status code: {outcome.status}", "payload": outcome.body}
        self._kit.counters.count(job.asked.name, "webhook")
        delivery = asyncio.create_task(self._webhooks.deliver(job.asked.webhook, job.id, told))
        self._deliveries.add(delivery)
        delivery.add_done_callback(self._deliveries.discard)


def elsewhere(fault: Fault) -> str:
    """The origin of somebody else's server: as the fault says, or one where nobody listens."""
    return fault.arg or "http://127.0.0.2:9"


def data_uri(data: bytes, mime: str) -> str:
    """A file as an address that holds it."""
    return f"data:{mime};base64,{pybase64.b64encode(data).decode()}"


def _fetching(files: Files, files_base: str) -> Fetch:
    """How models get pictures here: from data URIs and fal's own storage, from nowhere else."""

    def fetch(url: str) -> bytes | None:
        inline = read_data_uri(url)
        if inline is not None:
            return inline
        at = urlsplit(url)
        own = url.startswith(files_base + "/") or (at.hostname or "").endswith("fal.media")
        file = files.find(at.path) if own else None
        return None if file is None else file.data

    return fetch


def _start_timeout_s(job: Job) -> float | None:
    """How long it may wait; the newer header wins. Source: https://docs.fal.ai, "request timeouts"."""
    headers = job.asked.headers
    told = headers.get("x-fal-request-start-timeout") or headers.get("x-fal-request-timeout")
    try:
        return float(told) if told else None
    except ValueError:
        return None


def _infrastructure(status: int, detail: str, kind: str, headers: Mapping[str, str] | None = None) -> Outcome:
    """A failure that is not the model's own."""
    told = {"x-fal-error-type": kind, "x-fal-billable-units": "0", **(headers or {})}
    return Outcome(status, {"detail": detail, "error_type": kind}, told, error=detail, error_type=kind)


def _without_pictures(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("data:"):
        return f"{value[:30]}... {len(value)} characters"
    if isinstance(value, dict):
        table: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType] -- JSON
        return {name: _without_pictures(item) for name, item in table.items()}
    if isinstance(value, list):
        return [_without_pictures(item) for item in value]  # pyright: ignore[reportUnknownVariableType] -- JSON
    return None if isinstance(value, InputRefused) else value
