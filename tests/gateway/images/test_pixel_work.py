"""Pictures as they come from cameras, printers and the web, through what a worker does with them before and after a provider."""

from io import BytesIO

import pytest
from PIL import Image, ImageCms

from gateway.images import pixel_work
from gateway.images.pixel_work import UnreadablePicture, finish_file, prepare_file
from normalization.pixels.formats import FORMATS, OUTPUT_FORMATS, Format, Size, needs_cleaning
from normalization.pixels.heic import is_installed
from normalization.pixels.probe import InvalidImage, ProbeLimits, probe
from normalization.plan import Composite, Encode, Fit
from normalization.request import FitMode, ImageRef
from tests.normalization.pixels.pictures import PREVIEW, camera_exif, ink_profile, png16, profile

GREEN, BLUE, RED, WHITE = (0, 255, 0), (0, 0, 255), (255, 0, 0), (255, 255, 255)
UNDONE = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What a camera that was held so stores, of an upright picture."""
ANIMATED = [kind for kind in OUTPUT_FORMATS if FORMATS[kind].animated]

heic = pytest.mark.skipif(not is_installed(), reason="needs the extra heic")


def quarters(size=(48, 32)):
    """Green and blue over red and white."""
    image = Image.new("RGB", size, WHITE)
    half = size[0] // 2, size[1] // 2
    image.paste(GREEN, (0, 0, *half))
    image.paste(BLUE, (half[0], 0, size[0], half[1]))
    image.paste(RED, (0, half[1], half[0], size[1]))
    return image


def seen(image):
    """The colours in the middle of the four quarters, on white."""
    whole = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    across, down = image.width // 4, image.height // 4
    return [whole.getpixel((x, y))[:3] for y in (down, image.height - 1 - down) for x in (across, image.width - 1 - across)]


def shows(image, colors=(GREEN, BLUE, RED, WHITE), tolerance=14):
    return all(
        abs(a - b) <= tolerance for got, want in zip(seen(image), colors, strict=True) for a, b in zip(got, want, strict=True)
    )


def saved(image, kind, **options):
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned(orientation):
    turn = UNDONE[orientation]
    return quarters() if turn is None else quarters().transpose(turn)


def with_orientation(orientation, kind="JPEG"):
    block = Image.Exif()
    block[0x0112] = orientation
    return saved(turned(orientation), kind, exif=block, quality=95)


def display_p3():
    """The same colours in the numbers of a wider space."""
    wide = ImageCms.ImageCmsProfile(BytesIO(profile()))
    there = ImageCms.profileToProfile(quarters(), ImageCms.createProfile("sRGB"), wide, outputMode="RGB")
    return saved(there, "JPEG", icc_profile=profile(), quality=100, subsampling="4:4:4")


def printed():
    """Inks whose profile exchanges the first two: read without it, red would be green."""
    inks = Image.new("CMYK", (48, 32))
    inks.paste((0, 255, 255, 0), (0, 0, 24, 16))
    inks.paste((255, 255, 0, 0), (24, 0, 48, 16))
    inks.paste((255, 0, 255, 0), (0, 16, 24, 32))
    return saved(inks, "JPEG", icc_profile=ink_profile(), quality=95)


def deep():
    return png16(48, 32, 2, [257 * value for value in quarters().tobytes()])


def keyed():
    """A palette whose white is transparent."""
    image = quarters().quantize(4)
    return saved(image, "PNG", transparency=image.getpixel((40, 28)))


def moving(kind, mode="RGB", **options):
    frames = [quarters().convert(mode), Image.new(mode, (48, 32), "red"), Image.new(mode, (48, 32), "blue")]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=[50, 100, 200], **options)


def taken_by_phone(**options):
    """A HEIC picture."""
    import pillow_heif

    out = BytesIO()
    pillow_heif.from_pillow(options.pop("image", quarters())).save(out, quality=95, **options)
    return out.getvalue()


REAL = {
    **{f"exif orientation {turn}": (lambda turn=turn: with_orientation(turn)) for turn in UNDONE},
    "orientation in a webp": lambda: with_orientation(6, "WEBP"),
    "orientation in an avif": lambda: with_orientation(8, "AVIF"),
    "orientation in a png": lambda: with_orientation(5, "PNG"),
    "display p3": display_p3,
    "cmyk with a profile": printed,
    "cmyk": lambda: saved(quarters().convert("CMYK"), "JPEG", quality=95),
    "16 bits": deep,
    "palette with transparency": keyed,
    "animated gif": lambda: moving("GIF"),
    "animated webp": lambda: moving("WEBP", quality=95),
    "animated png": lambda: moving("PNG"),
    "animated avif": lambda: moving("AVIF", quality=95),
    "lossless webp": lambda: saved(quarters().convert("RGBA"), "WEBP", lossless=True),
    "20 megapixels": lambda: saved(quarters((5000, 4000)), "JPEG", quality=95),
    "progressive": lambda: saved(quarters(), "JPEG", progressive=True, quality=95),
}


@pytest.mark.parametrize("make", REAL.values(), ids=REAL.keys())
def test_real_pictures_are_prepared_and_finished(make, tmp_path):
    """Whatever is odd about them, what is sent and what is delivered shows the same upright picture in plain sRGB."""
    source, sent, delivered = tmp_path / "in.bin", tmp_path / "sent", tmp_path / "delivered"
    source.write_bytes(make())

    ready = prepare_file(source, ("clean", "shrink-48x32"), sent)
    done = finish_file(source, (Fit(Size(24, 16), FitMode.COVER), Encode(Format.JPEG, 95)), {}, delivered)

    assert (ready.format, ready.size, done.format, done.size) == (Format.PNG, (48, 32), Format.JPEG, (24, 16))
    for info in (ready, done):
        assert (info.orientation, info.bits, info.profile, info.metadata, info.frames) == (1, 8, False, False, 1)
    with Image.open(sent) as one, Image.open(delivered) as other:
        assert (shows(one), shows(other, tolerance=40)) == (True, True), (seen(one), seen(other))


@pytest.mark.parametrize("kind", OUTPUT_FORMATS)
def test_one_pixel_is_a_picture(kind, tmp_path):
    """The smallest picture goes through all of it."""
    (tmp_path / "in").write_bytes(saved(Image.new("RGB", (1, 1), "white"), kind.value))

    prepare_file(tmp_path / "in", ("clean",), tmp_path / "sent")
    info = finish_file(tmp_path / "sent", (Fit(Size(3, 2), FitMode.PAD), Encode(kind)), {}, tmp_path / "out")

    assert (info.format, info.size) == (kind, (3, 2))


@pytest.mark.parametrize("name", ["photo.png", "photo.gif", "photo.txt", "photo"])
def test_name_of_a_file_says_nothing(name, tmp_path):
    """A JPEG under a wrong name is a JPEG."""
    source = tmp_path / name
    source.write_bytes(with_orientation(6))

    prepare_file(source, ("clean",), tmp_path / "sent")

    with Image.open(tmp_path / "sent") as image:
        assert shows(image)


@pytest.mark.parametrize("make", REAL.values(), ids=REAL.keys())
def test_truncated_pictures_leave_nothing(make, tmp_path):
    """Half of any of them is refused before and after the provider, and no half target stays."""
    content = make()
    (tmp_path / "half").write_bytes(content[: len(content) // 2])

    with pytest.raises((InvalidImage, UnreadablePicture)):
        prepare_file(tmp_path / "half", ("clean",), tmp_path / "target")
    with pytest.raises((InvalidImage, UnreadablePicture)):
        finish_file(tmp_path / "half", (Encode(Format.PNG),), {}, tmp_path / "target")

    assert not (tmp_path / "target").exists()


# --- animations ---------------------------------------------------------------------------------------------------------------


def frames_of(path):
    with Image.open(path) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            image.load()
            yield image.convert("RGBA"), image.info.get("duration")


@pytest.mark.parametrize("kind", ANIMATED)
@pytest.mark.parametrize("source", ANIMATED)
def test_animations_stay_animations(source, kind, tmp_path):
    """Between any two formats that move, frames, times and sizes arrive."""
    (tmp_path / "in").write_bytes(moving(source.value, **({} if source is Format.GIF else {"quality": 95})))

    info = finish_file(tmp_path / "in", (Fit(Size(24, 16), FitMode.COVER), Encode(kind, 95)), {}, tmp_path / "out")

    assert (info.format, info.frames, info.size) == (kind, 3, (24, 16))
    (first, *_), (second, *_), (third, *_) = got = list(frames_of(tmp_path / "out"))
    assert [round(duration) for _, duration in got] == [50, 100, 200]
    assert shows(first, tolerance=40)
    assert shows(second, [RED] * 4)
    assert shows(third, [BLUE] * 4)


@pytest.mark.parametrize("kind", [kind for kind in ANIMATED if kind is not Format.AVIF])
@pytest.mark.parametrize(("told", "plays"), [({}, 1), ({"loop": 0}, 0), ({"loop": 2}, 3)], ids=["once", "for ever", "three times"])
def test_animations_play_as_often_as_before(told, plays, kind, tmp_path):
    """GIF counts repetitions and leaves the word out for none; the others count how often it is shown."""
    (tmp_path / "in").write_bytes(moving("GIF", **told))

    finish_file(tmp_path / "in", (Encode(kind, background="#ffffff"),), {}, tmp_path / "out")

    with Image.open(tmp_path / "out") as image:
        loop = image.info.get("loop")
    expected = {0: 0, 1: None, 3: 2}[plays] if kind is Format.GIF else plays
    assert loop == expected


@pytest.mark.parametrize("kind", ANIMATED)
def test_transparent_animations_stay_transparent(kind, tmp_path):
    """No frame shines through the next one."""
    frames = [Image.new("RGBA", (32, 16), color) for color in ("red", "blue")]
    frames[0].paste((0, 0, 0, 0), (0, 0, 16, 16))
    frames[1].paste((0, 0, 0, 0), (16, 0, 32, 16))
    (tmp_path / "in").write_bytes(saved(frames[0], "PNG", save_all=True, append_images=frames[1:], duration=100))

    finish_file(tmp_path / "in", (Encode(kind),), {}, tmp_path / "out")

    alphas = [(frame.getpixel((4, 8))[3], frame.getpixel((28, 8))[3]) for frame, _ in frames_of(tmp_path / "out")]
    assert alphas == [(0, 255), (255, 0)]


def test_every_frame_is_laid_through_the_mask(tmp_path):
    """Steps treat all frames alike."""
    (tmp_path / "in").write_bytes(moving("GIF"))
    Image.new("RGB", (48, 32), GREEN).save(tmp_path / "original", "PNG")
    mask = Image.new("RGBA", (48, 32), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (24, 0, 48, 32))
    mask.save(tmp_path / "mask", "PNG")
    step = Composite(ImageRef("image"), ImageRef("mask"))
    companions = {step.image: tmp_path / "original", step.mask: tmp_path / "mask"}

    finish_file(tmp_path / "in", (step, Encode(Format.PNG)), companions, tmp_path / "out")

    assert [seen(frame)[0] for frame, _ in frames_of(tmp_path / "out")] == [GREEN] * 3
    assert [seen(frame)[1] for frame, _ in frames_of(tmp_path / "out")] == [BLUE, RED, BLUE]


def test_animation_beyond_what_is_held_at_once_is_its_first_frame(tmp_path, monkeypatch):
    """The bound counts the frames at the size they will have, and the answer says that one is left."""
    monkeypatch.setattr(pixel_work, "MAX_MOVING_PIXELS", 3 * 96 * 64 - 1)
    (tmp_path / "in").write_bytes(moving("WEBP"))

    small = finish_file(tmp_path / "in", (Encode(Format.GIF),), {}, tmp_path / "out")
    large = finish_file(tmp_path / "in", (Fit(Size(96, 64), FitMode.COVER), Encode(Format.GIF)), {}, tmp_path / "out")

    assert (small.frames, large.frames) == (3, 1)


def test_frames_that_no_time_is_told_for_are_seen(tmp_path):
    """Without a duration a frame stays for a tenth of a second, as browsers show it."""
    frames = [Image.new("L", (4, 4), shade) for shade in (0, 99)]
    (tmp_path / "in").write_bytes(saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=0))

    finish_file(tmp_path / "in", (Encode(Format.WEBP),), {}, tmp_path / "out")

    assert [duration for _, duration in frames_of(tmp_path / "out")] == [100, 100]


def test_picture_for_those_who_know_no_animation_is_no_frame(tmp_path):
    """What an APNG shows elsewhere does not come into the animation."""
    frames = [Image.new("RGB", (8, 8), color) for color in ("white", "red", "blue")]
    content = saved(frames[0], "PNG", save_all=True, default_image=True, append_images=frames[1:], duration=100)
    (tmp_path / "in").write_bytes(content)

    info = finish_file(tmp_path / "in", (Encode(Format.GIF),), {}, tmp_path / "out")

    assert info.frames == 2
    assert [seen(frame)[0] for frame, _ in frames_of(tmp_path / "out")] == [RED, BLUE]


# --- HEIC ---------------------------------------------------------------------------------------------------------------------


def look(content, **limits):
    return probe(BytesIO(content), ProbeLimits(**limits))


@heic
@pytest.mark.parametrize("orientation", UNDONE)
def test_heic_is_read_upright(orientation, tmp_path):
    """Size and orientation come from the header, as the picture's own turn and mirror, and agree with what is decoded."""
    block = Image.Exif()
    block[0x0112] = orientation
    (tmp_path / "in.heic").write_bytes(taken_by_phone(image=turned(orientation), exif=block.tobytes()))

    info = look((tmp_path / "in.heic").read_bytes(), heic=True)
    ready = prepare_file(tmp_path / "in.heic", ("clean",), tmp_path / "sent")

    assert (info.format, info.size, info.orientation) == (Format.HEIC, (48, 32), orientation)
    assert (ready.size, ready.orientation, ready.metadata) == ((48, 32), 1, False)
    with Image.open(tmp_path / "sent") as image:
        assert shows(image), seen(image)


@heic
def test_heic_tells_alpha_profile_and_metadata(tmp_path):
    """What a plan wants to know of a picture is in its header."""
    cut = quarters().convert("RGBA")
    cut.paste((0, 0, 0, 0), (24, 16, 48, 32))
    content = taken_by_phone(image=cut, exif=camera_exif(1), icc_profile=profile())
    plain = look(taken_by_phone(), heic=True)

    info = look(content, heic=True)
    (tmp_path / "in").write_bytes(content)
    prepare_file(tmp_path / "in", ("clean",), tmp_path / "sent")

    assert (info.alpha, info.profile, info.metadata) == (True, True, True)
    assert (plain.alpha, plain.profile, plain.metadata, plain.frames) == (False, False, False, 1)
    with Image.open(tmp_path / "sent") as image:
        assert (image.mode, image.getpixel((40, 28))[3]) == ("RGBA", 0)


@heic
def test_heic_is_always_cleaned_and_never_written(tmp_path):
    """No provider is sent one as it is, and nobody gets one."""
    content = taken_by_phone()
    (tmp_path / "in").write_bytes(content)

    assert needs_cleaning(look(content, heic=True), ())
    assert needs_cleaning(look(content, heic=True), (Format.HEIC,))
    assert Format.HEIC not in OUTPUT_FORMATS
    with pytest.raises(ValueError, match="only read"):
        finish_file(tmp_path / "in", (Encode(Format.HEIC),), {}, tmp_path / "out")


@heic
def test_truncated_heic_is_refused(tmp_path):
    """Cut anywhere, as with every other format."""
    content = taken_by_phone()

    for length in range(12, len(content), 7):
        with pytest.raises(InvalidImage):
            look(content[:length], heic=True)


@heic
def test_damaged_heic_is_one_exception(tmp_path):
    """What the decoder does not understand is an unreadable picture."""
    content = taken_by_phone()
    at = content.index(b"mdat") + 4
    (tmp_path / "in").write_bytes(content[:at] + bytes(len(content) - at))

    with pytest.raises(UnreadablePicture):
        prepare_file(tmp_path / "in", ("clean",), tmp_path / "out")


def test_heic_without_the_extra_names_it():
    """The refusal says what the operator and what the caller can do."""
    with pytest.raises(InvalidImage, match=r"image-gateway\[heic\].*convert it to png, jpeg or webp") as refusal:
        look(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    assert refusal.value.code == "unsupported_file_mimetype"


# --- metadata that was asked for ----------------------------------------------------------------------------------------------


def kept(source, kind, tmp_path, name="photo"):
    """The EXIF of what is made of a red picture for the owner of `source`."""
    (tmp_path / name).write_bytes(source)
    Image.new("RGB", (20, 10), "red").save(tmp_path / "result", "PNG")
    step = Encode(kind, keep=ImageRef("image"))

    info = finish_file(tmp_path / "result", (step,), {step.keep: tmp_path / name}, tmp_path / "out")

    with Image.open(tmp_path / "out") as image:
        return info, image.getexif(), (tmp_path / "out").read_bytes()


@pytest.mark.parametrize("kind", [kind for kind in OUTPUT_FORMATS if FORMATS[kind].exif])
def test_metadata_is_kept_on_request(kind, tmp_path):
    """Camera, author, time and place travel; the orientation, the old size and the preview do not."""
    info, block, content = kept(saved(turned(6), "JPEG", exif=camera_exif()), kind, tmp_path)

    assert (block[0x010F], block[0x013B], block.get(0x0112, 1), info.orientation) == ("a camera", "an author", 1, 1)
    assert block.get_ifd(0x8825)[2] == (52.0, 31.0, 12.0)
    details = block.get_ifd(0x8769)
    assert (details[0x9003], details[0xA001], details[0x927C]) == ("2026:11:21 12:00:00", 1, b"of the maker")
    assert {0xA002, 0xA003}.isdisjoint(details)
    assert info.metadata
    assert PREVIEW not in content


def test_gif_has_no_place_for_metadata(tmp_path):
    """It is left out, which the plan knows before."""
    info, block, content = kept(saved(turned(6), "JPEG", exif=camera_exif()), Format.GIF, tmp_path)

    assert (info.metadata, dict(block), b"a camera" in content) == (False, {}, False)


def test_animations_keep_metadata_too(tmp_path):
    """Beside the frames."""
    (tmp_path / "photo").write_bytes(saved(quarters(), "JPEG", exif=camera_exif()))
    (tmp_path / "in").write_bytes(moving("GIF"))
    step = Encode(Format.WEBP, keep=ImageRef("image"))

    info = finish_file(tmp_path / "in", (step,), {step.keep: tmp_path / "photo"}, tmp_path / "out")

    assert (info.frames, info.metadata, info.orientation) == (3, True, 1)


@pytest.mark.parametrize("block", [b"", b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\x7f", camera_exif()[:60]])
def test_metadata_that_is_missing_or_broken_loses_no_picture(block, tmp_path):
    """The result is delivered without."""
    info, _, _ = kept(saved(quarters(), "JPEG", **({"exif": block} if block else {})), Format.JPEG, tmp_path)

    assert info.size == (20, 10)


def test_makers_note_that_would_not_fit_is_left_out(tmp_path):
    """What a JPEG holds is kept, without the one part that only the maker reads."""
    _, block, _ = kept(saved(quarters(), "PNG", exif=camera_exif(note=bytes(70_000))), Format.JPEG, tmp_path)

    assert block[0x010F] == "a camera"
    assert 0x927C not in block.get_ifd(0x8769)


@heic
def test_metadata_of_heic_is_kept(tmp_path):
    """A phone's place and time, too."""
    _, block, _ = kept(taken_by_phone(exif=camera_exif(6)), Format.JPEG, tmp_path)

    assert (block[0x010F], block[0x0112]) == ("a camera", 1)


def test_picture_that_is_kept_from_and_laid_under_is_one(tmp_path):
    """The same handle may serve a composite and the metadata."""
    (tmp_path / "photo").write_bytes(with_orientation(6))
    Image.new("RGB", (48, 32), "red").save(tmp_path / "result", "PNG")
    Image.new("RGBA", (48, 32), (0, 0, 0, 255)).save(tmp_path / "mask", "PNG")
    step = Composite(ImageRef("image"), ImageRef("mask"))
    companions = {step.image: tmp_path / "photo", step.mask: tmp_path / "mask"}

    info = finish_file(tmp_path / "result", (step, Encode(Format.PNG, keep=step.image)), companions, tmp_path / "out")

    assert (info.orientation, info.metadata) == (1, False)
    with Image.open(tmp_path / "out") as image:
        assert shows(image)
