"""What a plan costs: `python -m bench.planning` plans a standard set of requests for every offer of the catalog.

Prints microseconds of CPU for one plan. Exits with 1 if the median is above `LIMIT_US`.
"""

import gc
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from normalization.offer import Offer
from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.plan import Plan
from normalization.planner import plan_request
from normalization.request import ImageRequest, Json, RequestMode, Text, parse_request
from providers.catalog import load_catalog

LIMIT_US = 200
_ROUNDS = 40
_PHOTO = ImageInfo(Format.JPEG, Size(4032, 3024), orientation=6, metadata=True, profile=True)
_PLAIN = ImageInfo(Format.PNG, Size(640, 480))

REQUESTS: Mapping[str, Mapping[str, Json]] = {
    "bare": {"prompt": "a harbour at dawn"},
    "upscale": {"prompt": "", "scale_factor": Text("8"), "creativity": Text("0.35"), "seed": Text("7")},
    "sized": {"prompt": "a hat", "size": "2048x1152", "n": Text("3"), "output_format": "webp", "output_compression": Text("80")},
    "shaped": {"prompt": "a hat", "aspect_ratio": "16:9", "resolution": "2K", "fit": "pad", "background": "opaque"},
    "openai": {"prompt": "a hat", "size": "auto", "quality": "high", "background": "transparent", "user": "u", "moderation": "low"},
    "unknown": {"prompt": "a hat", "sharpen": Text("0.4"), "deep": Text('{"a": [1, 2]}'), "num_images": Text("2")},
}


@dataclass(frozen=True, slots=True)
class Timed:
    """One request with one offer."""

    request: str
    offer: str
    us: float
    """Of one plan: the median of all rounds."""


def main() -> None:
    """Time every pair, print the figures, compare with the limit."""
    catalog = load_catalog()
    offers = [offer for model in catalog.models.values() for offer in model.offers]
    requests = [(f"{name}, {shape}", _request(fields, infos)) for name, fields in REQUESTS.items() for shape, infos in _PICTURES]
    gc.disable()  # a plan leaves no cycles; collecting what the catalog left would be counted to some of them
    found = [_timed(name, request, offer, catalog.parameters) for name, request in requests for offer in offers]
    _print(found, len(offers), len(requests))
    sys.exit(0 if median(one.us for one in found) <= LIMIT_US else 1)


_PICTURES: Sequence[tuple[str, tuple[ImageInfo, ...]]] = (("plain picture", (_PLAIN,)), ("photograph", (_PHOTO,)))


def _request(fields: Mapping[str, Json], infos: tuple[ImageInfo, ...]) -> ImageRequest:
    return parse_request(RequestMode.EDIT, {"model": "any", **fields}, infos)


def _timed(name: str, request: ImageRequest, offer: Offer, known: frozenset[str]) -> Timed:
    return Timed(name, f"{offer.provider}/{offer.endpoint}", median(_once(request, offer, known) for _ in range(_ROUNDS)))


def _once(request: ImageRequest, offer: Offer, known: frozenset[str]) -> float:
    started = time.thread_time_ns()
    plan = plan_request(request, offer, known)
    spent = time.thread_time_ns() - started
    assert isinstance(plan, Plan)
    return spent / 1000


def _print(found: Sequence[Timed], offers: int, requests: int) -> None:
    times = [one.us for one in found]
    slowest = max(found, key=lambda one: one.us)
    print(f"{len(found)} plans: {offers} offers, {requests} requests, median of {_ROUNDS} rounds each; microseconds of CPU")
    print(f"median {median(times):.0f}, p95 {quantiles(times, n=20)[-1]:.0f}, slowest {slowest.us:.0f}", end="")
    print(f" ({slowest.request} for {slowest.offer}); the limit for the median is {LIMIT_US}")


if __name__ == "__main__":
    main()
