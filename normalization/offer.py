"""A model, the same model as one provider sells it, and the rules by which parameters reach that offer.

Facts come from `providers/catalog/models/*.toml`; this is their shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import StrEnum

from normalization.request import Json, RequestMode


class Verb(StrEnum):
    """The native ways for a parameter to reach a provider."""

    PASSTHROUGH = "passthrough"
    RENAME = "rename"
    CONVERT = "convert"


class ValueType(StrEnum):
    """What the provider's schema declares, so that text from a form can be typed."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Rule:
    """How one parameter reaches one offer: a native way, its limits, and what to do where that way ends."""

    verb: Verb | None = None
    """The native way; None when the provider has no notion of the parameter."""
    to: str | None = None
    """The provider's field."""
    converter: str | None = None
    """Name in `normalization.converters`, with `verb = convert`."""
    type: ValueType | None = None
    """None: the type of the parameter of the same name in `normalization.request`."""
    choices: tuple[Json, ...] = ()
    table: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """Our value to the provider's, for the `table` converter."""
    min: float | None = None
    max: float | None = None
    """Bounds of the value sent; for lists, the longest; for text, the most characters."""
    multiple_of: float | None = None
    default: Json = None
    """What the provider does when nothing is sent."""
    required: bool = False
    formats: tuple[str, ...] = ()
    """For pictures: the formats that may be sent as they are; others are turned into PNG first. Empty: all."""
    max_pixels: int | None = None
    max_edge: int | None = None
    """For pictures: the largest that may be sent, in pixels; larger ones are shrunk first."""
    uncertain: str | None = None
    """What is not certain of this rule."""
    emulate: str | None = None
    """Name of the emulation for whatever the native way cannot do."""
    blocked: str | None = None
    """Why the parameter is never sent, though the provider has it; asking for it makes the offer ineligible."""
    at_input_size: bool = False
    """True when sending this parameter makes results come back at the first picture's own size, whatever the factor."""


class PriceUnit(StrEnum):
    """What a price is per."""

    IMAGE = "image"
    TIER = "tier"
    """Per image, by the size of the result."""
    SECOND = "second"
    """Seconds of the provider's machine, as it reports them."""
    OUTPUT_MEGAPIXEL = "output_megapixel"
    LOCAL_SECOND = "local_second"
    """Seconds of the operator's own machine, at the rate the operator configured."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Price:
    """What an offer costs, in US dollars per unit."""

    unit: PriceUnit
    usd: Decimal | None = None
    """None when the unit is `unknown`."""
    why: str | None = None
    """Why it is unknown."""
    typical_s: Decimal | None = None
    """For prices per second: how long a run usually takes, for quotes."""
    round_up: bool = False
    """Whether each picture's megapixels are rounded up to whole ones."""
    tiers: tuple[tuple[Decimal, Decimal], ...] = ()
    """For tiers: up to so many megapixels, so many dollars per image; ascending."""
    uncertain: str | None = None
    """What is not certain of this price."""


class Transparency(StrEnum):
    """Where the transparency of an offer's results comes from."""

    MADE = "made"
    """The model cuts out."""
    KEPT = "kept"
    """What was transparent in the picture stays so."""


@dataclass(frozen=True, slots=True)
class Output:
    """What an offer gives when nothing is asked of its results."""

    field: str = "images"
    """Where the pictures stand in the provider's answer; empty when the answer is the picture or the list itself."""
    format: str | None = None
    """The format; None where it is not known."""
    pixels: int | None = None
    """About how many, for quotes; None: as the input, times the factor where there is one."""
    alpha: Transparency | None = None
    """None: results are opaque, or nobody has said."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A model as one provider sells it."""

    provider: str
    endpoint: str
    """The provider's own name for it: fal's path, Replicate's version, the backend's model."""
    params: Mapping[str, Rule]
    price: Price
    source: str
    """Where these facts were read."""
    checked: date
    output: Output = Output()
    master: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """What to ask for when the gateway will touch the pixels: something lossless."""
    fixed: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """Provider fields sent with every call."""
    uncertain: str | None = None
    """What in this entry is not certain."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model as callers name it, and who sells it."""

    id: str
    name: str
    """For people."""
    modes: tuple[RequestMode, ...]
    offers: tuple[Offer, ...]
    created: int
    """Unix seconds, for `GET /v1/models`."""
    description: str = ""
