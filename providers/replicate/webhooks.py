"""Whether a webhook's delivery is from Replicate."""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import datetime

TOLERANCE_S = 300.0
"""How far a delivery's time may be from ours. Source: standard-webhooks/standard-webhooks, and its libraries."""


class WebhookRefused(ValueError):
    """A delivery that Replicate did not sign, or signed long ago."""


def webhook_key(secret: str) -> bytes:
    """The signing key behind the `key` of `GET /webhooks/default/secret`. Raises `ValueError` if there is none in it."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error as exc:
        raise ValueError("the webhook secret is not base64") from exc
    if not key:
        raise ValueError("the webhook secret is empty")
    return key


def verify_webhook(headers: Mapping[str, str], body: bytes, *, key: bytes, now: datetime, tolerance_s: float = TOLERANCE_S) -> str:
    """Check that Replicate sent a delivery, and return its `webhook-id`, which stays the same when it is repeated.

    Args:
        headers: Of the delivery, names in lower case.
        body: As received, byte for byte.
        key: From `webhook_key`.
        now: UTC.
        tolerance_s: How far the delivery's own time may be from `now`, seconds, either way.

    Raises:
        WebhookRefused: If it is not genuine, or old, so that somebody may have kept it.

    Source: replicate.com/docs/topics/webhooks/verify-webhook.
    """
    delivery, sent, signatures = (headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
    if not (delivery and sent and signatures):
        raise WebhookRefused("the delivery is not signed")
    if not re.fullmatch(r"[0-9]{1,12}", sent) or abs(now.timestamp() - int(sent)) > tolerance_s:
        raise WebhookRefused("the delivery was not signed just now")
    digest = hmac.new(key, f"{delivery}.{sent}.".encode() + body, hashlib.sha256).digest()
    expected = b"v1," + base64.b64encode(digest)
    if not any(hmac.compare_digest(expected, given.encode("utf-8", "replace")) for given in signatures.split(" ")):
        raise WebhookRefused("the signature is not right")
    return delivery
