"""What an offer costs: before (`quote`) and after (`price`). Exact dollars, or unknown with a reason; never a silent zero."""

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from normalization.offer import Price, PriceUnit
from normalization.plan import Fit, Plan
from normalization.request import ImageRequest

MEGAPIXEL = Decimal(1_000_000)


class Certainty(StrEnum):
    """How sure a cost is."""

    ESTIMATED = "estimated"
    """Said before the work."""
    COMPUTED = "computed"
    """From what the provider reported of this very work."""
    CONFIRMED = "confirmed"
    """Matched with the provider's own bill."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Cost:
    """Dollars, and how they came about."""

    usd: Decimal | None
    basis: str
    """The arithmetic in words, such as `13 s x 0.000975 USD/s`; for an unknown cost, why it is unknown."""
    certainty: Certainty

    @staticmethod
    def unknown(reason: str) -> "Cost":
        """A cost that nobody can say."""
        return Cost(None, reason, Certainty.UNKNOWN)

    @staticmethod
    def nothing(basis: str, certainty: Certainty = Certainty.COMPUTED) -> "Cost":
        """A cost that is known to be zero."""
        return Cost(Decimal(0), basis, certainty)


def quote(plan: Plan, request: ImageRequest) -> Cost:
    """Say what a plan will cost, for this very input."""
    offer = plan.offer
    images = sum(call.images for call in plan.calls)
    seconds = offer.price.typical_s * len(plan.calls) if offer.price.typical_s is not None else None
    return _cost(offer.price, images, seconds, _expected_pixels(plan, request), Certainty.ESTIMATED)


def price(terms: Price, *, images: int, seconds: Decimal | None, output_pixels: int | None) -> Cost:
    """Say what work has cost.

    Args:
        terms: The offer's price.
        images: Pictures that the provider made.
        seconds: Time of the provider's machine, summed over calls; None if it did not say.
        output_pixels: Pixels of the pictures as the provider made them, summed; None if they are not known.
    """
    return _cost(terms, images, seconds, output_pixels, Certainty.COMPUTED)


def total(costs: list[Cost]) -> Cost:
    """Sum costs; one unknown makes the sum unknown."""
    if not costs:
        return Cost.nothing("nothing was bought")
    unknown = next((cost for cost in costs if cost.usd is None), None)
    if unknown is not None:
        return unknown
    if len(costs) == 1:
        return costs[0]
    usd = sum((cost.usd for cost in costs if cost.usd is not None), Decimal(0))
    certainty = Certainty.ESTIMATED if any(cost.certainty is Certainty.ESTIMATED for cost in costs) else Certainty.COMPUTED
    return Cost(usd, " + ".join(cost.basis for cost in costs), certainty)


def money(usd: Decimal | None) -> str | None:
    """Dollars as the answers show them: plain decimal text without trailing zeros."""
    if usd is None:
        return None
    text = f"{usd:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _cost(terms: Price, images: int, seconds: Decimal | None, pixels: int | None, certainty: Certainty) -> Cost:
    if terms.usd is None or terms.unit is PriceUnit.UNKNOWN:
        return Cost.unknown(terms.why or "the price is unknown")
    match terms.unit:
        case PriceUnit.IMAGE:
            return Cost(terms.usd * images, f"{images} x {money(terms.usd)} USD/image", certainty)
        case PriceUnit.OUTPUT_MEGAPIXEL:
            if pixels is None:
                return Cost.unknown("the size of the result is not known")
            megapixels = Decimal(pixels) / MEGAPIXEL
            return Cost(megapixels * terms.usd, f"{money(megapixels)} MP x {money(terms.usd)} USD/MP", certainty)
        case PriceUnit.SECOND:
            return _by_the_second(terms.usd, seconds, certainty)
        case PriceUnit.LOCAL_SECOND:
            return Cost.nothing("local", certainty) if terms.usd == 0 else _by_the_second(terms.usd, seconds, certainty)


def _by_the_second(usd: Decimal, seconds: Decimal | None, certainty: Certainty) -> Cost:
    if seconds is None:
        return Cost.unknown("the provider did not say how long it took")
    # Nano-dollars are what the database keeps.
    return Cost((seconds * usd).quantize(Decimal("1e-9")), f"{money(seconds)} s x {money(usd)} USD/s", certainty)


def _expected_pixels(plan: Plan, request: ImageRequest) -> int | None:
    """Pixels of all results together, as far as the request alone tells."""
    images = sum(call.images for call in plan.calls)
    fitted = next((step.size for step in plan.steps if isinstance(step, Fit)), None)
    if fitted is not None:
        return fitted.pixels * images
    if not request.images:
        return None
    factor = request.asked.get("scale_factor")
    if not isinstance(factor, int | float):
        rule = plan.offer.params.get("scale_factor")
        factor = rule.default if rule is not None and isinstance(rule.default, int | float) else 1
    return round(request.images[0].size.pixels * factor * factor) * images
