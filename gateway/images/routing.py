"""Routing: put the plans in the order to try them, and say why the others are left out. Plans are compared, not names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum

from gateway.errors import BadRequest, ModelNotFound, NoOffer, OverBudget
from normalization.explain import receipt
from normalization.offer import Model, Offer
from normalization.pixels.formats import FORMATS, Format, Size
from normalization.plan import Decision, Encode, Fit, Mode, Plan
from normalization.planner import plan_request
from normalization.pricing import Cost, money, quote
from normalization.request import ImageRequest, Json
from providers.catalog import Catalog


class OnUnsupported(StrEnum):
    """What becomes of a parameter that the best offer lacks."""

    DROP = "drop"
    ERROR = "error"


class Policy(StrEnum):
    """What is weighed first when offers are compared."""

    BALANCED = "balanced"
    PRICE = "price"
    LATENCY = "latency"
    NATIVE_FIRST = "native_first"


@dataclass(frozen=True, slots=True)
class Controls:
    """What a caller says of how the request is served; never part of what a provider gets."""

    on_unsupported: OnUnsupported = OnUnsupported.DROP
    policy: Policy = Policy.BALANCED
    order: tuple[str, ...] = ()
    """Providers in the order wanted; others come after them."""
    max_cost_usd: Decimal | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """One plan, what it would cost, and why it cannot be used, if it cannot."""

    plan: Plan
    cost: Cost
    reasons: tuple[str, ...] = ()

    @property
    def eligible(self) -> bool:
        """Whether it may be tried."""
        return not self.reasons


@dataclass(frozen=True, slots=True)
class Route:
    """Who is tried, in order, and who is not."""

    chosen: tuple[Candidate, ...]
    left_out: tuple[Candidate, ...]


def find_model(name: str, catalog: Catalog, param: str | None = None) -> tuple[Model, tuple[Offer, ...]]:
    """The model a caller names, and the offers that may serve it.

    Raises:
        ModelNotFound: With what may have been meant.
    """
    found = catalog.find(name)
    if found is not None:
        return found
    similar = catalog.similar(name)
    hint = f" Did you mean {' or '.join(similar)}?" if similar else " GET /v1/models lists the ids."
    shown = name if len(name) <= 64 else f"{name[:63]}…"
    raise ModelNotFound(f"The model `{shown}` does not exist or you do not have access to it.{hint}", param=param)


MAX_FITTED_PIXELS = 2**27
"""What a result is resampled to at most: with transparency, what fits into a worker of the pixel pool."""

MAX_FITTED_AVIF_PIXELS = 2**26
"""The same for AVIF, whose encoder takes about twice as much memory."""

Unavailable = Callable[[Offer], str | None]
"""Why an offer cannot take work at all at the moment (no key, no backend); None if it can."""


def weigh(
    request: ImageRequest, offers: Sequence[Offer], known: frozenset[str], unavailable: Unavailable, *, allow_unpriced: bool
) -> list[Candidate]:
    """Plan and price every offer; none is left out silently."""
    candidates: list[Candidate] = []
    for offer in offers:
        plan = _within_reach(plan_request(request, offer, known))
        cost = quote(plan, request)
        reasons = list(plan.refusals)
        away = unavailable(offer)
        reasons += [away] if away else []
        reasons += [f"{offer.provider}: {cost.basis}"] if cost.usd is None and not allow_unpriced else []
        candidates.append(Candidate(plan, cost, tuple(reasons)))
    return candidates


def _within_reach(plan: Plan) -> Plan:
    """The plan, with the size refused where the gateway would have to make a picture larger than it or the format can hold."""
    fitted = next((step.size for step in plan.steps if isinstance(step, Fit) and isinstance(step.size, Size)), None)
    encode = next((step for step in plan.steps if isinstance(step, Encode)), None)
    if fitted is None or encode is None:
        return plan
    edge = FORMATS[encode.format].max_edge
    most = MAX_FITTED_AVIF_PIXELS if encode.format is Format.AVIF else MAX_FITTED_PIXELS
    if fitted.pixels <= most and max(fitted) <= edge:
        return plan
    limits = f"{encode.format} is made with edges of at most {edge} pixels and {most} pixels in all"

    def refused(decision: Decision) -> Decision:
        reason = f"{plan.offer.provider}: {decision.param} comes to {fitted}; {limits}"
        return replace(decision, mode=Mode.UNSUPPORTED, sent={}, emulation=None, reason=reason, refused=True)

    asked = {decision.param for decision in plan.decisions}
    param = next((name for name in ("size", "scale_factor") if name in asked), None)
    return replace(plan, decisions=tuple(refused(one) if one.param == param else one for one in plan.decisions))


def order(candidates: Sequence[Candidate], controls: Controls) -> Route:
    """Put candidates in the order to try them."""
    ranked = sorted(candidates, key=lambda candidate: _rank(candidate, controls))
    return Route(tuple(c for c in ranked if c.eligible), tuple(c for c in ranked if not c.eligible))


def choose_route(candidates: Sequence[Candidate], controls: Controls) -> Route:
    """Put candidates in the order to try them, or say why the request cannot be served.

    Raises:
        BadRequest: No offer takes these values; or strictness was asked for and the best offer lacks a parameter.
        OverBudget: Every offer costs more than the caller allows.
        NoOffer: Offers could serve it, but none can be used as the gateway is set up.
    """
    route = order(candidates, controls)
    if not route.chosen:
        raise _unservable(route)
    lacking = route.chosen[0].plan.unsupported
    if lacking and controls.on_unsupported is OnUnsupported.ERROR:
        raise BadRequest(
            "Not every parameter can be served: " + _lines(candidates, _unsupported),
            param=lacking[0].param,
            code="unsupported_parameter",
        )
    affordable = tuple(c for c in route.chosen if _affordable(c, controls.max_cost_usd))
    if not affordable:
        cheapest = min((c.cost.usd for c in route.chosen if c.cost.usd is not None), default=None)
        raise OverBudget(
            f"Every offer costs more than x-gateway-max-cost-usd allows; the cheapest: {money(cheapest) or 'unknown'} USD.",
            extra={"required_usd": money(cheapest), "available_usd": money(controls.max_cost_usd)},
        )
    return Route(affordable, route.left_out)


def dry_run(request: ImageRequest, route: Route) -> dict[str, Json]:
    """What would happen, for every offer, best first."""
    return {"dry_run": True, "offers": [_explained(request, candidate) for candidate in (*route.chosen, *route.left_out)]}


def _explained(request: ImageRequest, candidate: Candidate) -> dict[str, Json]:
    cost = candidate.cost
    return {
        "provider": candidate.plan.offer.provider,
        "endpoint": candidate.plan.offer.endpoint,
        "eligible": candidate.eligible,
        "reasons": list(candidate.reasons),
        "cost": {"usd": money(cost.usd), "basis": cost.basis, "certainty": cost.certainty.value},
        "normalization": receipt(candidate.plan, request),
    }


def _rank(candidate: Candidate, controls: Controls) -> tuple[object, ...]:
    provider = candidate.plan.offer.provider
    wanted = controls.order.index(provider) if provider in controls.order else len(controls.order)
    decisions = candidate.plan.decisions
    unsupported = sum(decision.mode is Mode.UNSUPPORTED for decision in decisions)
    emulated = sum(decision.mode is Mode.EMULATED for decision in decisions)
    price = candidate.cost.usd if candidate.cost.usd is not None else Decimal("Infinity")
    match controls.policy:
        case Policy.PRICE:
            return (wanted, price, unsupported, emulated)
        case Policy.BALANCED | Policy.LATENCY | Policy.NATIVE_FIRST:
            return (wanted, unsupported, emulated, price)


def _affordable(candidate: Candidate, most: Decimal | None) -> bool:
    return most is None or (candidate.cost.usd is not None and candidate.cost.usd <= most)


def _unservable(route: Route) -> BadRequest | NoOffer:
    """The one error for a request that nobody can serve: the caller's fault where the plans say so, else ours."""
    plans = [candidate.plan for candidate in route.left_out]
    if any(not plan.refusals for plan in plans) or not plans:
        reasons = _lines(route.left_out, lambda candidate: candidate.reasons)
        words = f"No offer of this model can take work: {reasons}"
        return NoOffer(words, detail=reasons)
    missing = [name for name in plans[0].missing if all(name in plan.missing for plan in plans)]
    if missing:
        return BadRequest(f"`{missing[0]}` is required by this model.", param=missing[0], code="missing_required_parameter")
    refused = [decision for plan in plans for decision in plan.decisions if decision.refused]
    lines = _lines(route.left_out, lambda candidate: candidate.plan.refusals)
    return BadRequest(f"No offer of this model can serve this: {lines}", param=refused[0].param if refused else None)


def _unsupported(candidate: Candidate) -> tuple[str, ...]:
    return tuple(decision.reason or decision.param for decision in candidate.plan.unsupported)


def _lines(candidates: Sequence[Candidate], reasons: Callable[[Candidate], tuple[str, ...]]) -> str:
    return "; ".join(dict.fromkeys(reason for candidate in candidates for reason in reasons(candidate)))
