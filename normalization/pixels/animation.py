"""Pictures that move: their frames as everybody sees them, how long each stays, and how often they play."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from normalization.pixels.color import has_alpha
from normalization.pixels.formats import Format
from normalization.pixels.prepare import clean

FOREVER = 0
"""Of `Animation.plays`."""

_DEFAULT_MS = 100
_SHORTEST_MS = 11
"""Browsers show shorter frames for a tenth of a second, and files are made for them.

Source: https://webkit.org/b/36082; Mozilla and Chromium do the same.
"""


@dataclass(frozen=True, slots=True)
class Animation:
    """Frames of one size and one mode (RGB, RGBA or L), cleaned."""

    frames: tuple[Image.Image, ...]
    durations_ms: tuple[int, ...]
    """Of each frame."""
    plays: int = FOREVER
    """How often it is shown from beginning to end; 0 is for ever."""

    def each(self, change: Callable[[Image.Image], Image.Image]) -> "Animation":
        """The same animation with every frame changed alike."""
        return Animation(tuple(map(change, self.frames)), self.durations_ms, self.plays)


def read_animation(image: Image.Image, kind: Format) -> Animation:
    """All frames of an opened picture, decoded and cleaned.

    Args:
        image: As Pillow opened it, at its first frame.
        kind: Its format.

    Raises:
        OSError, ValueError, SyntaxError, EOFError: By Pillow, if a frame cannot be decoded.
    """
    frames: list[Image.Image] = []
    durations: list[int] = []
    plays = _plays(image, kind)
    # The picture that an APNG shows where animations are unknown may not be part of the animation.
    first = 1 if image.info.get("default_image") else 0
    for index in range(first, getattr(image, "n_frames", 1)):
        image.seek(index)
        image.load()
        durations.append(_duration_ms(image.info.get("duration")))
        frames.append(clean(image))
    mode = _common_mode(frames)
    return Animation(tuple(frame if frame.mode == mode else frame.convert(mode) for frame in frames), tuple(durations), plays)


def animation_options(animation: Animation, kind: Format) -> dict[str, Any]:
    """What Pillow's writer of `kind` wants to know of an animation, beside its frames. AVIF has no word for `plays` there."""
    options: dict[str, Any] = {"save_all": True, "duration": list(animation.durations_ms)}
    match kind:
        case Format.GIF:
            # Each frame is whole, so none shines through the next. The count there is of repetitions; without one it plays once.
            repeats = {} if animation.plays == 1 else {"loop": max(0, animation.plays - 1)}
            return options | repeats | {"disposal": 2}
        case Format.WEBP:
            # A file of frames cut to where they are opaque would not say that it is transparent, so every frame is whole.
            whole = {"kmin": 1, "kmax": 1} if has_alpha(animation.frames[0]) else {}
            return options | whole | {"loop": animation.plays}
        case Format.PNG:
            return options | {"loop": animation.plays}
        case _:
            return options


def _plays(image: Image.Image, kind: Format) -> int:
    loop = image.info.get("loop")
    if kind is Format.GIF:
        return 1 if loop is None else int(loop) + 1 if loop else FOREVER
    return int(loop or FOREVER)


def _duration_ms(told: object) -> int:
    milliseconds = round(told) if isinstance(told, int | float) else 0
    return milliseconds if milliseconds >= _SHORTEST_MS else _DEFAULT_MS


def _common_mode(frames: list[Image.Image]) -> str:
    if any(has_alpha(frame) for frame in frames):
        return "RGBA"
    return "L" if all(frame.mode == "L" for frame in frames) else "RGB"
