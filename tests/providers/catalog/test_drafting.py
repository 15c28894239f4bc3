"""Model files drafted from providers' schema documents."""

import json
import re
import tomllib
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.cli import main
from normalization.offer import Model, Offer, PriceUnit
from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.plan import Fit, Mode, Plan
from normalization.planner import plan_request
from normalization.request import PARAMETERS, ImageRef, Json, RequestMode, parse_request
from providers.catalog import check_catalog, read_model
from providers.catalog.documents import DocumentUnusable
from providers.catalog.drafting import IMPORTABLE, draft_model
from providers.catalog.toml import toml_key, toml_value

DOCUMENTS = Path(__file__).parent / "documents"
NAMES = sorted(path.stem for path in DOCUMENTS.glob("*.json"))
DAY = date(2026, 11, 21)
PNG = ImageInfo(Format.PNG, Size(640, 480))


def document(name: str) -> dict[str, Any]:
    """One of the stand-ins, which are written from what the address in their `$comment` says."""
    return json.loads((DOCUMENTS / f"{name}.json").read_text("utf-8"))


def fal_document(inputs: Mapping[str, Any], required: list[str] | None = None, endpoint: str = "someone/thing") -> dict[str, Any]:
    """The least of a fal document."""
    schema = {"type": "object", "properties": dict(inputs), "required": required or []}
    body = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/ThingInput"}}}}
    return {"paths": {f"/{endpoint}": {"post": {"requestBody": body}}}, "components": {"schemas": {"ThingInput": schema}}}


def loaded(text: str, folder: Path) -> Model:
    """The draft as the catalog reads it."""
    path = folder / "draft.toml"
    path.write_text(text, encoding="utf-8")
    return read_model(path)


def drafted(name: str, folder: Path) -> Offer:
    """The one offer of a stand-in's draft."""
    return loaded(draft_model(name.partition("-")[0], document(name), DAY), folder).offers[0]


def thing(inputs: Mapping[str, Any], folder: Path, required: list[str] | None = None) -> Offer:
    """The offer drafted from these inputs."""
    return loaded(draft_model("fal", fal_document(inputs, required), DAY), folder).offers[0]


def planned(offer: Offer, fields: Mapping[str, Json], images: int = 1) -> Plan:
    """What a request becomes."""
    mode = RequestMode.EDIT if images else RequestMode.GENERATE
    return plan_request(parse_request(mode, {"model": "m", **fields}, (PNG,) * images), offer, frozenset(PARAMETERS))


@pytest.mark.parametrize("name", NAMES)
def test_every_draft_loads_beside_the_packaged_models(name: str, tmp_path: Path) -> None:
    """A draft is a model file as it stands: source, day and an unknown price included."""
    provider = name.partition("-")[0]
    text = draft_model(provider, document(name), DAY)

    model = loaded(text, tmp_path)

    check_catalog(tmp_path)
    assert model.created == 1795219200
    assert model.offers[0].provider == provider
    assert re.fullmatch(r"https://(fal\.ai/models|replicate\.com)/[a-z0-9/-]+/api", model.offers[0].source)
    assert (model.offers[0].checked, model.offers[0].price.unit) == (DAY, PriceUnit.UNKNOWN)


@pytest.mark.parametrize("name", NAMES)
def test_every_input_of_the_document_is_in_the_draft(name: str, tmp_path: Path) -> None:
    """No input is lost: each is some rule's field, or a rule says why it is never sent."""
    provider = name.partition("-")[0]
    raw = document(name)
    schemas = (raw if provider == "fal" else raw["latest_version"]["openapi_schema"])["components"]["schemas"]
    declared = next(schema["properties"] for key, schema in schemas.items() if key.endswith("Input"))

    rules = drafted(name, tmp_path).params

    assert set(declared) <= {rule.to or key for key, rule in rules.items()}


@pytest.mark.parametrize(
    ("name", "model_id", "modes"),
    [
        ("fal-clarity-upscaler", "clarity-upscaler", ("upscale", "edit")),
        ("fal-flux-schnell", "flux-schnell", ("generate",)),
        ("fal-nano-banana-edit", "nano-banana-edit", ("edit",)),
        ("fal-topaz-upscale", "topaz-upscale-image", ("upscale", "edit")),
        ("replicate-flux-schnell", "flux-schnell", ("generate",)),
        ("replicate-topaz-image-upscale", "image-upscale", ("upscale", "edit")),
    ],
)
def test_id_and_modes_come_from_endpoint_and_inputs(name: str, model_id: str, modes: tuple[str, ...], tmp_path: Path) -> None:
    """The owner is left out of the id; a picture makes an edit, a factor an upscale, neither a generation."""
    model = loaded(draft_model(name.partition("-")[0], document(name), DAY), tmp_path)

    assert (model.id, model.modes) == (model_id, modes)


def test_a_cutter_is_known_by_its_name(tmp_path: Path) -> None:
    """An endpoint whose name speaks of removing backgrounds does that."""
    raw = fal_document({"image_url": {"type": "string"}}, endpoint="bria/background/remove")

    assert loaded(draft_model("fal", raw, DAY), tmp_path).modes == ("remove-background", "edit")


@pytest.mark.parametrize(
    ("name", "fields", "images", "payload"),
    [
        ("fal-clarity-upscaler", {"scale_factor": 3}, 1, {"image_url": ImageRef("image"), "upscale_factor": 3}),
        ("fal-clarity-upscaler", {"size": "1280x960"}, 1, {"image_url": ImageRef("image"), "upscale_factor": 2}),
        ("fal-creative-upscaler", {"resemblance": 0.5, "scale_factor": 5}, 1, {"shape_preservation": 0.5, "scale": 5}),
        ("fal-flux-schnell", {"prompt": "a", "size": "800x600"}, 0, {"prompt": "a", "image_size": {"width": 800, "height": 600}}),
        ("fal-nano-banana-edit", {"prompt": "a", "size": "1600x900"}, 2, {"aspect_ratio": "16:9"}),
        ("fal-topaz-upscale", {"fal_model": "CGI", "output_format": "jpeg"}, 1, {"model": "CGI", "output_format": "jpeg"}),
        ("replicate-clarity-upscaler", {"guidance_scale": 7, "output_format": "jpeg"}, 1, {"dynamic": 7, "output_format": "jpg"}),
        ("replicate-flux-schnell", {"prompt": "a", "enable_safety_checker": False}, 0, {"disable_safety_checker": True}),
        (
            "replicate-flux-schnell",
            {"prompt": "a", "moderation": "low", "n": 3},
            0,
            {"disable_safety_checker": True, "num_outputs": 3},
        ),
        ("replicate-topaz-image-upscale", {"scale_factor": 4}, 1, {"upscale_factor": "4x"}),
        ("replicate-topaz-image-upscale", {"size": "1600x1200"}, 1, {"upscale_factor": "4x"}),
    ],
)
def test_a_drafted_offer_plans_the_providers_own_fields(
    name: str, fields: dict[str, Json], images: int, payload: dict[str, Any], tmp_path: Path
) -> None:
    """Our names reach the provider under its names and in its forms."""
    plan = planned(drafted(name, tmp_path), fields, images)

    assert payload.items() <= plan.calls[0].payload.items()
    assert not plan.missing
    assert all(decision.mode is not Mode.UNSUPPORTED for decision in plan.decisions)


def test_what_the_model_cannot_do_is_emulated(tmp_path: Path) -> None:
    """Counts beyond the provider's are spread over calls, sizes are fitted, formats encoded."""
    plan = planned(drafted("fal-nano-banana-edit", tmp_path), {"prompt": "a", "n": 6, "size": "1600x901", "output_format": "avif"})

    assert [call.images for call in plan.calls] == [4, 2]
    assert any(isinstance(step, Fit) and step.size == Size(1600, 901) for step in plan.steps)
    assert plan.calls[0].payload["output_format"] == "png"


def test_pictures_go_as_a_list_where_the_document_has_one(tmp_path: Path) -> None:
    """A list input becomes a list also of one, with the document's largest number."""
    offer = thing({"image_urls": {"type": "array", "items": {"type": "string"}, "maxItems": 4}}, tmp_path)

    assert planned(offer, {}).calls[0].payload == {"image_urls": (ImageRef("image"),)}
    assert offer.params["image"].max == 4


@pytest.mark.parametrize(
    ("schema", "facts"),
    [
        ({"anyOf": [{"type": "integer", "minimum": 2}, {"type": "null"}]}, {"type": "integer", "min": 2}),
        ({"oneOf": [{"type": "null"}, {"const": "x"}]}, {"type": "text", "choices": ("x",)}),
        ({"type": ["number", "null"], "maximum": 3.5}, {"type": "number", "max": 3.5}),
        ({"type": "string", "nullable": True, "enum": ["a", "b", None]}, {"type": "text", "choices": ("a", "b")}),
        ({"allOf": [{"$ref": "#/components/schemas/Kind"}], "default": "b"}, {"choices": ("a", "b"), "default": "b"}),
        ({"$ref": "#/components/schemas/Kind", "enum": ["c"]}, {"choices": ("c",)}),
        ({"anyOf": [{"enum": ["a"]}, {"enum": [1]}]}, {"type": "json", "choices": ("a", 1)}),
        ({"anyOf": [{"enum": ["a"], "type": "string"}, {"type": "string"}]}, {"type": "text", "choices": ()}),
        ({"anyOf": [{"type": "integer"}, {"type": "number"}]}, {"type": "number"}),
        ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 9}, {"min": 1, "max": 8}),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, {"min": 1}),
        ({"type": "integer", "multipleOf": 8}, {"multiple_of": 8}),
        ({"type": "number", "maximum": 1, "default": 5}, {"max": 1, "default": None}),
        ({"type": "object", "default": {"a": None}}, {"type": "json", "default": None}),
        ({"type": "array", "items": {"type": "object"}, "default": [1, "x"]}, {"type": "json", "default": [1, "x"]}),
        ({"$ref": "#/components/schemas/Loop"}, {"type": "json"}),
        ({"$ref": "elsewhere.json#/Kind"}, {"type": "json"}),
    ],
)
def test_shapes_of_schemas(schema: dict[str, Any], facts: dict[str, Any], tmp_path: Path) -> None:
    """References, merges, nulls, constants and excluded bounds are read for what they mean."""
    raw = fal_document({"knob": schema})
    raw["components"]["schemas"] |= {
        "Kind": {"type": "string", "enum": ["a", "b"]},
        "Loop": {"allOf": [{"$ref": "#/components/schemas/Loop"}]},
    }

    rule = loaded(draft_model("fal", raw, DAY), tmp_path).offers[0].params["knob"]

    assert {key: getattr(rule, key) for key in facts} == facts


def test_whole_factors_stay_whole(tmp_path: Path) -> None:
    """An integer factor is never sent as a decimal, not even to reach a size."""
    offer = thing({"image_url": {"type": "string"}, "scale": {"type": "integer", "minimum": 2, "maximum": 4}}, tmp_path)

    assert planned(offer, {"size": "1500x1125"}).calls[0].payload["scale"] == 3
    assert planned(offer, {"scale_factor": 2.5}).calls[0].payload["scale"] == 3


def test_names_that_mean_something_else_here_get_others(tmp_path: Path) -> None:
    """`model`, or a `quality` of other values, would never arrive under their own names."""
    offer = thing(
        {"model": {"type": "string"}, "quality": {"type": "string", "enum": ["best"]}, "stream": {"type": "boolean"}}, tmp_path
    )

    assert {"fal_model": "model", "fal_quality": "quality", "fal_stream": "stream"}.items() <= {
        name: rule.to for name, rule in offer.params.items()
    }.items()


def test_a_parameter_of_the_gateways_keeps_its_name_and_the_values_it_shares(tmp_path: Path) -> None:
    """Of a provider's `quality` the values that callers can ask for are kept."""
    offer = thing({"quality": {"type": "string", "enum": ["low", "high", "best"]}}, tmp_path)

    assert offer.params["quality"].choices == ("low", "high")


def test_weights_and_secrets_are_blocked_and_marked(tmp_path: Path) -> None:
    """What a machine would load, and secrets, do not pass until someone has read the line."""
    raw = fal_document(
        {
            "lora_links": {"type": "string"},
            "loras": {"type": "array", "items": {"type": "object"}},
            "hf_token": {"type": "string", "format": "password"},
            "style_image_url": {"type": "string"},
            "lora_scale": {"type": "number"},
        }
    )
    text = draft_model("fal", raw, DAY)

    params = loaded(text, tmp_path).offers[0].params

    assert [name for name, rule in params.items() if rule.blocked] == ["lora_links", "loras", "hf_token"]
    assert len(re.findall("^# review:", text, re.MULTILINE)) == 4


@pytest.mark.parametrize("word", ["shape_preservation means", "scale means", "it takes a picture and a factor"])
def test_guesses_are_marked(word: str) -> None:
    """What the document does not say stands under a comment."""
    assert f"# guessed: {word}" in draft_model("fal", document("fal-creative-upscaler"), DAY)


def test_a_community_model_is_asked_for_by_its_version(tmp_path: Path) -> None:
    """Replicate takes names alone for official models only."""
    community, official = drafted("replicate-clarity-upscaler", tmp_path), drafted("replicate-flux-schnell", tmp_path)

    assert community.endpoint == "dfad41707589d68ecdccd1dfa600d55a208f9310748e44bfe35b4a6291453d5e"
    assert official.endpoint == "black-forest-labs/flux-schnell"


def test_a_schema_alone_is_of_the_model_that_the_caller_names(tmp_path: Path) -> None:
    """A version, or its `openapi_schema`, does not say whose it is."""
    version = document("replicate-clarity-upscaler")["latest_version"]

    with pytest.raises(DocumentUnusable, match="give --endpoint owner/name"):
        draft_model("replicate", version, DAY)
    named = loaded(draft_model("replicate", version, DAY, endpoint="a/b"), tmp_path).offers[0]
    pinned = loaded(draft_model("replicate", version["openapi_schema"], DAY, endpoint="a/b:123"), tmp_path).offers[0]

    assert (named.endpoint, pinned.endpoint) == (version["id"], "123")
    assert pinned.source == "https://replicate.com/a/b/api"


@pytest.mark.parametrize(
    ("provider", "raw", "words"),
    [
        ("fal", [], "a schema document is a JSON object"),
        ("fal", {}, "no input schema found"),
        ("replicate", {"openapi": "3.0.2"}, "no input schema found"),
        (
            "replicate",
            {**document("replicate-flux-schnell"), "name": "other"},
            "the document is of black-forest-labs/other, not of a/b",
        ),
        ("fal", fal_document({"a": {}}), "no endpoint a/b here; the document has one endpoint: someone/thing"),
    ],
)
def test_what_is_missing_is_said(provider: str, raw: Json, words: str) -> None:
    """A document that cannot be drafted from is refused in words."""
    with pytest.raises(DocumentUnusable, match=re.escape(words)):
        draft_model(provider, raw, DAY, endpoint="a/b")


_TEXTS = st.text(max_size=12).filter(lambda text: not any("\ud800" <= letter <= "\udfff" for letter in text))
_SCALARS = st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | _TEXTS
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3), max_leaves=8
)


@given(st.dictionaries(_TEXTS, _VALUES, max_size=4))
def test_toml_survives_a_round_trip(values: dict[str, Json]) -> None:
    """What is written is what is read, whatever the text."""
    text = "".join(f"{toml_key(key)} = {toml_value(value)}\n" for key, value in values.items())

    assert tomllib.loads(text) == values


_KNOWN_NAMES = st.sampled_from(
    [
        *PARAMETERS,
        *("model", "image", "mask", "image_url", "image_urls", "mask_url", "num_images", "image_size", "scale", "strength"),
        *("format", "output_quality", "lora_links", "guidance", "disable_safety_checker", "sync_mode", "fal_model", "text_prompt"),
    ]
)
_CHOICES = st.sampled_from(["1:1", "16:9", "auto", "1024x1024", "2K", "4x", "png", "jpg", "low", 2, 4.5, True, None, "é\n#\"'"])
_PLAIN: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["string", "integer", "number", "boolean", "object", "array", ["string", "null"]]),
        "enum": st.lists(_CHOICES, max_size=4),
        "minimum": st.integers(-5, 5) | st.floats(-5, 5),
        "maximum": st.integers(-5, 5) | st.floats(-5, 5),
        "exclusiveMinimum": st.booleans() | st.integers(-5, 5),
        "multipleOf": st.integers(1, 8),
        "maxItems": st.integers(0, 20),
        "default": _CHOICES | st.lists(st.none(), max_size=1) | st.integers(-9, 9) | st.lists(_CHOICES, max_size=2),
        "format": st.sampled_from(["uri", "password"]),
        "properties": st.just({"width": {"type": "integer", "minimum": 1}, "height": {"type": "integer"}}),
    },
)


def _nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Choices between schemas, merges of them, and lists."""
    return st.one_of(
        *(st.fixed_dictionaries({key: st.lists(inner, max_size=3)}) for key in ("anyOf", "oneOf", "allOf")),
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}),
    )


_SCHEMAS = st.recursive(_PLAIN, _nested, max_leaves=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=150)
@given(st.dictionaries(_KNOWN_NAMES | _TEXTS, _SCHEMAS, max_size=8), st.lists(_KNOWN_NAMES, max_size=3))
def test_whatever_the_inputs_are_the_draft_loads(tmp_path: Path, inputs: dict[str, Any], required: list[str]) -> None:
    """No schema makes a file that the catalog refuses, and no name or value breaks out of its line."""
    offer = thing(inputs, tmp_path, required)

    assert set(inputs) <= {rule.to or name for name, rule in offer.params.items()}


def test_the_command_prints_a_draft(tmp_path: Path) -> None:
    """`catalog import` prints, under the id that was asked for."""
    done = CliRunner().invoke(main, ["catalog", "import", "fal", str(DOCUMENTS / "fal-clarity-upscaler.json"), "--id", "mine"])

    assert done.exit_code == 0, done.output
    assert loaded(done.stdout, tmp_path).id == "mine"


def test_the_command_knows_every_importable_provider() -> None:
    """The command names the providers itself, so that `--help` need not load the catalog."""
    usage = CliRunner().invoke(main, ["catalog", "import", "--help"]).stdout

    assert f"{{{'|'.join(IMPORTABLE)}}}" in usage


def test_the_command_never_overwrites(tmp_path: Path) -> None:
    """A file that is there stays as it is."""
    target = tmp_path / "new.toml"
    arguments = ["catalog", "import", "replicate", str(DOCUMENTS / "replicate-flux-schnell.json"), "-o", str(target)]

    first = CliRunner().invoke(main, arguments)
    written = target.read_text("utf-8")
    second = CliRunner().invoke(main, arguments)

    assert (first.exit_code, second.exit_code) == (0, 1)
    assert "is there already" in second.stderr
    assert target.read_text("utf-8") == written


def test_the_command_lists_endpoints_to_choose_from(tmp_path: Path) -> None:
    """A document of several endpoints is drafted one at a time."""
    raw = fal_document({"prompt": {"type": "string"}})
    raw["paths"]["/someone/thing/edit"] = raw["paths"]["/someone/thing"]
    path = tmp_path / "several.json"
    path.write_text(json.dumps(raw))

    refused = CliRunner().invoke(main, ["catalog", "import", "fal", str(path)])
    chosen = CliRunner().invoke(main, ["catalog", "import", "fal", str(path), "--endpoint", "someone/thing/edit"])

    assert "2 endpoints; choose with --endpoint: someone/thing, someone/thing/edit" in refused.stderr
    assert 'endpoint = "someone/thing/edit"' in chosen.stdout


@pytest.mark.parametrize(
    ("raw", "words"), [(b"<html>", "not JSON"), (b"\xff\xfe\x00", "not JSON"), (b"{}", "no input schema found")]
)
def test_the_command_says_what_is_wrong_with_a_file(raw: bytes, words: str, tmp_path: Path) -> None:
    """The file is named, and the reason."""
    path = tmp_path / "bad.json"
    path.write_bytes(raw)

    done = CliRunner().invoke(main, ["catalog", "import", "fal", str(path)])

    assert done.exit_code == 1
    assert f"bad.json: {words}" in done.stderr


def test_the_command_refuses_an_id_that_is_none() -> None:
    """An id is small letters, digits and a few signs."""
    done = CliRunner().invoke(main, ["catalog", "import", "fal", str(DOCUMENTS / "fal-clarity-upscaler.json"), "--id", "Ä b"])

    assert done.exit_code == 1
    assert "choose one with --id" in done.stderr
