"""The row-by-row PNG encoder writes what any decoder reads back."""

import io

import numpy as np
import pytest
from PIL import Image

from normalization.pixels.formats import Size
from providers.local.engine.png import PngWriter


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [Size(1, 1), Size(300, 1), Size(1, 300), Size(101, 67), Size(300_000, 2)], ids=str)
def test_pixels_survive(mode: str, size: Size):
    """Rows handed over in uneven pieces come back exactly, in the same mode."""
    channels = len(mode)
    pixels = np.random.default_rng(3).integers(0, 256, (size.height, size.width, channels), dtype=np.uint8)
    file = io.BytesIO()
    writer = PngWriter(file, size, channels)
    for top in range(0, size.height, 13):
        writer.write(pixels[top : top + 13])
    writer.finish()

    with Image.open(io.BytesIO(file.getvalue())) as image:
        assert image.mode == mode
        assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)


def test_colour_profile_is_embedded():
    """The ICC profile comes back byte for byte."""
    file = io.BytesIO()
    writer = PngWriter(file, Size(1, 1), 3, icc_profile=b"a profile")
    writer.write(np.zeros((1, 1, 3), np.uint8))
    writer.finish()
    with Image.open(io.BytesIO(file.getvalue())) as image:
        assert image.info["icc_profile"] == b"a profile"
