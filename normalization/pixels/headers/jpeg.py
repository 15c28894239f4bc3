"""JPEG. Source: ITU-T T.81, annex B; APP segments: EXIF 2.32, ICC.1:2022 annex B, Adobe technical note 5116."""

import re
from dataclasses import dataclass, replace

from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.pixels.headers.exif import orientation
from normalization.pixels.headers.reader import PIECE_BYTES, InvalidImage, Reader, damaged, truncated

_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_DECODABLE = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
"""Baseline, extended and progressive; the lossless and hierarchical kinds have no common decoder."""
_SCAN, _END, _APP1, _APP2, _APP13 = 0xDA, 0xD9, 0xE1, 0xE2, 0xED
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a segment."""
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_COLORS = {1: "gray", 3: "rgb", 4: "cmyk"}
_XMP = (b"http://ns.adobe.com/xap/1.0/", b"http://ns.adobe.com/xmp/extension/")


@dataclass(frozen=True, slots=True)
class _Extras:
    """What the application segments say."""

    orientation: int | None = None
    profile: bool = False
    metadata: bool = False


def read_jpeg(reader: Reader) -> ImageInfo:
    """Walk all segments and scans to the end mark. What follows it (previews, motion photos) is left alone."""
    reader.skip(2)
    info: ImageInfo | None = None
    extras = _Extras()
    scans = 0
    while (marker := _marker(reader)) != _END:
        if marker in _ALONE:
            continue
        length = reader.number(2) - 2
        if length < 0:
            raise damaged("a segment has no length")
        segment = reader.take(length)
        if marker in _FRAMES:
            if info is not None:
                raise damaged("it has two headers")
            info = _frame(marker, segment)
        elif marker == _SCAN:
            scans += 1
            _skip_scan(reader)
        else:
            extras = _told(extras, marker, segment)
    if info is None or not scans:
        raise damaged("it holds no pixels")
    return replace(info, orientation=extras.orientation or 1, profile=extras.profile, metadata=extras.metadata)


def _marker(reader: Reader) -> int:
    if reader.number(1) != 0xFF:
        raise damaged("something between its segments is not JPEG")
    code = 0xFF
    while code == 0xFF:
        code = reader.number(1)
    if code == 0:
        raise damaged("something between its segments is not JPEG")
    return code


def _frame(marker: int, segment: bytes) -> ImageInfo:
    if marker not in _DECODABLE:
        raise InvalidImage(
            "unsupported_file_mimetype", "this kind of JPEG (lossless or hierarchical) cannot be read; convert it to png"
        )
    if len(segment) < 6 or segment[5] not in _COLORS:
        raise damaged("its header makes no sense")
    if segment[0] != 8:
        raise InvalidImage(
            "unsupported_file_mimetype", f"a JPEG of {segment[0]} bits per channel cannot be read; convert it to png"
        )
    height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    return ImageInfo(Format.JPEG, Size(width, height), colors=_COLORS[segment[5]])


def _told(extras: _Extras, marker: int, segment: bytes) -> _Extras:
    """`extras` with what one more application segment tells. Comments are left out: they name the encoder."""
    if marker == _APP1 and segment.startswith(b"Exif\x00\x00"):
        # Of several blocks the first one counts, as for every viewer.
        return replace(extras, metadata=True, orientation=extras.orientation or orientation(segment))
    if (marker == _APP1 and segment.startswith(_XMP)) or (marker == _APP13 and segment.startswith(b"Photoshop 3.0")):
        return replace(extras, metadata=True)
    if marker == _APP2 and segment.startswith(b"ICC_PROFILE\x00"):
        return replace(extras, profile=True)
    return extras


def _skip_scan(reader: Reader) -> None:
    """Move to the marker after the entropy-coded data."""
    while reader.left:
        piece = reader.peek(PIECE_BYTES)
        if found := _MARKER_IN_SCAN.search(piece):
            return reader.skip(found.start())
        # A marker may straddle two pieces: a last 0xFF is looked at again.
        keep = 1 if piece.endswith(b"\xff") and len(piece) < reader.left else 0
        reader.skip(len(piece) - keep)
    raise truncated()
