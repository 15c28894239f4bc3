"""The body on the wire: gaps end, early answers arrive, and nothing waits without end."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.api.body import BodyTimedOut, ClientGone, DrainedBody, body_chunks

Serve = Callable[[Any], Awaitable[int]]


def scope(*headers: tuple[bytes, bytes]) -> Any:
    return {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"9"), *headers]}


class Wire:
    """A server's `receive` and `send`, from memory."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = list(messages)
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> Any:
        if not self.messages:
            await asyncio.Event().wait()
        return self.messages.pop(0)

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def closes(self) -> bool:
        return (b"connection", b"close") in self.sent[0]["headers"]


def body(content: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": content, "more_body": more}


async def answer_at_once(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


async def test_chunks_come_until_the_end() -> None:
    """The pieces of a body come one by one; empty ones are skipped."""
    wire = Wire(body(b"a", more=True), body(b"", more=True), body(b"b"))

    assert [chunk async for chunk in body_chunks(wire.receive)] == [b"a", b"b"]


async def test_a_disconnect_is_told() -> None:
    """A client that leaves before the end is `ClientGone`, not a short body."""
    wire = Wire(body(b"a", more=True), {"type": "http.disconnect"})

    with pytest.raises(ClientGone):
        _ = [chunk async for chunk in body_chunks(wire.receive)]


async def test_silence_in_a_body_ends() -> None:
    """A client that stops sending is told so after the gap, as a 400, and the connection is closed behind the answer."""
    wire = Wire(body(b"a", more=True))
    caught: list[BodyTimedOut] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            _ = [chunk async for chunk in body_chunks(receive)]
        except BodyTimedOut as error:
            caught.append(error)
        await answer_at_once(scope, receive, send)

    await DrainedBody(app, gap_s=0.01)(scope(), wire.receive, wire.send)

    assert (caught[0].status, caught[0].code) == (400, "request_timeout")
    assert wire.closes


async def test_waiting_for_a_disconnect_has_no_deadline() -> None:
    """Once the body is read, `receive` waits for as long as the client stays."""
    wire = Wire(body(b"a"))

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        await receive()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(), 0.05)

    await DrainedBody(app, gap_s=0.001)(scope(), wire.receive, wire.send)


async def test_an_early_answer_waits_for_the_body() -> None:
    """The rest of a body is read before the answer starts, and the connection stays good."""
    wire = Wire(body(b"a", more=True), body(b"b", more=True), body(b"c"))

    await DrainedBody(answer_at_once)(scope(), wire.receive, wire.send)

    assert wire.messages == []
    assert not wire.closes


async def test_draining_is_bounded_in_bytes_and_seconds() -> None:
    """Past either bound the answer goes out, and the connection is closed."""
    long = Wire(*[body(b"x" * 10, more=True)] * 9)
    slow = Wire(body(b"x", more=True))

    await DrainedBody(answer_at_once, drain_bytes=20)(scope(), long.receive, long.send)
    await DrainedBody(answer_at_once, drain_s=0.01)(scope(), slow.receive, slow.send)

    assert (len(long.messages), long.closes) == (7, True)
    assert slow.closes


async def test_a_client_that_asks_first_is_not_made_to_send() -> None:
    """With `Expect: 100-continue` and nothing read, the answer comes at once: the body was never sent."""
    wire = Wire()

    await DrainedBody(answer_at_once)(scope((b"expect", b"100-continue")), wire.receive, wire.send)

    assert wire.closes


async def test_requests_without_a_body_are_left_alone() -> None:
    """Without a body the application gets the server's own functions."""
    wire = Wire()
    seen: list[Any] = []

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        seen.append(receive)

    await DrainedBody(app)({"type": "http", "headers": [(b"content-length", b"0")]}, wire.receive, wire.send)

    assert seen == [wire.receive]


async def test_a_client_sees_the_refusal_of_a_large_body(serve: Serve) -> None:
    """On a real connection a 12 MB upload that is refused at once still ends with the answer, not with a reset."""
    port = await serve(DrainedBody(answer_at_once))

    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 12000000\r\n\r\n")
        for _ in range(12):
            writer.write(bytes(1_000_000))
            await writer.drain()
        assert (await reader.readline()).startswith(b"HTTP/1.1 401")
        writer.close()
        await writer.wait_closed()
