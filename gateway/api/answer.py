"""The success answer of the image routes: OpenAI's members and the receipt, pictures as links or as base64 streamed from the store.

A picture in base64 never exists whole: blocks of the stored file are encoded one by one, behind a length known beforehand.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
import pybase64
from litestar import Response
from litestar.response import Stream

from gateway.assets.store import AssetStore, StoredAsset
from normalization.pixels.formats import Size

_JSON = "application/json"
_WHOLE_BYTES = 256 * 1024
"""Up to here an answer with embedded pictures is sent in one piece, which is cheaper than a stream. One without always is."""

# Values that strictly validating clients take; others are left out. Source: openai-python, `types/images_response.py`.
_BACKGROUNDS = frozenset({"transparent", "opaque"})
_FORMATS = frozenset({"png", "jpeg", "webp", "gif"})
_QUALITIES = frozenset({"low", "medium", "high", "xhigh", "max"})


@dataclass(frozen=True, slots=True)
class LinkedPicture:
    """A picture answered as a link."""

    url: str
    """Absolute."""
    revised_prompt: str | None = None


@dataclass(frozen=True, slots=True)
class EmbeddedPicture:
    """A picture answered as base64."""

    asset: StoredAsset
    revised_prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Delivered:
    """What the members beside `data` say of the pictures; None, or a value that OpenAI does not have, is left out."""

    background: str | None = None
    output_format: str | None = None
    size: Size | None = None
    quality: str | None = None


async def image_answer(
    pictures: Sequence[LinkedPicture | EmbeddedPicture],
    *,
    created: int,
    metadata: Mapping[str, Any],
    delivered: Delivered,
    store: AssetStore,
    headers: Mapping[str, str],
) -> Response[Any]:
    """Write the answer.

    The beginning of the first picture is read before anything is sent, so that a store that does not answer is still an error.
    One that fails later breaks the connection: a client sees a cut answer, never a false one.

    Args:
        pictures: In their order.
        created: Unix seconds.
        metadata: The receipt.
        delivered: What the pictures turned out to be.
        store: Where embedded pictures are.
        headers: Further header fields.

    Raises:
        AssetMissing: If the first picture is not there.
        StorageFailed: If it cannot be read.
    """
    pieces = _pieces(pictures, created, {**members(delivered), "metadata": metadata})
    length = sum(len(piece) if isinstance(piece, bytes) else _base64_length(piece.size_bytes) for piece in pieces)
    body = _written(pieces, store)
    if length <= _WHOLE_BYTES or all(isinstance(piece, bytes) for piece in pieces):
        whole = b"".join([part async for part in body])
        return Response(whole, status_code=200, headers=dict(headers), media_type=_JSON)
    first = [await anext(body), await anext(body)]  # the JSON before the first picture, and the picture's first block
    return Stream(_resumed(first, body), status_code=200, headers={**headers, "content-length": str(length)}, media_type=_JSON)


def members(delivered: Delivered) -> dict[str, str]:
    """The members beside `data`, as OpenAI has them."""
    known = {
        "background": delivered.background if delivered.background in _BACKGROUNDS else None,
        "output_format": delivered.output_format if delivered.output_format in _FORMATS else None,
        "size": str(delivered.size) if delivered.size else None,
        "quality": delivered.quality if delivered.quality in _QUALITIES else None,
    }
    return {name: value for name, value in known.items() if value is not None}


def _pieces(
    pictures: Sequence[LinkedPicture | EmbeddedPicture], created: int, rest: Mapping[str, Any]
) -> list[bytes | StoredAsset]:
    """The whole answer in order, with the stored files where their base64 belongs."""
    pieces: list[bytes | StoredAsset] = [b'{"created":%d,"data":[' % created]
    for index, picture in enumerate(pictures):
        if index:
            pieces.append(b",")
        pieces.extend(_picture(picture))
    pieces.append(b"]," + msgspec.json.encode(rest)[1:])
    return pieces


def _picture(picture: LinkedPicture | EmbeddedPicture) -> list[bytes | StoredAsset]:
    prompt = {} if picture.revised_prompt is None else {"revised_prompt": picture.revised_prompt}
    if isinstance(picture, LinkedPicture):
        return [msgspec.json.encode({"url": picture.url, **prompt})]
    end = b"," + msgspec.json.encode(prompt)[1:] if prompt else b"}"
    return [b'{"b64_json":"', picture.asset, b'"' + end]


async def _written(pieces: Sequence[bytes | StoredAsset], store: AssetStore) -> AsyncGenerator[bytes]:
    """The bytes of the answer. Neighbouring JSON is joined, so that a picture's first block is the second thing given."""
    text = bytearray()
    for piece in pieces:
        if isinstance(piece, bytes):
            text += piece
            continue
        yield bytes(text)
        text.clear()
        async for block in _base64_blocks(piece, store):
            yield block
    yield bytes(text)


async def _base64_blocks(asset: StoredAsset, store: AssetStore) -> AsyncGenerator[bytes]:
    waiting = b""
    async with aclosing(store.read(asset.key, 0, asset.size_bytes)) as blocks:
        async for block in blocks:
            ready = waiting + block if waiting else block
            whole = len(ready) - len(ready) % 3
            waiting = ready[whole:]
            yield pybase64.b64encode(ready[:whole] if waiting else ready)
    if waiting:
        yield pybase64.b64encode(waiting)


async def _resumed(first: Sequence[bytes], body: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(body):
        for part in first:
            yield part
        async for part in body:
            yield part


def _base64_length(size_bytes: int) -> int:
    return (size_bytes + 2) // 3 * 4
