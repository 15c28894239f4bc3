"""Which offers are tried, in which order, and what is said when none can be."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from gateway.errors import BadRequest, GatewayError, NoOffer, OverBudget
from gateway.images.health import BreakerState, Condition
from gateway.images.routing import (
    Candidate,
    Controls,
    OnUnsupported,
    Policy,
    Steering,
    choose_route,
    draw,
    dry_run,
    order,
    standing,
    unknown_names,
    weigh,
)
from gateway.settings import Canary, Routing, TenantPolicy, Weight
from normalization.offer import Model, Offer, Price, PriceUnit, Rule, Verb
from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.request import ImageRequest, Json, RequestMode, Text, parse_request
from providers.catalog import Catalog

IMAGE = ImageInfo(Format.PNG, Size(10, 10))
TAKES_IMAGE = Rule(Verb.PASSTHROUGH, max=1, required=True)


def offer(provider: str, price: str | None = "0.01", **params: Rule) -> Offer:
    cost = Price(PriceUnit.IMAGE, Decimal(price)) if price is not None else Price(PriceUnit.UNKNOWN, why="nobody says")
    return Offer(provider, f"{provider}/model", {"image": TAKES_IMAGE, **params}, cost, "https://example.org", date(2026, 1, 1))


def asked(**fields: Json) -> ImageRequest:
    return parse_request(RequestMode.EDIT, {"model": "m", **fields}, (IMAGE,))


def weighed(
    request: ImageRequest,
    *offers: Offer,
    away: str | None = None,
    allow_unpriced: bool = False,
    conditions: Mapping[str, Condition] | None = None,
) -> list[Candidate]:
    known = frozenset(name for one in offers for name in one.params)

    def look(one: Offer) -> Condition:
        return (conditions or {}).get(one.provider, Condition())

    return weigh(request, offers, known, lambda _: away, allow_unpriced=allow_unpriced, look=look)


def providers(candidates: tuple[Candidate, ...]) -> list[str]:
    return [candidate.plan.offer.provider for candidate in candidates]


def refusal(kind: type[GatewayError], candidates: list[Candidate], controls: Controls | None = None) -> GatewayError:
    with pytest.raises(kind) as caught:
        choose_route(candidates, controls or Controls())
    assert caught.type is kind
    return caught.value


SEED = Rule(Verb.PASSTHROUGH)
CHEAP, DEAR = offer("cheap", "0.01"), offer("dear", "0.05", seed=SEED)


@pytest.mark.parametrize(
    ("controls", "expected"),
    [
        (Controls(), ["dear", "cheap"]),
        (Controls(policy=Policy.PRICE), ["cheap", "dear"]),
        (Controls(policy=Policy.NATIVE_FIRST), ["dear", "cheap"]),
        (Controls(order=("cheap",)), ["cheap", "dear"]),
        (Controls(order=("dear",), policy=Policy.PRICE), ["dear", "cheap"]),
    ],
    ids=["balanced", "price", "native first", "named first", "named before price"],
)
def test_order_follows_the_caller(controls: Controls, expected: list[str]):
    """What is lost counts before the price, unless the caller says otherwise; named providers come first."""
    route = choose_route(weighed(asked(seed=7), CHEAP, DEAR), controls)

    assert providers(route.chosen) == expected


def test_equal_offers_are_ordered_by_price():
    """Where all is served alike, the cheaper one is first."""
    assert providers(order(weighed(asked(), offer("b", "0.02"), offer("a", "0.01")), Controls()).chosen) == ["a", "b"]


def test_offers_that_refuse_a_value_are_left_out_with_the_reason():
    """Another offer serves it; the one left out says why."""
    narrow = offer("narrow", "0.001", seed=Rule(Verb.PASSTHROUGH, max=5))

    route = choose_route(weighed(asked(seed=7), narrow, DEAR), Controls())

    assert providers(route.chosen) == ["dear"]
    assert [candidate.reasons for candidate in route.left_out] == [("narrow: seed is at most 5; asked 7",)]


def test_value_that_nobody_takes_is_the_callers_fault():
    """400 with the parameter and every offer's reason."""
    narrow = [offer(name, seed=Rule(Verb.PASSTHROUGH, max=most)) for name, most in (("a", 5), ("b", 6))]

    error = refusal(BadRequest, weighed(asked(seed=7), *narrow))

    assert error.param == "seed"
    assert "a: seed is at most 5" in error.message
    assert "b: seed is at most 6" in error.message


def test_parameter_that_every_offer_needs_is_named():
    """400 `missing_required_parameter`."""
    needs = offer("a", prompt=Rule(Verb.PASSTHROUGH, required=True))

    error = refusal(BadRequest, weighed(asked(), needs))

    assert (error.param, error.code) == ("prompt", "missing_required_parameter")


def test_offers_that_are_away_are_503_that_is_not_repeated():
    """The request is good; the operator has something to do."""
    error = refusal(NoOffer, weighed(asked(), CHEAP, away="cheap: no key"))

    assert (error.code, error.should_retry) == ("no_offer_available", False)
    assert "cheap: no key" in error.message


def test_unpriced_offers_need_the_operators_leave():
    """An unknown price is never taken for none."""
    unpriced = offer("unpriced", None)

    refusal(NoOffer, weighed(asked(), unpriced))
    assert providers(choose_route(weighed(asked(), unpriced, allow_unpriced=True), Controls()).chosen) == ["unpriced"]


def test_limit_on_cost_keeps_the_cheaper_offers():
    """Those above it, and those whose price nobody knows, are not tried."""
    candidates = weighed(asked(), CHEAP, DEAR, offer("unpriced", None), allow_unpriced=True)

    route = choose_route(candidates, Controls(max_cost_usd=Decimal("0.02")))
    error = refusal(OverBudget, candidates, Controls(max_cost_usd=Decimal("0.001")))

    assert providers(route.chosen) == ["cheap"]
    assert error.extra == {"required_usd": "0.01", "available_usd": "0.001"}
    assert error.should_retry is False


def test_strictness_refuses_what_the_best_offer_lacks():
    """Only then: by default it is dropped and told."""
    candidates = weighed(asked(seed=7), CHEAP)

    error = refusal(BadRequest, weighed(asked(seed=7, prompt="a"), CHEAP), Controls(on_unsupported=OnUnsupported.ERROR))

    assert choose_route(candidates, Controls()).chosen[0].plan.unsupported[0].param == "seed"
    assert (error.code, error.param) == ("unsupported_parameter", "seed")


FITS = {
    "size": Rule(None, emulate="fit"),
    "scale_factor": Rule(None, emulate="resample"),
    "output_format": Rule(None, emulate="encode"),
}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": "16384x16384"}, "size"),
        ({"scale_factor": Text("200"), "size": "16384x8193"}, "size"),
        ({"size": "16384x8", "output_format": "webp"}, "size"),
        ({"size": "8193x8193", "output_format": "avif"}, "size"),
    ],
    ids=["pixels", "size before factor", "edge of the format", "pixels of AVIF"],
)
def test_size_that_no_worker_can_make_is_refused_beforehand(fields: dict[str, Json], param: str):
    """The caller hears it before anybody has worked."""
    error = refusal(BadRequest, weighed(asked(**fields), offer("a", **FITS)))

    assert error.param == param


@pytest.mark.parametrize("fields", [{"size": "16384x8192"}, {"size": "8192x8192", "output_format": "avif"}, {"scale_factor": 200}])
def test_largest_sizes_are_served(fields: dict[str, Json]):
    """Up to the limit nothing is refused."""
    assert choose_route(weighed(asked(**fields), offer("a", **FITS)), Controls()).chosen


def test_factor_that_makes_too_many_pixels_is_refused():
    """The factor is named, since no size was."""
    request = parse_request(RequestMode.EDIT, {"model": "m", "scale_factor": 200}, (ImageInfo(Format.PNG, Size(1000, 1000)),))

    assert refusal(BadRequest, weighed(request, offer("a", **FITS))).param == "scale_factor"


def test_dry_run_shows_every_offer_best_first():
    """Those that cannot serve it come last, with their reasons."""
    request = asked(seed=7)
    narrow = offer("narrow", "0.001", seed=Rule(Verb.PASSTHROUGH, max=5))

    told = dry_run(request, order(weighed(request, narrow, CHEAP, DEAR), Controls()))

    offers = told["offers"]
    assert isinstance(offers, list)
    assert [(one["provider"], one["eligible"], one["cost"]["usd"]) for one in offers] == [
        ("dear", True, "0.05"),
        ("cheap", True, "0.01"),
        ("narrow", False, "0.001"),
    ]


# --- health -------------------------------------------------------------------------------------------------------------------

RESTING = Condition(BreakerState.OPEN, "it rests for 9 s more after timeout")
LASTING = Condition(BreakerState.OPEN, "it rests for 900 s more after quota", lasting=True)
SHAKY = Condition(shaky=True, success_rate=0.5)
READY = Condition(BreakerState.HALF_OPEN)


@pytest.mark.parametrize("policy", Policy)
def test_who_rests_comes_last_under_every_policy(policy: Policy):
    """Also when it is the best, or named first; the last of all is who has the least hope. None is left out."""
    offers = (offer("hopeless", "0.001"), offer("resting", "0.002"), offer("well", "0.05"))
    candidates = weighed(asked(), *offers, conditions={"hopeless": LASTING, "resting": RESTING})

    route = choose_route(candidates, Controls(policy=policy, order=("hopeless", "resting")))

    assert providers(route.chosen) == ["well", "resting", "hopeless"]


def test_who_is_ready_for_a_probe_stands_in_its_own_place():
    """Otherwise nobody would ever find out that it is well again."""
    candidates = weighed(asked(), CHEAP, DEAR, conditions={"cheap": READY})

    assert providers(choose_route(candidates, Controls()).chosen) == ["cheap", "dear"]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy.BALANCED, ["steady", "shaky"]),
        (Policy.PRICE, ["shaky", "steady"]),
        (Policy.LATENCY, ["steady", "shaky"]),
        (Policy.NATIVE_FIRST, ["steady", "shaky"]),
    ],
)
def test_shaky_offers_come_after_steady_ones(policy: Policy, expected: list[str]):
    """Before the price, unless the price is what was asked for."""
    candidates = weighed(asked(), offer("shaky", "0.001"), offer("steady"), conditions={"shaky": SHAKY})

    assert providers(choose_route(candidates, Controls(policy=policy)).chosen) == expected


def test_balanced_puts_health_before_what_is_lost():
    """A shaky offer that serves all comes after a steady one that lacks a parameter, unless strictness was asked for."""
    candidates = weighed(asked(seed=7), CHEAP, DEAR, conditions={"dear": SHAKY})

    lossy = choose_route(candidates, Controls())
    strict = choose_route(candidates, Controls(on_unsupported=OnUnsupported.ERROR))

    assert providers(lossy.chosen) == ["cheap", "dear"]
    assert providers(strict.chosen) == ["dear"]
    assert [candidate.plan.offer.provider for candidate in strict.left_out if candidate.reasons] == ["cheap"]


def test_latency_counts_what_was_measured_and_tries_what_was_not():
    """The fastest first, and before it whoever nobody has measured yet."""
    speeds = {"slow": Condition(latency_s=30.0), "fast": Condition(latency_s=3.0)}
    candidates = weighed(asked(), offer("slow", "0.001"), offer("fast"), offer("new", "0.09"), conditions=speeds)

    route = choose_route(candidates, Controls(policy=Policy.LATENCY))

    assert providers(route.chosen) == ["new", "fast", "slow"]
    assert standing(route.chosen[1], route.policy).endswith("about 3.0 s")


def test_native_first_prefers_what_needs_no_conversion():
    """Where balanced takes the cheaper one."""
    converting = offer("converting", "0.01", size=Rule(Verb.CONVERT, to="image_size", converter="width_height"))
    native = offer("native", "0.05", size=Rule(Verb.PASSTHROUGH))
    candidates = weighed(asked(size="64x64"), converting, native)

    assert providers(choose_route(candidates, Controls()).chosen) == ["converting", "native"]
    assert providers(choose_route(candidates, Controls(policy=Policy.NATIVE_FIRST)).chosen) == ["native", "converting"]


def test_callers_policy_wins_over_the_tenants_and_the_operators():
    """A header, else the tenant's, else everybody's."""
    routing = Routing(policy="price", tenant_policies=(TenantPolicy(tenant="acme", policy="native_first"),))
    candidates = weighed(asked(seed=7), CHEAP, DEAR)

    def first(controls: Controls, tenant: str) -> str:
        return providers(choose_route(candidates, controls, Steering.of(routing, None, tenant)).chosen)[0]

    assert first(Controls(), "other") == "cheap"
    assert first(Controls(), "acme") == "dear"
    assert first(Controls(policy=Policy.PRICE), "acme") == "cheap"


# --- weights and canaries -----------------------------------------------------------------------------------------------------

A, B, C = (offer(name, price) for name, price in (("a", "0.01"), ("b", "0.02"), ("c", "0.03")))
IDS = [f"req_{number}" for number in range(2000)]


def firsts(steering: Steering, candidates: list[Candidate], controls: Controls | None = None) -> Counter[str]:
    """How often each is first over many requests; the others always stay behind it."""
    counted: Counter[str] = Counter()
    for request_id in IDS:
        route = order(candidates, controls or Controls(), replace(steering, request_id=request_id))
        assert sorted(providers(route.chosen)) == sorted(c.plan.offer.provider for c in candidates)
        counted[route.chosen[0].plan.offer.provider] += 1
    return counted


def test_draws_are_even_and_the_same_each_time():
    """A request can be explained afterwards; another purpose is another draw."""
    drawn = [draw(request_id, "canary") for request_id in IDS]

    assert drawn == [draw(request_id, "canary") for request_id in IDS]
    assert 0.48 < sum(drawn) / len(drawn) < 0.52
    assert draw("req_0", "weight") != draw("req_0", "canary")
    assert all(0 <= one < 1 for one in drawn)


def test_weights_share_the_first_place():
    """In proportion, and exactly as the request ids say."""
    steering = Steering(weights={"a": 3})

    counted = firsts(steering, weighed(asked(), A, B))

    assert counted == {
        "a": sum(draw(request_id, "weight") * 4 < 3 for request_id in IDS),
        "b": sum(draw(request_id, "weight") * 4 >= 3 for request_id in IDS),
    }
    assert 1400 < counted["a"] < 1600


def test_weight_of_nothing_only_helps_out():
    """It is never first, and comes behind those with work of their own."""
    candidates = weighed(asked(), A, B, C)

    route = order(candidates, Controls(), Steering(weights={"a/a/model": 0.0}, request_id="req_1"))

    assert "a" not in firsts(Steering(weights={"a": 0}), candidates)
    assert providers(route.chosen)[-1] == "a"


def test_only_offer_is_tried_whatever_its_weight():
    """Weights order; they leave nobody out."""
    assert providers(order(weighed(asked(), A), Controls(), Steering(weights={"a": 0}, request_id="req_1")).chosen) == ["a"]


@pytest.mark.parametrize("canary", ["a", "c"])
def test_canary_is_first_for_its_share_and_no_other(canary: str):
    """Also where it would be the best, by the draw alone; the reason is told."""
    candidates = weighed(asked(), A, B, C)

    counted = firsts(Steering(canaries={canary: 0.05}), candidates)

    assert counted[canary] == sum(draw(request_id, "canary") < 0.05 for request_id in IDS)
    assert counted == {canary: counted[canary], "b" if canary == "a" else "a": len(IDS) - counted[canary]}
    chosen = next(request_id for request_id in IDS if draw(request_id, "canary") < 0.05)
    route = order(candidates, Controls(), Steering(canaries={canary: 0.05}, request_id=chosen))
    assert standing(route.chosen[0], route.policy).endswith("canary with a share of 0.05")


@pytest.mark.parametrize("steering", [Steering(weights={"cheap": 99}), Steering(canaries={"cheap": 1.0})], ids=["weight", "canary"])
def test_steering_costs_nobody_a_parameter_nor_health(steering: Steering):
    """Only offers that do as well as the best are put first."""
    assert firsts(steering, weighed(asked(seed=7), CHEAP, DEAR)) == {"dear": len(IDS)}
    assert firsts(steering, weighed(asked(), CHEAP, DEAR, conditions={"cheap": SHAKY})) == {"dear": len(IDS)}
    assert firsts(steering, weighed(asked(), CHEAP, DEAR, conditions={"cheap": RESTING})) == {"dear": len(IDS)}


@pytest.mark.parametrize("controls", [Controls(policy=Policy.PRICE), Controls(order=("a",))], ids=["policy", "order"])
def test_steering_leaves_explicit_wishes_alone(controls: Controls):
    """Who asks for the cheapest, or for a provider, gets it."""
    assert firsts(Steering(canaries={"c": 1.0}), weighed(asked(), A, B, C), controls) == {"a": len(IDS)}


def test_names_that_no_offer_has_are_found():
    """A spelling mistake in a weight or canary does not go unnoticed."""
    model = Model("m", "M", (RequestMode.EDIT,), (A, B), 0)
    routing = Routing(
        weights=(Weight(offer="a", weight=1), Weight(offer="b/b/model", weight=1), Weight(offer="b/model", weight=1)),
        canaries=(Canary(offer="z", share=0.1),),
    )

    assert unknown_names(routing, Catalog([model])) == ["b/model", "z"]


# --- what is told -------------------------------------------------------------------------------------------------------------


def test_dry_run_says_of_each_offer_why():
    """Who would be first and by what, who is only a last resort, and whom the caller's own limits leave out."""
    request = asked(seed=7)
    offers = (CHEAP, DEAR, offer("resting"), offer("costly", "0.5"))
    candidates = weighed(request, *offers, conditions={"resting": RESTING})

    told: Any = dry_run(request, order(candidates, Controls(max_cost_usd=Decimal("0.1"))))

    assert [(one["provider"], one["verdict"], one["reasons"]) for one in told["offers"]] == [
        ("dear", "chosen", []),
        ("cheap", "skipped", []),
        ("resting", "skipped", []),
        ("costly", "not_eligible", ["costly: costs 0.5 USD; x-gateway-max-cost-usd allows 0.1"]),
    ]
    assert [one["standing"] for one in told["offers"]] == [
        "balanced: steady, 0 unsupported, 0 emulated, 0.05 USD",
        "balanced: steady, 1 unsupported, 0 emulated, 0.01 USD",
        "balanced: it rests for 9 s more after timeout, 1 unsupported, 0 emulated, 0.01 USD",
        "balanced: steady, 1 unsupported, 0 emulated, 0.5 USD",
    ]


def test_price_limit_and_strictness_hold_together():
    """Of the offers that lack nothing, the cheapest is named; one that lacks something is no way out."""
    strict = Controls(on_unsupported=OnUnsupported.ERROR, max_cost_usd=Decimal("0.02"))

    error = refusal(OverBudget, weighed(asked(seed=7), CHEAP, DEAR), strict)

    assert error.extra["required_usd"] == "0.05"
