"""Keep what was not to be edited: lay a result over the original through the caller's mask."""

from PIL import Image, ImageFilter

from normalization.pixels.color import has_alpha
from normalization.pixels.prepare import alpha_to_luminance


def composite(original: Image.Image, result: Image.Image, mask: Image.Image, feather_px: float = 0.0) -> Image.Image:
    """Return `result` where the mask is transparent and `original` elsewhere, at the size of `result`.

    Args:
        original: The caller's picture, upright; brought to the size of `result` if it differs.
        result: The provider's picture.
        mask: OpenAI's polarity, any size: alpha 0 marks what was to be edited, 255 what was to be kept.
        feather_px: Radius of the soft edge, in pixels of `result`; 0 keeps the mask's own edge.
    """
    # Not Lanczos, whose ripples would let a little of the result out into what is to be kept.
    edited = _resized(alpha_to_luminance(mask), result.size, Image.Resampling.BILINEAR)
    if feather_px > 0:
        edited = edited.filter(ImageFilter.GaussianBlur(feather_px))
    kept = _resized(original, result.size)
    if not (has_alpha(original) or has_alpha(result)):
        return Image.composite(result.convert("RGB"), kept.convert("RGB"), edited)
    # Mixed with premultiplied alpha, so that the colour behind transparent pixels does not shine through at the edge.
    mixed = Image.composite(result.convert("RGBA").convert("RGBa"), kept.convert("RGBA").convert("RGBa"), edited)
    return mixed.convert("RGBA")


def _resized(image: Image.Image, size: tuple[int, int], kernel: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    return image if image.size == size else image.resize(size, kernel)
