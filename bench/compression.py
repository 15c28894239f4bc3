"""Which quality of WebP and AVIF looks like which of JPEG: `python -m bench.compression` prints the table of `pixels/encode.py`.

For each photograph that ships inside scikit-image's wheel, JPEG is written at each step of quality, and WebP and AVIF at theirs,
with the very options of the gateway; then the quality with the same SSIM is found on a straight line between two steps. The table
is the mean over the photographs. Exits with 1 if the code's own table is further from it than `TOLERANCE`.
"""

import importlib.metadata
import sys
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features
from skimage.metrics import structural_similarity  # pyright: ignore[reportUnknownVariableType] -- untyped

from bench.detail_quality import photographs
from normalization.pixels.encode import QUALITIES, codec_options
from normalization.pixels.formats import Format

JPEG_STEPS = (1, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90, 92, 95, 98, 100)
OTHER_STEPS = (*range(0, 96, 5), 97, 98, 99, 100)
TOLERANCE = 2
"""In steps of quality: other builds of the codecs differ a little."""
_EDGE = 400
"""Pixels: larger photographs are cut to their middle, to bound the time."""

Curve: TypeAlias = Sequence[tuple[int, float, int]]
"""Quality, SSIM and bytes of one codec on one photograph."""


def main() -> None:
    """Measure, print, compare."""
    curves = {name: {kind: _curve(image, kind) for kind in QUALITIES} for name, image in _cut()}
    bytes_of = {kind: {step: _mean_bytes(curves, kind, step) for step in _steps(kind)} for kind in QUALITIES}
    print(f"SSIM-matched quality, mean of {len(curves)} photographs ({', '.join(curves)}); {_versions()}")
    print(f"{'jpeg':>5}{'SSIM':>9}{'webp':>7}{'avif':>7}{'in code':>10}{'jpeg KB':>10}{'webp KB':>9}{'avif KB':>9}")
    furthest = 0.0
    for at, step in enumerate(JPEG_STEPS):
        ssim = float(np.mean([of[Format.JPEG][at][1] for of in curves.values()]))
        matched = {kind: _matched(curves, kind, at) for kind in (Format.WEBP, Format.AVIF)}
        in_code = {kind: QUALITIES[kind].of(step) for kind in matched}
        if 1 < step < 100:  # both ends are fixed: smallest and best
            furthest = max(furthest, *(abs(matched[kind] - in_code[kind]) for kind in matched))
        sizes = [bytes_of[Format.JPEG][step], *(_between(bytes_of[kind], matched[kind]) for kind in matched)]
        print(
            f"{step:>5}{ssim:>9.4f}{matched[Format.WEBP]:>7.1f}{matched[Format.AVIF]:>7.1f}"
            f"{in_code[Format.WEBP]:>6}{in_code[Format.AVIF]:>4}" + "".join(f"{size / 1000:>9.1f}" for size in sizes)
        )
    print(f"the code's table is at most {furthest:.1f} steps away (limit {TOLERANCE}).")
    sys.exit(0 if furthest <= TOLERANCE else 1)


def _cut() -> Iterator[tuple[str, Image.Image]]:
    """The photographs, in colour, cut to their middle."""
    for name, image in photographs():
        if image.mode == "RGB":
            left, top = max(0, image.width - _EDGE) // 2, max(0, image.height - _EDGE) // 2
            yield name, image.crop((left, top, min(image.width, left + _EDGE), min(image.height, top + _EDGE)))


def _steps(kind: Format) -> Sequence[int]:
    return JPEG_STEPS if kind is Format.JPEG else OTHER_STEPS


def _curve(image: Image.Image, kind: Format) -> Curve:
    whole = _luma(image)
    points: list[tuple[int, float, int]] = []
    for quality in _steps(kind):
        out = BytesIO()
        image.save(out, kind.value, **codec_options(kind, quality))
        with Image.open(out, formats=(kind.value.upper(),)) as written:
            points.append((quality, _ssim(whole, _luma(written.convert("RGB"))), out.tell()))
    return points


def _luma(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("L"))


def _ssim(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Of the luminance, as its authors define it. Source: Wang et al., "Image quality assessment", 2004, section III.C."""
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    return float(structural_similarity(one, other, **options))  # pyright: ignore[reportUnknownArgumentType, reportArgumentType] -- untyped


def _matched(curves: Mapping[str, Mapping[Format, Curve]], kind: Format, at: int) -> float:
    """The quality of `kind` that has the SSIM of JPEG's step `at`: of each photograph, then the mean."""
    return float(np.mean([_quality_with(of[Format.JPEG][at][1], of[kind]) for of in curves.values()]))


def _quality_with(ssim: float, curve: Curve) -> float:
    """On the curve; its ends where it does not reach."""
    rising = np.maximum.accumulate([point for _, point, _ in curve])
    return float(np.interp(ssim, rising, [quality for quality, _, _ in curve]))


def _mean_bytes(curves: Mapping[str, Mapping[Format, Curve]], kind: Format, step: int) -> float:
    return float(np.mean([size for of in curves.values() for quality, _, size in of[kind] if quality == step]))


def _between(sizes: Mapping[int, float], quality: float) -> float:
    return float(np.interp(quality, list(sizes), list(sizes.values())))


def _versions() -> str:
    codecs = (f"{name} {features.version(feature)}" for name, feature in (("libjpeg-turbo", "libjpeg_turbo"), ("libwebp", "webp")))
    packages = (f"{name} {importlib.metadata.version(name)}" for name in ("pillow", "scikit-image", "numpy"))
    return ", ".join((*packages, *codecs, f"libavif {features.version('avif')}"))


if __name__ == "__main__":
    main()
