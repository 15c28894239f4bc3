"""What is done to a picture of the request before a provider sees it, by the names that `ImageRef.prepare` uses."""

from collections.abc import Callable
from types import MappingProxyType

from PIL import Image, ImageChops

from normalization.pixels.color import to_srgb
from normalization.pixels.fit import fit
from normalization.pixels.formats import Size
from normalization.pixels.headers.exif import orientation
from normalization.request import FitMode

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what makes it upright. Source: EXIF 2.32 (CIPA DC-008), section 4.6.4, Orientation."""


def clean(image: Image.Image) -> Image.Image:
    """The first frame as a person sees it: upright, sRGB, 8 bits, without metadata. Mode RGB, RGBA or L.

    Doing it twice is the same as doing it once.

    Raises:
        OSError, ValueError, SyntaxError: By Pillow, if the pixels cannot be decoded.
    """
    turn = _TURNS.get(orientation(image.info.get("exif") or b""))
    plain = to_srgb(image)
    return plain if turn is None else plain.transpose(turn)


def alpha_to_luminance(mask: Image.Image) -> Image.Image:
    """Turn an OpenAI mask (transparent means edit) into a luminance mask (white means edit).

    Args:
        mask: RGBA, H x W. Alpha 0 marks what to change. A mask without alpha marks nothing.

    Returns:
        Mode L, H x W, values 0..255: 255 minus alpha.

    Source: OpenAI API reference, "Create image edit", `mask`.
    """
    return ImageChops.invert(mask.convert("RGBA").getchannel("A"))


def luminance_inverse(mask: Image.Image) -> Image.Image:
    """Exchange black and white of a luminance mask, for providers that keep what is white. Mode L."""
    return ImageChops.invert(mask.convert("L"))


PREPARATIONS: MappingProxyType[str, Callable[[Image.Image], Image.Image]] = MappingProxyType(
    {"clean": clean, "alpha_to_luminance": alpha_to_luminance, "luminance_inverse": luminance_inverse}
)

SHRINK = "shrink-"
"""Followed by `WxH`: the size to bring the picture to."""


def prepared(image: Image.Image, name: str) -> Image.Image:
    """One preparation of a cleaned picture: of `PREPARATIONS`, or `shrink-WxH`."""
    if name.startswith(SHRINK):
        width, height = name.removeprefix(SHRINK).split("x")
        return fit(image, Size(int(width), int(height)), FitMode.COVER)
    return PREPARATIONS[name](image)
