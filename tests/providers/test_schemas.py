"""What the catalog sends fits what the providers take: their input schemas, written down apart from the catalog, in `schemas/`.

`schemas/<provider>/*.json` has one file per endpoint, its title the endpoint. A file is written from the provider's documents
alone; where it and the catalog disagree, one of them has misread the documents.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from normalization.offer import Offer, Rule, ValueType
from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.plan import Plan
from normalization.planner import plan_request
from normalization.request import PARAMETERS, ImageRef, ImageRequest, InvalidParameter, Json, RequestMode, Text, parse_request
from providers.catalog import Catalog, load_catalog
from providers.local.engine.detail_upscaler import DetailUpscaler
from providers.local.engine.schema import openapi_document

SCHEMAS: Mapping[Path, dict[str, Any]] = {
    path: json.loads(path.read_text("utf-8")) for path in sorted((Path(__file__).parent / "schemas").glob("*/*.json"))
}
IDS = [f"{path.parent.name}/{path.stem}" for path in SCHEMAS]
BY_ENDPOINT = {(path.parent.name, schema["title"]): schema for path, schema in SCHEMAS.items()}
"""By provider and endpoint."""

PICTURE = "data:image/png;base64,AAAA"
PICTURES = (
    ImageInfo(Format.PNG, Size(640, 480)),
    ImageInfo(Format.PNG, Size(640, 480), alpha=True),
    ImageInfo(Format.JPEG, Size(480, 640)),
    ImageInfo(Format.WEBP, Size(1024, 1024)),
    ImageInfo(Format.AVIF, Size(301, 177)),
    ImageInfo(Format.JPEG, Size(8000, 6000)),
    ImageInfo(Format.PNG, Size(1, 1)),
)
MASK = ImageInfo(Format.PNG, Size(640, 480), alpha=True)

TYPICAL: Mapping[str, tuple[Json, ...]] = {
    "prompt": ("a red hat", "", "x" * 2000),
    "negative_prompt": ("blurry", ""),
    "n": (1, 2, 3, 4, 5, 10),
    "size": ("auto", "1024x1024", "2048x1536", "640x480", "1x1", "16384x16384", "300x5000", "1:1", "16:9", "21:9", "7:5"),
    "aspect_ratio": ("auto", "1:1", "3:2", "9:21", "16:9", "1000:1", "4:5"),
    "resolution": ("1K", "2K", "4K"),
    "scale_factor": (0.5, 1, 1.5, 2, 3, 3.3333, 4, 5, 6, 8, 9.5, 10, 16, 200),
    "seed": (-1, 0, 42, 2**31, 2**53),
    "num_inference_steps": (1, 4, 12, 18, 28, 50, 100, 200),
    "guidance_scale": (0, 0.5, 1, 3.5, 7, 16, 20, 50),
    "creativity": (0, 0.35, 0.5, 1, 1.5, 6, 10),
    "resemblance": (0, 0.6, 1, 2, 3, 4),
    "style": ("vivid",),
    "mask_feather": (0, 4.5),
}
"""What callers send, inside some offer's limits and outside."""
LOOSE: tuple[Json, ...] = (
    -1,
    0,
    0.5,
    1,
    2,
    3,
    4,
    100,
    1000,
    True,
    False,
    "text",
    "2",
    Text("2"),
    Text("0.5"),
    Text("true"),
    Text("text"),
)

STANDARD: tuple[Mapping[str, Json], ...] = (
    {},
    {"size": "1024x1024"},
    {"size": "2048x1536", "n": 3},
    {"size": "auto", "quality": "high", "background": "auto"},
    {"aspect_ratio": "16:9", "resolution": "2K"},
    {"resolution": "4K", "scale_factor": 2},
    {"scale_factor": 8, "seed": 7},
    {"scale_factor": Text("3"), "seed": Text("42"), "num_inference_steps": Text("20"), "guidance_scale": Text("5.5")},
    {"n": 10, "seed": 1},
    {"n": 2, "output_format": "jpeg", "output_compression": 80},
    {"output_format": "webp", "background": "transparent"},
    {"output_format": "avif", "response_format": "b64_json"},
    {"background": "opaque", "background_color": "#102030", "size": "500x500", "fit": "pad"},
    {"negative_prompt": "blurry", "creativity": 0.5, "resemblance": 0.9, "guidance_scale": 6, "num_inference_steps": 24},
    {"moderation": "low", "enable_safety_checker": False, "input_fidelity": "high", "style": "vivid", "user": "u"},
    {"moderation": "auto", "enable_safety_checker": Text("true"), "input_fidelity": "low", "quality": "low"},
)


LOADED = {"lora_links", "custom_sd_model"}
"""Inputs that make a container fetch any address and load what it finds there."""


@cache
def _catalog() -> Catalog:
    return load_catalog()


def _offers() -> list[Any]:
    return [
        pytest.param(offer, model.modes, id=f"{offer.provider}/{model.id}")
        for model in _catalog().models.values()
        for offer in model.offers
    ]


@pytest.mark.parametrize("path", SCHEMAS, ids=IDS)
def test_schema_is_valid_and_says_where_it_was_read(path: Path) -> None:
    """Every schema is one, is closed, names its endpoint and a public source, and says of every field how certain it is."""
    schema = SCHEMAS[path]

    Draft202012Validator.check_schema(schema)

    assert schema["title"]
    assert schema["$comment"].startswith("https://")
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) <= set(schema["properties"])
    assert all(field["description"] for field in schema["properties"].values())


@pytest.mark.parametrize("path", SCHEMAS, ids=IDS)
def test_types_are_strict(path: Path) -> None:
    """No field takes null, and text never stands for a number or a boolean."""
    for name, field in SCHEMAS[path]["properties"].items():
        is_text = field.get("type") not in ("number", "integer", "boolean")

        assert _problems(field, None), name
        assert is_text or all(_problems(field, text) for text in ("2", "true")), name


def test_no_two_schemas_are_of_one_endpoint() -> None:
    """Every endpoint has one schema."""
    assert len(BY_ENDPOINT) == len(SCHEMAS)


def test_bundled_model_has_the_schema_that_its_server_publishes() -> None:
    """What is written down for the bundled model is what `/openapi.json` of its server says."""
    published = openapi_document(DetailUpscaler(), "1")["components"]["schemas"]["Input"]
    written = BY_ENDPOINT["local", DetailUpscaler.name]

    assert {name: written[name] for name in ("type", "properties", "required")} == {
        name: published[name] for name in ("type", "properties", "required")
    }


@pytest.mark.parametrize(("own", "hosted"), [("clarity-upscaler", "clarity-upscaler"), ("esrgan", "real-esrgan")])
def test_own_machine_takes_what_replicate_takes(own: str, hosted: str) -> None:
    """The container that one runs oneself is the hosted one, so it takes the same input."""
    folder = Path(__file__).parent / "schemas"

    assert SCHEMAS[folder / f"local/{own}.json"] | {"title": ""} == SCHEMAS[folder / f"replicate/{hosted}.json"] | {"title": ""}


@pytest.mark.parametrize(("offer", "modes"), _offers())
def test_standard_requests_fit_the_schema(offer: Offer, modes: tuple[RequestMode, ...]) -> None:
    """What a standard set of requests becomes is what the provider takes, and some of them can be served."""
    served = 0
    for fields in STANDARD:
        for pictures, mask in ((PICTURES[:1], None), (PICTURES[5:6], None), (PICTURES[:1], MASK), (PICTURES[:3], None), ((), None)):
            plan = _plan(offer, modes[0], {"prompt": "a red hat", **fields}, pictures, mask)
            served += _assert_payloads_fit(plan)
    assert served


@pytest.mark.parametrize(("offer", "modes"), _offers())
def test_each_parameter_alone_fits_the_schema(offer: Offer, modes: tuple[RequestMode, ...]) -> None:
    """Every parameter of the offer, with every value of its domain, is sent as the provider takes it or not at all."""
    pictures = PICTURES[:1] if "image" in offer.params else ()
    mask = MASK if "mask" in offer.params and offer.params["mask"].required else None

    served = [
        _assert_payloads_fit(_plan(offer, modes[0], {"prompt": "a red hat", name: value}, pictures, mask))
        for name in _names(offer)
        for value in _domain(name, offer)
    ]

    assert any(served)


@pytest.mark.parametrize(("offer", "modes"), _offers())
def test_generated_requests_fit_the_schema(offer: Offer, modes: tuple[RequestMode, ...]) -> None:
    """Whatever parameters come together, what is planned is what the provider takes."""
    names = _names(offer)

    @settings(max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.data())
    def check(data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(names), max_size=8, unique=True))
        fields = {name: data.draw(st.sampled_from(_domain(name, offer)), label=name) for name in chosen}
        pictures = tuple(data.draw(st.lists(st.sampled_from(PICTURES), max_size=3)))
        mask = data.draw(st.sampled_from((None, None, MASK))) if pictures else None
        _assert_payloads_fit(_plan(offer, data.draw(st.sampled_from(modes)), {"prompt": "a red hat", **fields}, pictures, mask))

    check()


@pytest.mark.parametrize(("offer", "modes"), _offers())
def test_weights_are_never_loaded_from_an_address_of_the_caller(offer: Offer, modes: tuple[RequestMode, ...]) -> None:
    """A container that would load any address it is given is not given any."""
    fields: dict[str, Json] = dict.fromkeys(LOADED, "https://example.com/weights.safetensors")

    plan = _plan(offer, modes[0], {"prompt": "a red hat", **fields}, PICTURES[:1])

    takes = LOADED & _schema(offer)["properties"].keys()
    assert not [name for call in plan.calls for name in call.payload if name in takes]


def _plan(
    offer: Offer, mode: RequestMode, fields: Mapping[str, Json], pictures: tuple[ImageInfo, ...], mask: ImageInfo | None = None
) -> Plan:
    return plan_request(_request(mode, fields, pictures, mask), offer, _catalog().parameters)


def _request(
    mode: RequestMode, fields: Mapping[str, Json], pictures: tuple[ImageInfo, ...], mask: ImageInfo | None
) -> ImageRequest:
    """The request without the values that no model could take."""
    taken = {name: value for name, value in fields.items() if _is_understood(name, value)}
    return parse_request(mode, {"model": "m", **taken}, pictures, mask)


def _is_understood(name: str, value: Json) -> bool:
    try:
        parse_request(RequestMode.EDIT, {"model": "m", name: value})
    except InvalidParameter:
        return False
    return True


def _names(offer: Offer) -> list[str]:
    """The gateway's vocabulary, the offer's own parameters and the provider's names for them; all of them known to the catalog."""
    fields = {rule.to for rule in offer.params.values() if rule.to}
    return sorted((set(PARAMETERS) | set(offer.params) | fields) - {"image", "mask"} - _picture_fields(offer))


def _picture_fields(offer: Offer) -> set[str]:
    """The provider's names for the pictures, which come as pictures only."""
    return {rule.to for name, rule in offer.params.items() if name in ("image", "mask") and rule.to}


def _domain(name: str, offer: Offer) -> list[Json]:
    """Values for a parameter: what callers send, what the offer names, what lies at and beyond its bounds, and other types."""
    enumerated = PARAMETERS[name].schema.get("enum", ()) if name in PARAMETERS else ()
    assert isinstance(enumerated, list | tuple)
    rules = [rule for key, rule in offer.params.items() if name in (key, rule.to)]
    ruled = [value for rule in rules for value in _values_of(rule)]
    if any(rule.converter == "width_height" and rule.to == name for rule in rules):
        # A provider's own notation, which the catalog does not describe: as its documents have it.
        return [{"width": 640, "height": 480}, "square_hd"]
    return [*TYPICAL.get(name, ()), *enumerated, *ruled, *LOOSE]


def _values_of(rule: Rule) -> Iterator[Json]:
    yield from rule.choices
    yield from rule.table
    yield from (rule.table[key] for key in rule.table)
    whole = rule.type is ValueType.INTEGER
    for bound in (rule.min, rule.max):
        if bound is not None:
            yield from (int(bound) if float(bound).is_integer() else bound, bound + 1, bound - 1)
            yield Text(f"{bound:g}")
            if not whole:
                yield from (bound + 0.01, bound - 0.01)


def _assert_payloads_fit(plan: Plan) -> bool:
    """Check every call of a plan that can be carried out; tells whether it can.

    Raises:
        AssertionError: With offer, payload and the rule that it violates.
    """
    if plan.refusals or not all(decision.known for decision in plan.decisions):
        return False
    offer, schema = plan.offer, _schema(plan.offer)
    for call in plan.calls:
        payload = {name: _as_sent(value) for name, value in call.payload.items()}
        problems = _problems(schema, payload) + (["null is sent"] if _has_null(payload) else [])
        asked = {decision.param: decision.asked for decision in plan.decisions}
        assert not problems, f"{offer.provider} {offer.endpoint}: {'; '.join(problems)}\nasked {asked}\nsent {payload}"
    return True


def _problems(schema: dict[str, Any], value: Any) -> list[str]:
    """What is wrong with a value, each with its place and the rule that it violates."""
    validator: Any = Draft202012Validator(schema)
    if validator.is_valid(value):
        return []
    return [f"{error.json_path}: {error.message} ({error.schema_path[-1]})" for error in validator.iter_errors(value)]


def _schema(offer: Offer) -> dict[str, Any]:
    schema = BY_ENDPOINT.get((offer.provider, offer.endpoint))
    assert schema is not None, f"no schema of {offer.provider} {offer.endpoint}"
    return schema


def _as_sent(value: Any) -> Any:
    match value:
        case ImageRef():
            return PICTURE
        case str() | bool() | int() | float() | None:
            return value
        case Mapping():
            return {name: _as_sent(item) for name, item in value.items()}  # pyright: ignore[reportUnknownVariableType] -- JSON
        case _:
            return [_as_sent(item) for item in value]


def _has_null(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_null, value.values()))  # pyright: ignore[reportUnknownArgumentType] -- JSON
    return value is None or (isinstance(value, list) and any(map(_has_null, value)))  # pyright: ignore[reportUnknownArgumentType] -- JSON
