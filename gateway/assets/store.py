"""The one place where results are kept: files under a folder, an S3 bucket, or memory (for tests), behind the same few verbs."""

import asyncio
import errno
import os
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, MemoryStore, S3Store

from gateway.errors import NotFound, Overloaded

BLOCK_BYTES = 3 * 96 * 1024
"""Read at a time: a multiple of three, so that a block is base64 without a remainder; large, so that threads are few."""

_REMOTE_BYTES = 5 * BLOCK_BYTES
"""Asked of a remote store at a time, so that its latency counts less."""

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_NO_ROOM = re.compile(r"\(os error (?:28|122)\)")
"""How the storage library reports ENOSPC and EDQUOT: in words only."""
_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS, errno.EACCES}


class AssetMissing(NotFound):
    """Nothing is stored under that key (any more)."""

    def __init__(self) -> None:
        super().__init__("no such file; results are kept for a limited time")


class StorageFailed(Exception):
    """The store could not be reached or refused. For the operator; callers see an internal error."""


@dataclass(frozen=True, slots=True)
class StoredAsset:
    """A file in the store."""

    key: str
    size_bytes: int


class AssetStore:
    """Files by key. Keys are letters, digits, `.`, `_`, `-` and `/`; what is stored under one never changes."""

    def __init__(self, objects: LocalStore | MemoryStore | S3Store, folder: Path | None = None) -> None:
        """Use an object store.

        Args:
            objects: Where the files are.
            folder: The folder of a local store: files are then linked into it and read from it directly, which costs a
                tenth of the way through the library.
        """
        self._objects = objects
        self._folder = folder

    async def put_file(self, path: Path, key: str) -> StoredAsset:
        """Store the file at `path`, which stays where it is. All or nothing; never held in memory whole.

        On the same file system it is a hard link: nothing is copied, and nobody may write to `path` afterwards.

        Raises:
            Overloaded: If the disk is full.
            StorageFailed: If the store cannot be reached or refuses.
        """
        _check(key)
        size_bytes = await asyncio.to_thread(self._link, path, key)
        if size_bytes is None:
            size_bytes = (await asyncio.to_thread(path.stat)).st_size
            try:
                await obstore.put_async(self._objects, key, path)
            except (BaseError, OSError) as error:
                raise _put_failure(error) from error
        return StoredAsset(key, size_bytes)

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """Give the bytes from `start` up to, not including, `end` (None: the end of the file), in blocks.

        No block is larger than `BLOCK_BYTES`.

        Raises:
            AssetMissing: If there is no such file.
            StorageFailed: If the store cannot be read, or the file is shorter than `end`.
        """
        _check(key)
        blocks = self._read_local(self._folder / key, start, end) if self._folder else self._read_remote(key, start, end)
        try:
            async with aclosing(blocks):
                async for block in blocks:
                    yield block
        except FileNotFoundError as error:
            raise AssetMissing from error
        except (BaseError, OSError) as error:
            raise StorageFailed(f"reading {key}: {error}") from error

    async def size(self, key: str) -> int:
        """Size in bytes.

        Raises:
            AssetMissing: If there is no such file.
            StorageFailed: If the store cannot be reached.
        """
        _check(key)
        try:
            return (await obstore.head_async(self._objects, key))["size"]
        except FileNotFoundError as error:
            raise AssetMissing from error
        except (BaseError, OSError) as error:
            raise StorageFailed(f"looking at {key}: {error}") from error

    async def delete(self, key: str) -> None:
        """Remove a file. Not an error if it is not there.

        Raises:
            StorageFailed: If the store cannot be reached or refuses.
        """
        _check(key)
        try:
            await obstore.delete_async(self._objects, key)
        except FileNotFoundError:
            return
        except (BaseError, OSError) as error:
            raise StorageFailed(f"removing {key}: {error}") from error

    async def ping(self) -> None:
        """Return if the store answers, and, where that can be told without writing, takes files.

        Raises:
            StorageFailed: If not.
        """
        if self._folder is not None and not os.access(self._folder, os.W_OK | os.X_OK):
            raise StorageFailed(f"{self._folder} is not a folder that can be written to")
        try:
            await obstore.head_async(self._objects, "ping")
        except FileNotFoundError:
            return  # it answered
        except (BaseError, OSError) as error:
            raise StorageFailed(f"the asset store does not answer: {error}") from error

    def _link(self, path: Path, key: str) -> int | None:
        """Make a hard link and return the size; None where there is no such thing, and the bytes must be copied."""
        if self._folder is None:
            return None
        target = self._folder / key
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
            return target.stat().st_size
        except FileExistsError:
            return None  # stored before, by a step that is being repeated: written anew
        except OSError as error:
            if error.errno in _CANNOT_LINK:
                return None
            raise _put_failure(error) from error

    async def _read_local(self, path: Path, start: int, end: int | None) -> AsyncGenerator[bytes]:
        with await asyncio.to_thread(path.open, "rb", buffering=0) as file:
            file.seek(start)
            while end is None or start < end:
                block = await _uninterrupted(file.read, BLOCK_BYTES if end is None else min(BLOCK_BYTES, end - start))
                if not block and end is None:
                    return
                if not block:
                    raise StorageFailed(f"{path.name} is shorter than {end} bytes")
                start += len(block)
                yield block

    async def _read_remote(self, key: str, start: int, end: int | None) -> AsyncGenerator[bytes]:
        """Ask for one range after the other: a single long answer would time out behind a slow client."""
        if end is None:
            end = await self.size(key)
        while start < end:
            part = await obstore.get_range_async(self._objects, key, start=start, end=min(end, start + _REMOTE_BYTES))
            if not len(part):
                raise StorageFailed(f"{key} is shorter than {end} bytes")
            start += len(part)
            view = memoryview(part)
            for offset in range(0, len(view), BLOCK_BYTES):
                yield bytes(view[offset : offset + BLOCK_BYTES])


async def _uninterrupted(read: Callable[[int], bytes], size_bytes: int) -> bytes:
    """Read in a thread, to the end even if cancelled: a file must not be closed under a read that goes on."""
    reading = asyncio.get_running_loop().run_in_executor(None, read, size_bytes)
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        await asyncio.wait([reading])
        raise


def open_store(url: str, *, s3: Mapping[str, str] | None = None) -> AssetStore:
    """Open the store at `url`, making the folder of a local one.

    Args:
        url: `file:///folder`, `s3://bucket/prefix` or `memory:///`.
        s3: Settings over what the usual AWS variables say: `endpoint`, `region` and the other names of obstore's S3 store. An
            `endpoint` that begins with `http:` is taken at its word.

    Raises:
        ValueError: For another kind of address.
    """
    parts = urlsplit(url)
    match parts.scheme:
        case "file" if parts.netloc in {"", "localhost"} and parts.path:
            folder = Path(unquote(parts.path))
            return AssetStore(LocalStore(folder, mkdir=True), folder)
        case "s3" if parts.netloc:
            return AssetStore(_open_s3(parts.netloc, parts.path.strip("/"), dict(s3 or {})))
        case "memory":
            return AssetStore(MemoryStore())
        case _:
            raise ValueError(f"the storage address must be file:///folder or s3://bucket/prefix, not {url!r}")


def _open_s3(bucket: str, prefix: str, settings: dict[str, str]) -> S3Store:
    plain = settings.get("endpoint", "").startswith("http:")
    return S3Store(
        bucket,
        prefix=prefix or None,
        client_options={"allow_http": plain},
        **settings,  # pyright: ignore[reportArgumentType]  # names are the operator's, checked when opened
    )


def _check(key: str) -> None:
    """A key is made by us; one that is not of the form is a fault of ours, or a forged path that came too far."""
    if not _KEY.fullmatch(key):
        raise AssetMissing


def _put_failure(error: Exception) -> Exception:
    if _NO_ROOM.search(str(error)) or (isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}):
        return Overloaded(
            "the gateway's disk for results is full; try again later", code="storage_full", detail=str(error), retry_after_s=30.0
        )
    return StorageFailed(f"storing failed: {error}")
