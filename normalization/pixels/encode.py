"""Write a picture in a format: sRGB, at the quality that was asked for, without metadata unless some is given."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO, assert_never

from PIL import Image

from normalization.pixels.animation import Animation, animation_options
from normalization.pixels.color import flattened
from normalization.pixels.formats import FORMATS, Format, Size
from normalization.plan import Encode

WHITE = "#ffffff"
"""Under transparent pixels where nothing else was asked: never black, which is what encoders leave."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How OpenAI's `output_compression` (0..100, 100 is best) becomes a codec's own quality: so that the codecs look alike.

    JPEG's quality is the measure: a codec's column is the quality at which its pictures have the SSIM of JPEG's. Between two
    rows it is a straight line.
    """

    points: tuple[tuple[int, int], ...]
    """`output_compression` and the codec's quality, both rising, from 0 to 100."""

    def of(self, compression: int | None) -> int:
        """The codec's quality for an `output_compression`; None is `DEFAULT_COMPRESSION`."""
        wanted = DEFAULT_COMPRESSION if compression is None else compression
        at = max(1, next(index for index, (point, _) in enumerate(self.points) if point >= wanted))
        (left, low), (right, high) = self.points[at - 1 : at + 1]
        return round(low + (high - low) * (wanted - left) / (right - left))


DEFAULT_COMPRESSION = 92
"""Where `output_compression` is not given."""

_JPEG = (0, 5, 10, 20, 30, 40, 50, 60, 70, 75, 80, 85, 90, 95, 98, 100)


def _column(qualities: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(_JPEG, qualities, strict=True))


QUALITIES = MappingProxyType(
    {
        # libjpeg counts from 1.
        Format.JPEG: Quality(((0, 1), (1, 1), (100, 100))),
        Format.WEBP: Quality(_column((0, 0, 3, 13, 26, 36, 47, 58, 69, 76, 80, 84, 89, 96, 100, 100))),
        Format.AVIF: Quality(_column((0, 1, 12, 30, 38, 42, 47, 50, 55, 59, 65, 69, 78, 89, 97, 100))),
    }
)
"""Measured by `bench/compression.py`; how, and with what, is in `docs/pixels.md`."""

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


def encode(picture: Image.Image | Animation, step: Encode, out: BinaryIO, exif: bytes = b"") -> None:
    """Write `picture` to `out`.

    Transparency is kept where the format has it, unless `step.background` is set; else it is laid on white. GIF keeps 255
    colours and decides for each pixel whether it is there or not. An animation keeps its frames where the format can move; else
    its first frame is the picture.

    Args:
        picture: Mode RGB, RGBA or L, as `clean` gives it. Nothing in its `info` is written.
        step: Format, quality, background.
        out: Writable; for GIF and PNG, seekable is not needed.
        exif: Of `normalization.pixels.metadata`; left out where the format has no place for it.

    Raises:
        EdgeTooLong: If the format cannot store the size.
        OSError: If writing fails.
    """
    facts = FORMATS[step.format]
    if isinstance(picture, Animation) and (not facts.animated or len(picture.frames) == 1):
        picture = picture.frames[0]
    frames = picture.frames if isinstance(picture, Animation) else (picture,)
    size = Size(*frames[0].size)
    if max(size) > facts.max_edge:
        raise EdgeTooLong(step.format, size)
    quality = QUALITIES.get(step.format)
    options = codec_options(step.format, quality.of(step.compression) if quality else None)
    first, *others = (_storable(frame, step) for frame in frames)
    if isinstance(picture, Animation):
        options |= animation_options(picture, step.format) | {"append_images": others}
    if exif and facts.exif:
        options["exif"] = exif
    first.save(out, format=step.format.value, **options)


def _storable(image: Image.Image, step: Encode) -> Image.Image:
    """One frame in a mode that the format's writer knows, with nothing in `info` but a palette's transparent entry."""
    facts = FORMATS[step.format]
    if step.background is not None or not facts.alpha:
        image = flattened(image, step.background or WHITE)
    return _paletted(_plain(image)) if step.format is Format.GIF else _plain(image)


def codec_options(kind: Format, quality: int | None) -> dict[str, Any]:
    """How the gateway has Pillow write a format: what is dear for little is left out.

    Args:
        kind: The format.
        quality: The codec's own, for lossy ones.
    """
    match kind:
        case Format.PNG:
            # Level 6, the default, takes four times as long and saves little: 7.2 s for 16 megapixels, measured.
            return {"compress_level": 1}
        case Format.JPEG:
            subsampling = "4:4:4" if quality is not None and quality >= _FULL_CHROMA_FROM else "4:2:0"
            return {"quality": quality, "subsampling": subsampling, "progressive": False}
        case Format.WEBP:
            # Method 4, the default, takes twice the time of 2. `exact` would keep colours that nobody sees.
            return {"quality": quality, "method": 2}
        case Format.AVIF:
            # Speed 6, the default, takes three times as long. The pool's processes are the parallelism.
            return {"quality": quality, "speed": 8, "max_threads": 1}
        case Format.GIF:
            return {}
        case Format.HEIC:
            raise ValueError("HEIC is only read")
        case _:
            assert_never(kind)


def _paletted(image: Image.Image) -> Image.Image:
    """The picture with a palette of its own; the last entry, if it is used, is transparent."""
    if image.mode != "RGBA":
        return image if image.mode == "L" else image.quantize(_GIF_COLORS + 1, Image.Quantize.MEDIANCUT)
    paletted = image.convert("RGB").quantize(_GIF_COLORS, Image.Quantize.MEDIANCUT)
    palette = (paletted.getpalette() or [])[: 3 * _GIF_COLORS]
    paletted.putpalette(palette + [0] * (3 * (_GIF_COLORS + 1) - len(palette)))
    absent = image.getchannel("A").point([255 if alpha < 128 else 0 for alpha in range(256)])
    paletted.paste(_GIF_COLORS, mask=absent)
    paletted.info["transparency"] = _GIF_COLORS
    return paletted


def _plain(image: Image.Image) -> Image.Image:
    """The picture in a mode that every writer knows, with nothing in `info` for the writer to find."""
    if image.mode not in ("RGB", "RGBA", "L"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.info:
        image = image.copy()
        image.info = {}
    return image
