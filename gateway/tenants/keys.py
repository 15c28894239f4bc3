"""What an API key looks like, and the only form in which it is kept. Pure."""

import hmac
import re
from base64 import b32encode

PREFIX = "igw_"

RANDOM_BYTES = 25
"""200 random bits: exactly 40 letters of base 32. With so many, a fast keyed hash is as good as a slow one."""

_SECRET = re.compile(rf"{PREFIX}[a-z2-7]{{{RANDOM_BYTES * 8 // 5}}}")

_SHOWN = 4


def new_secret(randomness: bytes) -> str:
    """Make a key from fresh random bytes: letters and digits only, so that a double click takes all of it.

    Raises:
        ValueError: If there are fewer than `RANDOM_BYTES` of them.
    """
    if len(randomness) < RANDOM_BYTES:
        raise ValueError(f"a key needs {RANDOM_BYTES} random bytes")
    return PREFIX + b32encode(randomness[:RANDOM_BYTES]).decode().lower()


def is_well_formed(secret: str) -> bool:
    """Whether it could be a key at all, so that nonsense is not looked up."""
    return _SECRET.fullmatch(secret) is not None


def digest(secret: str, pepper: bytes) -> str:
    """What is stored of a key: its HMAC-SHA-256 in hex, keyed by the server's own secret, for this purpose only."""
    return hmac.digest(pepper, b"image-gateway api key\0" + secret.encode("utf-8", "surrogatepass"), "sha256").hex()


def visible_prefix(secret: str) -> str:
    """The first characters, by which people recognise a key."""
    return secret[: len(PREFIX) + _SHOWN]


def masked(secret: str) -> str:
    """A key for messages and logs, such as `igw_ab***wxyz`. Whatever is too short to be one is hidden wholly."""
    if len(secret) < 5 * _SHOWN:
        return "***"
    return f"{secret[: len(PREFIX) + 2]}***{secret[-_SHOWN:]}"
