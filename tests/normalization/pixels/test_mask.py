"""Results laid over the original through a mask."""

import pytest
from PIL import Image, ImageDraw

from normalization.pixels.mask import composite


def mask_of(size, box):
    """A mask whose `box` is transparent: to be edited."""
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), box)
    return mask


def test_result_shows_where_the_mask_is_transparent():
    """Outside the mask every pixel is the original's, inside every pixel is the result's."""
    original = Image.effect_noise((20, 10), 80).convert("RGB")
    result = Image.new("RGB", (20, 10), "red")

    mixed = composite(original, result, mask_of((20, 10), (10, 0, 20, 10)))

    assert mixed.crop((0, 0, 10, 10)).tobytes() == original.crop((0, 0, 10, 10)).tobytes()
    assert mixed.crop((10, 0, 20, 10)).tobytes() == result.crop((10, 0, 20, 10)).tobytes()


def test_what_is_kept_is_not_distorted_by_a_result_of_another_shape():
    """A square result for a picture twice as wide is cut to that shape: a circle of the original stays one."""
    original = Image.new("RGB", (80, 40), "blue")
    ImageDraw.Draw(original).ellipse((20, 10, 39, 29), fill="white")

    mixed = composite(original, Image.new("RGB", (80, 80), "red"), mask_of((80, 40), (60, 0, 80, 40)))

    assert mixed.size == (80, 40)
    assert mixed.crop((0, 0, 60, 40)).tobytes() == original.crop((0, 0, 60, 40)).tobytes()
    assert mixed.getpixel((79, 39)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(40, 20), (33, 17), (5, 3)])
def test_scale_is_that_of_the_result(size):
    """Original and mask follow the result's size where it has the original's shape, but for a rounded pixel."""
    mixed = composite(Image.new("RGB", (20, 10), "blue"), Image.new("L", size, 255), mask_of((7, 9), (0, 0, 3, 9)))

    assert (mixed.mode, mixed.size) == ("RGB", size)
    assert mixed.getpixel((0, 0)) == (255, 255, 255)
    assert mixed.getpixel((size[0] - 1, 0)) == (0, 0, 255)


def test_feather_softens_the_edge():
    """A radius makes the edge a slope, and leaves what is far from it alone."""
    hard = composite(Image.new("L", (60, 4), 0), Image.new("L", (60, 4), 255), mask_of((60, 4), (30, 0, 60, 4)))
    soft = composite(Image.new("L", (60, 4), 0), Image.new("L", (60, 4), 255), mask_of((60, 4), (30, 0, 60, 4)), feather_px=3)

    assert {red for red, _, _ in (hard.getpixel((x, 1)) for x in range(60))} == {0, 255}
    assert 60 < soft.getpixel((29, 1))[0] < 180
    assert (soft.getpixel((0, 1))[0], soft.getpixel((59, 1))[0]) == (0, 255)


def test_transparent_pixels_do_not_colour_the_edge():
    """The colour behind transparent pixels of one side is not mixed into the other."""
    original = Image.new("RGBA", (40, 4), (0, 255, 0, 0))
    result = Image.new("RGBA", (40, 4), (255, 0, 0, 255))

    mixed = composite(original, result, mask_of((40, 4), (20, 0, 40, 4)), feather_px=4)

    assert mixed.mode == "RGBA"
    assert all(mixed.getpixel((x, 1))[1] <= 2 for x in range(40))
    assert mixed.getpixel((0, 1))[3] == 0
    assert mixed.getpixel((39, 1)) == (255, 0, 0, 255)
