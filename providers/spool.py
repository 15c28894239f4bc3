"""Temporary files of one process: pictures on their way, on disk instead of in memory.

All lie in one folder under `TMPDIR`, locked while the process lives, so that the next start removes what a killed one left.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""How a folder is opened in a place where others may have put a link or a pipe by its name."""

_PRIVATE_FILE = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class SpoolUnsafe(Exception):
    """The folder for temporary files could be changed by other users of the machine."""


class Spool:
    """A folder of temporary files that goes when the process goes."""

    def __init__(self, parent: Path | None = None) -> None:
        """Make the folder under `parent` (default: `TMPDIR`), and remove the folders of processes that are no more.

        Raises:
            SpoolUnsafe: If `parent` is there and is not a folder of ours alone, as anybody may make one in a shared /tmp.
        """
        parent = parent or Path(tempfile.gettempdir()) / f"image-gateway-{os.getuid()}"
        _make(parent)
        # One start at a time: a new folder that is not locked yet looks like a dead process's.
        with _held(parent) as handle:
            _refuse_shared(parent, handle)
            _remove_orphans(parent)
            self.folder = Path(tempfile.mkdtemp(prefix="spool-", dir=parent))
            self._lock = _lock(self.folder)

    def path(self, suffix: str = "") -> Path:
        """A new name in the folder. The file does not exist yet; whoever makes it removes it."""
        return self.folder / f"{uuid4().hex}{suffix}"

    def close(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def create_file(path: Path, content: bytes = b"") -> None:
    """Make a file of the spool. Raises `FileExistsError` rather than follow what lies there."""
    _write(os.open(path, _PRIVATE_FILE | os.O_CREAT | os.O_EXCL, 0o666), content)


def append_to_file(path: Path, content: bytes) -> None:
    """Write on at the end of a file that `create_file` made."""
    _write(os.open(path, _PRIVATE_FILE), content)


def _write(handle: int, content: bytes) -> None:
    with os.fdopen(handle, "wb") as file:  # buffered, because a plain write may take only a part
        file.write(content)


def _make(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return  # looked at once it is open


@contextmanager
def _held(folder: Path) -> Generator[int]:
    """Have a folder's lock for a moment, waiting for whoever has it. Gives the open folder."""
    try:
        handle = os.open(folder, _FOLDER)
    except OSError as exc:
        raise _unsafe(folder) from exc
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _refuse_shared(folder: Path, handle: int) -> None:
    found = os.fstat(handle)
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _unsafe(folder)


def _unsafe(folder: Path) -> SpoolUnsafe:
    return SpoolUnsafe(f"{folder} must be a folder that only this user can write to; remove it, or set TMPDIR to a private place")


def _lock(folder: Path) -> int | None:
    """Take the folder's lock for as long as this process lives; None if another process has it, or it is no folder."""
    try:
        handle = os.open(folder, _FOLDER)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _remove_orphans(parent: Path) -> None:
    for folder in parent.glob("spool-*"):
        handle = _lock(folder)
        if handle is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)
