"""Offers tried one after the other against providers in this process: who is asked, who is left alone, and what is told of each."""

import dataclasses
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from gateway.errors import AllOffersFailed, BadRequest
from gateway.images.execution import Work
from gateway.images.finishing import Picture
from gateway.images.health import Health, Thresholds
from gateway.images.journal import NewJob
from gateway.images.pipeline import plan_route, run_request
from gateway.images.routing import Controls
from gateway.images.services import Services
from normalization.offer import Model, Offer, Price, PriceUnit, Rule, Verb
from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.plan import Call
from normalization.request import ImageRef, RequestMode, Text, parse_request
from providers.base import ImageParts
from providers.catalog import Catalog, Shelf
from providers.failures import FailureKind
from providers.fake import FakeProvider
from tests.gateway.conftest import Live, picture

LIMITS = Thresholds(failures=2, rest_s=10, longest_rest_s=100)


def offer(provider: str, price: str, most: float | None = None) -> Offer:
    params = {"image": Rule(Verb.PASSTHROUGH, max=1, required=True), "scale_factor": Rule(Verb.PASSTHROUGH, max=most)}
    cost = Price(PriceUnit.IMAGE, Decimal(price))
    return Offer(provider, f"{provider}/m", params, cost, "https://example.org", date(2026, 1, 1))


MODEL = Model("m", "M", (RequestMode.EDIT,), (offer("fal", "0.01", 4), offer("replicate", "0.02")), 0)


class Told(NamedTuple):
    """What an answer or an error says."""

    attempts: list[str]
    offers: dict[str, tuple[str, list[str]]]
    """By provider, the verdict and the reasons."""


def _enlarged(call: Call, _: ImageParts) -> bytes:
    factor = call.payload.get("scale_factor", 2)
    assert isinstance(factor, int | float)
    return picture(round(6 * factor), round(4 * factor))


@dataclass
class Road:
    """A gateway whose two providers do as they are told, and whose clock stands."""

    live: Live
    image: Path
    now: float = 1000.0
    fal: FakeProvider = field(init=False)
    replicate: FakeProvider = field(init=False)
    by: Services = field(init=False)

    def __post_init__(self) -> None:
        services = self.live.parts.services
        self.fal, self.replicate = (FakeProvider(name, services.spool, _enlarged) for name in ("fal", "replicate"))
        self.by = dataclasses.replace(
            services,
            shelf=Shelf(lambda: Catalog([MODEL])),
            providers={"fal": self.fal, "replicate": self.replicate},
            unavailable=lambda _: None,
            health=Health(LIMITS, lambda: self.now),
        )

    async def asks(self, **fields: str) -> Told:
        """One edit; what is told of it, whether it went well or not."""
        info = ImageInfo(Format.PNG, Size(6, 4))
        asked = parse_request(RequestMode.EDIT, {"model": "m", **{name: Text(text) for name, text in fields.items()}}, (info,))
        request_id = f"req_{uuid4().hex}"
        route = plan_route(asked, Controls(), self.by, request_id=request_id)
        new = NewJob(request_id, self.live.tenant_id, None, "images.edits", "m", "edit", {}, {})
        job = await self.by.journal.open_job(new)
        originals = {ImageRef("image", 0): Picture(self.image, info)}
        work = Work(job, asked, route, originals, self.by.clock(), lambda _: None)
        try:
            account: Any = (await run_request(work, self.by)).metadata()
        except (AllOffersFailed, BadRequest) as error:
            account = error.extra
        offers = {one["provider"]: (one["verdict"], one["reasons"]) for one in account["offers"]}
        return Told([f"{one['provider']}: {one['outcome']}" for one in account["attempts"]], offers)

    @property
    def asked(self) -> tuple[int, int]:
        """How often fal and Replicate were asked until now."""
        return self.fal.submits, self.replicate.submits


@pytest.fixture
def road(live: Live, tmp_path: Path) -> Road:
    image = tmp_path / "in.png"
    image.write_bytes(picture(6, 4))
    return Road(live, image)


async def test_every_offer_is_told_of_though_the_first_delivered(road: Road):
    """The other one was not needed."""
    told = await road.asks(scale_factor="2")

    assert told.attempts == ["fal: ok"]
    assert told.offers == {
        "fal": ("chosen", ["balanced: steady, 0 unsupported, 0 emulated, 0.01 USD"]),
        "replicate": ("skipped", ["not needed", "balanced: steady, 0 unsupported, 0 emulated, 0.02 USD"]),
    }


async def test_offer_that_cannot_serve_the_value_is_not_asked(road: Road):
    """With `scale_factor=8` fal is not even tried, and the account says why."""
    told = await road.asks(scale_factor="8")

    assert told.attempts == ["replicate: ok"]
    assert told.offers["fal"][0] == "not_eligible"
    assert "scale_factor" in told.offers["fal"][1][0]
    assert road.asked == (0, 1)


async def test_next_offer_delivers_in_the_same_call(road: Road):
    """Both attempts are told, and how the first failed."""
    road.fal.fails_once(FailureKind.TRANSIENT)

    told = await road.asks(scale_factor="2")

    assert told.attempts == ["fal: transient", "replicate: ok"]
    assert told.offers["fal"][0] == "tried"
    assert told.offers["fal"][1][0] == "failed: transient"


async def test_wrong_key_is_shown_once_and_the_operator_told(road: Road):
    """Then the offer is out of rotation, until a probe after a long rest finds the key mended."""
    road.fal.fails_once(FailureKind.CREDENTIAL)
    first, second = await road.asks(scale_factor="2"), await road.asks(scale_factor="2")

    assert first.attempts == ["fal: credential", "replicate: ok"]
    assert second.attempts == ["replicate: ok"]
    assert second.offers["fal"] == (
        "skipped",
        ["not needed", "balanced: fal rests for 100 s more after credential, 0 unsupported, 0 emulated, 0.01 USD"],
    )
    (event,) = [event for event in road.live.logged if event["event"] == "offer.resting"]
    assert (event["level"], event["provider"], event["kind"]) == ("error", "fal", "credential")

    road.now += 100
    probe = await road.asks(scale_factor="2")

    assert probe.attempts == ["fal: ok"]
    assert probe.offers["fal"][1][0] == "a probe: the first after a rest"


async def test_who_all_rest_are_tried_as_a_last_resort(road: Road):
    """In their order, each once; one that delivers is well again."""
    road.fal.fails_always(FailureKind.QUOTA)
    road.replicate.fails_always(FailureKind.RATE_LIMIT)
    await road.asks(scale_factor="2")
    road.replicate._always = None

    told = await road.asks(scale_factor="2")

    assert told.attempts == ["replicate: ok"]
    assert told.offers["replicate"][1][0] == "a last resort: replicate rests for 10 s more after rate_limit"
    assert (await road.asks(scale_factor="2")).offers["replicate"][1] == ["balanced: steady, 0 unsupported, 0 emulated, 0.02 USD"]
    assert road.asked == (1, 3)


async def test_resting_offer_is_tried_when_all_others_have_failed(road: Road):
    """Better a last resort than an error."""
    road.fal.fails_once(FailureKind.RATE_LIMIT)
    await road.asks(scale_factor="2")
    road.replicate.fails_once(FailureKind.TRANSIENT)

    told = await road.asks(scale_factor="2")

    assert told.attempts == ["replicate: transient", "fal: ok"]


@pytest.mark.parametrize("kind", [FailureKind.CONTENT, FailureKind.CALLER_FAULT])
async def test_refusals_are_not_shopped_around(road: Road, kind: FailureKind):
    """The next offer is not asked, and the refusal is not held against the one that made it."""
    for _ in range(5):
        road.fal.fails_once(kind)
        told = await road.asks(scale_factor="2")

        assert told.attempts == [f"fal: {kind}"]
        assert told.offers["replicate"][1][0] == "not tried: another offer cannot mend it"
    assert road.asked == (5, 0)


async def test_breaker_is_seen_in_the_metrics(road: Road):
    """It is asked at each scrape, so a rest that ends by itself is seen too."""

    def level(provider: str) -> float | None:
        labels = {"provider": provider, "endpoint": f"{provider}/m"}
        return road.by.metrics.registry.get_sample_value("gateway_breaker_state", labels)

    road.fal.fails_once(FailureKind.QUOTA)
    await road.asks(scale_factor="2")
    assert (level("fal"), level("replicate")) == (2.0, 0.0)

    road.now += 100
    assert level("fal") == 1.0
