"""Which offers are tried, in which order, and what is said when none can be."""

from datetime import date
from decimal import Decimal

import pytest

from gateway.errors import BadRequest, GatewayError, NoOffer, OverBudget
from gateway.images.routing import Candidate, Controls, OnUnsupported, Policy, choose_route, dry_run, order, weigh
from normalization.offer import Offer, Price, PriceUnit, Rule, Verb
from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.request import ImageRequest, Json, RequestMode, Text, parse_request

IMAGE = ImageInfo(Format.PNG, Size(10, 10))
TAKES_IMAGE = Rule(Verb.PASSTHROUGH, max=1, required=True)


def offer(provider: str, price: str | None = "0.01", **params: Rule) -> Offer:
    cost = Price(PriceUnit.IMAGE, Decimal(price)) if price is not None else Price(PriceUnit.UNKNOWN, why="nobody says")
    return Offer(provider, f"{provider}/model", {"image": TAKES_IMAGE, **params}, cost, "https://example.org", date(2026, 1, 1))


def asked(**fields: Json) -> ImageRequest:
    return parse_request(RequestMode.EDIT, {"model": "m", **fields}, (IMAGE,))


def weighed(request: ImageRequest, *offers: Offer, away: str | None = None, allow_unpriced: bool = False) -> list[Candidate]:
    known = frozenset(name for one in offers for name in one.params)
    return weigh(request, offers, known, lambda _: away, allow_unpriced=allow_unpriced)


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
