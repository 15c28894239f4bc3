"""Small pictures made in code, good and bad."""

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

SIZE = (48, 36)


def picture(size: tuple[int, int] = SIZE, mode: str = "RGB") -> Image.Image:
    """Smooth colours with a hard-edged square; with alpha, the left third is clear."""
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns * 255 / width, rows * 255 / height, np.full((height, width), 90.0)], axis=2).astype(np.uint8)
    pixels[height // 4 : height // 2, width // 2 : width * 3 // 4] = (230, 30, 40)
    image = Image.fromarray(pixels, "RGB").convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(np.where(columns < width // 3, 0, 255).astype(np.uint8)))
    return image


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """A picture as a file's bytes."""
    stream = BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def png(size: tuple[int, int] = SIZE, mode: str = "RGB") -> bytes:
    """A small PNG."""
    return encoded(picture(size, mode))


def sideways_jpeg() -> bytes:
    """A JPEG stored on its side; its EXIF orientation makes it 36 wide and 48 high."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(), "JPEG", exif=exif, quality=95)


def swapped_profile() -> bytes:
    """An ICC profile that is sRGB with red and green exchanged: a picture that calls something red means green."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return srgb.replace(b"rXYZ", b"?XYZ").replace(b"gXYZ", b"rXYZ").replace(b"?XYZ", b"gXYZ")


def bomb() -> bytes:
    """A PNG of 400 million pixels in about 50 kB."""
    edge = 20_000
    row = b"\0" * (1 + edge // 8)
    squeeze = zlib.compressobj(9)
    body = b"".join(squeeze.compress(row * 200) for _ in range(edge // 200)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", edge, edge, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG. Source: PNG specification, third edition, section 5.3."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def noise_png(size_bytes: int) -> bytes:
    """A PNG of at least so many bytes, which does not compress."""
    edge = int((size_bytes / 3) ** 0.5) + 1
    return encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (edge, edge, 3), np.uint8), "RGB"))


def look(content: bytes) -> Image.Image:
    """Decode a delivered picture to its last pixel."""
    image = Image.open(BytesIO(content))
    image.load()
    return image
