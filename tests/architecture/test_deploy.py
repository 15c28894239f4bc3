"""`deploy/`: the example settings are the real ones, and the image is made of files that exist."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from gateway.settings import Settings, read_settings
from tests.architecture.source import PACKAGES, ROOT

EXAMPLE = ROOT / "deploy" / "gateway.example.toml"
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
WITHOUT_DEFAULT = {
    "storage_url",
    "redis_url",
    "public_url",
    "secret_key",
    "fal_key",
    "replicate_api_token",
    "local.backends",
    "s3.endpoint_url",
    "fetch.allow_hosts",
    "catalog.folder",
    "log.format",
    "pixels.workers",
}
"""Settings whose line is an example: nothing, or something of the machine's, is their default."""


@pytest.fixture
def uncommented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example with every setting in force, and no variable over it."""
    for name in [name for name in os.environ if name.startswith("GATEWAY_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "gateway.toml"
    path.write_text(re.sub(r"^#(?=\w)", "", EXAMPLE.read_text(), flags=re.M))
    return path


def test_example_as_it_stands_changes_nothing():
    """With every line still commented, the file is the defaults."""
    sections = tomllib.loads(EXAMPLE.read_text())
    assert all(section == {} for section in sections.values())


def test_example_has_every_setting(uncommented: Path):
    """There is a line for each setting, and none for what is not one."""
    assert leaves(tomllib.loads(uncommented.read_text())) == names(Settings)


def test_example_shows_the_defaults(uncommented: Path):
    """Every line is accepted, and is the default but for those that have none."""
    read, default = read_settings(uncommented), Settings()
    assert {name for name in names(Settings) if value(read, name) != value(default, name)} <= WITHOUT_DEFAULT


def test_image_copies_what_the_wheel_needs():
    """Every package goes into the image's build, and every file it copies is there."""
    copied = [source for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M) for source in line.split()]
    assert set(PACKAGES) <= set(copied)
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_image_serves_without_root():
    """The last user is not root, and the health check asks the gateway itself."""
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.M)[-1] not in {"root", "0"}
    assert "/health/live" in DOCKERFILE


def names(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Dotted names of all settings below `model`."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        section = field.annotation
        is_section = isinstance(section, type) and issubclass(section, BaseModel)
        found |= names(section, f"{prefix}{name}.") if is_section else {f"{prefix}{name}"}
    return found


def leaves(table: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted names of all settings in a TOML table."""
    found: set[str] = set()
    for name, entry in table.items():
        found |= leaves(entry, f"{prefix}{name}.") if isinstance(entry, dict) else {f"{prefix}{name}"}
    return found


def value(settings: Settings, name: str) -> object:
    """The setting of a dotted name."""
    found: Any = settings
    for part in name.split("."):
        found = getattr(found, part)
    return found
