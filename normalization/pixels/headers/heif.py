"""HEIF, whose pictures are AVIF or HEIC by their codec alone.

Source: ISO/IEC 14496-12 (boxes), 23008-12 (HEIF: items, properties, brands); https://aomediacodec.github.io/av1-avif/.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.pixels.headers.reader import Reader, damaged, truncated

_CODECS = (
    (Format.AVIF, (b"avif", b"avis")),
    (Format.HEIC, (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")),
)
BRANDS: Mapping[bytes, Format] = {brand: kind for kind, brands in _CODECS for brand in brands}
"""The brands that name a codec. `mif1` and `msf1` only say that it is HEIF."""

_ALPHA = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1")
_TURNED = {0: 1, 1: 8, 2: 3, 3: 6}
"""Quarter turns against the clock (`irot`), as the EXIF orientation that looks the same."""
_MIRRORED = {0: (4, 2), 1: (5, 7), 2: (2, 4), 3: (7, 5)}
"""The same followed by a mirror (`imir`): top and bottom exchanged (axis 0), left and right exchanged (axis 1)."""
_TRACK = (b"trak", b"mdia", b"minf", b"stbl")


@dataclass(frozen=True, slots=True)
class _Box:
    kind: bytes
    start: int
    """Of its content, as a position in the file."""
    end: int


@dataclass(frozen=True, slots=True)
class _Properties:
    """Of one item: its `ipco` boxes, as far as they matter."""

    size: Size | None = None
    cut: Size | None = None
    bits: int | None = None
    gray: bool = False
    profile: bool = False
    turns: int = 0
    mirror: int | None = None
    alpha: bool = False


@dataclass(slots=True)
class _Meta:
    """What the `meta` box says, gathered while its boxes pass."""

    primary: int | None = None
    properties: list[_Properties] = field(default_factory=list["_Properties"])
    of_item: dict[int, list[int]] = field(default_factory=dict[int, "list[int]"])
    """Item to the properties it has, counted from 1."""
    described: bool = False
    """Whether EXIF or XMP is among the items."""
    located: bool = False


def read_heif(reader: Reader, kind: Format) -> ImageInfo:
    """Walk the boxes of the file and of its `meta` box, and check that what they point at exists."""
    meta: _Meta | None = None
    frames = 1
    for box in _boxes(reader, 0, reader.size):
        if box.kind == b"meta" and meta is None:
            meta = _read_meta(reader, box)
        elif box.kind == b"moov":
            frames = max(frames, _frames(reader, box))
    if meta is None or not meta.located:
        raise damaged("it holds no pixels")
    return replace(_primary(meta, kind), frames=frames, metadata=meta.described, alpha=any(p.alpha for p in meta.properties))


def _boxes(reader: Reader, start: int, end: int) -> Iterator[_Box]:
    """The boxes between two positions. The reader may be moved while they are looked at."""
    while end - start >= 8:
        reader.go(start)
        length, kind = reader.number(4), reader.take(4)
        head = 8
        if length == 1:
            length, head = reader.number(8), 16
        elif length == 0:  # up to the end
            length = end - start
        if length < head:
            raise damaged("a box is shorter than its own head")
        if start + length > end:
            raise truncated()
        yield _Box(kind, start + head, start + length)
        start += length


def _read_meta(reader: Reader, box: _Box) -> _Meta:
    meta = _Meta()
    for part in _boxes(reader, box.start + 4, box.end):
        match part.kind:
            case b"pitm":
                meta.primary = _read_primary(_Cursor(_content(reader, part)))
            case b"iprp":
                _read_properties(reader, part, meta)
            case b"iinf":
                meta.described = _has_description(_content(reader, part))
            case b"iloc":
                meta.located = _check_locations(_Cursor(_content(reader, part)), reader.size)
            case _:
                pass
    return meta


def _content(reader: Reader, box: _Box) -> bytes:
    reader.go(box.start)
    return reader.take(box.end - box.start)


class _Cursor:
    """Numbers out of a box that has been read."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 4
        if len(content) < 4:
            raise damaged("a box is too short")
        self.version = content[0]
        self.flags = int.from_bytes(content[1:4], "big")

    def number(self, length: int) -> int:
        """The next `length` bytes as an unsigned number."""
        piece = self._content[self._at : self._at + length]
        if len(piece) != length:
            raise damaged("a box is too short")
        self._at += length
        return int.from_bytes(piece, "big")


def _read_primary(cursor: _Cursor) -> int:
    return cursor.number(2 if cursor.version == 0 else 4)


def _has_description(items: bytes) -> bool:
    """Whether an `infe` entry is EXIF or XMP; both are found by their type, which stands in the entry as it is."""
    return b"Exif\x00" in items or b"application/rdf+xml" in items


def _check_locations(cursor: _Cursor, file_bytes: int) -> bool:
    """Whether any item has bytes; raises if one lies beyond the end of the file."""
    widths = cursor.number(2)
    offset_width, length_width, base_width = widths >> 12, widths >> 8 & 15, widths >> 4 & 15
    index_width = widths & 15 if cursor.version else 0
    wide = 4 if cursor.version == 2 else 2
    found = False
    for _ in range(cursor.number(wide)):
        cursor.number(wide)
        method = cursor.number(2) & 15 if cursor.version else 0
        cursor.number(2)
        base, extents = cursor.number(base_width), cursor.number(2)
        if not offset_width + length_width + index_width:
            continue  # entries of no bytes, up to 65535 for each item
        for _ in range(extents):
            cursor.number(index_width)
            end = base + cursor.number(offset_width) + cursor.number(length_width)
            if method == 0 and end > file_bytes:
                raise truncated()
        found = found or extents > 0
    return found


def _read_properties(reader: Reader, box: _Box, meta: _Meta) -> None:
    for part in _boxes(reader, box.start, box.end):
        if part.kind == b"ipco":
            meta.properties.extend(_property(reader, each) for each in _boxes(reader, part.start, part.end))
        elif part.kind == b"ipma":
            meta.of_item.update(_associations(_Cursor(_content(reader, part))))


def _property(reader: Reader, box: _Box) -> _Properties:
    reader.go(box.start)
    head = reader.take(min(box.end - box.start, 64))
    match box.kind:
        case b"ispe" if len(head) >= 12:
            return _Properties(size=Size(int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:12], "big")))
        case b"clap" if len(head) >= 16:
            return _Properties(cut=_aperture(head))
        case b"pixi" if len(head) >= 6:
            return _Properties(bits=head[5], gray=head[4] == 1)
        case b"colr":
            return _Properties(profile=head[:4] in (b"prof", b"rICC"))
        case b"irot" if head:
            return _Properties(turns=head[0] & 3)
        case b"imir" if head:
            return _Properties(mirror=head[0] & 1)
        case b"auxC":
            return _Properties(alpha=head[4:].startswith(_ALPHA))
        case _:
            return _Properties()


def _aperture(head: bytes) -> Size | None:
    """The size that is left of the picture, from its fractions; None if they are none."""
    width, over, height, under = (int.from_bytes(head[at : at + 4], "big") for at in (0, 4, 8, 12))
    return Size(width // over, height // under) if over and under else None


def _associations(cursor: _Cursor) -> Iterator[tuple[int, list[int]]]:
    wide = bool(cursor.flags & 1)
    for _ in range(cursor.number(4)):
        item = cursor.number(2 if cursor.version == 0 else 4)
        # The highest bit says that the property is essential.
        yield item, [cursor.number(2) & 0x7FFF if wide else cursor.number(1) & 0x7F for _ in range(cursor.number(1))]


def _primary(meta: _Meta, kind: Format) -> ImageInfo:
    """What the properties of the picture itself say."""
    whole = _Properties()
    for number in meta.of_item.get(meta.primary or 0, ()):
        if 1 <= number <= len(meta.properties):
            whole = _merged(whole, meta.properties[number - 1])
    if whole.size is None:
        raise damaged("it does not say its size")
    turned = _TURNED[whole.turns] if whole.mirror is None else _MIRRORED[whole.turns][whole.mirror]
    colors = "gray" if whole.gray else "rgb"
    # Of AVIF, Pillow's decoder shows all.
    cut = whole.cut if kind is Format.HEIC and whole.cut and whole.cut != whole.size else None
    info = ImageInfo(kind, whole.size, orientation=turned, bits=whole.bits or 8, colors=colors, profile=whole.profile)
    return replace(info, stored=cut, coded=whole.size) if cut else info


def _merged(one: _Properties, other: _Properties) -> _Properties:
    return _Properties(
        size=one.size or other.size,
        cut=one.cut or other.cut,
        bits=one.bits or other.bits,
        gray=one.gray or other.gray,
        profile=one.profile or other.profile,
        turns=one.turns or other.turns,
        mirror=one.mirror if other.mirror is None else other.mirror,
        alpha=one.alpha or other.alpha,
    )


def _frames(reader: Reader, box: _Box, path: tuple[bytes, ...] = _TRACK) -> int:
    """The longest track's number of samples."""
    if not path:
        return max((_samples(reader, each) for each in _boxes(reader, box.start, box.end) if each.kind == b"stsz"), default=1)
    inner = (each for each in _boxes(reader, box.start, box.end) if each.kind == path[0])
    return max((_frames(reader, each, path[1:]) for each in inner), default=1)


def _samples(reader: Reader, box: _Box) -> int:
    reader.go(box.start)
    head = reader.take(min(box.end - box.start, 12))
    return int.from_bytes(head[8:12], "big") if len(head) == 12 else 1
