"""Making: one plan from its calls to stored pictures.

Some of it may fail while the rest delivers, and nothing that was paid is forgotten.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from gateway.errors import GatewayError
from gateway.images.finishing import Originals, OwnFault, StoredImage, fetch, finish, prepare, store
from gateway.images.journal import OpenAttempt
from gateway.images.scratch import Scratch
from gateway.images.services import Services
from gateway.images.verification import verify
from normalization.offer import Price
from normalization.plan import Plan
from normalization.pricing import Certainty, Cost, expected_pixels, price, total
from normalization.request import ImageRequest
from providers.base import Done, ImageParts, RemoteImage, Running, Ticket, Usage
from providers.drive import drive
from providers.failures import CONSEQUENCES, FailureKind, ProviderFailure

MOST_SECONDS = Decimal(7 * 86_400)
"""A provider that says it worked longer has not said anything."""

MOST_UNITS = Decimal(1_000_000)
"""The same for what it bills, whatever it counts in."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be made, and for whom."""

    plan: Plan
    request: ImageRequest
    originals: Originals
    attempt: OpenAttempt
    alone: bool
    """Whether no other offer could take over."""
    on_progress: Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Made:
    """What a plan brought."""

    images: tuple[StoredImage, ...] = ()
    cost: Cost = field(default_factory=lambda: Cost.nothing("not charged"))
    """All that the provider charges for it, what could not be used included."""
    billed: Cost = field(default_factory=lambda: Cost.nothing("nothing was delivered"))
    """The delivered pictures' part of it."""
    usage: Mapping[int, Usage] = field(default_factory=dict[int, Usage])
    """By call."""
    failures: tuple[ProviderFailure, ...] = ()
    """Of calls, and of results that cannot be used."""
    open_calls: frozenset[int] = frozenset()
    """Calls that the provider may still be working on."""

    @property
    def failure(self) -> ProviderFailure | None:
        """Why there is no picture at all: the gravest of the failures."""
        if self.images:
            return None
        return min(self.failures, key=_gravity, default=ProviderFailure(FailureKind.TRANSIENT, "the provider delivered no picture"))


@dataclass(frozen=True, slots=True)
class _Result:
    """One output of a call."""

    call: int
    pixels: int | None = None
    """As the provider made it; None if it could not be had."""
    image: StoredImage | None = None
    failure: ProviderFailure | None = None


async def make(order: Order, by: Services) -> Made:
    """Make the plan's calls side by side, and turn what comes of them into stored pictures."""
    with Scratch(by.spool) as scratch:
        try:
            parts = await prepare(order.plan, order.originals, scratch, by)
        except ProviderFailure as failure:
            return Made(failures=(failure,))
        ended = await _call_all(order, parts, scratch, by)
        done = {index: end for index, end in ended.items() if isinstance(end, Done)}
        failed = {index: end for index, end in ended.items() if isinstance(end, ProviderFailure)}
        outputs = [(index, output) for index, end in done.items() for output in end.outputs[: order.plan.calls[index].images]]
        results = await asyncio.gather(*(_finished(index, output, order, scratch, by) for index, output in outputs))
        return _account(order, done, failed, results)


async def _call_all(order: Order, parts: ImageParts, scratch: Scratch, by: Services) -> dict[int, Done | ProviderFailure]:
    calls = (_call(order, index, parts, scratch, by) for index in range(len(order.plan.calls)))
    return dict(enumerate(await asyncio.gather(*calls)))


async def _call(order: Order, index: int, parts: ImageParts, scratch: Scratch, by: Services) -> Done | ProviderFailure:
    """One call to its end. A failure is an outcome, so that the other calls' pictures are not lost with it."""

    async def keep(ticket: Ticket) -> None:
        await by.journal.record_ticket(order.attempt, index, ticket)

    async def tell(running: Running) -> None:
        if running.progress is not None:
            order.on_progress(running.progress)

    try:
        done = await drive(
            by.providers[order.plan.offer.provider],
            order.plan.calls[index],
            parts,
            deadline_s=by.settings.limits.job_deadline_s,
            on_ticket=keep,
            on_progress=tell,
            alone=order.alone,
            nudges=by.nudges if order.plan.offer.provider in by.webhooked else None,
        )
    except ProviderFailure as failure:
        failure.param = _as_asked(failure.param, order.plan)
        return failure
    except (GatewayError, OSError) as error:
        # The ticket or the answer could not be kept: the provider may have worked all the same.
        return _of_ours(error, by)
    for output in done.outputs:
        if output.path is not None:
            scratch.adopt(output.path)
    return done


def _as_asked(field: str | None, plan: Plan) -> str | None:
    """The caller's name for the provider's field that is at fault."""
    return next((decision.param for decision in plan.decisions if field in decision.sent), field)


async def _finished(index: int, output: RemoteImage, order: Order, scratch: Scratch, by: Services) -> _Result:
    """One output, looked at, finished and stored. A failure is an outcome, as with calls."""
    pixels: int | None = None
    try:
        raw = await fetch(output, scratch, by)
        pixels = raw.info.size.pixels
        await verify(raw, order.plan, order.request, order.originals, by)
        ready = await finish(raw, order.plan, order.request, order.originals, scratch, by)
        return _Result(index, pixels, await store(ready, by))
    except ProviderFailure as failure:
        return _Result(index, pixels, failure=failure)
    except Exception as error:  # noqa: BLE001 -- whatever it is, it must not take the other pictures with it
        return _Result(index, pixels, failure=_of_ours(error, by))


def _account(order: Order, done: Mapping[int, Done], failed: Mapping[int, ProviderFailure], results: Sequence[_Result]) -> Made:
    """What was made, and what it costs: everything that the provider made is paid, usable or not."""
    plan = order.plan
    usage = {index: end.usage for index, end in done.items()}
    costs = [_cost_of_done(order, usage, results)] if done else []
    costs += [cost for cost in (cost_of(failure, plan.offer.price) for failure in failed.values()) if cost.usd != 0]
    delivered = [result for result in results if result.image is not None]
    served = {index: usage[index] for index in {result.call for result in delivered}}
    # Units are told of a call, not of each picture.
    units = _units(served) if all(result.image for result in results if result.call in served) else None
    return Made(
        images=tuple(result.image for result in delivered if result.image is not None),
        cost=total(costs) if costs else Cost.nothing("not charged"),
        billed=price(plan.offer.price, seconds=_seconds(served), results=[result.pixels for result in delivered], units=units),
        usage=usage,
        failures=(*failed.values(), *(result.failure for result in results if result.failure is not None)),
        open_calls=frozenset(index for index, failure in failed.items() if not CONSEQUENCES[failure.kind].retry_safe),
    )


def _cost_of_done(order: Order, usage: Mapping[int, Usage], results: Sequence[_Result]) -> Cost:
    """What the calls cost that came to their end. A picture that could not be had counts as large as it was to be: an estimate."""
    terms, seconds, units = order.plan.offer.price, _seconds(usage), _units(usage)
    cost = price(terms, seconds=seconds, results=[result.pixels for result in results], units=units)
    if cost.usd is not None:
        return cost
    expected = expected_pixels(order.plan, order.request)
    guess = price(terms, seconds=seconds, results=[result.pixels or expected for result in results], units=units)
    return cost if guess.usd is None else replace(guess, certainty=Certainty.ESTIMATED)


def cost_of(failure: ProviderFailure, terms: Price) -> Cost:
    """What a failed call costs: nothing where the provider cannot have worked or is free, unknown where nobody can say."""
    if failure.usage is not None:
        return price(terms, seconds=_believed(failure.usage.seconds), results=(), units=_believed_units(failure.usage.units))
    if CONSEQUENCES[failure.kind].retry_safe or terms.usd == 0:
        return Cost.nothing("not charged")
    return Cost.unknown(f"{failure.kind}: the provider may have charged")


def _seconds(usage: Mapping[int, Usage]) -> Decimal | None:
    told = [_believed(used.seconds) for used in usage.values()]
    return sum((seconds for seconds in told if seconds is not None), Decimal(0)) if None not in told else None


def _units(usage: Mapping[int, Usage]) -> Decimal | None:
    told = [_believed_units(used.units) for used in usage.values()]
    return sum((units for units in told if units is not None), Decimal(0)) if told and None not in told else None


def _believed_units(units: Decimal | None) -> Decimal | None:
    return units if units is not None and units.is_finite() and 0 <= units <= MOST_UNITS else None


def _believed(seconds: Decimal | None) -> Decimal | None:
    """The seconds that a provider reports, unless they cannot be."""
    return seconds if seconds is not None and seconds.is_finite() and 0 <= seconds <= MOST_SECONDS else None


def _gravity(failure: ProviderFailure) -> tuple[bool, bool]:
    """Money that may have been spent first, then what no other offer can mend."""
    consequence = CONSEQUENCES[failure.kind]
    return consequence.retry_safe, consequence.try_next


def _of_ours(error: Exception, by: Services) -> ProviderFailure:
    by.log.error("attempt.crashed", exc_info=error)
    words = "the gateway failed to keep the result"
    failure = OwnFault(words, detail=f"{words}: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
