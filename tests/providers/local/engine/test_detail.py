"""The detail upscaler: nearer to the truth than Lanczos, exact in size, the same in tiles as whole, harmless at the edges."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normalization.pixels.formats import Size
from providers.local.engine import detail
from providers.local.engine.detail import output_size, upscale, upscale_in_bands


def scene(size: Size, mode: str = "RGB") -> Image.Image:
    """Something like a photograph: soft shading, hard edges, fine texture."""
    y, x = np.mgrid[: size.height, : size.width].astype(np.float32)
    shading = 120 + 60 * np.sin(x / 37) * np.cos(y / 29)
    discs = 70 * ((np.hypot(x % 48 - 24, y % 40 - 20) < 13) - 0.5)
    texture = 12 * np.sin(x * 1.3 + y * 0.7)
    red = shading + discs + texture
    alpha = 255 * np.clip((x + y) / (size.width + size.height) * 1.6 - 0.3, 0, 1)
    planes = np.stack((red, 0.8 * red + 20, 255 - red, alpha), axis=2)
    return Image.fromarray(np.clip(planes, 0, 255).astype(np.uint8)).convert(mode)


def psnr(image: Image.Image, truth: Image.Image) -> float:
    """Of luma, in dB, edges left out."""
    error = (np.asarray(image.convert("F")) - np.asarray(truth.convert("F")))[4:-4, 4:-4]
    return float(10 * np.log10(255**2 / np.mean(error**2)))


def gain_over_lanczos(truth: Image.Image, shrink: Image.Resampling) -> float:
    small = truth.resize((truth.width // 2, truth.height // 2), shrink)
    return psnr(upscale(small, 2), truth) - psnr(small.resize(truth.size, Image.Resampling.LANCZOS), truth)


@pytest.mark.parametrize("shrink", [Image.Resampling.BICUBIC, Image.Resampling.BOX])
def test_drawn_scene_is_restored_better_than_by_lanczos(shrink: Image.Resampling):
    """On edges, shading and texture the gain at x2 is clear, however the picture was made small."""
    assert gain_over_lanczos(scene(Size(192, 160)), shrink) > 0.4


@pytest.mark.parametrize("name", ["chelsea.png", "coffee.png"])
def test_photograph_is_restored_better_than_by_lanczos(name: str):
    """A photograph gains at least 0.4 dB at x2."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    with Image.open(Path(spec.origin).parent / "data" / name) as photograph:
        assert gain_over_lanczos(photograph.convert("RGB").crop((0, 0, 300, 280)), Image.Resampling.BICUBIC) > 0.4


@pytest.mark.parametrize("size", [Size(1, 1), Size(2, 1), Size(7, 5), Size(33, 20)], ids=str)
@pytest.mark.parametrize("scale_factor", [1, 1.01, 1.5, 2, 2.37, 3, 4, 8])
def test_size_is_exact(size: Size, scale_factor: float):
    """The result has exactly the rounded size, for any factor."""
    assert upscale(scene(size), scale_factor).size == output_size(size, scale_factor)


def test_output_size_rounds_each_edge():
    """5 x 1.5 and 7 x 1.5 are 8 and 10: to the nearest pixel, halves to even."""
    assert output_size(Size(5, 7), 1.5) == (8, 10)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("scale_factor", [1.01, 1.7, 2, 3])
def test_tiles_and_whole_agree(mode: str, scale_factor: float, monkeypatch: pytest.MonkeyPatch):
    """No seam: in tiles as in one piece, no visible pixel differs by more than 1 of 255."""
    image = scene(Size(131, 97), mode)
    whole = np.asarray(upscale(image, scale_factor), dtype=int)
    monkeypatch.setattr(detail, "_TILE_EDGE", 64)
    monkeypatch.setattr(detail, "_TILE_PIXELS", 64 * 64)
    tiled = np.asarray(upscale(image, scale_factor), dtype=int)

    difference = np.abs(tiled - whole)
    if mode.endswith("A"):  # colour that is divided by little alpha is as uncertain as it is invisible
        difference[..., :-1] = difference[..., :-1] * whole[..., -1:] // 255
    assert difference.max() <= 1


def test_sharpening_has_no_seams(monkeypatch: pytest.MonkeyPatch):
    """A sharpened picture is the same in tiles as in one piece."""
    image = scene(Size(131, 97))
    whole = np.asarray(upscale(image, 2, sharpen=2), dtype=int)
    monkeypatch.setattr(detail, "_TILE_EDGE", 64)
    monkeypatch.setattr(detail, "_TILE_PIXELS", 64 * 64)
    assert np.abs(np.asarray(upscale(image, 2, sharpen=2), dtype=int) - whole).max() <= 3  # 1, sharpened


def test_sharpening_steepens_edges_and_leaves_flat_areas():
    """Sharpening moves values apart where they differ, and nowhere else."""
    image = Image.new("L", (40, 20), 80)
    image.paste(160, (20, 0, 40, 20))
    plain, sharp = (np.asarray(upscale(image, 2, sharpen), dtype=int) for sharpen in (0, 3))
    assert np.ptp(sharp) > np.ptp(plain)
    assert sharp[20, 5] == plain[20, 5] == 80


@pytest.mark.parametrize("size", [Size(1, 1), Size(1, 9), Size(40, 3), Size(5000, 1), Size(1, 5000)], ids=str)
@pytest.mark.parametrize("scale_factor", [2, 2.5])
def test_flat_colour_stays_what_it_is(size: Size, scale_factor: float):
    """One colour comes out as that colour, in any shape."""
    result = np.asarray(upscale(Image.new("RGB", size, (200, 30, 91)), scale_factor))
    assert (result == (200, 30, 91)).all()


def test_factor_one_changes_nothing():
    """With a factor of 1 the pixels are the ones that came."""
    image = scene(Size(30, 20))
    assert upscale(image, 1).tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_mode_is_kept(mode: str):
    """Gray stays gray, and transparency stays."""
    assert upscale(scene(Size(20, 20), mode), 2).mode == mode


def test_hidden_colour_does_not_bleed():
    """What lies under transparent pixels does not tint the visible ones beside them."""
    image = Image.new("RGBA", (20, 10), (255, 0, 0, 0))
    image.paste((0, 90, 200, 255), (10, 0, 20, 10))
    result = np.asarray(upscale(image, 2), dtype=int)
    visible = result[..., 3] > 60
    assert result[..., 0][visible].max() <= 12
    assert (result[:, :10, 3] == 0).all()
    assert (result[:, 30:] == (0, 90, 200, 255)).all()


def test_opaque_alpha_changes_nothing():
    """A picture with an alpha channel that hides nothing has the colours it would have without."""
    image = scene(Size(30, 20))
    with_alpha = image.copy()
    with_alpha.putalpha(255)
    assert upscale(with_alpha, 2).convert("RGB").tobytes() == upscale(image, 2).tobytes()


def test_progress_rises_to_one(monkeypatch: pytest.MonkeyPatch):
    """Every tile reports, later ones more, the last one 1."""
    monkeypatch.setattr(detail, "_TILE_EDGE", 32)
    monkeypatch.setattr(detail, "_TILE_PIXELS", 32 * 32)
    reports: list[float] = []
    bands = list(upscale_in_bands(scene(Size(50, 70)), 2, checkpoint=reports.append))
    assert sum(len(band) for band in bands) == 140
    assert reports == sorted(reports)
    assert (len(reports), reports[-1]) == (20, 1.0)


def test_checkpoint_can_stop_the_work(monkeypatch: pytest.MonkeyPatch):
    """What the checkpoint raises ends the work at that tile."""
    monkeypatch.setattr(detail, "_TILE_EDGE", 32)
    monkeypatch.setattr(detail, "_TILE_PIXELS", 32 * 32)
    seen: list[float] = []

    def stop_at_third(done: float) -> None:
        seen.append(done)
        if len(seen) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        list(upscale_in_bands(scene(Size(50, 70)), 2, checkpoint=stop_at_third))
    assert len(seen) == 3
