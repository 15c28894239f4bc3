"""From a request body to checked inputs, with pictures in files. A body is received, read and decoded piece by piece."""

import mmap
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
import pybase64

from providers.local.engine.model import InputField, InputType, Value
from providers.local.engine.schema import Problem, check_value, missing, problem_with, with_defaults
from providers.spool import Spool

_BASE64_PIECE = 1 << 20
"""Characters decoded at a time: a multiple of 4, so that no group is cut."""
_LONGEST_HEADER = 256
_TOP_LEVEL = frozenset({"id", "input", "created_at"})


class BodyTooLarge(Exception):
    """The body is longer than the limit."""


class BodyMalformed(Exception):
    """The body is not a JSON object."""


class InputInvalid(Exception):
    """The body is JSON, but not a request that the model takes."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Task:
    """What to run: a value for every declared input."""

    id: str | None
    """The id in the body, if there is one."""
    inputs: Mapping[str, Value]
    ignored: tuple[str, ...] = ()
    """Inputs that were given and that the model does not have. Cog drops them in silence; here the logs name them."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The spool files that hold pictures; to be removed after the run."""
        return tuple(value for value in self.inputs.values() if isinstance(value, Path))


async def receive_body(chunks: AsyncIterator[bytes], spool: Spool, max_bytes: int) -> IO[bytes]:
    """Write a body to a nameless file, which is gone when it is closed. Raises `BodyTooLarge` or `OSError` (disk full)."""
    body = tempfile.TemporaryFile(dir=spool.folder, buffering=0)  # noqa: SIM115 - the caller closes it
    try:
        size = 0
        async for chunk in chunks:
            size += len(chunk)
            if size > max_bytes:
                raise BodyTooLarge
            body.write(chunk)
    except BaseException:
        body.close()
        raise
    return body


def read_task(body: IO[bytes], fields: tuple[InputField, ...], spool: Spool) -> Task:
    """Check the body against a model's inputs, and decode its pictures into spool files. Blocks; belongs in a thread.

    Raises:
        BodyMalformed: If it is not a JSON object.
        InputInvalid: If an input is missing, or not what the model takes.
        OSError: If the disk is full.
    """
    top = _parsed(body)
    _refuse_unknown(top)
    given = {name: raw for name, raw in _object(top, "input").items() if not _is_null(raw) or _is_required(fields, name)}
    problems = missing(fields, given)
    values: dict[str, Value] = {}
    files: list[Path] = []
    try:
        for field in fields:
            if field.name in given:
                problem = _take(field, given[field.name], spool, values, files)
                problems += [problem] if problem else []
        if problems:
            raise InputInvalid(problems)
    except BaseException:
        for path in files:
            path.unlink(missing_ok=True)
        raise
    ignored = tuple(sorted(set(given) - {field.name for field in fields}))
    return Task(_id(top), with_defaults(fields, values), ignored)


def _parsed(body: IO[bytes]) -> dict[str, msgspec.Raw]:
    """The body's members, each still as JSON, as views of the file rather than copies."""
    try:
        mapped = mmap.mmap(body.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # an empty file cannot be mapped
        raise BodyMalformed("the body is empty") from error
    try:
        return msgspec.json.decode(mapped, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BodyMalformed(str(error)) from error


def _refuse_unknown(top: Mapping[str, msgspec.Raw]) -> None:
    """Cog's webhooks and upload prefix are not done here; to take them and stay silent would be worse than to say so."""
    problems = [
        Problem(("body", name), "Not taken by this backend; poll GET /predictions/{id} for the result", "extra_forbidden")
        for name in top
        if name not in _TOP_LEVEL
    ]
    if "input" not in top:
        problems.append(Problem(("body", "input"), "Field required", "missing"))
    if problems:
        raise InputInvalid(problems)


def _object(top: Mapping[str, msgspec.Raw], name: str) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(top[name], type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InputInvalid([Problem(("body", name), "Input should be a valid object", "object_type")]) from error


def _id(top: Mapping[str, msgspec.Raw]) -> str | None:
    if "id" not in top:
        return None
    try:
        return msgspec.json.decode(top["id"], type=str | None)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputInvalid([Problem(("body", "id"), "Input should be a valid string", "string_type")]) from error


def _is_null(raw: msgspec.Raw) -> bool:
    return bytes(memoryview(raw)[:5]) == b"null"


def _is_required(fields: tuple[InputField, ...], name: str) -> bool:
    return any(field.required for field in fields if field.name == name)


def _take(field: InputField, raw: msgspec.Raw, spool: Spool, values: dict[str, Value], files: list[Path]) -> Problem | None:
    """Put the field's value into `values`, or say what is wrong with it."""
    if field.type is InputType.FILE:
        path = spool.path()
        files.append(path)
        values[field.name] = path
        return _decode_data_uri(field.name, memoryview(raw), path)
    try:
        value: Any = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        return problem_with(field.name, f"Input is not valid: {error}", "value_error")
    values[field.name] = value
    return check_value(field, value)


def _decode_data_uri(name: str, raw: memoryview, path: Path) -> Problem | None:
    """Decode the JSON string `raw`, a data URI, into a new file at `path`."""
    if bytes(raw[:1]) != b'"':
        return problem_with(name, "Input should be a valid string", "string_type")
    text = _without_escapes(raw)
    header, comma, _ = bytes(text[:_LONGEST_HEADER]).partition(b",")
    if not header.lower().startswith(b"data:") or not comma or not header.lower().endswith(b";base64"):
        return problem_with(name, "Input should be a base64 data URI; this backend fetches nothing from addresses", "data_uri")
    payload = text[len(header) + 1 :]
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(payload), _BASE64_PIECE):
            try:
                file.write(pybase64.b64decode(payload[start : start + _BASE64_PIECE], validate=True))
            except ValueError:  # binascii.Error, or something outside ASCII
                return problem_with(name, "Input is not valid base64", "data_uri")
    return None


def _without_escapes(raw: memoryview) -> memoryview:
    """What is between the quotes. Base64 needs no escapes, but some encoders escape each slash."""
    text = raw[1:-1]
    if all(b"\\" not in bytes(text[start : start + _BASE64_PIECE]) for start in range(0, len(text), _BASE64_PIECE)):
        return text
    try:
        return memoryview(msgspec.json.decode(raw, type=str).encode())
    except (msgspec.MsgspecError, UnicodeError):
        return memoryview(b"")
