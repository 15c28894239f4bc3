"""What becomes of the parameters that the gateway alone serves, read off a plan's steps: a receipt claims only work that is done.

The mode is `emulated` where the gateway does something because of the parameter. Else it is `passthrough`, with nothing sent and
with words that say why there is nothing to do.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from normalization.emulations import transparent
from normalization.offer import Output
from normalization.plan import Composite, Decision, Encode, Fit, Mode, Step
from normalization.request import PARAMETERS, FitMode, ImageRequest, Json


def own_decision(name: str, asked: Json, request: ImageRequest, output: Output, steps: Sequence[Step]) -> Decision:
    """The decision for a parameter that never concerns a provider.

    Args:
        name: The parameter.
        asked: Its value as the receipt shows it.
        request: What was asked.
        output: What the offer gives.
        steps: All steps of the plan.
    """
    parameter = PARAMETERS[name]
    does, idle = _JUDGED.get(name, (_always, ""))
    if does(request, output, steps):
        return Decision(name, Mode.EMULATED, asked, emulation=_STRIPPED[bool(steps)] if name == "metadata" else parameter.served)
    return Decision(name, Mode.PASSTHROUGH, asked, emulation=idle)


_Judge = Callable[[ImageRequest, Output, Sequence[Step]], bool]


def _always(request: ImageRequest, output: Output, steps: Sequence[Step]) -> bool:
    return True


def _never(request: ImageRequest, output: Output, steps: Sequence[Step]) -> bool:
    return False


def _fits(request: ImageRequest, output: Output, steps: Sequence[Step]) -> bool:
    """Whether a size or shape that was asked for is reached by a step; one that restores the picture's own needs no rule."""
    shape = None if request.fit is FitMode.CONTAIN else request.shape
    return (request.target or shape) is not None and any(isinstance(step, Fit) for step in steps)


def _composites(request: ImageRequest, output: Output, steps: Sequence[Step]) -> bool:
    return any(isinstance(step, Composite) for step in steps)


def _lies_under(request: ImageRequest, output: Output, steps: Sequence[Step]) -> bool:
    """Whether bars or transparent pixels get the colour."""
    bars = any(isinstance(step, Fit) and step.how is FitMode.PAD and step.background for step in steps)
    flat = any(isinstance(step, Encode) and step.background for step in steps)
    return bars or (flat and (transparent(request, output) or request.asked.get("background") == "opaque"))


def _strips(request: ImageRequest, output: Output, steps: Sequence[Step]) -> bool:
    return bool(steps) or any(info.metadata for info in (*request.images, *((request.mask,) if request.mask else ())))


_STRIPPED = {True: "left out of what is sent and made", False: "left out of what is sent"}

_JUDGED: Mapping[str, tuple[_Judge, str]] = MappingProxyType(
    {
        "fit": (_fits, "nothing to do: the gateway brings nothing to a size or a shape here"),
        "background_color": (_lies_under, "nothing to do: there are neither bars nor transparent pixels to lie under"),
        "mask_feather": (_composites, "nothing to soften: the gateway lays nothing over a picture here"),
        "partial_images": (_never, "nothing to do: the answer comes in one piece"),
        "metadata": (_strips, "nothing to leave out: the pictures have none"),
    }
)
"""When there is something to do, and the words for when there is not."""
