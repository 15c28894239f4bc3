"""The request in our own words: what was asked, typed, bounded and immutable.

Every parameter with a name of the gateway's own is one row of `PARAMETERS`. Pictures are handles; their bytes wait elsewhere.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from normalization.pixels.formats import Format, ImageInfo, Size

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

MAX_IMAGES = 16
"""Source: OpenAI API reference, "Create image edit", `image`."""


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
