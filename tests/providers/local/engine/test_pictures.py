"""Pictures that somebody sent are opened upright, in few modes, within bounds, or refused in words."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from providers.local.engine.model import InputRefused
from providers.local.engine.pictures import open_picture


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.info["transparency"] = 0
    return image


@pytest.mark.parametrize(
    ("image", "mode"),
    [
        (Image.new("1", (4, 4), 1), "L"),
        (Image.new("L", (4, 4)), "L"),
        (Image.new("LA", (4, 4)), "LA"),
        (Image.new("RGB", (4, 4)), "RGB"),
        (Image.new("RGBA", (4, 4)), "RGBA"),
        (Image.new("P", (4, 4)), "RGB"),
        (palette_with_transparency(), "RGBA"),
        (Image.fromarray(np.full((4, 4), 40_000, np.uint16)), "L"),
    ],
    ids=["bilevel", "gray", "gray-alpha", "rgb", "rgba", "palette", "palette-transparent", "gray-16-bit"],
)
def test_every_png_becomes_one_of_four_modes(image: Image.Image, mode: str, tmp_path: Path):
    """Gray stays gray, transparency stays, everything else is RGB."""
    image.save(tmp_path / "a.png", transparency=image.info.get("transparency"))
    assert open_picture(tmp_path / "a.png", 1000).mode == mode


def test_sixteen_bits_become_eight(tmp_path: Path):
    """16-bit gray is scaled, not clipped."""
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "a.png")
    assert open_picture(tmp_path / "a.png", 1000).getpixel((0, 0)) == 40_000 >> 8


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "avif"])
def test_every_format_is_read(suffix: str, tmp_path: Path):
    """The formats of the gateway, whatever the file is called."""
    image = Image.new("RGB", (8, 6), (10, 120, 200))
    image.save(tmp_path / f"a.{suffix}")
    (tmp_path / f"a.{suffix}").rename(tmp_path / "picture")
    assert open_picture(tmp_path / "picture", 1000).size == (8, 6)


def test_orientation_is_applied(tmp_path: Path):
    """A picture that a camera stored on its side is turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    assert open_picture(tmp_path / "a.jpg", 1000).size == (6, 8)


def test_profile_is_kept_for_rgb_and_used_up_for_cmyk(tmp_path: Path):
    """A profile goes on with the pixels that it describes, and not with pixels that were converted."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (4, 4)).save(tmp_path / "rgb.jpg", icc_profile=srgb)
    Image.new("CMYK", (4, 4), (0, 0, 0, 0)).save(tmp_path / "cmyk.jpg", icc_profile=srgb)  # a profile that does not fit
    assert open_picture(tmp_path / "rgb.jpg", 1000).info == {"icc_profile": srgb}
    converted = open_picture(tmp_path / "cmyk.jpg", 1000)
    assert (converted.mode, converted.info, converted.getpixel((0, 0))) == ("RGB", {}, (255, 255, 255))


def truncated(folder: Path) -> bytes:
    Image.effect_noise((64, 64), 50).save(folder / "whole.png")
    return (folder / "whole.png").read_bytes()[:900]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda _: b"not a picture", "cannot identify image file"),
        (lambda _: b"", "cannot identify image file"),
        (lambda _: b"BM" + bytes(100), "cannot identify image file"),
        (truncated, "cannot decode image file"),
    ],
    ids=["text", "empty", "bmp", "truncated"],
)
def test_what_is_not_a_picture_is_refused(content: Callable[[Path], bytes], message: str, tmp_path: Path):
    """Files that are not pictures, or not whole, are refused in the words that real containers use."""
    path = tmp_path / "a"
    path.write_bytes(content(tmp_path))
    with pytest.raises(InputRefused, match=message):
        open_picture(path, 10_000)


@pytest.mark.parametrize("edge", [101, 30_000])
def test_too_many_pixels_are_refused(edge: int, tmp_path: Path):
    """The limit counts before anything is decoded; a bomb is refused too."""
    Image.new("1", (edge, edge)).save(tmp_path / "a.png")
    with pytest.raises(InputRefused, match=r"the picture has .* pixels"):
        open_picture(tmp_path / "a.png", 10_000)
