"""`examples/`: the pictures are what their script paints, and show what they are for."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures painted anew."""
    folder = tmp_path_factory.mktemp("pictures")
    subprocess.run([sys.executable, str(EXAMPLES / "make_pictures.py"), str(folder)], check=True, timeout=60)
    return folder


@pytest.mark.parametrize("name", ["harbour.jpg", "portrait.jpg", "leaf.png"])
def test_script_paints_the_picture_that_is_kept(painted: Path, name: str):
    """Each kept picture has the size and, but for rounding, the pixels that the script gives."""
    with Image.open(EXAMPLES / name) as kept, Image.open(painted / name) as fresh:
        assert (kept.size, kept.mode) == (fresh.size, fresh.mode)
        difference = np.abs(np.asarray(kept, np.float32) - np.asarray(fresh, np.float32))
    assert difference.mean() < 1.0


def test_every_kept_picture_comes_from_the_script(painted: Path):
    """No picture in the folder has another origin."""
    kept = {path.name for path in EXAMPLES.iterdir() if path.suffix in {".jpg", ".png"}}
    assert kept == {path.name for path in painted.iterdir()}


def test_portrait_lies_on_its_side():
    """The portrait is stored turned; its EXIF orientation makes it upright and high."""
    with Image.open(EXAMPLES / "portrait.jpg") as stored:
        assert stored.size == (384, 288)
        assert ImageOps.exif_transpose(stored).size == (288, 384)


def test_leaf_has_clear_soft_and_solid_pixels():
    """The leaf's alpha takes all three: nothing, a shadow and the blade."""
    with Image.open(EXAMPLES / "leaf.png") as leaf:
        alpha = np.asarray(leaf.getchannel("A"))
    assert (alpha == 0).mean() > 0.2
    assert ((alpha > 10) & (alpha < 100)).mean() > 0.02
    assert (alpha == 255).mean() > 0.2
