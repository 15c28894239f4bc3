"""A picture on its way from the caller into the spool: written in blocks, hashed and counted as it comes, then looked at."""

import asyncio
import errno
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import BadRequest, Overloaded, TooLarge
from normalization.pixels.formats import ImageInfo
from normalization.pixels.probe import InvalidImage, ProbeLimits, probe
from normalization.request import Json

_BLOCK_BYTES = 512 * 1024
"""Collected before one write in a thread; with the piece that overflows it, what one upload holds in memory."""
_INLINE_BYTES = 64 * 1024
"""Up to here a write costs the event loop no more than the way to a thread and back would."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


class UnreadableImage(BadRequest):
    """The caller's file is not a picture that the gateway reads."""

    type = "image_generation_user_error"
    default_code = "invalid_image_file"


@dataclass(frozen=True, slots=True)
class Received:
    """Bytes of one file that lie in the spool, not looked at yet."""

    path: Path
    size_bytes: int
    sha256: str
    """Of the bytes as they came, in hexadecimal."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A picture of the request in the spool."""

    path: Path
    size_bytes: int
    sha256: str
    """Of the bytes as they came, in hexadecimal."""
    info: ImageInfo
    """What its header says."""


@dataclass(frozen=True, slots=True)
class RawForm:
    """A body that was read to its end, pictures not looked at yet."""

    fields: Mapping[str, Json]
    images: tuple[tuple[str, Received], ...]
    """The caller's name for each, such as `image[1]`, and the file."""
    masks: tuple[Received, ...]
    """None or one."""


class SpoolFile:
    """One spool file being written. Either `finish` or `discard` ends it; `discard` is safe at any moment, twice too."""

    def __init__(self, path: Path, max_bytes: int, param: str) -> None:
        """Make the file.

        Args:
            path: A new name in the spool.
            max_bytes: The first byte past this raises.
            param: The caller's name for it, for errors.

        Raises:
            Overloaded: If the disk has no room for even the name.
        """
        self.path = path
        self.size_bytes = 0
        self._max_bytes = max_bytes
        self._param = param
        self._hash = hashlib.sha256()
        self._pending = bytearray()
        self._writing: asyncio.Future[None] | None = None
        try:
            self._file = path.open("xb", buffering=0)
        except OSError as error:
            raise spool_failure(error) from error

    async def write(self, piece: bytes) -> None:
        """Take the next bytes.

        Raises:
            TooLarge: If there are more than `max_bytes`.
            Overloaded: If the disk is full.
        """
        self.size_bytes += len(piece)
        if self.size_bytes > self._max_bytes:
            raise TooLarge(
                f"`{self._param}` is larger than {self._max_bytes} bytes, the most that one file may have", param=self._param
            )
        self._pending += piece
        if len(self._pending) >= _BLOCK_BYTES:
            await self._flush()

    async def finish(self) -> Received:
        """Write what is left and close the file.

        Raises:
            Overloaded: If the disk is full.
        """
        await self._flush()
        self._file.close()
        return Received(self.path, self.size_bytes, self._hash.hexdigest())

    def discard(self) -> None:
        """Remove the file. A write that is under way in a thread ends into a file without a name."""
        self.path.unlink(missing_ok=True)
        if self._writing is None or self._writing.done():
            self._file.close()
        else:
            self._writing.add_done_callback(self._close_after)

    async def _flush(self) -> None:
        block, self._pending = self._pending, bytearray()
        try:
            if len(block) <= _INLINE_BYTES:
                self._append(block)
            else:
                self._writing = asyncio.get_running_loop().run_in_executor(None, self._append, block)
                # shielded: a cancelled request must not lose sight of a write that goes on in its thread
                await asyncio.shield(self._writing)
        except OSError as error:
            raise spool_failure(error) from error

    def _append(self, block: bytearray) -> None:
        self._hash.update(block)
        left = memoryview(block)
        while left:
            left = left[self._file.write(left) :]

    def _close_after(self, writing: asyncio.Future[None]) -> None:
        writing.exception()  # looked at, so that asyncio does not report it as forgotten: the file is gone anyway
        self._file.close()


def spool_failure(error: OSError) -> Exception:
    """What a failed write to the spool means to the caller: a full disk is 503 and worth a later try; anything else is a fault."""
    if error.errno not in _NO_ROOM:
        return error
    return Overloaded(
        "the gateway's disk for uploads is full; try again later", code="spool_full", detail=str(error), retry_after_s=30.0
    )


def adopt(path: Path) -> Received:
    """Count and hash a file that somebody else wrote into the spool. Blocks; for a thread.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return Received(path, file.tell(), digest.hexdigest())


async def look_at(received: Sequence[tuple[str, Received]], limits: ProbeLimits) -> tuple[Upload, ...]:
    """Read the headers of the files and refuse what is not a picture within the limits.

    Args:
        received: The caller's name for each file, and the file.
        limits: What a picture may have at most.

    Raises:
        BadRequest: For the first file that is not a picture or beyond the limits, named in `param`; `UnreadableImage` if it is
            not a whole picture at all.
    """

    def look() -> tuple[Upload, ...]:
        return tuple(_look_at(param, file, limits) for param, file in received)

    if sum(file.size_bytes for _, file in received) <= _INLINE_BYTES:
        return look()
    return await asyncio.to_thread(look)


async def remove(uploads: Sequence[Upload]) -> None:
    """Remove the files. Those that are gone already are no harm."""

    def unlink() -> None:
        for upload in uploads:
            upload.path.unlink(missing_ok=True)

    if sum(upload.size_bytes for upload in uploads) <= _INLINE_BYTES:
        unlink()
    else:
        await asyncio.to_thread(unlink)  # freeing the blocks of a large file takes its time


def _look_at(param: str, file: Received, limits: ProbeLimits) -> Upload:
    try:
        with file.path.open("rb") as stream:
            info = probe(stream, limits)
    except InvalidImage as error:
        kind = UnreadableImage if error.code == UnreadableImage.default_code else BadRequest
        raise kind(f"`{param}`: {error.message}", param=param, code=error.code) from error
    return Upload(file.path, file.size_bytes, file.sha256, info)
