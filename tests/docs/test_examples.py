"""The documents' examples run: each against a live gateway, as a reader would, with what it answers compared to what is printed."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT, Block, Page, page
from tests.e2e.conftest import install_client, node_binaries
from tests.e2e.live import LiveGateway, open_shell, serve
from tests.e2e.web import fetch

README, OPERATING = page("README.md"), page("docs/operating.md")

VOLATILE = frozenset({"created", "url", "request_id", "id", "ms"})
"""Members whose values differ each time; those of an example are only of the same type."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """A gateway with the bundled backend and the usual settings."""
    with serve(open_shell(tmp_path_factory.mktemp("docs") / "gateway")) as live:
        yield live


def reader(gateway: LiveGateway) -> Mapping[str, str]:
    """The variables of somebody who did what the README says first."""
    return {**os.environ, "OPENAI_BASE_URL": gateway.api, "OPENAI_API_KEY": gateway.key}


def pairs(document: Page) -> Iterator[tuple[str, Any]]:
    """Each curl command of a page, with the JSON that the page prints as its answer; None if it prints none."""
    blocks = [block for block in document.blocks if block.language in {"sh", "json"}]
    for index, block in enumerate(blocks):
        if not block.text.startswith("curl "):
            continue
        after = blocks[index + 1] if index + 1 < len(blocks) else Block("", "")
        yield block.text, json.loads(after.text) if after.language == "json" else None


def steady(value: Any) -> Any:
    """An answer with only the types of what differs each time."""
    if isinstance(value, dict):
        return {name: type(item).__name__ if name in VOLATILE else steady(item) for name, item in value.items()}
    return [steady(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ["README.md", "docs/api.md", "docs/errors.md"])
def test_curl_commands_answer_what_is_printed(gateway: LiveGateway, name: str):
    """Every curl command of a page, pasted into a shell, answers what the page prints below it."""
    if shutil.which("curl") is None:
        pytest.skip("NO CURL on this machine")
    examples = list(pairs(page(name)))

    assert examples
    for command, printed in examples:
        done = subprocess.run(
            ["sh", "-c", command], cwd=ROOT, env=reader(gateway), capture_output=True, text=True, timeout=60, check=True
        )
        answer = json.loads(done.stdout)
        if printed is None:
            assert "error" not in answer, command
        else:
            assert steady(answer) == steady(printed), command


def test_python_snippet_runs(gateway: LiveGateway, tmp_path: Path):
    """The README's Python snippet, as it stands, leaves a picture of the size it asks for."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    snippet = next(block.text for block in README.blocks if block.language == "python")

    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, env=reader(gateway), capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "'mode': 'converted', 'asked': '1536x1024'" in done.stdout
    assert png_size(tmp_path / "harbour-large.png") == (1536, 1024)


def test_node_snippet_runs(gateway: LiveGateway, tmp_path: Path):
    """The README's Node snippet, as it stands, prints a link and a receipt."""
    binaries = node_binaries()
    install_client(binaries)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "node_modules").symlink_to(ROOT / "tests" / "e2e" / "node_modules")
    (tmp_path / "snippet.mjs").write_text(next(block.text for block in README.blocks if block.language == "js"))

    done = subprocess.run(
        [str(binaries / "bin" / "node"), "snippet.mjs"],
        cwd=tmp_path,
        env=reader(gateway),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert f"{gateway.url}/assets/img_" in done.stdout
    assert "param: 'scale_factor'" in done.stdout or "normalization" in done.stdout


def test_shell_commands_run(gateway: LiveGateway, tmp_path: Path):
    """What the README types without a server, and what the catalog's page types, work."""
    (gateway.shell.folder / "examples").symlink_to(ROOT / "examples")
    edit = next(text for text in README.ticked() if text.startswith("image-gateway edit"))
    looks = [
        line for block in page("docs/catalog.md").blocks for line in block.text.splitlines() if line.startswith("image-gateway")
    ]

    printed = [gateway.shell.run(*line.split()[1:]) for line in [edit, *looks]]

    assert "webp 1024x768" in printed[0]
    assert "converted" in printed[-1]


def test_every_route_is_documented(gateway: LiveGateway):
    """docs/operating.md has exactly the routes that the gateway's own description has, and the description's two."""
    paths = fetch(f"{gateway.url}/openapi.json").json()["paths"]
    rows = " ".join(row[0] for row in OPERATING.table("Routes", "route"))

    served = {path.replace("{name}", "{id}.{suffix}").replace("{model_id}", "{id}").replace("{job_id}", "{id}") for path in paths}
    assert set(re.findall(r"`[A-Z]+ (/[^`]*)`", rows)) == served | {"/openapi.json", "/docs"}


def png_size(path: Path) -> tuple[int, int]:
    """Width and height, from a PNG's header."""
    head = path.read_bytes()[:24]
    assert head[1:4] == b"PNG"
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
