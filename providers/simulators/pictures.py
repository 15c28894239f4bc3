"""Pictures as the simulators make them: really enlarged, visibly changed, cut out, drawn, black or damaged.

All of it is small and quick rather than good, and runs in a thread.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar

import pybase64
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

_T = TypeVar("_T")

MIMES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "gif": "image/gif", "avif": "image/avif"}
_READ = ("PNG", "JPEG", "WEBP", "GIF", "AVIF")
_OPTIONS: dict[str, dict[str, Any]] = {"png": {"compress_level": 1}, "jpeg": {"quality": 95}, "webp": {"method": 0}, "gif": {}}
"""How fal writes PNG and JPEG. Source: the `fal` SDK 1.83.0."""


class PictureUnreadable(ValueError):
    """The bytes are no picture, or a damaged one."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a picture is."""

    format: str
    """`png`, `jpeg`, `webp`, `gif` or `avif`."""
    width: int
    height: int

    @property
    def mime(self) -> str:
        """The content type."""
        return MIMES[self.format]


def read_data_uri(text: str) -> bytes | None:
    """The bytes of a `data:…;base64,…` address; None if it is none. Raises `PictureUnreadable` for broken base64."""
    head, comma, rest = text.partition(",")
    if not head.startswith("data:") or not comma or not head.endswith(";base64"):
        return None
    try:
        return pybase64.b64decode(rest, validate=True)
    except ValueError as error:
        raise PictureUnreadable("the data URI is not base64") from error


async def inspect(data: bytes) -> Facts:
    """Decode the whole picture and say what it is. Raises `PictureUnreadable`."""
    return await asyncio.to_thread(lambda: _opened(data, lambda image, kind: Facts(kind, *image.size)))


async def upscale(data: bytes, factor: float, kind: str = "png") -> bytes:
    """The picture enlarged by `factor`, each edge rounded. Raises `PictureUnreadable`."""

    def enlarged(image: Image.Image, _: str) -> bytes:
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        return _written(_plain(image).resize(size, Image.Resampling.BICUBIC), kind)

    return await asyncio.to_thread(lambda: _opened(data, enlarged))


async def edited(data: bytes, size: tuple[int, int] | None = None, kind: str = "png", seed: int = 0) -> bytes:
    """The picture with its colours turned over and shifted by `seed`, at `size` or its own. Raises `PictureUnreadable`."""

    def changed(image: Image.Image, _: str) -> bytes:
        turned = ImageOps.invert(image.convert("RGB"))
        tinted = ImageChops.add(turned, Image.new("RGB", turned.size, _color(seed, 48)))
        return _written(ImageOps.fit(tinted, size) if size else tinted, kind)

    return await asyncio.to_thread(lambda: _opened(data, changed))


async def cut_out(data: bytes, kind: str = "png") -> bytes:
    """The picture with an ellipse of it left and the rest transparent. Raises `PictureUnreadable`."""

    def cut(image: Image.Image, _: str) -> bytes:
        inside = Image.radial_gradient("L").resize(image.size).point([255 if value < 128 else 0 for value in range(256)])
        image = image.convert("RGB")
        image.putalpha(inside)
        return _written(image, kind)

    return await asyncio.to_thread(lambda: _opened(data, cut))


async def drawn(prompt: str, size: tuple[int, int], kind: str = "png", seed: int = 0) -> bytes:
    """A picture of gradients that depends on prompt and seed."""

    def paint() -> bytes:
        mark = int.from_bytes(hashlib.sha256(f"{prompt}\n{seed}".encode()).digest()[:4])
        shade = Image.linear_gradient("L").resize(size)
        return _written(ImageOps.colorize(shade, _color(mark, 256), _color(mark >> 8, 256)), kind)

    return await asyncio.to_thread(paint)


async def black(size: tuple[int, int], kind: str = "png") -> bytes:
    """What safety checkers leave."""
    return await asyncio.to_thread(lambda: _written(Image.new("RGB", size), kind))


async def resized(data: bytes, size: tuple[int, int], kind: str = "png") -> bytes:
    """The picture brought to `size`, whatever its shape. Raises `PictureUnreadable`."""
    return await asyncio.to_thread(lambda: _opened(data, lambda image, _: _written(_plain(image).resize(size), kind)))


def corrupted(data: bytes) -> bytes:
    """As many bytes, with the beginning of a picture and rubbish in its second half."""
    half = len(data) // 2
    return data[:half] + bytes(byte ^ 0xA5 for byte in data[half:])


def _opened(data: bytes, do: Callable[[Image.Image, str], _T]) -> _T:
    try:
        with Image.open(BytesIO(data), formats=_READ) as image:
            kind = (image.format or "").lower()
            image.load()
            return do(image if kind == "png" else ImageOps.exif_transpose(image), "jpeg" if kind == "mpo" else kind)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureUnreadable("the picture cannot be read") from error


def _plain(image: Image.Image) -> Image.Image:
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _written(image: Image.Image, kind: str) -> bytes:
    out = BytesIO()
    if kind == "jpeg":
        image = image.convert("RGB")
    image.save(out, format=kind, **_OPTIONS[kind])
    return out.getvalue()


def _color(mark: int, below: int) -> tuple[int, int, int]:
    """A colour that differs for different marks, never black."""
    return tuple(1 + (mark * step) % (below - 1) for step in (37, 59, 83))  # pyright: ignore[reportReturnType] -- three of them
