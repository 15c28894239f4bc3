"""A provider that lives in this process, for tests and development: it does what it is told, and counts what it was asked."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from normalization.plan import Call
from providers.base import Done, ImageParts, RemoteImage, Running, Ticket, Usage
from providers.failures import FailureKind, ProviderFailure
from providers.spool import Spool
from providers.transfer import in_thread

Picture = Callable[[Call, ImageParts], bytes]
"""Makes the file that a call is answered with."""


@dataclass(slots=True)
class _Work:
    call: Call
    images: ImageParts
    cancelled: bool = False


class FakeProvider:
    """Answers every call with `call.images` pictures. Deterministic: tickets count up, nothing depends on time."""

    def __init__(self, name: str, spool: Spool, picture: Picture, *, usage: Usage | None = None) -> None:
        """Take a name, where to put results, how they are made, and what use is reported with them."""
        self.name = name
        self.gate = asyncio.Event()
        """While it is not set, work that was submitted goes on. Set from the start; `hold` clears it."""
        self.gate.set()
        self.submits = 0
        self.polls = 0
        self.cancels = 0
        self.calls: list[Call] = []
        """Every call submitted, in order."""
        self.progress: float | None = None
        """What `poll` says while the work goes on."""
        self._spool = spool
        self._picture = picture
        self._usage = usage or Usage()
        self._once: list[ProviderFailure] = []
        self._always: ProviderFailure | None = None
        self._work: dict[str, _Work] = {}

    def hold(self) -> None:
        """Let work go on until `gate.set()`."""
        self.gate.clear()

    def fails_once(self, kind: FailureKind, public: str | None = None) -> None:
        """The next poll that would be done fails instead. Several of these are used up in order."""
        self._once.append(self._failure(kind, public))

    def fails_always(self, kind: FailureKind, public: str | None = None) -> None:
        """Every call fails."""
        self._always = self._failure(kind, public)

    def refusal(self, endpoint: str) -> str | None:
        """It takes everything."""
        return None

    async def submit(self, call: Call, images: ImageParts, *, alone: bool = False) -> Ticket:
        """Take the call."""
        self.submits += 1
        self.calls.append(call)
        ticket = Ticket(self.name, call.endpoint, f"{self.name}-{self.submits}", datetime.now(UTC))
        self._work[ticket.id] = _Work(call, images)
        return ticket

    async def poll(self, ticket: Ticket) -> Running | Done:
        """Say whether the gate is open."""
        self.polls += 1
        work = self._work.get(ticket.id)
        if work is None:
            raise self._failure(FailureKind.UNKNOWN, f"{self.name} does not know the ticket")
        if work.cancelled:
            raise self._failure(FailureKind.CANCELLED, None)
        if not self.gate.is_set():
            return Running(self.progress)
        if failure := self._once.pop(0) if self._once else self._always:
            raise failure
        outputs = [RemoteImage(path=await in_thread(self._make, work)) for _ in range(work.call.images)]
        return Done(tuple(outputs), self._usage)

    async def cancel(self, ticket: Ticket) -> None:
        """Stop the work behind the ticket."""
        self.cancels += 1
        if work := self._work.get(ticket.id):
            work.cancelled = True

    def _make(self, work: _Work) -> Path:
        path = self._spool.path()
        path.write_bytes(self._picture(work.call, work.images))
        return path

    def _failure(self, kind: FailureKind, public: str | None) -> ProviderFailure:
        return ProviderFailure(kind, public or f"{self.name} fails with {kind}, as it was told to")
