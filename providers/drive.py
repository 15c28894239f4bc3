"""Submit, wait, give up: the life of a call, once for all providers."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from typing import TypeAlias

from normalization.plan import Call
from providers.base import Done, ImageParts, Provider, Running, Ticket
from providers.failures import FailureKind, ProviderFailure

OnTicket: TypeAlias = Callable[[Ticket], Awaitable[None]]
OnProgress: TypeAlias = Callable[[Running], Awaitable[None]]
Sleep: TypeAlias = Callable[[float], Awaitable[None]]

FIRST_GAP_S = 0.25
LONGEST_GAP_S = 2.0
_GROWTH = 1.5
_JITTER = 0.2
"""Each gap is this fraction longer or shorter by chance, so that many jobs do not ask at once."""

_UNANSWERED = 5
"""How often in a row a question may go unanswered before the work is given up."""

_CANCEL_S = 15.0
"""The longest that a cancellation may take; after that nobody waits for it."""


SLOW_GAP_S = 15.0
"""The longest gap between polls where a webhook will say that there is news; webhooks can be lost, so it never only waits."""


class Nudges:
    """Ends the pause before the next poll of a ticket when a webhook says that there is news."""

    def __init__(self) -> None:
        self._watched: dict[Ticket, asyncio.Event] = {}

    def nudge(self, provider: str, work_id: str) -> bool:
        """Wake whoever polls for the provider's work of that id; False if nobody does."""
        woken = [
            event for ticket, event in self._watched.items() if ticket.provider == provider and work_id in ticket.id.split("/")
        ]
        for event in woken:
            event.set()
        return bool(woken)

    @contextmanager
    def watching(self, ticket: Ticket) -> Generator[Sleep]:
        """A pause that ends early when there is news of the ticket."""
        event = self._watched[ticket] = asyncio.Event()

        async def pause(seconds: float) -> None:
            with suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), seconds)
            event.clear()

        try:
            yield pause
        finally:
            self._watched.pop(ticket, None)


class Unanswered(ProviderFailure):
    """A poll got no usable answer, which says nothing of the work itself: it is asked again, a few times.

    Its kind is what the call ends with if there is never an answer.
    """


async def drive(
    provider: Provider,
    call: Call,
    images: ImageParts,
    *,
    deadline_s: float,
    on_ticket: OnTicket,
    on_progress: OnProgress | None = None,
    alone: bool = False,
    nudges: Nudges | None = None,
    sleep: Sleep = asyncio.sleep,
    chance: Callable[[], float] = random.random,
) -> Done:
    """Have `provider` carry out `call`, and wait until it has.

    Args:
        provider: Whom to ask.
        call: What to ask for.
        images: The pictures that the call names.
        deadline_s: For all of it, seconds; then the call is cancelled.
        on_ticket: Awaited before the first poll, so that the ticket is stored and a restart can `follow` it.
        on_progress: Told after each poll that found it running.
        alone: Whether no other offer could take over.
        nudges: Given where webhooks tell of news: it is polled slowly then, and at once when there is some.
        sleep: Waits between polls.
        chance: 0..1, for the jitter of the gaps.

    Raises:
        ProviderFailure: Kind `timeout` after the deadline; `unknown` if it passed before there was a ticket.
        asyncio.CancelledError: Once the provider was asked to stop.
    """
    started = time.monotonic()
    ticket = await _submit(provider, call, images, deadline_s, alone=alone)
    try:
        await on_ticket(ticket)
    except BaseException:  # a ticket that is not stored would be paid for and forgotten
        await _cancel(provider, ticket)
        raise
    left_s = deadline_s - (time.monotonic() - started)
    return await follow(provider, ticket, deadline_s=left_s, on_progress=on_progress, nudges=nudges, sleep=sleep, chance=chance)


async def follow(
    provider: Provider,
    ticket: Ticket,
    *,
    deadline_s: float,
    on_progress: OnProgress | None = None,
    nudges: Nudges | None = None,
    sleep: Sleep = asyncio.sleep,
    chance: Callable[[], float] = random.random,
) -> Done:
    """Wait for the work behind a ticket, of this process or of one before it. Arguments and errors as for `drive`."""
    deadline = asyncio.timeout(deadline_s)
    try:
        async with deadline:
            if nudges is None:
                return await _poll_until_done(provider, ticket, on_progress, sleep, chance, LONGEST_GAP_S)
            with nudges.watching(ticket) as pause:
                return await _poll_until_done(provider, ticket, on_progress, pause, chance, SLOW_GAP_S)
    except BaseException as exc:
        if isinstance(exc, ProviderFailure) and not isinstance(exc, Unanswered):
            raise  # the provider itself has ended it
        await _cancel(provider, ticket)
        if deadline.expired():
            message = f"{ticket.provider} did not finish in time and was told to stop"
            raise ProviderFailure(FailureKind.TIMEOUT, message) from exc
        raise


async def _submit(provider: Provider, call: Call, images: ImageParts, deadline_s: float, *, alone: bool) -> Ticket:
    try:
        async with asyncio.timeout(deadline_s):
            return await provider.submit(call, images, alone=alone)
    except TimeoutError as exc:
        message = f"{provider.name} did not take the work in time; whether it has it is not known"
        raise ProviderFailure(FailureKind.UNKNOWN, message) from exc


async def _poll_until_done(
    provider: Provider,
    ticket: Ticket,
    on_progress: OnProgress | None,
    sleep: Sleep,
    chance: Callable[[], float],
    longest_gap_s: float,
) -> Done:
    gap_s, unanswered = FIRST_GAP_S, 0
    while True:
        asked = time.monotonic()
        try:
            news = await provider.poll(ticket)
        except Unanswered as exc:
            unanswered += 1
            if unanswered >= _UNANSWERED:
                raise
            wait_s = max(gap_s, exc.retry_after_s or 0.0)
        else:
            if isinstance(news, Done):
                return news
            unanswered, wait_s = 0, gap_s
            if on_progress is not None:
                await on_progress(news)
        wait_s *= 1 + _JITTER * (2 * chance() - 1)
        spent_s = time.monotonic() - asked
        if spent_s < wait_s:  # else the poll itself has waited
            await sleep(wait_s - spent_s)
        gap_s = min(gap_s * _GROWTH, longest_gap_s)


async def _cancel(provider: Provider, ticket: Ticket) -> None:
    """Ask the provider to stop, to the end even if the caller is cancelled once more meanwhile."""
    work = asyncio.ensure_future(_cancel_in_time(provider, ticket))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


async def _cancel_in_time(provider: Provider, ticket: Ticket) -> None:
    """Best effort: a provider that cannot be told has nothing to add to the failure that is already on its way."""
    try:
        async with asyncio.timeout(_CANCEL_S):
            await provider.cancel(ticket)
    except (ProviderFailure, TimeoutError):
        return
