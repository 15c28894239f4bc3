"""What happened to a request, written as it happens: job, attempts, tickets, cost, delivered pictures.

Every method is one transaction and returns once it is committed. Prompts are kept with the job's request and nowhere else;
keys and signed addresses nowhere at all.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, insert, update

from gateway.db.engine import Database
from gateway.db.presence import Presence
from gateway.db.scope import across_tenants, of_tenant
from gateway.db.tables import (
    ACTIVE_STATES,
    ATTEMPT_INTERRUPTED,
    ATTEMPT_RUNNING,
    JobState,
    TicketState,
    asset,
    attempt,
    job,
    ticket,
)
from gateway.db.types import whole_nano_dollars
from gateway.errors import GatewayError, InternalError, Overloaded
from gateway.images.printable import printable_plan, printable_usage, withheld
from gateway.images.records import JobRecord, read_job
from normalization.pixels.formats import Format, Size
from normalization.plan import Plan
from normalization.pricing import Certainty, Cost, total
from normalization.request import Json
from providers.base import Ticket, Usage
from providers.failures import FailureKind

T = TypeVar("T")

_PERHAPS_STILL_WORKING = (FailureKind.TIMEOUT, FailureKind.UNKNOWN)
"""Outcomes after which a ticket stays open, because asking the provider again may still bring something."""

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


class RecordFailed(InternalError):
    """Work was done and could not be written down. To ask again would have it done, and paid, again."""

    default_code = "record_failed"
    should_retry = False

    def __init__(self, detail: str | None) -> None:
        super().__init__(
            "the work was done, but the database did not take the record of it; the request id leads to it",
            detail=detail,
            extra={"billed_usd": None, "retry_safe": False},
        )


PAUSES_S = (0.1, 0.3, 1.0, 3.0)


async def persistent(write: Callable[[], Awaitable[T]]) -> T:
    """Write what must not be lost: when the database is busy or away for a moment, it is asked again.

    Raises:
        RecordFailed: If it is away for longer.
    """
    for pause_s in PAUSES_S:
        try:
            return await write()
        except Overloaded:
            await asyncio.sleep(pause_s)
    try:
        return await write()
    except Overloaded as error:
        raise RecordFailed(error.detail) from error


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

    async def finish_attempt(
        self,
        started: OpenAttempt,
        outcome: str,
        detail: str | None,
        cost: Cost,
        usage: Mapping[int, Usage] | None = None,
        *,
        keep_open: Collection[int] = (),
    ) -> None:
        """Record how an attempt ended.

        Args:
            started: The attempt.
            outcome: `ok` or a `FailureKind`.
            detail: For the operator; never a key, a prompt or a signed address.
            cost: What the provider charges for it.
            usage: By call index, what the provider says it used.
            keep_open: Call indexes that the provider may still be working on.
        """
        row = {"outcome": outcome, "detail": detail, "finished_at": self._clock(), **_cost_columns(cost)}

        def write(connection: Connection) -> None:
            connection.execute(update(attempt).where(attempt.c.id == started.id).values(row))
            for call_index, used in (usage or {}).items():
                of_call = (ticket.c.attempt_id == started.id, ticket.c.call_index == call_index)
                connection.execute(update(ticket).where(*of_call).values(usage=printable_usage(used)))
            if outcome not in _PERHAPS_STILL_WORKING:
                ended = (ticket.c.attempt_id == started.id, ticket.c.call_index.not_in(keep_open))
                connection.execute(update(ticket).where(*ended).values(state=TicketState.CLOSED))

        await self._db.write(write)

    async def finish_job(
        self,
        opened: OpenJob,
        *,
        provider: str,
        endpoint: str,
        cost: Cost,
        billed_usd: Decimal | None,
        normalization: Sequence[Mapping[str, Json]],
        assets: Sequence[NewAsset],
        images_delivered: int | None = None,
    ) -> bool:
        """Record the delivery, the job and its pictures, in one transaction.

        Args:
            opened: The job.
            provider: Who delivered.
            endpoint: The provider's name for the offer.
            cost: All that providers charge, failed attempts included where known.
            billed_usd: What the tenant is charged.
            normalization: The receipt, as it stands in the answer.
            assets: The stored pictures, in the order of the answer, each once.
            images_delivered: Pictures in the answer, if one stands there several times; otherwise as many as assets.

        Returns:
            False, with nothing changed, if the job has ended already: so it may be repeated. A job that was taken for
            interrupted is completed all the same, because the pictures are there.
        """
        now = self._clock()
        row = {
            "state": JobState.COMPLETED,
            "finished_at": now,
            "provider": provider,
            "endpoint": endpoint,
            **_cost_columns(cost),
            "billed_usd": None if billed_usd is None else whole_nano_dollars(billed_usd),
            "normalization": [withheld(entry) for entry in normalization],
            "images_delivered": len(assets) if images_delivered is None else images_delivered,
            "error": None,
        }

        def write(connection: Connection) -> bool:
            if not _change_job(connection, opened, row):
                return False
            if assets:
                connection.execute(insert(asset), [_asset_row(opened, i, made, now) for i, made in enumerate(assets)])
            return True

        return await self._db.write(write)

    async def fail_job(self, opened: OpenJob, error: GatewayError, *, cancelled: bool = False) -> bool:
        """Record that a job ended without pictures, for which nothing is billed. Its cost is that of its recorded attempts.

        Args:
            opened: The job.
            error: What the caller is told.
            cancelled: Whether it was the caller's wish.

        Returns:
            False, with nothing changed, if the job has ended already.
        """
        row = {
            "state": JobState.CANCELLED if cancelled else JobState.FAILED,
            "finished_at": self._clock(),
            "billed_usd": Decimal(0),
            "error": _told(error),
        }

        def write(connection: Connection) -> bool:
            cost = _recorded_cost(connection, opened)
            return _change_job(connection, opened, {**row, **_cost_columns(cost)})

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
        return await self._db.read(lambda connection: read_job(connection, tenant_id, job_id))

    def _announce_once(self, connection: Connection) -> None:
        if not self._announced:
            self._presence.announce(connection)


def _change_job(
    connection: Connection, opened: OpenJob, row: Mapping[str, object], only_from: tuple[JobState, ...] | None = None
) -> bool:
    allowed = job.c.state.in_(only_from) if only_from else job.c.state.not_in(_FINAL)
    return connection.execute(update(job).where(job.c.id == opened.id, allowed).values(row)).rowcount == 1


def _recorded_cost(connection: Connection, opened: OpenJob) -> Cost:
    rows = connection.execute(of_tenant(attempt, opened.tenant_id).where(attempt.c.job_id == opened.id)).all()
    if not rows:
        return Cost.nothing("no provider was asked")
    return total([_cost_of(row) for row in rows])


def _cost_of(row: Row[Any]) -> Cost:
    if row.finished_at is None:
        return Cost.unknown("an attempt has not ended")
    return Cost(row.cost_usd, row.cost_basis, Certainty(row.cost_certainty))


def _told(error: GatewayError) -> dict[str, Any]:
    return {"message": error.message, "type": error.type, "param": error.param, "code": error.code, **error.extra}


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
    row = {"state": JobState.INTERRUPTED, "finished_at": now, "error": error, **cost}
    return connection.execute(update(job).where(job.c.id.in_(left)).values(row)).rowcount


def _cost_columns(cost: Cost) -> dict[str, object]:
    # Rounding loses less than a billionth of a dollar; refusing to write would lose the record.
    usd = None if cost.usd is None else whole_nano_dollars(cost.usd)
    return {"cost_usd": usd, "cost_basis": cost.basis, "cost_certainty": cost.certainty}


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
