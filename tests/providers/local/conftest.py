"""Real servers of Cog's prediction API, one of each for a test module."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
_COG_MODEL = Path(__file__).parents[1] / "cog_model"


@pytest.fixture(scope="module")
def cog_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Cog of today, with the model in `cog_model/predict.py`."""
    pytest.importorskip("coglet", reason="no wheel of Cog's server for this machine: the contract is NOT tested against it")
    port = _free_port()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # it starts plain `python`
    environment = {**os.environ, "PATH": path, "PORT": str(port), "COG_PREDICT_TYPE_STUB": "predict.py:Predictor"}
    command = [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"]
    with _process(command, environment, _COG_MODEL, tmp_path_factory.mktemp("cog") / "log") as (process, log):
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, process, log)
        yield url


@pytest.fixture(scope="module")
def bundled_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The bundled backend, started as `serve` starts it."""
    command = [sys.executable, "-m", "providers.local.server", "--port", "0", "--workers", "1", "--exit-with-parent"]
    with _process(command, dict(os.environ), _ROOT, tmp_path_factory.mktemp("bundled") / "log", tells_address=True) as (
        process,
        log,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"the bundled backend ended: {log.read_text()}"
        url = json.loads(line)["url"]
        _wait_until_ready(url, process, log)
        yield url


@contextmanager
def _process(
    command: list[str], environment: dict[str, str], folder: Path, log: Path, *, tells_address: bool = False
) -> Generator[tuple[subprocess.Popen[bytes], Path]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if tells_address else output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process, log
    finally:
        try:
            process.terminate()
            process.wait(10)
        except subprocess.TimeoutExpired:
            pass  # busy with a prediction that cannot be interrupted
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # whatever it has started goes with it
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, f"the server ended: {log.read_text()}"
        try:
            with urllib.request.urlopen(f"{url}/health-check", timeout=2) as response:
                if json.load(response)["status"] == "READY":
                    return
        except OSError:
            pass  # not listening yet
        time.sleep(0.05)
    raise AssertionError(f"not ready within 30 s: {log.read_text()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
