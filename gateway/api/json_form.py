"""The JSON form of an image request: base64 pictures go to the spool as they stream by, addresses are fetched.

Source: OpenAI API reference, "Create image edit", JSON body.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeAlias, cast
from urllib.parse import urlsplit

import pybase64

from gateway.api.multipart import FormLimits, body_too_large, refuse_null_characters, too_many_files
from gateway.api.uploads import RawForm, Received, adopt, spool_failure
from gateway.errors import BadRequest, GatewayError, TooLarge
from normalization.request import Json
from providers.spool import Spool
from providers.transfer import (
    AnswerUnreadable,
    SpooledJson,
    SpooledPart,
    TooManyValues,
    TransferFailed,
    TransferFault,
    in_thread,
    read_spooled_json,
)

Fetch: TypeAlias = "Callable[[str, Path, int], Awaitable[object]]"
"""Fetches an http or https address into a new file of at most so many bytes, or raises `TransferFailed`."""

_MAX_DEPTH = 32
"""Of arrays and objects within each other."""

_MAX_VALUES = 20_000
"""Text, numbers, arrays and so on, at any depth: far more than any picture is asked for with, few enough to look at each."""


class JsonForm:
    """Reads one JSON body. Whoever makes it calls `discard` if the files are not wanted after all, also when `read` has failed."""

    def __init__(self, spool: Spool, limits: FormLimits, fetch: Fetch) -> None:
        """Prepare for one body.

        Args:
            spool: Where pictures go.
            limits: What the body may bring, its fetched pictures included.
            fetch: For pictures named by address.
        """
        self._spool = spool
        self._limits = limits
        self._fetch = fetch
        self._fetched: list[Path] = []
        self._body: SpooledJson | None = None

    async def read(self, chunks: AsyncIterator[bytes]) -> RawForm:
        """Read the body to its end and fetch what it names.

        Raises:
            BadRequest: For whatever is malformed, or cannot be fetched.
            TooLarge: If a picture, or all else together, is.
            Overloaded: If the spool's disk is full.
        """
        body = self._body = await self._split(chunks)
        members = _members(body, self._limits)
        references = _image_references(members, self._limits)
        mask = members.pop("mask", None)
        fields = await in_thread(self._fields, members, body.parts)
        images = [(param, await self._picture(param, reference, body.parts)) for param, reference in references]
        masks = [] if mask is None else [await self._picture("mask", mask, body.parts)]
        used = {file.path for _, file in images} | {file.path for file in masks}
        body.discard(keep=frozenset(key for key, part in body.parts.items() if part.path in used))
        return RawForm(fields, tuple(images), tuple(masks))

    def discard(self) -> None:
        """Remove every file that was begun."""
        if self._body is not None:
            self._body.discard()
        for path in self._fetched:
            path.unlink(missing_ok=True)

    async def _split(self, chunks: AsyncIterator[bytes]) -> SpooledJson:
        """The JSON with its base64 pictures in files."""
        try:
            return await read_spooled_json(
                _counted(chunks, self._limits),
                self._spool,
                max_part_bytes=self._limits.max_file_bytes,
                max_text_bytes=self._limits.max_text_bytes,
                max_parts=self._limits.max_parts,
                max_values=_MAX_VALUES,
            )
        except TooManyValues as error:
            raise BadRequest(f"the JSON body has more than {_MAX_VALUES} values") from error
        except AnswerUnreadable as error:
            raise _unusable(error, self._limits) from error
        except OSError as error:
            raise spool_failure(error) from error

    async def _picture(self, param: str, reference: Json, parts: Mapping[str, SpooledPart]) -> Received:
        """The file that a reference stands for."""
        address = _address(param, reference)
        if address in parts:
            return await asyncio.to_thread(adopt, parts[address].path)
        if address.lower().startswith("data:"):
            raise BadRequest(f"`{param}` is a data URL, but not of the form `data:image/png;base64,…`", param=param)
        if _scheme(address) not in {"http", "https"}:
            raise BadRequest(f"`{param}` is neither an http(s) address nor a data URL (`data:image/png;base64,…`)", param=param)
        return await self._fetch_picture(param, address)

    async def _fetch_picture(self, param: str, address: str) -> Received:
        target = self._spool.path()
        self._fetched.append(target)
        try:
            await self._fetch(address, target, self._limits.max_file_bytes)
            return await asyncio.to_thread(adopt, target)
        except TransferFailed as error:
            raise _unreachable(param, error) from error
        except OSError as error:
            raise spool_failure(error) from error

    def _fields(self, members: Mapping[str, Json], parts: Mapping[str, SpooledPart]) -> dict[str, Json]:
        """The members that are no pictures. Reads files, and many values may be in the way: run it in a thread."""
        return {name: self._plain(name, value, parts, depth=0) for name, value in members.items()}

    def _plain(self, param: str, value: Json, parts: Mapping[str, SpooledPart], *, depth: int) -> Json:
        """A member that is not a picture of ours, as it was sent: a short data URL in it is put together again."""
        if depth > _MAX_DEPTH:
            raise BadRequest(f"`{param}` is nested more than {_MAX_DEPTH} deep", param=param)
        match value:
            case str() if value in parts:
                return self._as_text(param, parts[value])
            case str():
                refuse_null_characters(param, value)
                return value
            case list():
                return [self._plain(param, member, parts, depth=depth + 1) for member in value]
            case dict():
                return {name: self._plain(param, member, parts, depth=depth + 1) for name, member in value.items()}
            case _:
                return value

    def _as_text(self, param: str, part: SpooledPart) -> str:
        if part.size_bytes > self._limits.max_field_bytes:
            raise TooLarge(
                f"`{param}` is a data URL of more than {self._limits.max_field_bytes} bytes;"
                " large pictures are taken in `images` and `mask`",
                param=param,
            )
        content = part.path.read_bytes()
        return f"data:{part.mime};base64,{pybase64.b64encode_as_string(content)}"


def _members(body: SpooledJson, limits: FormLimits) -> dict[str, Json]:
    """The members that say something: null means the default, as in OpenAI's schema."""
    if not isinstance(body.document, dict):
        raise BadRequest("the JSON body must be an object", code="invalid_json")
    members = cast("dict[str, Json]", body.document)  # JSON has text as names, and nothing but JSON as values
    if len(members) > limits.max_parts:
        raise BadRequest(f"the JSON body has more than {limits.max_parts} members")
    return {name: value for name, value in members.items() if value is not None}


def _image_references(members: dict[str, Json], limits: FormLimits) -> list[tuple[str, Json]]:
    """Take `images`, or the `image` that is accepted beside OpenAI's form, out of the members; each with its name for errors."""
    images, image = members.pop("images", None), members.pop("image", None)
    if images is not None and image is not None:
        raise BadRequest("send either `images` or `image`, not both", param="image", code="duplicate_parameter")
    name, given = ("image", image) if images is None else ("images", images)
    if given is None:
        return []
    if isinstance(given, list):
        if len(given) > limits.max_files:
            raise too_many_files(name, limits.max_files)
        return [(f"{name}[{index}]", reference) for index, reference in enumerate(given)]
    if name == "images":
        raise BadRequest('`images` must be an array of references such as {"image_url": …}', param=name, code="invalid_type")
    return [(name, given)]


def _address(param: str, reference: Json) -> str:
    """What a reference refers to: OpenAI's object with one member, or the address alone."""
    match reference:
        case str():
            return reference
        case {"image_url": str(address), **others} if not others:
            return address
        case {"file_id": _, **others} if not others:
            raise BadRequest(f"`{param}`: uploaded files (`file_id`) are not served here; send `image_url`", param=param)
        case dict():
            raise BadRequest(f"`{param}` must have exactly one member, `image_url`, that is text", param=param, code="invalid_type")
        case _:
            raise BadRequest(
                f"Invalid type for `{param}`: expected an object with `image_url`, or an address.", param=param, code="invalid_type"
            )


def _scheme(address: str) -> str:
    """In lower case; empty if there is none or the address cannot be read."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    return parts.scheme if parts.netloc else ""


async def _counted(chunks: AsyncIterator[bytes], limits: FormLimits) -> AsyncIterator[bytes]:
    total = 0
    async for chunk in chunks:
        total += len(chunk)
        if total > limits.max_body_bytes:
            raise body_too_large(limits)
        yield chunk


def _unusable(error: AnswerUnreadable, limits: FormLimits) -> GatewayError:
    if "more than" in str(error):  # said in words only
        return TooLarge(
            f"a picture in the JSON body may have {limits.max_file_bytes} bytes at most,"
            f" and all else together {limits.max_text_bytes}",
            param="images",
        )
    if "base64" in str(error):
        return BadRequest("a data URL in the JSON body is not valid base64", param="images")
    return BadRequest("the body is not valid JSON", code="invalid_json")


def _unreachable(param: str, error: TransferFailed) -> GatewayError:
    """An address that does not deliver is the caller's to mend: 400, so that no client repeats the request by itself."""
    if error.fault is TransferFault.TOO_LARGE:
        return TooLarge(f"`{param}`: {error.public}", param=param)
    return BadRequest(f"`{param}` could not be fetched: {error.public}", param=param, code="invalid_image_url")
