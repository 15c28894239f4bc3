"""Carry out the pixel steps of a plan on one picture, in the order in which they stand."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import BinaryIO, assert_never

from PIL import Image

from normalization.pixels.animation import Animation
from normalization.pixels.encode import encode
from normalization.pixels.fit import fit
from normalization.pixels.formats import Size
from normalization.pixels.mask import composite
from normalization.plan import Composite, Encode, Fit, Step
from normalization.request import ImageRef
from normalization.sizes import shaped


def apply_steps(
    picture: Image.Image | Animation,
    steps: Sequence[Step],
    companions: Mapping[ImageRef, Image.Image],
    out: BinaryIO,
    exif: bytes = b"",
) -> None:
    """Run `steps` on `picture`, on each of its frames alike, and write the result to `out`.

    Args:
        picture: The provider's picture, cleaned.
        steps: Any number, with one `Encode`, which is the last.
        companions: The caller's own pictures that the steps lay over or under it, cleaned.
        out: Where the encoded picture goes.
        exif: What the encode keeps, of `normalization.pixels.metadata`.

    Raises:
        EdgeTooLong: If the format cannot store the size.
        ValueError: If the steps do not end with their only `Encode`.
    """
    *before, last = steps or (None,)
    if not isinstance(last, Encode):
        raise ValueError("steps must end with an encode")
    for step in before:
        change = partial(_done, step=step, companions=companions)
        picture = picture.each(change) if isinstance(picture, Animation) else change(picture)
    encode(picture, last, out, exif)


def _done(image: Image.Image, step: Step | None, companions: Mapping[ImageRef, Image.Image]) -> Image.Image:
    match step:
        case Composite():
            return composite(companions[step.image], image, companions[step.mask], step.feather_px)
        case Fit():
            size = step.size if isinstance(step.size, Size) else shaped(Size(*image.size), step.size, step.how)
            return fit(image, size, step.how, step.background)
        case Encode() | None:
            raise ValueError("only the last step may be an encode")
        case _:
            assert_never(step)
