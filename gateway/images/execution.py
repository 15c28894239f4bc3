"""Execution: try the route's plans in order until one delivers; every attempt and every ticket is written down as it happens."""

import asyncio
import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from gateway.errors import AllOffersFailed, BadRequest, ContentRefused, GatewayError, Overloaded
from gateway.images.finishing import Originals, StoredImage, fetch, finish, prepare, store
from gateway.images.health import BreakerState, Health, Turn
from gateway.images.journal import OpenAttempt, OpenJob
from gateway.images.routing import Candidate, Route, Verdict, standing
from gateway.images.scratch import Scratch
from gateway.images.services import Services
from gateway.images.verification import verify
from normalization.plan import Plan
from normalization.pricing import Cost, money, price, total
from normalization.request import ImageRequest, Json
from providers.base import Done, ImageParts, Running, Ticket, Usage
from providers.drive import drive
from providers.failures import CONSEQUENCES, FailureKind, ProviderFailure


@dataclass(frozen=True, slots=True)
class Work:
    """One request, ready to be carried out."""

    job: OpenJob
    request: ImageRequest
    route: Route
    originals: Originals
    created_at: datetime
    on_progress: Callable[[float], None]
    """Told 0..1 now and then."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One plan tried, as the answer tells it."""

    candidate: Candidate
    turn: Turn
    failure: ProviderFailure | None
    """None: it delivered."""
    ms: int
    cost: Cost

    @property
    def provider(self) -> str:
        """Who was asked."""
        return self.candidate.plan.offer.provider

    @property
    def outcome(self) -> str:
        """`ok` or a kind of failure."""
        return self.failure.kind if self.failure else "ok"

    def told(self) -> dict[str, str | int]:
        """For the answer's `attempts`."""
        return {"provider": self.provider, "outcome": self.outcome, "ms": self.ms}


@dataclass(frozen=True, slots=True)
class Delivered:
    """What execution came to."""

    candidate: Candidate
    images: tuple[StoredImage, ...]
    tried: tuple[Tried, ...]
    """In the order tried; the last one delivered."""
    offers: list[dict[str, Json]]
    """Of every offer, what became of it and why."""

    @property
    def cost(self) -> Cost:
        """What providers charge, failed attempts included."""
        return total([tried.cost for tried in self.tried])


@dataclass(frozen=True, slots=True)
class _Made:
    """What one attempt brought."""

    images: tuple[StoredImage, ...]
    cost: Cost
    usage: Mapping[int, Usage]


async def execute(work: Work, by: Services) -> Delivered:
    """Try plan after plan.

    Raises:
        BadRequest, ContentRefused: The provider says that the caller's input is at fault.
        AllOffersFailed: Nobody delivered.
        Overloaded: The spool's disk is full.
    """
    tried: list[Tried] = []
    turns = _Turns(work.route, by.health)
    for turn, candidate in turns:
        try:
            attempt = await by.journal.start_attempt(work.job, len(tried), candidate.plan)
            made = await _attempt(work, candidate, attempt, by)
        except BaseException:  # whatever it is, it says nothing of the offer
            by.health.abandon(turn)
            raise
        tried.append(_tried(candidate, turn, made, by))
        _count(work, tried[-1], by)
        if isinstance(made, _Made):
            await by.journal.finish_attempt(attempt, tried[-1].outcome, None, made.cost, made.usage)
            return Delivered(candidate, made.images, tuple(tried), turns.told(tried))
        await by.journal.finish_attempt(attempt, tried[-1].outcome, made.detail, tried[-1].cost)
        by.log.warning("attempt.failed", provider=tried[-1].provider, kind=tried[-1].outcome, detail=made.detail)
        if not CONSEQUENCES[made.kind].try_next:
            raise _final(made, _account(tried, turns))
    final = all(one.failure is not None and one.failure.kind in _LASTING for one in tried)
    waits = [one.failure.retry_after_s for one in tried if one.failure and one.failure.retry_after_s is not None]
    raise AllOffersFailed(
        f"No offer delivered: {_lines(tried)}.",
        should_retry=False if final else None,
        retry_after_s=min(waits, default=None),
        extra=_account(tried, turns),
    )


_LASTING = frozenset({FailureKind.CREDENTIAL, FailureKind.QUOTA, FailureKind.MODEL_GONE})
"""Failures that stay until the operator does something."""


class _Turns:
    """The route's candidates as their turns come: first those that do not rest, then the others as a last resort."""

    def __init__(self, route: Route, health: Health) -> None:
        self._route = route
        self._health = health
        self._resting: dict[int, str] = {}
        """By place in the route, why it was passed over."""

    def __iter__(self) -> Iterator[tuple[Turn, Candidate]]:
        for place, candidate in enumerate(self._route.chosen):
            turn = self._health.start(candidate.plan.offer)
            if turn is not None:
                yield turn, candidate
            else:
                self._resting[place] = self._health.look(candidate.plan.offer).resting or "it rests"
        for place in tuple(self._resting):
            candidate = self._route.chosen[place]
            yield self._health.start_anyway(candidate.plan.offer), candidate

    def told(self, tried: Sequence[Tried]) -> list[dict[str, Json]]:
        """Of every offer of the model, what became of it and why: for the answer's `offers`."""
        attempts = {id(one.candidate): one for one in tried}
        unneeded = "not tried: another offer cannot mend it" if tried and tried[-1].failure else "not needed"
        told: list[dict[str, Json]] = []
        for place, candidate in enumerate(self._route.chosen):
            attempt, resting = attempts.get(id(candidate)), self._resting.get(place)
            if attempt is None:
                told.append(_verdict(candidate, Verdict.SKIPPED, resting or unneeded, standing(candidate, self._route.policy)))
                continue
            verdict = Verdict.TRIED if attempt.failure else Verdict.CHOSEN
            reasons = [f"failed: {attempt.outcome}"] if attempt.failure else []
            reasons += [f"a last resort: {resting}"] if resting else []
            reasons += ["a probe: the first after a rest"] if attempt.turn.probe else []
            told.append(_verdict(candidate, verdict, *reasons, standing(candidate, self._route.policy)))
        told += [_verdict(candidate, Verdict.NOT_ELIGIBLE, *candidate.reasons) for candidate in self._route.left_out]
        return told


def _verdict(candidate: Candidate, verdict: Verdict, *reasons: str) -> dict[str, Json]:
    offer = candidate.plan.offer
    return {"provider": offer.provider, "endpoint": offer.endpoint, "verdict": verdict.value, "reasons": list(reasons)}


async def _attempt(work: Work, candidate: Candidate, attempt: OpenAttempt, by: Services) -> _Made | ProviderFailure:
    """Make one plan; a provider's failure is an outcome here, not an exception."""
    try:
        return await _make(work, candidate.plan, attempt, by)
    except ProviderFailure as failure:
        return failure
    except Exception as error:  # of our own making; whatever it is, the journal must not say that the attempt still runs
        words = f"the gateway failed: {type(error).__name__}"
        await by.journal.finish_attempt(attempt, FailureKind.UNKNOWN, words, Cost.unknown(words))
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise _disk_full(error, candidate) from error
        raise


def _disk_full(error: OSError, candidate: Candidate) -> Overloaded:
    """The spool took the pictures in, but not all that came of them."""
    return Overloaded(
        "the gateway's disk for pictures on their way is full; try again later",
        code="spool_full",
        detail=str(error),
        retry_after_s=30.0,
        # the work may have been done: again is safe only where it costs nothing
        extra={"billed_usd": money(Decimal(0)), "retry_safe": candidate.cost.usd == 0},
    )


def _tried(candidate: Candidate, turn: Turn, made: _Made | ProviderFailure, by: Services) -> Tried:
    """What an attempt came to. The offer's health hears of it."""
    failure = None if isinstance(made, _Made) else made
    cost = made.cost if isinstance(made, _Made) else _cost_of(made)
    seconds, resting = by.health.report(turn, failure)
    if resting is not None and failure is not None:
        tell = by.log.error if failure.kind in _LASTING else by.log.warning
        tell("offer.resting", provider=turn.offer.provider, endpoint=turn.offer.endpoint, kind=failure.kind, reason=resting)
    return Tried(candidate, turn, failure, round(seconds * 1000), cost)


async def _make(work: Work, plan: Plan, attempt: OpenAttempt, by: Services) -> _Made:
    """Make one plan's calls, and turn what comes of them into stored pictures."""
    with Scratch(by.spool) as scratch:
        parts = await prepare(plan, work.originals, scratch, by)
        results = await _call_all(work, plan, parts, attempt, by)
        outputs = [output for index, done in results.items() for output in done.outputs[: plan.calls[index].images]]
        raw = [await fetch(output, scratch, by) for output in outputs]
        for result in raw:
            await verify(result, plan, work.request, work.originals, by)
        ready = await asyncio.gather(*(finish(result, plan, work.request, work.originals, scratch, by) for result in raw))
        images = await asyncio.gather(*(store(picture, by) for picture in ready))
        usage = {index: done.usage for index, done in results.items()}
        pixels = [result.info.size.pixels for result in raw]
        cost = price(plan.offer.price, seconds=_seconds(usage), results=pixels)
        return _Made(tuple(images), cost, usage)


async def _call_all(work: Work, plan: Plan, parts: ImageParts, attempt: OpenAttempt, by: Services) -> dict[int, Done]:
    """Make the calls side by side. Some may fail; if all do, the first failure stands for them."""
    calls = (_call(work, plan, index, parts, attempt, by) for index in range(len(plan.calls)))
    results = await asyncio.gather(*calls, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    ours = next((failure for failure in failures if not isinstance(failure, ProviderFailure)), None)
    if ours is not None:
        raise ours
    done = {index: result for index, result in enumerate(results) if isinstance(result, Done)}
    if not done:
        raise failures[0]
    if not any(result.outputs for result in done.values()):
        raise ProviderFailure(FailureKind.TRANSIENT, "the provider delivered no picture")
    return done


async def _call(work: Work, plan: Plan, index: int, parts: ImageParts, attempt: OpenAttempt, by: Services) -> Done:
    async def keep(ticket: Ticket) -> None:
        await by.journal.record_ticket(attempt, index, ticket)

    async def tell(running: Running) -> None:
        if running.progress is not None:
            work.on_progress(running.progress)

    provider = by.providers[plan.offer.provider]
    deadline_s = by.settings.limits.job_deadline_s
    alone = len(work.route.chosen) == 1
    call = plan.calls[index]
    return await drive(provider, call, parts, deadline_s=deadline_s, on_ticket=keep, on_progress=tell, alone=alone)


def _seconds(usage: Mapping[int, Usage]) -> Decimal | None:
    told = [used.seconds for used in usage.values()]
    return sum((seconds for seconds in told if seconds is not None), Decimal(0)) if None not in told else None


def _cost_of(failure: ProviderFailure) -> Cost:
    """What a failed attempt costs: nothing where the provider says so or cannot have worked, unknown where nobody can say."""
    if CONSEQUENCES[failure.kind].retry_safe:
        return Cost.nothing("not charged")
    return Cost.unknown(f"{failure.kind}: the provider may have charged")


def _final(failure: ProviderFailure, account: Mapping[str, object]) -> GatewayError:
    """A failure that no other offer can mend."""
    match failure.kind:
        case FailureKind.CALLER_FAULT:
            return BadRequest(failure.public, param=failure.param, detail=failure.detail, extra=account)
        case FailureKind.CONTENT:
            return ContentRefused(failure.public, detail=failure.detail, extra=account)
        case _:
            return AllOffersFailed(failure.public, detail=failure.detail, extra=account)


def _lines(tried: Sequence[Tried]) -> str:
    return "; ".join(f"{one.provider}: {one.outcome}" for one in tried)


def _account(tried: Sequence[Tried], turns: _Turns) -> dict[str, object]:
    safe = all(one.failure is None or CONSEQUENCES[one.failure.kind].retry_safe for one in tried)
    attempts = [one.told() for one in tried]
    return {"attempts": attempts, "offers": turns.told(tried), "billed_usd": money(Decimal(0)), "retry_safe": safe}


_LEVELS = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


def _count(work: Work, tried: Tried, by: Services) -> None:
    """Labels are the catalog's own names, never a caller's text."""
    found = by.catalog.find(work.request.model)
    model = found[0].id if found else "unknown"
    by.metrics.attempts.labels(model, tried.provider, tried.outcome).inc()
    by.metrics.attempt_seconds.labels(model, tried.provider).observe(tried.ms / 1000)
    if tried.cost.usd is None:
        by.metrics.cost_unknown.labels(model, tried.provider).inc()
    else:
        by.metrics.cost_usd.labels(model, tried.provider).inc(float(tried.cost.usd))
    offer = tried.turn.offer
    # asked at each scrape, because a rest ends by itself
    by.metrics.breaker_state.labels(offer.provider, offer.endpoint).set_function(lambda: _LEVELS[by.health.look(offer).state])
