"""The body of an image request, in either of OpenAI's two forms, as raw fields and pictures in the spool.

Nothing is typed here but the pictures: what a field's text means is known to the model's own schema.
Source: OpenAI API reference, "Create image edit", multipart and JSON bodies.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from litestar.types import Receive, Scope

from gateway.api.body import body_chunks
from gateway.api.brackets import build_fields, split_name
from gateway.api.json_form import Fetch, JsonForm
from gateway.api.multipart import FilePart, FormLimits, MultipartReader, body_too_large
from gateway.api.uploads import RawForm, Received, Upload, look_at, remove
from gateway.errors import BadRequest
from normalization.pixels.probe import ProbeLimits
from normalization.request import Json
from providers.spool import Spool

_IMAGES = frozenset({"image"})
_MASK = "mask"


@dataclass(frozen=True, slots=True)
class ImageForm:
    """What a request brought. Whoever has it closes it, which removes the files."""

    fields: Mapping[str, Json]
    """Everything but the pictures, by name. From a form, texts are `Text`; from JSON, values as they came, nulls left out."""
    images: tuple[Upload, ...]
    mask: Upload | None

    async def close(self) -> None:
        """Remove the files. Again is no harm."""
        await remove((*self.images, self.mask) if self.mask else self.images)

    async def __aenter__(self) -> "ImageForm":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def read_image_form(
    scope: Scope, receive: Receive, *, spool: Spool, limits: FormLimits, probe_limits: ProbeLimits, fetch: Fetch
) -> ImageForm:
    """Read the body of an image request to its end; whatever goes wrong, no file is left.

    Args:
        scope: Of the request, for its header fields.
        receive: The body, piece by piece.
        spool: Where the pictures go.
        limits: Bytes and counts, enforced while reading.
        probe_limits: Pixels and frames.
        fetch: For pictures that the JSON form names by address.

    Raises:
        BadRequest: For all that is malformed, missing its meaning, or not a picture. `ClientGone` if the client left.
        TooLarge: For too many bytes.
        Overloaded: If the spool's disk is full.
    """
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    _check_head(headers, limits)
    form = _choose_form(headers.get("content-type", ""), spool, limits, fetch)
    try:
        return await _look_at_pictures(await form.read(body_chunks(receive)), probe_limits)
    except BaseException:
        form.discard()
        raise


class _Form(Protocol):
    """One of the two forms."""

    async def read(self, chunks: AsyncIterator[bytes]) -> RawForm: ...

    def discard(self) -> None: ...


def _check_head(headers: Mapping[str, str], limits: FormLimits) -> None:
    """Refuse what need not be read to be refused."""
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise BadRequest(
            "a compressed request body is not taken; send it without Content-Encoding", code="unsupported_content_encoding"
        )
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.max_body_bytes:
        raise body_too_large(limits)


def _choose_form(content_type: str, spool: Spool, limits: FormLimits, fetch: Fetch) -> _Form:
    match content_type.partition(";")[0].strip().lower():
        case "multipart/form-data":
            return _MultipartForm(spool, limits, content_type)
        case "application/json":
            return JsonForm(spool, limits, fetch)
        case other:
            raise BadRequest(
                f"the body is {other or 'of no named type'}; send `multipart/form-data` or `application/json` as Content-Type",
                code="unsupported_content_type",
            )


class _MultipartForm:
    """The multipart form: files in `image`, `image[]`, `image[0]` and `mask`, text in everything else."""

    def __init__(self, spool: Spool, limits: FormLimits, content_type: str) -> None:
        self._reader = MultipartReader(spool, limits, lists=_IMAGES, singles=frozenset({_MASK}))
        self._content_type = content_type

    async def read(self, chunks: AsyncIterator[bytes]) -> RawForm:
        form = await self._reader.read(chunks, self._content_type)
        fields = build_fields(form.fields)
        if "images" in fields:
            raise BadRequest("`images` belongs to the JSON form; here send files as `image` or `image[]`", param="images")
        images = _in_order([part for part in form.files if part.name != _MASK])
        masks = tuple(part.file for part in form.files if part.name == _MASK)
        return RawForm(fields, _named([part.file for part in images]), masks)

    def discard(self) -> None:
        self._reader.discard()


def _in_order(parts: Sequence[FilePart]) -> list[FilePart]:
    """As they came; with an index in every name (`image[0]`), as those say."""
    steps = [split_name(part.name)[1] for part in parts]
    if not all(step and step[0].isdecimal() for step in steps):
        return list(parts)
    return [part for _, part in sorted(zip(steps, parts, strict=True), key=lambda pair: int(pair[0][0]))]


def _named(images: Sequence[Received]) -> tuple[tuple[str, Received], ...]:
    """The pictures with the names that errors call them by: the field alone, or with an index where there are several."""
    if len(images) == 1:
        return (("image", images[0]),)
    return tuple((f"image[{index}]", image) for index, image in enumerate(images))


async def _look_at_pictures(form: RawForm, limits: ProbeLimits) -> ImageForm:
    if not form.images:
        if form.masks:
            raise BadRequest("a `mask` needs an `image`", param="image", code="missing_required_parameter")
        return ImageForm(form.fields, (), None)
    uploads = await look_at([*form.images, *((_MASK, mask) for mask in form.masks)], limits)
    images, masks = uploads[: len(form.images)], uploads[len(form.images) :]
    for mask in masks:
        _check_mask(mask, images[0])
    return ImageForm(form.fields, images, masks[0] if masks else None)


def _check_mask(mask: Upload, image: Upload) -> None:
    if mask.info.size != image.info.size:
        raise BadRequest(f"the mask is {mask.info.size} and the image {image.info.size}; both must have the same size", param=_MASK)
