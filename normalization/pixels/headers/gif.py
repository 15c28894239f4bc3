"""GIF. Source: https://www.w3.org/Graphics/GIF/spec-gif89a.txt."""

from dataclasses import replace

from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.pixels.headers.reader import Reader, damaged

_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B
_GRAPHIC_CONTROL, _APPLICATION = 0xF9, 0xFF


def read_gif(reader: Reader) -> ImageInfo:
    """Walk all blocks to the trailer, counting pictures."""
    reader.skip(6)
    size = _size(reader.take(4))
    _skip_colors(reader, reader.take(3)[0])
    info = ImageInfo(Format.GIF, size, colors="palette", frames=0)
    while (block := reader.number(1)) != _TRAILER:
        if block == _EXTENSION:
            info = _extension(reader, info)
        elif block == _IMAGE:
            info = _image(reader, info)
        else:
            raise damaged("something between its blocks is not GIF")
    if not info.frames:
        raise damaged("it holds no pixels")
    return info


def _size(packed: bytes) -> Size:
    return Size(int.from_bytes(packed[:2], "little"), int.from_bytes(packed[2:4], "little"))


def _skip_colors(reader: Reader, flags: int) -> None:
    if flags & 0x80:
        reader.skip(3 * 2 ** ((flags & 7) + 1))


def _extension(reader: Reader, info: ImageInfo) -> ImageInfo:
    label, head = reader.number(1), b""
    if label in (_GRAPHIC_CONTROL, _APPLICATION):
        head = reader.peek(12)
    _skip_blocks(reader)
    if label == _GRAPHIC_CONTROL and len(head) > 1 and head[1] & 1:
        return replace(info, alpha=True)
    if label == _APPLICATION and head[1:].startswith(b"XMP Data"):
        return replace(info, metadata=True)
    return info


def _image(reader: Reader, info: ImageInfo) -> ImageInfo:
    place, flags = reader.take(8), reader.number(1)
    left, top = _size(place[:4])
    width, height = _size(place[4:])
    _skip_colors(reader, flags)
    reader.skip(1)
    _skip_blocks(reader)
    if info.frames:
        return replace(info, frames=info.frames + 1)
    # Decoders enlarge the screen for a first picture that reaches beyond it.
    stored = Size(max(info.stored.width, left + width), max(info.stored.height, top + height))
    return replace(info, frames=1, stored=stored)


def _skip_blocks(reader: Reader) -> None:
    while length := reader.number(1):
        reader.skip(length)
