"""fal's models: which endpoints there are, what each does to a picture, what it answers and what it bills."""

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any

from normalization.offer import Offer, Price, PriceUnit
from normalization.request import RequestMode
from providers.catalog import Catalog
from providers.simulators import pictures
from providers.simulators.fal_inputs import PRESETS, Field, InputRefused, Kind, fields_of, model_error, picture_fields
from providers.simulators.kit import Fault
from providers.simulators.pictures import Facts, PictureUnreadable

COMPUTE_S = Decimal("2.5")
"""How long a run takes on the runner, whatever the simulator's speed."""
_FIXED_FACTOR = 4
"""Of upscalers without a factor; recraft does not say which it has."""
_NO_SIZE = ("fal-ai/recraft/", "fal-ai/topaz/", "clarityai/")
"""Whose results are plain files, without width and height. Source: generated types of `@fal-ai/client` 1.10.1."""
_FLAGGED = ("fal-ai/flux", "fal-ai/qwen-image-edit")
"""Who answer `has_nsfw_concepts` and `prompt`. Source: the same."""
_NO_SEED = ("fal-ai/nano-banana",)
_MAX_PICTURE_BYTES = 50 << 20
"""Source: the `fal` SDK 1.83.0, `download_image`."""

Fetch = Callable[[str], bytes | None]
"""The bytes at an address; None where a model could not get them. Raises `PictureUnreadable`."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint."""

    name: str
    offer: Offer
    modes: tuple[RequestMode, ...]
    fields: Mapping[str, Field]

    @property
    def app(self) -> str:
        """Owner and app: where its requests live."""
        return app_of(self.name)


@dataclass(frozen=True, slots=True)
class Made:
    """What a run made, still without addresses."""

    files: tuple[tuple[bytes, Facts], ...]
    extra: Mapping[str, Any]
    """What stands beside the pictures in the answer."""
    flagged: bool = False


class ModelFailed(Exception):
    """The run broke: a status and `detail`."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def app_of(endpoint: str) -> str:
    """Owner and app of an endpoint; a namespace before them belongs to it."""
    parts = endpoint.split("/")
    return "/".join(parts[: 3 if parts[0] in ("workflows", "comfy") else 2])


def endpoints_of(catalog: Catalog) -> Mapping[str, Endpoint]:
    """Every fal endpoint that the catalog knows, by name."""
    return {
        offer.endpoint: Endpoint(offer.endpoint, offer, model.modes, fields_of(offer))
        for model in catalog.models.values()
        for offer in model.offers
        if offer.provider == "fal"
    }


async def perform(endpoint: Endpoint, given: Mapping[str, Any], fetch: Fetch, faults: Mapping[str, Fault]) -> Made:
    """Run the model.

    Raises:
        InputRefused: If a picture cannot be had or read, or the content is refused.
        ModelFailed: If it was told to break.
    """
    sources = await _sources(endpoint, given, fetch)
    _break(faults)
    seed = int(given.get("seed") or secrets.randbits(32))
    count = int(given.get("num_images") or 1)
    kind = _kind(endpoint, given)
    results = [await _picture(endpoint, given, sources, kind, seed + number) for number in range(count)]
    results = [await _spoiled(result, sources, kind, faults) for result in results]
    files = tuple([(data, await pictures.inspect(data)) for data in results])
    flagged = "nsfw" in faults
    if "corrupt" in faults:
        files = tuple((pictures.corrupted(data), facts) for data, facts in files)
    return Made(files, _extra(endpoint, given, seed, count, flagged=flagged), flagged)


def output(endpoint: Endpoint, made: Made, urls: Iterable[str]) -> dict[str, Any]:
    """The answer's body, with the addresses of the files."""
    sized = not endpoint.name.startswith(_NO_SIZE)
    files = [_file(url, data, facts, sized=sized) for url, (data, facts) in zip(urls, made.files, strict=True)]
    return {"image": files[0], **made.extra} if endpoint.offer.output.field == "image" else {"images": files, **made.extra}


@dataclass(frozen=True, slots=True)
class Billed:
    """What a run costs."""

    units: Decimal
    """`x-fal-billable-units`."""
    usd: Decimal | None
    """Units times the unit's price; None where the catalog has none."""


def bill_of(endpoint: Endpoint, made: Made) -> Billed:
    """What a run that made pictures costs."""
    terms = endpoint.offer.price
    units = sum((_units(terms, facts) for _, facts in made.files), Decimal(0)) if _by_picture(terms) else COMPUTE_S
    price = unit_price(terms)
    return Billed(units, None if price is None else (units * price).quantize(Decimal("1e-9")))


def unit_price(terms: Price) -> Decimal | None:
    """Dollars per unit; of a price in tiers, those of the first."""
    return terms.tiers[0][1] if terms.tiers else terms.usd


def unit_name(terms: Price) -> str:
    """The unit as the pricing API calls it."""
    names = {PriceUnit.IMAGE: "images", PriceUnit.OUTPUT_MEGAPIXEL: "megapixels", PriceUnit.TIER: "generations"}
    return names.get(terms.unit, "compute seconds")


def _break(faults: Mapping[str, Fault]) -> None:
    if "cuda_oom" in faults:
        raise ModelFailed(500, "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.25 GiB.")
    if "result_500" in faults and faults["result_500"].arg is None:
        raise ModelFailed(500, "Internal Server Error")
    if "content_policy" in faults:
        message = "The content could not be processed because it contained material flagged by a content checker."
        raise InputRefused([model_error("content_policy_violation", "prompt", message)])


async def _sources(endpoint: Endpoint, given: Mapping[str, Any], fetch: Fetch) -> Mapping[str, list[bytes]]:
    """The pictures that the input names, by field."""
    found: dict[str, list[bytes]] = {}
    for field in picture_fields(endpoint.fields):
        value = given.get(field.name)
        urls = value if field.kind is Kind.PICTURES else [value]
        found[field.name] = [await _fetched(url, field, fetch) for url in urls or () if url]
    return found


async def _fetched(url: str, field: Field, fetch: Fetch) -> bytes:
    shown = url if len(url) < 200 else f"{url[:100]}..."
    try:
        data = fetch(url)
        if data is None:
            message = "Failed to download the file. Please check if the URL is accessible and try again."
            raise InputRefused([model_error("file_download_error", field.name, message, shown)])
        if len(data) > _MAX_PICTURE_BYTES:
            message = f"File size exceeds the maximum allowed size of {_MAX_PICTURE_BYTES} bytes."
            raise InputRefused([model_error("file_too_large", field.name, message, shown, {"max_size": _MAX_PICTURE_BYTES})])
        await pictures.inspect(data)
    except PictureUnreadable:
        message = "Failed to load the image. Please ensure the image file is not corrupted and is in a supported format."
        raise InputRefused([model_error("image_load_error", field.name, message, shown)]) from None
    return data


async def _picture(endpoint: Endpoint, given: Mapping[str, Any], sources: Mapping[str, list[bytes]], kind: str, seed: int) -> bytes:
    """One result, as the endpoint makes it."""
    prompt = str(given.get("prompt") or "")
    source = next((found[0] for found in sources.values() if found), None)
    if source is None:
        return await pictures.drawn(prompt, await _size(endpoint, given, None), kind, seed)
    if RequestMode.UPSCALE in endpoint.modes:
        return await pictures.upscale(source, await _factor(endpoint, given, source), kind)
    if RequestMode.REMOVE_BACKGROUND in endpoint.modes:
        return await pictures.cut_out(source, kind)
    return await pictures.edited(source, await _size(endpoint, given, source), kind, seed)


async def _spoiled(result: bytes, sources: Mapping[str, list[bytes]], kind: str, faults: Mapping[str, Fault]) -> bytes:
    facts = await pictures.inspect(result)
    if "black" in faults or "nsfw" in faults:
        return await pictures.black((facts.width, facts.height), kind)
    if "wrong_size" in faults:
        source = next((found[0] for found in sources.values() if found), None)
        if faults["wrong_size"].arg == "input" and source is not None:
            return source
        return await pictures.resized(result, (max(1, facts.width // 2), max(1, facts.height // 2)), kind)
    return result


def _kind(endpoint: Endpoint, given: Mapping[str, Any]) -> str:
    """The format: as asked, or else the endpoint's own."""
    kind = str(given.get("output_format") or endpoint.offer.output.format or "png")
    return "jpeg" if kind == "jpg" else kind


async def _factor(endpoint: Endpoint, given: Mapping[str, Any], source: bytes) -> float:
    if given.get("upscale_mode") == "target":
        facts = await pictures.inspect(source)
        return int(str(given.get("target_resolution") or "1080p").rstrip("p")) / min(facts.width, facts.height)
    rule = endpoint.offer.params.get("scale_factor")
    field = (rule.to or "scale_factor") if rule is not None and rule.verb is not None else ""
    return float(given.get(field) or _FIXED_FACTOR)


async def _size(endpoint: Endpoint, given: Mapping[str, Any], source: bytes | None) -> tuple[int, int]:
    """How large a result that is not an enlargement gets."""
    asked = given.get("image_size")
    if isinstance(asked, tuple):
        return asked  # pyright: ignore[reportUnknownVariableType] -- width and height, by `parse_input`
    pixels = endpoint.offer.output.pixels
    if asked is not None or source is None:
        named = PRESETS.get(str(asked), PRESETS["landscape_4_3"])
        return _shaped(given.get("aspect_ratio"), named, named[0] * named[1])
    facts = await pictures.inspect(source)
    return _shaped(given.get("aspect_ratio"), (facts.width, facts.height), pixels)


def _shaped(ratio: Any, size: tuple[int, int], pixels: int | None) -> tuple[int, int]:
    """A size of `pixels` in the shape that was asked for, or else in that of `size`; edges are multiples of 8 then."""
    if pixels is None:
        return size
    wide, _, high = str(ratio).partition(":")
    width, height = (int(wide), int(high)) if wide.isdigit() and high.isdigit() else size
    scale = (pixels / (width * height)) ** 0.5
    return max(8, round(width * scale / 8) * 8), max(8, round(height * scale / 8) * 8)


def _extra(endpoint: Endpoint, given: Mapping[str, Any], seed: int, count: int, *, flagged: bool) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if "seed" in endpoint.fields and not endpoint.name.startswith(_NO_SEED):
        extra["seed"] = seed
    if endpoint.name.startswith(_NO_SEED):
        extra["description"] = ""
    if endpoint.name.startswith(_FLAGGED):
        extra |= {"prompt": given.get("prompt") or "", "timings": {"inference": float(COMPUTE_S)}}
    if flagged or endpoint.name.startswith(_FLAGGED):
        extra["has_nsfw_concepts"] = [flagged] * count
    return extra


def _file(url: str, data: bytes, facts: Facts, *, sized: bool) -> dict[str, Any]:
    size = {"width": facts.width, "height": facts.height} if sized else {}
    name = url.rpartition("/")[2] if url.startswith("http") else f"image.{facts.format}"
    return {"url": url, "content_type": facts.mime, "file_name": name, "file_size": len(data), **size}


def _by_picture(terms: Price) -> bool:
    return terms.unit in (PriceUnit.IMAGE, PriceUnit.OUTPUT_MEGAPIXEL, PriceUnit.TIER)


def _units(terms: Price, facts: Facts) -> Decimal:
    megapixels = Decimal(facts.width * facts.height) / 1_000_000
    match terms.unit:
        case PriceUnit.OUTPUT_MEGAPIXEL:
            return megapixels.to_integral_value(ROUND_CEILING) if terms.round_up else megapixels
        case PriceUnit.TIER:
            usd = next((usd for most, usd in terms.tiers if megapixels <= most), terms.tiers[-1][1])
            return usd / terms.tiers[0][1]
        case _:
            return Decimal(1)
