"""The command line: what each command prints, and that mistakes end in one line and exit code 1."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from gateway.cli import main
from gateway.shell import refusals
from tests.gateway.backend import StandIn
from tests.gateway.conftest import MODEL, Live, picture

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sqlite_url: str) -> Run:
    """Runs the command in an empty folder with a migrated database."""
    monkeypatch.chdir(tmp_path)
    for name in tuple(os.environ):
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GATEWAY_DATABASE_URL", sqlite_url)
    (tmp_path / "in.png").write_bytes(picture())
    return lambda *arguments: CliRunner().invoke(main, arguments)


def test_key_is_made_listed_and_revoked(run: Run):
    """The secret is shown once, by `create`, and nowhere later."""
    made = json.loads(run("keys", "create", "--tenant", "acme", "--name", "ci", "--json").stdout)
    listed = json.loads(run("keys", "list", "--json").stdout)
    revoked = run("keys", "revoke", made["key_id"])
    after = run("keys", "list", "--tenant", "acme").stdout

    assert set(made) == {"key", "key_id", "tenant"}
    assert [(row["key_id"], row["tenant"], row["name"], row["revoked_at"]) for row in listed] == [
        (made["key_id"], "acme", "ci", None)
    ]
    assert revoked.exit_code == 0
    assert "revoked" in after
    assert made["key"] not in json.dumps(listed) + after


def test_key_for_people_is_alone_on_standard_output(run: Run):
    """So that it can be captured; the words about it are beside it."""
    result = run("keys", "create", "--tenant", "acme")

    assert len(result.stdout.split()) == 1
    assert "shown once" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("keys", "revoke", "key_unknown"), "Error: "),
        (("keys", "create", "--tenant", " "), "Error: "),
        (("keys", "create", "--tenant", "a", "--budget-usd", "-1"), "Error: "),
        (("catalog", "show", "detail-upscalr"), "Did you mean detail-upscaler"),
        (("explain", "in.png", "--model", MODEL, "-p", "n=abc"), "`n` must be an integer"),
        (("edit", "in.png", "-o", "out.png", "--model", "nothing"), "does not exist"),
        (("edit", "in.png", "-o", "nodir/out.png", "--model", MODEL), "nodir: no such folder"),
        (("edit", "in.png", "-o", "out.tiff", "--model", MODEL), "out.tiff: no format has the suffix .tiff; there are .png, .jpg"),
        (("serve", "--config", "nowhere.toml"), "no such file"),
        (("serve", "--workers", "2"), "needs PostgreSQL"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_end_in_one_line_and_exit_code_1(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
):
    """No trace; the last line says what is wrong."""
    monkeypatch.setenv("GATEWAY_LOCAL__BACKENDS", "[]")

    result = run(*arguments)

    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in result.output
    assert not Path("out.png").exists()


@pytest.mark.parametrize(
    "arguments", [("explain", "--model", MODEL, "-p", "novalue"), ("edit", "none.png", "-o", "a", "--model", "m")]
)
def test_wrong_usage_is_exit_code_2(run: Run, arguments: tuple[str, ...]):
    """As for any command."""
    assert run(*arguments).exit_code == 2


def test_catalog_is_checked_and_shown(run: Run):
    """The packaged models are good, and every parameter of an offer is told."""
    checked, shown = run("catalog", "check"), run("catalog", "show", MODEL)

    assert checked.exit_code == 0
    assert "good" in checked.stdout
    assert "scale_factor" in shown.stdout
    assert "1..4" in shown.stdout


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("topaz-upscale", "0.08 USD per image up to 24 megapixels, 0.16 USD per image up to 48 megapixels"),
        ("birefnet-background-removal", "(uncertain: how long a run takes is a guess)"),
        ("birefnet-background-removal", "; uncertain: 2304x2304 is for the dynamic network"),
        ("clarity-upscaler", "blocked: is not passed on: it makes the model download"),
        ("topaz-upscale", "unknown: by the size of the result"),
    ],
)
def test_catalog_shows_prices_doubts_and_what_is_blocked(run: Run, model: str, words: str):
    """With the reasons that the catalog has."""
    assert words in run("catalog", "show", model).stdout


def test_columns_of_the_catalog_are_aligned(run: Run):
    """However long a name is."""
    shown = run("catalog", "show", "topaz-upscale").stdout.split("\n\n")[2]

    starts = {len(line) - len(line[2:].partition("  ")[2].lstrip()) for line in shown.splitlines()}
    assert len(starts) == 1


def test_explain_prints_plan_and_price_and_asks_nobody(run: Run):
    """Every decision, for every offer."""
    result = run("explain", "in.png", "--model", MODEL, "--scale-factor", "8", "-p", "seed=1", "-p", "output_format=webp")

    assert result.exit_code == 0, result.output
    for words in ("local: detail-upscaler (eligible)", "price: 0 USD", "scale_factor", "emulated", "unsupported", "output_format"):
        assert words in result.stdout


def test_explain_says_who_cannot_take_work(run: Run, monkeypatch: pytest.MonkeyPatch):
    """By the settings: without a key or a backend an offer is not eligible, with one it is."""
    monkeypatch.delenv("FAL_KEY", raising=False)
    monkeypatch.delenv("REPLICATE_API_TOKEN", raising=False)
    monkeypatch.setenv("GATEWAY_LOCAL__BACKENDS", "[]")

    without = run("explain", "in.png", "--model", "clarity-upscaler", "-p", "prompt=a").stdout
    local = run("explain", "in.png", "--model", MODEL).stdout
    monkeypatch.setenv("FAL_KEY", "secret")
    with_key = run("explain", "in.png", "--model", "clarity-upscaler", "-p", "prompt=a").stdout

    assert "not eligible: fal: no key is set; see FAL_KEY" in without
    assert "not eligible: replicate: no token is set; see REPLICATE_API_TOKEN" in without
    assert "not eligible: local: no backend serves detail-upscaler; see GATEWAY_LOCAL__BACKENDS" in local
    assert "fal: fal-ai/clarity-upscaler (eligible)" in with_key


async def test_shell_says_of_every_offer_what_the_server_says(live: Live):
    """In the same words, though the shell starts nothing."""
    services = live.parts.services
    offers = [offer for model in services.catalog.models.values() for offer in model.offers]

    assert [refusals(services.settings)(offer) for offer in offers] == [services.unavailable(offer) for offer in offers]


def test_migrate_makes_a_database(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And says its schema; again is no harm."""
    monkeypatch.setenv("GATEWAY_DATABASE_URL", f"sqlite:///{tmp_path / 'new.db'}")

    assert [run("migrate").exit_code, run("migrate").exit_code] == [0, 0]
    assert (tmp_path / "new.db").exists()


async def test_edit_writes_the_picture_and_prints_the_receipt(run: Run, backend: StandIn, monkeypatch: pytest.MonkeyPatch):
    """The format follows the file's suffix; several pictures get numbers."""
    named = [{"name": "stand-in", "url": backend.url, "models": [MODEL]}]
    monkeypatch.setenv("GATEWAY_LOCAL__BACKENDS", json.dumps(named))
    monkeypatch.setenv("GATEWAY_PIXELS__WORKERS", "1")

    arguments = ("edit", "in.png", "-o", "out.webp", "--model", MODEL, "--scale-factor", "3", "-p", "n=2")
    result = await asyncio.to_thread(run, *arguments)

    assert result.exit_code == 0, result.output
    for name in ("out-1.webp", "out-2.webp"):
        with Image.open(name) as image:
            assert (image.format, image.size) == ("WEBP", (18, 12))
    assert "out-1.webp: webp 18x12" in result.stdout
    assert "scale_factor" in result.stdout


@pytest.fixture
def served(backend: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The commands' local backend."""
    monkeypatch.setenv("GATEWAY_LOCAL__BACKENDS", json.dumps([{"name": "stand-in", "url": backend.url, "models": [MODEL]}]))
    monkeypatch.setenv("GATEWAY_PIXELS__WORKERS", "1")
    return backend


@pytest.mark.parametrize(
    ("output", "more", "kind"),
    [("out", (), "PNG"), ("out.JPEG", (), "JPEG"), ("out.jpg", ("-p", "output_format=webp"), "WEBP")],
    ids=["no suffix", "another spelling", "asked for"],
)
@pytest.mark.usefixtures("served")
async def test_format_of_an_edit_follows_suffix_and_parameters(run: Run, output: str, more: tuple[str, ...], kind: str):
    """A file without a suffix is a png, which is said."""
    result = await asyncio.to_thread(run, "edit", "in.png", "-o", output, "--model", MODEL, *more)

    assert result.exit_code == 0, result.output
    assert ("it will be a png" in result.stderr) is (output == "out")
    with Image.open(output) as image:
        assert image.format == kind


@pytest.mark.usefixtures("served")
async def test_edit_takes_a_mask(run: Run):
    """Where it is opaque, the picture stays."""
    await asyncio.to_thread(Path("mask.png").write_bytes, picture(mode="RGBA", color=(0, 0, 0, 255)))

    result = await asyncio.to_thread(run, "edit", "in.png", "-o", "out.png", "--model", MODEL, "--mask", "mask.png")

    assert result.exit_code == 0, result.output
    assert any(line.split()[:1] == ["mask"] for line in result.stdout.splitlines())
    with Image.open("out.png") as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.usefixtures("served")
async def test_output_that_cannot_be_written_after_all_is_one_line(run: Run):
    """It says where the picture is kept."""
    await asyncio.to_thread(Path("out-1.png").mkdir)

    result = await asyncio.to_thread(run, "edit", "in.png", "-o", "out.png", "--model", MODEL, "-p", "n=2")

    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: out-1.png: Is a directory; the picture is kept as img_")
    assert "Traceback" not in result.output
