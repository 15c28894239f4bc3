"""WebP. Source: https://developers.google.com/speed/webp/docs/riff_container; RFC 6386 section 9.1 (VP8), RFC 9649 (VP8L)."""

from dataclasses import dataclass, replace

from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.pixels.headers.exif import orientation
from normalization.pixels.headers.reader import PIECE_BYTES, Reader, damaged, truncated

_ALPHA, _EXIF = 0x10, 0x08
"""Flags of VP8X."""
_PIXELS = (b"VP8 ", b"VP8L", b"ANMF")


@dataclass(frozen=True, slots=True)
class _Chunk:
    kind: bytes
    head: bytes
    """Its beginning; all of it for EXIF up to `PIECE_BYTES`."""


def read_webp(reader: Reader) -> ImageInfo:
    """Walk all chunks of the container to its end."""
    reader.skip(4)
    end = reader.number(4, "little") + 8
    reader.skip(4)
    if end > reader.size:
        raise truncated()
    info = _first(first := _next(reader))
    extended = first.kind == b"VP8X"
    pixels = int(not extended)
    while end - reader.position >= 8:
        chunk = _next(reader)
        pixels += chunk.kind in _PIXELS
        info = _told(info, chunk)
    if not pixels:
        raise damaged("it holds no pixels")
    # Viewers do not look for an orientation that is not announced.
    turned = info.orientation if extended and first.head[0] & _EXIF else 1
    return replace(info, frames=max(1, info.frames), orientation=turned)


def _next(reader: Reader) -> _Chunk:
    kind, length = reader.take(4), reader.number(4, "little")
    head = reader.take(min(length, PIECE_BYTES if kind == b"EXIF" else 10))
    # Chunks are padded to even lengths; some writers forget the last byte.
    reader.skip(min(length + length % 2 - len(head), max(reader.left, length - len(head))))
    return _Chunk(kind, head)


def _first(chunk: _Chunk) -> ImageInfo:
    head = chunk.head
    match chunk.kind:
        case b"VP8X" if len(head) == 10:
            size = Size(1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little"))
            return ImageInfo(Format.WEBP, size, alpha=bool(head[0] & _ALPHA))
        case b"VP8L" if len(head) >= 5 and head[0] == 0x2F:
            packed = int.from_bytes(head[1:5], "little")
            size = Size(1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF))
            return ImageInfo(Format.WEBP, size, alpha=bool(packed >> 28 & 1))
        case b"VP8 " if len(head) == 10 and head[3:6] == b"\x9d\x01\x2a":
            size = Size(int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF)
            return ImageInfo(Format.WEBP, size)
        case _:
            raise damaged("it does not begin with its header")


def _told(info: ImageInfo, chunk: _Chunk) -> ImageInfo:
    """`info` with what one more chunk tells. Chunks are believed rather than the flags that announce them."""
    match chunk.kind:
        case b"ICCP":
            return replace(info, profile=True)
        case b"EXIF":
            return replace(info, metadata=True, orientation=orientation(chunk.head))
        case b"XMP ":
            return replace(info, metadata=True)
        case b"ALPH":
            return replace(info, alpha=True)
        case b"ANIM":
            return replace(info, frames=0)
        case b"ANMF":
            return replace(info, frames=info.frames + 1)
        case _:
            return info
