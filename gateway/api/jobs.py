"""`GET /v1/jobs/{id}`: how a request stands or ended, by its request id; the way back to a picture whose answer got lost."""

from typing import Any

from litestar import Request, Router, get
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath

from gateway.api.auth import caller_of
from gateway.api.images import Links
from gateway.db.tables import JobState
from gateway.errors import NotFound
from gateway.images.records import JobRecord
from gateway.images.services import Services
from normalization.pricing import money


@get("/v1/jobs/{job_id:str}", summary="Show one job", operation_id="retrieve_job", tags=["jobs"])
async def show_job(
    request: Request[Any, Any, State], job_id: FromPath[str], services: NamedDependency[Services], links: NamedDependency[Links]
) -> dict[str, Any]:
    """A job of the caller's tenant. A request id names the request's job."""
    base = links.base(request)
    record = await services.journal.get_job(caller_of(request).tenant_id, job_id)
    if record is None:
        shown = job_id if len(job_id) <= 64 else f"{job_id[:63]}…"
        raise NotFound(f"No such job: {shown}", param="id")
    return {
        "id": record.id,
        "object": "job",
        "state": _STATES.get(record.state, record.state.value),
        "created_at": int(record.created_at.timestamp()),
        "progress": 1.0 if record.state is JobState.COMPLETED else None,
        "result": _result(record, base, links) if record.state is JobState.COMPLETED else None,
        "error": record.error,
    }


_STATES = {JobState.INTERRUPTED: "failed"}
"""For callers an interrupted job has failed; its error says how."""


def _result(record: JobRecord, base: str, links: Links) -> dict[str, Any]:
    """The answer again, as links. Equal pictures that stood in it several times do so here."""
    urls = [links.to(asset.id, asset.format, base) for asset in record.assets]
    repeated = (urls * record.images_delivered)[: record.images_delivered]
    return {
        "created": int(record.created_at.timestamp()),
        "data": [{"url": url} for url in repeated],
        "metadata": {
            "request_id": record.id,
            "model": record.model,
            "provider": record.provider,
            "endpoint": record.endpoint,
            "cost": {
                "usd": money(record.cost_usd),
                "basis": record.cost_basis,
                "certainty": record.cost_certainty,
                "billed_usd": money(record.billed_usd),
            },
            "attempts": [
                {"provider": attempt.provider, "outcome": attempt.outcome, "ms": attempt.duration_ms} for attempt in record.attempts
            ],
            "normalization": record.normalization,
        },
    }


jobs_router = Router("/", route_handlers=[show_job])
