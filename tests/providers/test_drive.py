"""The driver: ticket first, patient polls, and nobody left working for nothing."""

import asyncio
from datetime import UTC, datetime

import pytest

from normalization.plan import Call
from providers.base import Done, ImageParts, Running, Ticket
from providers.drive import Unanswered, drive, follow
from providers.failures import FailureKind, ProviderFailure
from tests.providers.contract import call, ignore

_TICKET = Ticket("scripted", "model", "1", datetime(2026, 1, 1, tzinfo=UTC))
_DONE = Done(())


class Scripted:
    """A provider that answers polls from a list; the last answer is repeated."""

    name = "scripted"

    def __init__(self, *answers: Running | Done | Exception) -> None:
        self.answers = list(answers)
        self.log: list[str] = []
        self.stuck_in: str | None = None
        self.deaf = False
        self.polled = asyncio.Event()

    async def _maybe_stuck(self, where: str) -> None:
        self.log.append(where)
        if where == "poll":
            self.polled.set()
        if self.stuck_in == where:
            await asyncio.Event().wait()

    def refusal(self, endpoint: str) -> str | None:
        return None

    async def submit(self, call: Call, images: ImageParts, *, alone: bool = False) -> Ticket:
        await self._maybe_stuck("submit")
        return _TICKET

    async def poll(self, ticket: Ticket) -> Running | Done:
        await self._maybe_stuck("poll")
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def cancel(self, ticket: Ticket) -> None:
        await self._maybe_stuck("cancel")
        if self.deaf:
            raise ProviderFailure(FailureKind.TRANSIENT, "deaf")


class Naps:
    """Sleeps that take no time, and are remembered."""

    def __init__(self) -> None:
        self.lengths: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.lengths.append(seconds)
        await asyncio.sleep(0)


def _unanswered(retry_after_s: float | None = None) -> Unanswered:
    return Unanswered(FailureKind.TRANSIENT, "no answer", retry_after_s=retry_after_s)


async def test_the_ticket_is_stored_before_the_first_poll() -> None:
    """A crash at any moment after the submission finds the ticket."""
    provider = Scripted(_DONE)

    async def store(ticket: Ticket) -> None:
        assert ticket == _TICKET
        provider.log.append("stored")

    assert await drive(provider, call("model"), {}, deadline_s=10, on_ticket=store) is _DONE
    assert provider.log == ["submit", "stored", "poll"]


async def test_a_ticket_that_cannot_be_stored_is_cancelled() -> None:
    """Work that nobody would remember is not left running."""
    provider = Scripted(_DONE)

    async def store(_: Ticket) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await drive(provider, call("model"), {}, deadline_s=10, on_ticket=store)
    assert provider.log == ["submit", "cancel"]


async def test_polls_are_further_and_further_apart() -> None:
    """From a quarter of a second to two, with a fifth of jitter."""
    provider, naps = Scripted(*[Running()] * 9, _DONE), Naps()
    await follow(provider, _TICKET, deadline_s=60, sleep=naps, chance=lambda: 0.5)
    assert [round(nap, 1) for nap in naps.lengths] == [0.2, 0.4, 0.6, 0.8, 1.3, 1.9, 2.0, 2.0, 2.0]
    provider, early, late = Scripted(Running(), _DONE), Naps(), Naps()
    await follow(provider, _TICKET, deadline_s=60, sleep=early, chance=lambda: 0.0)
    await follow(Scripted(Running(), _DONE), _TICKET, deadline_s=60, sleep=late, chance=lambda: 1.0)
    assert (round(early.lengths[0], 2), round(late.lengths[0], 2)) == (0.2, 0.3)


async def test_progress_is_passed_on() -> None:
    """Each poll that finds it running is told."""
    told: list[float | None] = []

    async def tell(news: Running) -> None:
        told.append(news.progress)

    provider = Scripted(Running(None), Running(0.5), _DONE)
    await follow(provider, _TICKET, deadline_s=60, on_progress=tell, sleep=Naps())
    assert told == [None, 0.5]


async def test_a_few_polls_may_go_unanswered() -> None:
    """A question that gets no answer is asked again, after the wait that was asked for; news start the count anew."""
    provider, naps = Scripted(*[_unanswered()] * 3, _unanswered(7.0), Running(), *[_unanswered()] * 4, _DONE), Naps()
    assert await follow(provider, _TICKET, deadline_s=60, sleep=naps, chance=lambda: 0.5) is _DONE
    assert 6.9 < max(naps.lengths) < 7.1


async def test_too_many_unanswered_polls_end_the_call() -> None:
    """Five in a row: the provider is told to stop, and the failure is the adapter's."""
    provider = Scripted(_unanswered())
    with pytest.raises(Unanswered):
        await follow(provider, _TICKET, deadline_s=60, sleep=Naps())
    assert provider.log == ["poll"] * 5 + ["cancel"]


async def test_a_failure_of_the_providers_is_final() -> None:
    """What has failed is neither asked again nor cancelled."""
    provider = Scripted(ProviderFailure(FailureKind.TRANSIENT, "it broke"))
    with pytest.raises(ProviderFailure, match="it broke"):
        await follow(provider, _TICKET, deadline_s=60, sleep=Naps())
    assert provider.log == ["poll"]


async def test_the_deadline_cancels_and_is_a_timeout() -> None:
    """Also when a poll hangs."""
    provider = Scripted(_DONE)
    provider.stuck_in = "poll"
    with pytest.raises(ProviderFailure) as failed:
        await drive(provider, call("model"), {}, deadline_s=0.02, on_ticket=ignore)
    assert failed.value.kind is FailureKind.TIMEOUT
    assert provider.log == ["submit", "poll", "cancel"]


async def test_a_deadline_before_there_is_a_ticket_is_unknown() -> None:
    """Whether the provider has the work nobody can say: not a failure that lets the next one be paid too."""
    provider = Scripted(_DONE)
    provider.stuck_in = "submit"
    with pytest.raises(ProviderFailure) as failed:
        await drive(provider, call("model"), {}, deadline_s=0.02, on_ticket=ignore)
    assert failed.value.kind is FailureKind.UNKNOWN


async def test_a_timeout_of_somebody_elses_is_not_the_deadline() -> None:
    """What goes wrong in our own code is raised as it is, once the provider was told to stop."""
    provider = Scripted(Running())

    async def tell(_: Running) -> None:
        raise TimeoutError("the database")

    with pytest.raises(TimeoutError, match="the database"):
        await follow(provider, _TICKET, deadline_s=60, on_progress=tell, sleep=Naps())
    assert provider.log == ["poll", "cancel"]


async def test_a_cancelled_caller_cancels_the_provider() -> None:
    """Whoever stops waiting stops the work too, even if they are stopped twice."""
    provider = Scripted(Running())
    provider.stuck_in = "poll"
    task = asyncio.create_task(drive(provider, call("model"), {}, deadline_s=60, on_ticket=ignore))
    await provider.polled.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert provider.log == ["submit", "poll", "cancel"]


async def test_a_provider_that_cannot_be_told_to_stop_changes_nothing() -> None:
    """The failure stays the one that there was."""
    provider = Scripted(Running())
    provider.stuck_in = "poll"
    provider.deaf = True
    with pytest.raises(ProviderFailure) as failed:
        await follow(provider, _TICKET, deadline_s=0.02)
    assert failed.value.kind is FailureKind.TIMEOUT
