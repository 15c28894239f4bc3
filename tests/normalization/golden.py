"""The standard requests that every offer is planned for, and a plan written out for review."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from normalization.explain import table
from normalization.offer import Offer
from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.plan import Call, Composite, Encode, Fit, Plan, Step
from normalization.planner import plan_request, shown
from normalization.pricing import money, quote
from normalization.request import ImageRef, ImageRequest, Json, RequestMode, Text, parse_request

PHOTO = ImageInfo(Format.PNG, Size(1024, 768))
CUTOUT = ImageInfo(Format.PNG, Size(1024, 768), alpha=True)
MASK = ImageInfo(Format.PNG, Size(512, 384), alpha=True)
TURNED = ImageInfo(Format.JPEG, Size(768, 1024), orientation=6, metadata=True)


@dataclass(frozen=True)
class Standard:
    """A request before it is known which offer it is for."""

    fields: Mapping[str, Json] = field(default_factory=dict[str, Json])
    images: tuple[ImageInfo, ...] = (PHOTO,)
    mask: ImageInfo | None = None


STANDARD: Mapping[str, Standard] = {
    "plain": Standard(),
    "three pictures": Standard({"n": 3}),
    "seven pictures from a seed": Standard({"n": 7, "seed": 10}),
    "a size": Standard({"size": "1600x1200"}),
    "a size of another shape": Standard({"size": "1000x1000", "fit": "pad"}),
    "a size beyond most": Standard({"size": "16000x12000"}),
    "eight times as large": Standard({"scale_factor": 8}),
    "a factor and a size": Standard({"scale_factor": 3, "size": "3000x3000"}),
    "a compression": Standard({"output_compression": 60}),
    "what the gateway alone serves, with nothing to do": Standard(
        {"fit": "contain", "background_color": "#102030", "mask_feather": 4, "metadata": "strip", "partial_images": 2}
    ),
    "a shape": Standard({"aspect_ratio": "16:9"}),
    "a resolution": Standard({"resolution": "2K"}),
    "a size and a shape that contradict": Standard({"size": "1024x1024", "aspect_ratio": "16:9"}),
    "jpeg": Standard({"output_format": "jpeg"}),
    "webp, compressed": Standard({"output_format": "webp", "output_compression": 80}),
    "transparent": Standard({"background": "transparent"}, (CUTOUT,)),
    "a mask": Standard(mask=MASK),
    "a mask and a size": Standard({"size": "2048x1536"}, mask=MASK),
    "words and a seed": Standard({"prompt": "a hat", "negative_prompt": "rain", "seed": 7}),
    "every knob": Standard(
        {
            "creativity": 0.4,
            "resemblance": 0.8,
            "guidance_scale": 5,
            "num_inference_steps": 4,
            "quality": "high",
            "style": "vivid",
            "moderation": "low",
            "input_fidelity": "high",
        }
    ),
    "two pictures": Standard(images=(PHOTO, PHOTO)),
    "a photograph as a phone stores it": Standard(images=(TURNED,)),
    "providers' own names": Standard(
        {"upscale_factor": 3, "dynamic": Text("7"), "strength": 0.5, "lora_links": "https://example.com"}
    ),
    "a provider's own name for n": Standard({"num_images": 2}),
    "a parameter that nobody knows": Standard({"brand_new": Text("1.5")}),
}


def standard_requests(offer: Offer) -> dict[str, ImageRequest]:
    """The standard requests as they are for one offer: with what it cannot do without, and without pictures where it paints."""
    return {name: _request(standard, offer) for name, standard in STANDARD.items()}


def _request(standard: Standard, offer: Offer) -> ImageRequest:
    needs = {name for name, rule in offer.params.items() if rule.required}
    words: dict[str, Json] = {"prompt": "a red hat"} if "prompt" in needs else {}
    if "image" not in offer.params:
        return parse_request(RequestMode.GENERATE, {"model": "m", **words, **standard.fields})
    mask = MASK if "mask" in needs else standard.mask
    return parse_request(RequestMode.EDIT, {"model": "m", **words, **standard.fields}, standard.images, mask)


def written(offer: Offer, known: frozenset[str]) -> str:
    """What every standard request becomes with one offer, as text."""
    lines = [f"{offer.provider} {offer.endpoint}", ""]
    for name, request in standard_requests(offer).items():
        lines += [f"## {name}", *_plan(plan_request(request, offer, known), request), ""]
    return "\n".join(line.rstrip() for line in lines)


def _plan(plan: Plan, request: ImageRequest) -> Iterator[str]:
    yield from table(plan).splitlines()
    if plan.refusals:
        yield from (f"REFUSED {reason}" for reason in plan.refusals)
        return
    yield from _calls(plan.calls, request)
    yield from (f"then {_step(step)}" for step in plan.steps)
    if plan.copies > 1:
        yield f"delivered {plan.copies} times"
    cost = quote(plan, request)
    yield f"quote {cost.basis} = {money(cost.usd) or '?'} USD"


def _calls(calls: Sequence[Call], request: ImageRequest) -> Iterator[str]:
    """Equal calls once, with their number."""
    texts = [f"{_pictures(call.images)}: {_payload(call, request)}" for call in calls]
    for text in dict.fromkeys(texts):
        times = texts.count(text)
        yield f"call for {text}" if times == 1 else f"{times} calls for {text}"


def _pictures(number: int) -> str:
    return "1 picture" if number == 1 else f"{number} pictures"


def _payload(call: Call, request: ImageRequest) -> str:
    return " ".join(f"{name}={_value(value, request)}" for name, value in call.payload.items())


def _value(value: object, request: ImageRequest) -> str:
    if isinstance(value, ImageRef):
        return f"<{shown(value, request)}>"
    if isinstance(value, tuple):
        return f"[{', '.join(_value(item, request) for item in value)}]"  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] -- each is looked at
    return repr(value)


def _step(step: Step) -> str:
    match step:
        case Composite():
            return f"lay it over {step.image} through {step.mask}, feathered by {step.feather_px:g}"
        case Fit():
            return f"fit {step.size} ({step.how}{', on ' + step.background if step.background else ''})"
        case Encode():
            compression = "" if step.compression is None else f", compression {step.compression}"
            return f"encode {step.format}{compression}{', on ' + step.background if step.background else ''}"
