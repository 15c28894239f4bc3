"""Bring a picture to exactly the size that was asked for."""

from typing import assert_never

from PIL import Image

from normalization.pixels.color import has_alpha
from normalization.pixels.formats import Size
from normalization.request import FitMode
from normalization.sizes import contained_size


def fit(image: Image.Image, size: Size, how: FitMode, background: str | None = None) -> Image.Image:
    """Return `image` brought to `size`; itself where it has that size already.

    Scaled with Lanczos over premultiplied alpha (Pillow's own way for RGBA), so that transparent edges do not bleed.

    Args:
        image: Mode RGB, RGBA or L.
        size: Target in pixels.
        how: `cover` fills `size` and crops what is over, evenly on both sides; `contain` fits inside, so that one edge is
            shorter than asked unless the shapes agree; `pad` fits inside and fills the rest.
        background: `#rrggbb` of what `pad` fills; None leaves it transparent.
    """
    if image.size == size:
        return image
    match how:
        case FitMode.COVER:
            return image.resize(size, Image.Resampling.LANCZOS, box=_crop(Size(*image.size), size))
        case FitMode.CONTAIN:
            return _contained(image, size)
        case FitMode.PAD:
            return _padded(_contained(image, size), size, background)
        case _:
            assert_never(how)


def _crop(source: Size, target: Size) -> tuple[float, float, float, float]:
    """The largest box of the shape of `target` in the middle of `source`."""
    if source.width * target.height >= source.height * target.width:
        over = source.width - source.height * target.width / target.height
        return (over / 2, 0, source.width - over / 2, source.height)
    over = source.height - source.width * target.height / target.width
    return (0, over / 2, source.width, source.height - over / 2)


def _contained(image: Image.Image, size: Size) -> Image.Image:
    inner = contained_size(Size(*image.size), size)
    return image if image.size == inner else image.resize(inner, Image.Resampling.LANCZOS)


def _padded(image: Image.Image, size: Size, background: str | None) -> Image.Image:
    place = ((size.width - image.width) // 2, (size.height - image.height) // 2)
    if background is None:
        canvas = Image.new("RGBA", size, (0, 0, 0, 0))
    else:
        canvas = Image.new("RGBA" if has_alpha(image) else "RGB", size, background)
    canvas.paste(image.convert(canvas.mode), place)
    return canvas
