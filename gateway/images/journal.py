"""What happened to a request, written as it happens: job, attempts, tickets, cost, delivered pictures.

Every method is one transaction and returns once it is committed. Prompts are kept with the job's request and nowhere else;
keys and signed addresses nowhere at all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Row, insert, update

from gateway.db.engine import Database
from gateway.db.presence import Presence
from gateway.db.scope import across_tenants, of_tenant
from gateway.db.tables import (
    ACTIVE_STATES,
    ATTEMPT_INTERRUPTED,
    ATTEMPT_OK,
    ATTEMPT_RUNNING,
    JobState,
    TicketState,
    asset,
    attempt,
    job,
    ticket,
)
from gateway.db.types import whole_nano_dollars
from gateway.images.printable import printable_plan, printable_usage, restored, withheld
from normalization.pixels.formats import Format, Size
from normalization.plan import Plan
from normalization.pricing import Cost
from normalization.request import Json
from providers.base import Ticket, Usage
from providers.failures import FailureKind

_FINAL = (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job about to be opened."""

    id: str
    """The request's id, `req_…`."""
    tenant_id: str
    api_key_id: str | None
    """None for work from the shell."""
    route: str
    """Such as `images.edits`."""
    model: str
    mode: str
    request: Mapping[str, Json]
    """Every asked parameter, prompts included; no pictures."""
    controls: Mapping[str, Json]
    queued: bool = False
    """Whether it waits for its turn; otherwise it runs at once."""


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job that has been opened: what further entries hang on."""

    id: str
    tenant_id: str


@dataclass(frozen=True, slots=True)
class OpenAttempt:
    """An attempt that has been started."""

    id: str
    job: OpenJob
    position: int


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """How an attempt ended."""

    attempt: OpenAttempt
    failure: FailureKind | None
    """None: it delivered."""
    cost: Cost
    detail: str | None = None
    """For the operator; never a key, a prompt or a signed address."""
    usage: Mapping[int, Usage] | None = None
    """By call index, what the provider says it used."""


@dataclass(frozen=True, slots=True)
class NewAsset:
    """A delivered picture that lies in the asset store."""

    id: str
    """`img_…`."""
    key: str
    """In the store."""
    format: Format
    size: Size
    size_bytes: int
    sha256: str | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a job came to its end."""

    provider: str
    endpoint: str
    cost: Cost
    """All that providers charge, failed attempts included where known."""
    billed_usd: Decimal
    normalization: Sequence[Mapping[str, Json]]
    """The receipt, as it stands in the answer."""
    assets: Sequence[NewAsset]
    images_delivered: int
    """Pictures in the answer; more than the assets where one stands several times."""


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """An attempt as it is recorded."""

    position: int
    provider: str
    endpoint: str
    outcome: str
    """`ok`, `running`, `interrupted`, or a `FailureKind`."""
    detail: str | None
    plan: Mapping[str, Any]
    started_at: datetime
    finished_at: datetime | None
    cost_usd: Decimal | None
    cost_basis: str | None


@dataclass(frozen=True, slots=True)
class AssetRecord:
    """A delivered picture as it is recorded."""

    id: str
    position: int
    key: str
    format: Format
    size: Size
    size_bytes: int
    sha256: str | None
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as it is recorded, with all that hangs on it."""

    id: str
    tenant_id: str
    api_key_id: str | None
    route: str
    model: str
    mode: str
    state: JobState
    request: Mapping[str, Any]
    controls: Mapping[str, Any]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    provider: str | None
    endpoint: str | None
    cost_usd: Decimal | None
    """None: unknown, or not known yet."""
    cost_basis: str | None
    cost_certainty: str | None
    billed_usd: Decimal | None
    normalization: Sequence[Mapping[str, Any]] | None
    """The receipt, prompts back in their places."""
    images_delivered: int
    error: Mapping[str, Any] | None
    client_gone: bool
    attempts: tuple[AttemptRecord, ...]
    assets: tuple[AssetRecord, ...]


class Journal:
    """The record of one process's work, and the closing of what dead processes left open."""

    def __init__(self, db: Database, clock: Callable[[], datetime], boot_id: str) -> None:
        """Nothing is written yet.

        Args:
            db: A migrated database.
            clock: Now, aware.
            boot_id: New at every start of a process; letters, digits, `_` and `-`.
        """
        self._db = db
        self._clock = clock
        self._boot_id = boot_id
        self._presence = Presence(db, clock, boot_id)
        self._announced = False

    async def open_job(self, new: NewJob) -> OpenJob:
        """Record that a request was accepted."""
        now = self._clock()
        row = {
            "id": new.id,
            "tenant_id": new.tenant_id,
            "api_key_id": new.api_key_id,
            "process": self._boot_id,
            "route": new.route,
            "model": new.model,
            "mode": new.mode,
            "state": JobState.QUEUED if new.queued else JobState.RUNNING,
            "request": new.request,
            "controls": new.controls,
            "created_at": now,
            "started_at": None if new.queued else now,
        }

        def write(connection: Connection) -> None:
            self._announce_once(connection)
            connection.execute(insert(job), row)

        await self._db.write(write)
        self._announced = True
        return OpenJob(new.id, new.tenant_id)

    async def start_job(self, opened: OpenJob) -> None:
        """Record that a queued job's turn has come."""
        row = {"state": JobState.RUNNING, "started_at": self._clock()}
        await self._db.write(lambda connection: _change_job(connection, opened, row, only_from=(JobState.QUEUED,)))

    async def start_attempt(self, opened: OpenJob, position: int, plan: Plan) -> OpenAttempt:
        """Record that an offer is tried, before its provider is asked."""
        started = OpenAttempt(f"{opened.id}.{position}", opened, position)
        row = {
            "id": started.id,
            "tenant_id": opened.tenant_id,
            "job_id": opened.id,
            "position": position,
            "provider": plan.offer.provider,
            "endpoint": plan.offer.endpoint,
            "plan": printable_plan(plan),
            "outcome": ATTEMPT_RUNNING,
            "started_at": self._clock(),
        }
        await self._db.write(lambda connection: connection.execute(insert(attempt), row).rowcount)
        return started

    async def record_ticket(self, started: OpenAttempt, call_index: int, given: Ticket) -> None:
        """Record a provider's receipt, before it is polled."""
        row = {
            "id": f"{started.id}.{call_index}",
            "tenant_id": started.job.tenant_id,
            "attempt_id": started.id,
            "call_index": call_index,
            "provider": given.provider,
            "endpoint": given.endpoint,
            "provider_id": given.id,
            "submitted_at": given.submitted_at,
            "state": TicketState.OPEN,
        }
        await self._db.write(lambda connection: connection.execute(insert(ticket), row).rowcount)

    async def finish_attempt(self, end: AttemptEnd) -> None:
        """Record how an attempt ended. For one that delivered, `finish_job` can do it in the same transaction."""
        now = self._clock()
        await self._db.write(lambda connection: _end_attempt(connection, end, now))

    async def finish_job(self, opened: OpenJob, delivery: Delivery, last: AttemptEnd | None = None) -> bool:
        """Record the delivery: the job, its pictures and, if given, its last attempt, in one transaction.

        Returns False, and changes nothing, if the job has ended already, so that it may be repeated. A job that was taken
        for interrupted is completed all the same: the pictures are there.
        """
        now = self._clock()
        row = {
            "state": JobState.COMPLETED,
            "finished_at": now,
            "provider": delivery.provider,
            "endpoint": delivery.endpoint,
            **_cost_columns(delivery.cost),
            "cost_certainty": delivery.cost.certainty,
            "billed_usd": whole_nano_dollars(delivery.billed_usd),
            "normalization": [withheld(entry) for entry in delivery.normalization],
            "images_delivered": delivery.images_delivered,
            "error": None,
        }

        def write(connection: Connection) -> bool:
            if not _change_job(connection, opened, row):
                return False
            if last is not None:
                _end_attempt(connection, last, now)
            if delivery.assets:
                connection.execute(insert(asset), [_asset_row(opened, i, made, now) for i, made in enumerate(delivery.assets)])
            return True

        return await self._db.write(write)

    async def fail_job(
        self, opened: OpenJob, error: Mapping[str, Json], cost: Cost, *, cancelled: bool = False, last: AttemptEnd | None = None
    ) -> bool:
        """Record that a job ended without pictures, which is billed with nothing.

        Args:
            opened: The job.
            error: The error body's members, as the caller sees them.
            cost: What providers charge all the same.
            cancelled: Whether it was the caller's wish.
            last: The attempt that ends with it.

        Returns False, and changes nothing, if the job has ended already.
        """
        now = self._clock()
        row = {
            "state": JobState.CANCELLED if cancelled else JobState.FAILED,
            "finished_at": now,
            **_cost_columns(cost),
            "cost_certainty": cost.certainty,
            "billed_usd": Decimal(0),
            "error": error,
        }

        def write(connection: Connection) -> bool:
            if not _change_job(connection, opened, row):
                return False
            if last is not None:
                _end_attempt(connection, last, now)
            return True

        return await self._db.write(write)

    async def mark_client_gone(self, opened: OpenJob) -> None:
        """Record that nobody waits for the answer any more. The job goes on."""
        gone = update(job).where(job.c.id == opened.id).values(client_gone=True)
        await self._db.write(lambda connection: connection.execute(gone).rowcount)

    async def recover(self) -> int:
        """Say that this process lives, and close what dead ones left open. Returns how many jobs that were.

        To be called at start and then every `presence.HEARTBEAT`. Tickets stay open: the providers may have delivered.
        """

        def write(connection: Connection) -> int:
            self._presence.announce(connection)
            return _interrupt(connection, self._presence.bury_dead(connection), self._clock())

        interrupted = await self._db.write(write)
        self._announced = True
        return interrupted

    async def leave(self) -> int:
        """End this process's part: what it still has open is interrupted now. Returns how many jobs that were."""

        def write(connection: Connection) -> int:
            self._presence.leave(connection)
            return _interrupt(connection, [self._boot_id], self._clock())

        interrupted = await self._db.write(write)
        self._announced = False
        self._presence.forget()
        return interrupted

    async def get_job(self, tenant_id: str, job_id: str) -> JobRecord | None:
        """A tenant's job with its attempts and pictures; None if this tenant has none of that id."""

        def read(connection: Connection) -> JobRecord | None:
            found = connection.execute(of_tenant(job, tenant_id).where(job.c.id == job_id)).one_or_none()
            if found is None:
                return None
            attempts = of_tenant(attempt, tenant_id).where(attempt.c.job_id == job_id).order_by(attempt.c.position)
            assets = of_tenant(asset, tenant_id).where(asset.c.job_id == job_id).order_by(asset.c.position)
            return _job_record(found, connection.execute(attempts).all(), connection.execute(assets).all())

        return await self._db.read(read)

    def _announce_once(self, connection: Connection) -> None:
        if not self._announced:
            self._presence.announce(connection)


def _change_job(
    connection: Connection, opened: OpenJob, row: Mapping[str, object], only_from: tuple[JobState, ...] | None = None
) -> bool:
    allowed = job.c.state.in_(only_from) if only_from else job.c.state.not_in(_FINAL)
    return connection.execute(update(job).where(job.c.id == opened.id, allowed).values(row)).rowcount == 1


def _end_attempt(connection: Connection, end: AttemptEnd, now: datetime) -> None:
    row = {
        "outcome": end.failure or ATTEMPT_OK,
        "detail": end.detail,
        "finished_at": now,
        **_cost_columns(end.cost),
    }
    connection.execute(update(attempt).where(attempt.c.id == end.attempt.id).values(row))
    for call_index, usage in (end.usage or {}).items():
        of_call = (ticket.c.attempt_id == end.attempt.id, ticket.c.call_index == call_index)
        connection.execute(update(ticket).where(*of_call).values(usage=printable_usage(usage)))
    # After a timeout or an unknown fault the provider may still be at work: the ticket stays open to be asked again.
    if end.failure not in (FailureKind.TIMEOUT, FailureKind.UNKNOWN):
        connection.execute(update(ticket).where(ticket.c.attempt_id == end.attempt.id).values(state=TicketState.CLOSED))


def _interrupt(connection: Connection, boots: Sequence[str], now: datetime) -> int:
    if not boots:
        return 0
    left = across_tenants(job, job.c.id, reason="a process died: its jobs are of any tenant").where(
        job.c.process.in_(boots), job.c.state.in_(ACTIVE_STATES)
    )
    open_attempts = (attempt.c.job_id.in_(left), attempt.c.outcome == ATTEMPT_RUNNING)
    connection.execute(update(attempt).where(*open_attempts).values(outcome=ATTEMPT_INTERRUPTED, finished_at=now))
    error = {
        "message": "The gateway stopped while this job was running. A provider may have done and charged the work.",
        "type": "server_error",
        "code": "interrupted",
        "retry_safe": False,
    }
    cost = _cost_columns(Cost.unknown("the gateway stopped while the job was running"))
    row = {"state": JobState.INTERRUPTED, "finished_at": now, "error": error, **cost, "cost_certainty": "unknown"}
    return connection.execute(update(job).where(job.c.id.in_(left)).values(row)).rowcount


def _cost_columns(cost: Cost) -> dict[str, object]:
    # Rounding loses less than a billionth of a dollar; refusing to write would lose the record.
    return {"cost_usd": None if cost.usd is None else whole_nano_dollars(cost.usd), "cost_basis": cost.basis}


def _asset_row(opened: OpenJob, position: int, made: NewAsset, now: datetime) -> dict[str, object]:
    return {
        "id": made.id,
        "tenant_id": opened.tenant_id,
        "job_id": opened.id,
        "position": position,
        "key": made.key,
        "format": made.format,
        "width": made.size.width,
        "height": made.size.height,
        "size_bytes": made.size_bytes,
        "sha256": made.sha256,
        "created_at": now,
        "expires_at": made.expires_at,
    }


def _job_record(row: Row[Any], attempts: Sequence[Row[Any]], assets: Sequence[Row[Any]]) -> JobRecord:
    receipt = row.normalization
    return JobRecord(
        id=row.id,
        tenant_id=row.tenant_id,
        api_key_id=row.api_key_id,
        route=row.route,
        model=row.model,
        mode=row.mode,
        state=JobState(row.state),
        request=row.request,
        controls=row.controls,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        provider=row.provider,
        endpoint=row.endpoint,
        cost_usd=row.cost_usd,
        cost_basis=row.cost_basis,
        cost_certainty=row.cost_certainty,
        billed_usd=row.billed_usd,
        normalization=None if receipt is None else [restored(entry, row.request) for entry in receipt],
        images_delivered=row.images_delivered,
        error=row.error,
        client_gone=row.client_gone,
        attempts=tuple(_attempt_record(each) for each in attempts),
        assets=tuple(_asset_record(each) for each in assets),
    )


def _attempt_record(row: Row[Any]) -> AttemptRecord:
    return AttemptRecord(
        position=row.position,
        provider=row.provider,
        endpoint=row.endpoint,
        outcome=row.outcome,
        detail=row.detail,
        plan=row.plan,
        started_at=row.started_at,
        finished_at=row.finished_at,
        cost_usd=row.cost_usd,
        cost_basis=row.cost_basis,
    )


def _asset_record(row: Row[Any]) -> AssetRecord:
    return AssetRecord(
        id=row.id,
        position=row.position,
        key=row.key,
        format=Format(row.format),
        size=Size(row.width, row.height),
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
