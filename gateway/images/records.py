"""Jobs as they are recorded, for whoever shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Row

from gateway.db.scope import of_tenant
from gateway.db.tables import JobState, asset, attempt, job
from gateway.images.printable import restored
from normalization.pixels.formats import Format, Size


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
    cost_certainty: str | None

    @property
    def duration_ms(self) -> int | None:
        """How long it took; None while it runs."""
        return None if self.finished_at is None else round((self.finished_at - self.started_at).total_seconds() * 1000)


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


def read_job(connection: Connection, tenant_id: str, job_id: str) -> JobRecord | None:
    """A tenant's job with its attempts and pictures; None if this tenant has none of that id."""
    found = connection.execute(of_tenant(job, tenant_id).where(job.c.id == job_id)).one_or_none()
    if found is None:
        return None
    attempts = of_tenant(attempt, tenant_id).where(attempt.c.job_id == job_id).order_by(attempt.c.position)
    assets = of_tenant(asset, tenant_id).where(asset.c.job_id == job_id).order_by(asset.c.position)
    return _job_record(found, connection.execute(attempts).all(), connection.execute(assets).all())


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
        cost_certainty=row.cost_certainty,
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
