"""What is done to picture files inside a worker process: paths come in, small values go out.

How large a picture may be was decided from its header before it came here; what memory it may take, by the pool.

Imports stay light (Pillow and `normalization`), since every worker pays for them.
"""

import struct
import warnings
import zlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# The decoders by name: without them, Pillow's first WebP or AVIF makes it import all forty.
from PIL import AvifImagePlugin as AvifImagePlugin
from PIL import GifImagePlugin as GifImagePlugin
from PIL import Image
from PIL import JpegImagePlugin as JpegImagePlugin
from PIL import PngImagePlugin as PngImagePlugin
from PIL import WebPImagePlugin as WebPImagePlugin

from normalization.pixels.animation import Animation, read_animation
from normalization.pixels.apply import apply_steps
from normalization.pixels.formats import FORMATS, Format, ImageInfo, Size
from normalization.pixels.heic import open_heic
from normalization.pixels.metadata import kept_exif
from normalization.pixels.prepare import clean, prepared
from normalization.pixels.probe import ProbeLimits, probe
from normalization.plan import Composite, Encode, Fit, Step
from normalization.request import ImageRef

_DECODER_ERRORS = (
    ArithmeticError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders have been seen to raise for damaged files."""


_NO_LIMITS = ProbeLimits(max_pixels=2**62, max_frames=2**62, heic=True)

MAX_MOVING_PIXELS = 64_000_000
"""Of all frames of an animation together, before and after its steps: they are in memory at once. Beyond, its first frame stays."""


class UnreadablePicture(Exception):
    """The header is good, but the pixels cannot be decoded. `detail` is the decoder's own word, for the operator."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


_BLACK = 4
"""Luminance up to which all of a picture counts as black: lossy formats do not store 0 exactly."""


def check_file(source: Path) -> ImageInfo:
    """Decode a picture fully, to know that it can be delivered as it is. Nothing is written.

    Raises:
        InvalidImage: If the header is refused.
        UnreadablePicture: If the pixels cannot be decoded.
    """
    _cleaned(source)
    return _probed(source)


def is_black(source: Path) -> bool:
    """Whether a picture has nothing but black in it, as providers deliver what they refuse to show. Decodes it fully.

    Raises:
        InvalidImage: If the header is refused.
        UnreadablePicture: If the pixels cannot be decoded.
    """
    return _cleaned(source).convert("L").histogram()[_BLACK + 1 :] == [0] * (255 - _BLACK)


def prepare_file(source: Path, names: Sequence[str], target: Path) -> ImageInfo:
    """Write `source` to `target` as PNG, cleaned and after the preparations `names`, in their order.

    Raises:
        InvalidImage: If the header is refused.
        UnreadablePicture: If the pixels cannot be decoded.
        OSError: If writing fails. Then, as after every error, there is no `target`.
    """
    image = _cleaned(source)
    for name in names:
        image = prepared(image, name)
    with _written(target) as out:
        image.save(out, format="PNG", compress_level=1)
    return _probed(target)


def finish_file(
    source: Path,
    steps: Sequence[Step],
    companions: Mapping[ImageRef, Path],
    target: Path,
) -> ImageInfo:
    """Run a plan's steps on the provider's picture `source` and write the result to `target`.

    An animation stays one where the format can move and its frames are not more than `MAX_MOVING_PIXELS`; the answer says how many
    there are.

    Args:
        source: What the provider gave.
        steps: As the plan has them; the last one is the encode.
        companions: The caller's own pictures that the steps name, `Encode.keep` among them.
        target: Made, or replaced if it exists.

    Raises:
        InvalidImage: If a header is refused.
        UnreadablePicture: If pixels cannot be decoded.
        EdgeTooLong: If the format cannot store the size.
        OSError: If writing fails. Then, as after every error, there is no `target`.
    """
    picture = _moving(source) if _stays_moving(_probed(source), steps) else _cleaned(source)
    laid = {ref for step in steps if isinstance(step, Composite) for ref in (step.image, step.mask)}
    others = {ref: _cleaned(companions[ref]) for ref in laid}
    kept = b"".join(_exif(companions[step.keep]) for step in steps if isinstance(step, Encode) and step.keep)
    with _written(target) as out:
        apply_steps(picture, steps, others, out, kept)
    return _probed(target)


def _stays_moving(info: ImageInfo, steps: Sequence[Step]) -> bool:
    target = next((FORMATS[step.format] for step in steps if isinstance(step, Encode)), None)
    sizes = [step.size for step in steps if isinstance(step, Fit) and isinstance(step.size, Size)]
    pixels = info.frames * max(size.pixels for size in (info.size, *sizes))
    return info.frames > 1 and target is not None and target.animated and pixels <= MAX_MOVING_PIXELS


def _cleaned(path: Path) -> Image.Image:
    """The first frame, cleaned."""
    with _opened(path) as (image, _):
        image.load()
        return clean(image)


def _moving(path: Path) -> Animation:
    with _opened(path) as (image, info):
        # One more than the probe counts where an APNG has a picture beside its animation.
        if getattr(image, "n_frames", 1) > info.frames + 1:
            raise UnreadablePicture(f"the decoder sees more frames than the header's {info.frames}")
        return read_animation(image, info.format)


def _exif(path: Path) -> bytes:
    """What is kept of a picture's EXIF; nothing where it is damaged, for the picture may well be good."""
    try:
        with _opened(path) as (image, _):
            return kept_exif(image)
    except UnreadablePicture:
        return b""


@contextmanager
def _opened(path: Path) -> Generator[tuple[Image.Image, ImageInfo]]:
    """A picture whose pixels are not decoded yet, and its header; what its decoder raises is one exception."""
    info = _probed(path)
    try:
        # Decoders warn of what is odd but readable, such as broken EXIF; nobody would read it here.
        with warnings.catch_warnings(action="ignore"), path.open("rb") as stream, _decoder(stream, info.format) as image:
            # Two readers of one header may disagree; the pixels that were admitted are those that the probe saw.
            if image.width * image.height > info.stored.pixels:
                raise UnreadablePicture(f"the decoder sees {image.width}x{image.height} pixels, the header says {info.stored}")
            yield image, info
    except _DECODER_ERRORS as exc:
        raise UnreadablePicture(f"{type(exc).__name__}: {exc}") from exc


def _decoder(stream: BinaryIO, kind: Format) -> Image.Image:
    return open_heic(stream) if kind is Format.HEIC else Image.open(stream, formats=(kind.value.upper(),))


@contextmanager
def _written(target: Path) -> Generator[BinaryIO]:
    """A file to write to, which does not stay half written."""
    try:
        with target.open("wb") as out:
            yield out
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _probed(path: Path) -> ImageInfo:
    with path.open("rb") as stream:
        return probe(stream, _NO_LIMITS)
