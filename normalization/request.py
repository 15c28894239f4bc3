"""The request in our own words: what was asked, typed, bounded and immutable.

Every parameter with a name of the gateway's own is one row of `PARAMETERS`. Pictures are handles; their bytes wait elsewhere.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from normalization.pixels.formats import FORMATS, OUTPUT_FORMATS, Format, ImageInfo, Size

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None

MAX_IMAGES = 16
"""Source: OpenAI API reference, "Create image edit", `image`."""


RESOLUTIONS: Mapping[str, int] = MappingProxyType({"1K": 1024, "2K": 2048, "4K": 4096})
"""The longer edge in pixels that each `resolution` stands for."""


class InvalidParameter(ValueError):
    """A parameter's value cannot be understood or is out of bounds for every model."""

    def __init__(self, param: str, code: str, message: str) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.message = message


class RequestMode(StrEnum):
    """What is wanted of a model."""

    EDIT = "edit"
    UPSCALE = "upscale"
    GENERATE = "generate"
    REMOVE_BACKGROUND = "remove-background"


class FitMode(StrEnum):
    """How a picture of one shape is brought to another: crop, fit inside, or fit inside and fill the rest."""

    COVER = "cover"
    CONTAIN = "contain"
    PAD = "pad"


class Ratio(NamedTuple):
    """A shape without a scale."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}:{self.height}"


class Text(str):
    """A value that came as text in a form: it may stand for a number or a boolean, which the offer's schema knows."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A handle on a picture of the request; never its bytes."""

    name: str
    """`image` or `mask`."""
    index: int = 0
    prepare: tuple[str, ...] = ()
    """Pure preparations, done before it is sent: names of `normalization.pixels.prepare`."""

    def __str__(self) -> str:
        return "+".join((f"{self.name}[{self.index}]", *self.prepare))

    def prepared(self, *names: str) -> "ImageRef":
        """The same picture after further preparations."""
        return replace(self, prepare=(*self.prepare, *names))


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """What a caller asked of a model. Values are typed and within the bounds that hold for every model."""

    mode: RequestMode
    model: str
    asked: "Mapping[str, Value]"
    """Each parameter that was sent, once, in the order sent. Names that `PARAMETERS` lacks keep their value as it came."""
    images: tuple[ImageInfo, ...] = ()
    mask: ImageInfo | None = None
    own_format: Format | None = None
    """The format in which the offer gives its results when none is named, where it is known."""
    sent_size: Size | None = None
    """The size at which the first picture is sent, where an offer takes only smaller ones."""
    at_input_size: bool = False
    """Whether the offer gives its results at the first picture's own size, whatever the factor."""

    @property
    def n(self) -> int:
        """How many pictures are wanted."""
        value = self.asked.get("n", 1)
        return value if isinstance(value, int) else 1

    @property
    def shape(self) -> Ratio | None:
        """The shape wanted, if one was named without a size."""
        named = (self.asked.get(name) for name in ("size", "aspect_ratio"))
        return next((value for value in named if isinstance(value, Ratio)), None)

    @property
    def target(self) -> Size | None:
        """The exact size wanted: named, or the resolution wanted in the shape wanted (else the first picture's own)."""
        size = self.asked.get("size")
        if isinstance(size, Size):
            return size
        edge = RESOLUTIONS.get(str(self.asked.get("resolution")))
        if edge is None:
            return None
        width, height = self.shape or (self.images[0].size if self.images else (1, 1))
        scale = edge / max(width, height)
        return Size(max(1, round(width * scale)), max(1, round(height * scale)))

    @property
    def source_size(self) -> Size | None:
        """The first picture's size as the provider sees it."""
        return self.sent_size or (self.images[0].size if self.images else None)

    @property
    def fit(self) -> FitMode:
        """How a result of another shape is brought to the size wanted."""
        value = self.asked.get("fit")
        return value if isinstance(value, FitMode) else FitMode.COVER

    @property
    def background_color(self) -> str:
        """What lies under transparent pixels where they cannot stay transparent, as `#rrggbb`."""
        value = self.asked.get("background_color")
        return value if isinstance(value, str) else "#ffffff"

    @property
    def output_format(self) -> Format | None:
        """The format wanted, if one was named."""
        value = self.asked.get("output_format")
        return value if isinstance(value, Format) else None

    @property
    def file_format(self) -> Format:
        """The format the gateway writes: the one named; the offer's own if only its compression was asked for; else PNG."""
        compressed = "output_compression" in self.asked and self.asked.get("background") != "transparent"
        own = self.own_format if compressed and self.own_format and FORMATS[self.own_format].quality else None
        return self.output_format or own or Format.PNG

    @property
    def response_format(self) -> str:
        """`url` or `b64_json`."""
        return str(self.asked.get("response_format", "url"))

    def info(self, ref: ImageRef) -> ImageInfo:
        """What is known of the picture a handle stands for."""
        if ref.name == "mask" and self.mask is not None:
            return self.mask
        return self.images[ref.index]


Value: TypeAlias = Json | Size | Ratio | Format | FitMode | ImageRef | tuple[ImageRef, ...]
"""A parameter's value once parsed."""

Parse: TypeAlias = Callable[[Json], Value]
"""Raises `_Wrong` with a code and words that complete "`name` …"."""


class _Wrong(ValueError):
    def __init__(self, code: str, expected: str) -> None:
        super().__init__(expected)
        self.code = code
        self.expected = expected


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the gateway's own vocabulary."""

    name: str
    parse: Parse
    schema: Mapping[str, Json]
    """JSON Schema of the value, for documentation."""
    served: str | None = None
    """What the gateway does with it, for parameters that never concern a provider."""


def _integer(low: int | None = None, high: int | None = None) -> tuple[Parse, Mapping[str, Json]]:
    def parse(value: Json) -> Value:
        number = as_integer(value)
        if number is None:
            raise _Wrong("invalid_type", "must be an integer")
        _within(number, low, high, "integer")
        return number

    return parse, _bounds("integer", low, high)


def _number(low: float | None = None, high: float | None = None, *, above: float | None = None) -> tuple[Parse, Mapping[str, Json]]:
    def parse(value: Json) -> Value:
        number = as_number(value)
        if number is None:
            raise _Wrong("invalid_type", "must be a number")
        if above is not None and number <= above:
            raise _Wrong("invalid_value", f"must be above {above:g}")
        _within(number, low, high, "decimal")
        return number

    schema = _bounds("number", low, high)
    return parse, schema if above is None else {**schema, "exclusiveMinimum": above}


def _within(number: float, low: float | None, high: float | None, kind: str) -> None:
    if low is not None and number < low:
        raise _Wrong(f"{kind}_below_min_value", f"must be at least {low:g}")
    if high is not None and number > high:
        raise _Wrong(f"{kind}_above_max_value", f"must be at most {high:g}")


def _bounds(kind: str, low: float | None, high: float | None) -> Mapping[str, Json]:
    bounds = {"minimum": low, "maximum": high}
    return {"type": kind} | {name: bound for name, bound in bounds.items() if bound is not None}


def _text(max_length: int) -> tuple[Parse, Mapping[str, Json]]:
    def parse(value: Json) -> Value:
        if not isinstance(value, str):
            raise _Wrong("invalid_type", "must be text")
        if len(value) > max_length:
            raise _Wrong("string_above_max_length", f"must have at most {max_length} characters, got {len(value)}")
        return str(value)

    return parse, {"type": "string", "maxLength": max_length}


def _boolean() -> tuple[Parse, Mapping[str, Json]]:
    def parse(value: Json) -> Value:
        flag = as_boolean(value)
        if flag is None:
            raise _Wrong("invalid_type", "must be true or false")
        return flag

    return parse, {"type": "boolean"}


def _choice(*values: str, aliases: Mapping[str, str] | None = None) -> tuple[Parse, Mapping[str, Json]]:
    def parse(value: Json) -> Value:
        text = (aliases or {}).get(value, value) if isinstance(value, str) else None
        if text not in values:
            raise _Wrong("invalid_value", f"must be one of {', '.join(values)}")
        # The member itself, so that an enumeration's value stays one.
        return values[values.index(text)]

    return parse, {"type": "string", "enum": [str(value) for value in values]}


def _pattern(convert: Callable[[str], Value], expected: str, pattern: str) -> tuple[Parse, Mapping[str, Json]]:
    matcher = re.compile(pattern)

    def parse(value: Json) -> Value:
        if not isinstance(value, str) or not matcher.fullmatch(value):
            raise _Wrong("invalid_value", f"must be {expected}")
        return convert(value)

    return parse, {"type": "string", "pattern": f"^(?:{pattern})$"}


def parse_size(text: str) -> Value:
    """`auto`, `WxH` as `Size`, or `W:H` as `Ratio`; the text has been matched before."""
    if text == "auto":
        return text
    if ":" in text:
        ratio = Ratio(*map(int, text.split(":")))
        if max(ratio) > MAX_RATIO * min(ratio):
            raise _Wrong("invalid_value", f"must be a shape between 1:{MAX_RATIO} and {MAX_RATIO}:1")
        return ratio
    size = Size(*map(int, text.split("x")))
    if max(size) > MAX_EDGE:
        raise _Wrong("invalid_value", f"must have edges of at most {MAX_EDGE} pixels")
    return size


MAX_RATIO = 20
"""The most that one edge of a shape without a scale may exceed the other: beyond lie slips of the pen."""

MAX_EDGE = 16_384
"""The longest edge that can be asked for, in pixels: WebP ends there, and no offer goes beyond."""

_RATIO = r"[1-9]\d{0,3}:[1-9]\d{0,3}"
_SIZE = rf"auto|[1-9]\d{{0,5}}x[1-9]\d{{0,5}}|{_RATIO}"

PARAMETERS: Mapping[str, Parameter] = MappingProxyType(
    {
        row.name: row
        for row in (
            # Prompts: at most 32,000 characters. Source: OpenAI API reference, "Create image edit".
            Parameter("prompt", *_text(32_000)),
            Parameter("negative_prompt", *_text(32_000)),
            Parameter("n", *_integer(1, 10)),
            Parameter("size", *_pattern(parse_size, "WIDTHxHEIGHT such as 1024x1024, WIDTH:HEIGHT such as 3:2, or auto", _SIZE)),
            Parameter("aspect_ratio", *_pattern(parse_size, "WIDTH:HEIGHT such as 3:2, or auto", rf"auto|{_RATIO}")),
            Parameter("resolution", *_choice(*RESOLUTIONS, aliases={name.lower(): name for name in RESOLUTIONS})),
            Parameter("scale_factor", *_number(above=0, high=200)),
            Parameter("creativity", *_number()),
            Parameter("resemblance", *_number()),
            Parameter("guidance_scale", *_number()),
            Parameter("num_inference_steps", *_integer(1)),
            Parameter("seed", *_integer()),
            Parameter("quality", *_choice("auto", "low", "medium", "high", "standard", "hd", "xhigh", "max")),
            Parameter("background", *_choice("auto", "transparent", "opaque")),
            Parameter("output_format", *_choice(*OUTPUT_FORMATS, aliases={"jpg": "jpeg"})),
            Parameter("output_compression", *_integer(0, 100)),
            Parameter("response_format", *_choice("url", "b64_json"), served="answered by the gateway"),
            Parameter("enable_safety_checker", *_boolean()),
            Parameter("style", *_text(1_000)),
            Parameter("moderation", *_choice("auto", "low")),
            Parameter("input_fidelity", *_choice("low", "high")),
            Parameter("user", *_text(512), served="recorded by the gateway"),
            Parameter("safety_identifier", *_text(512), served="recorded by the gateway"),
            Parameter("fit", *_choice(*FitMode), served="rules how the gateway reaches the size"),
            Parameter(
                "background_color",
                *_pattern(str.lower, "a colour such as #ffffff", r"#[0-9a-fA-F]{6}"),
                served="lies under the picture",
            ),
            Parameter("metadata", *_choice("strip", "keep")),
            Parameter("mask_feather", *_number(0, 256), served="softens the edge of the mask, in pixels of the result"),
            Parameter("stream", *_boolean(), served="answered by the gateway"),
            Parameter("partial_images", *_integer(0, 3), served="there are none: the answer comes in one piece"),
        )
    }
)
"""The gateway's vocabulary: the same names for all models, beside `model`, `image` and `mask`."""


def parse_request(
    mode: RequestMode,
    fields: Mapping[str, Json],
    images: tuple[ImageInfo, ...] = (),
    mask: ImageInfo | None = None,
    *,
    default_model: str | None = None,
) -> ImageRequest:
    """Type and bound what came in; pictures have been looked at before.

    Raises:
        InvalidParameter: For a value that no model could take.
    """
    model = fields.get("model", default_model)
    if not isinstance(model, str) or not model:
        raise InvalidParameter("model", "missing_required_parameter", "`model` is missing; GET /v1/models lists the ids.")
    if len(images) > MAX_IMAGES:
        raise InvalidParameter("image", "array_above_max_length", f"At most {MAX_IMAGES} images are taken, got {len(images)}.")
    asked: dict[str, Value] = {}
    if images:
        asked["image"] = tuple(ImageRef("image", index) for index in range(len(images)))
    if mask is not None:
        asked["mask"] = ImageRef("mask")
    asked |= {name: _parse_field(name, value) for name, value in fields.items() if name != "model" and value is not None}
    return ImageRequest(mode, str(model), asked, images, mask)


def _parse_field(name: str, value: Json) -> Value:
    parameter = PARAMETERS.get(name)
    if parameter is None:
        return value
    try:
        return parameter.parse(value)
    except _Wrong as wrong:
        shown = value if isinstance(value, int | float) or (isinstance(value, str) and len(value) <= MAX_SHOWN) else "…"
        raise InvalidParameter(name, wrong.code, f"`{name}` {wrong.expected}; got {shown}.") from None


MAX_SHOWN = 40
"""How long a value may be to be repeated in a message: a prompt is not."""


def as_integer(value: Json) -> int | None:
    """The integer that a JSON value or a form's text stands for."""
    if isinstance(value, Text):
        return int(value) if re.fullmatch(r"[+-]?\d{1,18}", value.strip()) else None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def as_number(value: Json) -> float | int | None:
    """The finite number that a JSON value or a form's text stands for; integers stay integers."""
    whole = as_integer(value)
    if whole is not None:
        return whole
    if isinstance(value, Text):
        try:
            value = float(value)
        except ValueError:
            return None
    return value if isinstance(value, float) and math.isfinite(value) else None


def as_boolean(value: Json) -> bool | None:
    """The truth that a JSON value or a form's text stands for. `"false"` is false."""
    if isinstance(value, Text):
        return {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None
