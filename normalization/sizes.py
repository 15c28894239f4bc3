"""Sizes that come of fitting one shape into another: arithmetic alone, for plans and for pixels alike."""

from normalization.pixels.formats import Size
from normalization.request import FitMode, Ratio


def contained_size(source: Size, target: Size) -> Size:
    """The largest size of the shape of `source` within `target`; every edge at least 1 pixel."""
    if source.width * target.height >= source.height * target.width:
        return Size(target.width, max(1, round(source.height * target.width / source.width)))
    return Size(max(1, round(source.width * target.height / source.height)), target.height)


def shaped(size: Size, ratio: Ratio, how: FitMode) -> Size:
    """The size that a picture of `size` gets in the shape `ratio` at its own scale: cut for cover, enlarged by bars for pad."""
    width, height = size
    if width * ratio.height == height * ratio.width or how is FitMode.CONTAIN:
        return size
    wider = width * ratio.height > height * ratio.width
    if wider is (how is FitMode.COVER):
        return Size(max(1, round(height * ratio.width / ratio.height)), height)
    return Size(width, max(1, round(width * ratio.height / ratio.width)))
