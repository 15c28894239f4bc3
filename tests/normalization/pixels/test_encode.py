"""Pictures written: the format, the quality, the background, and nothing else."""

import pickle
from io import BytesIO

import pytest
from PIL import Image

from normalization.pixels.apply import apply_steps
from normalization.pixels.encode import QUALITIES, EdgeTooLong, encode
from normalization.pixels.formats import FORMATS, OUTPUT_FORMATS, Format, Size
from normalization.pixels.probe import probe
from normalization.plan import Composite, Encode, Fit
from normalization.request import FitMode, ImageRef

NOISE = Image.effect_noise((64, 48), 60).convert("RGB")
LOSSY = tuple(QUALITIES)


def written(image, kind, **options):
    out = BytesIO()
    encode(image, Encode(kind, **options), out)
    return out.getvalue()


def opened(content):
    with Image.open(BytesIO(content)) as image:
        image.load()
        return image


def half_clear():
    image = Image.new("RGBA", (16, 16), (200, 30, 30, 255))
    image.paste((0, 0, 0, 0), (8, 0, 16, 16))
    return image


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("kind", OUTPUT_FORMATS)
def test_every_format_takes_every_mode(kind, mode):
    """The picture comes back in its format, size and colours."""
    content = written(Image.new("RGB", (33, 17), (150, 150, 150)).convert(mode), kind)

    assert (probe(BytesIO(content)).format, probe(BytesIO(content)).size) == (kind, (33, 17))
    assert all(abs(value - 150) <= 3 for value in opened(content).convert("RGB").getpixel((16, 8)))


@pytest.mark.parametrize("kind", OUTPUT_FORMATS)
def test_transparency_is_kept_where_the_format_has_it_and_white_elsewhere(kind):
    """Never black."""
    content = written(half_clear(), kind)

    image = opened(content).convert("RGBA")
    assert probe(BytesIO(content)).alpha is FORMATS[kind].alpha
    assert image.getpixel((2, 8))[3] == 255
    assert abs(image.getpixel((2, 8))[0] - 200) <= 8
    if FORMATS[kind].alpha:
        assert image.getpixel((14, 8))[3] == 0
    else:
        assert min(image.getpixel((14, 8))) >= 250


@pytest.mark.parametrize("kind", OUTPUT_FORMATS)
def test_background_is_laid_under_when_asked(kind):
    """With a background no format is transparent."""
    content = written(half_clear(), kind, background="#0000ff")

    assert not probe(BytesIO(content)).alpha
    red, green, blue = opened(content).convert("RGB").getpixel((14, 8))
    assert (red < 12, green < 12, blue > 243) == (True, True, True)


def test_half_transparent_is_mixed_not_cut():
    """Flattening mixes with the background by alpha."""
    assert opened(written(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), Format.JPEG)).getpixel((1, 1)) == (127, 127, 127)


@pytest.mark.parametrize("kind", LOSSY)
def test_compression_of_100_is_best(kind):
    """A higher `output_compression` is a larger file, from 0 to 100; without one the codec's default holds."""
    sizes = [len(written(NOISE, kind, compression=value)) for value in (0, 40, 80, 100)]

    assert sizes == sorted(set(sizes))
    assert sizes[1] < len(written(NOISE, kind)) < sizes[3]


@pytest.mark.parametrize("kind", LOSSY)
def test_quality_rises_from_the_worst_to_the_best(kind):
    """Both ends of the codec's range are reached, and more is never less."""
    qualities = [QUALITIES[kind].of(value) for value in range(101)]

    assert qualities == sorted(qualities)
    assert (qualities[0], qualities[100]) == (1 if kind is Format.JPEG else 0, 100)
    assert QUALITIES[kind].of(None) == qualities[92]


@pytest.mark.parametrize("kind", [Format.WEBP, Format.AVIF])
@pytest.mark.parametrize(("compression", "webp", "avif"), [(10, 3, 12), (25, 20, 34), (50, 47, 47), (90, 89, 78)])
def test_quality_is_that_of_the_measurement(kind, compression, webp, avif):
    """Rows of docs/pixels.md, and a value between two of them."""
    assert QUALITIES[kind].of(compression) == (webp if kind is Format.WEBP else avif)


def test_lossless_formats_keep_every_pixel():
    """PNG gives back what went in."""
    assert opened(written(NOISE, Format.PNG)).tobytes() == NOISE.tobytes()


def test_gif_keeps_few_colours_exactly():
    """Up to 255 colours nothing is lost, beside a transparent one."""
    image = Image.new("RGBA", (16, 16))
    for x in range(16):
        for y in range(15):
            image.putpixel((x, y), (x * 16, y * 16, 100, 255))

    got = opened(written(image, Format.GIF)).convert("RGBA")

    assert got.crop((0, 0, 16, 15)).tobytes() == image.crop((0, 0, 16, 15)).tobytes()
    assert got.getpixel((3, 15))[3] == 0


@pytest.mark.parametrize("kind", OUTPUT_FORMATS)
def test_nothing_of_the_source_travels_along(kind):
    """Profile, EXIF, comments and text in `info` are not written."""
    image = NOISE.copy()
    block = Image.Exif()
    block[0x010F] = "a camera"
    image.info = {"icc_profile": b"x" * 200, "exif": block.tobytes(), "comment": b"secret", "xmp": b"secret", "dpi": (1, 2)}

    content = written(image, kind)

    info = probe(BytesIO(content))
    assert (info.profile, info.metadata, info.orientation) == (False, False, 1)
    assert b"secret" not in content
    assert b"camera" not in content
    assert image.info["comment"] == b"secret"


def test_jpeg_is_baseline():
    """Not progressive, which some consumers cannot stream."""
    assert b"\xff\xc0" in written(NOISE, Format.JPEG)


@pytest.mark.parametrize(
    ("kind", "edge"), [(Format.WEBP, 16_384), (Format.AVIF, 32_769), (Format.JPEG, 65_501), (Format.GIF, 65_536)]
)
def test_edges_beyond_the_format_are_a_clear_error(kind, edge):
    """What a format cannot store is said in words, also across processes."""
    with pytest.raises(EdgeTooLong, match=f"{kind} stores at most {FORMATS[kind].max_edge} pixels.*{edge}x1") as failure:
        written(Image.new("L", (edge, 1)), kind)
    assert str(pickle.loads(pickle.dumps(failure.value))) == str(failure.value)


@pytest.mark.parametrize("kind", [Format.WEBP, Format.AVIF, Format.JPEG, Format.GIF])
def test_longest_edges_are_written_and_read(kind):
    """The table's limits are those of the codecs."""
    edge = FORMATS[kind].max_edge

    assert opened(written(Image.new("L", (edge, 1)), kind)).size == (edge, 1)


def test_steps_run_in_their_order():
    """Composite, then fit, then encode."""
    image, mask = ImageRef("image"), ImageRef("mask")
    companions = {image: Image.new("RGB", (40, 40), "blue"), mask: Image.new("RGBA", (40, 40), (0, 0, 0, 255))}
    companions[mask].paste((0, 0, 0, 0), (0, 0, 20, 40))
    steps = (Composite(image, mask), Fit(Size(20, 10), FitMode.PAD, "#00ff00"), Encode(Format.PNG))
    out = BytesIO()

    apply_steps(Image.new("RGB", (40, 40), "red"), steps, companions, out)

    got = opened(out.getvalue())
    assert [got.getpixel((x, 5)) for x in (0, 6, 13, 19)] == [(0, 255, 0), (255, 0, 0), (0, 0, 255), (0, 255, 0)]


@pytest.mark.parametrize("steps", [(), (Fit(Size(1, 1), FitMode.COVER),), (Encode(Format.PNG), Encode(Format.PNG))])
def test_steps_without_their_one_encode_are_a_fault(steps):
    """A plan that does not end in its only encode is wrong."""
    with pytest.raises(ValueError, match="encode"):
        apply_steps(NOISE, steps, {}, BytesIO())
