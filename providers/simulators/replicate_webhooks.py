"""Webhooks of the Replicate stand-in: signed as Standard Webhooks are; the last of a prediction is repeated until it is accepted.

Source: https://replicate.com/docs/topics/webhooks.
"""

import asyncio
import hmac
import secrets
import time
from base64 import b64encode
from hashlib import sha256
from typing import Any

import msgspec

from providers.http import AsyncClient, HTTPError, InvalidURL, create_client

_ATTEMPTS = 5
_FIRST_PAUSE_S = 1.0
"""Doubled after each refusal, so that the last attempt is about a minute after the end, in life."""
_ANSWER_S = 15


class Webhooks:
    """The account's signing secret, and the deliveries."""

    def __init__(self, speed: float) -> None:
        """Take how many times faster than life it is."""
        self._speed = speed
        self._key = secrets.token_bytes(24)
        self._client: AsyncClient | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def secret(self) -> str:
        """As `GET /webhooks/default/secret` shows it."""
        return f"whsec_{b64encode(self._key).decode()}"

    def signed(self, id_: str, body: bytes) -> dict[str, str]:
        """The headers of a delivery, made now."""
        stamp = str(int(time.time()))
        mac = hmac.digest(self._key, f"{id_}.{stamp}.".encode() + body, sha256)
        return {
            "content-type": "application/json",
            "webhook-id": id_,
            "webhook-timestamp": stamp,
            "webhook-signature": f"v1,{b64encode(mac).decode()}",
        }

    def send(self, url: str, prediction: dict[str, Any], *, is_last: bool) -> None:
        """Deliver in the background. Only the last one of a prediction is repeated."""
        body = msgspec.json.encode(prediction)
        task = asyncio.create_task(self._deliver(url, f"msg_{secrets.token_hex(12)}", body, _ATTEMPTS if is_last else 1))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    async def _deliver(self, url: str, id_: str, body: bytes, attempts: int) -> None:
        self._client = self._client or create_client(guard=None, user_agent="replicate-webhooks")
        for attempt in range(attempts):
            if attempt:
                await asyncio.sleep(_FIRST_PAUSE_S * 2**attempt / self._speed)
            try:
                answer = await self._client.post(url, content=body, headers=self.signed(id_, body), timeout=_ANSWER_S)
            except (HTTPError, InvalidURL):
                continue
            if answer.is_success:
                return
