"""Settings: the environment over the file over the defaults, and words for what cannot be used."""

import os
import stat
from pathlib import Path

import pytest

from gateway.settings import SettingsError, read_settings, secret_key


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and nothing of the developer's settings."""
    monkeypatch.chdir(tmp_path)
    for name in tuple(os.environ):
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)


def test_defaults_need_nothing():
    """Without a file and variables: SQLite and files under `var/`, the bundled backend."""
    settings = read_settings()

    assert settings.database_url == "sqlite:///var/gateway.db"
    assert settings.pictures_url == f"file://{Path.cwd() / 'var' / 'pictures'}"
    assert settings.local.backends is None
    assert (settings.limits.max_image_bytes, settings.limits.max_image_pixels) == (52_428_800, 64_000_000)
    assert settings.limits.request_deadline_s == 240


def test_environment_is_over_the_file(monkeypatch: pytest.MonkeyPatch):
    """Nested names are joined by two underscores; lists are JSON."""
    Path("gateway.toml").write_text('public_url = "https://a.example"\n[limits]\nrequest_deadline_s = 5\nmax_frames = 7\n')
    monkeypatch.setenv("GATEWAY_LIMITS__REQUEST_DEADLINE_S", "9")
    monkeypatch.setenv("GATEWAY_LOCAL__BACKENDS", '[{"name": "one", "url": "http://gpu:5000", "models": ["m"]}]')

    settings = read_settings()

    assert settings.public_url == "https://a.example"
    assert (settings.limits.request_deadline_s, settings.limits.max_frames) == (9, 7)
    assert settings.local.backends is not None
    assert settings.local.backends[0].url == "http://gpu:5000"


def test_empty_list_of_backends_means_none(monkeypatch: pytest.MonkeyPatch):
    """Not the bundled one."""
    monkeypatch.setenv("GATEWAY_LOCAL__BACKENDS", "[]")

    assert read_settings().local.backends == ()


def test_short_scheme_of_postgres_is_understood(monkeypatch: pytest.MonkeyPatch):
    """As some hosts write it."""
    monkeypatch.setenv("GATEWAY_DATABASE_URL", "postgres://u@h/d")

    assert read_settings().database_url == "postgresql://u@h/d"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GATEWAY_DATABASE_URL", "mysql://h/d"),
        ("GATEWAY_STORAGE_URL", "ftp://h"),
        ("GATEWAY_PUBLIC_URL", "images.example"),
        ("GATEWAY_LIMITS__MAX_IMAGE_BYTES", "-1"),
        ("GATEWAY_LIMITS__MAX_IMAGE_BYTES", "many"),
        ("GATEWAY_LIMITS__REQUEST_DEADLINE_S", "0"),
        ("GATEWAY_LOG__LEVEL", "loud"),
        ("GATEWAY_LOCAL__USD_PER_SECOND", "-0.1"),
    ],
)
def test_unusable_values_are_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    """The message begins with the variable."""
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=f"^{name}: "):
        read_settings()


@pytest.mark.parametrize(
    "text", ["[limits]\nmax_image_byte = 1\n", "unknown = 1\n", "[limits\n"], ids=["unknown in a section", "unknown", "not TOML"]
)
def test_mistakes_in_the_file_are_refused(text: str):
    """A setting that is misspelt must not be ignored."""
    Path("gateway.toml").write_text(text)

    with pytest.raises(SettingsError):
        read_settings()


def test_named_file_must_be_there():
    """Unlike the usual one."""
    with pytest.raises(SettingsError, match="no such file"):
        read_settings(Path("other.toml"))


def test_secret_is_made_once_for_its_owner_only():
    """The next start has the same one, and nobody else can read it."""
    first = secret_key(read_settings())

    path = Path("var/secret-key")
    assert secret_key(read_settings()) == first
    assert len(first) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["secret-key"]


def test_secret_that_is_set_is_taken(monkeypatch: pytest.MonkeyPatch):
    """And none is made, nor shown by printing the settings."""
    monkeypatch.setenv("GATEWAY_SECRET_KEY", "of the operator")

    settings = read_settings()

    assert secret_key(settings) == b"of the operator"
    assert "of the operator" not in repr(settings)
    assert not Path("var").exists()
