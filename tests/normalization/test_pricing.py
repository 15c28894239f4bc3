"""Prices, with arithmetic done by hand beside each."""

from dataclasses import replace
from datetime import date
from decimal import Decimal

import pytest

from normalization.offer import Offer, Output, Price, PriceUnit, Rule, Verb
from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.planner import plan_request
from normalization.pricing import Certainty, Cost, money, price, quote, total
from normalization.request import ImageRequest, Json, RequestMode, parse_request
from providers.catalog import load_catalog
from tests.normalization.requests import offer

CATALOG = load_catalog()
SQUARE = ImageInfo(Format.PNG, Size(1024, 1024))


def sold(model: str, provider: str) -> Offer:
    """A packaged offer."""
    (found,) = [one for one in CATALOG.models[model].offers if one.provider == provider]
    return found


def asked(*, painted: bool = False, **fields: Json) -> ImageRequest:
    """A request with a picture of 1024x1024, or for a painting."""
    words = {"model": "m", "prompt": "a hat", **fields}
    return parse_request(RequestMode.GENERATE if painted else RequestMode.EDIT, words, () if painted else (SQUARE,))


def quoted(model: str, provider: str, request: ImageRequest) -> Cost:
    """What a packaged offer would cost."""
    return quote(plan_request(request, sold(model, provider), CATALOG.parameters), request)


@pytest.mark.parametrize(
    ("model", "provider", "request_", "usd", "basis"),
    [
        # 1024 x 1024 = 1,048,576 pixels; twice as wide and high: 4,194,304 = 4.194304 MP; x 0.03 = 0.12582912
        ("clarity-upscaler", "fal", asked(scale_factor=2), "0.12582912", "4.194304 MP x 0.03 USD/MP"),
        # the same, which is what the model does by itself
        ("clarity-upscaler", "fal", asked(), "0.12582912", "4.194304 MP x 0.03 USD/MP"),
        # three of them: 12.582912 MP x 0.03
        ("clarity-upscaler", "fal", asked(n=3), "0.37748736", "12.582912 MP x 0.03 USD/MP"),
        # 8 is beyond its range: four times as wide and high is 16.777216 MP; x 0.03
        ("clarity-upscaler", "fal", asked(scale_factor=8), "0.50331648", "16.777216 MP x 0.03 USD/MP"),
        # 1536 / 1024 = 1.5; 1.048576 MP x 2.25 = 2.359296 MP; x 0.03
        ("clarity-upscaler", "fal", asked(size="1536x1536"), "0.07077888", "2.359296 MP x 0.03 USD/MP"),
        # 13 x 0.000975
        ("clarity-upscaler", "replicate", asked(), "0.012675", "13 s x 0.000975 USD/s"),
        # two calls: 26 x 0.000975
        ("clarity-upscaler", "replicate", asked(n=2), "0.02535", "26 s x 0.000975 USD/s"),
        # one call serves all three: 5 x 0.00111
        ("real-esrgan", "fal", asked(n=3), "0.00555", "5 s x 0.00111 USD/s"),
        # 1.048576 MP is 2 MP when rounded up; x 0.03
        ("flux-dev-image-to-image", "fal", asked(), "0.06", "2 MP x 0.03 USD/MP"),
        # each rounded up on its own: 4 MP x 0.03
        ("flux-dev-image-to-image", "fal", asked(n=2), "0.12", "4 MP x 0.03 USD/MP"),
        # up to 24 MP: 4.194304 MP is 0.08; up to 48: 16 x 1.048576 = 16.777216 MP is 0.08 still
        ("topaz-upscale", "fal", asked(scale_factor=2), "0.08", "0.08 USD"),
        ("topaz-upscale", "fal", asked(scale_factor=4), "0.08", "0.08 USD"),
        # 7 pictures in calls of 4 and 3: 7 x 0.04
        ("flux-kontext-pro", "fal", asked(n=7), "0.28", "7 x 0.04 USD/image"),
        # 1024 x 768 by itself is 0.786432 MP, billed as 1; x 0.025
        ("flux-dev", "fal", asked(painted=True), "0.025", "1 MP x 0.025 USD/MP"),
        # 1920 x 1080 = 2.0736 MP, billed as 3; x 0.025
        ("flux-dev", "fal", asked(painted=True, size="1920x1080"), "0.075", "3 MP x 0.025 USD/MP"),
        ("detail-upscaler", "local", asked(), "0", "local"),
    ],
)
def test_quotes_are_what_a_hand_reckons(model: str, provider: str, request_: ImageRequest, usd: str, basis: str):
    """The quote says the dollars and how they come about."""
    assert quoted(model, provider, request_) == Cost(Decimal(usd), basis, Certainty.ESTIMATED)


@pytest.mark.parametrize(
    ("terms", "seconds", "results", "usd", "basis"),
    [
        (Price(PriceUnit.IMAGE, Decimal("0.04")), None, [1, 1, 1], "0.12", "3 x 0.04 USD/image"),
        (Price(PriceUnit.SECOND, Decimal("0.000975")), Decimal("12.5"), [None], "0.012187500", "12.5 s x 0.000975 USD/s"),
        (Price(PriceUnit.OUTPUT_MEGAPIXEL, Decimal("0.03")), None, [1_500_000], "0.045", "1.5 MP x 0.03 USD/MP"),
        (Price(PriceUnit.OUTPUT_MEGAPIXEL, Decimal("0.03"), round_up=True), None, [1_000_000, 1_000_001], "0.09",
         "3 MP x 0.03 USD/MP"),
        (Price(PriceUnit.TIER, tiers=((Decimal(1), Decimal("0.1")), (Decimal(2), Decimal("0.3")))), None,
         [1_000_000, 1_000_001], "0.4", "0.1 USD + 0.3 USD"),
        (Price(PriceUnit.LOCAL_SECOND, Decimal(0)), None, [None], "0", "local"),
        (Price(PriceUnit.LOCAL_SECOND, Decimal("0.001")), Decimal(3), [None], "0.003", "3 s x 0.001 USD/s"),
    ],
    ids=["images", "seconds", "megapixels", "rounded up", "tiers", "free", "own machine"],
)  # fmt: skip
def test_costs_are_reckoned_from_what_was_made(
    terms: Price, seconds: Decimal | None, results: list[int | None], usd: str, basis: str
):
    """After the work the provider's own figures are used, exactly."""
    assert price(terms, seconds=seconds, results=results) == Cost(Decimal(usd), basis, Certainty.COMPUTED)


@pytest.mark.parametrize(
    ("terms", "why"),
    [
        (Price(PriceUnit.UNKNOWN, why="nobody says"), "nobody says"),
        (Price(PriceUnit.SECOND, Decimal(1)), "the provider did not say how long it took"),
        (Price(PriceUnit.OUTPUT_MEGAPIXEL, Decimal(1)), "the size of the result is not known"),
        (Price(PriceUnit.TIER, tiers=((Decimal(1), Decimal(1)),)), "the size of the result is not known"),
    ],
    ids=["no price", "no seconds", "no size", "no size for a tier"],
)
def test_what_cannot_be_said_is_unknown_and_never_zero(terms: Price, why: str):
    """An unknown cost has a reason and no dollars."""
    assert price(terms, seconds=None, results=[None]) == Cost(None, why, Certainty.UNKNOWN)


def test_a_result_above_the_last_tier_has_no_known_price():
    """A table that ends is not continued by guessing."""
    terms = Price(PriceUnit.TIER, tiers=((Decimal(1), Decimal(1)),))

    assert price(terms, seconds=None, results=[2_000_000]).usd is None


def test_a_size_that_is_sent_counts_more_than_the_usual_one():
    """A model with a usual size is quoted for the size asked of it."""
    painter = Offer(
        provider="acme",
        endpoint="acme/painter",
        params={"size": Rule(Verb.CONVERT, "image_size", "width_height")},
        price=Price(PriceUnit.OUTPUT_MEGAPIXEL, Decimal(1)),
        source="made up",
        checked=date(2026, 1, 1),
        output=Output(pixels=500_000),
    )
    plain, large = asked(painted=True), asked(painted=True, size="2000x1000")

    assert quote(plan_request(plain, painter), plain).usd == Decimal("0.5")
    assert quote(plan_request(large, painter), large).usd == Decimal(2)


def test_one_unknown_makes_a_sum_unknown():
    """A sum is as certain as its least certain part."""
    known, estimate = Cost(Decimal(1), "a", Certainty.COMPUTED), Cost(Decimal(2), "b", Certainty.ESTIMATED)

    assert total([known, estimate]) == Cost(Decimal(3), "a + b", Certainty.ESTIMATED)
    assert total([known, Cost.unknown("lost")]) == Cost.unknown("lost")
    assert total([]).usd == 0


@pytest.mark.parametrize(
    ("usd", "text"), [("0.100", "0.1"), ("1E-9", "0.000000001"), ("3", "3"), ("100", "100"), ("0", "0"), (None, None)]
)
def test_dollars_are_plain_text(usd: str | None, text: str | None):
    """No exponents and no trailing zeros."""
    assert money(None if usd is None else Decimal(usd)) == text


def test_a_free_machine_costs_nothing_and_a_priced_one_something():
    """The operator's rate is part of the offer."""
    own = replace(offer(), price=Price(PriceUnit.LOCAL_SECOND, Decimal("0.0005"), typical_s=Decimal(2)))
    request = asked()

    assert quote(plan_request(request, own), request).usd == Decimal("0.001")


@pytest.mark.parametrize(
    ("terms", "usd"),
    [
        (Price(PriceUnit.OUTPUT_MEGAPIXEL, Decimal("0.03")), "0.06"),  # 2 MP
        (Price(PriceUnit.IMAGE, Decimal("0.04")), "0.08"),  # 2 pictures
        (Price(PriceUnit.SECOND, Decimal("0.001")), "0.002"),  # 2 s
        (Price(PriceUnit.TIER, tiers=((Decimal(24), Decimal("0.08")), (Decimal(48), Decimal("0.16")))), "0.16"),  # 2 of the lowest
    ],
    ids=lambda value: value.unit if isinstance(value, Price) else value,
)
def test_what_the_provider_bills_goes_before_what_was_seen(terms: Price, usd: str):
    """Billable units times the price of one, though no picture could be had and no time was told."""
    cost = price(terms, seconds=None, results=[None], units=Decimal(2))

    assert (cost.usd, cost.certainty) == (Decimal(usd), Certainty.COMPUTED)


def test_units_do_not_price_what_has_no_price():
    """An unknown price stays unknown, whatever is counted."""
    assert price(Price(PriceUnit.UNKNOWN), seconds=None, results=[None], units=Decimal(2)).usd is None


def test_each_edge_of_the_expected_result_is_rounded():
    """A factor that does not fit: 1024 x 1.001 is 1025 pixels, and so is the other edge."""
    request = asked(scale_factor=1.001)

    assert quote(plan_request(request, sold("clarity-upscaler", "fal")), request).usd == Decimal("0.03151875")  # 1.050625 MP
