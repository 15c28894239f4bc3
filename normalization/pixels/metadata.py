"""EXIF that travels along when the caller asks for it: what still holds for the new picture, and nothing that shows the old one."""

from PIL import Image
from PIL.ExifTags import IFD, Base

_NO_LONGER_TRUE = frozenset(
    {
        Base.ImageWidth,
        Base.ImageLength,
        Base.BitsPerSample,
        Base.Compression,
        Base.PhotometricInterpretation,
        Base.SamplesPerPixel,
        Base.PlanarConfiguration,
        Base.StripOffsets,
        Base.RowsPerStrip,
        Base.StripByteCounts,
        Base.JpegIFOffset,
        Base.JpegIFByteCount,
        Base.WhitePoint,
        Base.PrimaryChromaticities,
        Base.YCbCrCoefficients,
        Base.YCbCrSubSampling,
        Base.YCbCrPositioning,
        Base.ReferenceBlackWhite,
        Base.InterColorProfile,
        Base.ExifOffset,
        Base.GPSInfo,
    }
)
"""How the old file stored its pixels, and pointers, which are written anew."""
_NO_LONGER_TRUE_IN_EXIF = frozenset(
    {
        Base.ExifImageWidth,
        Base.ExifImageHeight,
        Base.ComponentsConfiguration,
        Base.CompressedBitsPerPixel,
        Base.ExifInteroperabilityOffset,
    }
)
_MAKER_NOTE = 0x927C
_SRGB = 1
_MAX_BYTES = 65_533 - len(b"Exif\x00\x00")
"""What a JPEG's segment holds. Source: EXIF 2.32 (CIPA DC-008), section 4.7.2."""


def kept_exif(image: Image.Image) -> bytes:
    """The EXIF of `image` for a picture made from it: upright, in sRGB, without preview pictures; empty if there is none.

    Camera, time, author and place stay: whoever asks to keep metadata means them. A maker's note is left out where all together
    would not fit into a JPEG.

    Args:
        image: As Pillow opened it, not cleaned.

    Raises:
        OSError, ValueError, SyntaxError, struct.error: By Pillow, for EXIF that is damaged.
    """
    found = image.getexif()
    # A tag of every picture by itself says nothing.
    told = {tag: value for tag, value in found.items() if tag not in _NO_LONGER_TRUE and tag != Base.Orientation}
    camera = {tag: value for tag, value in found.get_ifd(IFD.Exif).items() if tag not in _NO_LONGER_TRUE_IN_EXIF}
    place = found.get_ifd(IFD.GPSInfo)
    if not (told or camera or place):
        return b""
    whole = _written(told, camera, place)
    if len(whole) <= _MAX_BYTES:
        return whole
    camera.pop(_MAKER_NOTE, None)
    smaller = _written(told, camera, place)
    return smaller if len(smaller) <= _MAX_BYTES else b""


def _written(told: dict[int, object], camera: dict[int, object], place: dict[int, object]) -> bytes:
    block = Image.Exif()
    for tag, value in told.items():
        block[tag] = value
    block[Base.Orientation] = 1
    if camera:
        block.get_ifd(IFD.Exif).update(camera | ({Base.ColorSpace: _SRGB} if Base.ColorSpace in camera else {}))
    if place:
        block.get_ifd(IFD.GPSInfo).update(place)
    return block.tobytes()
