"""HEIC, which Pillow reads with the help of the optional extra `heic`; nothing is imported before the first such picture."""

from functools import cache
from importlib.util import find_spec
from typing import BinaryIO

from PIL import Image


@cache
def is_installed() -> bool:
    """Whether the extra is there."""
    return find_spec("pillow_heif") is not None


def open_heic(stream: BinaryIO) -> Image.Image:
    """A HEIC picture, upright by its own rule (`irot` and `imir`; its EXIF then says so), pixels not yet decoded.

    Raises:
        ModuleNotFoundError: Without the extra.
        OSError, SyntaxError, ValueError: If it cannot be read.
    """
    import pillow_heif

    # The pool's processes are the parallelism; only the picture itself is wanted.
    pillow_heif.options.DECODE_THREADS = 1
    pillow_heif.options.THUMBNAILS = False
    pillow_heif.options.DEPTH_IMAGES = False
    pillow_heif.options.AUX_IMAGES = False
    return pillow_heif.HeifImageFile(stream)
