"""Routing: put the plans in the order to try them, and say why the others are left out. Plans are compared, not names.

An offer that rests comes after all that do not, whatever the policy: it is the last resort. Then come the caller's own order of
providers, and the policy, where the next thing counts where two offers are equal in one:

    balanced        steady before shaky; fewest unsupported; fewest emulated; price; latency
    price           price; fewest unsupported; fewest emulated; steady; latency
    latency         latency, not measured first; fewest unsupported; fewest emulated; steady; price
    native_first    fewest unsupported; fewest emulated; fewest converted; steady; price; latency

Under `balanced`, and without an order of the caller's, the operator's weights and canaries may put another first: one that does as
well as the best, which is as steady and has as few unsupported.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from itertools import accumulate
from typing import assert_never

from gateway.errors import BadRequest, ModelNotFound, NoOffer, OverBudget
from gateway.images.health import Condition
from gateway.settings import Routing
from normalization.explain import receipt
from normalization.offer import Model, Offer, PriceUnit
from normalization.pixels.formats import FORMATS, Format, Size
from normalization.plan import Decision, Encode, Fit, Mode, Plan, fitted_size
from normalization.planner import plan_request
from normalization.pricing import Cost, expected_pixels, money, quote
from normalization.request import ImageRequest, Json, RequestMode
from providers.catalog import Catalog


class OnUnsupported(StrEnum):
    """What becomes of a parameter that an offer lacks: it is dropped, or the offer is not eligible."""

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
    policy: Policy | None = None
    """None: the operator's."""
    order: tuple[str, ...] = ()
    """Providers in the order wanted; others come after them."""
    max_cost_usd: Decimal | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Steering:
    """What the operator says of the order, and what the draw for a request is made from."""

    policy: Policy = Policy.BALANCED
    """For callers who name none."""
    weights: Mapping[str, float] = field(default_factory=dict[str, float])
    """By `provider/endpoint` or `provider`."""
    canaries: Mapping[str, float] = field(default_factory=dict[str, float])
    """The share of requests, 0..1, by the same names."""
    request_id: str | None = None
    """None: nothing is drawn, and only the policy counts."""

    @classmethod
    def of(cls, routing: Routing, request_id: str | None, tenant: str | None = None) -> "Steering":
        """As the operator has set it for a tenant, by name."""
        own = next((each.policy for each in routing.tenant_policies if each.tenant == tenant), routing.policy)
        return cls(
            policy=Policy(own),
            weights={each.offer: each.weight for each in routing.weights},
            canaries={each.offer: each.share for each in routing.canaries},
            request_id=request_id,
        )


class Verdict(StrEnum):
    """What became of an offer."""

    CHOSEN = "chosen"
    """It delivered; in a dry run: it would be tried first."""
    TRIED = "tried"
    """It was tried, and did not deliver."""
    SKIPPED = "skipped"
    """It could have served the request, and was not tried."""
    NOT_ELIGIBLE = "not_eligible"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One plan, what it would cost, how its offer is, and why it cannot be used, if it cannot."""

    plan: Plan
    cost: Cost
    reasons: tuple[str, ...] = ()
    condition: Condition = field(default_factory=Condition)
    favour: str | None = None
    """Why it stands before better ones, if it does."""

    @property
    def eligible(self) -> bool:
        """Whether it may be tried."""
        return not self.reasons


@dataclass(frozen=True, slots=True)
class Route:
    """Who is tried, in order, and who is not."""

    chosen: tuple[Candidate, ...]
    left_out: tuple[Candidate, ...]
    policy: Policy = Policy.BALANCED
    """What the order was made by."""


Unavailable = Callable[[Offer], str | None]
"""Why an offer cannot take work at all at the moment (no key, no backend); None if it can."""


def find_model(
    name: str, catalog: Catalog, param: str | None = None, unavailable: Unavailable = lambda _: None
) -> tuple[Model, tuple[Offer, ...]]:
    """The model a caller names, and the offers that may serve it.

    Args:
        name: As the caller has it.
        catalog: Where to look.
        param: The parameter that named it, for the error.
        unavailable: Keeps models that nobody can serve from being suggested before others.

    Raises:
        ModelNotFound: With what may have been meant.
    """
    found = catalog.find(name)
    if found is not None:
        return found
    shown = name if len(name) <= 64 else f"{name[:63]}…"
    hint = _meant(catalog.similar(name), catalog, unavailable)
    raise ModelNotFound(f"The model `{shown}` does not exist or you do not have access to it. {hint}", param=param)


def _meant(similar: Sequence[str], catalog: Catalog, unavailable: Unavailable) -> str:
    """A suggestion: of what can be served now, if there is any; else with what is in the way."""
    if not similar:
        return "GET /v1/models lists the ids."
    served = [name for name in similar if is_served(catalog.models[name], unavailable)]
    if served:
        return f"Did you mean {' or '.join(served)}?"
    nearest = catalog.models[similar[0]]
    reasons = dict.fromkeys(unavailable(offer) or "its price is unknown" for offer in nearest.offers)
    return f"Did you mean {nearest.id}? It cannot be served now: {'; '.join(reasons)}."


def is_served(model: Model, unavailable: Unavailable) -> bool:
    """Whether some offer of a model can take work as the gateway is set up, at a known price."""
    return any(unavailable(offer) is None and offer.price.unit is not PriceUnit.UNKNOWN for offer in model.offers)


_MOST_NAMED = 5
"""Models that an error names; `GET /v1/models` has all."""


def with_alternatives(error: NoOffer, mode: RequestMode, catalog: Catalog, unavailable: Unavailable) -> NoOffer:
    """The error, with the models that could take such work now."""
    served = [name for name, model in catalog.models.items() if mode in model.modes and is_served(model, unavailable)]
    more = ", …" if len(served) > _MOST_NAMED else ""
    others = f"Models that can be served now: {', '.join(served[:_MOST_NAMED]) or 'none'}{more}."
    return NoOffer(f"{error.message} {others}", detail=error.detail)


MAX_FITTED_PIXELS = 2**27
"""What a result is resampled to at most: with transparency, what fits into a worker of the pixel pool."""

MAX_FITTED_AVIF_PIXELS = 2**26
"""The same for AVIF, whose encoder takes about twice as much memory."""


def weigh(
    request: ImageRequest,
    offers: Sequence[Offer],
    known: frozenset[str],
    unavailable: Unavailable,
    *,
    allow_unpriced: bool,
    look: Callable[[Offer], Condition] = lambda _: Condition(),
) -> list[Candidate]:
    """Plan and price every offer; none is left out silently.

    Args:
        request: What is asked.
        offers: Who may serve it.
        known: Every parameter that the catalog knows.
        unavailable: Whether an offer can take work at all.
        allow_unpriced: Whether one without a known price may be used.
        look: How an offer is at the moment.
    """
    candidates: list[Candidate] = []
    for offer in offers:
        plan = _within_reach(plan_request(request, offer, known), request)
        cost = quote(plan, request)
        reasons = list(plan.refusals)
        away = unavailable(offer)
        reasons += [away] if away else []
        reasons += [f"{offer.provider}: {cost.basis}"] if cost.usd is None and not allow_unpriced else []
        candidates.append(Candidate(plan, cost, tuple(reasons), look(offer)))
    return candidates


def _within_reach(plan: Plan, request: ImageRequest) -> Plan:
    """The plan, with the size refused where the gateway would have to make a picture larger than it or the format can hold."""
    fitted = _fitted(plan, request)
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
    param = next((name for name in ("size", "scale_factor", "aspect_ratio", "resolution", "image") if name in asked), None)
    return replace(plan, decisions=tuple(refused(one) if one.param == param else one for one in plan.decisions))


def _fitted(plan: Plan, request: ImageRequest) -> Size | None:
    """The largest size that the plan's fits make, as far as it can be told beforehand."""
    fits = [step for step in plan.steps if isinstance(step, Fit)]
    pixels, source = expected_pixels(plan, request), request.source_size
    if not fits or (pixels is None and not isinstance(fits[0].size, Size)):
        return None
    made = source or Size(1, 1)
    scale = math.sqrt((pixels or made.pixels) / made.pixels)
    size = Size(max(1, round(made.width * scale)), max(1, round(made.height * scale)))
    sizes = [size := fitted_size(step, size) for step in fits]
    return max(sizes, key=lambda one: one.pixels)


def order(candidates: Sequence[Candidate], controls: Controls, steering: Steering | None = None) -> Route:
    """Put candidates in the order to try them."""
    steering = steering or Steering()
    policy = controls.policy or steering.policy
    judged = [_within_limits(candidate, controls) for candidate in candidates]
    ranked = sorted(judged, key=lambda candidate: _rank(candidate, controls, policy))
    able = [candidate for candidate in ranked if candidate.eligible]
    if policy is Policy.BALANCED and not controls.order:
        able = _steered(able, steering)
    return Route(tuple(able), tuple(c for c in ranked if not c.eligible), policy)


def choose_route(candidates: Sequence[Candidate], controls: Controls, steering: Steering | None = None) -> Route:
    """Put candidates in the order to try them, or say why the request cannot be served.

    Raises:
        BadRequest: No offer takes these values; or strictness was asked for and every offer lacks a parameter.
        OverBudget: Every offer costs more than the caller allows.
        NoOffer: Offers could serve it, but none can be used as the gateway is set up.
    """
    route = order(candidates, controls, steering)
    if route.chosen:
        return route
    able = order([c for c in candidates if c.eligible], replace(controls, on_unsupported=OnUnsupported.DROP, max_cost_usd=None))
    if not able.chosen:
        raise _unservable(route)
    strict = controls.on_unsupported is OnUnsupported.ERROR
    complete = [c for c in able.chosen if not (strict and c.plan.unsupported)]
    if not complete:
        raise BadRequest(
            "Not every parameter can be served: " + _lines(candidates, _unsupported),
            param=able.chosen[0].plan.unsupported[0].param,
            code="unsupported_parameter",
        )
    cheapest = min((c.cost.usd for c in complete if c.cost.usd is not None), default=None)
    raise OverBudget(
        f"Every offer costs more than x-gateway-max-cost-usd allows; the cheapest: {money(cheapest) or 'unknown'} USD.",
        extra={"required_usd": money(cheapest), "available_usd": money(controls.max_cost_usd)},
    )


def dry_run(request: ImageRequest, route: Route) -> dict[str, Json]:
    """What would happen, for every offer, best first."""
    told = [
        *((candidate, Verdict.CHOSEN) for candidate in route.chosen[:1]),
        *((candidate, Verdict.SKIPPED) for candidate in route.chosen[1:]),
        *((candidate, Verdict.NOT_ELIGIBLE) for candidate in route.left_out),
    ]
    return {"dry_run": True, "offers": [_explained(request, candidate, verdict, route.policy) for candidate, verdict in told]}


def _explained(request: ImageRequest, candidate: Candidate, verdict: Verdict, policy: Policy) -> dict[str, Json]:
    cost = candidate.cost
    return {
        "provider": candidate.plan.offer.provider,
        "endpoint": candidate.plan.offer.endpoint,
        "eligible": candidate.eligible,
        "verdict": verdict.value,
        "reasons": list(candidate.reasons),
        "standing": standing(candidate, policy),
        "cost": {"usd": money(cost.usd), "basis": cost.basis, "certainty": cost.certainty.value},
        "normalization": receipt(candidate.plan, request),
    }


def standing(candidate: Candidate, policy: Policy) -> str:
    """What an offer's place was made from, in words."""
    condition, price = candidate.condition, money(candidate.cost.usd)
    health = condition.resting or "steady"
    if condition.resting is None and condition.shaky and condition.success_rate is not None:
        health = f"shaky, {condition.success_rate:.0%} of the last attempts delivered"
    words = [
        f"{policy}: {health}",
        f"{_count(candidate, Mode.UNSUPPORTED)} unsupported",
        f"{_count(candidate, Mode.EMULATED)} emulated",
    ]
    words += [f"{_count(candidate, Mode.CONVERTED)} converted"] if policy is Policy.NATIVE_FIRST else []
    words += [f"{price} USD" if price is not None else "price unknown"]
    if policy is Policy.LATENCY:
        words += ["not measured yet" if condition.latency_s is None else f"about {condition.latency_s:.1f} s"]
    return ", ".join([*words, *([candidate.favour] if candidate.favour else [])])


def unknown_names(routing: Routing, catalog: Catalog) -> list[str]:
    """Names in the weights and canaries that no offer of the catalog has: spelling mistakes, most likely."""
    offers = [offer for model in catalog.models.values() for offer in model.offers]
    names = {name for offer in offers for name in _names(offer)}
    return [each.offer for each in (*routing.weights, *routing.canaries) if each.offer not in names]


def _within_limits(candidate: Candidate, controls: Controls) -> Candidate:
    """The candidate, with the reasons why the caller's own limits leave it out."""
    reasons = list(candidate.reasons)
    if controls.on_unsupported is OnUnsupported.ERROR:
        reasons += [words for words in _unsupported(candidate) if words not in reasons]
    if not _affordable(candidate, controls.max_cost_usd):
        price = f"costs {money(candidate.cost.usd)} USD" if candidate.cost.usd is not None else "has no known price"
        reasons.append(f"{candidate.plan.offer.provider}: {price}; x-gateway-max-cost-usd allows {money(controls.max_cost_usd)}")
    return replace(candidate, reasons=tuple(reasons))


def _rank(candidate: Candidate, controls: Controls, policy: Policy) -> tuple[object, ...]:
    provider, condition = candidate.plan.offer.provider, candidate.condition
    rests = 0 if condition.resting is None else 1 + condition.lasting
    wanted = controls.order.index(provider) if provider in controls.order else len(controls.order)
    unsupported, emulated = _count(candidate, Mode.UNSUPPORTED), _count(candidate, Mode.EMULATED)
    price = candidate.cost.usd if candidate.cost.usd is not None else Decimal("Infinity")
    latency = condition.latency_s or 0.0
    match policy:
        case Policy.BALANCED:
            key: tuple[object, ...] = (condition.shaky, unsupported, emulated, price, latency)
        case Policy.PRICE:
            key = (price, unsupported, emulated, condition.shaky, latency)
        case Policy.LATENCY:
            key = (latency, unsupported, emulated, condition.shaky, price)
        case Policy.NATIVE_FIRST:
            key = (unsupported, emulated, _count(candidate, Mode.CONVERTED), condition.shaky, price, latency)
        case _:
            assert_never(policy)
    return (rests, wanted, *key)


def _count(candidate: Candidate, mode: Mode) -> int:
    return sum(decision.mode is mode for decision in candidate.plan.decisions)


def _steered(ranked: list[Candidate], steering: Steering) -> list[Candidate]:
    """The order with the operator's weights and canaries, among those that do as well as the best."""
    if not ranked or steering.request_id is None or not (steering.weights or steering.canaries):
        return ranked
    equals = [candidate for candidate in ranked if _merit(candidate) == _merit(ranked[0])]
    canaries = [candidate for candidate in equals if _named(candidate, steering.canaries) is not None]
    spare = [c for c in equals if c in canaries or _named(c, steering.weights) == 0]
    usual = [c for c in equals if c not in spare]
    first = _canary(canaries, steering, steering.request_id) or _drawn(usual, steering, steering.request_id)
    ordered = [*usual, *spare, *ranked[len(equals) :]]
    return [first, *(c for c in ordered if c.plan is not first.plan)] if first else ordered


def _merit(candidate: Candidate) -> tuple[bool, bool, bool, int]:
    """What no weight outdoes; the same for those that begin the order."""
    condition = candidate.condition
    return condition.resting is not None, condition.lasting, condition.shaky, _count(candidate, Mode.UNSUPPORTED)


def _canary(canaries: Sequence[Candidate], steering: Steering, request_id: str) -> Candidate | None:
    """The canary whose turn it is, if it is one's turn."""
    drawn, upto = draw(request_id, "canary"), 0.0
    for candidate in canaries:
        share = _named(candidate, steering.canaries) or 0.0
        upto += share
        if drawn < upto:
            return replace(candidate, favour=f"canary with a share of {share:g}")
    return None


def _drawn(usual: Sequence[Candidate], steering: Steering, request_id: str) -> Candidate | None:
    """The one whose turn it is by the weights, if there are any."""
    named = [_named(candidate, steering.weights) for candidate in usual]
    if len(usual) < 2 or all(weight is None for weight in named):
        return None
    weights = [1.0 if weight is None else weight for weight in named]
    whole = math.fsum(weights)
    drawn = draw(request_id, "weight") * whole
    for candidate, upto, weight in zip(usual, accumulate(weights), weights, strict=True):
        if drawn < upto:
            return replace(candidate, favour=f"drawn with a weight of {weight:g} in {whole:g}")
    return None  # only where adding up has rounded


def draw(request_id: str, purpose: str) -> float:
    """0..1, the same each time for the same request and purpose, and spread evenly over requests."""
    digest = hashlib.sha256(f"{purpose}:{request_id}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _named(candidate: Candidate, table: Mapping[str, float]) -> float | None:
    return next((table[name] for name in _names(candidate.plan.offer) if name in table), None)


def _names(offer: Offer) -> tuple[str, str]:
    """What an offer may be called in settings, the more exact first."""
    return f"{offer.provider}/{offer.endpoint}", offer.provider


def _affordable(candidate: Candidate, most: Decimal | None) -> bool:
    return most is None or (candidate.cost.usd is not None and candidate.cost.usd <= most)


def _unservable(route: Route) -> BadRequest | NoOffer:
    """The one error for a request that nobody can serve: the caller's fault where the plans say so, else ours."""
    plans = [candidate.plan for candidate in route.left_out]
    if any(not plan.refusals for plan in plans) or not plans:
        reasons = _lines(route.left_out, lambda candidate: candidate.reasons)
        return NoOffer(f"No offer of this model can take work: {reasons}. {_mended_by(route, reasons)}", detail=reasons)
    missing = [name for name in plans[0].missing if all(name in plan.missing for plan in plans)]
    if missing:
        return BadRequest(f"`{missing[0]}` is required by this model.", param=missing[0], code="missing_required_parameter")
    refused = [decision for plan in plans for decision in plan.decisions if decision.refused]
    lines = _lines(route.left_out, lambda candidate: candidate.plan.refusals)
    return BadRequest(f"No offer of this model can serve this: {lines}", param=refused[0].param if refused else None)


_SETTINGS = ("FAL_KEY", "REPLICATE_API_TOKEN", "GATEWAY_LOCAL__BACKENDS")
"""What providers say is missing."""


def _mended_by(route: Route, reasons: str) -> str:
    """What the operator can do about it."""
    names = [name for name in _SETTINGS if name in reasons]
    unpriced = any(candidate.cost.usd is None and not candidate.plan.refusals for candidate in route.left_out)
    names += ["GATEWAY_ROUTING__ALLOW_UNPRICED"] if unpriced else []
    return f"The operator can set {' or '.join(names)}." if names else "The operator can add an offer that does."


def _unsupported(candidate: Candidate) -> tuple[str, ...]:
    return tuple(decision.reason or decision.param for decision in candidate.plan.unsupported)


def _lines(candidates: Sequence[Candidate], reasons: Callable[[Candidate], tuple[str, ...]]) -> str:
    return "; ".join(dict.fromkeys(reason for candidate in candidates for reason in reasons(candidate)))
