"""Health: how each offer has done lately in real traffic, and which offers rest. A circuit breaker for each, by kind of failure.

Closed: it is tried. Open: it rests. Half-open: its rest is over, and one request, the probe, finds out. Pure functions over a
`Record` say what follows from what; `Health` keeps the records, in this process only, and asks the clock. A restart forgets all, so
a mended key is tried at once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

from gateway.settings import Routing
from normalization.offer import Offer
from providers.failures import FailureKind, ProviderFailure

_SPEEDS = 20
"""Deliveries whose time is remembered."""

_OUTCOMES = 200
"""Outcomes that are remembered at most, however busy the window."""

_FEWEST = 5
"""Fewer outcomes than this say nothing about a rate."""


class BreakerState(StrEnum):
    """Where an offer's circuit breaker stands."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When offers rest, and how long."""

    failures: int = 5
    """So many failures in a row open the breaker."""
    rest_s: float = 15.0
    """The first rest; each probe that fails doubles it."""
    longest_rest_s: float = 900.0
    """No rest is longer. What stays until the operator acts (key, credit, model) rests so long at once."""
    window_s: float = 300.0
    """Over which the success rate is taken."""
    healthy_rate: float = 0.8
    """Below this success rate an offer is shaky: it is still tried, but after steady ones."""

    @classmethod
    def of(cls, routing: Routing) -> "Thresholds":
        """As the operator has set them."""
        return cls(
            failures=routing.breaker_failures,
            rest_s=routing.breaker_rest_s,
            longest_rest_s=routing.breaker_longest_rest_s,
            window_s=routing.health_window_s,
            healthy_rate=routing.healthy_rate,
        )


@dataclass(frozen=True, slots=True)
class Condition:
    """How an offer is, at one moment."""

    state: BreakerState = BreakerState.CLOSED
    resting: str | None = None
    """Why it rests, in words; None if it may be tried now."""
    lasting: bool = False
    """Whether there is little hope before the rest is over: the operator must act, or the provider has named the time."""
    shaky: bool = False
    """Whether too many late attempts failed."""
    success_rate: float | None = None
    """0..1, of the attempts in the window; None if there were too few."""
    latency_s: float | None = None
    """Median seconds of its last deliveries; None if there was none."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of one offer; every event makes the next record. Times are seconds of the clock."""

    outcomes: tuple[tuple[float, bool], ...] = ()
    """When an attempt ended, and whether it delivered."""
    speeds: tuple[float, ...] = ()
    """Seconds that the last deliveries took."""
    in_row: int = 0
    """Failures since the last delivery."""
    opened_at: float | None = None
    """Since when the breaker is not closed; None: it is."""
    rests_until: float = -math.inf
    kind: FailureKind | None = None
    """What opened it."""
    lasting: bool = False
    rests: int = 0
    """Rests since the breaker was last closed."""
    probe: int | None = None
    """The turn that is the probe, while one runs."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One attempt at an offer, from its start to its report."""

    number: int
    offer: Offer
    started: float
    resting: str | None = None
    """Why the offer should have rested, if it is tried as a last resort."""
    probe: bool = False


# --- the state machine --------------------------------------------------------------------------------------------------------


def state_of(record: Record, now: float) -> BreakerState:
    """Where the breaker stands."""
    if record.opened_at is None:
        return BreakerState.CLOSED
    return BreakerState.OPEN if now < record.rests_until else BreakerState.HALF_OPEN


def condition_of(record: Record, provider: str, now: float, limits: Thresholds) -> Condition:
    """What a router needs to know."""
    state = state_of(record, now)
    outcomes = [delivered for at, delivered in record.outcomes if at > now - limits.window_s]
    rate = sum(outcomes) / len(outcomes) if len(outcomes) >= _FEWEST else None
    return Condition(
        state=state,
        resting=_resting(record, provider, state, now),
        lasting=state is BreakerState.OPEN and record.lasting,
        shaky=rate is not None and rate < limits.healthy_rate,
        success_rate=rate,
        latency_s=sorted(record.speeds)[len(record.speeds) // 2] if record.speeds else None,
    )


def _resting(record: Record, provider: str, state: BreakerState, now: float) -> str | None:
    match state:
        case BreakerState.CLOSED:
            return None
        case BreakerState.OPEN:
            return f"{provider} rests for {math.ceil(record.rests_until - now)} s more after {record.kind}"
        case BreakerState.HALF_OPEN:
            return None if record.probe is None else f"{provider} rests after {record.kind}: another request finds out how it is"
        case _:
            assert_never(state)


def delivered(record: Record, turn: Turn, now: float, limits: Thresholds) -> Record:
    """After an attempt that delivered. What began before the breaker opened says nothing of the time since."""
    seen = _seen(record, now, limits, delivered=True)
    seen = replace(seen, speeds=(*record.speeds, now - turn.started)[-_SPEEDS:])
    return seen if _before_opening(record, turn) else _closed(seen)


def failed(
    record: Record, turn: Turn, kind: FailureKind, now: float, limits: Thresholds, retry_after_s: float | None = None
) -> Record:
    """After an attempt that failed.

    Args:
        record: Until now.
        turn: The attempt.
        kind: Why. What follows from each is here, in one place.
        now: When it ended.
        limits: The operator's.
        retry_after_s: When to come back, where the provider says.
    """
    record = record if record.probe != turn.number else replace(record, probe=None)
    match kind:
        case FailureKind.CANCELLED:
            return record  # our own doing
        case FailureKind.CALLER_FAULT | FailureKind.CONTENT:
            return record if _before_opening(record, turn) else _closed(record)  # it answered: it is well
        case FailureKind.CREDENTIAL | FailureKind.QUOTA | FailureKind.MODEL_GONE:
            seen = _seen(record, now, limits, delivered=False)
            return _open(seen, kind, now, limits.longest_rest_s, lasting=True)
        case FailureKind.RATE_LIMIT:
            seen = _seen(record, now, limits, delivered=False)
            if retry_after_s is not None and retry_after_s > 0:
                return _open(seen, kind, now, min(retry_after_s, limits.longest_rest_s), lasting=True)
            return seen if _is_news_of_the_past(record, turn) else _rest(seen, kind, now, limits)
        case FailureKind.TRANSIENT | FailureKind.TIMEOUT | FailureKind.UNKNOWN:
            seen = _seen(record, now, limits, delivered=False)
            enough = seen.opened_at is not None or seen.in_row >= limits.failures
            return _rest(seen, kind, now, limits) if enough and not _is_news_of_the_past(record, turn) else seen
        case _:
            assert_never(kind)


def abandoned(record: Record, turn: Turn) -> Record:
    """After an attempt that ended without news of the offer: cancelled, or through a fault of ours."""
    return replace(record, probe=None) if record.probe == turn.number else record


def _before_opening(record: Record, turn: Turn) -> bool:
    return record.opened_at is not None and turn.started < record.opened_at


def _is_news_of_the_past(record: Record, turn: Turn) -> bool:
    """Whether an attempt began before the present rest was over, so that its failure is no reason for another."""
    return record.opened_at is not None and turn.started < record.rests_until


def _seen(record: Record, now: float, limits: Thresholds, *, delivered: bool) -> Record:
    late = (outcome for outcome in record.outcomes if outcome[0] > now - limits.window_s)
    return replace(record, outcomes=(*late, (now, delivered))[-_OUTCOMES:], in_row=0 if delivered else record.in_row + 1)


def _closed(record: Record) -> Record:
    return Record(outcomes=record.outcomes, speeds=record.speeds)


def _rest(record: Record, kind: FailureKind, now: float, limits: Thresholds) -> Record:
    doubled = limits.rest_s * 2.0 ** min(record.rests, 30)
    return _open(record, kind, now, min(doubled, limits.longest_rest_s), lasting=False)


def _open(record: Record, kind: FailureKind, now: float, seconds: float, *, lasting: bool) -> Record:
    """Begin a rest. One that runs already is never shortened."""
    until = now + seconds
    if until < record.rests_until:
        return record
    rests = record.rests + (state_of(record, now) is not BreakerState.OPEN)  # several may fail at once; that is one rest
    return replace(record, opened_at=now, rests_until=until, kind=kind, lasting=lasting, rests=rests, probe=None)


# --- its keeper ---------------------------------------------------------------------------------------------------------------


class Health:
    """The records of one process. Everything here is instant; nothing is asked of anybody."""

    def __init__(self, limits: Thresholds, clock: Callable[[], float]) -> None:
        """Nothing is known yet.

        Args:
            limits: The operator's.
            clock: Seconds that only grow, such as `time.monotonic`.
        """
        self._limits = limits
        self._clock = clock
        self._records: dict[tuple[str, str], Record] = {}
        self._turns = 0

    def look(self, offer: Offer) -> Condition:
        """How an offer is now."""
        return condition_of(self._record(offer), offer.provider, self._clock(), self._limits)

    def start(self, offer: Offer) -> Turn | None:
        """Take a turn at an offer; None if it rests. The first turn after a rest is the probe."""
        condition = self.look(offer)
        if condition.resting is not None:
            return None
        turn = self._turn(offer, probe=condition.state is BreakerState.HALF_OPEN)
        if turn.probe:
            self._keep(offer, replace(self._record(offer), probe=turn.number))
        return turn

    def start_anyway(self, offer: Offer) -> Turn:
        """Take a turn as a last resort, whether the offer rests or not."""
        return self.start(offer) or self._turn(offer, resting=self.look(offer).resting)

    def report(self, turn: Turn, failure: ProviderFailure | None) -> tuple[float, str | None]:
        """Say how a turn ended; None is a delivery.

        Returns:
            The seconds that it took, and why the offer rests now, if it was this that sent it to rest.
        """
        before, now = self._record(turn.offer), self._clock()
        if failure is None:
            after = delivered(before, turn, now, self._limits)
        else:
            after = failed(before, turn, failure.kind, now, self._limits, failure.retry_after_s)
        self._keep(turn.offer, after)
        return now - turn.started, self.look(turn.offer).resting if after.rests > before.rests else None

    def abandon(self, turn: Turn) -> None:
        """Say that a turn ended without news of the offer."""
        self._keep(turn.offer, abandoned(self._record(turn.offer), turn))

    def _turn(self, offer: Offer, *, resting: str | None = None, probe: bool = False) -> Turn:
        self._turns += 1
        return Turn(self._turns, offer, self._clock(), resting, probe)

    def _record(self, offer: Offer) -> Record:
        return self._records.get((offer.provider, offer.endpoint), Record())

    def _keep(self, offer: Offer, record: Record) -> None:
        self._records[offer.provider, offer.endpoint] = record
