"""Named emulations: what the gateway does itself where an offer's native way ends. Data names them, with `emulate = "…"`.

Two kinds share the word: those that shape calls (`fan_out`, `copies`) and those that add steps on the pixels (`fit`, `resample`,
`composite_mask`, `encode`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from normalization.converters import Converted, Refused, round_up
from normalization.offer import Output, Rule, Transparency
from normalization.pixels.formats import FORMATS, OUTPUT_FORMATS, Size
from normalization.plan import Composite, Encode, Fit, Step
from normalization.request import FitMode, ImageRef, ImageRequest, Json, Ratio, Value, as_number


@dataclass(frozen=True, slots=True)
class Emulated:
    """What an emulation adds to a plan."""

    words: str
    """For people: what the gateway does."""
    steps: tuple[Step, ...] = ()
    calls: tuple[int, ...] = ()
    """Pictures wanted of each call; empty leaves the calls as they are."""
    copies: int = 1
    sent: Json = None
    """A value that is sent in the rule's field after all, such as the nearest one allowed."""
    decisive: bool = False
    """True when the native way, though taken, would not give what was asked."""


Emulation: TypeAlias = Callable[[Value, Converted | Refused, Rule, ImageRequest], Emulated | Refused | None]
"""Takes the value, what the native way made of it, the rule and the request. None: there is nothing to add to the native way."""


def fan_out(value: Value, native: Converted | Refused, rule: Rule, request: ImageRequest) -> Emulated | None:
    """Spread `n` over several calls, each as large as the provider allows."""
    if isinstance(native, Converted):
        return None
    most = int(rule.max or 1) if rule.verb else 1
    full, rest = divmod(request.n, most)
    calls = (most,) * full + ((rest,) if rest else ())
    return Emulated(f"{len(calls)} call{'s' if len(calls) > 1 else ''}", calls=calls)


def copies(value: Value, native: Converted | Refused, rule: Rule, request: ImageRequest) -> Emulated:
    """Deliver one result `n` times: for models that give the same picture for the same input."""
    return Emulated(f"one call, delivered {request.n} times: equal calls give equal pictures here", copies=request.n)


def fit(value: Value, native: Converted | Refused, rule: Rule, request: ImageRequest) -> Emulated | Refused | None:
    """Bring the result to exactly the size or shape asked for, from however near the native way came."""
    wanted = request.target or request.shape
    if wanted is None:
        return native if isinstance(native, Refused) else None
    if isinstance(wanted, Ratio) and request.fit is FitMode.CONTAIN:
        return _left_as_it_comes(wanted, native)
    return Emulated(f"fitted to {wanted} ({request.fit})", steps=(Fit(wanted, request.fit, _bars(request)),))


def _left_as_it_comes(shape: Ratio, native: Converted | Refused) -> Emulated | Refused | None:
    """A shape alone with `contain`, which neither cuts nor adds bars: it is as near as the model comes."""
    if isinstance(native, Refused):
        words = f"{shape} cannot be reached with fit contain, which neither cuts nor pads; ask for cover or pad"
        return Refused(words, droppable=True)
    exact = native.exact and (native.value == str(shape) or not isinstance(native.value, str))
    return None if exact else Emulated("as near as the model comes: contain neither cuts nor pads")


def resample(value: Value, native: Converted | Refused, rule: Rule, request: ImageRequest) -> Emulated | Refused | None:
    """Reach a factor beyond the provider's range, or of a picture sent smaller: its nearest factor, and the rest by resampling.

    Where a size or resolution is asked for too, that is what is delivered; the factor is only what the model works at.
    """
    factor = as_number(value) if isinstance(value, int | float) else None
    wanted = None if factor is None else scaled_size(request, factor)
    if factor is None or wanted is None:
        return None if isinstance(native, Converted) else Refused("must be a number")
    ruled = request.target is not None and request.target != wanted
    whole = isinstance(native, Converted) and request.sent_size is None and not request.at_input_size
    if whole and not ruled:
        return None
    nearest = nearest_factor(factor_from_sent(request, factor), rule)
    if ruled and nearest is None:
        return Refused(f"{factor:g} contradicts {_ruler(request)}, which wins", droppable=True)
    sent = None if nearest is None else rule.table[f"{nearest:g}"] if rule.table else nearest
    words = _account(nearest, wanted, request)
    steps = () if request.target is not None else (Fit(wanted, request.fit),)
    return Emulated(words, steps, sent=sent, decisive=not whole)


def scaled_size(request: ImageRequest, factor: float) -> Size | None:
    """The size of the first picture, as it came, times a factor; None without a picture."""
    if not request.images:
        return None
    width, height = request.images[0].size
    return Size(max(1, round(width * factor)), max(1, round(height * factor)))


def factor_from_sent(request: ImageRequest, factor: float) -> float:
    """The factor that comes to the same for the picture as it is sent: larger where that was shrunk."""
    sent = request.sent_size
    if sent is None or not request.images:
        return factor
    width, height = request.images[0].size
    return round_up(factor * max(width / sent.width, height / sent.height))


def _account(nearest: float | None, wanted: Size, request: ImageRequest) -> str:
    """Who enlarges how far, in words."""
    model = "nothing is asked of the model" if nearest is None else f"the model works at {nearest:g}"
    model += f", from the {request.sent_size} that is sent" if request.sent_size else ""
    if request.target is not None:
        at_size = "; its results come back at the picture's own size" if request.at_input_size else ""
        return f"{model}{at_size}; {_ruler(request)} decides what is delivered"
    if nearest is None or request.at_input_size:
        return f"resampled by the gateway to {wanted}"
    if request.sent_size:
        return f"{model}, fitted to {wanted}"
    return f"{nearest:g} by the model, the rest resampled to {wanted}"


def _ruler(request: ImageRequest) -> str:
    """The parameter that fixes what size is delivered."""
    name = "size" if isinstance(request.asked.get("size"), Size) else "resolution"
    return f"{name} {request.asked.get(name)}"


def composite_mask(value: Value, native: Converted | Refused, rule: Rule, request: ImageRequest) -> Emulated | Refused:
    """Keep the original outside the mask by laying the result over it."""
    if not isinstance(value, ImageRef):
        return Refused("must be a picture")
    feather = as_number(request.asked.get("mask_feather", 0.0)) or 0.0  # pyright: ignore[reportArgumentType] -- parsed before
    step = Composite(ImageRef("image", 0), value, float(feather))
    return Emulated("laid over the original through the mask, in the original's shape", steps=(step,))


EMULATIONS: Mapping[str, Emulation] = MappingProxyType(
    {function.__name__: function for function in (fan_out, copies, fit, resample, composite_mask)}
)

ENCODE = "encode"
"""The emulation of what concerns the file: format, compression, background. Decided together, see `normalization.planner`."""


def encode_step(request: ImageRequest) -> Encode:
    """The one encode that ends every plan which touches pixels."""
    wanted = request.file_format
    flat = request.asked.get("background") == "opaque" or not FORMATS[wanted].alpha
    compression = request.asked.get("output_compression") if FORMATS[wanted].quality else None
    keep = ImageRef("image") if request.asked.get("metadata") == "keep" and _keepable(request) else None
    return Encode(
        wanted,
        compression=compression if isinstance(compression, int) else None,
        background=request.background_color if flat else None,
        keep=keep,
    )


def _keepable(request: ImageRequest) -> bool:
    """Whether the first picture has metadata and the format wanted can hold it."""
    return bool(request.images) and request.images[0].metadata and FORMATS[request.file_format].exif


def encoded(name: str, value: Value, request: ImageRequest, output: Output) -> Emulated | Refused:
    """What the encode does for one of its parameters, or why it cannot."""
    wanted = request.file_format
    facts = FORMATS[wanted]
    if name == "output_format" and request.target is not None and max(request.target) > facts.max_edge:
        return Refused(f"{wanted} cannot hold {request.target}: its longest edge is {facts.max_edge} pixels")
    if name == "metadata":
        return _metadata(request)
    if name == "output_compression" and request.output_format is None and request.own_format is None:
        words = "needs an output_format beside it, of jpeg, webp or avif: in which format this model's pictures come is not known"
        return Refused(words, droppable=True)
    if name == "output_compression" and not facts.quality:
        return Refused(f"has no meaning for {wanted}, which is lossless; ask for jpeg, webp or avif", droppable=True)
    if value == "transparent" and not facts.alpha:
        able = ", ".join(name for name in OUTPUT_FORMATS if FORMATS[name].alpha)
        return Refused(f"transparent cannot be stored in {wanted}; ask for output_format {able}")
    if value == "transparent" and not transparent(request, output):
        return Refused(f"transparent cannot be had: {_OPAQUE[output.alpha]}; leave it out, or use a model that cuts out")
    if value == "opaque":
        return Emulated(f"laid on {request.background_color}")
    if name == "background":
        return Emulated("cut out by the model" if output.alpha is Transparency.MADE else "kept")
    flat = name == "output_format" and not facts.alpha and transparent(request, output)
    return Emulated(f"encoded by the gateway, laid on {request.background_color}" if flat else "encoded by the gateway")


_OPAQUE = {
    None: "this model's results are opaque",
    Transparency.KEPT: "the picture has no transparency to keep",
}
"""Why a result will have no transparent pixels."""


def transparent(request: ImageRequest, output: Output) -> bool:
    """Whether results will have transparent pixels."""
    kept = output.alpha is Transparency.KEPT and bool(request.images) and request.images[0].alpha
    return kept or output.alpha is Transparency.MADE


def nearest_factor(factor: float, rule: Rule) -> float | int | None:
    """The factor the provider allows that lies nearest above the one asked, else the highest; None if it has no such field."""
    if rule.verb is None:
        return None
    allowed = sorted(float(name) for name in rule.table) or sorted(one for one in rule.choices if isinstance(one, int | float))
    if allowed:
        reached = next((one for one in allowed if one >= factor), allowed[-1])
    else:
        reached = min(max(factor, factor if rule.min is None else rule.min), factor if rule.max is None else rule.max)
    return int(reached) if float(reached).is_integer() else reached


def _bars(request: ImageRequest) -> str | None:
    """The colour of padding: the one asked for; else transparent, where the format can."""
    return request.background_color if "background_color" in request.asked else None


def _metadata(request: ImageRequest) -> Emulated | Refused:
    """What `metadata=keep` comes to."""
    wanted = request.file_format
    if not FORMATS[wanted].exif:
        able = ", ".join(name for name in OUTPUT_FORMATS if FORMATS[name].exif)
        return Refused(f"cannot be kept in {wanted}; ask for output_format {able}", droppable=True)
    return Emulated("EXIF of the first picture, upright, without previews" if _keepable(request) else "there is none to keep")
