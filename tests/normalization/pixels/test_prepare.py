"""Pictures made ready for a provider: upright, sRGB, 8 bits, nothing private."""

from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image, ImageCms, ImageOps

from normalization.pixels.formats import Format, ImageInfo, Size, needs_cleaning
from normalization.pixels.prepare import PREPARATIONS, alpha_to_luminance, clean, luminance_inverse
from normalization.pixels.probe import probe
from tests.normalization.pixels.pictures import png16, profile

PLAIN = ImageInfo(Format.PNG, Size(4, 4))


def quarters(size=(24, 16)):
    """A picture whose four quarters differ."""
    image = Image.new("RGB", size, "#c02010")
    image.paste("#10c020", (0, 0, size[0] // 2, size[1] // 2))
    image.paste("#2010c0", (size[0] // 2, 0, size[0], size[1] // 2))
    return image


def reopened(image, kind, **options):
    out = BytesIO()
    image.save(out, format=kind.value, **options)
    return Image.open(BytesIO(out.getvalue()))


def near(one, other, tolerance=2):
    return all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", [Format.JPEG, Format.PNG, Format.WEBP, Format.AVIF])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_is_made_upright(kind, turn):
    """All eight orientations come out as Pillow turns them, and nothing is left that would turn them again."""
    block = Image.Exif()
    block[0x0112] = turn
    image = reopened(quarters(), kind, exif=block)

    upright = clean(image)

    assert upright.size == ((16, 24) if turn >= 5 else (24, 16))
    assert upright.tobytes() == ImageOps.exif_transpose(image).convert("RGB").tobytes()
    assert upright.info == {}


@pytest.mark.parametrize("kind", [Format.JPEG, Format.PNG, Format.WEBP, Format.AVIF])
def test_wide_colours_become_srgb(kind):
    """A profile is followed: the numbers are those of the matrices that Display P3 and sRGB publish."""
    image = Image.new("RGB", (16, 16), (200, 120, 100))

    cleaned = clean(reopened(image, kind, icc_profile=profile(), quality=100))

    assert near(cleaned.getpixel((8, 8)), (214, 116, 95), 4)


def test_profile_with_exchanged_channels_shows_that_it_is_followed():
    """Red pixels that the profile calls green are green."""
    red, green, _ = clean(
        reopened(Image.new("RGB", (8, 8), (200, 20, 20)), Format.PNG, icc_profile=profile(swapped=True))
    ).getpixel((0, 0))

    assert green > red


def test_profile_keeps_transparency():
    """Alpha goes through the conversion untouched."""
    image = Image.new("RGBA", (2, 1), (60, 200, 60, 77))
    image.putpixel((1, 0), (0, 0, 0, 0))

    cleaned = clean(reopened(image, Format.PNG, icc_profile=profile()))

    assert cleaned.mode == "RGBA"
    assert [cleaned.getpixel((x, 0))[3] for x in (0, 1)] == [77, 0]


def test_palette_with_profile_is_converted():
    """Palette colours are colours of the profile, too."""
    image = Image.new("RGB", (8, 8), (60, 200, 60)).quantize(4)

    assert clean(reopened(image, Format.PNG, icc_profile=profile())).getpixel((0, 0))[0] < 30


def test_gray_profile_is_followed():
    """A gray picture of another gamma gets sRGB's."""
    cleaned = clean(reopened(Image.new("L", (8, 8), 128), Format.PNG, icc_profile=profile(b"GRAY", gamma=1.0)))

    assert abs(cleaned.convert("L").getpixel((0, 0)) - 188) <= 3


def test_srgb_profile_changes_nothing_visible():
    """The commonest profile of all leaves the numbers where they are."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    cleaned = clean(reopened(quarters(), Format.PNG, icc_profile=srgb))

    assert near(cleaned.tobytes(), quarters().tobytes())


@pytest.mark.parametrize("broken", [b"nonsense", b"", profile()[:200], profile(b"GRAY"), b"\0" * 200])
def test_broken_profile_is_passed_over(broken):
    """A profile that cannot be followed, or is for other pixels, does not lose the picture."""
    assert clean(reopened(quarters(), Format.PNG, icc_profile=broken)).tobytes() == quarters().tobytes()


def test_cmyk_becomes_rgb():
    """A print JPEG without a profile has the colours that viewers show."""
    image = reopened(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), Format.JPEG, quality=100)

    cleaned = clean(image)

    assert cleaned.mode == "RGB"
    assert near(cleaned.getpixel((8, 8)), (0, 255, 255), 4)


def png_of_one_pixel(kind, *samples, extra=b""):
    """One pixel of 16 bits per channel."""
    return png16(1, 1, kind, samples, extra)


@pytest.mark.parametrize(
    ("content", "mode", "pixel"),
    [
        (png_of_one_pixel(0, 0), "L", 0),
        (png_of_one_pixel(0, 32896), "L", 128),
        (png_of_one_pixel(0, 65535), "L", 255),
        (png_of_one_pixel(0, 1000, extra=b"\x03\xe8"), "RGBA", (4, 4, 4, 0)),
        (png_of_one_pixel(0, 1001, extra=b"\x03\xe8"), "RGBA", (4, 4, 4, 255)),
        (png_of_one_pixel(2, 65535, 32896, 0), "RGB", (255, 128, 0)),
        (png_of_one_pixel(4, 65535, 32896), "RGBA", (255, 255, 255, 128)),
        (png_of_one_pixel(6, 65535, 32896, 0, 65535), "RGBA", (255, 128, 0, 255)),
    ],
)
def test_sixteen_bits_become_eight(content, mode, pixel):
    """Deep pictures are scaled, not clipped."""
    assert probe(BytesIO(content)).bits == 16

    cleaned = clean(Image.open(BytesIO(content)))

    assert (cleaned.mode, cleaned.getpixel((0, 0))) == (mode, pixel)


def test_transparent_palette_becomes_alpha():
    """A palette's transparent colour is alpha 0, the others 255."""
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)

    cleaned = clean(reopened(image, Format.PNG, transparency=0))

    assert cleaned.mode == "RGBA"
    assert [cleaned.getpixel((x, 0))[3] for x in (0, 1)] == [0, 255]
    assert cleaned.getpixel((1, 0)) == (0, 0, 255, 255)


@pytest.mark.parametrize(
    ("mode", "expected"), [("1", "L"), ("L", "L"), ("LA", "RGBA"), ("P", "RGB"), ("RGB", "RGB"), ("RGBA", "RGBA")]
)
def test_modes_after_cleaning(mode, expected):
    """Only three modes are left for everybody after."""
    assert clean(reopened(quarters().convert(mode), Format.PNG)).mode == expected


@pytest.mark.parametrize("kind", [Format.GIF, Format.WEBP])
def test_first_frame_is_the_picture(kind):
    """Of an animation the first frame is taken."""
    image = reopened(Image.new("RGB", (8, 8), "red"), kind, save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])

    assert near(clean(image).convert("RGB").getpixel((4, 4)), (255, 0, 0), 6)


def test_cleaning_twice_is_cleaning_once():
    """A clean picture stays as it is."""
    block = Image.Exif()
    block[0x0112] = 6
    once = clean(reopened(quarters(), Format.PNG, exif=block, icc_profile=profile()))

    assert clean(once).tobytes() == once.tobytes()


def test_mask_turns_from_alpha_to_luminance():
    """Transparent means edit, white means edit; and the other way round for those who want it so."""
    mask = Image.new("RGBA", (3, 1), (9, 9, 9, 255))
    mask.putpixel((0, 0), (0, 0, 0, 0))
    mask.putpixel((1, 0), (0, 0, 0, 100))

    white = alpha_to_luminance(mask)

    assert (white.mode, white.tobytes()) == ("L", bytes([255, 155, 0]))
    assert luminance_inverse(white).tobytes() == bytes([0, 100, 255])
    assert alpha_to_luminance(mask.convert("RGB")).tobytes() == bytes(3)


def test_names_are_those_that_handles_use():
    """Every preparation is found by its name."""
    assert {name: function.__name__ for name, function in PREPARATIONS.items()} == {name: name for name in PREPARATIONS}


@pytest.mark.parametrize(
    "change",
    [
        {"orientation": 6},
        {"profile": True},
        {"metadata": True},
        {"bits": 16},
        {"colors": "cmyk"},
        {"frames": 2},
        {"format": Format.AVIF},
    ],
    ids=str,
)
def test_what_must_be_cleaned(change):
    """Anything that a provider could see otherwise, or that is private, is cleaned first."""
    assert needs_cleaning(replace(PLAIN, **change), (Format.PNG, Format.JPEG))


@pytest.mark.parametrize("change", [{}, {"colors": "palette", "bits": 4}, {"colors": "gray", "bits": 1}, {"alpha": True}], ids=str)
def test_what_may_go_as_it_is(change):
    """A plain picture is sent byte for byte, palettes included; without a list of formats any will do."""
    assert not needs_cleaning(replace(PLAIN, **change), {Format.PNG})
    assert not needs_cleaning(replace(PLAIN, **change), ())
