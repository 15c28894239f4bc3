"""What every provider keeps to, whatever is behind it. A test module makes a `subject` fixture and inherits `ProviderContract`."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

import pytest
from PIL import Image

from normalization.plan import Call
from normalization.request import ImageRef, Json
from providers.base import Done, ImagePart, ImageParts, Provider, Running, Ticket
from providers.drive import drive, follow
from providers.failures import FailureKind, ProviderFailure
from providers.spool import Spool

IMAGE = ImageRef("image")


def png(width: int = 6, height: int = 4) -> bytes:
    """A small picture."""
    buffer = BytesIO()
    Image.new("RGB", (width, height), (200, 30, 60)).save(buffer, "PNG")
    return buffer.getvalue()


def image_part(spool: Spool, content: bytes | None = None) -> ImagePart:
    """A picture in a spool file."""
    content = png() if content is None else content
    path = spool.path(".png")
    path.write_bytes(content)
    return ImagePart(path, "image/png", len(content))


def call(endpoint: str, **payload: Json | ImageRef) -> Call:
    """A call that names the picture, and whatever else."""
    return Call(endpoint, MappingProxyType({"image": IMAGE, **payload}))


async def ignore(_: object) -> None:
    """For what a test does not look at."""


@dataclass(frozen=True)
class Subject:
    """A provider, and the calls that make it do what the contract is about."""

    provider: Provider
    spool: Spool
    good: Call
    """Doubles the picture."""
    failing: Call
    """Is taken, and fails by the model's fault."""
    hanging: Call
    """Goes on until it is cancelled."""
    begun: Callable[[], Awaitable[None]]
    """Returns once the hanging call is under way."""
    restarted: Provider | None = None
    """The provider as a later process has it; None if tickets do not outlive it."""
    remembers: bool = False
    """Whether the restarted one can still have the result."""
    failing_kind: FailureKind = FailureKind.TRANSIENT
    failing_picture: bytes = field(default_factory=lambda: png())
    hanging_picture: bytes = field(default_factory=lambda: png())
    prepare_failing: Callable[[], None] = field(default=lambda: None)
    prepare_hanging: Callable[[], None] = field(default=lambda: None)


class ProviderContract:
    """The suite."""

    async def test_a_call_is_submitted_polled_and_done(self, subject: Subject) -> None:
        """The three verbs give a readable picture of twice the size."""
        before = _files(subject.spool)
        done = await _driven(subject, subject.good)
        (output,) = done.outputs
        assert output.path is not None
        with Image.open(output.path) as picture:
            assert picture.size == (12, 8)
        assert len(_files(subject.spool) - before) == 2, "the input and the output, and nothing else"

    async def test_use_is_reported_in_exact_seconds(self, subject: Subject) -> None:
        """Where the provider says how long it took, that is a decimal above zero."""
        done = await _driven(subject, subject.good)
        assert done.usage.seconds is None or done.usage.seconds > 0

    async def test_failures_have_a_kind(self, subject: Subject) -> None:
        """What goes wrong upstream is a `ProviderFailure`, said once, and leaves no file."""
        subject.prepare_failing()
        before = _files(subject.spool)
        with pytest.raises(ProviderFailure) as failed:
            await _driven(subject, subject.failing, subject.failing_picture)
        assert failed.value.kind is subject.failing_kind
        assert failed.value.public
        assert len(_files(subject.spool) - before) == 1, "the input"

    async def test_work_goes_on_until_it_is_cancelled(self, subject: Subject) -> None:
        """Polls say that it runs; after the cancellation it is over, and the next call is served."""
        subject.prepare_hanging()
        before = _files(subject.spool)
        async with _under_way(subject) as ticket:
            assert isinstance(await subject.provider.poll(ticket), Running)
            await subject.provider.cancel(ticket)
        assert len(_files(subject.spool) - before) == 1, "the input"

    async def test_the_next_call_is_served_after_a_cancelled_one(self, subject: Subject) -> None:
        """A cancelled call gives its place back."""
        subject.prepare_hanging()
        async with _under_way(subject) as ticket:
            await subject.provider.cancel(ticket)
        if isinstance(gate := getattr(subject.provider, "gate", None), asyncio.Event):
            gate.set()
        assert (await _driven(subject, subject.good)).outputs

    async def test_cancelling_what_has_ended_is_no_error(self, subject: Subject) -> None:
        """A cancellation may come too late, or twice."""
        ticket = await subject.provider.submit(subject.good, _images(subject))
        await follow(subject.provider, ticket, deadline_s=60)
        await subject.provider.cancel(ticket)
        await subject.provider.cancel(ticket)

    async def test_a_deadline_ends_the_work(self, subject: Subject) -> None:
        """Too slow is a timeout, and the provider is told to stop."""
        subject.prepare_hanging()
        with pytest.raises(ProviderFailure) as failed:
            await drive(
                subject.provider,
                subject.hanging,
                _images(subject, subject.hanging_picture),
                deadline_s=0.2,
                on_ticket=ignore,
            )
        assert failed.value.kind is FailureKind.TIMEOUT

    async def test_a_ticket_is_text_that_is_enough_to_go_on(self, subject: Subject) -> None:
        """A ticket that was stored and read again is followed to the end."""
        ticket = await subject.provider.submit(subject.good, _images(subject))
        stored = (ticket.provider, ticket.endpoint, ticket.id, ticket.submitted_at.isoformat())
        assert all(isinstance(text, str) and text for text in stored)
        again = Ticket(*stored[:3], ticket.submitted_at)
        assert (await follow(subject.provider, again, deadline_s=60)).outputs

    async def test_a_ticket_survives_the_process_or_says_that_it_did_not(self, subject: Subject) -> None:
        """After a restart the result is had without asking for the work a second time; or it is known to be lost."""
        if subject.restarted is None:
            pytest.skip("this provider lives in the process")
        ticket = await subject.provider.submit(subject.good, _images(subject))
        await _finished_upstream(subject, ticket)
        if subject.remembers:
            assert (await follow(subject.restarted, ticket, deadline_s=60)).outputs
            return
        with pytest.raises(ProviderFailure, match="lost") as failed:
            await follow(subject.restarted, ticket, deadline_s=60)
        assert failed.value.kind is FailureKind.TRANSIENT


def _images(subject: Subject, picture: bytes | None = None) -> ImageParts:
    return {IMAGE: image_part(subject.spool, picture)}


async def _driven(subject: Subject, what: Call, picture: bytes | None = None) -> Done:
    return await drive(subject.provider, what, _images(subject, picture), deadline_s=60, on_ticket=ignore)


@asynccontextmanager
async def _under_way(subject: Subject) -> AsyncGenerator[Ticket]:
    ticket = await subject.provider.submit(subject.hanging, _images(subject, subject.hanging_picture))
    try:
        await subject.begun()
        yield ticket
    finally:
        await subject.provider.cancel(ticket)


async def _finished_upstream(subject: Subject, ticket: Ticket) -> None:
    while isinstance(await subject.provider.poll(ticket), Running):
        pass


def _files(spool: Spool) -> set[Path]:
    return set(spool.folder.iterdir())
