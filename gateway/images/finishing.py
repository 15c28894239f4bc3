"""Before and after the provider: pictures are prepared as the plan says, results are fetched, finished, measured and stored."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from gateway.assets.store import StoredAsset
from gateway.images.pixel_pool import PixelWorkFailed
from gateway.images.pixel_work import UnreadablePicture, finish_file, prepare_file
from gateway.images.scratch import Scratch
from gateway.images.services import Services
from normalization.emulations import encode_step
from normalization.pixels.encode import EdgeTooLong
from normalization.pixels.formats import FORMATS, Format, ImageInfo
from normalization.pixels.probe import InvalidImage, ProbeLimits, probe
from normalization.plan import Composite, Encode, Fit, Plan, Step, changes, fitted_size
from normalization.request import ImageRef, ImageRequest
from providers.base import ImagePart, ImageParts, RemoteImage
from providers.failures import FailureKind, ProviderFailure
from providers.transfer import TransferFailed, TransferFault, download

DOWNLOAD_PAUSES_S = (0.1, 0.5)
"""Between the tries of one download."""

_WORTH_REPEATING = frozenset({TransferFault.CUT, TransferFault.UNREACHABLE})


class OwnFault(ProviderFailure):
    """A fault of the gateway's own after the provider was asked: nobody can say that nothing was spent."""

    def __init__(self, public: str, *, detail: str | None = None) -> None:
        super().__init__(FailureKind.UNKNOWN, public, detail=detail)


@dataclass(frozen=True, slots=True)
class Picture:
    """A file in the spool, and what its header says."""

    path: Path
    info: ImageInfo


Originals = Mapping[ImageRef, Picture]
"""The caller's pictures as they came."""

MAX_RESULT_BYTES = 512 * 2**20
MAX_RESULT_PIXELS = 512_000_000
"""A result may be larger than an upload; still there is an end to what is believed."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A finished picture in the asset store."""

    asset: StoredAsset
    info: ImageInfo

    @property
    def id(self) -> str:
        """The asset's id, `img_…`: its key without the suffix."""
        return self.asset.key.partition(".")[0]


async def prepare(plan: Plan, originals: Originals, scratch: Scratch, by: Services) -> ImageParts:
    """Make every picture that the plan's calls name ready to be sent."""
    refs = {ref for call in plan.calls for value in call.payload.values() for ref in _refs(value)}
    parts = await asyncio.gather(*(_prepare_one(ref, originals, scratch, by) for ref in refs))
    return dict(zip(refs, parts, strict=True))


async def fetch(output: RemoteImage, scratch: Scratch, by: Services) -> Picture:
    """Have a result in a spool file of ours, and look at it.

    Raises:
        ProviderFailure: If it cannot be had, or is not a whole picture.
    """
    path = output.path
    if path is not None:
        return await _looked_at(scratch.adopt(path))
    if output.url is None:
        raise ProviderFailure(FailureKind.TRANSIENT, "the provider named no picture")
    return await _looked_at(await _downloaded(output.url, scratch.path(), by))


async def _downloaded(url: str, path: Path, by: Services) -> Path:
    """Fetch a result. It has been paid for, so a transfer that breaks is repeated before it is given up."""
    deadline_s = by.settings.fetch.result_deadline_s
    for pause_s in (*DOWNLOAD_PAUSES_S, None):
        try:
            await download(by.client, url, path, max_bytes=MAX_RESULT_BYTES, deadline_s=deadline_s)
        except TransferFailed as error:
            if error.fault not in _WORTH_REPEATING or pause_s is None:
                words = "the provider's picture could not be fetched"
                raise ProviderFailure(FailureKind.TRANSIENT, words, detail=f"{words}: {error.public}") from error
            await asyncio.sleep(pause_s)
        else:
            return path
    raise AssertionError("the last try returns or raises")


async def finish(
    result: Picture, plan: Plan, request: ImageRequest, originals: Originals, scratch: Scratch, by: Services
) -> Picture:
    """Carry out the plan's steps on one result, where they would change anything.

    Raises:
        ProviderFailure: If the result is damaged, or larger than what can be made of it.
    """
    steps = _steps(result.info, plan, request)
    if not steps:
        return result
    finished = scratch.path()
    composites = [step for step in steps if isinstance(step, Composite)]
    companions = {ref: originals[ref].path for step in composites for ref in (step.image, step.mask)}
    companions |= {step.keep: originals[step.keep].path for step in steps if isinstance(step, Encode) and step.keep}
    pixels = result.info.size.pixels + _fitted_pixels(result.info, steps)
    with by.metrics.conversion_seconds.labels("finish").time():
        try:
            work = by.pixels.run(finish_file, result.path, steps, companions, finished, pixels=pixels, patient=True)
            return Picture(finished, await work)
        except (UnreadablePicture, InvalidImage) as error:
            raise ProviderFailure(FailureKind.TRANSIENT, "the provider's picture is damaged", detail=str(error)) from error
        except EdgeTooLong as error:
            raise ProviderFailure(FailureKind.CALLER_FAULT, str(error), param="output_format") from error
        except PixelWorkFailed as error:
            # The provider has done its part and may have charged: another offer would charge again.
            words = "the result could not be converted"
            raise OwnFault(words, detail=f"{words}: {error}") from error


def _steps(info: ImageInfo, plan: Plan, request: ImageRequest) -> tuple[Step, ...]:
    """What is to be done to a result: the plan's steps; else what makes it the format asked for, upright and sRGB."""
    if plan.steps:
        return plan.steps if changes(plan.steps, info) else ()
    if request.output_format not in (None, info.format):
        return (encode_step(request),)
    if (info.orientation != 1 or info.profile) and FORMATS[info.format].writes:
        return (Encode(info.format),)
    return ()


def _fitted_pixels(info: ImageInfo, steps: Sequence[Step]) -> int:
    """Pixels of the largest picture that the steps make.

    Raises:
        ProviderFailure: If that is more than a worker can hold.
    """
    most = max((fitted_size(step, info.size).pixels for step in steps if isinstance(step, Fit)), default=0)
    if most > MAX_RESULT_PIXELS:
        words = f"the shape asked for makes a picture of {most / 1e6:.0f} megapixels, more than can be made"
        raise ProviderFailure(FailureKind.CALLER_FAULT, words, param="size")
    return most


async def store(picture: Picture, by: Services) -> StoredImage:
    """Put a finished picture into the asset store."""
    stored = await by.store.put_file(picture.path, f"img_{uuid4().hex}.{FORMATS[picture.info.format].suffix}")
    return StoredImage(stored, picture.info)


async def _looked_at(path: Path) -> Picture:
    try:
        return Picture(path, await asyncio.to_thread(_probe, path))
    except InvalidImage as error:
        words = "the provider's answer is not a whole picture"
        raise ProviderFailure(FailureKind.TRANSIENT, words, detail=f"{words}: {error.message}") from error


async def _prepare_one(ref: ImageRef, originals: Originals, scratch: Scratch, by: Services) -> ImagePart:
    original = originals[ImageRef(ref.name, ref.index)]
    if not ref.prepare:
        return ImagePart(original.path, FORMATS[original.info.format].mime, original.path.stat().st_size)
    prepared = scratch.path(".png")
    with by.metrics.conversion_seconds.labels("prepare").time():
        try:
            await by.pixels.run(prepare_file, original.path, ref.prepare, prepared, pixels=original.info.size.pixels, patient=True)
        except (UnreadablePicture, InvalidImage) as error:
            words = f"`{ref.name}` cannot be read as a picture; it may be damaged"
            raise ProviderFailure(FailureKind.CALLER_FAULT, words, detail=str(error), param=ref.name) from error
        except PixelWorkFailed as error:
            words = f"`{ref.name}` takes too much memory or time to be converted; send it smaller, as an upright sRGB png or jpeg"
            raise ProviderFailure(FailureKind.CALLER_FAULT, words, detail=str(error), param=ref.name) from error
    return ImagePart(prepared, FORMATS[Format.PNG].mime, prepared.stat().st_size)


def _refs(value: object) -> Sequence[ImageRef]:
    if isinstance(value, ImageRef):
        return (value,)
    return tuple(item for item in value if isinstance(item, ImageRef)) if isinstance(value, tuple) else ()  # pyright: ignore[reportUnknownVariableType] -- members are looked at


def _probe(path: Path) -> ImageInfo:
    with path.open("rb") as stream:
        return probe(stream, ProbeLimits(max_pixels=MAX_RESULT_PIXELS, max_frames=10_000))
