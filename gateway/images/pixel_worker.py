"""The inside of a worker process: read a call, make it, answer, until the other side is gone.

A message is its length (8 bytes, big-endian) and a pickle. Nothing here may import the gateway's server, database or settings.
"""

import ctypes
import os
import pickle
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO

from PIL import AvifImagePlugin, Image

LENGTH_BYTES = 8

_PR_SET_PDEATHSIG = 1
"""Source: prctl(2)."""


def serve(memory_bytes: int) -> None:
    """Answer calls from standard input until it ends.

    Args:
        memory_bytes: Address space the process may take; a decoder that wants more gets MemoryError instead of the machine.
    """
    calls, answers = _take_pipes()
    _confine(memory_bytes)
    while call := _read(calls):
        answers.write(_framed(_answer(call)))
        answers.flush()


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The two pipes, out of reach of libraries that print."""
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    return calls, answers


def _confine(memory_bytes: int) -> None:
    # Who started it ends it: a signal meant for the gateway must not break a picture that the gateway still wants.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        # End with the gateway even in the middle of a picture, when nobody reads the pipe.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A dump of a crashed codec would lay the caller's picture on the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # not every system has the limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    # The probe has its own limit, from the settings; Pillow's would only warn.
    Image.MAX_IMAGE_PIXELS = None
    # The pool's processes are the parallelism.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def _read(calls: BinaryIO) -> bytes:
    """The next call; nothing when there will be none."""
    length = calls.read(LENGTH_BYTES)
    return calls.read(int.from_bytes(length, "big")) if len(length) == LENGTH_BYTES else b""


def _framed(answer: bytes) -> bytes:
    return len(answer).to_bytes(LENGTH_BYTES, "big") + answer


def _answer(call: bytes) -> bytes:
    """A pickle of `(True, value)` or `(False, exception)`."""
    try:
        function: Callable[..., Any]
        function, args = pickle.loads(call)  # noqa: S301 - from the process that started this one
        return pickle.dumps((True, function(*args)))
    except MemoryError:
        return pickle.dumps((False, MemoryError()))
    except Exception as exc:  # noqa: BLE001 - the top of the loop: the caller gets it, with its trace
        exc.add_note(traceback.format_exc())
        return _pickled(exc)


def _pickled(exc: Exception) -> bytes:
    """The exception if it survives the way, else its words."""
    try:
        packed = pickle.dumps((False, exc))
        pickle.loads(packed)  # noqa: S301 - just made; an exception may pickle and yet not come back
    except Exception:  # noqa: BLE001 - anything a foreign exception does when it is copied
        return pickle.dumps((False, RuntimeError("".join(traceback.format_exception(exc)))))
    return packed
