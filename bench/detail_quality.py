"""How much nearer to the truth the detail upscaler comes than Lanczos, and what it costs: `python -m bench.detail_quality`.

Photographs that ship inside scikit-image are made small in three ways and enlarged again. Exit status 1 if the mean gain at x2,
after bicubic shrinking, is below `REQUIRED_GAIN_DB`.
"""

import importlib.util
import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from providers.local.engine.detail import upscale

REQUIRED_GAIN_DB = 0.4
PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "rocket.jpg",
    "brick.png",
    "grass.png",
    "gravel.png",
)
"""Every photograph in scikit-image's wheel that is not of a microscope; nothing is downloaded."""
_LONGEST_EDGE = 1000
"""Larger ones are cropped, to bound the time."""
_BORDER = 4
"""Pixels of the large picture that are not compared: there the methods differ in what they think lies outside."""


def photographs() -> Iterator[tuple[str, Image.Image]]:
    """The photographs that are there, gray or RGB."""
    spec = importlib.util.find_spec("skimage")
    folder = Path(spec.origin).parent / "data" if spec and spec.origin else Path("no-scikit-image")
    for name in PHOTOGRAPHS:
        if (folder / name).is_file():
            with Image.open(folder / name) as image:
                yield name.partition(".")[0], image.convert("L" if image.mode == "L" else "RGB")


def bicubic(image: Image.Image, factor: int) -> Image.Image:
    """Shrunk as the literature does it."""
    return image.resize((image.width // factor, image.height // factor), Image.Resampling.BICUBIC)


def box(image: Image.Image, factor: int) -> Image.Image:
    """Shrunk by averaging."""
    return image.reduce(factor)


def camera(image: Image.Image, factor: int) -> Image.Image:
    """Shrunk as a small sensor sees it: blurred by a lens, averaged, noisy, and stored as JPEG."""
    pixels = np.asarray(image, dtype=np.float32)
    blurred = _blurred(_blurred(pixels, 0.55 * factor, axis=0), 0.55 * factor, axis=1)
    height, width = image.height // factor, image.width // factor
    averaged = np.mean(blurred.reshape(height, factor, width, factor, *pixels.shape[2:]), axis=(1, 3), dtype=np.float32)
    noisy: NDArray[np.float64] = averaged + np.random.default_rng(1).normal(0, 2, averaged.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    with Image.open(file) as stored:
        stored.load()
        return stored


def lanczos(image: Image.Image, factor: int) -> Image.Image:
    """What to beat."""
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)


DEGRADATIONS: tuple[Callable[[Image.Image, int], Image.Image], ...] = (bicubic, box, camera)


def psnr_y(image: Image.Image, truth: Image.Image) -> float:
    """Peak signal-to-noise ratio of luma, in dB, without the outermost pixels."""
    inner = slice(_BORDER, -_BORDER)
    error = np.asarray(image.convert("F"))[inner, inner] - np.asarray(truth.convert("F"))[inner, inner]
    return float(10 * np.log10(255**2 / np.mean(error**2)))


def scores(truth: Image.Image, degrade: Callable[[Image.Image, int], Image.Image], factor: int) -> tuple[float, float]:
    """PSNR-Y of Lanczos and of the detail upscaler."""
    small = degrade(truth, factor)
    return psnr_y(lanczos(small, factor), truth), psnr_y(upscale(small, factor), truth)


def cropped(image: Image.Image, factor: int) -> Image.Image:
    """The upper left of the picture, its edges multiples of `factor`."""
    width, height = (min(edge, _LONGEST_EDGE) // factor * factor for edge in image.size)
    return image.crop((0, 0, width, height))


def cpu_seconds() -> float:
    """The best of three, for an RGB picture from 1024x1024 to 2048x2048, decoding and encoding not counted."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((1024, 1024), Image.Resampling.BICUBIC)
    return min(_timed(lambda: upscale(image, 2)) for _ in range(3))


def main() -> int:
    """Print the table; return the exit status."""
    pictures = list(photographs())
    if not pictures:
        print("scikit-image is not installed, so there are no photographs to compare with")
        return 1
    print(f"PSNR-Y in dB, mean of {len(pictures)} photographs\n")
    print("factor  shrunk by  Lanczos  detail   gain   least gain")
    required = 0.0
    for factor in (2, 3, 4, 8):
        for degrade in DEGRADATIONS:
            results = {name: scores(cropped(image, factor), degrade, factor) for name, image in pictures}
            gains = {name: detail - plain for name, (plain, detail) in results.items()}
            plain, detail = np.mean(list(results.values()), axis=0)
            gain, least = detail - plain, min(gains, key=lambda name: gains[name])
            print(f"x{factor}      {degrade.__name__:<9}  {plain:7.2f}  {detail:6.2f}  {gain:+.2f}   {gains[least]:+.2f} ({least})")
            if (factor, degrade) == (2, bicubic):
                required = float(gain)
    print(f"\n1 MP -> 4 MP: {cpu_seconds():.2f} CPU-s, one thread")
    print(f"gain at x2, bicubic: {required:+.2f} dB, required +{REQUIRED_GAIN_DB:.2f} dB")
    return 0 if required >= REQUIRED_GAIN_DB else 1


def _blurred(pixels: NDArray[np.float32], sigma: float, axis: int) -> NDArray[np.float32]:
    """Convolved with a Gaussian along one axis; the edge pixels go on outside."""
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    around = [(0, 0)] * pixels.ndim
    around[axis] = (radius, radius)
    padded = np.pad(pixels, around, mode="edge")
    length = pixels.shape[axis]
    result = np.zeros_like(pixels)
    for i, weight in enumerate(weights / weights.sum()):
        result += np.float32(weight) * padded.take(range(i, i + length), axis)
    return result


def _timed(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


if __name__ == "__main__":
    sys.exit(main())
