"""When an offer rests, how long, and who finds out that it is well again. The clock is the test's."""

from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.images.health import BreakerState, Health, Thresholds, Turn
from gateway.settings import Routing
from normalization.offer import Offer, Price, PriceUnit
from providers.failures import FailureKind, ProviderFailure

OFFER = Offer("fal", "fal-ai/a", {}, Price(PriceUnit.IMAGE, Decimal("0.01")), "https://example.org", date(2026, 1, 1))
OTHER = replace(OFFER, endpoint="fal-ai/b")
LIMITS = Thresholds(failures=3, rest_s=10, longest_rest_s=100, window_s=60, healthy_rate=0.8)
BRIEF = [FailureKind.TRANSIENT, FailureKind.TIMEOUT, FailureKind.UNKNOWN]
LASTING = [FailureKind.CREDENTIAL, FailureKind.QUOTA, FailureKind.MODEL_GONE]
SAYING_NOTHING = [FailureKind.CONTENT, FailureKind.CALLER_FAULT, FailureKind.CANCELLED]


@dataclass
class Ward:
    """An offer under observation."""

    now: float = 1000.0
    health: Health = field(init=False)

    def __post_init__(self) -> None:
        self.health = Health(LIMITS, lambda: self.now)

    def turn(self) -> Turn:
        turn = self.health.start(OFFER)
        assert turn is not None
        return turn

    def fails(self, kind: FailureKind = FailureKind.TRANSIENT, times: int = 1, retry_after_s: float | None = None) -> str | None:
        """Attempts that fail at once, as a last resort if need be."""
        resting = None
        for _ in range(times):
            failure = ProviderFailure(kind, "no", retry_after_s=retry_after_s)
            resting = self.health.report(self.health.start_anyway(OFFER), failure)[1]
        return resting

    def delivers(self, seconds: float = 1.0, times: int = 1) -> None:
        for _ in range(times):
            turn = self.health.start_anyway(OFFER)
            self.now += seconds
            self.health.report(turn, None)

    @property
    def state(self) -> BreakerState:
        return self.health.look(OFFER).state

    def rests_for(self) -> float:
        """Seconds until it may be tried, to the second."""
        began = self.now
        while self.state is BreakerState.OPEN:
            self.now += 1
        rest, self.now = self.now - began, began
        return rest


@pytest.fixture
def ward() -> Ward:
    return Ward()


def test_settings_have_the_same_defaults():
    """What the settings say by default is what the thresholds are by default."""
    assert Thresholds.of(Routing()) == Thresholds()


def test_unknown_offer_is_well(ward: Ward):
    """Nothing is held against an offer that nobody has tried."""
    condition = ward.health.look(OFFER)

    assert (condition.state, condition.resting, condition.shaky) == (BreakerState.CLOSED, None, False)
    assert (condition.success_rate, condition.latency_s) == (None, None)


@pytest.mark.parametrize("kind", BRIEF)
def test_failures_in_a_row_open_the_breaker(ward: Ward, kind: FailureKind):
    """One fewer does not; the failure that does it says so, once."""
    assert ward.fails(kind, 2) is None
    assert ward.state is BreakerState.CLOSED

    assert ward.fails(kind) == f"fal rests for 10 s more after {kind}"
    assert ward.health.start(OFFER) is None
    assert ward.fails(kind) is None


def test_delivery_between_failures_starts_the_count_again(ward: Ward):
    """Only failures in a row count."""
    ward.fails(times=2)
    ward.delivers()
    ward.fails(times=2)

    assert ward.state is BreakerState.CLOSED


@pytest.mark.parametrize("kind", LASTING)
def test_what_only_the_operator_can_mend_rests_longest_at_once(ward: Ward, kind: FailureKind):
    """A wrong key is not tried again and again."""
    ward.fails(kind)

    assert ward.rests_for() == LIMITS.longest_rest_s
    assert ward.health.look(OFFER).lasting


@pytest.mark.parametrize("kind", SAYING_NOTHING)
def test_refusals_and_cancellations_say_nothing_of_an_offer(ward: Ward, kind: FailureKind):
    """However many there are."""
    ward.fails(kind, 50)

    condition = ward.health.look(OFFER)
    assert (condition.state, condition.shaky, condition.success_rate) == (BreakerState.CLOSED, False, None)


@pytest.mark.parametrize(
    ("said", "rest"), [(30.0, 30), (0.5, 1), (1e9, 100), (float("inf"), 100), (0.0, 10), (-1.0, 10), (None, 10)]
)
def test_rate_limit_rests_as_long_as_the_provider_says(ward: Ward, said: float | None, rest: float):
    """At once, up to the longest rest; without a usable word, as after other failures."""
    ward.fails(FailureKind.RATE_LIMIT, retry_after_s=said)

    assert ward.rests_for() == rest


def test_named_time_is_never_shortened_and_may_be_extended(ward: Ward):
    """Of several answers the latest time counts, and it is one rest."""
    ward.fails(FailureKind.RATE_LIMIT, retry_after_s=30)
    ward.fails(FailureKind.RATE_LIMIT, retry_after_s=5)
    assert ward.rests_for() == 30
    ward.fails(FailureKind.RATE_LIMIT, times=20, retry_after_s=40)
    assert ward.rests_for() == 40

    ward.now += 40
    ward.fails(FailureKind.TRANSIENT)

    assert ward.rests_for() == 20


def test_after_the_rest_one_request_is_the_probe(ward: Ward):
    """While it runs, others leave the offer alone."""
    ward.fails(times=3)
    ward.now += 10
    assert (ward.state, ward.health.look(OFFER).resting) == (BreakerState.HALF_OPEN, None)

    probe = ward.turn()

    assert probe.probe
    assert ward.health.start(OFFER) is None
    assert "another request finds out" in (ward.health.look(OFFER).resting or "")


def test_probe_that_delivers_closes_the_breaker(ward: Ward):
    """Then all is as before, the length of rests included."""
    ward.fails(times=3)
    ward.now += 10
    ward.health.report(ward.turn(), None)

    assert ward.state is BreakerState.CLOSED
    ward.fails(times=3)
    assert ward.rests_for() == 10


def test_each_probe_that_fails_doubles_the_rest(ward: Ward):
    """Up to the longest."""
    ward.fails(times=3)
    rests: list[float] = []
    for _ in range(6):
        rests.append(ward.rests_for())
        ward.now += rests[-1]
        ward.health.report(ward.turn(), ProviderFailure(FailureKind.TRANSIENT, "no"))

    assert rests == [10, 20, 40, 80, 100, 100]


@pytest.mark.parametrize("kind", [FailureKind.CONTENT, FailureKind.CALLER_FAULT])
def test_probe_that_is_refused_closes_the_breaker(ward: Ward, kind: FailureKind):
    """Who refuses is there."""
    ward.fails(times=3)
    ward.now += 10
    ward.health.report(ward.turn(), ProviderFailure(kind, "no"))

    assert ward.state is BreakerState.CLOSED


@pytest.mark.parametrize("cancelled", [True, False])
def test_probe_without_news_leaves_its_place_to_the_next(ward: Ward, cancelled: bool):
    """Cancelled, or ended by a fault of ours."""
    ward.fails(times=3)
    ward.now += 10
    turn = ward.turn()
    if cancelled:
        ward.health.report(turn, ProviderFailure(FailureKind.CANCELLED, "stopped"))
    else:
        ward.health.abandon(turn)

    assert ward.turn().probe


def test_others_that_end_do_not_end_the_probe(ward: Ward):
    """An attempt from before is not taken for the probe."""
    before = ward.turn()
    ward.fails(times=3)
    ward.now += 10
    ward.turn()

    ward.health.abandon(before)

    assert ward.health.start(OFFER) is None


def test_news_from_before_the_rest_changes_nothing(ward: Ward):
    """An attempt that began before the breaker opened neither closes it nor makes the rest longer."""
    early = [ward.turn() for _ in range(10)]
    ward.now += 1
    ward.fails(times=3)
    ward.now += 5

    for turn in early[:5]:
        ward.health.report(turn, None)
    for turn in early[5:]:
        ward.health.report(turn, ProviderFailure(FailureKind.TRANSIENT, "no"))

    assert ward.rests_for() == 5


def test_last_resort_that_delivers_ends_the_rest(ward: Ward):
    """It is tried although it rests, says so, and is well."""
    ward.fails(FailureKind.QUOTA)
    turn = ward.health.start_anyway(OFFER)
    assert turn.resting == "fal rests for 100 s more after quota"

    ward.health.report(turn, None)

    assert ward.state is BreakerState.CLOSED


def test_success_rate_is_that_of_the_window(ward: Ward):
    """Few attempts say nothing, too many failures make an offer shaky, and old ones are forgotten."""
    ward.delivers(times=2)
    ward.fails(times=2)
    assert ward.health.look(OFFER).success_rate is None

    ward.delivers()
    assert (ward.health.look(OFFER).success_rate, ward.health.look(OFFER).shaky) == (0.6, True)

    ward.now += LIMITS.window_s
    ward.delivers(times=5)
    assert (ward.health.look(OFFER).success_rate, ward.health.look(OFFER).shaky) == (1.0, False)


def test_latency_is_the_median_of_the_last_deliveries(ward: Ward):
    """One slow delivery does not make an offer slow, and failures do not make it fast."""
    for seconds in (2.0, 2.0, 300.0):
        ward.delivers(seconds)
    ward.fails()
    assert ward.health.look(OFFER).latency_s == 2.0

    ward.delivers(7.0, times=20)
    assert ward.health.look(OFFER).latency_s == 7.0


def test_offers_do_not_answer_for_each_other(ward: Ward):
    """Another endpoint of the same provider stays in use."""
    ward.fails(FailureKind.CREDENTIAL)

    assert ward.health.look(OTHER).resting is None


EVENTS = st.lists(
    st.tuples(st.sampled_from([None, *FailureKind]), st.floats(0, 50), st.sampled_from([None, 5.0, 1e6]), st.booleans()),
    max_size=40,
)


@given(EVENTS)
def test_nothing_rests_forever_and_one_probe_runs_at_a_time(events: list[tuple[FailureKind | None, float, float | None, bool]]):
    """Whatever happens: within the longest rest an offer may be tried, by one request at a time until one delivers."""
    ward = Ward()
    for kind, seconds, retry_after_s, keep in events:
        turn = ward.health.start_anyway(OFFER)
        ward.now += seconds
        if keep:
            ward.health.abandon(turn)
        else:
            ward.health.report(turn, None if kind is None else ProviderFailure(kind, "no", retry_after_s=retry_after_s))

    ward.now += LIMITS.longest_rest_s
    first = ward.turn()
    second = ward.health.start(OFFER)

    assert (second is None) == first.probe
    ward.health.report(first, None)
    assert ward.state is BreakerState.CLOSED
