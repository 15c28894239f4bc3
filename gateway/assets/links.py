"""Signed, expiring links to stored pictures: whoever has the link may fetch the picture until it ends. Pure."""

import hashlib
import hmac
import re
from base64 import urlsafe_b64encode
from enum import StrEnum
from urllib.parse import urlencode

_EXPIRY = re.compile(r"[0-9]{1,12}")


class LinkState(StrEnum):
    """What a link is worth."""

    GOOD = "good"
    EXPIRED = "expired"
    """Signed by us, but its time is over."""
    FORGED = "forged"
    """Not signed by us for this asset and this expiry."""


def sign_link(asset_id: str, suffix: str, expires: int, secret: bytes) -> str:
    """Return the path and query of a link, to be put behind the gateway's public address.

    Args:
        asset_id: The asset's id; letters, digits, `_` and `-`.
        suffix: Of the file name, without the dot: `png`.
        expires: Unix seconds from which on the link is void.
        secret: The gateway's secret.
    """
    query = urlencode({"expires": expires, "signature": _signature(f"{asset_id}.{suffix}", str(expires), secret)})
    return f"/assets/{asset_id}.{suffix}?{query}"


def check_link(name: str, expires: str, signature: str, secret: bytes, now: float) -> LinkState:
    """Say what a link is worth.

    Args:
        name: The last part of the path: `{id}.{suffix}`.
        expires: As it stands in the query; anything may stand there.
        signature: As it stands in the query.
        secret: The gateway's secret.
        now: Unix seconds.
    """
    if not _EXPIRY.fullmatch(expires):
        return LinkState.FORGED
    if not hmac.compare_digest(_signature(name, expires, secret).encode(), signature.encode()):
        return LinkState.FORGED
    return LinkState.GOOD if now < int(expires) else LinkState.EXPIRED


def _signature(name: str, expires: str, secret: bytes) -> str:
    """HMAC-SHA-256, with the purpose in front, so that no other use of the secret can be passed off as a link."""
    digest = hmac.digest(secret, f"asset-link\n{name}\n{expires}".encode(), hashlib.sha256)
    return urlsafe_b64encode(digest).rstrip(b"=").decode()
