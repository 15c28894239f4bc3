"""docs/pixels.md says what the code does."""

from normalization.pixels.encode import DEFAULT_COMPRESSION, QUALITIES
from normalization.pixels.formats import FORMATS, Format
from tests.docs.pages import page

PIXELS = page("docs/pixels.md")


def test_formats_are_those_of_the_code():
    """Every row of the table of formats, and no other."""

    def word(flag: bool) -> str:
        return "yes" if flag else "no"

    rows = PIXELS.table("Formats", "format")

    assert rows == [
        [
            f"`{kind}`",
            "yes" if facts.writes else "with the extra",
            *map(word, (facts.writes, facts.alpha, facts.quality, facts.animated, facts.exif)),
        ]
        for kind, facts in FORMATS.items()
    ]


def test_compression_is_that_of_the_code():
    """Every row has the qualities that the encoders get."""
    for row in PIXELS.table("Compression", "`output_compression`"):
        asked, _, *qualities = row[:5]
        found = [QUALITIES[kind].of(int(asked)) for kind in (Format.JPEG, Format.WEBP, Format.AVIF)]
        assert [int(quality) for quality in qualities] == found, asked
    assert f"parameter it is {DEFAULT_COMPRESSION}." in PIXELS.text
