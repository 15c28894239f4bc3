"""PNG and APNG. Source: W3C PNG specification, third edition, https://www.w3.org/TR/png-3/."""

import zlib
from dataclasses import dataclass, replace

from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.pixels.headers.exif import orientation
from normalization.pixels.headers.reader import PIECE_BYTES, Reader, damaged

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_COLORS = {0: "gray", 2: "rgb", 3: "palette", 4: "gray", 6: "rgb"}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_KEPT_BYTES = 64
"""Of most chunks only the beginning matters."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    kind: bytes
    head: bytes
    """Its beginning; all of it for EXIF up to `PIECE_BYTES`."""


def read_png(reader: Reader) -> ImageInfo:
    """Walk all chunks to the end, checking the sums of those that matter to the pixels."""
    reader.skip(len(SIGNATURE))
    info = _first(_next(reader))
    pixels = False
    while (chunk := _next(reader)).kind != b"IEND":
        if chunk.kind == b"IHDR":
            raise damaged("it has two headers")
        pixels = pixels or chunk.kind == b"IDAT"
        info = _told(info, chunk)
    if not pixels:
        raise damaged("it holds no pixels")
    return info


def _first(chunk: _Chunk) -> ImageInfo:
    if chunk.kind != b"IHDR" or len(chunk.head) != 13:
        raise damaged("it does not begin with its header")
    width, height = int.from_bytes(chunk.head[:4], "big"), int.from_bytes(chunk.head[4:8], "big")
    bits, kind = chunk.head[8], chunk.head[9]
    if bits not in _DEPTHS.get(kind, ()):
        raise damaged("its colour type does not exist")
    return ImageInfo(Format.PNG, Size(width, height), alpha=kind >= 4, bits=bits, colors=_COLORS[kind])


def _told(info: ImageInfo, chunk: _Chunk) -> ImageInfo:
    """`info` with what one more chunk tells."""
    match chunk.kind:
        case b"tRNS":
            return replace(info, alpha=True)
        case b"iCCP":
            return replace(info, profile=True)
        case b"eXIf":
            return replace(info, metadata=True, orientation=orientation(chunk.head))
        case b"acTL":
            return replace(info, frames=max(1, int.from_bytes(chunk.head[:4], "big")))
        case kind if kind in _TEXT and not chunk.head.startswith(b"Software\x00"):
            # XMP, IPTC and prompts travel as text; only the name of the program is no secret.
            return replace(info, metadata=True)
        case _:
            return info


def _next(reader: Reader) -> _Chunk:
    length, kind = reader.number(4), reader.take(4)
    if length >= 2**31:
        raise damaged("a chunk is longer than PNG allows")
    if not kind.isalpha():
        raise damaged("something between its chunks is not PNG")
    critical = kind[:1].isupper()
    head = reader.take(min(length, PIECE_BYTES if critical or kind == b"eXIf" else _KEPT_BYTES))
    if not critical:  # decoders pass over broken ones, and so may we
        reader.skip(length - len(head) + 4)
        return _Chunk(kind, head)
    crc = zlib.crc32(head, zlib.crc32(kind))
    for done in range(len(head), length, PIECE_BYTES):
        crc = zlib.crc32(reader.take(min(PIECE_BYTES, length - done)), crc)
    if reader.number(4) != crc:
        raise damaged("a checksum is wrong")
    return _Chunk(kind, head[:_KEPT_BYTES])
