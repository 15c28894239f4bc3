"""Named conversions: how a value of ours becomes a provider's own form. Data names them, with `convert = "…"`.

Each takes the value, the rule and the request, and returns what to send and whether that alone gives what was asked. None of them
knows a provider or a model.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias, TypeGuard

from normalization.offer import Rule, ValueType
from normalization.pixels.formats import Size
from normalization.request import RESOLUTIONS, FitMode, ImageRef, ImageRequest, Json, Ratio, Value


@dataclass(frozen=True, slots=True)
class Converted:
    """A value in the provider's form."""

    value: Json | ImageRef | tuple[ImageRef, ...]
    exact: bool = True
    """False when it only comes near, and an emulation must do the rest."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The value has no form there."""

    reason: str
    """Completes "`param` …" and says what was possible."""
    droppable: bool = False
    """True when the request still makes sense without the parameter."""


Converter: TypeAlias = Callable[[Value, Rule, ImageRequest], Converted | Refused]


def table(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Look the value up: `table = { jpeg = "jpg", png = "png" }`; numbers by how they are written: `{ 2 = "2x" }`."""
    name = str(value) if isinstance(value, str) or is_number(value) else None
    if name is not None and name in rule.table:
        return Converted(rule.table[name])
    return Refused(f"must be one of {', '.join(rule.table)}; asked {name or 'something else'}")


def image_list(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Send the pictures as a list, also a single one."""
    if not isinstance(value, tuple) or not all(isinstance(ref, ImageRef) for ref in value):
        return Refused("must be pictures")
    return Converted(tuple(ref for ref in value if isinstance(ref, ImageRef)))


def luminance_mask(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Send OpenAI's mask (transparent means edit) as a gray picture of the picture's size: white means edit."""
    if not isinstance(value, ImageRef):
        return Refused("must be a picture")
    return Converted(value.prepared(*_as_large(request), "alpha_to_luminance"))


def keep_mask(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Send OpenAI's mask (transparent means edit) as a gray picture of the picture's size: white means keep."""
    if not isinstance(value, ImageRef):
        return Refused("must be a picture")
    return Converted(value.prepared(*_as_large(request), "alpha_to_luminance", "luminance_inverse"))


def factor_to_reach(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Turn the size wanted into the factor by which the first picture reaches it, within the rule's bounds or choices.

    With a `table`, the factor is sent as the text it gives: `{ 2 = "2x" }`.
    """
    target, source = request.target, request.source_size
    if target is None or source is None:
        return Refused("must be WIDTHxHEIGHT")
    factors = target.width / source.width, target.height / source.height
    wanted = max(factors) if request.fit is FitMode.COVER else min(factors)
    allowed = sorted(float(name) for name in rule.table) or sorted(one for one in rule.choices if isinstance(one, int | float))
    reached = next((one for one in allowed if one >= wanted), allowed[-1]) if allowed else _clamped(round_up(wanted), rule)
    sent = int(reached) if float(reached).is_integer() else reached
    return Converted(rule.table[str(sent)] if rule.table else sent, exact=reached >= wanted and not request.at_input_size)


def longest_edge(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Send the size wanted as the name of the smallest resolution that reaches it: `table = { 1K = "1K", 2K = "2K" }`."""
    if request.target is None:
        return Refused("must be WIDTHxHEIGHT, 1K, 2K or 4K")
    known = [name for name in RESOLUTIONS if name in rule.table]
    if not known:
        return Refused("has no resolutions to choose from")
    able = [name for name in known if RESOLUTIONS[name] >= max(request.target)]
    return Converted(rule.table[able[0] if able else known[-1]], exact=bool(able))


def nearest_ratio(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Choose the shape nearest to the size or ratio asked, by the ratio of ratios."""
    if not isinstance(value, Size | Ratio):
        return Refused("must be WIDTHxHEIGHT or WIDTH:HEIGHT")
    wanted = math.log(value.width / value.height)
    if str(value) in rule.choices:
        return Converted(str(value))
    shapes = {choice: _shape(choice) for choice in rule.choices if isinstance(choice, str) and ":" in choice}
    if not shapes:
        return Refused("has no shapes to choose from")
    nearest = min(shapes, key=lambda choice: abs(shapes[choice] - wanted))
    return Converted(nearest)


def width_height(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Send a size as an object, each edge rounded up to the rule's multiple and within its bounds.

    A shape without a scale becomes a size of about a megapixel.
    """
    size = request.target or (None if request.shape is None else _megapixel(request.shape))
    if size is None:
        return Refused("must be WIDTHxHEIGHT or WIDTH:HEIGHT")
    multiple = int(rule.multiple_of or 1)
    edges = [_clamped(-(-edge // multiple) * multiple, rule) for edge in size]
    exact = all(sent >= asked for sent, asked in zip(edges, size, strict=True))
    return Converted({"width": int(edges[0]), "height": int(edges[1])}, exact=exact)


def invert(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Send a boolean's opposite: `enable_…` as `disable_…`."""
    return Converted(not value) if isinstance(value, bool) else Refused("must be true or false")


def with_default(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Send a text followed by the provider's default, which it would replace otherwise.

    A text that already has a tag such as `<lora:…>` of a kind that the default has is the caller's own business and goes as it is.
    """
    if not isinstance(value, str):
        return Refused("must be text")
    default = str(rule.default)
    own = any(kind in value for kind in re.findall(r"<\w+:", default))
    return Converted(str(value) if own else f"{value}, {default}")


def scaled(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Send a number between 0 and 1 on the provider's own scale, from the rule's `min` to its `max`."""
    low, high = rule.min or 0.0, rule.max
    if not is_number(value) or high is None:
        return Refused("must be a number")
    if not 0 <= value <= 1:
        return Refused(f"is between 0 and 1; asked {value:g}")
    number = round(low + value * (high - low), 4)
    whole = rule.type is ValueType.INTEGER or float(number).is_integer()
    return Converted(round(number) if whole else number)


CONVERTERS: Mapping[str, Converter] = MappingProxyType(
    {
        function.__name__: function
        for function in (
            table,
            image_list,
            luminance_mask,
            keep_mask,
            factor_to_reach,
            longest_edge,
            scaled,
            invert,
            nearest_ratio,
            width_height,
            with_default,
        )
    }
)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number; booleans are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_large(request: ImageRequest) -> tuple[str, ...]:
    """The preparation that makes the mask as large as the picture that is sent, if it is not."""
    mask, picture = request.mask, request.source_size
    return () if mask is None or picture in (None, mask.size) else (f"shrink-{picture}",)


def _clamped(number: float, rule: Rule) -> float:
    number = max(number, rule.min) if rule.min is not None else number
    return min(number, rule.max) if rule.max is not None else number


def round_up(factor: float) -> float:
    """Four decimals, upwards, so that the result is never a pixel short."""
    return math.ceil(round(factor * 10_000, 6)) / 10_000


ABOUT_A_MEGAPIXEL = 960_000
"""Pixels for a shape without a scale: under a million even with edges rounded up, since whole megapixels are billed."""


def _megapixel(shape: Ratio) -> Size:
    scale = math.sqrt(ABOUT_A_MEGAPIXEL / (shape.width * shape.height))
    # Models round odd sizes themselves, each in its own way; 16 suits them all.
    return Size(*(math.ceil(edge * scale / 16) * 16 for edge in shape))


def _shape(ratio: str) -> float:
    width, height = ratio.split(":")
    return math.log(float(width) / float(height))
