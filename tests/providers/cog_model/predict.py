"""A Cog model for the tests: makes a picture larger, slowly or wrongly if asked to."""

import tempfile
import time
from pathlib import Path as File

from cog import BasePredictor, Input, Path
from PIL import Image


class Predictor(BasePredictor):
    """What a container's `predict.py` looks like."""

    # ruff: noqa: B008 - this is how Cog declares inputs
    def predict(
        self,
        image: Path = Input(description="The picture"),
        scale_factor: float = Input(default=2.0),
        seconds: float = Input(default=0.0, description="How long to take"),
        fail: str = Input(default="", description="Raise this"),
        copies: int = Input(default=1),
    ) -> list[Path]:
        """Scale by Pillow."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:  # Cog cancels between two steps of Python, so that no step may be long
            time.sleep(0.01)
        if fail:
            raise RuntimeError(fail)
        with Image.open(str(image)) as picture:
            size = (round(picture.width * scale_factor), round(picture.height * scale_factor))
            larger = picture.resize(size)
        folder = File(tempfile.mkdtemp())
        paths = [folder / f"{index}.png" for index in range(copies)]
        for path in paths:
            larger.save(path)
        return [Path(path) for path in paths]
