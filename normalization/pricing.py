"""What an offer costs: before (`quote`) and after (`price`). Exact dollars, or unknown with a reason; never a silent zero."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from enum import StrEnum
from types import MappingProxyType

from normalization.offer import Price, PriceUnit, Rule
from normalization.plan import Plan
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
    pixels = expected_pixels(plan, request)
    return _cost(offer.price, seconds, (pixels,) * images, Certainty.ESTIMATED)


def price(terms: Price, *, seconds: Decimal | None, results: Sequence[int | None], units: Decimal | None = None) -> Cost:
    """Say what work has cost.

    Args:
        terms: The offer's price.
        seconds: Time of the provider's machine, summed over calls; None if it did not say.
        results: Pixels of each picture as the provider made it; None if that is not known.
        units: What the provider says it bills, summed over calls, in the unit of its price; then nothing else counts.
    """
    if units is not None and (usd := _per_unit(terms)) is not None:
        return Cost(
            _nano(units * usd), f"{money(units)} {_UNITS[terms.unit]} x {money(usd)} USD/{_UNITS[terms.unit]}", Certainty.COMPUTED
        )
    return _cost(terms, seconds, results, Certainty.COMPUTED)


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


def _cost(terms: Price, seconds: Decimal | None, results: Sequence[int | None], certainty: Certainty) -> Cost:
    match terms.unit:
        case PriceUnit.UNKNOWN:
            return Cost.unknown(terms.why or "the price is unknown")
        case PriceUnit.IMAGE:
            usd = _known(terms)
            return Cost(usd * len(results), f"{len(results)} x {money(usd)} USD/image", certainty)
        case PriceUnit.OUTPUT_MEGAPIXEL:
            return _by_the_megapixel(terms, results, certainty)
        case PriceUnit.TIER:
            return _by_the_tier(terms, results, certainty)
        case PriceUnit.SECOND:
            return _by_the_second(_known(terms), seconds, certainty)
        case PriceUnit.LOCAL_SECOND:
            return Cost.nothing("local", certainty) if not terms.usd else _by_the_second(terms.usd, seconds, certainty)


_UNITS: Mapping[PriceUnit, str] = MappingProxyType(
    {PriceUnit.IMAGE: "image", PriceUnit.OUTPUT_MEGAPIXEL: "MP", PriceUnit.TIER: "unit", PriceUnit.SECOND: "s"}
)
"""What providers count in, by price."""


def _per_unit(terms: Price) -> Decimal | None:
    """Dollars for one of the provider's units, which is the lowest where the price has tiers; None where nothing is counted."""
    if terms.unit not in _UNITS:
        return None
    return terms.tiers[0][1] if terms.tiers else terms.usd


def _known(terms: Price) -> Decimal:
    if terms.usd is None:
        raise ValueError(f"a price per {terms.unit} has an amount")
    return terms.usd


def _by_the_megapixel(terms: Price, results: Sequence[int | None], certainty: Certainty) -> Cost:
    if None in results:
        return Cost.unknown("the size of the result is not known")
    each = [Decimal(pixels) / MEGAPIXEL for pixels in results if pixels is not None]
    billed = sum((megapixels.to_integral_value(ROUND_CEILING) if terms.round_up else megapixels for megapixels in each), Decimal(0))
    usd = _known(terms)
    return Cost(_nano(billed * usd), f"{money(billed)} MP x {money(usd)} USD/MP", certainty)


def _by_the_tier(terms: Price, results: Sequence[int | None], certainty: Certainty) -> Cost:
    if None in results:
        return Cost.unknown("the size of the result is not known")
    each = [_tier(terms, Decimal(pixels) / MEGAPIXEL) for pixels in results if pixels is not None]
    if any(usd is None for usd in each):
        return Cost.unknown("the result is larger than the largest tier")
    usd = sum((one for one in each if one is not None), Decimal(0))
    return Cost(usd, " + ".join(f"{money(one)} USD" for one in each), certainty)


def _tier(terms: Price, megapixels: Decimal) -> Decimal | None:
    return next((usd for most, usd in terms.tiers if megapixels <= most), None)


def _by_the_second(usd: Decimal, seconds: Decimal | None, certainty: Certainty) -> Cost:
    if seconds is None:
        return Cost.unknown("the provider did not say how long it took")
    return Cost(_nano(seconds * usd), f"{money(seconds)} s x {money(usd)} USD/s", certainty)


def _nano(usd: Decimal) -> Decimal:
    """To nano-dollars, which is what the database keeps."""
    return usd.quantize(Decimal("1e-9"))


def expected_pixels(plan: Plan, request: ImageRequest) -> int | None:
    """Pixels of one result as the provider will make it, as far as plan and request tell."""
    at_input_size = any(name in request.asked and rule.at_input_size for name, rule in plan.offer.params.items())
    if at_input_size and request.source_size is not None:
        return request.source_size.pixels
    offer, payload = plan.offer, plan.calls[0].payload
    sized = next((value for value in payload.values() if isinstance(value, Mapping)), None)
    if sized is not None and isinstance(width := sized.get("width"), int) and isinstance(height := sized.get("height"), int):
        return width * height
    if offer.output.pixels is not None or request.source_size is None:
        return offer.output.pixels
    rule = offer.params.get("scale_factor")
    sent = payload.get(rule.to or "scale_factor", rule.default) if rule is not None else None
    factor = _factor(sent, rule)
    width, height = request.source_size
    return round(width * factor) * round(height * factor)


def _factor(sent: object, rule: Rule | None) -> float:
    """The factor that a sent value stands for: a number, or a text of the rule's table such as `2x`."""
    if rule is not None and rule.table:
        sent = next((float(ours) for ours, theirs in rule.table.items() if theirs == sent), sent)
    return float(sent) if isinstance(sent, int | float) else 1.0
