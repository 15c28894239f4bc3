"""Bounded reading of a file that may lie about itself."""

from io import SEEK_END
from typing import BinaryIO

MAX_READS = 400_000
"""How many pieces one file may be taken apart into. Honest files of 50 MiB need under 220,000 (GIF, 255 bytes each); without
a bound, a file made of empty pieces keeps a processor busy for minutes."""

PIECE_BYTES = 64 * 1024
"""The most that is ever read at once."""


class InvalidImage(Exception):
    """The bytes are not a picture that the gateway takes.

    `code` is for programs: `invalid_image_file` (not a picture, truncated or damaged), `unsupported_file_mimetype` (something
    else, recognised), `too_many_pixels`, `too_many_frames`. `message` is for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


def damaged(what: str) -> InvalidImage:
    """The error for a file that contradicts its own format."""
    return InvalidImage("invalid_image_file", f"the picture is damaged: {what}")


def truncated() -> InvalidImage:
    """The error for a file that ends before it should."""
    return InvalidImage("invalid_image_file", "the picture is truncated: the file ends before the picture does")


class Reader:
    """A position in a file; reads past the end, and too many reads, raise `InvalidImage`."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._reads = 0
        self.size = stream.seek(0, SEEK_END)
        """Of the whole file, in bytes."""
        self.position = 0
        stream.seek(0)

    @property
    def left(self) -> int:
        """Bytes from here to the end of the file."""
        return self.size - self.position

    def take(self, length: int) -> bytes:
        """The next `length` bytes, at most `PIECE_BYTES`."""
        self._reads += 1
        if self._reads > MAX_READS:
            raise damaged("it is in too many pieces")
        if length > PIECE_BYTES:
            raise damaged("a part of its header is too long")
        piece = self._stream.read(length)
        if len(piece) != length:
            raise truncated()
        self.position += length
        return piece

    def peek(self, length: int) -> bytes:
        """Up to `length` bytes from here, fewer at the end of the file, without moving on."""
        piece = self.take(min(length, self.left))
        self.go(self.position - len(piece))
        return piece

    def number(self, length: int, order: str = "big") -> int:
        """The next `length` bytes as an unsigned number."""
        return int.from_bytes(self.take(length), "big" if order == "big" else "little")

    def skip(self, length: int) -> None:
        """Move on by `length` bytes, which must exist."""
        self.go(self.position + length)

    def go(self, position: int) -> None:
        """Move to `position`, which must lie within the file."""
        if not 0 <= position <= self.size:
            raise truncated()
        self._stream.seek(position)
        self.position = position
