"""What Replicate answers: predictions, files, problems. Source of all shapes: api.replicate.com/openapi.json."""

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import msgspec

from providers import http
from providers.base import Usage

MAX_SHORT_BYTES = 2**18

PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What may be put into a path."""

ADDRESS = re.compile(r"https?://", re.IGNORECASE)

ENDED = frozenset({"succeeded", "failed", "canceled", "aborted"})
"""The states of a prediction that is over. `aborted`: its deadline passed before it was begun."""


class Unusable(Exception):
    """An answer that does not say what was asked."""


class Prediction(msgspec.Struct):
    """What is read of a prediction. Only `id` and `status` can be relied on."""

    id: str
    status: str
    model: str | None = None
    version: str | None = None
    input: Any = None
    output: Any = None
    error: Any = None
    metrics: dict[str, Any] | None = None
    created_at: str | None = None
    deadline: str | None = None
    data_removed: bool | None = None


class PredictionPage(msgspec.Struct):
    """Predictions, newest first."""

    results: list[Prediction]
    next: str | None = None
    """The address of the next page."""


class FileUrls(msgspec.Struct):
    """Where an uploaded file is."""

    get: str


class File(msgspec.Struct):
    """An uploaded file."""

    id: str
    urls: FileUrls


@dataclass(frozen=True, slots=True)
class Said:
    """A short answer."""

    status: int
    text: str
    document: Any
    """The JSON in it; None if there is none."""
    retry_after: str | None
    """The header."""

    def __str__(self) -> str:
        return f"status {self.status}: {self.text}"


async def read_short(response: http.Response) -> Said:
    """Read at most the beginning of an answer that should be short. Its status is an answer even if the rest never comes."""
    content = bytearray()
    with suppress(http.HTTPError):
        async for piece in response.aiter_raw():
            content += piece
            if len(content) > MAX_SHORT_BYTES:
                break
    text = content[:2000].decode("utf-8", "replace")
    return Said(response.status_code, text, _json(content), response.headers.get("retry-after"))


def _json(content: bytearray) -> Any:
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def texts(output: Any) -> list[str]:
    """All strings of an output: a model gives one, a list, or an object of them."""
    match output:
        case str():
            return [output]
        case list():
            return [text for item in cast("list[Any]", output) for text in texts(item)]
        case dict():
            return [text for item in cast("dict[str, Any]", output).values() for text in texts(item)]
        case _:
            return []


def usage(prediction: Prediction) -> Usage:
    """`predict_time` is what is billed where seconds are: without queue and cold boot. Absent if it never ran."""
    metrics = prediction.metrics or {}
    numbers = {
        name: str(value) for name, value in metrics.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    seconds = numbers.get("predict_time")
    return Usage(seconds=None if seconds is None else Decimal(seconds), reported=numbers)


def member(document: Any, key: str) -> Any:
    """One member of what may be an object; None if it has none."""
    return cast("dict[str, Any]", document).get(key) if isinstance(document, dict) else None


def time_of(text: str | None) -> datetime | None:
    """A time of the API, UTC; None if it is not one."""
    try:
        return aware(datetime.fromisoformat(text or ""))
    except ValueError:
        return None


def aware(time: datetime) -> datetime:
    """The same time; one without a zone is in UTC."""
    return time if time.tzinfo else time.replace(tzinfo=UTC)
