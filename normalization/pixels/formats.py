"""One row per picture format that the gateway reads and writes, and what is known of a picture from its header."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height


class Format(StrEnum):
    """The formats the gateway reads, and most of them writes; the value is the name in `output_format`."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    GIF = "gif"
    AVIF = "avif"
    HEIC = "heic"


@dataclass(frozen=True, slots=True)
class FormatFacts:
    """What one format can carry."""

    mime: str
    suffix: str
    alpha: bool
    """Whether pixels can be transparent."""
    quality: bool
    """Whether `output_compression` means something: a lossy encoder with a quality setting."""
    max_edge: int
    """The longest edge in pixels that the format can store and its usual library writes and reads."""
    source: str
    """Where `max_edge` is written down."""
    animated: bool = False
    """Whether it can hold several frames and their times."""
    exif: bool = True
    """Whether it has a place for EXIF."""
    writes: bool = True
    """False for a format that is only read."""


FORMATS = MappingProxyType(
    {
        Format.PNG: FormatFacts("image/png", "png", True, False, 2**31 - 1, "https://www.w3.org/TR/png-3/#11IHDR", animated=True),
        Format.JPEG: FormatFacts(
            "image/jpeg", "jpg", False, True, 65_500, "https://github.com/libjpeg-turbo/libjpeg-turbo/blob/main/src/jmorecfg.h"
        ),
        Format.WEBP: FormatFacts(
            "image/webp", "webp", True, True, 16_383, "https://developers.google.com/speed/webp/docs/riff_container", animated=True
        ),
        Format.GIF: FormatFacts(
            "image/gif", "gif", True, False, 65_535, "https://www.w3.org/Graphics/GIF/spec-gif89a.txt", animated=True, exif=False
        ),
        Format.AVIF: FormatFacts(
            "image/avif",
            "avif",
            True,
            True,
            32_768,
            "https://github.com/AOMediaCodec/libavif/blob/main/include/avif/avif.h",
            animated=True,
        ),
        # The extra `heic` reads it. Nobody asks for it, and its encoders cost licences.
        Format.HEIC: FormatFacts("image/heic", "heic", True, False, 2**32 - 1, "ISO/IEC 23008-12, section 6.5.3", writes=False),
    }
)

OUTPUT_FORMATS = tuple(kind for kind, facts in FORMATS.items() if facts.writes)
"""What can be asked for in `output_format`."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What the header of a picture says. Nothing here needed the pixels."""

    format: Format
    stored: Size
    """Size as stored, before the EXIF orientation is applied."""
    orientation: int = 1
    """EXIF orientation, 1..8; 1 is upright."""
    alpha: bool = False
    """Whether the picture has an alpha channel or a transparent colour."""
    bits: int = 8
    """Bits per channel."""
    colors: str = "rgb"
    """`rgb`, `gray`, `palette` or `cmyk`."""
    profile: bool = False
    """Whether an ICC profile is embedded."""
    metadata: bool = False
    """Whether EXIF or XMP is embedded (camera, place, author)."""
    frames: int = 1
    coded: Size | None = None
    """What is decoded, where the file itself has it cut to `stored` afterwards: HEIC's encoders fill up to whole blocks."""

    @property
    def size(self) -> Size:
        """Size as a person sees it, orientation applied."""
        width, height = self.stored
        return Size(height, width) if self.orientation >= 5 else self.stored

    def __str__(self) -> str:
        return f"{self.format} {self.size}"


def needs_cleaning(info: ImageInfo, accepted: Collection[Format]) -> bool:
    """Whether a picture must pass through `prepare.clean` before it is sent, by its header alone.

    It may go as it is if every program sees the same picture in it (upright, one frame, at most 8 bits, no profile, not CMYK), if
    it carries no metadata, since a photograph's place must not travel, and if its format is accepted (none named: all that the
    gateway writes; what it only reads, few others read).
    """
    plain = info.orientation == 1 and not info.profile and not info.metadata
    simple = info.bits <= 8 and info.colors != "cmyk" and info.frames == 1
    return not (plain and simple and info.format in OUTPUT_FORMATS and (not accepted or info.format in accepted))
