"""A lock that processes share through a file, and that the system gives back when its holder dies."""

import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


class LockBusy(Exception):
    """Another process kept the lock for longer than we were ready to wait."""


class FileLock:
    """An exclusive `flock` on a file of its own. One thread of a process uses it at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def try_take(self) -> bool:
        """Take the lock if it is free, and say whether we have it. The file is made if it is not there."""
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    @contextmanager
    def held(self, patience_s: float) -> Generator[None]:
        """Hold the lock for the block.

        Raises:
            LockBusy: If others have it for the next `patience_s` seconds.
        """
        # A plain blocking flock could not be given up: a stopped holder would stop this thread for good.
        deadline = time.monotonic() + patience_s
        while not self.try_take():
            if time.monotonic() > deadline:
                raise LockBusy(f"{self.path} was held by another process for {patience_s:g} s")
            time.sleep(0.002)
        try:
            yield
        finally:
            self.give_back()

    def give_back(self) -> None:
        """Let others have it. The file stays, or two processes could lock two files of the same name."""
        if self._handle is not None:
            fcntl.flock(self._handle, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give it back and forget the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
