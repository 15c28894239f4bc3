"""Who is asking: a bearer key on every route but the public ones, checked before a byte of the body is read."""

from collections.abc import Awaitable, Callable
from typing import Any, cast

from litestar.connection import ASGIConnection
from litestar.types import ASGIApp, Receive, Scope, Send

from gateway.errors import Unauthenticated
from gateway.tenants.keys import masked
from gateway.tenants.service import Caller

PUBLIC = ("/", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/docs", "/assets", "/webhooks")
"""Paths that need no key, with all that lies below them (the root alone excepted).

Links to pictures and the webhooks of providers carry a signature instead.
"""

Authenticate = Callable[[str], Awaitable[Caller | None]]
"""The caller behind a secret; None if it is not known, revoked or expired."""


class Authentication:
    """Middleware that puts the `Caller` in `scope["state"]["caller"]`, or refuses."""

    def __init__(self, app: ASGIApp, *, authenticate: Authenticate) -> None:
        self._app = app
        self._authenticate = authenticate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and not is_public(scope["path"]) and scope["method"] != "OPTIONS":
            scope["state"]["caller"] = await self._caller(scope)
        await self._app(scope, receive, send)

    async def _caller(self, scope: Scope) -> Caller:
        secret = _bearer(next((value for name, value in scope["headers"] if name == b"authorization"), b""))
        if not secret:
            raise Unauthenticated("You didn't provide an API key. Send it as `Authorization: Bearer YOUR_KEY`.")
        caller = await self._authenticate(secret)
        if caller is None:
            shown = masked(secret)
            raise Unauthenticated(
                f"Incorrect API key provided: {shown}. `image-gateway keys create` makes one.", code="invalid_api_key"
            )
        return caller


def is_public(path: str) -> bool:
    """Whether a path may be asked for without a key."""
    return any(path == public or (public != "/" and path.startswith(f"{public}/")) for public in PUBLIC)


def caller_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Caller:
    """The caller that `Authentication` found."""
    return cast("Caller", connection.scope["state"]["caller"])


def _bearer(header: bytes) -> str:
    scheme, _, secret = header.decode("latin-1").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""
