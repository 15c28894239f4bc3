"""Opening pictures that somebody sent: few formats, bounded size, upright, in one of four modes."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from normalization.pixels.formats import OUTPUT_FORMATS
from providers.local.engine.model import InputRefused

_FORMATS = tuple(format_.name for format_ in OUTPUT_FORMATS)


def open_picture(path: Path, max_pixels: int) -> Image.Image:
    """Decode the picture at `path`: mode L, LA, RGB or RGBA, orientation applied, 8 bits, the first frame if there are several.

    An ICC profile that still describes the pixels is in `info["icc_profile"]`.

    Raises:
        InputRefused: If it is not a picture, cannot be decoded, or has more than `max_pixels` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit follows, and what is odd but readable is read
            with Image.open(path, formats=_FORMATS) as image:
                _refuse_large(image, max_pixels)
                image.load()
                return _in_working_mode(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise InputRefused(f"the picture has more than {max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise InputRefused(f"cannot identify image file: it is none of {', '.join(_FORMATS)}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise on broken files
        raise InputRefused(f"cannot decode image file: {error}") from error


def _refuse_large(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise InputRefused(f"the picture has {image.width}x{image.height} pixels; at most {max_pixels} are taken")


def _in_working_mode(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # 16-bit gray: the upper byte, as Pillow does by itself for 16-bit colour
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "CMYK":
        return _cmyk_to_srgb(image, profile)
    mode = _working_mode(image)
    if image.mode != mode:
        image = image.convert(mode)
    image.info = {"icc_profile": profile} if profile else {}
    return image


def _working_mode(image: Image.Image) -> str:
    gray = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return "LA" if gray else "RGBA"
    return "L" if gray else "RGB"


def _cmyk_to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Leave ink for light, by the picture's own profile if it has a usable one."""
    image.info = {}
    if profile:
        try:
            converted = ImageCms.profileToProfile(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), _srgb(), outputMode="RGB")
        except ImageCms.PyCMSError:
            converted = None  # a profile that does not fit its picture says nothing about it
        if converted is not None:
            converted.info = {}
            return converted
    return image.convert("RGB")


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] - Pillow's core profile has no stubs
