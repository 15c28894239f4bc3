"""A model file drafted from a provider's schema document, for a person to finish: prices are not in such documents.

What the document says becomes rules; what it leaves open is decided the usual way and marked `# guessed:`; what callers should
perhaps not set is marked `# review:`. The result is TOML text that the catalog loads as it is.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from types import MappingProxyType
from typing import TypeAlias

from normalization.offer import ValueType
from normalization.pixels.formats import OUTPUT_FORMATS, Format
from normalization.request import MAX_IMAGES, PARAMETERS, RESOLUTIONS, Json
from providers.catalog.documents import READERS, DocumentUnusable, Input, ModelDocument, read_document
from providers.catalog.toml import toml_comment, toml_key, toml_value

IMPORTABLE = tuple(READERS)
"""The providers whose documents can be drafted from."""


def draft_model(provider: str, document: Json, checked: date, *, model_id: str | None = None, endpoint: str | None = None) -> str:
    """Draft the file of a model with one offer.

    Args:
        provider: One of `IMPORTABLE`.
        document: What the JSON file holds; see `providers.catalog.documents.read_document`.
        checked: The day on which the document was read.
        model_id: What callers will send as `model`; without it, made from the endpoint.
        endpoint: Which endpoint of the document, or its name where the document does not say.

    Returns:
        TOML, which `providers.catalog.read_model` reads.

    Raises:
        DocumentUnusable: If nothing can be drafted from the document, or the id is not one.
    """
    read = read_document(provider, document, endpoint)
    return "\n".join((*_model_lines(provider, read, checked, model_id or _id_of(read.name)), *_param_lines(provider, read), ""))


@dataclass(frozen=True, slots=True)
class _Drafted:
    """One rule, and what a reader must know of it."""

    rule: Mapping[str, Json]
    notes: tuple[str, ...] = ()
    """Each begins with `guessed:` or `review:`."""

    def noted(self, *notes: str | None) -> "_Drafted":
        """The same with more notes; None is none."""
        return replace(self, notes=(*self.notes, *(note for note in notes if note is not None)))


_Rules: TypeAlias = dict[str, _Drafted]


def _model_lines(provider: str, read: ModelDocument, checked: date, model_id: str) -> Iterable[str]:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", model_id):
        raise DocumentUnusable(f"{model_id} is not a model id: small letters, digits, `.`, `_` and `-`; choose one with --id")
    page = f"https://fal.ai/models/{read.name}/api" if provider == "fal" else f"https://replicate.com/{read.name}/api"
    modes, why = _modes(read)
    yield toml_comment(f"Drafted from {provider}'s schema document of {read.name}. Read it beside the source before use:")
    yield toml_comment("`guessed:` marks what the document does not say, `review:` what callers should perhaps not set.")
    yield f"id = {toml_value(model_id)}"
    yield f"name = {toml_value(model_id.replace('-', ' ').capitalize())}"
    if read.description:
        yield f"description = {toml_value(' '.join(read.description.split()))}"
    yield toml_comment(f"guessed: {why}")
    yield f"modes = {toml_value(modes)}"
    yield f"created = {int(datetime(checked.year, checked.month, checked.day, tzinfo=UTC).timestamp())}"
    yield ""
    yield "[[offers]]"
    yield f"provider = {toml_value(provider)}"
    if read.doubt:
        yield toml_comment(f"guessed: {read.doubt}")
    named = "" if read.name in read.endpoint else f" {toml_comment(read.name)}"
    yield f"endpoint = {toml_value(read.endpoint)}{named}"
    yield f"source = {toml_value(page)}"
    yield f"checked = {checked.isoformat()}"
    yield 'price = { unknown = "read it from the source" }'
    yield from _output_lines(read)
    yield ""


def _output_lines(read: ModelDocument) -> Iterable[str]:
    chosen = _claimed(read.inputs).get("output_format")
    formats = _formats(chosen) if chosen is not None else {}
    usual = next((ours for ours, theirs in formats.items() if chosen is not None and theirs == chosen.default), None)
    if read.pictures is None:
        yield toml_comment("guessed: no picture was found in the document's answer")
    output: dict[str, Json] = {"field": "images" if read.pictures is None else read.pictures}
    yield f"output = {toml_value(output | ({'format': usual} if usual else {}))}"
    if chosen is not None and Format.PNG in formats:
        yield f"master = {toml_value({chosen.name: formats[Format.PNG]})}"


def _id_of(name: str) -> str:
    """An id from the endpoint's name without its owner: `fal-ai/flux/dev` is `flux-dev`."""
    words = name.partition("/")[2] or name
    return re.sub(r"[^a-z0-9._]+", "-", words.lower()).strip("-._") or "model"


def _modes(read: ModelDocument) -> tuple[list[Json], str]:
    """What the model is for, and what that is guessed from."""
    claimed = _claimed(read.inputs)
    told = f"{read.name} {read.category}".lower()
    if "image" not in claimed:
        return ["generate"], "it takes no picture"
    if re.search(r"remov\w*[^a-z]+(background|bg)|(background|bg)[^a-z]+remov|rembg|matting|birefnet", told):
        return ["remove-background", "edit"], "its name speaks of backgrounds"
    if "scale_factor" in claimed:
        return ["upscale", "edit"], "it takes a picture and a factor"
    if re.search(r"upscal|super-?resolution|esrgan", told):
        return ["upscale", "edit"], "it takes a picture, and its name speaks of upscaling"
    if "prompt" in claimed and not claimed["image"].required:
        return ["edit", "generate"], "it takes a picture, and does without one"
    return ["edit"], "it takes a picture"


def _param_lines(provider: str, read: ModelDocument) -> Iterable[str]:
    rules = _rules(provider, read)
    order = [name for name in ("prompt", "negative_prompt", "image", "mask", *PARAMETERS) if name in rules]
    yield "[offers.params]"
    for name in dict.fromkeys((*order, *rules)):
        yield from (toml_comment(note) for note in rules[name].notes)
        plain = rules[name].rule == {"passthrough": True}
        yield f"{toml_key(name)} = {toml_value('passthrough' if plain else rules[name].rule)}"


def _rules(provider: str, read: ModelDocument) -> _Rules:
    claimed = _claimed(read.inputs)
    taken = {field.name for field in claimed.values()}
    rules: _Rules = {}
    for row in _KNOWN:
        if row.name in claimed:
            field = claimed[row.name]
            doubt = f"guessed: {field.name} means what others call {row.name}" if field.name in row.likely else None
            rules[row.name] = row.draft(row.name, field).noted(doubt)
    for field in read.inputs:
        if field.name not in taken:
            name = _own_name(provider, field, read.inputs)
            why = f"guessed: named {name}, because {field.name} means something else to the gateway" if name != field.name else None
            rules[name] = _own(name, field).noted(why)
    upscales = "upscale" in _modes(read)[0]
    for name, drafted in _usual(claimed, upscales=upscales).items():
        rules.setdefault(name, drafted)
    for name in ("background", "output_format", "output_compression"):
        rules[name] = replace(rules[name], rule={**rules[name].rule, "emulate": "encode"})
    return rules


def _usual(claimed: Mapping[str, Input], *, upscales: bool) -> _Rules:
    """What the gateway does where the model has nothing of its own; rules of the document's inputs go before these."""
    factor, ratio = claimed.get("scale_factor"), claimed.get("aspect_ratio")
    encode, fit = _Drafted({"emulate": "encode"}), _Drafted({"emulate": "fit"})
    reach = _Drafted({"convert": "factor_to_reach", "to": factor.name, **_steps(factor), "emulate": "fit"}) if factor else fit
    shape = _ratio("size", ratio) if ratio is not None and _ratios(ratio) else fit
    box = claimed.get("size")
    boxed = _dimensions("size", box) if box is not None and box.edge is not None else None
    usual = {
        "n": _Drafted({"emulate": "fan_out"}).noted('guessed: equal calls give different pictures; if not, emulate = "copies"'),
        "size": reach if factor else shape,
        "aspect_ratio": boxed or fit,
        "resolution": boxed or reach,
        "output_format": encode,
        "output_compression": encode,
        "background": encode,
    }
    checker = claimed.get("enable_safety_checker")
    if checker is not None:
        low: dict[str, Json] = {"low": checker.name.startswith("disable_")}
        usual["moderation"] = _Drafted({"convert": "table", "to": checker.name, "table": low})
    if upscales:
        usual["scale_factor"] = _Drafted({"emulate": "resample"}).noted("guessed: the model's own factor is fixed")
    if "image" in claimed:
        usual["mask"] = _Drafted({"emulate": "composite_mask"})
    return usual


_Draft: TypeAlias = Callable[[str, Input], _Drafted]
"""Takes our name and the provider's input."""


def _named(name: str, field: Input) -> _Drafted:
    """The value as it is, under the provider's name, with its limits."""
    declared = PARAMETERS[name].schema.get("type") if name in PARAMETERS else None
    kind = {} if declared == _SCHEMA_TYPES.get(field.type) else {"type": field.type.value}
    note = "guessed: a bound is itself excluded in the document" if field.open else None
    return _Drafted({**_way(name, field), **kind, **_limits(field)}).noted(note)


def _bounded(name: str, field: Input) -> _Drafted:
    """A strength: between 0 and 1 in our words, on whatever scale the provider has."""
    other = field.max is not None and field.max != 1
    return _named(name, field).noted(
        'guessed: sent on the provider\'s own scale; convert = "scaled" takes 0 to 1' if other else None
    )


def _prompt(name: str, field: Input) -> _Drafted:
    replaced = 'guessed: a prompt replaces the default; convert = "with_default" sends both' if field.default else None
    return _named(name, field).noted(replaced if name == "prompt" else None)


_READ: tuple[Json, ...] = ("png", "jpeg", "webp")
"""The formats that every provider's models are known to read."""


def _image(name: str, field: Input) -> _Drafted:
    read: dict[str, Json] = {**({"required": True} if field.required else {}), "formats": _READ}
    formats = "guessed: the document does not say which formats it reads"
    if field.items is None:
        return _Drafted({**_way(name, field), "max": 1, **read}).noted(formats)
    most = int(field.max) if field.max is not None else MAX_IMAGES
    note = None if field.max is not None else f"guessed: nor how many; {MAX_IMAGES} is the gateway's own limit"
    return _Drafted({"convert": "image_list", "to": field.name, "max": most, **read}).noted(formats, note)


def _mask(name: str, field: Input) -> _Drafted:
    required: dict[str, Json] = {"required": True} if field.required else {}
    rule: dict[str, Json] = {"convert": "luminance_mask", "to": field.name, **required}
    return _Drafted(rule).noted('guessed: white means edit; if white means keep, convert = "keep_mask"')


def _count(name: str, field: Input) -> _Drafted:
    most = int(field.max if field.max is not None else max(1, field.min or 1))
    drafted = _named(name, replace(field, max=most))
    note = None if field.max is not None else "guessed: the document names no largest number"
    return _Drafted({**drafted.rule, "emulate": "fan_out"}, drafted.notes).noted(note)


def _factor(name: str, field: Input) -> _Drafted:
    steps = _steps(field)
    if "table" in steps:
        return _Drafted({"convert": "table", "to": field.name, **steps, "emulate": "resample"})
    drafted = _named(name, _stepwise(field))
    unbounded = field.max is None and not field.choices
    note = f"guessed: the document has no largest factor; {_USUAL_FACTOR} is the usual one" if unbounded else None
    return _Drafted({**drafted.rule, "emulate": "resample"}, drafted.notes).noted(note)


_USUAL_FACTOR = 4
"""The largest factor of most upscalers."""
_FEW = 16
"""Up to so many whole factors are listed, so that none between them is sent."""


def _stepwise(field: Input) -> Input:
    """The field with every factor it takes listed, where they are few and whole, and with bounds in any case."""
    if field.choices:
        return replace(field, min=None, max=None)
    low = field.min or 1
    high = max(low, field.max if field.max is not None else _USUAL_FACTOR)
    if field.type is ValueType.INTEGER and high - low < _FEW:
        return replace(field, choices=tuple(range(int(low), int(high) + 1)), min=None, max=None)
    return replace(field, min=low, max=high)


def _steps(field: Input) -> dict[str, Json]:
    """The factors that a field takes: a table of texts such as `4x`, a list, or bounds."""
    if field.type is ValueType.TEXT:
        found = ((re.fullmatch(r"(\d+(?:\.\d+)?)\s*x?", str(choice), re.IGNORECASE), choice) for choice in field.choices)
        return {"table": {f"{float(match[1]):g}": choice for match, choice in found if match}}
    limits = _limits(_stepwise(field))
    return {key: limits[key] for key in ("choices", "min", "max") if key in limits}


def _ratio(name: str, field: Input) -> _Drafted:
    """A shape of the provider's list; other shapes are fitted."""
    if not _ratios(field):
        return _named(name, field).noted("guessed: the document has no list of shapes")
    default: dict[str, Json] = {"default": field.default} if name == "aspect_ratio" and isinstance(field.default, str) else {}
    rule: dict[str, Json] = {"convert": "nearest_ratio", "to": field.name, "choices": _ratios(field), **default, "emulate": "fit"}
    return _Drafted(rule)


def _ratios(field: Input) -> list[Json]:
    """The shapes among the choices. What else is there (`auto`, `match_input_image`) is what the model does by itself."""
    return [choice for choice in field.choices if isinstance(choice, str) and re.fullmatch(r"[1-9]\d*:[1-9]\d*", choice)]


def _dimensions(name: str, field: Input) -> _Drafted:
    """An object with width and height, or a list of `WxH`."""
    if field.edge is not None:
        edge = field.edge
        limits: dict[str, Json] = {"min": edge.min, "max": edge.max, "multiple_of": edge.multiple_of}
        given = {key: value for key, value in limits.items() if value is not None}
        return _Drafted({"convert": "width_height", "to": field.name, **given, "emulate": "fit"})
    choices: list[Json] = [choice for choice in field.choices if choice == "auto" or _is_size(choice)]
    rule: dict[str, Json] = {**_way(name, field), "choices": choices, "emulate": "fit"}
    return _Drafted(rule)


def _is_size(choice: Json) -> bool:
    return isinstance(choice, str) and re.fullmatch(r"[1-9]\d*x[1-9]\d*", choice) is not None


def _resolution(name: str, field: Input) -> _Drafted:
    table: dict[str, Json] = {str(choice).upper(): choice for choice in field.choices if str(choice).upper() in RESOLUTIONS}
    return _Drafted({"convert": "longest_edge", "to": field.name, "table": table, "emulate": "fit"})


def _file_format(name: str, field: Input) -> _Drafted:
    formats = _formats(field)
    lacking = [str(choice) for choice in field.choices if choice not in formats.values()]
    note = f"guessed: {', '.join(lacking)} cannot be asked for: not a format of the gateway" if lacking else None
    if all(ours == theirs for ours, theirs in formats.items()):
        default: dict[str, Json] = {"default": field.default} if field.default in formats else {}
        return _Drafted({**_way(name, field), "choices": list(formats), **default, "emulate": "encode"}).noted(note)
    return _Drafted({"convert": "table", "to": field.name, "table": formats, "emulate": "encode"}).noted(note)


def _formats(field: Input) -> dict[str, Json]:
    """Our names of the formats among the choices, and the provider's."""
    plain = {
        choice: str(choice).lower().removeprefix("image/").replace("jpg", "jpeg") for choice in field.choices if _is_text(choice)
    }
    return {str(Format(ours)): theirs for theirs, ours in plain.items() if ours in OUTPUT_FORMATS}


def _is_text(choice: Json) -> bool:
    return isinstance(choice, str)


def _inverted(name: str, field: Input) -> _Drafted:
    if not field.name.startswith("disable_"):
        return _named(name, field)
    return _Drafted({"convert": "invert", "to": field.name})


def _is_picture(field: Input) -> bool:
    return (field.items or field).type is ValueType.TEXT and not (field.items or field).choices


def _is_count(field: Input) -> bool:
    return field.type in (ValueType.INTEGER, ValueType.NUMBER) and not field.choices


def _is_factor(field: Input) -> bool:
    return field.type in (ValueType.INTEGER, ValueType.NUMBER) or bool(_steps(field).get("table"))


def _is_number(field: Input) -> bool:
    return field.type in (ValueType.INTEGER, ValueType.NUMBER)


def _is_plain_text(field: Input) -> bool:
    return field.type is ValueType.TEXT and not field.choices


@dataclass(frozen=True, slots=True)
class _Known:
    """A parameter of ours and the names under which providers have it, the best first."""

    name: str
    fields: tuple[str, ...]
    suits: Callable[[Input], bool]
    draft: _Draft = _named
    likely: tuple[str, ...] = ()
    """Names that usually mean it, and sometimes something else."""

    def find(self, inputs: Sequence[Input], taken: Iterable[str]) -> Input | None:
        """The first of the names that the model has and that can carry the parameter."""
        free = {field.name: field for field in inputs if field.name not in taken}
        found = (free[name] for name in (*self.fields, *self.likely) if name in free)
        return next((field for field in found if self.suits(field)), None)


_FILE_FORMAT_FIELDS = ("output_format", "format", "image_format")

_KNOWN = (
    _Known("prompt", ("prompt",), _is_plain_text, _prompt, ("text_prompt", "instruction")),
    _Known("negative_prompt", ("negative_prompt",), _is_plain_text),
    _Known(
        "image",
        ("image_url", "image", "input_image", "image_urls", "image_input", "images", "input_images", "input_image_url"),
        _is_picture,
        _image,
    ),
    _Known("mask", ("mask_url", "mask", "mask_image_url", "mask_image", "image_mask"), _is_picture, _mask),
    _Known("n", ("num_images", "num_outputs", "n", "number_of_images"), _is_count, _count),
    _Known("size", ("image_size", "size"), lambda field: field.edge is not None or any(map(_is_size, field.choices)), _dimensions),
    _Known(
        "aspect_ratio",
        ("aspect_ratio",),
        lambda field: field.type is ValueType.TEXT and bool(_ratios(field) or not field.choices),
        _ratio,
    ),
    _Known(
        "resolution",
        ("resolution",),
        lambda field: any(str(choice).upper() in RESOLUTIONS for choice in field.choices),
        _resolution,
    ),
    _Known(
        "scale_factor", ("scale_factor", "upscale_factor"), _is_factor, _factor, ("upscaling_factor", "scale", "factor", "outscale")
    ),
    _Known("creativity", ("creativity",), _is_number, _bounded, ("strength", "prompt_strength")),
    _Known("resemblance", ("resemblance",), _is_number, _named, ("shape_preservation",)),
    _Known("guidance_scale", ("guidance_scale",), _is_number, _named, ("guidance", "cfg_scale", "cfg", "dynamic")),
    _Known("num_inference_steps", ("num_inference_steps",), _is_count, _named, ("num_steps", "steps")),
    _Known("seed", ("seed",), _is_count),
    _Known("output_format", _FILE_FORMAT_FIELDS, lambda field: bool(_formats(field)), _file_format),
    _Known(
        "output_compression",
        ("output_compression",),
        lambda field: (field.min, field.max) == (0, 100),
        _named,
        ("output_quality", "quality"),
    ),
    _Known(
        "enable_safety_checker",
        ("enable_safety_checker", "enable_safety_checks", "disable_safety_checker"),
        lambda field: field.type is ValueType.BOOLEAN,
        _inverted,
    ),
)
"""Which input is which parameter. Sources: the parameters of the packaged models' own files."""


def _claimed(inputs: Sequence[Input]) -> Mapping[str, Input]:
    """The input of each parameter of ours that the model has."""
    claimed: dict[str, Input] = {}
    for row in _KNOWN:
        field = row.find(inputs, {field.name for field in claimed.values()})
        if field is not None:
            claimed[row.name] = field
    return claimed


_RESERVED = ("model", "image", "mask")
_SECRET = re.compile(r"(^|_)(api_key|secret|password|token|credentials)$")
_WEIGHTS = re.compile(r"lora|checkpoint|ckpt|weights|embedding|safetensors|_model(_|$)|^model_(url|path|name|id)")
_ADDRESS = re.compile(r"(^|_)(urls?|uri|links?)$")


def _own_name(provider: str, field: Input, inputs: Sequence[Input]) -> str:
    """What callers call a provider's own parameter: its name, unless that means something else here."""
    ours = field.name in _RESERVED or field.name in PARAMETERS
    if not ours or (field.name not in _claimed(inputs) and _agrees(field)):
        return field.name
    name = f"{provider}_{field.name}"
    while name in {other.name for other in inputs}:
        name = f"{provider}_{name}"
    return name


def _own(name: str, field: Input) -> _Drafted:
    """The rule of a provider's own parameter."""
    if name == field.name and name not in PARAMETERS and _is_blocked(field):
        return _blocked(field)
    if name in PARAMETERS:
        return _named(name, _narrowed(field))
    if field.name == "sync_mode":
        field = replace(field, choices=(False,))
    return _Drafted({**_way(name, field), "type": field.type.value, **_limits(field)}).noted(*_notes(field))


def _agrees(field: Input) -> bool:
    """Whether the gateway's parameter of that name can carry the provider's values."""
    parameter = PARAMETERS.get(field.name)
    if parameter is None or parameter.served is not None or "pattern" in parameter.schema:
        return False
    allowed = parameter.schema.get("enum")
    if isinstance(allowed, list):
        return any(choice in allowed for choice in field.choices)
    return parameter.schema.get("type") == _SCHEMA_TYPES.get(field.type) or (
        parameter.schema.get("type") == "number" and field.type is ValueType.INTEGER
    )


def _narrowed(field: Input) -> Input:
    """The input with those of its choices that can be asked for."""
    allowed = PARAMETERS[field.name].schema.get("enum")
    return replace(field, choices=tuple(one for one in field.choices if one in allowed)) if isinstance(allowed, list) else field


def _is_blocked(field: Input) -> bool:
    """Whether callers should leave the field alone until someone decides otherwise: what a machine would load, and secrets."""
    free = field.type in (ValueType.TEXT, ValueType.JSON) and not field.choices
    return free and not field.required and bool(field.secret or _SECRET.search(field.name) or _WEIGHTS.search(field.name))


def _blocked(field: Input) -> _Drafted:
    if field.secret or _SECRET.search(field.name):
        return _Drafted({"blocked": "is not passed on: it is a secret"}).noted("review: a secret")
    allow = toml_value({"passthrough": True, "type": field.type.value})
    note = f"review: the provider loads what this names; to let callers, write {allow}"
    return _Drafted({"blocked": "is not passed on: the provider would load what it names"}).noted(note)


def _notes(field: Input) -> Iterable[str]:
    if field.name == "sync_mode":
        yield "review: true would put pictures into the answer's text"
    elif field.address or (field.items is not None and field.items.address) or _ADDRESS.search(field.name):
        yield "review: the provider fetches whatever address a caller names here"
    elif field.secret or _SECRET.search(field.name):
        yield "review: a secret, which no caller should send through a gateway"
    if field.open:
        yield "guessed: a bound is itself excluded in the document"


_SCHEMA_TYPES: Mapping[ValueType, str] = MappingProxyType(
    {
        ValueType.TEXT: "string",
        ValueType.INTEGER: "integer",
        ValueType.NUMBER: "number",
        ValueType.BOOLEAN: "boolean",
    }
)


def _way(name: str, field: Input) -> dict[str, Json]:
    return {"passthrough": True} if field.name == name else {"rename": field.name}


def _limits(field: Input) -> dict[str, Json]:
    """The limits that the document has."""
    limits: dict[str, Json] = {
        "choices": list(field.choices) or None,
        "min": field.min,
        "max": field.max,
        "multiple_of": field.multiple_of,
        "default": field.default if _is_allowed(field) else None,
        "required": field.required or None,
    }
    return {key: value for key, value in limits.items() if value is not None}


def _is_allowed(field: Input) -> bool:
    """Whether the default is a value that callers could send: the catalog refuses others, and TOML has no null."""
    if _has_null(field.default):
        return False
    if field.choices:
        return field.default in field.choices
    if isinstance(field.default, bool) or not isinstance(field.default, int | float):
        return True
    return (field.min is None or field.default >= field.min) and (field.max is None or field.default <= field.max)


def _has_null(value: Json) -> bool:
    if isinstance(value, dict):
        return any(map(_has_null, value.values()))
    if isinstance(value, list):
        return any(map(_has_null, value))
    return value is None
