"""A phone's picture, sent as it is."""

from io import BytesIO

import pytest
from PIL import Image

from gateway.images import services
from normalization.pixels.heic import is_installed
from tests.gateway.conftest import Live, delivered, error_of

pytestmark = pytest.mark.skipif(not is_installed(), reason="needs the extra heic")


def photograph() -> bytes:
    """A HEIC picture that stands on its side."""
    import pillow_heif

    out, block = BytesIO(), Image.Exif()
    block[0x0112] = 6
    pillow_heif.from_pillow(Image.new("RGB", (64, 96), "red")).save(out, exif=block.tobytes())
    return out.getvalue()


async def test_heic_is_edited(live: Live):
    """The provider gets it upright as a png, the caller a picture in a format that everybody reads."""
    response = await live.edit(photograph(), scale_factor=2, output_format="webp")

    (image,) = await delivered(live, response)
    assert (image.format, image.size) == ("WEBP", (192, 128))
    assert live.backend.inputs[0]["image"].startswith("data:image/png")
    receipt = {entry["param"]: entry for entry in response.json()["metadata"]["normalization"]}
    assert receipt["image"]["asked"] == "heic 96x64"


async def test_heic_without_the_extra_is_400(live: Live, monkeypatch: pytest.MonkeyPatch):
    """It says what is missing here, and what else can be sent."""
    monkeypatch.setattr(services, "is_installed", lambda: False)

    error = error_of(await live.edit(photograph()), 400)

    assert (error["param"], error["code"]) == ("image", "unsupported_file_mimetype")
    assert "image-gateway[heic]" in error["message"]


async def test_heic_cannot_be_asked_for(live: Live):
    """It is read, not written."""
    error = error_of(await live.edit(output_format="heic"), 400)

    assert error["param"] == "output_format"
    assert "heic" not in error["message"].partition(";")[0]
