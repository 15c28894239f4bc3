"""Named conversions: how a value of ours becomes a provider's own form. Data names them, with `convert = "…"`.

Each takes the value, the rule and the request, and returns what to send and whether that alone gives what was asked. None of them
knows a provider or a model.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

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
    """Send OpenAI's mask (transparent means edit) as a gray picture of the picture's size: white means edit."""
    if not isinstance(value, ImageRef):
        return Refused("must be a picture")
    return Converted(value.prepared(*_as_small(request), "alpha_to_luminance"))


def keep_mask(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Send OpenAI's mask (transparent means edit) as a gray picture of the picture's size: white means keep."""
    if not isinstance(value, ImageRef):
        return Refused("must be a picture")
    return Converted(value.prepared(*_as_small(request), "alpha_to_luminance", "luminance_inverse"))


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
    reached = next((one for one in allowed if one >= wanted), allowed[-1]) if allowed else _clamped(_round_up(wanted), rule)
    sent = int(reached) if float(reached).is_integer() else reached
    return Converted(rule.table[str(sent)] if rule.table else sent, exact=reached >= wanted)


def longest_edge(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Send the size wanted as the name of the smallest resolution that reaches it: `table = { 1K = "1K", 2K = "2K" }`."""
    if request.target is None:
        return Refused("must be WIDTHxHEIGHT, 1K, 2K or 4K")
    able = [name for name, edge in RESOLUTIONS.items() if name in rule.table and edge >= max(request.target)]
    return Converted(rule.table[able[0] if able else list(rule.table)[-1]], exact=bool(able))


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
    """Send a size as an object, each edge rounded up to the rule's multiple and within its bounds."""
    size = request.target
    if size is None:
        return Refused("must be WIDTHxHEIGHT")
    multiple = int(rule.multiple_of or 1)
    edges = [_clamped(-(-edge // multiple) * multiple, rule) for edge in size]
    exact = all(sent >= asked for sent, asked in zip(edges, size, strict=True))
    return Converted({"width": int(edges[0]), "height": int(edges[1])}, exact=exact)


def invert(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Send a boolean's opposite: `enable_…` as `disable_…`."""
    return Converted(not value) if isinstance(value, bool) else Refused("must be true or false")


def scaled(value: Value, rule: Rule, request: ImageRequest) -> Converted | Refused:
    """Send a number between 0 and 1 on the provider's own scale, from the rule's `min` to its `max`."""
    low, high = rule.min or 0.0, rule.max
    if isinstance(value, bool) or not isinstance(value, int | float) or high is None:
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
        )
    }
)


def _as_small(request: ImageRequest) -> tuple[str, ...]:
    """The preparation that makes the mask as small as the picture that is sent."""
    return () if request.sent_size is None else (f"shrink-{request.sent_size}",)


def _clamped(number: float, rule: Rule) -> float:
    number = max(number, rule.min) if rule.min is not None else number
    return min(number, rule.max) if rule.max is not None else number


def _round_up(factor: float) -> float:
    """Four decimals, upwards, so that the result is never a pixel short."""
    return math.ceil(round(factor * 10_000, 6)) / 10_000


def _shape(ratio: str) -> float:
    width, height = ratio.split(":")
    return math.log(float(width) / float(height))
