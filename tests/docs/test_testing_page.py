"""docs/testing-your-integration.md: its faults and routes are the stand-ins', and its examples run against them."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.settings import Fal, Replicate
from providers.simulators import fal, kit, replicate
from tests.docs.pages import ROOT, page
from tests.docs.test_docs import settings
from tests.docs.test_examples import pairs, steady
from tests.e2e.conftest import install_client, node_binaries
from tests.e2e.live import LiveGateway, open_shell, serve

TESTING = page("docs/testing-your-integration.md")
PRINTED = {"fal": "http://127.0.0.1:9101", "replicate": "http://127.0.0.1:9102"}
"""Where the page's stand-ins listen."""


@dataclass(frozen=True)
class Stage:
    """Both stand-ins, and a gateway in front of them."""

    origins: Mapping[str, str]
    gateway: LiveGateway

    def at(self, text: str) -> str:
        """A text of the page with the addresses of this stage."""
        for name, printed in PRINTED.items():
            text = text.replace(printed.removeprefix("http://"), self.origins[name].removeprefix("http://"))
        return text

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables of somebody who did what the README says first."""
        return {**os.environ, "OPENAI_BASE_URL": self.gateway.api, "OPENAI_API_KEY": self.gateway.key}


@contextmanager
def simulated(provider: str) -> Iterator[str]:
    """Run a stand-in as the page does; gives its origin."""
    command = [sys.executable, "-m", "gateway", "sim", provider, "--port", "0", "--speed", "100"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout
        try:
            yield json.loads(process.stdout.readline())["origin"]
        finally:
            process.terminate()


def exported(text: str) -> dict[str, str]:
    """The variables that a shell block exports."""
    words = [shlex.split(line)[1] for line in text.splitlines() if line.startswith("export ")]
    return dict(word.split("=", 1) for word in words)


def variables() -> dict[str, str]:
    """What the page tells the gateway."""
    return exported(next(block.text for block in TESTING.blocks if "export FAL_KEY" in block.text))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The page's set-up, on free ports."""
    with simulated("fal") as at_fal, simulated("replicate") as at_replicate:
        origins = {"fal": at_fal, "replicate": at_replicate}
        told: dict[str, str] = {}
        for name, value in variables().items():
            for provider, printed in PRINTED.items():
                value = value.replace(printed.removeprefix("http://"), origins[provider].removeprefix("http://"))
            told[name] = value
        with serve(open_shell(tmp_path_factory.mktemp("testing") / "gateway", **told)) as live:
            yield Stage(origins, live)


def test_every_address_of_a_provider_is_led_away():
    """The page sets each of the providers' addresses, so that nothing goes to the real ones."""
    addresses = {name for name, _ in settings(Fal, "GATEWAY_FAL__")} | {
        name for name, _ in settings(Replicate, "GATEWAY_REPLICATE__")
    }

    assert {name for name in addresses if name.endswith("_URL")} <= set(variables())


@pytest.mark.parametrize(("column", "known"), [(1, fal.FAULTS), (2, tuple(replicate.FAULTS))], ids=["fal", "replicate"])
def test_every_fault_is_documented(column: int, known: tuple[str, ...]):
    """Each stand-in's faults, and no others, say in its column what they do."""
    rows = [row for row in TESTING.table("Faults", "fault") if row[column]]

    assert sorted(row[0].strip("`") for row in rows) == sorted(known)


def test_every_route_of_the_kit_is_documented():
    """The page has exactly the routes below `/_sim/` that the source has."""
    source = "".join(Path(module.__file__ or "").read_text() for module in (kit, fal, replicate))
    named = {path for row in TESTING.table("Asking the stand-in", "route") for path in re.findall(r"/_sim/\w+", row[0])}

    assert named == set(re.findall(r'"(/_sim/\w+)"', source))


@pytest.mark.parametrize("provider", ["fal", "replicate"])
def test_every_option_is_documented(provider: str):
    """The page has exactly the options of the two commands."""
    command = [sys.executable, "-m", "gateway", "sim", provider, "--help"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    other = {"fal": "sim replicate", "replicate": "sim fal"}[provider]
    rows = [row for row in TESTING.table("Options", "option") if f"`{other}` only" not in row[1]]

    assert set(re.findall(r"^  (--[a-z-]+)", printed, re.MULTILINE)) == {
        name for row in rows for name in re.findall(r"--[a-z-]+", row[0])
    }


def test_curl_commands_answer_what_is_printed(stage: Stage, tmp_path: Path):
    """The story of the page: a fault, a part delivery, the bill."""
    if shutil.which("curl") is None:
        pytest.skip("NO CURL on this machine")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for command, printed in pairs(TESTING):
        done = subprocess.run(
            ["sh", "-c", stage.at(command)],
            cwd=tmp_path,
            env=stage.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        if printed is not None:
            assert steady(json.loads(done.stdout)) == steady(printed), command


@pytest.mark.parametrize(("place", "provider"), [(0, "fal"), (1, "replicate")])
def test_python_snippets_run(stage: Stage, tmp_path: Path, place: int, provider: str):
    """The providers' own Python clients, pointed at the stand-ins as the page says, get a picture."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    snippet = [block.text for block in TESTING.blocks if block.language == "python"][place]

    done = subprocess.run(
        [sys.executable, "-c", stage.at(snippet)], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert f"{stage.origins[provider]}/" in done.stdout


def test_node_snippet_runs(stage: Stage, tmp_path: Path):
    """The same for their Node clients."""
    binaries = node_binaries()
    install_client(binaries)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "node_modules").symlink_to(ROOT / "tests" / "e2e" / "node_modules")
    snippet = next(block.text for block in TESTING.blocks if block.language == "js")
    (tmp_path / "snippet.mjs").write_text(stage.at(snippet))

    done = subprocess.run(
        [str(binaries / "bin" / "node"), "snippet.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert all(origin in done.stdout for origin in stage.origins.values())
