"""A gateway as people run it: a process of its own, in a folder of its own, spoken to over a socket."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

ROOT = Path(__file__).parents[2]
FROM_CHECKOUT = (sys.executable, "-m", "gateway")

START_S = 60
STOP_S = 30
FOREIGN = ("GATEWAY_", "OPENAI_", "FAL_", "REPLICATE_", "PYTHONPATH", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
"""Variables of the developer's own that must not reach a gateway under test."""


@dataclass(frozen=True, slots=True)
class LiveGateway:
    """A gateway that is serving."""

    url: str
    """Its address, without `/v1`."""
    key: str
    """An API key of a tenant."""
    shell: "Shell"

    @property
    def api(self) -> str:
        """The base URL for OpenAI's clients."""
        return f"{self.url}/v1"


@dataclass(frozen=True, slots=True)
class Shell:
    """Where the command is typed: what it is, in which folder, with which variables."""

    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str]

    def run(self, *arguments: str) -> str:
        """What one subcommand prints; fails loudly if it does."""
        done = subprocess.run(
            [*self.command, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def make_key(self, tenant: str) -> dict[str, str]:
        """A new key, as `keys create --json` prints it: `key`, `key_id`, `tenant`."""
        return json.loads(self.run("keys", "create", "--tenant", tenant, "--json"))


def open_shell(folder: Path, command: Sequence[str] = FROM_CHECKOUT, **variables: str) -> Shell:
    """A shell in an empty folder, with its own temporary folder and nothing of the developer's settings."""
    (folder / "tmp").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(FOREIGN)}
    environment |= {"TMPDIR": str(folder / "tmp"), "PYTHONWARNINGS": "", "NO_COLOR": "1"}
    if command == FROM_CHECKOUT:
        environment["PYTHONPATH"] = str(ROOT)
    return Shell(command, folder, environment | variables)


@contextmanager
def serve(shell: Shell) -> Iterator[LiveGateway]:
    """A gateway on a free port, until the block ends; it must end by itself after SIGTERM."""
    port = free_port()
    log = shell.folder / "gateway.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*shell.command, "serve", "--host", "127.0.0.1", "--port", str(port)],
            cwd=shell.folder,
            env=shell.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, log)
        yield LiveGateway(url, shell.make_key("tester")["key"], shell)
    finally:
        stop(process, log)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Ask `/health/ready` until it says yes, the process ends or time is up."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the gateway ended with {process.returncode}:\n{log.read_text()}")
        with suppress(URLError, TimeoutError, ConnectionError), urlopen(f"{url}/health/ready", timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"the gateway was not ready after {START_S} s:\n{log.read_text()}")


def stop(process: subprocess.Popen[bytes], log: Path) -> None:
    """SIGTERM, and SIGKILL with a complaint if that does not do."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise AssertionError(f"the gateway did not stop within {STOP_S} s:\n{log.read_text()}") from None


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
