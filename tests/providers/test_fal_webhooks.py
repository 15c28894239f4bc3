"""Which webhooks are believed to be fal's."""

import asyncio
import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from providers import http
from providers.fal_webhooks import FalWebhooks, WebhookRefused, is_signed, read_keys, read_signed
from tests.providers.conftest import Serve, answer, read_request

_NOW = datetime(2026, 1, 2, tzinfo=UTC)
_BODY = b'{"request_id": "r1", "status": "OK", "payload": {}}'
_OURS = Ed25519PrivateKey.generate()
_OTHER = Ed25519PrivateKey.generate()


def _jwks(*keys: Ed25519PrivateKey) -> bytes:
    entries = [base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode().rstrip("=") for key in keys]
    return json.dumps({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": entry} for entry in entries]}).encode()


def _headers(key: Ed25519PrivateKey = _OURS, body: bytes = _BODY, at: datetime = _NOW) -> dict[str, str]:
    timestamp = str(int(at.timestamp()))
    message = f"r1\nuser-1\n{timestamp}\n{hashlib.sha256(body).hexdigest()}"
    return {
        "X-Fal-Webhook-Request-Id": "r1",
        "X-Fal-Webhook-User-Id": "user-1",
        "X-Fal-Webhook-Timestamp": timestamp,
        "X-Fal-Webhook-Signature": key.sign(message.encode()).hex(),
    }


class Keys:
    """Publishes keys, and counts who asks."""

    def __init__(self, document: bytes) -> None:
        self.document = document
        self.status = "200 OK"
        self.asked: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await read_request(reader)
            self.asked.append(head.decode().split(" ")[1])
            writer.write(answer(self.document, self.status))


class Clock:
    """A time that moves when it is told."""

    def __init__(self) -> None:
        self.now = _NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.mark.parametrize("leave_out", list(_headers()))
def test_every_header_is_needed(leave_out: str) -> None:
    """Without one of them nothing can be said."""
    headers = {name: value for name, value in _headers().items() if name != leave_out}
    with pytest.raises(WebhookRefused, match="missing"):
        read_signed(headers, _BODY, _NOW)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Timestamp", "soon"),
        ("Timestamp", "-5"),
        ("Timestamp", "9" * 5000),
        ("Timestamp", "٣"),
        ("Signature", "xyz"),
        ("Signature", "abc"),
    ],
)
def test_headers_without_sense_are_refused(name: str, value: str) -> None:
    """They never end in another error."""
    with pytest.raises(WebhookRefused):
        read_signed(_headers() | {f"X-Fal-Webhook-{name}": value}, _BODY, _NOW)


@pytest.mark.parametrize(("off_s", "taken"), [(-301, False), (-300, True), (0, True), (300, True), (301, False)])
def test_the_time_must_be_near(off_s: int, taken: bool) -> None:
    """300 s either way, against webhooks that somebody kept."""
    headers = _headers(at=_NOW + timedelta(seconds=off_s))
    if taken:
        assert read_signed(headers, _BODY, _NOW).at == _NOW + timedelta(seconds=off_s)
        return
    with pytest.raises(WebhookRefused, match="time"):
        read_signed(headers, _BODY, _NOW)


def test_a_signature_is_over_headers_and_body() -> None:
    """Any of the keys may have signed; nothing may have been changed since."""
    keys = read_keys(_jwks(_OTHER, _OURS))
    assert is_signed(read_signed(_headers(), _BODY, _NOW), keys)
    assert is_signed(read_signed({name.lower(): value for name, value in _headers().items()}, _BODY, _NOW), keys)
    assert not is_signed(read_signed(_headers(), _BODY + b" ", _NOW), keys)
    assert not is_signed(read_signed(_headers() | {"X-Fal-Webhook-Request-Id": "r2"}, _BODY, _NOW), keys)
    assert not is_signed(read_signed(_headers() | {"X-Fal-Webhook-Signature": "00"}, _BODY, _NOW), keys)
    assert not is_signed(read_signed(_headers(), _BODY, _NOW), read_keys(_jwks(_OTHER)))
    assert not is_signed(read_signed(_headers(), _BODY, _NOW), ())


def test_only_keys_of_the_agreed_kind_are_taken() -> None:
    """Others in the set are passed over; what is no set is an error."""
    odd = [{"kty": "RSA", "n": "x"}, {"kty": "OKP", "crv": "Ed25519", "x": "!"}, {"kty": "OKP", "crv": "Ed25519", "x": "AA"}, 7]
    assert read_keys(json.dumps({"keys": odd}).encode()) == ()
    for document in (b"", b"[]", b"{}", b'{"keys": 7}', b"<html>", b"\xff", b'{"keys":' + b"[" * 9999):
        with pytest.raises(ValueError, match="not a set"):
            read_keys(document)


async def test_keys_are_fetched_once_a_day(serve: Serve, client: http.AsyncClient) -> None:
    """And asked for at fal's documented place."""
    keys, clock = Keys(_jwks(_OURS)), Clock()
    webhooks = FalWebhooks(await serve(keys), client=client, now=clock)
    await asyncio.gather(*(webhooks.verify(_headers(), _BODY) for _ in range(3)))
    assert keys.asked == ["/.well-known/jwks.json"]
    clock.now += timedelta(hours=24)
    assert await webhooks.verify(_headers(at=clock.now), _BODY) == "r1"
    assert len(keys.asked) == 2


async def test_keys_may_change(serve: Serve, client: http.AsyncClient) -> None:
    """What fits no key makes them be fetched once more, but not by every forgery."""
    keys, clock = Keys(_jwks(_OTHER)), Clock()
    webhooks = FalWebhooks(await serve(keys), client=client, now=clock)
    await webhooks.verify(_headers(_OTHER), _BODY)
    clock.now += timedelta(hours=1)
    keys.document = _jwks(_OURS)
    assert await webhooks.verify(_headers(at=clock.now), _BODY) == "r1"
    for _ in range(5):
        with pytest.raises(WebhookRefused, match="no key"):
            await webhooks.verify(_headers(_OTHER, at=clock.now), _BODY)
    assert len(keys.asked) == 2


async def test_keys_that_cannot_be_fetched_leave_the_old_ones(serve: Serve, client: http.AsyncClient) -> None:
    """For their day; after that nothing is believed."""
    keys, clock = Keys(_jwks(_OURS)), Clock()
    webhooks = FalWebhooks(await serve(keys), client=client, now=clock)
    await webhooks.verify(_headers(), _BODY)
    keys.status = "500 No"
    clock.now += timedelta(hours=2)
    with pytest.raises(WebhookRefused):
        await webhooks.verify(_headers(_OTHER, at=clock.now), _BODY)
    assert await webhooks.verify(_headers(at=clock.now), _BODY) == "r1"
    clock.now += timedelta(hours=24)
    with pytest.raises(WebhookRefused):
        await webhooks.verify(_headers(at=clock.now), _BODY)


async def test_without_keys_nothing_is_believed(client: http.AsyncClient) -> None:
    """Nobody is there to ask."""
    webhooks = FalWebhooks("http://127.0.0.1:1", client=client, now=Clock())
    with pytest.raises(WebhookRefused):
        await webhooks.verify(_headers(), _BODY)
