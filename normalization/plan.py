"""A plan: the calls one offer needs for a request, what is done to the pixels afterwards, and every decision taken.

Plans are plain values: comparable, printable, and cheap enough to make one for each offer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from normalization.offer import Offer
from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.request import FitMode, ImageRef, Json, Ratio
from normalization.sizes import contained_size, shaped


class Mode(StrEnum):
    """How one parameter reaches an offer."""

    PASSTHROUGH = "passthrough"
    RENAMED = "renamed"
    CONVERTED = "converted"
    EMULATED = "emulated"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True)
class Decision:
    """What happened to one parameter that was asked for."""

    param: str
    mode: Mode
    asked: Json
    sent: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """The provider's fields that carry it; empty when the gateway does it alone or nobody does."""
    emulation: str | None = None
    """What the gateway does itself, in words; beside a native mode it says what completes it."""
    reason: str | None = None
    """Why it is unsupported."""
    refused: bool = False
    """True when the offer has the parameter but not this value: the offer is then not eligible."""
    known: bool = True
    """False for a parameter that no catalog entry knows, sent as it is."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a provider."""

    endpoint: str
    payload: Mapping[str, Json | ImageRef | tuple[ImageRef, ...]]
    """Provider field to value; pictures stand as handles."""
    images: int = 1
    """How many pictures it is expected to give."""


@dataclass(frozen=True, slots=True)
class Composite:
    """Keep the original outside the mask: the result is laid over the original picture where the mask says edit.

    The picture gets the original's shape, at the scale of the result, which is cut to that shape where its own differs.
    """

    image: ImageRef
    mask: ImageRef
    """OpenAI's polarity: transparent means edit."""
    feather_px: float = 0.0
    """Radius of the soft edge, in pixels of the result."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Bring the picture to a size, or to a shape at its own scale."""

    size: Size | Ratio
    how: FitMode
    background: str | None = None
    """`#rrggbb` for the bars of `pad`; None leaves them transparent where the format can."""


@dataclass(frozen=True, slots=True)
class Encode:
    """Write the picture in a format. The last step of every plan that touches pixels."""

    format: Format
    compression: int | None = None
    """OpenAI's `output_compression`, 0..100; None is the gateway's default for the format."""
    background: str | None = None
    """`#rrggbb` under transparent pixels; needed for formats without alpha, and for `background=opaque`."""
    keep: ImageRef | None = None
    """The picture of the request whose EXIF travels along (`metadata=keep`), upright and without previews; None: no metadata."""


Step = Composite | Fit | Encode
"""In the order in which they run."""


def fitted_size(step: Fit, source: Size) -> Size:
    """The size that a picture of size `source` has after the step."""
    if isinstance(step.size, Ratio):
        return shaped(source, step.size, step.how)
    return contained_size(source, step.size) if step.how is FitMode.CONTAIN else step.size


def changes(steps: Sequence[Step], info: ImageInfo) -> bool:
    """Whether the steps would do anything to a picture with this header; if not, its bytes can stay as they are."""
    return any(_changes(step, info) for step in steps)


def _changes(step: Step, info: ImageInfo) -> bool:
    match step:
        case Composite():
            return True
        case Fit():
            return fitted_size(step, info.size) != info.size
        case Encode():
            asked = step.compression is not None or step.keep is not None
            return step.format is not info.format or asked or (step.background is not None and info.alpha)


@dataclass(frozen=True, slots=True)
class Plan:
    """What serving a request with one offer takes."""

    offer: Offer
    calls: tuple[Call, ...]
    steps: tuple[Step, ...]
    decisions: tuple[Decision, ...]
    copies: int = 1
    """How often each delivered picture stands in the answer: above 1 where equal calls give equal pictures."""
    missing: tuple[str, ...] = ()
    """Parameters that the offer needs and the request lacks."""

    @property
    def unsupported(self) -> tuple[Decision, ...]:
        """What this offer cannot do for this request."""
        return tuple(d for d in self.decisions if d.mode is Mode.UNSUPPORTED)

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why the offer cannot serve the request at all; empty when it can."""
        lacking = tuple(f"needs {name}" for name in self.missing)
        return lacking + tuple(d.reason or f"{d.param} is refused" for d in self.decisions if d.refused)
