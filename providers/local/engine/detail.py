"""Upscaling that restores sharpness and invents nothing: back-projection with edge-preserving smoothing, on luma.

The large picture is one that, shrunk again, gives the small one back (M. Irani and S. Peleg, "Improving resolution by image
registration", 1991), and that among those has little total variation, in Huber's form, which rounds the corner of |x| off so
that soft shading is not turned into steps (L. Rudin, S. Osher, E. Fatemi, 1992; P. Huber, 1964). Colour differences are
bicubic: the eye does not see more.

Pictures are worked on in tiles with a margin, so memory does not depend on their size; tiles and whole agree.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from normalization.pixels.formats import Size
from providers.local.engine.model import Checkpoint

Plane: TypeAlias = NDArray[np.float32]
"""One channel, H x W, values around 0..255."""
Pixels: TypeAlias = NDArray[np.uint8]
"""H x W x channels."""

_ROUNDS = 6
_STEP = 2.5
"""How far one smoothing goes. `_STEP / _KNEE` must stay below 1/4, or the finest checkerboard grows instead of fading."""
_KNEE = 12.0
"""Slopes far below this many grey levels per pixel are shading, far above it edges."""
_SHRINK = Image.Resampling.HAMMING
"""How the small picture is taken to have been made: near enough to both box and bicubic shrinking to help with either."""
_GROW = Image.Resampling.LANCZOS
_MARGIN = 12
"""Pixels of the small picture that a tile sees around itself. What lies further changes it by less than 0.01 grey levels."""
_FILL_REACH = 6
"""How far, in pixels of the small picture, visible colour is continued under transparent pixels."""
_TILE_EDGE = 1024
_TILE_PIXELS = _TILE_EDGE * _TILE_EDGE
"""Of the large picture, margin aside. About 0.2 s of work, and 50 MB of scratch."""
_BLOCK_PIXELS = 1 << 16
"""What is smoothed at a time, so that the intermediate results stay in the processor's cache."""
_RED, _GREEN, _BLUE = np.float32(0.299), np.float32(0.587), np.float32(0.114)
"""Source: ITU-R BT.601, section 2.5.1."""


def output_size(size: Size, scale_factor: float) -> Size:
    """The size that `upscale` gives: each edge times `scale_factor`, rounded to the nearest whole pixel."""
    return Size(round(size.width * scale_factor), round(size.height * scale_factor))


def upscale(image: Image.Image, scale_factor: float, sharpen: float = 0.0) -> Image.Image:
    """Return `image` upscaled, whole. See `upscale_in_bands`."""
    bands = list(upscale_in_bands(image, scale_factor, sharpen))
    pixels = np.concatenate(bands)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def upscale_in_bands(
    image: Image.Image, scale_factor: float, sharpen: float = 0.0, checkpoint: Checkpoint | None = None
) -> Iterator[Pixels]:
    """Yield the upscaled picture from top to bottom, in bands of full width.

    A factor that is not whole is reached by the next whole one and a Lanczos resize down.

    Args:
        image: Mode L, LA, RGB or RGBA, H x W pixels. Gray stays gray. Alpha is enlarged by itself, and the colour that hides
            under transparent pixels does not bleed into the visible ones.
        scale_factor: At least 1. The result has `output_size(size, scale_factor)` pixels.
        sharpen: 0..10. Strength of a 3x3 sharpening of the result: -s/10 for each neighbour, 1 + 8s/10 for the pixel itself.
        checkpoint: Called after every tile with the part done; may raise to stop.
    """
    frame = _Frame(image, output_size(Size(*image.size), scale_factor), math.ceil(scale_factor), sharpen)
    columns, rows = _tiling(frame)
    for j, (top, bottom) in enumerate(rows):
        band = np.empty((bottom - top, frame.large.width, len(image.getbands())), np.uint8)
        for i, (left, right) in enumerate(columns):
            band[:, left:right] = _tile(frame, _Box(left, top, right, bottom))
            if checkpoint is not None:
                checkpoint((j * len(columns) + i + 1) / (len(rows) * len(columns)))
        yield band


def detail_luma(small: Plane, factor: int) -> Plane:
    """Enlarge one plane by a whole factor: the method itself, on H x W values around 0..255."""
    if factor == 1:
        return small.copy()
    height, width = small.shape
    large = _resized(small, Size(width * factor, height * factor), _GROW)
    for _ in range(_ROUNDS):
        _project_back(large, small)
        _smooth(large)
    _project_back(large, small)
    return large


class _Box:
    """A rectangle in pixels; the right and bottom edges are outside."""

    __slots__ = ("bottom", "left", "right", "top")

    def __init__(self, left: int, top: int, right: int, bottom: int) -> None:
        self.left, self.top, self.right, self.bottom = left, top, right, bottom

    def grown(self, by: int, within: Size) -> "_Box":
        return _Box(
            max(self.left - by, 0), max(self.top - by, 0), min(self.right + by, within.width), min(self.bottom + by, within.height)
        )

    @property
    def size(self) -> Size:
        return Size(self.right - self.left, self.bottom - self.top)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What all tiles of a picture share."""

    image: Image.Image
    large: Size
    factor: int
    """The whole factor of the method; `large` is at most that much larger."""
    sharpen: float

    @property
    def small(self) -> Size:
        return Size(*self.image.size)

    @property
    def has_alpha(self) -> bool:
        return self.image.mode in ("LA", "RGBA")

    @property
    def is_whole(self) -> bool:
        return self.large == (self.small.width * self.factor, self.small.height * self.factor)

    def source_of(self, box: _Box) -> tuple[float, float, float, float]:
        """Where `box` of the large picture lies in the small one."""
        x, y = self.small.width / self.large.width, self.small.height / self.large.height
        return box.left * x, box.top * y, box.right * x, box.bottom * y


def _tiling(frame: _Frame) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Cut into columns and rows of tiles of about equal area, also when the picture is a thin strip."""
    width, height = frame.large
    tall = min(height, _TILE_EDGE)
    wide = min(width, _TILE_PIXELS // tall)
    tall = min(height, _TILE_PIXELS // wide)
    grid = frame.factor if frame.is_whole else 1  # then tiles begin where pixels of the small picture begin
    return _cut(width, wide, grid), _cut(height, tall, grid)


def _cut(length: int, longest: int, grid: int) -> list[tuple[int, int]]:
    pieces = -(-length // longest)
    edges = [length // grid * i // pieces * grid for i in range(pieces)]
    return list(pairwise(dict.fromkeys((*edges, length))))


def _tile(frame: _Frame, box: _Box) -> Pixels:
    """One tile of the result. Sharpening needs a neighbour on each side, so then a larger tile is made and cut."""
    outer = box.grown(1, within=frame.large) if frame.sharpen else box
    left, top, right, bottom = frame.source_of(outer)
    reach = _MARGIN + (_FILL_REACH if frame.has_alpha else 0)
    region = _Box(math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)).grown(reach, within=frame.small)
    source = frame.image.crop((region.left, region.top, region.right, region.bottom))
    inside = (left - region.left, top - region.top, right - region.left, bottom - region.top)

    colour = _colour(_filled(source) if frame.has_alpha else source, frame, outer, region, inside)
    if frame.sharpen:
        colour = _sharpened(colour, frame.sharpen, box, outer)
    if not frame.has_alpha:
        return colour
    alpha = np.asarray(_bicubic(source.getchannel("A"), outer.size, inside))[..., np.newaxis]
    alpha = alpha[box.top - outer.top :, box.left - outer.left :][: box.size.height, : box.size.width]
    return np.concatenate((colour * (alpha > 0), alpha), axis=2)


def _filled(source: Image.Image) -> Image.Image:
    """The colour of a picture with alpha, without it: what is transparent takes the colour of what is visible around it."""
    pixels = np.asarray(source, dtype=np.float32)
    colour, weight = pixels[..., :-1], pixels[..., -1:] / 255
    if weight.min() < 1:
        around = np.concatenate((colour * weight, weight), axis=2)
        for _ in range(_FILL_REACH):
            around = _spread(around)
        colour = colour * weight + around[..., :-1] / np.maximum(around[..., -1:], 1e-6) * (1 - weight)
    filled = np.clip(np.rint(colour), 0, 255).astype(np.uint8)
    return Image.fromarray(filled[..., 0] if filled.shape[2] == 1 else filled)


def _spread(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Blurred by one pixel in each direction, with nothing outside."""
    down = values + values
    down[1:] += values[:-1]
    down[:-1] += values[1:]
    across = down + down
    across[:, 1:] += down[:, :-1]
    across[:, :-1] += down[:, 1:]
    return across / 16


def _colour(source: Image.Image, frame: _Frame, box: _Box, region: _Box, inside: tuple[float, float, float, float]) -> Pixels:
    """The colour of one tile: its luma by the method, and the colour differences bicubic.

    Adding the same amount to red, green and blue changes luma alone, so the differences need no planes of their own, and flat
    areas come out exactly as they went in.
    """
    luma = _tile_luma(np.asarray(source.convert("F")), frame, box, region, inside)
    if source.mode == "L":
        return np.clip(np.rint(luma), 0, 255).astype(np.uint8)[..., np.newaxis]
    colour = np.asarray(_bicubic(source, box.size, inside))
    change = luma - (colour[..., 0] * _RED + colour[..., 1] * _GREEN + colour[..., 2] * _BLUE)
    steps = np.rint(change).astype(np.int16)
    pixels = np.empty_like(colour)
    for channel in range(3):
        pixels[..., channel] = np.clip(colour[..., channel] + steps, 0, 255)
    return pixels


def _tile_luma(small: Plane, frame: _Frame, box: _Box, region: _Box, inside: tuple[float, float, float, float]) -> Plane:
    n = frame.factor
    large = detail_luma(small, n)
    if frame.is_whole:
        left, top = box.left - region.left * n, box.top - region.top * n
        return large[top : top + box.size.height, left : left + box.size.width]
    left, top, right, bottom = inside
    # Pillow's box may lie between pixels, and the filter sees what is around it, so tiles meet without a seam.
    return _resized(large, box.size, Image.Resampling.LANCZOS, (left * n, top * n, right * n, bottom * n))


def _project_back(large: Plane, small: Plane) -> None:
    """Add, in place, what `large` lacks for shrinking to `small`."""
    missing = small - _resized(large, Size(small.shape[1], small.shape[0]), _SHRINK)
    large += _resized(missing, Size(large.shape[1], large.shape[0]), _GROW)


def _smooth(plane: Plane) -> None:
    """One step down the slope of the Huber total variation, in place: level what is nearly flat, leave edges.

    Every pixel takes the flow from its right and lower neighbour and gives it to them; the flow is the difference, weighed
    down where it is large. Row blocks are worked on from the top: a block needs the flow of the row above it, kept in
    `falling`, and the untouched row below.
    """
    height, width = plane.shape
    rows = max(8, _BLOCK_PIXELS // width)
    across, down, weight = (np.zeros((min(rows, height), width), np.float32) for _ in range(3))
    falling = np.zeros(width, np.float32)
    for top in range(0, height, rows):
        block = plane[top : top + rows]
        x, y, w = across[: len(block)], down[: len(block)], weight[: len(block)]
        np.subtract(block[:, 1:], block[:, :-1], out=x[:, :-1])
        below = plane[top + 1 : top + 1 + len(block)]
        np.subtract(below, block[: len(below)], out=y[: len(below)])
        y[len(below) :] = 0
        np.multiply(x, x, out=w)
        w += y * y
        w += _KNEE * _KNEE
        np.sqrt(w, out=w)
        np.divide(_STEP, w, out=w)
        x *= w
        y *= w
        block += x
        block += y
        block[:, 1:] -= x[:, :-1]
        block[1:] -= y[:-1]
        block[0] -= falling
        falling[:] = y[-1]


def _sharpened(colour: Pixels, sharpen: float, box: _Box, outer: _Box) -> Pixels:
    """Sharpen `outer` and cut `box` out of it; at the picture's own edges, the edge pixels count as their neighbours."""
    at_edge = (
        (int(box.top == outer.top), int(box.bottom == outer.bottom)),
        (int(box.left == outer.left), int(box.right == outer.right)),
        (0, 0),
    )
    padded = np.pad(colour, at_edge, mode="edge")
    near = -sharpen / 10
    kernel = ImageFilter.Kernel((3, 3), (near,) * 4 + (1 - 8 * near,) + (near,) * 4, scale=1)
    filtered = np.asarray(Image.fromarray(padded[..., 0] if padded.shape[2] == 1 else padded).filter(kernel))
    return filtered.reshape(padded.shape)[1:-1, 1:-1]


def _bicubic(image: Image.Image, size: Size, inside: tuple[float, float, float, float]) -> Image.Image:
    """The part `inside` of an 8-bit image at `size`, across first and then down.

    Given both at once, Pillow picks the cheaper order, which differs from tile to tile and rounds differently in between.
    """
    left, top, right, bottom = inside
    across = image.resize((size.width, image.height), Image.Resampling.BICUBIC, box=(left, 0, right, image.height))
    return across.resize(size, Image.Resampling.BICUBIC, box=(0, top, size.width, bottom))


def _resized(plane: Plane, size: Size, kernel: Image.Resampling, box: tuple[float, float, float, float] | None = None) -> Plane:
    return np.array(Image.fromarray(plane).resize(size, kernel, box=box), dtype=np.float32)
