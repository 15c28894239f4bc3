"""A create on its way, and how its prediction is recognised when the answer is lost: Replicate has no idempotency key."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import IntEnum
from typing import cast

from normalization.request import ImageRef
from providers import http
from providers.base import ImagePart, ImageParts
from providers.replicate.answers import ADDRESS, Prediction, aware
from providers.transfer import JsonBody, SpooledPart, json_body

_CLOCK_SLOP_S = 5.0
"""How far the server's clock may be from ours, where it does not tell its own."""

_VERSION_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(slots=True, eq=False)
class Create:
    """A create under way."""

    endpoint: str
    input: Mapping[str, object]
    """As sent, but for pictures that go as data URIs: those are still handles."""
    images: ImageParts
    files: frozenset[str]
    """The addresses among the input that stand for uploaded pictures."""
    sent_at: datetime
    started: float
    """When that was by the event loop's clock, seconds."""
    webhook_url: str | None = None
    sent: bool = False
    """Whether all of it was handed to the connection: before that, nothing can have come of it."""
    lost: str = ""
    """Why there is no answer."""
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once there is an answer, or never will be."""

    def body(self) -> JsonBody:
        """What is sent."""
        hook = {"webhook": self.webhook_url, "webhook_events_filter": ["completed"]} if self.webhook_url else {}
        return json_body({"version": self.endpoint, "input": self.input, **hook}, self.images)

    async def watched(self, body: JsonBody) -> AsyncIterator[bytes]:
        """The body, noticing its end."""
        size = 0
        async for piece in body:
            size += len(piece)
            self.sent = size >= body.size_bytes
            yield piece

    def since(self, response: http.Response) -> datetime:
        """When it was sent: by the clock of the server that answers now, if it tells it, else by ours."""
        try:
            server = parsedate_to_datetime(response.headers["date"])
        except (KeyError, ValueError):
            return self.sent_at - timedelta(seconds=_CLOCK_SLOP_S)
        elapsed_s = asyncio.get_running_loop().time() - self.started
        return aware(server) - timedelta(seconds=elapsed_s + 1)  # the header has whole seconds


def prepared(value: object, files: Mapping[ImageRef, str]) -> object:
    """The value to send: addresses for uploaded pictures, and nothing that is null, which Replicate refuses."""
    match value:
        case ImageRef():
            return files.get(value, value)
        case Mapping():
            members = cast("Mapping[str, object]", value)
            return {key: prepared(member, files) for key, member in members.items() if member is not None}
        case str():
            return value
        case Sequence():
            return [prepared(member, files) for member in cast("Sequence[object]", value) if member is not None]
        case _:
            return value


def refs(value: object) -> Iterator[ImageRef]:
    """The pictures that a value names, at any depth."""
    match value:
        case ImageRef():
            yield value
        case Mapping():
            yield from (ref for member in cast("Mapping[str, object]", value).values() for ref in refs(member))
        case str():
            return
        case Sequence():
            yield from (ref for member in cast("Sequence[object]", value) for ref in refs(member))
        case _:
            return


class Likeness(IntEnum):
    """Whether a prediction is what a create asked for."""

    DIFFERENT = 0
    UNCLEAR = 1
    SAME = 2


def likenesses(create: Create, found: Sequence[Prediction], parts: Mapping[str, SpooledPart]) -> list[Likeness]:
    """Compare predictions with what was asked for. Reads files: call it in a thread.

    One is different only if something that both have differs: what Replicate may have left out, added or put elsewhere is unclear.
    """
    return [_likeness(create, one, parts) for one in found]


def _likeness(create: Create, found: Prediction, parts: Mapping[str, SpooledPart]) -> Likeness:
    if not _is_of(create.endpoint, found):
        return Likeness.DIFFERENT
    if not isinstance(found.input, dict):
        return Likeness.UNCLEAR
    theirs = cast("dict[str, object]", found.input)
    shared = [key for key in create.input if key in theirs]
    worst = min((_compare(create, create.input[key], theirs[key], parts) for key in shared), default=Likeness.UNCLEAR)
    return worst if len(shared) == len(create.input) == len(theirs) else min(worst, Likeness.UNCLEAR)


def _is_of(endpoint: str, found: Prediction) -> bool:
    """Whether it is a run of the model; official ones hide their version."""
    version = endpoint.rpartition(":")[2]
    if _VERSION_ID.fullmatch(version):
        return found.version in (None, version)
    return found.model is None or found.model.lower() == endpoint.lower()


def _compare(create: Create, ours: object, theirs: object, parts: Mapping[str, SpooledPart]) -> Likeness:
    match ours:
        case ImageRef():
            return _compare_picture(create.images[ours], theirs, parts)
        case str() if ours in create.files:
            return Likeness.SAME if ours == theirs else _elsewhere(theirs)
        case str() if ours.startswith("data:") and theirs in parts:
            return Likeness.UNCLEAR
        case list() if isinstance(theirs, list):
            mine, other = cast("list[object]", ours), cast("list[object]", theirs)
            if len(mine) != len(other):
                return Likeness.DIFFERENT
            return min((_compare(create, *pair, parts) for pair in zip(mine, other, strict=True)), default=Likeness.SAME)
        case _:
            same = ours == theirs and isinstance(ours, bool) is isinstance(theirs, bool)
            return Likeness.SAME if same else Likeness.DIFFERENT


def _compare_picture(part: ImagePart, theirs: object, parts: Mapping[str, SpooledPart]) -> Likeness:
    found = parts.get(theirs) if isinstance(theirs, str) else None
    if found is None:
        return _elsewhere(theirs)
    try:
        same = found.mime == part.mime and found.size_bytes == part.size_bytes and found.path.read_bytes() == part.path.read_bytes()
    except FileNotFoundError:  # whoever asked has left, and removed it
        return Likeness.UNCLEAR
    return Likeness.SAME if same else Likeness.DIFFERENT


def _elsewhere(theirs: object) -> Likeness:
    """A picture at another address may be ours, put there by Replicate; one that was uploaded or sent along by itself is not."""
    moved = isinstance(theirs, str) and ADDRESS.match(theirs) is not None and "/files/" not in theirs
    return Likeness.UNCLEAR if moved else Likeness.DIFFERENT
