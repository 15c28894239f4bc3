"""fal's webhooks: signed with Ed25519, delivered until somebody acknowledges.

Source: https://docs.fal.ai/model-endpoints/webhooks.
"""

import asyncio
import hashlib
import time
from typing import Any
from uuid import uuid4

import msgspec
import pybase64
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from providers.http import HTTPError, InvalidURL, create_client

USER_ID = "sim-user"
_ATTEMPTS = 4
_FIRST_PAUSE_S = 1.0


class Webhooks:
    """A signing key, and the deliveries."""

    def __init__(self, speed: float) -> None:
        """Take how many times faster than life it is; one key for as long as it lives."""
        self._speed = speed
        self._key = Ed25519PrivateKey.generate()
        self._client = create_client(guard=None, user_agent="fal-webhooks")

    def jwks(self) -> dict[str, Any]:
        """What `/.well-known/jwks.json` says."""
        raw = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        x = pybase64.urlsafe_b64encode(raw).decode().rstrip("=")
        return {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x, "kid": "sim", "use": "sig", "alg": "EdDSA"}]}

    def headers(self, request_id: str, body: bytes) -> dict[str, str]:
        """The signature over a body, made now."""
        stamp = str(int(time.time()))
        message = "\n".join((request_id, USER_ID, stamp, hashlib.sha256(body).hexdigest()))
        return {
            "content-type": "application/json",
            "x-fal-webhook-request-id": request_id,
            "x-fal-webhook-user-id": USER_ID,
            "x-fal-webhook-timestamp": stamp,
            "x-fal-webhook-signature": self._key.sign(message.encode()).hex(),
        }

    async def deliver(self, url: str, request_id: str, outcome: dict[str, Any]) -> int:
        """POST an outcome until it is acknowledged, redirected or four times refused. Returns how often it was tried."""
        body = msgspec.json.encode({"request_id": request_id, "gateway_request_id": str(uuid4()), **outcome})
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                answer = await self._client.post(url, content=body, headers=self.headers(request_id, body), timeout=15)
            except (HTTPError, InvalidURL):
                pass
            else:
                if answer.status_code < 400:
                    return attempt
            await asyncio.sleep(_FIRST_PAUSE_S * 2**attempt / self._speed)
        return _ATTEMPTS

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()
