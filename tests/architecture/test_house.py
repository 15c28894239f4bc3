"""What is promised of the house around the code: commands, pins, names."""

import ast
import json
import re
import subprocess
import tomllib

import pytest

from tests.architecture.source import PACKAGES, ROOT, modules

PINNED = sorted(path.name for path in (ROOT / "requirements").glob("*.txt"))
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "stuff", "data", "info"}


def test_make_alone_lists_the_targets():
    """`make` prints every target that people are told of, and does nothing else."""
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"dev", "test", "check", "bench", "setup", "lock", "clean"} <= set(re.findall(r"^ *make ([a-z]+)", listed, re.M))


def test_ci_runs_the_checks_and_the_tests():
    """The CI script is the two commands that a developer runs."""
    steps = re.findall(r"^step (.+)$", (ROOT / ".ci" / "run").read_text(), re.M)
    assert steps == ["make check", "make test"]


@pytest.mark.parametrize("name", PINNED)
def test_requirements_are_pinned_with_hashes_and_name_no_index(name: str):
    """Every requirement is one version with its hashes, from whichever index the reader's pip is set to."""
    text = (ROOT / "requirements" / name).read_text()
    requirements = [entry for entry in re.split(r"\n(?=\S)", text) if not entry.startswith("#")]
    assert requirements
    assert [
        entry for entry in requirements if not re.match(r"[a-z0-9._-]+(\[.*\])?==\S+", entry) or "--hash=sha256:" not in entry
    ] == []
    assert re.findall(r"https?://|--(?:extra-)?index-url|--find-links", text) == []


def test_node_lockfile_names_no_registry():
    """The Node client is pinned by version and hash, without saying where it came from."""
    lock = json.loads((ROOT / "tests" / "e2e" / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert [name for name, entry in packages.items() if "resolved" in entry or "integrity" not in entry] == []


def test_development_runs_what_is_served():
    """Whatever is pinned for serving has the same version in development."""
    assert pins("runtime.txt").items() <= pins("dev.txt").items()


def test_every_package_is_in_the_wheel():
    """The wheel's packages and the contracts' are the ones that these tests look at."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert tuple(project["hatch"]["build"]["targets"]["wheel"]["packages"]) == PACKAGES
    assert tuple(project["importlinter"]["root_packages"]) == PACKAGES


def test_no_module_has_a_vague_name():
    """Code without a better name has no home yet."""
    assert [module.name for module in modules() if set(module.name.split(".")) & VAGUE_NAMES] == []


def test_every_module_says_what_it_is():
    """A module that has code begins with a sentence about it."""
    silent = [module.name for module in modules() if module.tree.body and not ast.get_docstring(module.tree)]
    assert silent == []


def pins(name: str) -> dict[str, set[str]]:
    """Distribution to its pinned versions; more than one where they differ by Python version."""
    found: dict[str, set[str]] = {}
    for distribution, version in re.findall(r"^([a-z0-9._-]+)(?:\[.*\])?==(\S+)", (ROOT / "requirements" / name).read_text(), re.M):
        found.setdefault(distribution, set()).add(version)
    return found
