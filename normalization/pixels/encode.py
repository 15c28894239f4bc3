"""Write a picture in a format: sRGB, without metadata, at the quality that was asked for."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO, assert_never

from PIL import Image

from normalization.pixels.color import flattened
from normalization.pixels.formats import FORMATS, Format, Size
from normalization.plan import Encode

WHITE = "#ffffff"
"""Under transparent pixels where nothing else was asked: never black, which is what encoders leave."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How OpenAI's `output_compression` (0..100, 100 is best) becomes a codec's own quality, in a straight line."""

    lowest: int
    highest: int
    default: int
    """Of the codec, when `output_compression` is not given."""

    def of(self, compression: int | None) -> int:
        """The codec's quality for an `output_compression`."""
        if compression is None:
            return self.default
        return self.lowest + round((self.highest - self.lowest) * compression / 100)


QUALITIES = MappingProxyType(
    {
        # libjpeg counts from 1.
        Format.JPEG: Quality(1, 100, 92),
        Format.WEBP: Quality(0, 100, 90),
        # The same number is finer in AVIF than in the others: 80 looks like JPEG's 92.
        Format.AVIF: Quality(0, 100, 80),
    }
)

_FULL_CHROMA_FROM = 90
"""JPEG quality from which colour is stored at full resolution."""
_GIF_COLORS = 255
"""One entry of the palette is kept for transparency."""


class EdgeTooLong(Exception):
    """The picture is longer than the format can store."""

    def __init__(self, kind: Format, size: Size) -> None:
        super().__init__(kind, size)
        self.kind = kind
        self.size = size

    def __str__(self) -> str:
        return f"{self.kind} stores at most {FORMATS[self.kind].max_edge} pixels along an edge; the picture is {self.size}"


def encode(image: Image.Image, step: Encode, out: BinaryIO) -> None:
    """Write `image` to `out`.

    Transparency is kept where the format has it, unless `step.background` is set; else it is laid on white. GIF keeps 255
    colours and decides for each pixel whether it is there or not.

    Args:
        image: Mode RGB, RGBA or L, as `clean` gives it. Nothing in its `info` is written.
        step: Format, quality, background.
        out: Writable; for GIF and PNG, seekable is not needed.

    Raises:
        EdgeTooLong: If the format cannot store the size.
        OSError: If writing fails.
    """
    size = Size(*image.size)
    if max(size) > FORMATS[step.format].max_edge:
        raise EdgeTooLong(step.format, size)
    if step.background is not None or not FORMATS[step.format].alpha:
        image = flattened(image, step.background or WHITE)
    options = _options(step)
    if step.format is Format.GIF:
        image, options = _paletted(image)
    _plain(image).save(out, format=step.format.value, **options)


def _options(step: Encode) -> dict[str, Any]:
    match step.format:
        case Format.PNG:
            # Level 6, the default, takes four times as long and saves little: 7.2 s for 16 megapixels, measured.
            return {"compress_level": 1}
        case Format.JPEG:
            quality = QUALITIES[Format.JPEG].of(step.compression)
            subsampling = "4:4:4" if quality >= _FULL_CHROMA_FROM else "4:2:0"
            return {"quality": quality, "subsampling": subsampling, "progressive": False}
        case Format.WEBP:
            # Method 4, the default, takes twice the time of 2. `exact` would keep colours that nobody sees.
            return {"quality": QUALITIES[Format.WEBP].of(step.compression), "method": 2}
        case Format.AVIF:
            # Speed 6, the default, takes three times as long. The pool's processes are the parallelism.
            return {"quality": QUALITIES[Format.AVIF].of(step.compression), "speed": 8, "max_threads": 1}
        case Format.GIF:
            return {}
        case _:
            assert_never(step.format)


def _paletted(image: Image.Image) -> tuple[Image.Image, dict[str, Any]]:
    """The picture with a palette of its own; the last entry, if it is used, is transparent."""
    if image.mode != "RGBA":
        return image if image.mode == "L" else image.quantize(_GIF_COLORS + 1, Image.Quantize.MEDIANCUT), {}
    paletted = image.convert("RGB").quantize(_GIF_COLORS, Image.Quantize.MEDIANCUT)
    palette = (paletted.getpalette() or [])[: 3 * _GIF_COLORS]
    paletted.putpalette(palette + [0] * (3 * (_GIF_COLORS + 1) - len(palette)))
    absent = image.getchannel("A").point([255 if alpha < 128 else 0 for alpha in range(256)])
    paletted.paste(_GIF_COLORS, mask=absent)
    return paletted, {"transparency": _GIF_COLORS}


def _plain(image: Image.Image) -> Image.Image:
    """The picture in a mode that every writer knows, with nothing in `info` for the writer to find."""
    if image.mode not in ("RGB", "RGBA", "L", "P"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.info:
        image = image.copy()
        image.info = {}
    return image
