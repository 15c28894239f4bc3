"""Temporary files of one process: pictures on their way, on disk instead of in memory.

All lie in one folder under `TMPDIR`, locked while the process lives, so that the next start removes what a killed one left.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


class Spool:
    """A folder of temporary files that goes when the process goes."""

    def __init__(self, parent: Path | None = None) -> None:
        """Make the folder under `parent` (default: `TMPDIR`), and remove the folders of processes that are no more."""
        parent = parent or Path(tempfile.gettempdir()) / f"image-gateway-{os.getuid()}"
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # One start at a time: a new folder that is not locked yet looks like a dead process's.
        with _held(parent):
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


@contextmanager
def _held(folder: Path) -> Generator[None]:
    """Have a folder's lock for a moment, waiting for whoever has it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _lock(folder: Path) -> int | None:
    """Take the folder's lock for as long as this process lives; None if another process has it."""
    handle = os.open(folder, os.O_RDONLY)
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
