"""The journal: what happened to a request, written as it happens, on both databases."""

import asyncio
import os
import signal
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import Connection

from gateway.db.connect import ConstraintBroken
from gateway.db.engine import Database
from gateway.db.presence import DEAD_AFTER
from gateway.db.scope import across_tenants
from gateway.db.tables import JobState, attempt, job, ticket
from gateway.errors import AllOffersFailed
from gateway.images.journal import Journal, NewAsset, NewJob, OpenJob
from gateway.tenants.service import Tenants
from normalization.offer import Offer, Price, PriceUnit
from normalization.pixels.formats import Format, Size
from normalization.plan import Call, Composite, Decision, Encode, Fit, Mode, Plan
from normalization.pricing import Certainty, Cost
from normalization.request import FitMode, ImageRef
from providers.base import Ticket, Usage
from providers.failures import FailureKind

PROMPT = "a secret hat on my dog"

PLAN = Plan(
    offer=Offer("local", "detail", {}, Price(PriceUnit.LOCAL_SECOND, Decimal(0)), "here", date(2026, 11, 21)),
    calls=(Call("detail", {"text": PROMPT, "image": ImageRef("image", 0), "images": (ImageRef("image", 1, ("png",)),)}, images=2),),
    steps=(
        Composite(ImageRef("image", 0), ImageRef("mask", 0)),
        Fit(Size(64, 32), FitMode.COVER),
        Encode(Format.WEBP, compression=80),
    ),
    decisions=(
        Decision("prompt", Mode.RENAMED, PROMPT, {"text": PROMPT}),
        Decision("control", Mode.PASSTHROUGH, "x" * 10_000, {"control": "x" * 10_000}, known=False),
    ),
)

COST = Cost(Decimal("0.012675"), "13 s x 0.000975 USD/s", Certainty.COMPUTED)

FREE = Cost.nothing("local")


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 21, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def tenant_id(db, clock) -> str:
    return (await Tenants(db, b"pepper", clock).create_key("acme")).tenant_id


@pytest.fixture
async def journal(db, clock, tenant_id):
    journal = Journal(db, clock, "boot-1")
    yield journal
    await journal.leave()


def new_job(tenant_id: str, job_id: str = "req_1", **changes) -> NewJob:
    asked = {"prompt": PROMPT, "image": ["image[0]"], "size": "2048x2048"}
    values = {"route": "images.edits", "model": "detail-upscaler", "mode": "upscale", "request": asked, "controls": {}}
    return NewJob(id=job_id, tenant_id=tenant_id, api_key_id=None, **{**values, **changes})


def a_ticket(clock) -> Ticket:
    return Ticket("local", "detail", "prediction-7", clock())


def an_asset(name: str = "img_1") -> NewAsset:
    return NewAsset(name, f"ten/req/{name}.png", Format.PNG, Size(64, 32), 5_000_000_000, "ab" * 32)


async def finish(journal: Journal, opened: OpenJob, **changes) -> bool:
    receipt = [
        {"param": "prompt", "mode": "renamed", "asked": PROMPT, "sent": {"text": PROMPT}, "delivered": None},
        {"param": "size", "mode": "emulated", "asked": "2048x2048", "sent": {}, "delivered": "2048x2048"},
    ]
    values = {"provider": "local", "endpoint": "detail", "cost": COST, "billed_usd": COST.usd, "normalization": receipt}
    return await journal.finish_job(opened, **{**values, "assets": [an_asset()], **changes})


def rows(table):
    return lambda connection: connection.execute(across_tenants(table, reason="a test looks")).all()


async def test_a_whole_job_is_told_as_it_happened(db, journal, tenant_id, clock):
    """Job, failed attempt, delivering attempt, cost, receipt and picture come back as they were given."""
    opened = await journal.open_job(new_job(tenant_id))
    first = await journal.start_attempt(opened, 0, PLAN)
    await journal.finish_attempt(first, FailureKind.RATE_LIMIT, "429 from upstream", FREE)
    clock.now += timedelta(seconds=13)
    second = await journal.start_attempt(opened, 1, PLAN)
    await journal.record_ticket(second, 0, a_ticket(clock))
    await journal.finish_attempt(second, "ok", None, COST, {0: Usage(seconds=Decimal(13))})
    assert await finish(journal, opened, images_delivered=3)

    told = await journal.get_job(tenant_id, "req_1")

    assert told is not None
    assert (told.state, told.provider, told.cost_usd, told.cost_certainty) == (JobState.COMPLETED, "local", COST.usd, "computed")
    assert (told.finished_at - told.created_at).seconds == 13
    assert [attempt.outcome for attempt in told.attempts] == ["rate_limit", "ok"]
    assert [(asset.id, asset.size, asset.size_bytes) for asset in told.assets] == [("img_1", Size(64, 32), 5_000_000_000)]
    assert told.images_delivered == 3
    assert told.normalization[0]["asked"] == PROMPT
    assert told.normalization[0]["sent"] == {"text": PROMPT}
    (kept,) = await db.read(rows(ticket))
    assert (kept.provider_id, kept.state, kept.usage) == ("prediction-7", "closed", {"seconds": "13", "reported": {}})


async def test_every_entry_is_there_before_the_next_step(db, journal, tenant_id, clock):
    """A job, an attempt and a ticket can be read as soon as their call returns."""
    opened = await journal.open_job(new_job(tenant_id))
    assert (await journal.get_job(tenant_id, "req_1")).state is JobState.RUNNING

    started = await journal.start_attempt(opened, 0, PLAN)
    assert (await journal.get_job(tenant_id, "req_1")).attempts[0].outcome == "running"

    await journal.record_ticket(started, 0, a_ticket(clock))
    assert [row.state for row in await db.read(rows(ticket))] == ["open"]


async def test_prompts_are_kept_with_the_request_only(db, journal, tenant_id):
    """Neither the stored plan nor the stored receipt repeats the prompt."""
    opened = await journal.open_job(new_job(tenant_id))
    await journal.start_attempt(opened, 0, PLAN)
    await finish(journal, opened)

    def raw(connection: Connection) -> str:
        plans = connection.exec_driver_sql("SELECT plan FROM attempt").scalars().all()
        receipts = connection.exec_driver_sql("SELECT normalization FROM job").scalars().all()
        return "".join([*plans, *receipts])

    assert "hat" not in await db.read(raw)


async def test_a_stored_plan_is_readable_and_small(journal, tenant_id):
    """Pictures are handles, steps have names, long values are cut."""
    opened = await journal.open_job(new_job(tenant_id))
    await journal.start_attempt(opened, 0, PLAN)

    plan = (await journal.get_job(tenant_id, "req_1")).attempts[0].plan

    assert plan["calls"][0]["payload"]["image"] == "image[0]"
    assert plan["calls"][0]["payload"]["images"] == ["image[1]+png"]
    assert [step["step"] for step in plan["steps"]] == ["composite", "fit", "encode"]
    assert plan["steps"][1]["size"] == "64x32"
    assert len(str(plan)) < 3_000


async def test_another_tenant_finds_nothing(db, journal, tenant_id, clock):
    """A job is its tenant's alone."""
    other = await Tenants(db, b"pepper", clock).create_key("rival")
    await journal.open_job(new_job(tenant_id))

    assert await journal.get_job(other.tenant_id, "req_1") is None
    assert await journal.get_job(tenant_id, "req_2") is None


async def test_a_queued_job_waits_and_starts(journal, tenant_id, clock):
    """It has no start before its turn."""
    opened = await journal.open_job(new_job(tenant_id, queued=True))
    assert (await journal.get_job(tenant_id, "req_1")).started_at is None

    await journal.start_job(opened)

    told = await journal.get_job(tenant_id, "req_1")
    assert (told.state, told.started_at) == (JobState.RUNNING, clock())


async def test_finishing_twice_changes_nothing(journal, tenant_id):
    """A repeated write after a lost answer is harmless, and an ended job does not fail any more."""
    opened = await journal.open_job(new_job(tenant_id))

    assert await finish(journal, opened)
    assert not await finish(journal, opened, provider="other")
    assert not await journal.fail_job(opened, AllOffersFailed("late"))
    assert (await journal.get_job(tenant_id, "req_1")).provider == "local"


async def test_job_and_pictures_are_recorded_together_or_not_at_all(journal, tenant_id):
    """If a picture's row is refused, the job is not completed either."""
    opened = await journal.open_job(new_job(tenant_id))

    with pytest.raises(ConstraintBroken):
        await finish(journal, opened, assets=[an_asset(), an_asset()])

    told = await journal.get_job(tenant_id, "req_1")
    assert (told.state, told.assets) == (JobState.RUNNING, ())


async def test_the_same_attempt_is_not_recorded_twice(journal, tenant_id):
    """A position of a job is one attempt."""
    opened = await journal.open_job(new_job(tenant_id))
    await journal.start_attempt(opened, 0, PLAN)

    with pytest.raises(ConstraintBroken):
        await journal.start_attempt(opened, 0, PLAN)


@pytest.mark.parametrize(
    ("costs", "expected"),
    [([], Decimal(0)), ([FREE, COST], COST.usd), ([COST, Cost.unknown("timeout: may have charged")], None)],
    ids=["not asked", "known", "unknown"],
)
async def test_a_failed_job_costs_what_its_attempts_cost(journal, tenant_id, costs, expected):
    """Zero, a sum, or unknown with its reason; and nothing is billed."""
    opened = await journal.open_job(new_job(tenant_id))
    for position, cost in enumerate(costs):
        await journal.finish_attempt(await journal.start_attempt(opened, position, PLAN), FailureKind.TRANSIENT, "no", cost)

    await journal.fail_job(opened, AllOffersFailed("nobody delivered", extra={"retry_safe": True, "usd": Decimal("1.5")}))

    told = await journal.get_job(tenant_id, "req_1")
    assert (told.state, told.cost_usd, told.billed_usd) == (JobState.FAILED, expected, Decimal(0))
    assert told.error["message"] == "nobody delivered"
    assert told.error["retry_safe"] is True
    assert expected is not None or "timeout" in told.cost_basis


async def test_a_cancelled_job_says_so(journal, tenant_id):
    """The caller's wish is not a failure."""
    opened = await journal.open_job(new_job(tenant_id))
    await journal.fail_job(opened, AllOffersFailed("cancelled"), cancelled=True)

    assert (await journal.get_job(tenant_id, "req_1")).state is JobState.CANCELLED


async def test_a_gone_client_is_noted_and_the_job_goes_on(journal, tenant_id):
    """Nobody waits, and the work is finished all the same."""
    opened = await journal.open_job(new_job(tenant_id))
    await journal.mark_client_gone(opened)
    await finish(journal, opened)

    told = await journal.get_job(tenant_id, "req_1")
    assert (told.client_gone, told.state) == (True, JobState.COMPLETED)


@pytest.mark.parametrize(("kind", "state"), [(FailureKind.TIMEOUT, "open"), (FailureKind.CONTENT, "closed")])
async def test_a_ticket_stays_open_while_the_provider_may_still_work(db, journal, tenant_id, clock, kind, state):
    """After a timeout it can be asked again; after a refusal there is nothing to ask."""
    started = await journal.start_attempt(await journal.open_job(new_job(tenant_id)), 0, PLAN)
    await journal.record_ticket(started, 0, a_ticket(clock))
    await journal.finish_attempt(started, kind, "no", FREE)

    assert [row.state for row in await db.read(rows(ticket))] == [state]


async def test_costs_finer_than_a_nano_dollar_are_rounded_not_refused(journal, tenant_id):
    """A record is never lost over a fraction."""
    opened = await journal.open_job(new_job(tenant_id))
    fine = Cost(Decimal("0.0000000015"), "a third", Certainty.COMPUTED)
    await finish(journal, opened, cost=fine, billed_usd=fine.usd)

    assert (await journal.get_job(tenant_id, "req_1")).cost_usd == Decimal("2e-9")


async def test_recover_leaves_living_processes_alone(db, journal, tenant_id, clock):
    """Another process that lives keeps its running jobs, and so do we."""
    await journal.open_job(new_job(tenant_id))
    neighbour = Journal(db, clock, "boot-2")
    assert await neighbour.recover() == 0
    assert await journal.recover() == 0

    assert (await journal.get_job(tenant_id, "req_1")).state is JobState.RUNNING
    await neighbour.leave()


async def test_leaving_hands_back_what_is_open(db, journal, tenant_id):
    """A process that ends in order interrupts its own unfinished jobs, and finished ones stay finished."""
    await finish(journal, await journal.open_job(new_job(tenant_id)))
    opened = await journal.open_job(new_job(tenant_id, "req_2"))
    await journal.start_attempt(opened, 0, PLAN)

    assert await journal.leave() == 1

    told = await journal.get_job(tenant_id, "req_2")
    assert (told.state, told.error["code"], told.cost_certainty) == (JobState.INTERRUPTED, "interrupted", "unknown")
    assert [row.outcome for row in await db.read(rows(attempt))] == ["interrupted"]
    assert sorted(row.state for row in await db.read(rows(job))) == ["completed", "interrupted"]


async def test_a_job_taken_for_interrupted_is_completed_when_it_delivers(journal, tenant_id):
    """A finished picture is never thrown away over a lost heartbeat."""
    opened = await journal.open_job(new_job(tenant_id))
    await journal.leave()

    assert await finish(journal, opened)
    told = await journal.get_job(tenant_id, "req_1")
    assert (told.state, told.error) == (JobState.COMPLETED, None)


async def test_silence_on_postgresql_is_death(postgres_url, clock):
    """A process not seen for a minute is dead; one that was seen is not."""
    db = Database(postgres_url)
    tenant_id = (await Tenants(db, b"pepper", clock).create_key("acme")).tenant_id
    silent, seen, survivor = (Journal(db, clock, name) for name in ("silent", "seen", "survivor"))
    await silent.open_job(new_job(tenant_id, "req_silent"))
    await seen.open_job(new_job(tenant_id, "req_seen"))

    clock.now += DEAD_AFTER
    assert await survivor.recover() == 0
    await seen.recover()
    clock.now += timedelta(seconds=1)

    assert await survivor.recover() == 1
    assert (await survivor.get_job(tenant_id, "req_silent")).state is JobState.INTERRUPTED
    assert (await survivor.get_job(tenant_id, "req_seen")).state is JobState.RUNNING
    await db.close()


WORKER = """
import asyncio, sys
from datetime import UTC, datetime
from gateway.db.engine import Database
from gateway.images.journal import Journal, NewJob
from providers.base import Ticket

async def main(url, tenant_id):
    journal = Journal(Database(url), lambda: datetime.now(UTC), "doomed")
    opened = await journal.open_job(NewJob("req_1", tenant_id, None, "images.edits", "m", "edit", {}, {}))
    print("open", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_killed_process_leaves_a_journal_that_says_so(sqlite_url, clock):
    """After SIGKILL the next start finds the job at once and calls it interrupted; while it lives it is left alone."""
    db = Database(sqlite_url)
    tenant_id = (await Tenants(db, b"pepper", clock).create_key("acme")).tenant_id
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, sqlite_url, tenant_id),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"open\n"
    journal = Journal(db, clock, "next")
    assert await journal.recover() == 0

    process.send_signal(signal.SIGKILL)
    await process.communicate()

    assert await journal.recover() == 1
    assert (await journal.get_job(tenant_id, "req_1")).state is JobState.INTERRUPTED
    assert await journal.recover() == 0
    await journal.leave()
    await db.close()
    assert list(Path(sqlite_url.removeprefix("sqlite:///")).parent.glob("*.alive")) == []
