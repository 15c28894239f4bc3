"""`GET /v1/jobs/{id}`: how a request stands or ended, by its request id; the way back to a picture whose answer got lost."""

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

from litestar import Request, Router, get
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath

from gateway.api.answer import Delivered, members
from gateway.api.auth import caller_of
from gateway.api.images import Links
from gateway.assets.store import AssetMissing, StorageFailed
from gateway.db.tables import JobState
from gateway.errors import NotFound
from gateway.images.finishing import MAX_RESULT_PIXELS
from gateway.images.records import AssetRecord, JobRecord
from gateway.images.scratch import Scratch
from gateway.images.services import Services
from normalization.pixels.formats import FORMATS, ImageInfo
from normalization.pixels.probe import InvalidImage, ProbeLimits, probe
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
        "result": await _result(record, base, links, services) if record.state is JobState.COMPLETED else None,
        "error": record.error,
    }


_STATES = {JobState.INTERRUPTED: "failed"}
"""For callers an interrupted job has failed; its error says how."""


async def _result(record: JobRecord, base: str, links: Links, by: Services) -> dict[str, Any]:
    """The answer again, as links. Equal pictures that stood in it several times do so here, unless some have expired."""
    urls = [links.to(asset.id, asset.format, base) for asset in record.assets]
    expired = [asset.position for asset in record.assets] != list(range(len(urls))) or len(urls) < min(1, record.images_delivered)
    repeated = urls if expired else (urls * record.images_delivered)[: record.images_delivered]
    return {
        "created": int(record.created_at.timestamp()),
        "data": [{"url": url} for url in repeated],
        **({"expired": True} if expired else members(await _delivered(record.assets[0], by)) if urls else {}),
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


async def _delivered(first: AssetRecord, by: Services) -> Delivered:
    """What the answer said beside its pictures, measured again where the journal does not have it."""
    alpha = await _is_transparent(first, by) if FORMATS[first.format].alpha else False
    background = None if alpha is None else "transparent" if alpha else "opaque"
    return Delivered(background, first.format, first.size)


async def _is_transparent(asset: AssetRecord, by: Services) -> bool | None:
    """Whether a stored picture has transparency; None if it cannot be had any more."""
    with Scratch(by.spool) as scratch:
        path = scratch.path()
        try:
            async with aclosing(by.store.read(asset.key)) as blocks:
                with path.open("wb") as file:
                    async for block in blocks:
                        await asyncio.to_thread(file.write, block)
            return (await asyncio.to_thread(_look_at, path)).alpha
        except (AssetMissing, StorageFailed, InvalidImage):
            return None


def _look_at(path: Path) -> ImageInfo:
    with path.open("rb") as stream:
        return probe(stream, ProbeLimits(max_pixels=MAX_RESULT_PIXELS, max_frames=10_000))


jobs_router = Router("/", route_handlers=[show_job])
