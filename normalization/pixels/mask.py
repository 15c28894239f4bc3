"""Keep what was not to be edited: lay a result over the original through the caller's mask."""

from PIL import Image, ImageFilter

from normalization.pixels.color import has_alpha
from normalization.pixels.fit import fit
from normalization.pixels.formats import Size
from normalization.pixels.prepare import alpha_to_luminance
from normalization.request import FitMode, Ratio
from normalization.sizes import shaped


def composite(original: Image.Image, result: Image.Image, mask: Image.Image, feather_px: float = 0.0) -> Image.Image:
    """Return `result` where the mask is transparent and `original` elsewhere: the original's shape, at the scale of `result`.

    What is kept of the original is never distorted: a result of another shape is cut to the original's, evenly on both sides.

    Args:
        original: The caller's picture, upright; scaled to the result.
        result: The provider's picture.
        mask: OpenAI's polarity, any size: alpha 0 marks what was to be edited, 255 what was to be kept. It covers all of the
            original, as what is sent to providers does.
        feather_px: Radius of the soft edge, in pixels of `result`; 0 keeps the mask's own edge.
    """
    size = _common(Size(*original.size), Size(*result.size))
    result = fit(result, size, FitMode.COVER)
    # Not Lanczos, whose ripples would let a little of the result out into what is to be kept.
    edited = _resized(alpha_to_luminance(mask), size, Image.Resampling.BILINEAR)
    if feather_px > 0:
        edited = edited.filter(ImageFilter.GaussianBlur(feather_px))
    kept = fit(original, size, FitMode.COVER)
    if not (has_alpha(original) or has_alpha(result)):
        return Image.composite(result.convert("RGB"), kept.convert("RGB"), edited)
    # Mixed with premultiplied alpha, so that the colour behind transparent pixels does not shine through at the edge.
    mixed = Image.composite(result.convert("RGBA").convert("RGBa"), kept.convert("RGBA").convert("RGBa"), edited)
    return mixed.convert("RGBA")


def _common(original: Size, result: Size) -> Size:
    """The result's size, cut to the original's shape; as it is where only a rounded pixel is between them."""
    cut = shaped(result, Ratio(*original), FitMode.COVER)
    rounded = max(result.width - cut.width, result.height - cut.height) <= 1
    return result if rounded else cut


def _resized(image: Image.Image, size: Size, kernel: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, kernel)
