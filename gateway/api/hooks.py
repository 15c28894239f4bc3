"""`POST /webhooks/{provider}`: a provider says that work is over.

It is verified, and then only a nudge: what is believed is the poll that follows.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from litestar import Request, Router, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath

from gateway.api.body import body_chunks
from gateway.errors import NotFound, TooLarge, Unauthenticated
from providers.drive import Nudges

Verify = Callable[[Mapping[str, str], bytes], Awaitable[str]]
"""The id of the work that a delivery speaks of; raises `ValueError` if it is not the provider's."""

Hooks = Mapping[str, Verify]
"""By provider."""

_MAX_BYTES = 4 * 2**20


@post("/webhooks/{provider:str}", status_code=200, summary="A provider's webhook", include_in_schema=False)
async def take_webhook(
    request: Request[Any, Any, State], provider: FromPath[str], hooks: NamedDependency[Hooks], nudges: NamedDependency[Nudges]
) -> dict[str, bool]:
    """Wake whoever waits for the work. A delivery that nobody waits for is taken all the same: repeats are normal."""
    verify = hooks.get(provider)
    if verify is None:
        raise NotFound("No such webhook.")
    body = bytearray()
    async for chunk in body_chunks(request.receive):
        body += chunk
        if len(body) > _MAX_BYTES:
            raise TooLarge(f"a webhook has at most {_MAX_BYTES} bytes")
    try:
        work_id = await verify({name.lower(): value for name, value in request.headers.items()}, bytes(body))
    except ValueError as error:
        raise Unauthenticated(f"the delivery is refused: {error}") from error
    return {"awaited": nudges.nudge(provider, work_id)}


hooks_router = Router("/", route_handlers=[take_webhook])
