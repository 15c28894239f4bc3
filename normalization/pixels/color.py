"""Colours as everybody expects them: sRGB, 8 bits per channel, no profile left to interpret."""

from io import BytesIO

from PIL import Image, ImageCms, ImageMath

_MODE_OF_SPACE = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
"""The colour space in bytes 16 to 19 of a profile, with Pillow's mode for such pixels. Source: ICC.1:2022, section 7.2.8."""

_DEEP_GRAY = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def to_srgb(image: Image.Image) -> Image.Image:
    """The picture in sRGB, mode RGB, RGBA or L, 8 bits; nothing is left in `info`.

    An embedded ICC profile is followed (relative colorimetric, with black point compensation, as browsers and print software
    do); one that is broken or belongs to another kind of pixels is passed over. Transparency of every kind becomes an alpha
    channel.
    """
    profile = image.info.get("icc_profile")
    plain = _plain(image)
    result = (_converted(plain, profile) if profile else None) or _unmanaged(plain)
    result.info = {}
    return result


def has_alpha(image: Image.Image) -> bool:
    """Whether pixels of this (plain) picture can be transparent."""
    return image.mode in ("RGBA", "LA", "RGBa", "La")


def flattened(image: Image.Image, background: str) -> Image.Image:
    """The picture on `background` (`#rrggbb`), mode RGB; itself if it is opaque by its mode."""
    if not has_alpha(image):
        return image
    canvas = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")


def _plain(image: Image.Image) -> Image.Image:
    """The same colours without palettes, colour keys or more than 8 bits: RGB, RGBA, L or CMYK."""
    if image.mode in _DEEP_GRAY:
        return _eight_bits(image)
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("1", "F"):
        return image.convert("L")
    if image.mode in ("RGB", "L", "CMYK"):
        return image.copy()
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 bits as 8, scaled where `convert` would clip; its colour key, if there is one, as alpha."""
    deep = image.convert("I")
    gray = deep.point(lambda value: value * (1 / 257) + 0.5).convert("L")
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return gray
    opaque = ImageMath.lambda_eval(lambda args: args["convert"](args["notequal"](args["deep"], key) * 255, "L"), deep=deep)
    return Image.merge("LA", (gray, opaque)).convert("RGBA")


def _converted(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The picture moved from its profile to sRGB; None if the profile cannot be followed."""
    pixels = _as(image, _MODE_OF_SPACE.get(profile[16:20]))
    if pixels is None:
        return None
    try:
        moved = ImageCms.profileToProfile(
            pixels,
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] - Pillow leaves its result untyped
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if moved is not None and has_alpha(image):
        moved.putalpha(image.getchannel("A"))
    return moved


def _as(image: Image.Image, mode: str | None) -> Image.Image | None:
    """The opaque pixels of `image` in the profile's mode; None where a profile cannot have been meant for them."""
    opaque = image.convert("RGB") if has_alpha(image) else image
    if opaque.mode == mode:
        return opaque
    if mode == "RGB" and opaque.mode == "L":
        return opaque.convert("RGB")
    return None


def _unmanaged(image: Image.Image) -> Image.Image:
    return image.convert("RGB") if image.mode == "CMYK" else image
