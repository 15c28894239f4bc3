"""A request's body on the wire: read in pieces, never waited for without end, and read to its end before an early answer.

Nothing here knows what the body means.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import cast

from litestar.types import ASGIApp, HTTPReceiveMessage, HTTPRequestEvent, HTTPResponseStartEvent, Message, Receive, Scope, Send

from gateway.errors import BadRequest

MIB = 1024 * 1024


class ClientGone(BadRequest):
    """The client went away before its body was read. Answered like any error, though nobody is there to read it."""

    default_code = "client_closed_request"

    def __init__(self) -> None:
        super().__init__("the connection was closed before the request body was complete")


class BodyTimedOut(BadRequest):
    """The client stopped sending. 400 and not 408, because OpenAI's clients repeat a 408 by themselves."""

    default_code = "request_timeout"


async def body_chunks(receive: Receive) -> AsyncIterator[bytes]:
    """Give the body as it comes, in pieces of the server's choosing.

    Unlike litestar's `request.stream()` it has no limit of its own; whoever reads counts.

    Raises:
        ClientGone: If the client left before the end.
    """
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        event = cast("HTTPRequestEvent", message)  # an http scope has no third kind
        if chunk := event.get("body", b""):
            yield chunk
        if not event.get("more_body", False):
            return


class DrainedBody:
    """Outermost but for `RequestId`: no endless wait for a body, and no answer that the client cannot read.

    A server that closes a connection with unread bytes in it makes the client see a reset instead of the answer.
    So when an answer starts early (a wrong key, a body too large), the rest of the body is read and dropped first, up to
    `drain_bytes` and `drain_s`; past those, the connection is closed.
    """

    def __init__(self, app: ASGIApp, *, gap_s: float = 30.0, drain_bytes: int = 128 * MIB, drain_s: float = 20.0) -> None:
        """Wrap `app`.

        Args:
            app: The application whose request bodies are looked after.
            gap_s: The longest silence between two pieces of a body before `BodyTimedOut` is raised in the reader.
            drain_bytes: How much of an unread body is dropped at most.
            drain_s: How long that may take in all.
        """
        self._app = app
        self._gap_s = gap_s
        self._drain_bytes = drain_bytes
        self._drain_s = drain_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or not _announces_body(scope):
            await self._app(scope, receive, send)
            return
        body = _Body(receive, self._gap_s, waits_for_continue=_header(scope, b"expect").lower() == b"100-continue")

        async def send_after_body(message: Message) -> None:
            if message["type"] == "http.response.start" and not await body.drain(self._drain_bytes, self._drain_s):
                message = _closing(message)
            await send(message)

        await self._app(scope, body.receive, send_after_body)


class _Body:
    """Where one request's body stands."""

    def __init__(self, receive: Receive, gap_s: float, *, waits_for_continue: bool) -> None:
        self._receive = receive
        self._gap_s = gap_s
        self._waits_for_continue = waits_for_continue
        self._ended = False
        self._stalled = False

    async def receive(self) -> HTTPReceiveMessage:
        """The next message. Once the body has ended there is only a disconnect to wait for, and that may take long."""
        self._waits_for_continue = False  # the server asks the client to go on when it is first asked for a message
        if self._ended:
            return cast("HTTPReceiveMessage", await self._receive())
        try:
            async with asyncio.timeout(self._gap_s):
                message = await self._receive()
        except TimeoutError:
            self._stalled = True
            raise BodyTimedOut(f"nothing of the request body arrived for {self._gap_s:g} s; send it without pauses") from None
        self._ended = message["type"] == "http.disconnect" or not cast("HTTPRequestEvent", message).get("more_body", False)
        return cast("HTTPReceiveMessage", message)

    async def drain(self, max_bytes: int, max_s: float) -> bool:
        """Read and drop what is left; return whether the end was reached, so that the connection is good for more."""
        if self._ended or self._stalled or self._waits_for_continue:
            return self._ended
        try:
            async with asyncio.timeout(max_s):
                while not self._ended and max_bytes > 0:
                    message = await self._receive()
                    event = cast("HTTPRequestEvent", message)
                    max_bytes -= len(event.get("body", b""))
                    self._ended = message["type"] == "http.disconnect" or not event.get("more_body", False)
        except TimeoutError:
            self._stalled = True
        return self._ended


def _announces_body(scope: Scope) -> bool:
    """Whether there is anything to read: asking a server for the body of a GET costs a turn of the loop for nothing."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0") for name, value in scope["headers"]
    )


def _header(scope: Scope, wanted: bytes) -> bytes:
    return next((value for name, value in scope["headers"] if name == wanted), b"")


def _closing(message: Message) -> Message:
    """The same start of an answer, after which the server closes the connection."""
    start = cast("HTTPResponseStartEvent", message)
    return cast("Message", {**start, "headers": [*start.get("headers", []), (b"connection", b"close")]})
