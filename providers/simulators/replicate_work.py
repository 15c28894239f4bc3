"""What the Replicate stand-in's models do: read the pictures that an input names, and really make new ones."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from normalization.request import Json
from providers.simulators import pictures
from providers.simulators.pictures import PictureUnreadable
from providers.simulators.replicate_models import SoldModel, Work

Fetch = Callable[[str], Awaitable[bytes]]
"""Gets what stands at an address or in a data URI. Raises `RunFailed`."""

MAX_OUTPUT_PIXELS = 64_000_000
"""More than that and the machine is out of memory."""

_FACTORS = ("scale_factor", "upscale_factor", "scale", "factor")
"""The inputs that say by how much to enlarge: a number, or a text such as `2x`."""
_FIXED_FACTOR = 4
"""By how much a model enlarges that cannot be told. Source: https://replicate.com/recraft-ai/recraft-crisp-upscale."""
_FORMATS = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "webp": "webp"}


class RunFailed(Exception):
    """A prediction that ends as `failed`, with its error text."""

    def __init__(self, error: str, *, has_run: bool = True) -> None:
        super().__init__(error)
        self.error = error
        self.has_run = has_run
        """Whether the machine was used, which is paid for."""


async def make_pictures(model: SoldModel, given: Mapping[str, Json], fetch: Fetch) -> list[bytes]:
    """Do what the model does.

    Args:
        model: Which one.
        given: Its input, validated.
        fetch: Gets the pictures that the input names.

    Raises:
        RunFailed: If an input picture cannot be had or read, or the result would be too large.
    """
    asked = {**_defaults(model), **given}
    named = _picture_inputs(model, given)
    sources = {name: [await fetch(address) for address in addresses] for name, addresses in named.items()}
    kind = _FORMATS[str(asked.get("output_format") or model.format or "png")]
    try:
        facts = {name: [await pictures.inspect(data) for data in sent] for name, sent in sources.items()}
        first = next(((sent[0], facts[name][0]) for name, sent in sources.items() if sent and name != "mask"), None)
        if first is None:
            size = _canvas(asked, None)
            return [await pictures.drawn(str(asked.get("prompt", "")), size, kind, seed) for seed in _seeds(asked)]
        data, picture = first
        own_size = (picture.width, picture.height)
        match model.work:
            case Work.UPSCALE:
                return [await _enlarged(data, own_size, 1 if "mask" in sources else _factor(asked), kind)]
            case Work.CUT_OUT:
                return [await pictures.cut_out(data, kind)]
            case Work.EDIT:
                return [await pictures.edited(data, _canvas(asked, own_size), kind, seed) for seed in _seeds(asked)]
    except PictureUnreadable as error:
        raise RunFailed("cannot identify image file <_io.BytesIO object at 0x7f1c2e5d8b30>") from error


async def _enlarged(data: bytes, size: tuple[int, int], factor: float, kind: str) -> bytes:
    if size[0] * size[1] * factor * factor > MAX_OUTPUT_PIXELS:
        raise RunFailed(OUT_OF_MEMORY)
    return await pictures.upscale(data, factor, kind)


OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 12.66 GiB (GPU 0; 44.35 GiB total capacity; 31.02 GiB already allocated;"
    " 11.87 GiB free; 31.44 GiB reserved in total by PyTorch)"
)


def _defaults(model: SoldModel) -> dict[str, Any]:
    return {name: schema["default"] for name, schema in model.inputs["properties"].items() if "default" in schema}


def _picture_inputs(model: SoldModel, given: Mapping[str, Json]) -> dict[str, list[str]]:
    """The addresses that the input names, by field, in the schema's order."""
    found: dict[str, list[str]] = {}
    for name, schema in model.inputs["properties"].items():
        value = given.get(name)
        if schema.get("format") == "uri" and isinstance(value, str):
            found[name] = [value]
        elif schema.get("type") == "array" and isinstance(value, list | tuple):
            found[name] = [address for address in value if isinstance(address, str)]
    return found


def _factor(asked: Mapping[str, Any]) -> float:
    said = next((asked[name] for name in _FACTORS if name in asked), _FIXED_FACTOR)
    if isinstance(said, str):
        return 1.0 if said == "None" else float(said.removesuffix("x"))
    return float(said) or 1.0


def _seeds(asked: Mapping[str, Any]) -> range:
    """One seed for each picture that is asked."""
    first, count = asked.get("seed"), asked.get("num_outputs")
    first, count = (first if isinstance(first, int) else 0), (count if isinstance(count, int) else 1)
    return range(first, first + max(1, count))


def _canvas(asked: Mapping[str, Any], own: tuple[int, int] | None) -> tuple[int, int]:
    """About a megapixel (or a quarter, where that is asked) in the shape that is asked."""
    pixels = float(asked.get("megapixels", 1)) * 1024 * 1024
    shape = str(asked.get("aspect_ratio", "match_input_image"))
    if ":" in shape:
        wide, _, high = shape.partition(":")
        ratio = float(wide) / float(high)
    else:
        ratio = own[0] / own[1] if own else 1.0
    width = max(16, round((pixels * ratio) ** 0.5 / 16) * 16)
    return width, max(16, round(width / ratio / 16) * 16)
