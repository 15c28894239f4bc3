"""Every table, on one page. What is written here and what `migrations/` makes are kept equal by `make check`.

All rows of a tenant carry `tenant_id` and are read through `gateway/db/scope.py` only.
"""

from collections.abc import Iterable
from enum import StrEnum
from types import MappingProxyType

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    false,
)

from gateway.db.types import FreeText, Json, Money, UtcDateTime
from normalization.pricing import Certainty
from providers.failures import FailureKind


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """Its process ended before it did. Providers may have delivered and charged; the tickets are kept."""


ACTIVE_STATES = (JobState.QUEUED, JobState.RUNNING)

ATTEMPT_RUNNING = "running"
ATTEMPT_OK = "ok"
ATTEMPT_INTERRUPTED = "interrupted"
ATTEMPT_OUTCOMES = (ATTEMPT_RUNNING, ATTEMPT_OK, ATTEMPT_INTERRUPTED, *FailureKind)


class TicketState(StrEnum):
    """Whether the provider may still be at work for a ticket."""

    OPEN = "open"
    CLOSED = "closed"


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


def _one_of(column: str, values: Iterable[str]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


tenant = Table(
    "tenant",
    metadata,
    Column("id", String(64), primary_key=True),  # ten_…
    Column("name", String(200), nullable=False, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
)
"""Who pays."""

api_key = Table(
    "api_key",
    metadata,
    Column("id", String(64), primary_key=True),  # key_…
    Column("tenant_id", String(64), ForeignKey("tenant.id"), nullable=False),
    Column("name", FreeText, nullable=False),
    Column("digest", String(64), nullable=False, unique=True),  # keyed hash, in hex; the secret itself is nowhere
    Column("prefix", String(16), nullable=False),  # the secret's first characters, for people
    Column("budget_usd", Money),  # NULL: no limit of its own
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),  # to the minute
    Index(None, "tenant_id", "created_at"),
)
"""What a caller shows to say who it is."""

process = Table(
    "process",
    metadata,
    Column("id", String(64), primary_key=True),  # the boot id, new at every start
    Column("host", FreeText, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),  # the heartbeat
    Column("ended_at", UtcDateTime),  # when it left, or was found dead
)
"""A gateway process that runs or ran jobs; `gateway/db/presence.py` says when one is dead."""

job = Table(
    "job",
    metadata,
    Column("id", String(64), primary_key=True),  # req_…: the request's id
    Column("tenant_id", String(64), ForeignKey("tenant.id"), nullable=False),
    Column("api_key_id", String(64), ForeignKey("api_key.id")),  # NULL: started from the shell
    Column("process", String(64), ForeignKey("process.id"), nullable=False),  # which one runs it
    Column("route", String(64), nullable=False),  # images.edits
    Column("model", FreeText, nullable=False),  # as asked
    Column("mode", String(32), nullable=False),  # normalization.request.RequestMode
    Column("state", String(32), nullable=False),
    Column("request", Json, nullable=False),  # every asked parameter; the only place where prompts are kept
    Column("controls", Json, nullable=False),  # the control headers
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("provider", String(64)),  # who delivered
    Column("endpoint", FreeText),
    Column("cost_usd", Money),  # what providers charge, all attempts; NULL: unknown
    Column("cost_basis", FreeText),
    Column("cost_certainty", String(32)),
    Column("billed_usd", Money),  # what the tenant is charged
    Column("normalization", Json),  # the receipt, prompts left out
    Column("images_delivered", Integer, nullable=False, server_default="0"),
    Column("error", Json),
    Column("client_gone", Boolean(create_constraint=False), nullable=False, server_default=false()),
    _one_of("state", JobState),
    _one_of("cost_certainty", Certainty),
    Index(None, "tenant_id", "created_at"),
    Index(None, "state"),
)
"""One request as its tenant sees it."""

attempt = Table(
    "attempt",
    metadata,
    Column("id", String(80), primary_key=True),  # the job's id and the position, so that a repeated write is noticed
    Column("tenant_id", String(64), ForeignKey("tenant.id"), nullable=False),
    Column("job_id", String(64), ForeignKey("job.id"), nullable=False),
    Column("position", Integer, nullable=False),  # 0, 1, … in the order tried
    Column("provider", String(64), nullable=False),
    Column("endpoint", FreeText, nullable=False),
    Column("plan", Json, nullable=False),  # decisions, calls and steps, prompts left out
    Column("outcome", String(32), nullable=False),  # running, ok, interrupted, or the kind of failure
    Column("detail", FreeText),  # for the operator
    Column("started_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    Column("cost_usd", Money),  # NULL: unknown
    Column("cost_basis", FreeText),
    Column("cost_certainty", String(32)),
    _one_of("outcome", ATTEMPT_OUTCOMES),
    _one_of("cost_certainty", Certainty),
    UniqueConstraint("job_id", "position"),
    Index(None, "tenant_id", "started_at"),
)
"""One offer tried for a job."""

ticket = Table(
    "ticket",
    metadata,
    Column("id", String(96), primary_key=True),  # the attempt's id and the call's index
    Column("tenant_id", String(64), ForeignKey("tenant.id"), nullable=False),
    Column("attempt_id", String(80), ForeignKey("attempt.id"), nullable=False),
    Column("call_index", Integer, nullable=False),
    Column("provider", String(64), nullable=False),
    Column("endpoint", FreeText, nullable=False),
    Column("provider_id", FreeText, nullable=False),  # the provider's own id for the work
    Column("submitted_at", UtcDateTime, nullable=False),
    Column("state", String(32), nullable=False),
    Column("usage", Json),  # what the provider says it used
    _one_of("state", TicketState),
    UniqueConstraint("attempt_id", "call_index"),
    Index(None, "state"),
)
"""A provider's receipt for one call: enough to ask again after a crash instead of paying twice."""

asset = Table(
    "asset",
    metadata,
    Column("id", String(64), primary_key=True),  # img_…
    Column("tenant_id", String(64), ForeignKey("tenant.id"), nullable=False),
    Column("job_id", String(64), ForeignKey("job.id"), nullable=False),
    Column("position", Integer, nullable=False),  # in the answer
    Column("key", String(512), nullable=False),  # in the asset store
    Column("format", String(16), nullable=False),  # normalization.pixels.formats.Format
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),  # NULL: kept
    UniqueConstraint("job_id", "position"),
    Index(None, "tenant_id", "created_at"),
    Index(None, "expires_at"),
)
"""A delivered picture."""

TENANT_TABLES = MappingProxyType({table.name: table for table in metadata.sorted_tables if "tenant_id" in table.c})
"""The tables whose rows belong to a tenant."""
