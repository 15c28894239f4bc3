"""How an HTTP/1 answer is framed, watched on its way to the parser: strangers' servers may cost bytes, but no time.

Made for one connection with one answer. Knows nothing of clients or sockets; what the answer means is the parser's matter.
"""

import re
from enum import StrEnum

_MAX_HEAD_BYTES = 2**16
"""Of all heads together, the provisional ones included."""

_MAX_PROVISIONAL = 8
"""Answers such as 103 Early Hints before the real one. Servers send one or two."""

_MAX_LINE_BYTES = 256
"""A chunk's size with its extensions, which nobody uses."""

_MAX_TRAILER_BYTES = 8192

_FREE_CHUNKS = 1000
_MEAN_CHUNK_BYTES = 64
"""What chunks must have on average once there are more than `_FREE_CHUNKS`: each costs the parser as much as a kilobyte."""

_HEAD_END = re.compile(rb"\n\r?\n")
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r\n]")
_CHUNKED = re.compile(rb"^transfer-encoding[ \t]*:", re.IGNORECASE | re.MULTILINE)
_LENGTH = re.compile(rb"^content-length[ \t]*:[ \t]*([0-9]{1,18})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")


class AbsurdAnswer(Exception):
    """An answer that no picture is sent in."""


class _Where(StrEnum):
    HEAD = "head"
    CHUNK_SIZE = "chunk_size"
    CHUNK = "chunk"
    CHUNK_END = "chunk_end"
    TRAILER = "trailer"
    BODY = "body"
    """Of a known length, or until the connection ends."""
    OVER = "over"


class FramingWatch:
    """Follows one answer as its bytes arrive, cut anywhere."""

    def __init__(self) -> None:
        self._where = _Where.HEAD
        self._waiting = bytearray()
        """A head, line or trailer that has not ended yet."""
        self._head_bytes = 0
        self._provisional = 0
        self._left: int | None = None
        """Of the body, or of this chunk; None until the connection ends."""
        self._chunks = 0
        self._chunked_bytes = 0

    def take(self, data: bytes) -> bytes:
        """Look at the next bytes and return those that belong to the answer: whatever follows it is dropped.

        Raises:
            AbsurdAnswer: For heads, provisional answers or chunks without end, and where the framing cannot be followed.
        """
        at = 0
        while at < len(data) and self._where is not _Where.OVER:
            match self._where:
                case _Where.HEAD:
                    at = self._head(data, at)
                case _Where.CHUNK_SIZE | _Where.CHUNK_END:
                    at = self._line(data, at)
                case _Where.CHUNK | _Where.BODY:
                    at = self._content(data, at)
                case _Where.TRAILER:
                    at = self._trailer(data, at)
        return data[:at]

    def _head(self, data: bytes, at: int) -> int:
        head, end = self._until(_HEAD_END, data, at)
        self._head_bytes += end - at
        if self._head_bytes > _MAX_HEAD_BYTES:
            raise AbsurdAnswer("its head has no end")
        if head is not None:
            self._begin(head)
        return end

    def _begin(self, head: bytes) -> None:
        """Understand a whole head."""
        found = _STATUS.match(head)
        if found is None or found[1] == b"101":
            raise AbsurdAnswer("it is not HTTP")
        if found[1].startswith(b"1"):
            self._provisional += 1
            if self._provisional > _MAX_PROVISIONAL:
                raise AbsurdAnswer(f"it has more than {_MAX_PROVISIONAL} provisional answers")
        elif found[1] in {b"204", b"304"}:
            self._where = _Where.OVER
        elif _CHUNKED.search(head):
            self._where = _Where.CHUNK_SIZE
        else:
            length = _LENGTH.search(head)
            self._left = int(length[1]) if length else None
            self._where = _Where.OVER if self._left == 0 else _Where.BODY

    def _line(self, data: bytes, at: int) -> int:
        """The size of a chunk, or the line end behind it."""
        newline = data.find(b"\n", at, at + _MAX_LINE_BYTES)
        end = min(len(data), at + _MAX_LINE_BYTES) if newline < 0 else newline + 1
        self._waiting += data[at:end]
        if len(self._waiting) > _MAX_LINE_BYTES or (newline < 0 and end < len(data)):
            raise AbsurdAnswer("the line of a chunk's size has no end")
        if newline < 0:
            return end
        line = bytes(self._waiting)
        self._waiting.clear()
        if self._where is _Where.CHUNK_SIZE:
            self._begin_chunk(line)
        elif line in {b"\r\n", b"\n"}:
            self._where = _Where.CHUNK_SIZE
        else:
            raise AbsurdAnswer("a chunk is longer than it said")
        return end

    def _begin_chunk(self, line: bytes) -> None:
        found = _CHUNK_SIZE.fullmatch(line)
        if found is None:
            raise AbsurdAnswer("a chunk has no size")
        self._left = int(found[1], 16)
        self._chunks += 1
        self._chunked_bytes += self._left
        if self._left == 0:
            self._where = _Where.TRAILER
            self._waiting += b"\n"  # of the line before, so that an empty line is found at once
        elif self._chunks > _FREE_CHUNKS and self._chunked_bytes < self._chunks * _MEAN_CHUNK_BYTES:
            raise AbsurdAnswer("its chunks are too small")
        else:
            self._where = _Where.CHUNK

    def _content(self, data: bytes, at: int) -> int:
        if self._left is None:
            return len(data)
        taken = min(self._left, len(data) - at)
        self._left -= taken
        if self._left == 0:
            self._where = _Where.CHUNK_END if self._where is _Where.CHUNK else _Where.OVER
        return at + taken

    def _trailer(self, data: bytes, at: int) -> int:
        trailer, end = self._until(_HEAD_END, data, at)
        if trailer is not None:
            self._where = _Where.OVER
        elif len(self._waiting) > _MAX_TRAILER_BYTES:
            raise AbsurdAnswer("its trailer has no end")
        return end

    def _until(self, ending: re.Pattern[bytes], data: bytes, at: int) -> tuple[bytes | None, int]:
        """What has been waiting with what ends it in `data`, if it does, and where `data` goes on."""
        known = len(self._waiting)
        self._waiting += data[at : at + _MAX_HEAD_BYTES]
        found = ending.search(self._waiting, max(0, known - 2))
        if found is None:
            return None, min(len(data), at + _MAX_HEAD_BYTES)
        whole = bytes(self._waiting[: found.end()])
        self._waiting.clear()
        return whole, at + found.end() - known
