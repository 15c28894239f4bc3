"""Pictures to and from providers, on their way between a spool file and a connection, never whole in memory."""

import asyncio
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import msgspec
import pybase64

from normalization.request import ImageRef
from providers import http
from providers.base import ImagePart, ImageParts
from providers.spool import Spool, append_to_file, create_file

P = ParamSpec("P")
R = TypeVar("R")

_READ_BYTES = 3 * 2**16
"""How much of a file is read at once: a multiple of 3, so that each piece is whole base64."""

_WRITE_BYTES = 2**18
"""How much is gathered before a thread is asked to write it."""

_INLINE_BYTES = 2**16
"""What is read at once without asking a thread."""

_MAX_REDIRECTS = 3


# Sending


@dataclass(frozen=True, slots=True)
class JsonBody:
    """A JSON document whose pictures are still in their files: iterate it to get its bytes, `size_bytes` in all.

    Can be iterated again, which reads the files again.
    """

    pieces: tuple[bytes | ImagePart, ...]
    size_bytes: int

    @property
    def headers(self) -> dict[str, str]:
        """What goes with it: some servers do not take a body without a length."""
        return {"Content-Type": "application/json", "Content-Length": str(self.size_bytes)}

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, bytes):
                yield piece
            else:
                async for encoded in _base64_of(piece):
                    yield encoded


def json_body(document: Mapping[str, object], images: ImageParts) -> JsonBody:
    """Write `document` as JSON in which every `ImageRef`, at any depth, is a data URI of its picture.

    Raises:
        KeyError: If a picture is not among `images`.
    """
    pieces = tuple(_joined(_json_pieces(document, images)))
    size = sum(len(piece) if isinstance(piece, bytes) else _base64_length(piece.size_bytes) for piece in pieces)
    return JsonBody(pieces, size)


def _json_pieces(value: object, images: ImageParts) -> Iterator[bytes | ImagePart]:
    match value:
        case ImageRef():
            part = images[value]
            yield b'"data:' + part.mime.encode("ascii") + b";base64,"
            yield part
            yield b'"'
        case Mapping():
            members = cast("Mapping[object, object]", value)
            for index, (key, member) in enumerate(members.items()):
                yield b"," if index else b"{"
                yield msgspec.json.encode(str(key)) + b":"
                yield from _json_pieces(member, images)
            yield b"}" if members else b"{}"
        case str():
            yield msgspec.json.encode(str(value))  # a plain string: msgspec does not take subclasses
        case Sequence():
            items = cast("Sequence[object]", value)
            for index, member in enumerate(items):
                yield b"," if index else b"["
                yield from _json_pieces(member, images)
            yield b"]" if items else b"[]"
        case _:
            yield msgspec.json.encode(value)


def _joined(pieces: Iterator[bytes | ImagePart]) -> Iterator[bytes | ImagePart]:
    """Neighbouring bytes as one piece."""
    text = bytearray()
    for piece in pieces:
        if isinstance(piece, bytes):
            text += piece
        else:
            yield bytes(text)
            text.clear()
            yield piece
    yield bytes(text)


async def _base64_of(part: ImagePart) -> AsyncIterator[bytes]:
    for offset in range(0, part.size_bytes, _READ_BYTES):
        yield await in_thread(_read_encoded, part, offset)


def _read_encoded(part: ImagePart, offset: int) -> bytes:
    expected = min(_READ_BYTES, part.size_bytes - offset)
    with part.path.open("rb", buffering=0) as file:
        file.seek(offset)
        content = file.read(expected)
    if len(content) != expected:
        raise OSError(f"{part.path.name} is shorter than it was")
    return pybase64.b64encode(content)


def _base64_length(size_bytes: int) -> int:
    return (size_bytes + 2) // 3 * 4


# Receiving JSON


class AnswerUnreadable(Exception):
    """An answer that is not what was agreed: not JSON, broken base64, or larger than allowed."""


class TooManyValues(AnswerUnreadable):
    """JSON of so many values that reading them would keep everybody else waiting."""


@dataclass(frozen=True, slots=True)
class SpooledPart:
    """A data URI of an answer, decoded into a file. Whoever has the answer removes the file."""

    path: Path
    mime: str
    """As the data URI says; not to be believed."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SpooledJson:
    """A JSON answer whose data URIs lie in files."""

    document: Any
    """The parsed JSON; each data URI is a string that is a key of `parts`."""
    parts: Mapping[str, SpooledPart]

    def discard(self, *, keep: frozenset[str] = frozenset()) -> None:
        """Remove the files, but for those of the keys to keep."""
        for key, part in self.parts.items():
            if key not in keep:
                part.path.unlink(missing_ok=True)


async def read_spooled_json(
    pieces: AsyncIterable[bytes],
    spool: Spool,
    *,
    max_part_bytes: int,
    max_text_bytes: int = 4 * 2**20,
    max_parts: int = 64,
    max_values: int = 100_000,
) -> SpooledJson:
    """Read a JSON answer, decoding its base64 data URIs into spool files as they pass.

    Args:
        pieces: The body, cut anywhere.
        spool: Where the files are made.
        max_part_bytes: The largest file, decoded.
        max_text_bytes: The most that may be left when the data URIs are out.
        max_parts: The most data URIs.
        max_values: The most values, at any depth, empty arrays and objects counted twice.

    Raises:
        TooManyValues: If there are more.
        AnswerUnreadable: If it cannot be used; no file is left then, nor after any other error.
    """
    scanner = DataUriScanner(
        spool, max_part_bytes=max_part_bytes, max_text_bytes=max_text_bytes, max_parts=max_parts, max_values=max_values
    )
    try:
        async for batch in _batches(pieces):
            await _feed(scanner, batch)
        return scanner.finish() if scanner.text_bytes < _INLINE_BYTES else await in_thread(scanner.finish)
    except BaseException:
        scanner.discard()
        raise


async def _feed(scanner: "DataUriScanner", batch: bytes) -> None:
    if len(batch) < _INLINE_BYTES:
        scanner.feed(batch)
    else:
        await in_thread(scanner.feed, batch)


async def _batches(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in fewer pieces, so that a thread is worth asking."""
    waiting = bytearray()
    async for piece in pieces:
        waiting += piece
        if len(waiting) >= _WRITE_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


class _Where(StrEnum):
    OUTSIDE = "outside"
    """Between strings."""
    HEAD = "head"
    """In a string that may be a data URI."""
    TEXT = "text"
    """In a string that is none."""
    DATA = "data"
    """In the base64 of one."""


_HEAD_BYTES = 512
"""A data URI says within so many bytes that it is base64, or is left alone."""

_DATA_HEAD = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)
"""Source: RFC 2397."""

_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)

_PLAIN_ESCAPES = {b"/": b"/", b"n": b"", b"r": b"", b"t": b""}
"""What an escape in base64 stands for; line ends and tabs are allowed between its characters and mean nothing."""


class DataUriScanner:
    """Takes JSON text in pieces cut anywhere; strings that are base64 data URIs go to files, all else is kept.

    Only strings are understood; whether the rest is JSON is seen when it is parsed.
    """

    def __init__(
        self, spool: Spool, *, max_part_bytes: int, max_text_bytes: int, max_parts: int, max_values: int = 100_000
    ) -> None:
        self._spool = spool
        self._max_part_bytes = max_part_bytes
        self._max_text_bytes = max_text_bytes
        self._max_parts = max_parts
        self._max_values = max_values
        self._values = 1
        """At least as many as the document has: its own, and one behind each comma and each opening bracket."""
        self._strings = 0
        self._parts: dict[str, SpooledPart] = {}
        self._text = bytearray()
        """The document so far, with keys in place of data URIs."""
        self._where = _Where.OUTSIDE
        self._waiting = b""
        """What could not be understood without what follows it."""
        self._file: _Base64File | None = None

    @property
    def text_bytes(self) -> int:
        """How much there is to parse so far."""
        return len(self._text)

    def feed(self, piece: bytes) -> None:
        """Take the next bytes. Writes files: call it in a thread if the piece is large. Raises `AnswerUnreadable`.

        A step understands the piece from an index on and says from where to go on. What is left is never copied: a piece
        may hold a hundred thousand strings.
        """
        piece = self._waiting + piece
        self._waiting = b""
        steps: Mapping[_Where, Callable[[bytes, int], int]] = {
            _Where.OUTSIDE: self._outside,
            _Where.HEAD: self._head,
            _Where.TEXT: self._in_text,
            _Where.DATA: self._in_data,
        }
        at = 0
        while at < len(piece):
            at = steps[self._where](piece, at)
        if len(self._text) > self._max_text_bytes:
            raise AnswerUnreadable(f"the answer has more than {self._max_text_bytes} bytes of text")

    def finish(self) -> SpooledJson:
        """Parse what is left once all has been taken. Raises `AnswerUnreadable`."""
        if self._where is not _Where.OUTSIDE:
            raise AnswerUnreadable("the answer ends inside a string")
        try:
            return SpooledJson(msgspec.json.decode(self._text), self._parts)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise AnswerUnreadable("the answer is not JSON") from exc

    def discard(self) -> None:
        """Remove all files."""
        if self._file is not None:
            self._file.path.unlink(missing_ok=True)
        for part in self._parts.values():
            part.path.unlink(missing_ok=True)

    def _outside(self, piece: bytes, at: int) -> int:
        quote = piece.find(b'"', at)
        end = len(piece) if quote < 0 else quote + 1
        between = piece[at:end]
        self._values += between.count(b",") + between.count(b"[") + between.count(b"{")
        self._strings += quote >= 0
        if max(self._values, self._strings // 2) > self._max_values:  # half of the strings may be names
            raise TooManyValues(f"the answer has more than {self._max_values} values")
        self._text += between
        if quote >= 0:
            self._where = _Where.HEAD
        return end

    def _head(self, piece: bytes, at: int) -> int:
        """Decide what kind of string begins here, or wait for more of it."""
        quote = piece.find(b'"', at, at + _HEAD_BYTES)
        comma = piece.find(b",", at, at + _HEAD_BYTES if quote < 0 else quote)
        if comma >= 0:
            found = _DATA_HEAD.fullmatch(_unescaped_head(piece[at : comma + 1]))
            if found:
                self._begin_part(found[1] or "text/plain")
                return comma + 1
        elif quote < 0 and len(piece) - at < _HEAD_BYTES and b"data:".startswith(piece[at : at + 5].lower()):
            self._waiting = piece[at:]
            return len(piece)
        self._where = _Where.TEXT
        return at

    def _in_text(self, piece: bytes, at: int) -> int:
        quote = _end_of_string(piece, at)
        if quote < 0:
            keep = _cut_escape(piece, at)
            self._text += piece[at:keep]
            self._waiting = piece[keep:]
            return len(piece)
        self._text += piece[at : quote + 1]
        self._where = _Where.OUTSIDE
        return quote + 1

    def _in_data(self, piece: bytes, at: int) -> int:
        assert self._file is not None
        quote = piece.find(b'"', at)
        if quote < 0:
            keep = _cut_escape(piece, at)
            self._file.write(_unescaped(piece[at:keep]))
            self._waiting = piece[keep:]
            return len(piece)
        self._file.write(_unescaped(piece[at:quote]))
        self._end_part(self._file)
        return quote

    def _begin_part(self, mime: str) -> None:
        if len(self._parts) >= self._max_parts:
            raise AnswerUnreadable(f"the answer has more than {self._max_parts} pictures")
        self._file = _Base64File(self._spool.path(), mime, self._max_part_bytes)
        self._where = _Where.DATA

    def _end_part(self, file: "_Base64File") -> None:
        part = file.finish()
        self._file = None
        key = f"spooled:{part.path.name}"  # random, so that no answer can name a file it did not bring
        self._parts[key] = part
        self._text += key.encode()
        self._where = _Where.TEXT  # at the closing quote


@dataclass(slots=True)
class _Base64File:
    """A file that grows by base64. Open only while it is written, so that it can be given up at any time."""

    path: Path
    mime: str
    max_bytes: int
    _size: int = 0
    _rest: bytes = b""
    """Up to three characters that do not make a whole group yet."""
    _ended: bool = False
    """Whether padding was met."""
    _made: bool = False

    def write(self, encoded: bytes) -> None:
        encoded = self._rest + encoded
        whole = len(encoded) // 4 * 4
        self._rest = encoded[whole:]
        self._append(encoded[:whole])

    def finish(self) -> SpooledPart:
        self._append(self._rest + b"=" * (-len(self._rest) % 4))  # without padding nothing is lost, so it may be missing
        if not self._made:
            create_file(self.path)
        return SpooledPart(self.path, self.mime, self._size)

    def _append(self, encoded: bytes) -> None:
        if not encoded:
            return
        content = self._decoded(encoded)
        self._size += len(content)
        if self._size > self.max_bytes:
            raise AnswerUnreadable(f"a picture of the answer has more than {self.max_bytes} bytes")
        put = append_to_file if self._made else create_file
        put(self.path, content)
        self._made = True

    def _decoded(self, encoded: bytes) -> bytes:
        if self._ended:
            raise AnswerUnreadable("base64 goes on after its end")
        self._ended = encoded.endswith(b"=")
        try:
            return pybase64.b64decode(encoded, validate=True)
        except ValueError as exc:
            raise AnswerUnreadable("the base64 is broken") from exc


def _end_of_string(text: bytes, at: int) -> int:
    """Where, from `at` on, the first quote is that no backslash takes away; -1 if there is none."""
    quote = text.find(b'"', at)
    while quote >= 0 and _backslashes_before(text, quote, at) % 2:
        quote = text.find(b'"', quote + 1)
    return quote


def _cut_escape(text: bytes, at: int) -> int:
    """Where, from `at` on, an escape begins that `text` does not finish; the length of `text` if there is none."""
    last = text.rfind(b"\\", max(at, len(text) - 6))
    if last < 0 or _backslashes_before(text, last, at) % 2:
        return len(text)
    needed = 6 if text[last + 1 : last + 2] == b"u" else 2
    return last if len(text) - last < needed else len(text)


def _backslashes_before(text: bytes, index: int, at: int) -> int:
    start = index
    while start > at and text[start - 1] == 0x5C:
        start -= 1
    return index - start


def _unescaped(encoded: bytes) -> bytes:
    return _ESCAPE.sub(_plain, encoded) if b"\\" in encoded else encoded


def _unescaped_head(head: bytes) -> str:
    return _unescaped(head).decode("latin-1")


def _plain(escape: re.Match[bytes]) -> bytes:
    if escape[1]:
        code = int(escape[1], 16)
        return chr(code).encode("ascii") if code < 0x80 else b"\\"
    return _PLAIN_ESCAPES.get(escape[2], b"\\")  # a backslash is not base64, so that decoding fails


# Fetching


class TransferFault(StrEnum):
    """Why a picture could not be fetched."""

    ADDRESS = "address"
    """Not an address that can be asked, or one inside a private network."""
    STATUS = "status"
    """The server answered with something other than 200."""
    TOO_LARGE = "too_large"
    CUT = "cut"
    """The connection broke or the body is not as long as announced."""
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"


class TransferFailed(Exception):
    """A picture could not be fetched. `public` may be shown to the caller: it names the host, never the whole address."""

    def __init__(self, fault: TransferFault, public: str, *, status: int | None = None) -> None:
        super().__init__(public)
        self.fault = fault
        self.public = public
        self.status = status
        """The HTTP status, with the fault `status`."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that was fetched."""

    path: Path
    size_bytes: int
    content_type: str | None
    """As the server says; not to be believed."""


async def download(client: http.AsyncClient, url: str, target: Path, *, max_bytes: int, deadline_s: float) -> Fetched:
    """Fetch `url` into the new file `target`, following at most 3 redirects, each judged by the client's guard.

    Used for results of providers and for pictures that callers name by address.

    Args:
        client: Made with a guard, unless the address is known to be good.
        url: http or https.
        target: Does not exist yet; removed again if this fails.
        max_bytes: The largest file.
        deadline_s: For all of it, seconds.

    Raises:
        TransferFailed: With a message for the caller.
    """
    try:
        async with asyncio.timeout(deadline_s):
            return await _fetch(client, url, target, max_bytes)
    except BaseException as exc:
        _remove(target)
        failure = _transfer_failure(exc, _host(url))
        if failure is None:
            raise
        raise failure from exc


async def _fetch(client: http.AsyncClient, url: str, target: Path, max_bytes: int) -> Fetched:
    response = await _open(client, url)
    try:
        if response.status_code != 200:
            raise TransferFailed(
                TransferFault.STATUS,
                f"{response.url.host} answered with status {response.status_code}",
                status=response.status_code,
            )
        announced = response.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > max_bytes:
            raise _too_large(response.url.host, max_bytes)
        size = await _write(response, target, max_bytes)
        return Fetched(target, size, response.headers.get("content-type"))
    finally:
        await response.aclose()


async def _open(client: http.AsyncClient, url: str) -> http.Response:
    """Follow redirects without reading their bodies, which httpx would do, however long they are."""
    try:
        request = client.build_request("GET", url, headers={"Accept": "image/*, */*;q=0.5"})
        for _ in range(_MAX_REDIRECTS + 1):
            _refuse_credentials(request.url)
            response = await client.send(request, stream=True, follow_redirects=False)
            if response.next_request is None:
                return response
            await response.aclose()
            request = response.next_request
    except ValueError as exc:  # what httpx, idna, yarl and the resolver say of ports and names that cannot be
        raise http.UnsupportedProtocol("the address is not valid") from exc
    except http.RemoteProtocolError as exc:
        if isinstance(exc.__context__, http.InvalidURL):  # httpx's word for a redirect to what is no address
            raise http.UnsupportedProtocol("the address is not valid") from exc
        raise
    raise TransferFailed(TransferFault.ADDRESS, f"{request.url.host} was reached after more than {_MAX_REDIRECTS} redirects")


def _refuse_credentials(url: http.URL) -> None:
    if url.userinfo:
        raise TransferFailed(TransferFault.ADDRESS, "the address has, or leads to one that has, a user name or password in it")


async def _write(response: http.Response, target: Path, max_bytes: int) -> int:
    size = 0
    await in_thread(create_file, target)
    async for batch in _batches(response.aiter_raw()):
        size += len(batch)
        if size > max_bytes:
            raise _too_large(response.url.host, max_bytes)
        await in_thread(append_to_file, target, batch)
    return size


def _remove(target: Path) -> None:
    target.unlink(missing_ok=True)


def _too_large(host: str, max_bytes: int) -> TransferFailed:
    return TransferFailed(TransferFault.TOO_LARGE, f"the file at {host} has more than {max_bytes} bytes")


def _transfer_failure(error: BaseException, host: str) -> TransferFailed | None:
    match error:
        case http.AddressRefused():
            return TransferFailed(TransferFault.ADDRESS, f"{host} is, or leads, inside a private network")
        case http.InvalidURL() | http.UnsupportedProtocol():
            return TransferFailed(TransferFault.ADDRESS, f"{host} is not, or leads to what is not, an http or https address")
        case http.TimeoutException() | TimeoutError():
            return TransferFailed(TransferFault.TIMEOUT, f"{host} did not deliver in time")
        case http.ConnectError():
            return TransferFailed(TransferFault.UNREACHABLE, f"{host} cannot be reached")
        case http.HTTPError():
            return TransferFailed(TransferFault.CUT, f"{host} broke off")
        case _:
            return None


def _host(url: str) -> str:
    try:
        return http.URL(url).host or "the address"
    except (http.InvalidURL, ValueError):  # idna's errors are of the latter kind
        return "the address"


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run file work in a thread. When cancelled, wait for the thread first, so that nothing is written after the clean-up."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # seen, and of no interest to whoever has left
        raise
