"""Requests and offers for tests of the planner."""

from collections.abc import Mapping
from datetime import date
from decimal import Decimal

from normalization.offer import Offer, Price, PriceUnit, Rule
from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.request import ImageRequest, Json, RequestMode, parse_request

PHOTO = ImageInfo(Format.PNG, Size(640, 480))
CUTOUT = ImageInfo(Format.PNG, Size(640, 480), alpha=True)


def request(
    fields: Mapping[str, Json] | None = None, *, images: tuple[ImageInfo, ...] = (PHOTO,), mask: ImageInfo | None = None
) -> ImageRequest:
    """An edit of one plain photograph."""
    return parse_request(RequestMode.EDIT, {"model": "m", **(fields or {})}, images, mask)


def offer(master: Mapping[str, Json] | None = None, **params: Rule) -> Offer:
    """An offer of a provider that does not exist."""
    return Offer(
        provider="acme",
        endpoint="acme/model",
        params=params,
        price=Price(PriceUnit.IMAGE, Decimal("0.04")),
        source="made up",
        checked=date(2026, 1, 1),
        master=master or {},
    )
