"""The one fact of EXIF that decides how a picture looks: its orientation.

Source: EXIF 2.32 (CIPA DC-008), section 4.6; TIFF 6.0, section 2.
"""

import struct

_PREFIX = b"Exif\x00\x00"
_ORIENTATION = 0x0112
_SHORT, _LONG = 3, 4
_ENTRY = 12


def orientation(exif: bytes) -> int:
    """The orientation 1..8 in a block of EXIF; 1 where it is missing, broken or out of range."""
    while exif.startswith(_PREFIX):
        exif = exif[len(_PREFIX) :]
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        value = _find(exif, order)
    except struct.error:
        return 1
    return value if 1 <= value <= 8 else 1


def _find(tiff: bytes, order: str) -> int:
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    for index in range(count):
        at = start + 2 + index * _ENTRY
        tag, kind, values = struct.unpack_from(f"{order}HHI", tiff, at)
        if tag == _ORIENTATION and values == 1 and kind in (_SHORT, _LONG):
            (value,) = struct.unpack_from(f"{order}{'H' if kind == _SHORT else 'I'}", tiff, at + 8)
            return value
    return 1
