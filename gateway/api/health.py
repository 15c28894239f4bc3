"""Whether the process lives, whether it can take work, and what it counts."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from litestar import Response, Router, get
from litestar.di import NamedDependency
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gateway.observe.metrics import Metrics

Check = Callable[[], Awaitable[None]]
"""Returns if a part is ready, raises if it is not."""

Readiness = Mapping[str, Check]
"""The parts without which no request can be served."""


@get("/health/live", summary="Whether the process lives", operation_id="live")
async def live() -> dict[str, str]:
    """Answers as long as the event loop turns."""
    return {"status": "ok"}


@get("/health/ready", summary="Whether work is taken", operation_id="ready")
async def ready(readiness: NamedDependency[Readiness]) -> Response[dict[str, Any]]:
    """200 if every part is ready, else 503; each part with its state."""
    parts = {name: await _state(check) for name, check in readiness.items()}
    good = all(state == "ok" for state in parts.values())
    body = {"status": "ok" if good else "unavailable", "parts": parts}
    return Response(body, status_code=200 if good else 503)


@get("/metrics", summary="Counters for Prometheus", operation_id="metrics", media_type="text/plain")
async def metrics_page(metrics: NamedDependency[Metrics]) -> Response[bytes]:
    """Prometheus' text format."""
    return Response(generate_latest(metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})


async def _state(check: Check) -> str:
    try:
        await check()
    except Exception as error:  # noqa: BLE001 -- whatever a part raises, it is not ready
        return str(error) or type(error).__name__
    return "ok"


health_router = Router("/", route_handlers=[live, ready, metrics_page], tags=["operation"])
