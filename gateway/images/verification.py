"""Whether a result is what was asked and paid for, before success is believed. Cheap: headers first, pixels only on suspicion."""

import asyncio
import filecmp
import math

from gateway.images.finishing import Originals, Picture
from gateway.images.pixel_pool import PixelWorkFailed
from gateway.images.pixel_work import UnreadablePicture, is_black
from gateway.images.services import Services
from normalization.pixels.probe import InvalidImage
from normalization.plan import Plan
from normalization.pricing import expected_pixels
from normalization.request import ImageRef, ImageRequest
from providers.failures import FailureKind, ProviderFailure

SUSPICIOUS_BYTES_PER_PIXEL = 0.03
"""Fewer than this is a picture with next to nothing in it. Photographs have 0.1 and more in every format."""

HEAD_BYTES = 1024
"""Beside them: what headers and tables take, whatever the picture."""

_MORE = 1.2
"""So many times the pixels must have been asked for before the size of a result is judged."""

_AT_LEAST = 0.9
"""Of the expected edge, less `_ROUNDED_PX`; a result below it is not what was asked for."""

_ROUNDED_PX = 8


async def verify(result: Picture, plan: Plan, request: ImageRequest, originals: Originals, by: Services) -> None:
    """Return if the result can be what was asked for.

    Raises:
        ProviderFailure: Kind `content` for a black picture of an input that is not; else `transient`, so that another offer is
            tried.
    """
    source = originals.get(ImageRef("image"))
    if "scale_factor" in plan.offer.params:
        _check_grown(result, plan, request)
    elif source is not None and request.asked.get("prompt") and await asyncio.to_thread(_same_file, source, result):
        raise ProviderFailure(FailureKind.TRANSIENT, "the provider gave the picture back as it was")
    if await asyncio.to_thread(_is_suspicious, result) and await _black(result, by) and not (source and await _black(source, by)):
        words = "the provider gave an all black picture, which is how it delivers what its safety system refuses"
        raise ProviderFailure(FailureKind.CONTENT, words)


def _check_grown(result: Picture, plan: Plan, request: ImageRequest) -> None:
    """The result is about as large as the plan expects: providers round edges, and some to a multiple of 8."""
    expected, source = expected_pixels(plan, request), request.source_size
    if expected is None or source is None or expected <= _MORE * source.pixels:
        return
    if math.sqrt(result.info.size.pixels) < _AT_LEAST * math.sqrt(expected) - _ROUNDED_PX:
        words = f"the provider gave {result.info.size}, smaller than the enlargement that was asked for"
        raise ProviderFailure(FailureKind.TRANSIENT, words)


def _same_file(source: Picture, result: Picture) -> bool:
    return source.info.size == result.info.size and filecmp.cmp(source.path, result.path, shallow=False)


def _is_suspicious(result: Picture) -> bool:
    return result.path.stat().st_size < HEAD_BYTES + SUSPICIOUS_BYTES_PER_PIXEL * result.info.size.pixels


async def _black(picture: Picture, by: Services) -> bool:
    try:
        return await by.pixels.run(is_black, picture.path, pixels=picture.info.size.pixels, patient=True)
    except (UnreadablePicture, InvalidImage) as error:
        raise ProviderFailure(FailureKind.TRANSIENT, "the provider's picture is damaged", detail=str(error)) from error
    except PixelWorkFailed:
        return False  # too large to be looked at, which nothing black and empty is
