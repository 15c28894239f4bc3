"""Look at a picture's header: what it is, how large, how it is turned, and whether the file is whole. Nothing is decoded."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import BinaryIO

from normalization.pixels.formats import Format, ImageInfo
from normalization.pixels.headers.gif import read_gif
from normalization.pixels.headers.heif import BRANDS, read_heif
from normalization.pixels.headers.jpeg import read_jpeg
from normalization.pixels.headers.png import SIGNATURE, read_png
from normalization.pixels.headers.reader import InvalidImage, Reader, damaged
from normalization.pixels.headers.webp import read_webp

__all__ = ["SNIFF_BYTES", "InvalidImage", "ProbeLimits", "describe", "probe", "sniff"]

SNIFF_BYTES = 64
"""How much of a file `sniff` and `describe` want to see."""


@dataclass(frozen=True, slots=True)
class ProbeLimits:
    """What is still a picture and what is an attack."""

    max_pixels: int = 64_000_000
    """Width times height of one frame."""
    max_frames: int = 500
    heic: bool = False
    """Whether HEIC can be decoded: `normalization.pixels.heic.is_installed()`."""
    max_edge: int = 32_768
    """Width or height, pixels: rows and columns have costs of their own, however few pixels are in them."""


_READERS: MappingProxyType[Format, Callable[[Reader], ImageInfo]] = MappingProxyType(
    {
        Format.PNG: read_png,
        Format.JPEG: read_jpeg,
        Format.WEBP: read_webp,
        Format.GIF: read_gif,
        Format.AVIF: partial(read_heif, kind=Format.AVIF),
        Format.HEIC: partial(read_heif, kind=Format.HEIC),
    }
)


def probe(stream: BinaryIO, limits: ProbeLimits | None = None) -> ImageInfo:
    """Read what the header says and walk the file's structure to its end.

    Args:
        stream: Seekable and readable, at any position. It is read in pieces of at most 64 KiB, so memory stays small
            whatever the file holds; time is bounded by the file's length and a fixed number of pieces.
        limits: What to refuse before anybody decodes it.

    Raises:
        InvalidImage: If it is not a picture of a known format, is truncated or damaged, or is beyond the limits.
    """
    limits = limits or ProbeLimits()
    reader = Reader(stream)
    head = reader.peek(SNIFF_BYTES)
    kind = sniff(head)
    if kind is None:
        raise _refusal(head)
    if kind is Format.HEIC and not limits.heic:
        raise InvalidImage("unsupported_file_mimetype", _NO_HEIC)
    info = _READERS[kind](reader)
    _check(info, limits)
    return info


def sniff(head: bytes) -> Format | None:
    """The format that a file's first bytes (about `SNIFF_BYTES`) announce; None for what the gateway never reads."""
    if head.startswith(SIGNATURE):
        return Format.PNG
    if head.startswith(b"\xff\xd8\xff"):
        return Format.JPEG
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return Format.WEBP
    if head.startswith((b"GIF87a", b"GIF89a")):
        return Format.GIF
    return next((BRANDS[brand] for brand in _brands(head) if brand in BRANDS), None)


def describe(head: bytes) -> str | None:
    """What a file that is not a picture of ours seems to be, for people; None if its beginning is not known."""
    brands = _brands(head)
    if brands:
        return next((name for start, name in _MEDIA_BRANDS for brand in brands if brand.startswith(start)), "a video")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    binary = (name for start, name in _BINARY_BEGINNINGS if head.startswith(start))
    written = (name for start, name in _TEXT_BEGINNINGS if text.startswith(start))
    return next(binary, None) or next(written, None)


_NO_HEIC = (
    "this is a HEIC picture; HEIC is read with the extra image-gateway[heic], which is not installed here;"
    " convert it to png, jpeg or webp"
)

_MEDIA_BRANDS = ((b"hei", "a HEIC picture"), (b"hev", "a HEIC picture"), (b"mif1", "a HEIF picture"), (b"msf1", "a HEIF picture"))

_BINARY_BEGINNINGS = (
    (b"BM", "a BMP picture"),
    (b"II*\x00", "a TIFF picture"),
    (b"MM\x00*", "a TIFF picture"),
    (b"\x00\x00\x01\x00", "an icon (ICO)"),
    (b"8BPS", "a Photoshop file"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 picture"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"RIFF", "a sound or video file"),
)

_TEXT_BEGINNINGS = (
    (b"<svg", "an SVG drawing"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "an SVG drawing or other XML"),
    (b"data:", "a data URL as text"),
    (b"http://", "an address as text"),
    (b"https://", "an address as text"),
    (b"{", "JSON text"),
)


def _brands(head: bytes) -> tuple[bytes, ...]:
    """The brands of an ISO media file, as far as `head` reaches: the major one first."""
    if head[4:8] != b"ftyp":
        return ()
    known = head[8 : max(12, min(len(head), int.from_bytes(head[:4], "big")))]
    return (known[:4], *(known[at : at + 4] for at in range(8, len(known) - 3, 4)))


def _refusal(head: bytes) -> InvalidImage:
    if not head:
        return InvalidImage("invalid_image_file", "the file is empty; send a png, jpeg, webp, gif or avif picture")
    found = describe(head)
    if found is None:
        return InvalidImage("invalid_image_file", "this is not a picture; send png, jpeg, webp, gif or avif")
    return InvalidImage("unsupported_file_mimetype", f"this is {found}; convert it to png, jpeg, webp, gif or avif")


def _check(info: ImageInfo, limits: ProbeLimits) -> None:
    size = info.stored
    if not size.pixels:
        raise damaged(f"it is {size} pixels large")
    decoded = max(size.pixels, info.coded.pixels if info.coded else 0)
    if decoded > limits.max_pixels:
        raise InvalidImage(
            "too_many_pixels",
            f"the picture has {size if info.coded is None else info.coded} pixels, {decoded / 1e6:.1f} million;"
            f" at most {limits.max_pixels / 1e6:g} million are taken; make it smaller",
        )
    longest = max(edge for extent in (size, info.coded or size) for edge in (extent.width, extent.height))
    if longest > limits.max_edge:
        raise InvalidImage(
            "too_many_pixels", f"the picture has an edge of {longest} pixels; at most {limits.max_edge} are taken; make it smaller"
        )
    if info.frames > limits.max_frames:
        raise InvalidImage(
            "too_many_frames", f"the picture has {info.frames} frames; at most {limits.max_frames} are taken; send fewer"
        )
