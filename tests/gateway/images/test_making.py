"""One plan of several calls: some may fail, what delivers is kept, and all that was made is accounted for."""

import dataclasses
from collections.abc import AsyncIterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from gateway.errors import AllOffersFailed, GatewayError, InternalError, Overloaded
from gateway.images.execution import Work
from gateway.images.finishing import Picture
from gateway.images.journal import NewJob
from gateway.images.pipeline import ImageResult, plan_route, run_request
from gateway.images.routing import Controls
from gateway.images.services import Services
from normalization.offer import Model, Offer, Price, PriceUnit, Rule, Verb
from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.request import ImageRef, RequestMode, parse_request
from providers.base import Usage
from providers.catalog import Catalog, Shelf
from providers.failures import FailureKind
from providers.fake import FakeProvider
from tests.gateway.conftest import Live, picture

PARAMS = {
    "image": Rule(Verb.PASSTHROUGH, max=1, required=True),
    "n": Rule(emulate="fan_out"),
    "output_format": Rule(Verb.PASSTHROUGH, choices=("png", "webp")),
}
PER_IMAGE = Price(PriceUnit.IMAGE, Decimal("0.04"))
PER_SECOND = Price(PriceUnit.SECOND, Decimal("0.001"), typical_s=Decimal(13))


class Bench:
    """A gateway with one paid provider in this process."""

    def __init__(self, live: Live, image: Path, terms: Price) -> None:
        self.live, self.image = live, image
        services = live.parts.services
        self.acme = FakeProvider("fal", services.spool, lambda *_: picture(12, 8), usage=Usage(seconds=Decimal(3)))
        offer = Offer("fal", "fal/m", PARAMS, terms, "https://example.org", date(2026, 1, 1))
        model = Model("m", "M", (RequestMode.EDIT,), (offer,), 0)
        self.by: Services = dataclasses.replace(
            services, shelf=Shelf(lambda: Catalog([model])), providers={"fal": self.acme}, unavailable=lambda _: None
        )

    async def edit(self, **fields: Any) -> ImageResult:
        """One edit to its end."""
        info = ImageInfo(Format.PNG, Size(6, 4))
        asked = parse_request(RequestMode.EDIT, {"model": "m", **fields}, (info,))
        route = plan_route(asked, Controls(), self.by)
        new = NewJob(f"req_{uuid4().hex}", self.live.tenant_id, None, "images.edits", "m", "edit", {}, {})
        job = await self.by.journal.open_job(new)
        work = Work(job, asked, route, {ImageRef("image", 0): Picture(self.image, info)}, self.by.clock(), lambda _: None)
        return await run_request(work, self.by)


@pytest.fixture
async def bench(live: Live, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    image = tmp_path / "in.png"
    image.write_bytes(picture(6, 4))
    yield Bench(live, image, getattr(request, "param", PER_IMAGE))
    assert live.spooled == []


async def test_part_failure_is_told_and_only_what_is_delivered_is_charged(bench: Bench):
    """n=3 with one failed call: two pictures, billed as two, and the failure stands in the account."""
    bench.acme.fails_once(FailureKind.TRANSIENT)

    result = await bench.edit(n=3)

    assert len(result.images) == 2
    assert (result.billed_usd, result.delivered.cost.usd) == (Decimal("0.08"), Decimal("0.08"))
    (attempt,) = result.metadata()["attempts"]  # pyright: ignore
    assert (attempt["outcome"], attempt["failures"]) == ("ok", ["transient"])


async def test_call_of_unknown_end_makes_the_cost_unknown_and_stays_open(bench: Bench):
    """Two pictures are billed; what the third call cost nobody can say, and its ticket can still be asked."""
    bench.acme.fails_once(FailureKind.TIMEOUT)

    result = await bench.edit(n=3)

    assert len(result.images) == 2
    assert result.billed_usd == Decimal("0.08")
    assert (result.delivered.cost.usd, result.delivered.cost.certainty) == (None, "unknown")


async def test_gravest_failure_stands_for_all(bench: Bench):
    """A call that may have been paid makes the whole unsafe to repeat, whatever failed first."""
    bench.acme.fails_once(FailureKind.TRANSIENT)
    bench.acme.fails_once(FailureKind.UNKNOWN)

    with pytest.raises(AllOffersFailed) as failed:
        await bench.edit(n=2)

    assert failed.value.extra["retry_safe"] is False
    assert [attempt["outcome"] for attempt in failed.value.extra["attempts"]] == ["unknown"]


async def test_damaged_result_is_paid_and_the_others_are_delivered(bench: Bench):
    """The provider made three; two can be used. All three cost, two are billed."""
    made = iter([picture(12, 8), picture(12, 8)[:40], picture(12, 8)])
    bench.acme._picture = lambda *_: next(made)

    result = await bench.edit(n=3)

    assert len(result.images) == 2
    assert (result.billed_usd, result.delivered.cost.usd) == (Decimal("0.08"), Decimal("0.12"))


async def test_results_that_cannot_be_used_are_not_called_free(bench: Bench):
    """Nothing was delivered, and still the provider was paid: to repeat is not safe."""
    bench.acme._picture = lambda *_: b"not a picture"

    with pytest.raises(AllOffersFailed) as failed:
        await bench.edit()

    assert (failed.value.extra["billed_usd"], failed.value.extra["retry_safe"]) == ("0", False)


async def test_another_format_than_asked_is_encoded_not_refused(bench: Bench):
    """What was paid for is turned into what was asked for."""
    result = await bench.edit(output_format="webp")

    assert [image.info.format for image in result.images] == [Format.WEBP]


@pytest.mark.parametrize("bench", [PER_SECOND], indirect=True)
@pytest.mark.parametrize("seconds", [Decimal(-5), Decimal("1e300"), Decimal("NaN"), None])
async def test_impossible_seconds_are_unknown_and_the_picture_is_delivered(bench: Bench, seconds: Decimal | None):
    """An odd number loses no picture; the tenant is billed the quote."""
    bench.acme._usage = Usage(seconds=seconds)

    result = await bench.edit()

    assert len(result.images) == 1
    assert result.delivered.cost.usd is None
    assert result.billed_usd == Decimal("0.013")


async def test_busy_database_after_the_work_is_asked_again(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    """A moment's trouble does not lose a finished picture."""
    monkeypatch.setattr("gateway.images.journal.PAUSES_S", (0.0, 0.0))
    journal, busy = bench.by.journal, iter([True, True])
    finish = journal.finish_job

    async def finish_job(*args: Any, **named: Any) -> bool:
        if next(busy, False):
            raise Overloaded("busy")
        return await finish(*args, **named)

    monkeypatch.setattr(journal, "finish_job", finish_job)

    assert len((await bench.edit()).images) == 1


@pytest.mark.parametrize("part", ["journal.finish_attempt", "journal.finish_job", "journal.record_ticket", "store.put_file"])
async def test_lasting_trouble_after_the_work_never_invites_a_repeat(bench: Bench, monkeypatch: pytest.MonkeyPatch, part: str):
    """The provider has been paid: clients are told not to ask again."""
    monkeypatch.setattr("gateway.images.journal.PAUSES_S", (0.0,))
    name, method = part.split(".")

    async def fails(*_: object, **__: object) -> None:
        raise Overloaded("away")

    monkeypatch.setattr(getattr(bench.by, name), method, fails)

    with pytest.raises(GatewayError) as failed:
        await bench.edit()

    assert isinstance(failed.value, InternalError)
    assert (failed.value.should_retry, failed.value.extra["retry_safe"]) == (False, False)
