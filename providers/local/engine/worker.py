"""One worker process: it runs a model on one task at a time, as told on stdin, and answers on stdout, a JSON object a line.

    in   {"inputs": {...}, "output": "/path/of/the/result", "stops": 2}
    out  {"ready": true}             once, after setup
         {"progress": 0.25}          while working
         {"ended": "succeeded", "seconds": 1.2}, or "failed" with "error", or "canceled"

SIGUSR1 asks that the present task stop; `stops` says how many were sent before the task, so that one which overtakes the reading of
its task is not taken for an older one. The end of stdin ends the process; SIGINT and SIGTERM do not, since a terminal or a
service manager sends them to the whole group, and the server wants to drain.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from providers.local.engine.model import BackendModel, Cancelled, InputRefused
from providers.local.engine.models import MODELS

_MEMORY_LIMIT_BYTES = 4 << 30
"""Of address space. The largest permitted picture needs less than half of it; a hostile one fails and nothing else does."""
_NICENESS = 5
"""Whoever waits for an answer of the gateway on the same machine goes first."""
_REPORT_GAP_S = 0.05


def main() -> None:
    """Serve tasks of the model named by the first argument until stdin ends."""
    replies = _private_stdout()
    _limit_process()
    model = MODELS[sys.argv[1]]()
    model.setup()
    watch = _Watch(lambda message: _send(replies, message))
    with contextlib.suppress(BrokenPipeError):  # the server is gone, and nobody wants to hear of it
        _send(replies, {"ready": True})
        for line in sys.stdin.buffer:
            task = json.loads(line)
            watch.begin(task["stops"])
            _send(replies, _run(model, task, watch))


class _Watch:
    """Passes progress on, and notices when the work is no longer wanted."""

    def __init__(self, send: Callable[[Mapping[str, object]], None]) -> None:
        self._send = send
        self._parent = os.getppid()
        self._stops = 0
        self._stops_before = 0
        self._sent_at = 0.0
        signal.signal(signal.SIGUSR1, self._on_signal)

    def begin(self, stops_before: int) -> None:
        """Forget what concerned the tasks before."""
        self._stops_before = stops_before
        self._sent_at = 0.0

    def checkpoint(self, done: float) -> None:
        """See `Checkpoint`. Work for a server that is gone is not wanted either."""
        if self._stops > self._stops_before or os.getppid() != self._parent:
            raise Cancelled
        now = time.monotonic()
        if now - self._sent_at >= _REPORT_GAP_S or done >= 1:
            self._sent_at = now
            self._send({"progress": round(done, 4)})

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._stops += 1


def _run(model: BackendModel, task: Mapping[str, Any], watch: _Watch) -> dict[str, object]:
    """Run one task and say how it ended; `seconds` is the time of the run itself."""
    started = time.perf_counter()
    result: dict[str, object]
    try:
        model.run(task["inputs"], Path(task["output"]), watch.checkpoint)
        result = {"ended": "succeeded"}
    except Cancelled:
        result = {"ended": "canceled"}
    except InputRefused as error:
        result = {"ended": "failed", "error": str(error)}
    except MemoryError:
        result = {"ended": "failed", "error": "out of memory"}
    except Exception as error:  # noqa: BLE001 - the top of the worker's loop; one bad task must not end the process
        sys.excepthook(type(error), error, error.__traceback__)
        result = {"ended": "failed", "error": f"{type(error).__name__}: {error}"}
    return {**result, "seconds": round(time.perf_counter() - started, 6)}


def _private_stdout() -> BinaryIO:
    """Keep stdout for replies; whatever a library prints goes to stderr."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return replies


def _send(replies: BinaryIO, message: Mapping[str, object]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")


def _limit_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(_NICENESS)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(_MEMORY_LIMIT_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main()
