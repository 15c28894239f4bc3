"""Named conversions: how a value of ours becomes a provider's own form. Data names them, with `convert = "…"`.

Each takes the value, the rule and the request, and returns what to send and whether that alone gives what was asked. None of them
knows a provider or a model.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from normalization.offer import Rule
from normalization.pixels.formats import Size
from normalization.request import FitMode, ImageRef, ImageRequest, Json, Ratio, Value


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
    """Look the value up: `table = { jpeg = "jpg", png = "png" }`."""
    if isinstance(value, str) and value in rule.table:
        return Converted(rule.table[value])
    return Refused(f"must be one of {', '.join(rule.table)}")


def image_list(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Send the pictures as a list, also a single one."""
    if not isinstance(value, tuple) or not all(isinstance(ref, ImageRef) for ref in value):
        return Refused("must be pictures")
    return Converted(tuple(ref for ref in value if isinstance(ref, ImageRef)))


def luminance_mask(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Send OpenAI's mask (transparent means edit) as a gray picture: white means edit."""
    return Converted(value.prepared("alpha_to_luminance")) if isinstance(value, ImageRef) else Refused("must be a picture")


def keep_mask(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Send OpenAI's mask (transparent means edit) as a gray picture: white means keep."""
    if not isinstance(value, ImageRef):
        return Refused("must be a picture")
    return Converted(value.prepared("alpha_to_luminance", "luminance_inverse"))


def factor_to_reach(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Turn a size into the factor by which the first picture reaches it, within the rule's bounds or choices."""
    if not isinstance(value, Size) or not request.images:
        return Refused("must be WIDTHxHEIGHT")
    source = request.images[0].size
    factors = value.width / source.width, value.height / source.height
    wanted = max(factors) if request.fit is FitMode.COVER else min(factors)
    if rule.choices:
        numbers = sorted(choice for choice in rule.choices if isinstance(choice, int | float))
        reached = next((number for number in numbers if number >= wanted), numbers[-1])
    else:
        reached = _clamped(_round_up(wanted), rule)
    return Converted(int(reached) if float(reached).is_integer() else reached, exact=reached >= wanted)


def nearest_ratio(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Choose the shape nearest to the size or ratio asked, by the ratio of ratios."""
    if not isinstance(value, Size | Ratio):
        return Refused("must be WIDTHxHEIGHT or WIDTH:HEIGHT")
    wanted = math.log(value.width / value.height)
    shapes = {choice: _shape(choice) for choice in rule.choices if isinstance(choice, str) and ":" in choice}
    if not shapes:
        return Refused("has no shapes to choose from")
    nearest = min(shapes, key=lambda choice: abs(shapes[choice] - wanted))
    return Converted(nearest)


def width_height(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Send a size as an object, each edge rounded up to the rule's multiple and within its bounds."""
    if not isinstance(value, Size):
        return Refused("must be WIDTHxHEIGHT")
    multiple = int(rule.multiple_of or 1)
    edges = [_clamped(-(-edge // multiple) * multiple, rule) for edge in value]
    exact = all(sent >= asked for sent, asked in zip(edges, value, strict=True))
    return Converted({"width": int(edges[0]), "height": int(edges[1])}, exact=exact)


CONVERTERS: Mapping[str, Converter] = MappingProxyType(
    {
        function.__name__: function
        for function in (
            table,
            image_list,
            luminance_mask,
            keep_mask,
            factor_to_reach,
            nearest_ratio,
            width_height,
        )
    }
)


def _clamped(number: float, rule: Rule) -> float:
    number = max(number, rule.min) if rule.min is not None else number
    return min(number, rule.max) if rule.max is not None else number


def _round_up(factor: float) -> float:
    """Four decimals, upwards, so that the result is never a pixel short."""
    return math.ceil(round(factor * 10_000, 6)) / 10_000


def _shape(ratio: str) -> float:
    width, height = ratio.split(":")
    return math.log(float(width) / float(height))
