"""The fake keeps the contract, and does what it is told."""

import pytest

from providers.base import Done, Running
from providers.failures import FailureKind, ProviderFailure
from providers.fake import FakeProvider
from providers.spool import Spool
from tests.providers.contract import IMAGE, ProviderContract, Subject, call, image_part, png


@pytest.fixture
def fake(spool: Spool) -> FakeProvider:
    return FakeProvider("fal", spool, lambda _call, _images: png(12, 8))


@pytest.fixture
def subject(fake: FakeProvider, spool: Spool) -> Subject:
    async def begun() -> None:
        """It is under way when it is submitted."""

    return Subject(
        fake,
        spool,
        good=call("model"),
        failing=call("model"),
        hanging=call("model"),
        begun=begun,
        prepare_failing=lambda: fake.fails_once(FailureKind.TRANSIENT),
        prepare_hanging=fake.hold,
    )


class TestFake(ProviderContract):
    """The fake against the suite."""


async def test_it_fails_as_often_as_it_was_told(fake: FakeProvider, spool: Spool) -> None:
    """Failures are used up in order; then it works."""
    fake.fails_once(FailureKind.RATE_LIMIT)
    fake.fails_once(FailureKind.CONTENT, "no")
    images = {IMAGE: image_part(spool)}
    kinds: list[str] = []
    for _ in range(3):
        try:
            await fake.poll(await fake.submit(call("model"), images))
            kinds.append("ok")
        except ProviderFailure as failure:
            kinds.append(failure.kind)
    assert kinds == ["rate_limit", "content", "ok"]
    assert (fake.submits, fake.polls, fake.cancels) == (3, 3, 0)


async def test_it_waits_at_the_gate(fake: FakeProvider, spool: Spool) -> None:
    """A test decides when the work ends."""
    fake.hold()
    fake.progress = 0.5
    ticket = await fake.submit(call("model"), {IMAGE: image_part(spool)})
    assert await fake.poll(ticket) == Running(0.5)
    fake.gate.set()
    assert isinstance(await fake.poll(ticket), Done)
