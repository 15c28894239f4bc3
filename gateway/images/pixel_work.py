"""What is done to picture files inside a worker process: paths come in, small values go out.

Imports stay light (Pillow and `normalization`), since every worker pays for them.
"""

import struct
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

from normalization.pixels.apply import apply_steps
from normalization.pixels.formats import ImageInfo
from normalization.pixels.prepare import PREPARATIONS, clean
from normalization.pixels.probe import InvalidImage, ProbeLimits, probe
from normalization.plan import Step
from normalization.request import ImageRef

_DECODER_ERRORS = (
    EOFError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders have been seen to raise for damaged files."""


class UnreadablePicture(Exception):
    """The header is good, but the pixels cannot be decoded. `detail` is the decoder's own word, for the operator."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


def check_file(source: Path, limits: ProbeLimits | None = None) -> ImageInfo:
    """Decode a picture fully, to know that it can be delivered as it is. Nothing is written.

    Raises:
        InvalidImage: If the header is refused.
        UnreadablePicture: If the pixels cannot be decoded.
    """
    with source.open("rb") as stream:
        info = probe(stream, limits)
        _decoded(stream, info, limits)
    return info


def prepare_file(source: Path, names: Sequence[str], target: Path, limits: ProbeLimits | None = None) -> ImageInfo:
    """Write `source` to `target` as PNG, cleaned and after the preparations `names` (of `PREPARATIONS`, in their order).

    Raises:
        InvalidImage: If the header is refused.
        UnreadablePicture: If the pixels cannot be decoded.
        OSError: If writing fails. Then, as after every error, there is no `target`.
    """
    image = _cleaned(source, limits)
    for name in names:
        image = PREPARATIONS[name](image)
    with _written(target) as out:
        image.save(out, format="PNG", compress_level=1)
    return _probed(target)


def finish_file(
    source: Path,
    steps: Sequence[Step],
    companions: Mapping[ImageRef, Path],
    target: Path,
    limits: ProbeLimits | None = None,
) -> ImageInfo:
    """Run a plan's steps on the provider's picture `source` and write the result to `target`.

    Args:
        source: What the provider gave.
        steps: As the plan has them; the last one is the encode.
        companions: The caller's own pictures that the steps name.
        target: Made, or replaced if it exists.
        limits: Of `source` and of each companion.

    Raises:
        InvalidImage: If a header is refused.
        UnreadablePicture: If pixels cannot be decoded.
        EdgeTooLong: If the format cannot store the size.
        OSError: If writing fails. Then, as after every error, there is no `target`.
    """
    image = _cleaned(source, limits)
    others = {ref: _cleaned(path, limits) for ref, path in companions.items()}
    with _written(target) as out:
        apply_steps(image, steps, others, out)
    return _probed(target)


def _cleaned(path: Path, limits: ProbeLimits | None) -> Image.Image:
    with path.open("rb") as stream:
        return _decoded(stream, probe(stream, limits), limits)


def _decoded(stream: BinaryIO, info: ImageInfo, limits: ProbeLimits | None) -> Image.Image:
    """The first frame, cleaned."""
    stream.seek(0)
    try:
        with Image.open(stream, formats=(info.format.value.upper(),)) as image:
            # The decoder's word counts here: a file may tell it another size than it told the probe.
            if image.width * image.height > (limits or ProbeLimits()).max_pixels:
                raise InvalidImage("too_many_pixels", f"the picture decodes to {image.width}x{image.height} pixels")
            image.load()
            return clean(image)
    except _DECODER_ERRORS as exc:
        raise UnreadablePicture(f"{type(exc).__name__}: {exc}") from exc


@contextmanager
def _written(target: Path) -> Generator[BinaryIO]:
    """A file to write to, which does not stay half written."""
    try:
        with target.open("wb") as out:
            yield out
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _probed(target: Path) -> ImageInfo:
    """What was written, measured. Our own results have no limit but the memory they took."""
    with target.open("rb") as stream:
        return probe(stream, ProbeLimits(max_pixels=2**62))
