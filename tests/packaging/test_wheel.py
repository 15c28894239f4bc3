"""The wheel alone, in an environment that has what it asks for and nothing else, serves a picture."""

import asyncio
import base64
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from packaging.requirements import Requirement

from tests.architecture.source import PACKAGES, ROOT
from tests.e2e.live import LiveGateway, open_shell, serve
from tests.e2e.pictures import SIZE, look, png


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a source distribution of the checkout, without a network."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the pinned runtime packages, linked from ours, and the wheel."""
    folder = tmp_path_factory.mktemp("clean") / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in runtime_distributions():
        link_distribution(metadata.distribution(name), packages)
    python = str(folder / "bin" / "python")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", str(wheel))
    return folder


@pytest.fixture(scope="module")
def gateway(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """The installed command, serving from an empty folder."""
    command = (str(environment / "bin" / "image-gateway"),)
    with serve(open_shell(tmp_path_factory.mktemp("wheel") / "home", command)) as live:
        yield live


def test_wheel_has_every_file_of_the_packages(wheel: Path):
    """Modules, model files, migrations and templates are in it; tests and the rest are not."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    kept = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == kept
    assert "providers/catalog/models/detail-upscaler.toml" in packed


def test_wheel_names_its_command_and_licence(wheel: Path):
    """The command is declared, and the licence travels with the code."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name.split(".dist-info/")[1]: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    assert "image-gateway = gateway.cli:main" in files["entry_points.txt"]
    assert "Apache License" in files["licenses/LICENSE"]


def test_checkout_is_not_importable(environment: Path):
    """The environment finds the packages in itself."""
    script = f"for name in {PACKAGES}: print(__import__(name).__file__)"
    found = run(str(environment / "bin" / "python"), "-I", "-c", script, cwd=environment).split()
    assert len(found) == len(PACKAGES)
    assert all(Path(path).is_relative_to(environment) for path in found)


async def test_wheel_serves_a_picture(gateway: LiveGateway):
    """A picture comes back twice its size."""
    async with AsyncOpenAI(base_url=gateway.api, api_key=gateway.key) as client:
        response = await client.images.edit(
            model="detail-upscaler", prompt="", image=("a.png", png(), "image/png"), response_format="b64_json"
        )
    assert response.data
    assert look(base64.b64decode(response.data[0].b64_json or "")).size == (2 * SIZE[0], 2 * SIZE[1])


async def test_installed_catalog_is_sound(gateway: LiveGateway):
    """The packaged model files are found and pass their own check."""
    await asyncio.to_thread(gateway.shell.run, "catalog", "check")


def runtime_distributions() -> list[str]:
    """The pinned distributions that serving needs on this Python."""
    text = (ROOT / "requirements" / "runtime.txt").read_text()
    requirements = [Requirement(line) for line in re.findall(r"^([a-z0-9][^\\\n]*)", text, re.M)]
    return [requirement.name for requirement in requirements if requirement.marker is None or requirement.marker.evaluate()]


def link_distribution(distribution: metadata.Distribution, packages: Path) -> None:
    """Link one installed distribution's files into another environment."""
    assert distribution.files is not None
    for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
        if not (packages / top).exists():
            (packages / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())


def run(*command: str, cwd: Path = ROOT) -> str:
    """What a command prints; fails loudly if it does."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
