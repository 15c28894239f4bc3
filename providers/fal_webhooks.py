"""Whether a webhook comes from fal: Ed25519 over its headers and the hash of its body, with keys that fal publishes.

A webhook says only that a request is over; what came of it is asked for as ever, which brings what was billed along.
Source: https://docs.fal.ai/model-apis/model-endpoints/webhooks.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pybase64
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from providers import http

LEEWAY = timedelta(seconds=300)
"""How far a webhook's time may be from ours."""

KEYS_GOOD_FOR = timedelta(hours=24)
"""The longest that keys may be kept."""

_ASK_AGAIN = timedelta(minutes=1)
"""At most so often are keys asked for because none of them fits: anybody can send what fits none."""

_TIMEOUT = http.Timeout(10.0, connect=5.0)
_MAX_KEYS_BYTES = 2**18
_MAX_KEYS = 32


class WebhookRefused(ValueError):
    """A webhook that is not fal's, or not of now. The message is for the operator's log."""


@dataclass(frozen=True, slots=True)
class Signed:
    """What a webhook's headers claim."""

    request_id: str
    """Which request is over: to be found among those that were submitted."""
    user_id: str
    at: datetime
    """UTC."""
    signature: bytes
    message: bytes
    """What was signed."""


def read_signed(headers: Mapping[str, str], body: bytes, now: datetime) -> Signed:
    """Read the four headers, and put together what was signed.

    Args:
        headers: Of the webhook; found whatever their case.
        body: As it came, byte for byte.
        now: UTC.

    Raises:
        WebhookRefused: If a header is missing or unreadable, or the time is more than 300 s off.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    request_id, user_id, timestamp, signature = (
        _header(lower, name) for name in ("request-id", "user-id", "timestamp", "signature")
    )
    if not (timestamp.isascii() and timestamp.isdigit()):
        raise WebhookRefused("the time is not a number")
    seconds = int(timestamp[:15])
    if abs(seconds - now.timestamp()) > LEEWAY.total_seconds():
        raise WebhookRefused("the time is too far from ours")
    try:
        raw = bytes.fromhex(signature)
    except ValueError as exc:
        raise WebhookRefused("the signature is not hexadecimal") from exc
    message = "\n".join((request_id, user_id, timestamp, hashlib.sha256(body).hexdigest()))
    return Signed(request_id, user_id, now + timedelta(seconds=seconds - now.timestamp()), raw, message.encode())


def is_signed(signed: Signed, keys: Sequence[Ed25519PublicKey]) -> bool:
    """Whether any of the keys has signed it."""
    return any(_fits(key, signed) for key in keys)


def read_keys(document: bytes) -> tuple[Ed25519PublicKey, ...]:
    """The Ed25519 keys of a JWK set; others are passed over. Raises `ValueError` if it is no such set. Source: RFC 8037."""
    try:
        entries = msgspec.json.decode(document, type=_KeySet).keys
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ValueError("not a set of keys") from exc
    return tuple(key for entry in entries[:_MAX_KEYS] if (key := _key(entry)))


class FalWebhooks:
    """Verifies webhooks, with keys fetched when needed and kept for at most a day."""

    def __init__(self, rest_url: str, *, client: http.AsyncClient, now: Callable[[], datetime]) -> None:
        """Take where fal's storage API is, which publishes the keys, a client without a guard, and the time in UTC."""
        self._url = f"{rest_url.rstrip('/')}/.well-known/jwks.json"
        self._client = client
        self._now = now
        self._keys: tuple[Ed25519PublicKey, ...] = ()
        self._asked_at: datetime | None = None
        self._fetched_at: datetime | None = None
        self._fetching = asyncio.Lock()

    async def verify(self, headers: Mapping[str, str], body: bytes) -> str:
        """The id of the request that is over.

        Raises:
            WebhookRefused: If it is not fal's, or the keys cannot be had.
        """
        signed = read_signed(headers, body, self._now())
        if is_signed(signed, await self._fresh_keys(KEYS_GOOD_FOR)):
            return signed.request_id
        if is_signed(signed, await self._fresh_keys(_ASK_AGAIN)):  # fal may have changed its keys
            return signed.request_id
        raise WebhookRefused("no key of fal's has signed it")

    async def _fresh_keys(self, no_older_than: timedelta) -> tuple[Ed25519PublicKey, ...]:
        """The keys; asked for anew if they are older, but not if that was tried a moment ago. None past their day."""
        async with self._fetching:
            if not self._is_within(self._fetched_at, no_older_than) and not self._is_within(self._asked_at, _ASK_AGAIN):
                self._asked_at = self._now()
                await self._fetch()
            return self._keys if self._is_within(self._fetched_at, KEYS_GOOD_FOR) else ()

    def _is_within(self, when: datetime | None, span: timedelta) -> bool:
        return when is not None and self._now() - when < span

    async def _fetch(self) -> None:
        """Replace the keys; those that there are stay where that fails."""
        try:
            async with self._client.stream("GET", self._url, timeout=_TIMEOUT, follow_redirects=False) as response:
                content = await _read(response)
        except http.HTTPError:
            return
        try:
            keys = read_keys(content) if response.status_code == 200 else ()
        except ValueError:
            return
        if keys:
            self._keys, self._fetched_at = keys, self._now()


class _KeySet(msgspec.Struct):
    keys: list[Any]


async def _read(response: http.Response) -> bytes:
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > _MAX_KEYS_BYTES:
            return b""
    return bytes(content)


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(f"x-fal-webhook-{name}", "")
    if not value:
        raise WebhookRefused(f"the header X-Fal-Webhook-{name.title()} is missing")
    return value


def _fits(key: Ed25519PublicKey, signed: Signed) -> bool:
    try:
        key.verify(signed.signature, signed.message)
    except InvalidSignature:
        return False
    return True


def _key(entry: Any) -> Ed25519PublicKey | None:
    match entry:
        case {"kty": "OKP", "crv": "Ed25519", "x": str(text)}:
            try:
                raw = pybase64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
                return Ed25519PublicKey.from_public_bytes(raw)
            except ValueError:
                return None
        case _:
            return None
