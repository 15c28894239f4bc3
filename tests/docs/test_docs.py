"""Documents do not lie: what they name exists, and what exists is named. Their examples run in test_examples.py."""

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rich_click as click
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from gateway.api.auth import PUBLIC
from gateway.cli import main
from gateway.errors import GatewayError
from gateway.images.routing import OnUnsupported, Policy
from gateway.observe.metrics import Metrics
from gateway.settings import Settings
from normalization.converters import CONVERTERS
from normalization.emulations import EMULATIONS, ENCODE
from normalization.offer import Model
from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.pixels.headers.reader import InvalidImage
from normalization.plan import Mode
from normalization.planner import plan_request
from normalization.request import PARAMETERS, InvalidParameter
from providers import catalog
from providers.failures import CONSEQUENCES
from tests.architecture.source import PACKAGES
from tests.docs.pages import PAGES, ROOT, Page, page
from tests.normalization.requests import request

API, ERRORS, OPERATING, CATALOG = (page(f"docs/{name}.md") for name in ("api", "errors", "operating", "catalog"))

every_page = pytest.mark.parametrize("document", PAGES, ids=lambda each: each.name)


# --- what is named exists -----------------------------------------------------------------------------------------------------


@every_page
def test_links_lead_somewhere(document: Page):
    """Every relative link names a file, and its fragment a heading there."""
    for link in document.links():
        if "://" in link:
            continue
        name, _, fragment = link.partition("#")
        target = (document.path.parent / name).resolve() if name else document.path
        assert target.exists(), f"{document.name}: {link}"
        assert not fragment or fragment in Page(target).anchors, f"{document.name}: {link}"


@every_page
def test_paths_exist(document: Page):
    """Whatever stands in backticks and looks like a path of the repository is one."""
    tops = {path.name for path in ROOT.iterdir() if path.name not in {"var", ".git", ".venv"}}
    for text in document.ticked():
        if not re.fullmatch(r"[\w.*/-]+", text) or ("/" not in text and "." not in text):
            continue
        if text.partition("/")[0] in tops:
            assert list(ROOT.glob(text)), f"{document.name}: {text}"


@every_page
def test_settings_are_real(document: Page):
    """Every variable that a page names is a setting, but for the one that shows a spelling mistake."""
    named = set(re.findall(r"(?<![A-Z_])GATEWAY_[A-Z0-9_]+", document.text))

    assert named - {name for name, _ in settings()} <= {"GATEWAY_DATABSE_URL"}


@every_page
def test_make_targets_exist(document: Page):
    """Every `make …` that a page shows is a target."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = list(document.ticked()) + [line for block in document.blocks for line in block.text.splitlines()]

    named = {match[1] for text in shown if (match := re.match(r"make ([a-z]+)", text))}

    assert named <= targets


@every_page
def test_commands_exist(document: Page):
    """Every `image-gateway …` is a command, with the options it is shown with."""
    shown = [*document.ticked(), *(line for block in document.blocks for line in block.text.splitlines())]
    for line in shown:
        match = re.match(r"image-gateway ([a-z].*)", line)
        if match is None:
            continue
        words = match[1].split()
        command = find_command(words)
        assert command is not None, f"{document.name}: {line}"
        if words[0] in {"local", "sim"}:
            continue  # argparse's, in processes of their own
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert set(re.findall(r"(?<!\w)--?[a-z][a-z-]*", match[1])) <= known, f"{document.name}: {line}"


# --- what exists is named -----------------------------------------------------------------------------------------------------


def test_every_setting_is_documented_with_its_default():
    """docs/operating.md has every setting once, with the default that it has."""
    rows = {name: default for name, default, _ in OPERATING.table("Settings", "variable")}
    expected = {f"`{name}`": as_shown(default) for name, default in settings()}

    assert rows == expected | {"`GATEWAY_PIXELS__WORKERS`": "one per core, at most 8"}


def test_every_setting_is_in_the_example_file():
    """deploy/gateway.example.toml, its comment signs removed, has the same settings."""
    text = (ROOT / "deploy" / "gateway.example.toml").read_text()
    example = tomllib.loads(re.sub(r"^#(?=[a-z_0-9]+ = )", "", text, flags=re.MULTILINE))

    assert set(flat(example)) == {name.removeprefix("GATEWAY_").lower() for name, _ in settings()}


def test_every_command_is_documented():
    """docs/operating.md has exactly the commands there are."""
    rows = [row[0] for row in OPERATING.table("Commands", "command")]

    assert sorted(commands(main)) == sorted(re.match(r"`image-gateway ((?:[a-z]+ ?)+)", row)[1].strip() for row in rows)  # pyright: ignore[reportOptionalSubscript] -- a row without a command fails


def test_the_page_says_which_routes_need_a_key():
    """docs/operating.md and `PUBLIC` agree on who may ask for what."""
    for routes, key, _ in OPERATING.table("Routes", "route"):
        for path in re.findall(r"`[A-Z]+ (/[a-z0-9_./-]*)", routes):
            is_public = any(path == each or path.startswith(f"{each}/") for each in PUBLIC if each != "/")
            assert is_public == (key != "yes"), path


def test_every_error_code_is_documented_and_no_other():
    """docs/errors.md has exactly the codes that the source can give."""
    documented = ERRORS.names("Codes", "code")
    exact, endings = codes_in_source()

    assert exact - documented == set()
    assert {ending for ending in endings if not any(code.endswith(ending) for code in documented)} == set()
    assert {code for code in documented - exact if not code.endswith(tuple(endings))} == set()


def test_statuses_are_those_of_the_errors():
    """docs/errors.md gives each code the status of an error that has it by default."""
    rows = {name.strip("`"): status for names, status, _ in ERRORS.table("Codes", "code") for name in names.split(", ")}

    for error in errors_of(GatewayError):
        if error.default_code is not None:
            assert rows[error.default_code] == str(error.status), error


def test_every_outcome_is_documented():
    """docs/errors.md tells for every kind of failure what the table of consequences says."""
    rows = {name.strip("`"): (following, safe) for name, _, following, safe in ERRORS.table("Outcomes of attempts", "outcome")}
    told = {kind.value: (yes_or_no(what.try_next), yes_or_no(what.retry_safe)) for kind, what in CONSEQUENCES.items()}

    assert rows == told | {"ok": ("", "")}


def test_every_metric_is_documented_with_its_labels():
    """docs/operating.md has exactly the metrics that the gateway exposes."""
    metrics = Metrics(CollectorRegistry())
    families = {family.name: family.type for family in metrics.registry.collect()}
    labels = {each._name: each._labelnames for each in vars(metrics).values() if each is not metrics.registry}

    rows = {name.strip("`"): tuple(re.findall(r"`(\w+)`", row)) for name, row, _ in OPERATING.table("Watching", "metric")}

    assert rows == {name + ("_total" if kind == "counter" else ""): labels[name] for name, kind in families.items()}


def test_every_parameter_is_documented():
    """docs/api.md has exactly the parameters of the gateway's vocabulary."""
    assert API.names("Parameters", "parameter") == set(PARAMETERS)


def test_every_mode_is_explained():
    """The README explains exactly the modes there are."""
    assert page("README.md").names("What becomes of a parameter", "mode") == set(Mode)


@pytest.mark.parametrize(("column", "provider"), [(2, "fal"), (3, "replicate")])
def test_examples_of_the_modes_are_true(column: int, provider: str):
    """Each example in the README's table of modes, planned for that offer, has that mode and is sent so."""
    known = catalog.load_catalog()
    offered = next(offer for offer in known.models["clarity-upscaler"].offers if offer.provider == provider)
    photo = ImageInfo(Format.JPEG, Size(512, 384))
    for row in page("README.md").table("What becomes of a parameter", "mode"):
        for example in row[column].split(", "):
            asked, *sent = re.findall(r"`([a-z_]+)(?:=(\S+))?`", example)
            name, text = asked[0], asked[1] or "b64_json"
            value = json.loads(text) if re.fullmatch(r"[\d.]+", text) else text
            decision = plan_request(request({name: value}, images=(photo,)), offered, known.parameters).decisions[-1]
            assert f"`{decision.mode}`" == row[0], example
            assert not sent or {field: str(got) for field, got in decision.sent.items()} == dict(sent), example


def test_every_control_value_is_documented():
    """docs/api.md has every value of the control headers."""
    values = " ".join(row[1] for row in API.table("Control headers", "header"))

    assert all(f"`{value}`" in values for value in (*Policy, *OnUnsupported))


def test_the_catalog_page_has_the_whole_grammar():
    """docs/catalog.md has exactly the keys of an offer and a rule, and exactly the conversions and emulations."""
    assert CATALOG.names("An offer", "key") == set(catalog._OfferTable.model_fields)
    assert CATALOG.names("A rule", "key") == set(catalog._RuleTable.model_fields)
    assert CATALOG.names("A rule", "conversion") == set(CONVERTERS)
    assert CATALOG.names("A rule", "emulation") == {*EMULATIONS, ENCODE}


def test_catalog_example_does_what_the_page_says(tmp_path: Path):
    """The example file loads, and its `scale_factor` is renamed within the range and emulated beyond."""
    path = tmp_path / "clarity.toml"
    path.write_text(next(block.text for block in CATALOG.blocks if block.language == "toml"))
    offer = catalog.read_model(path).offers[0]

    modes = {factor: plan_request(request({"scale_factor": factor}), offer).decisions[-1].mode for factor in (3, 6)}

    assert modes == {3: Mode.RENAMED, 6: Mode.EMULATED}


def test_every_model_of_the_catalog_is_listed():
    """docs/catalog.md has every packaged model, what it is for, and who offers it under which name."""

    def cell(model: Model, provider: str) -> str:
        offer = next((offer for offer in model.offers if offer.provider == provider), None)
        if offer is None:
            return ""
        pinned = re.fullmatch(r"[0-9a-f]{64}", offer.endpoint)
        price = ", price unknown" if offer.price.why else ""
        return ("a pinned version" if pinned else f"`{offer.endpoint}`") + price

    models = sorted(catalog.load_catalog().models.values(), key=lambda model: model.id)

    assert CATALOG.table("What is in it", "model") == [
        [f"`{model.id}`", ", ".join(model.modes), *(cell(model, provider) for provider in ("fal", "replicate", "local"))]
        for model in models
    ]
    offers = sum(len(model.offers) for model in models)
    assert f"{len(models)} models with {offers} offers" in page("README.md").text


def test_every_runtime_dependency_has_a_sentence():
    """The page on dependencies has exactly those of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    named = {re.match(r"[\w-]+", line)[0] for line in required}  # pyright: ignore[reportOptionalSubscript] -- each begins with a name

    assert page("docs/decisions/0008-dependencies.md").names("Choice", "package") == named


def test_changelog_has_the_form_it_names():
    """The changelog's sections are those of Keep a Changelog."""
    text = page("CHANGELOG.md").text
    releases = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)

    assert releases[0] == "Unreleased" or re.fullmatch(r"\d+\.\d+\.\d+", releases[0])
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


# --- asking the code ----------------------------------------------------------------------------------------------------------


def settings(section: type[BaseModel] = Settings, prefix: str = "GATEWAY_") -> Iterator[tuple[str, Any]]:
    """Every setting: the variable and its default."""
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(field.validation_alias, str):  # a variable that others read too, such as FAL_KEY
            yield field.validation_alias, default
        elif isinstance(default, BaseModel):
            yield from settings(type(default), f"{prefix}{name.upper()}__")
        else:
            yield f"{prefix}{name.upper()}", default


def as_shown(default: Any) -> str:
    """A default as the table writes it."""
    match default:
        case None:
            return "none"
        case bool():
            return f"`{str(default).lower()}`"
        case ():
            return "`[]`"
        case float():
            return f"`{default:g}`"
        case _:
            return f"`{default}`"


def flat(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The settings that a file names, as variables do without their beginning."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}__")
        else:
            yield f"{prefix}{name}"


def commands(group: click.Command, path: str = "") -> Iterator[str]:
    """Every command that does something, by what is typed."""
    if not isinstance(group, click.Group):
        yield path.strip()
        return
    for name, command in group.commands.items():
        yield from commands(command, f"{path} {name}")


def find_command(words: list[str]) -> click.Command | None:
    """The command that a line begins with."""
    command: click.Command | None = main
    for word in words:
        if not isinstance(command, click.Group):
            break
        command = command.commands.get(word)
    return command if not isinstance(command, click.Group) or len(words) == 1 else None


def errors_of(kind: type[GatewayError]) -> Iterator[type[GatewayError]]:
    """An error's class and all below it."""
    yield kind
    for child in kind.__subclasses__():
        yield from errors_of(child)


def yes_or_no(flag: bool) -> str:
    """As a table says it."""
    return "yes" if flag else "no"


def codes_in_source() -> tuple[set[str], set[str]]:
    """Every error code that the source names, and the endings of those that it puts together."""
    exact: set[str] = set()
    endings: set[str] = set()
    positions = {InvalidParameter.__name__: 1, "_Wrong": 0, InvalidImage.__name__: 0}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path.is_relative_to(ROOT / "providers" / "local" / "engine"):
                continue  # a process of its own, with Cog's errors
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                for value in _code_expressions(node, positions):
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        exact.add(value.value)
                    elif isinstance(value, ast.JoinedStr) and isinstance(value.values[-1], ast.Constant):
                        endings.add(str(value.values[-1].value))
    return exact, endings


def _code_expressions(node: ast.AST, positions: dict[str, int]) -> Iterator[ast.expr]:
    match node:
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            yield from (keyword.value for keyword in keywords if keyword.arg == "code")
            if name in positions and len(args) > positions[name]:
                yield args[positions[name]]
        case ast.Call(keywords=keywords):
            yield from (keyword.value for keyword in keywords if keyword.arg == "code")
        case ast.Assign(targets=[ast.Name(id="default_code")], value=value):
            yield value
        case ast.AnnAssign(target=ast.Name(id="default_code"), value=ast.expr() as value):
            yield value
        case ast.Dict(keys=keys, values=values):
            yield from (
                value for key, value in zip(keys, values, strict=True) if isinstance(key, ast.Constant) and key.value == "code"
            )
        case _:
            return
