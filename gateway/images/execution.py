"""Execution: try the route's plans in order until one delivers; every attempt and every ticket is written down as it happens."""

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from gateway.errors import AllOffersFailed, BadRequest, ContentRefused, GatewayError, InternalError, Overloaded
from gateway.images.finishing import Originals, OwnFault, StoredImage
from gateway.images.health import BreakerState, Health, Turn
from gateway.images.journal import OpenAttempt, OpenJob, persistent
from gateway.images.making import Made, Order, make
from gateway.images.routing import Candidate, Route, Verdict, standing
from gateway.images.services import Services
from normalization.pricing import Cost, money, total
from normalization.request import ImageRequest, Json
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
    made: Made

    @property
    def cost(self) -> Cost:
        """What the provider charges for it."""
        return self.made.cost

    @property
    def provider(self) -> str:
        """Who was asked."""
        return self.candidate.plan.offer.provider

    @property
    def outcome(self) -> str:
        """`ok` or a kind of failure."""
        return self.failure.kind if self.failure else "ok"

    def told(self) -> dict[str, Json]:
        """For the answer's `attempts`; with what failed beside what was delivered."""
        told: dict[str, Json] = {"provider": self.provider, "outcome": self.outcome, "ms": self.ms}
        if self.failure is None and self.made.failures:
            told["failures"] = [failure.kind.value for failure in self.made.failures]
        return told


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
        await _record(attempt, tried[-1], by)
        _count(work, tried[-1], by)
        failure = tried[-1].failure
        if failure is None:
            return Delivered(candidate, made.images, tuple(tried), turns.told(tried))
        by.log.warning("attempt.failed", provider=tried[-1].provider, kind=tried[-1].outcome, detail=failure.detail)
        if _is_disk_full(failure.__cause__):
            raise _disk_full(failure, _account(tried, turns))
        if not CONSEQUENCES[failure.kind].try_next:
            raise _final(failure, _account(tried, turns))
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


async def _attempt(work: Work, candidate: Candidate, attempt: OpenAttempt, by: Services) -> Made:
    """Make one plan. Only a fault of our own is raised, once the journal does not say any more that the attempt runs."""
    alone = len(work.route.chosen) == 1
    try:
        return await make(Order(candidate.plan, work.request, work.originals, attempt, alone, work.on_progress), by)
    except Exception as error:
        words = f"the gateway failed: {type(error).__name__}"
        await persistent(lambda: by.journal.finish_attempt(attempt, FailureKind.UNKNOWN, words, Cost.unknown(words)))
        raise


async def _record(attempt: OpenAttempt, tried: Tried, by: Services) -> None:
    """Write down how an attempt ended. Money may have been spent, so a busy database is asked again."""
    made = tried.made
    details = "; ".join(dict.fromkeys(failure.detail for failure in made.failures)) or None
    await persistent(
        lambda: by.journal.finish_attempt(attempt, tried.outcome, details, made.cost, made.usage, keep_open=made.open_calls)
    )


def _is_disk_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


def _disk_full(failure: ProviderFailure, account: Mapping[str, Json]) -> Overloaded:
    """The spool took the pictures in, but not all that came of them."""
    return Overloaded(
        "the gateway's disk for pictures on their way is full; try again later",
        code="spool_full",
        detail=failure.detail,
        retry_after_s=30.0,
        extra=account,
    )


def _tried(candidate: Candidate, turn: Turn, made: Made, by: Services) -> Tried:
    """What an attempt came to. The offer's health hears of it."""
    failure = made.failure
    seconds, resting = by.health.report(turn, failure)
    if resting is not None and failure is not None:
        tell = by.log.error if failure.kind in _LASTING else by.log.warning
        tell("offer.resting", provider=turn.offer.provider, endpoint=turn.offer.endpoint, kind=failure.kind, reason=resting)
    return Tried(candidate, turn, failure, round(seconds * 1000), made)


def _final(failure: ProviderFailure, account: Mapping[str, Json]) -> GatewayError:
    """A failure that no other offer can mend."""
    if isinstance(failure, OwnFault):
        return InternalError(failure.public, detail=failure.detail, should_retry=False, extra=account)
    match failure.kind:
        case FailureKind.CALLER_FAULT:
            return BadRequest(failure.public, param=failure.param, detail=failure.detail, extra=account)
        case FailureKind.CONTENT:
            return ContentRefused(failure.public, detail=failure.detail, extra=account)
        case _:
            return AllOffersFailed(failure.public, detail=failure.detail, extra=account)


def _lines(tried: Sequence[Tried]) -> str:
    return "; ".join(f"{one.provider}: {one.outcome}" for one in tried)


def _account(tried: Sequence[Tried], turns: _Turns) -> dict[str, Json]:
    """What a failure tells of its attempts. To ask again is safe where nothing can have been spent."""
    safe = all(one.cost.usd == 0 for one in tried)
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
