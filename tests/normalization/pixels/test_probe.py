"""What is known of a picture before it is decoded, and what is refused."""

import struct
import time
import zlib
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from normalization.pixels.formats import OUTPUT_FORMATS, Format, ImageInfo, Size
from normalization.pixels.headers.reader import MAX_READS
from normalization.pixels.probe import InvalidImage, ProbeLimits, describe, probe, sniff

ALL = OUTPUT_FORMATS
TURNABLE = (Format.JPEG, Format.PNG, Format.WEBP, Format.AVIF)


def picture(size=(7, 5), mode="RGB"):
    """A picture whose four quarters differ."""
    image = Image.new("RGB", size, "#c02010")
    image.paste("#10c020", (0, 0, size[0] // 2, size[1] // 2))
    image.paste("#2010c0", (size[0] // 2, 0, size[0], size[1] // 2))
    return image.convert(mode)


def saved(image, kind, **options):
    out = BytesIO()
    image.save(out, format=kind.value, **options)
    return out.getvalue()


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def look(content, **limits):
    return probe(BytesIO(content), ProbeLimits(**limits))


def chunk(kind, content=b""):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *chunks, bits=8, kind=2, pixels=b"\x00"):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND")


@pytest.mark.parametrize("kind", ALL)
def test_format_and_size_are_what_the_bytes_say(kind):
    """Every format is known by its bytes, with its size."""
    content = saved(picture(), kind)

    assert sniff(content[:64]) is kind
    assert look(content) == ImageInfo(kind, Size(7, 5), colors="palette" if kind is Format.GIF else "rgb")


@pytest.mark.parametrize("kind", ALL)
def test_smallest_picture(kind):
    """One pixel is a picture."""
    assert look(saved(Image.new("RGB", (1, 1)), kind)).size == (1, 1)


@pytest.mark.parametrize("kind", TURNABLE)
@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_gives_the_size_that_a_viewer_shows(kind, turn):
    """The orientation is read wherever the format keeps it, and the size agrees with Pillow's upright picture."""
    content = saved(picture(), kind, exif=exif(turn))

    info = look(content)

    assert info.orientation == turn
    assert info.stored == (7, 5)
    assert info.size == ImageOps.exif_transpose(Image.open(BytesIO(content))).size
    if kind is not Format.AVIF:  # where it is a property of the picture, not metadata
        assert info.metadata


def test_webp_orientation_counts_only_when_announced():
    """EXIF that the header does not announce turns nothing, but is private all the same."""
    content = bytearray(saved(picture(), Format.WEBP, exif=exif(6)))
    content[20] &= ~0x08

    assert (look(bytes(content)).orientation, look(bytes(content)).metadata) == (1, True)


@pytest.mark.parametrize("wrong", [0, 9, 65535])
def test_impossible_orientation_counts_as_upright(wrong):
    """Values outside 1..8 mean nothing."""
    assert look(saved(picture(), Format.JPEG, exif=exif(wrong))).orientation == 1


@pytest.mark.parametrize("block", [b"", b"Exif\0\0", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + b"\x01" * 30])
def test_broken_exif_counts_as_upright(block):
    """EXIF that points outside itself is no reason to refuse a picture."""
    assert look(png(1, 1, chunk(b"eXIf", block))).orientation == 1


@pytest.mark.parametrize(
    ("mode", "kind", "expected"),
    [
        ("RGBA", Format.PNG, {"alpha": True}),
        ("LA", Format.PNG, {"alpha": True, "colors": "gray"}),
        ("L", Format.PNG, {"colors": "gray"}),
        ("1", Format.PNG, {"colors": "gray", "bits": 1}),
        ("I;16", Format.PNG, {"colors": "gray", "bits": 16}),
        ("P", Format.PNG, {"colors": "palette"}),
        ("L", Format.JPEG, {"colors": "gray"}),
        ("CMYK", Format.JPEG, {"colors": "cmyk"}),
        ("RGBA", Format.WEBP, {"alpha": True}),
        ("RGBA", Format.AVIF, {"alpha": True}),
        ("L", Format.AVIF, {"colors": "gray"}),
    ],
)
def test_channels_are_told(mode, kind, expected):
    """Transparency, depth and kind of colour come from the header."""
    image = Image.new("I;16", (7, 5)) if mode == "I;16" else picture(mode=mode)
    if mode == "RGBA":
        image.putpixel((0, 0), (0, 0, 0, 0))

    info = look(saved(image, kind))

    assert {name: getattr(info, name) for name in expected} == expected


def test_transparent_colours_are_alpha():
    """A colour key counts as transparency, in PNG and in GIF."""
    paletted = picture(mode="P")

    used = paletted.getpixel((0, 0))

    assert look(saved(paletted, Format.PNG, transparency=used)).alpha
    assert look(saved(paletted, Format.GIF, transparency=used)).alpha
    assert look(saved(picture(), Format.PNG, transparency=(1, 2, 3))).alpha


def test_lossless_webp_tells_its_alpha():
    """VP8L keeps alpha in its own header."""
    assert look(saved(picture(mode="RGBA"), Format.WEBP, lossless=True)).size == (7, 5)


@pytest.mark.parametrize("kind", TURNABLE)
def test_profile_is_noticed(kind):
    """An embedded ICC profile is seen without reading it."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    assert look(saved(picture(), kind, icc_profile=profile)).profile


@pytest.mark.parametrize("kind", TURNABLE)
def test_metadata_is_noticed(kind):
    """EXIF without an orientation is metadata all the same, since it may tell the place."""
    block = Image.Exif()
    block[0x010F] = "a camera"

    assert look(saved(picture(), kind, exif=block)).metadata


def test_texts_in_a_png_are_metadata():
    """Prompts and authors travel as text; the name of the program does not count."""
    said, program = PngImagePlugin.PngInfo(), PngImagePlugin.PngInfo()
    said.add_itxt("XML:com.adobe.xmp", "<x/>")
    program.add_text("Software", "a program")

    assert look(saved(picture(), Format.PNG, pnginfo=said)).metadata
    assert not look(saved(picture(), Format.PNG, pnginfo=program)).metadata


@pytest.mark.parametrize("kind", [Format.GIF, Format.WEBP, Format.PNG, Format.AVIF])
def test_frames_are_counted(kind):
    """Animations say how many frames they have."""
    frames = [picture(), picture().rotate(180), picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]

    info = look(saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100))

    assert (info.frames, info.size) == (3, (7, 5))


def test_too_many_frames_are_refused():
    """An animation beyond the limit has a code of its own."""
    frames = [Image.new("L", (2, 2), shade) for shade in range(0, 250, 50)]
    content = saved(frames[0], Format.GIF, save_all=True, append_images=frames[1:])

    with pytest.raises(InvalidImage, match="5 frames; at most 4") as refusal:
        look(content, max_frames=4)
    assert refusal.value.code == "too_many_frames"


def test_bomb_is_refused_by_its_header():
    """A few bytes that claim billions of pixels are refused with the numbers, without decoding anything."""
    bomb = png(50_000, 50_000)

    with pytest.raises(InvalidImage, match=r"50000x50000 pixels, 2500\.0 million; at most 64 million") as refusal:
        look(bomb)
    assert refusal.value.code == "too_many_pixels"


def test_pixels_up_to_the_limit_are_taken():
    """The limit itself is allowed."""
    assert look(png(8000, 8000)).size == (8000, 8000)
    with pytest.raises(InvalidImage, match="at most"):
        look(png(8001, 8000))


@pytest.mark.parametrize(("width", "height"), [(1, 16_000_000), (16_000_000, 1), (32_769, 1)])
def test_absurdly_long_picture_is_refused_by_its_header(width, height):
    """Few pixels in one row or column cost as much as many, so an edge has its own limit."""
    with pytest.raises(InvalidImage, match="32768") as caught:
        look(png(width, height))

    assert caught.value.code == "too_many_pixels"


def test_edges_up_to_the_limit_are_taken():
    """The limit itself is no attack."""
    assert look(png(32_768, 1)).size == Size(32_768, 1)
    assert look(png(40, 1), max_edge=40).size == Size(40, 1)


def test_picture_without_pixels_is_refused():
    """A width of zero is damage."""
    with pytest.raises(InvalidImage, match="0x5"):
        look(png(0, 5))


@pytest.mark.parametrize("kind", ALL)
def test_every_truncation_is_noticed(kind):
    """Cut anywhere, a picture is refused; never accepted, never another exception."""
    content = saved(picture((40, 30), "RGBA" if kind is not Format.JPEG else "RGB"), kind)

    for length in range(len(content)):
        with pytest.raises(InvalidImage) as refusal:
            look(content[:length])
        assert refusal.value.code in ("invalid_image_file", "unsupported_file_mimetype")


@pytest.mark.parametrize("kind", ALL)
def test_missing_last_byte_is_called_truncated(kind):
    """The message says what is wrong."""
    with pytest.raises(InvalidImage, match="truncated"):
        look(saved(picture((40, 30)), kind)[:-1])


@pytest.mark.parametrize("kind", [Format.PNG, Format.JPEG, Format.WEBP, Format.GIF])
def test_bytes_after_the_picture_are_left_alone(kind):
    """Phones append films and previews; that is no damage."""
    assert look(saved(picture(), kind) + b"MotionPhoto" * 100).size == (7, 5)


def test_progressive_jpeg_and_long_scans_are_walked():
    """Several scans, and scans longer than one piece of reading."""
    noise = Image.effect_noise((500, 400), 120).convert("RGB")
    content = saved(noise, Format.JPEG, quality=98, progressive=True)

    assert len(content) > 3 * 64 * 1024
    assert look(content).size == (500, 400)
    with pytest.raises(InvalidImage, match="truncated"):
        look(content[:-2])


def test_wrong_checksum_is_damage():
    """A flipped bit among a PNG's pixels is noticed from outside."""
    content = bytearray(saved(picture(), Format.PNG))
    content[content.index(b"IDAT") + 6] ^= 1

    with pytest.raises(InvalidImage, match="checksum"):
        look(bytes(content))


@pytest.mark.parametrize("bits", [0x08 | 4, 12])
def test_jpeg_of_more_bits_is_refused_with_a_way_out(bits):
    """What no decoder reads is refused by name."""
    content = bytearray(saved(picture(), Format.JPEG))
    content[content.index(b"\xff\xc0") + 4] = bits

    with pytest.raises(InvalidImage, match="convert it to png") as refusal:
        look(bytes(content))
    assert refusal.value.code == "unsupported_file_mimetype"


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "video"),
        (b"BM\x36\0\0\0", "BMP"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"  <svg xmlns='x'>", "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b'{"error": 1}', "JSON"),
        (b"data:image/png;base64,AAAA", "data URL"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "sound"),
    ],
)
def test_other_files_are_called_by_their_name(head, name):
    """What is recognisable is named, with what to do about it."""
    assert name in (describe(head) or "")
    with pytest.raises(InvalidImage, match=f"{name}.*convert it to png") as refusal:
        look(head)
    assert refusal.value.code == "unsupported_file_mimetype"


@pytest.mark.parametrize("content", [b"", b"hello", bytes(1000), b"\x89PNG"])
def test_what_is_no_picture_says_what_to_send(content):
    """Anything else is refused as no picture."""
    with pytest.raises(InvalidImage, match="send") as refusal:
        look(content)
    assert refusal.value.code == "invalid_image_file"


HOSTILE = {
    "png of empty chunks": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    + chunk(b"teXt") * MAX_READS,
    "jpeg of markers": b"\xff\xd8" + b"\xff\x01" * (2 * MAX_READS),
    "jpeg of fill bytes": b"\xff\xd8" + b"\xff" * (2 * MAX_READS),
    "gif of tiny blocks": b"GIF89a\1\0\1\0\0\0\0!\xfe" + b"\x01\x00\x01" * MAX_READS,
    "webp of empty chunks": b"RIFF"
    + struct.pack("<I", 22 + 8 * MAX_READS)
    + b"WEBPVP8X\x0a\0\0\0"
    + bytes(10)
    + b"junk\0\0\0\0" * MAX_READS,
    "avif of empty boxes": b"\0\0\0\x10ftypavif\0\0\0\0" + b"\0\0\0\x08free" * MAX_READS,
    "avif with extents of no bytes": b"\0\0\0\x10ftypavif\0\0\0\0"
    + struct.pack(">I4sI", 12 + 16 + 6 * 10_000, b"meta", 0)
    + struct.pack(">I4sIHH", 16 + 6 * 10_000, b"iloc", 0, 0, 10_000)
    + struct.pack(">HHH", 1, 0, 65535) * 10_000,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_files_of_a_million_pieces_end_soon(content):
    """Counts under the sender's control do not decide how long the gateway works."""
    started = time.process_time()

    with pytest.raises(InvalidImage):
        look(content)

    assert time.process_time() - started < 4


SEEDS = [
    saved(picture((9, 6), mode), kind, **options)
    for kind, mode, options in [
        (Format.PNG, "RGBA", {"exif": exif(6)}),
        (Format.JPEG, "RGB", {"exif": exif(6)}),
        (Format.WEBP, "RGBA", {"exif": exif(6)}),
        (Format.GIF, "RGB", {"save_all": True, "append_images": [picture((9, 6)).rotate(180)]}),
        (Format.AVIF, "RGBA", {"exif": exif(6)}),
        (Format.AVIF, "RGB", {"save_all": True, "append_images": [picture((9, 6)).rotate(180)]}),
    ]
]


def possible(content):
    """Nothing but a refusal, or facts that can be."""
    try:
        info = look(content)
    except InvalidImage:
        return
    assert 1 <= info.size.pixels <= 64_000_000
    assert 1 <= info.orientation <= 8
    assert 1 <= info.frames <= 500


@given(st.binary(max_size=400), st.sampled_from([b"", *(seed[:16] for seed in SEEDS)]))
def test_any_bytes_are_a_picture_or_refused(content, head):
    """No bytes raise anything but the refusal."""
    possible(head + content)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SEEDS), st.data())
def test_changed_pictures_are_pictures_or_refused(seed, data):
    """Neither do pictures with a few bytes changed, cut out or repeated."""
    content = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(0, 8))
        content[at : at + length] = data.draw(st.binary(max_size=8))
    possible(bytes(content))
