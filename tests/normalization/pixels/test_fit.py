"""Exactly the size that was asked for, whatever came."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from normalization.pixels.fit import fit
from normalization.pixels.formats import Size
from normalization.request import FitMode
from normalization.sizes import contained_size

EDGE = st.integers(1, 60)


@given(EDGE, EDGE, EDGE, EDGE, st.sampled_from(["RGB", "RGBA", "L"]))
def test_cover_and_pad_give_exactly_the_size(width, height, to_width, to_height, mode):
    """For any two shapes, however odd."""
    image = Image.new(mode, (width, height))

    for how in (FitMode.COVER, FitMode.PAD):
        assert fit(image, Size(to_width, to_height), how).size == (to_width, to_height)


@given(EDGE, EDGE, EDGE, EDGE)
def test_contain_fits_inside_and_touches(width, height, to_width, to_height):
    """Contained pictures fit inside, touch one edge and keep their shape to half a pixel."""
    target = Size(to_width, to_height)

    got = Size(*fit(Image.new("L", (width, height)), target, FitMode.CONTAIN).size)

    assert got == (width, height) == target or got == contained_size(Size(width, height), target)
    assert got.width <= to_width
    assert got.height <= to_height
    assert got.width == to_width or got.height == to_height
    scale = min(to_width / width, to_height / height)
    assert abs(got.width - width * scale) <= 0.5 or got.width == 1
    assert abs(got.height - height * scale) <= 0.5 or got.height == 1


@pytest.mark.parametrize("sizes", [((1, 5000), (1024, 1)), ((5000, 1), (1, 1024)), ((1, 1), (300, 7)), ((4999, 3), (64, 64))])
@pytest.mark.parametrize("how", FitMode)
def test_extreme_shapes(sizes, how):
    """A line of pixels can be fitted too."""
    got = fit(Image.new("RGB", sizes[0], "red"), Size(*sizes[1]), how)

    if how is not FitMode.CONTAIN:
        assert got.size == sizes[1]
    assert got.getpixel(((got.width - 1) // 2, (got.height - 1) // 2))[:3] == (255, 0, 0)


@pytest.mark.parametrize("how", FitMode)
def test_same_size_is_the_same_picture(how):
    """Nothing is resampled without need."""
    image = Image.new("RGB", (7, 5))

    assert fit(image, Size(7, 5), how, "#ff0000") is image


def test_cover_crops_evenly_at_the_centre():
    """What is over goes on both sides alike."""
    stripes = Image.new("L", (30, 10), 0)
    stripes.paste(255, (10, 0, 20, 10))

    assert fit(stripes, Size(10, 10), FitMode.COVER).tobytes() == bytes([255] * 100)


def test_pad_fills_the_rest_with_the_background():
    """Bars have the colour asked for; without one they are transparent."""
    image = Image.new("RGB", (20, 10), "red")

    coloured = fit(image, Size(20, 20), FitMode.PAD, "#00ff00")
    clear = fit(image, Size(20, 20), FitMode.PAD)

    assert (coloured.mode, coloured.getpixel((0, 4)), coloured.getpixel((0, 5))) == ("RGB", (0, 255, 0), (255, 0, 0))
    assert (clear.mode, clear.getpixel((0, 4))[3], clear.getpixel((0, 5))) == ("RGBA", 0, (255, 0, 0, 255))


def test_bars_leave_the_pictures_own_transparency():
    """A colour for the bars is not laid under the picture."""
    padded = fit(Image.new("RGBA", (20, 10), (0, 0, 0, 0)), Size(20, 20), FitMode.PAD, "#00ff00")

    assert padded.getpixel((10, 10))[3] == 0
    assert padded.getpixel((10, 0)) == (0, 255, 0, 255)


@pytest.mark.parametrize("how", FitMode)
def test_transparent_edges_do_not_bleed(how):
    """The colour of invisible pixels stays invisible after resampling."""
    image = Image.new("RGBA", (40, 40), (0, 255, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 20, 40))

    got = fit(image, Size(17, 17), how)

    seen = (got.getpixel((x, 8)) for x in range(got.width))
    assert all(green <= 2 for _, green, _, alpha in seen if alpha)
