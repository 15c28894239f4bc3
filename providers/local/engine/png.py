"""A PNG encoder that takes the picture row by row, so that nobody has to hold it whole.

Every row gets the Paeth filter and run lengths with Huffman codes: on upscaled photographs that is smaller and takes less
time than choosing a filter for each row and searching for repetitions at level 1, as Pillow does.

Source: https://www.w3.org/TR/png-3/
"""

import struct
import zlib
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from normalization.pixels.formats import Size

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = MappingProxyType({1: 0, 2: 4, 3: 2, 4: 6})
"""By number of channels: gray, gray and alpha, RGB, RGBA."""
_PAETH = 4
_BLOCK_BYTES = 1 << 17
"""Filtered at a time, so that the intermediate results stay in the processor's cache."""
_CHUNK_BYTES = 1 << 16


class PngWriter:
    """Writes one 8-bit PNG to an open file. Call `write` until all rows are there, then `finish`."""

    def __init__(self, file: BinaryIO, size: Size, channels: int, icc_profile: bytes | None = None) -> None:
        """Write the header. `channels` is 1 to 4: gray, gray and alpha, RGB, RGBA."""
        self._file = file
        self._channels = channels
        self._deflate = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
        self._waiting = bytearray()
        self._row_above = np.zeros((size.width, channels), np.uint8)
        file.write(_SIGNATURE)
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", size.width, size.height, 8, _COLOUR_TYPES[channels], 0, 0, 0))
        if icc_profile:
            self._chunk(b"iCCP", b"icc\0\0" + zlib.compress(icc_profile))

    def write(self, rows: NDArray[np.uint8]) -> None:
        """Append rows: H x W x channels."""
        _, width, channels = rows.shape
        columns = min(width, max(1, _BLOCK_BYTES // channels))
        step = max(1, _BLOCK_BYTES // (columns * channels))
        above = self._row_above
        for top in range(0, len(rows), step):
            block = rows[top : top + step]
            for left in range(0, width, columns):  # more than once for very wide rows, and then a block is one row
                self._compressed(self._deflate.compress(_filtered(block, above, left, left + columns).data))
            above = block[-1]
        self._row_above = above.copy()

    def finish(self) -> None:
        """Write what is still in the encoder, and the end mark."""
        self._compressed(self._deflate.flush())
        self._chunk(b"IDAT", self._waiting)
        self._chunk(b"IEND", b"")

    def _compressed(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) >= _CHUNK_BYTES:
            self._chunk(b"IDAT", self._waiting)
            self._waiting = bytearray()

    def _chunk(self, name: bytes, data: bytes | bytearray) -> None:
        self._file.write(struct.pack(">I", len(data)) + name)
        self._file.write(data)
        self._file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))


def _filtered(rows: NDArray[np.uint8], above: NDArray[np.uint8], left: int, right: int) -> NDArray[np.uint8]:
    """The columns `left` to `right` of rows as the Paeth filter leaves them, the first ones with the filter byte in front.

    The predictor is the one of left (a), above (b) and above left (c) that is nearest to a + b - c. Source: section 9.4.
    """
    part = rows[:, left:right]
    height, width, channels = part.shape
    seen = np.zeros((height + 1, width + 1, channels), np.int16)
    seen[0, 1:] = above[left:right]
    seen[1:, 1:] = part
    if left:
        seen[0, 0] = above[left - 1]
        seen[1:, 0] = rows[:, left - 1]
    a, b, c = seen[1:, :-1], seen[:-1, 1:], seen[:-1, :-1]
    to_a, to_b = b - c, a - c
    to_c = np.abs(to_a + to_b)
    np.abs(to_a, out=to_a)
    np.abs(to_b, out=to_b)
    nearest = np.where(to_b <= to_c, b, c)
    np.copyto(nearest, a, where=(to_a <= to_b) & (to_a <= to_c))
    mark = 0 if left else 1
    result = np.full((height, mark + width * channels), _PAETH, np.uint8)
    result[:, mark:] = (part - nearest.astype(np.uint8)).reshape(height, width * channels)
    return result
