"""`detail-upscaler`: the model that every installation has. CPU only, no weights."""

from collections.abc import Mapping
from pathlib import Path

from normalization.pixels.formats import Size
from providers.local.engine.detail import output_size, upscale_in_bands
from providers.local.engine.model import Checkpoint, InputField, InputRefused, InputType, Value
from providers.local.engine.pictures import open_picture
from providers.local.engine.png import PngWriter

MAX_INPUT_PIXELS = 64 * 1024 * 1024
MAX_OUTPUT_PIXELS = 256 * 1024 * 1024


class DetailUpscaler:
    """Upscales with restored sharpness; adds no detail that is not in the picture."""

    name = "detail-upscaler"
    description = "Upscales a picture and restores its sharpness. It invents nothing; it needs no weights and no GPU."
    inputs = (
        InputField("image", InputType.FILE, "The picture: PNG, JPEG, WebP, GIF or AVIF, as a data URI.", required=True),
        InputField(
            "scale_factor",
            InputType.NUMBER,
            "How many times wider and higher the result is; each edge is rounded to whole pixels.",
            default=2.0,
            min=1,
            max=8,
        ),
        InputField("sharpen", InputType.NUMBER, "Sharpening of the result; 0 is none.", default=0.0, min=0, max=10),
    )

    def setup(self) -> None:
        """Nothing to load."""

    def run(self, inputs: Mapping[str, Value], output: Path, checkpoint: Checkpoint) -> None:
        """Upscale `image` into a PNG at `output`. See `BackendModel.run`."""
        path, scale_factor, sharpen = inputs["image"], inputs["scale_factor"], inputs["sharpen"]
        assert isinstance(path, str | Path)
        assert isinstance(scale_factor, int | float)
        assert isinstance(sharpen, int | float)
        image = open_picture(Path(path), MAX_INPUT_PIXELS)
        large = output_size(Size(*image.size), scale_factor)
        if large.pixels > MAX_OUTPUT_PIXELS:
            raise InputRefused(
                f"Input validation error: scale_factor {scale_factor:g} makes {large} pixels of {image.width}x{image.height}; "
                f"at most {MAX_OUTPUT_PIXELS} pixels are made; use a smaller scale_factor"
            )
        checkpoint(0.0)
        with output.open("wb") as file:
            writer = PngWriter(file, large, len(image.getbands()), image.info.get("icc_profile"))
            for band in upscale_in_bands(image, scale_factor, sharpen, checkpoint):
                writer.write(band)
            writer.finish()
