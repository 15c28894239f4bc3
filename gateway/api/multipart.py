"""A multipart form read as a stream: text fields into memory within limits, files straight into the spool."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser

from gateway.api.body import MIB
from gateway.api.brackets import split_name
from gateway.api.uploads import Received, SpoolFile
from gateway.errors import BadRequest, TooLarge
from normalization.request import MAX_IMAGES, Text
from providers.spool import Spool

_EXTENDED_FILENAME = re.compile(r";\s*filename\*\s*=", re.IGNORECASE)
"""`filename*=utf-8''…`, which the parser does not report. Source: RFC 6266; RFC 7578 forbids it and clients send it."""

_BOUNDARY = re.compile(r';\s*boundary\s*=\s*(?:"([ -!#-~]{1,200})"|([!#-:<-~]{1,200}))', re.IGNORECASE)
"""Quoted or bare. RFC 2046 allows 70 characters; some clients use more."""


@dataclass(frozen=True, slots=True)
class FormLimits:
    """What one request may bring. All are enforced while reading."""

    max_file_bytes: int = 50 * MIB
    max_files: int = MAX_IMAGES
    """Of one field; one more is allowed for each field that takes a single file."""
    max_body_bytes: int = (MAX_IMAGES + 1) * 50 * MIB + 8 * MIB
    max_parts: int = 512
    max_field_bytes: int = MIB
    """One text field. Prompts are short; structured parameters sent as JSON text may not be."""
    max_text_bytes: int = 2 * MIB
    """All text of a request together; in the JSON form, everything but the pictures."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """A file of the form."""

    name: str
    """The form field as the caller wrote it: `image`, `image[]`, `image[0]`, `mask`."""
    file: Received


@dataclass(frozen=True, slots=True)
class Multipart:
    """A form that was read to its end."""

    fields: tuple[tuple[str, Text], ...]
    """In the order in which they came, names as written."""
    files: tuple[FilePart, ...]


class MultipartReader:
    """Reads one form. Whoever makes it calls `discard` if the files are not wanted after all, also when `read` has failed."""

    def __init__(self, spool: Spool, limits: FormLimits, *, lists: frozenset[str], singles: frozenset[str]) -> None:
        """Prepare for one form.

        Args:
            spool: Where files go.
            limits: What the form may bring.
            lists: Fields that take one or more files (`image`, `image[]`).
            singles: Fields that take one file (`mask`). All other fields take text.
        """
        self._spool = spool
        self._limits = limits
        self._lists = lists
        self._singles = singles
        self._opened: list[SpoolFile] = []
        self._fields: list[tuple[str, Text]] = []
        self._files: list[FilePart] = []
        self._text_bytes = 0
        self._body_bytes = 0

    async def read(self, chunks: AsyncIterator[bytes], content_type: str) -> Multipart:
        """Read the form to its end.

        Raises:
            BadRequest: For whatever is malformed, of the wrong kind, or too many.
            TooLarge: If a file, a field or the body is.
            Overloaded: If the spool's disk is full.
        """
        parser = PushMultipartParser(
            _boundary(content_type), max_header_size=4096, max_header_count=16, max_segment_count=self._limits.max_parts
        )
        part: _TextPart | _SpooledPart | None = None
        try:
            async for chunk in chunks:
                self._count(chunk)
                for event in parser.parse(chunk):
                    if isinstance(event, MultipartSegment):
                        part = self._open(event)
                    elif part is None:  # the parser gives the head of a part before its body
                        continue
                    elif event is None:
                        await part.end(self)
                    else:
                        await part.take(event)
            parser.close()
        except ParserLimitReached as error:
            raise BadRequest(f"the form has too many or too long parts: {error}", code="invalid_multipart") from error
        except MultipartError as error:
            raise BadRequest(f"the multipart body cannot be read: {error}", code="invalid_multipart") from error
        return Multipart(tuple(self._fields), tuple(self._files))

    def discard(self) -> None:
        """Remove every file that was begun."""
        for file in self._opened:
            file.discard()

    def _count(self, chunk: bytes) -> None:
        self._body_bytes += len(chunk)
        if self._body_bytes > self._limits.max_body_bytes:
            raise body_too_large(self._limits)

    def _open(self, segment: MultipartSegment) -> "_TextPart | _SpooledPart":
        name = segment.name or ""
        root, steps = split_name(name)
        takes_file = root in self._lists or root in self._singles
        if takes_file and not _is_file(segment):
            raise BadRequest(
                f"Invalid type for `{root}`: expected one of an array of files or file, but got a string instead.",
                param=root,
                code="invalid_type",
            )
        if not takes_file and _has_filename(segment):
            known = ", ".join(f"`{field}`" for field in sorted(self._lists | self._singles))
            raise BadRequest(
                f"Invalid type for `{root}`: expected text, but got a file instead; files are taken in {known}.",
                param=root,
                code="invalid_type",
            )
        return self._open_file(name, root, steps) if takes_file else _TextPart(name, root, self._limits.max_field_bytes)

    def _open_file(self, name: str, root: str, steps: tuple[str, ...]) -> "_SpooledPart":
        if len(steps) > 1 or (steps and (root in self._singles or not (steps[0] == "" or steps[0].isdecimal()))):
            raise BadRequest(f"`{name}` is not a file field; use `{root}`", param=root, code="invalid_type")
        if name != f"{root}[]" and any(part.name == name for part in self._files):
            raise BadRequest(
                f"Duplicate parameter: `{name}`. For a list of files send `{root}[]=<value>` for each.",
                param=root,
                code="duplicate_parameter",
            )
        if root in self._lists and sum(1 for part in self._files if split_name(part.name)[0] == root) >= self._limits.max_files:
            raise too_many_files(root, self._limits.max_files)
        file = SpoolFile(self._spool.path(), self._limits.max_file_bytes, root)
        self._opened.append(file)
        return _SpooledPart(name, file)

    def add_text(self, name: str, root: str, value: bytearray) -> None:
        """Keep a text field that has been read."""
        self._text_bytes += len(value)
        if self._text_bytes > self._limits.max_text_bytes:
            raise TooLarge(f"the text fields together have more than {self._limits.max_text_bytes} bytes", param=root)
        try:
            text = value.decode()
        except UnicodeDecodeError as error:
            raise BadRequest(f"`{root}` is not valid UTF-8 text", param=root, code="invalid_type") from error
        refuse_null_characters(root, text)
        self._fields.append((name, Text(text)))

    def add_file(self, name: str, file: Received) -> None:
        """Keep a file that has been read."""
        self._files.append(FilePart(name, file))


class _TextPart:
    """A text field being read."""

    def __init__(self, name: str, root: str, max_bytes: int) -> None:
        self._name = name
        self._root = root
        self._max_bytes = max_bytes
        self._value = bytearray()

    async def take(self, piece: bytes) -> None:
        self._value += piece
        if len(self._value) > self._max_bytes:
            raise TooLarge(f"`{self._root}` has more than {self._max_bytes} bytes of text", param=self._root)

    async def end(self, form: MultipartReader) -> None:
        form.add_text(self._name, self._root, self._value)


class _SpooledPart:
    """A file being read."""

    def __init__(self, name: str, file: SpoolFile) -> None:
        self._name = name
        self._file = file

    async def take(self, piece: bytes) -> None:
        await self._file.write(piece)

    async def end(self, form: MultipartReader) -> None:
        form.add_file(self._name, await self._file.finish())


def body_too_large(limits: FormLimits) -> TooLarge:
    """A body over the limit, whatever is in it."""
    return TooLarge(f"the request body is larger than {limits.max_body_bytes} bytes", param="image")


def too_many_files(param: str, most: int) -> BadRequest:
    """More pictures than a request may have."""
    return BadRequest(
        f"Invalid `{param}`: array too long. Expected an array with maximum length {most}.",
        param=param,
        code="array_above_max_length",
    )


def refuse_null_characters(param: str, text: str) -> None:
    """Refuse U+0000, which no database column and no provider takes as text."""
    if "\0" in text:
        raise BadRequest(f"`{param}` contains a null character (U+0000)", param=param)


def _boundary(content_type: str) -> str:
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise BadRequest("the multipart Content-Type has no usable `boundary`", code="invalid_multipart")
    return match[1] or match[2]


def _is_file(segment: MultipartSegment) -> bool:
    """A part is a file if it has a file name or says that it is not text."""
    declared = _header(segment, "Content-Type").lower()
    return _has_filename(segment) or (declared != "" and not declared.startswith(("text/", "application/json")))


def _has_filename(segment: MultipartSegment) -> bool:
    return segment.filename is not None or _EXTENDED_FILENAME.search(_header(segment, "Content-Disposition")) is not None


def _header(segment: MultipartSegment, name: str) -> str:
    return next((value for header, value in segment.headerlist if header == name), "")
