"""Many mixed requests at once, one in five of what providers are asked going wrong.

Everybody is answered, nothing is left over, and the books are right to the last nano-dollar.

`CHAOS=500:50` asks 500 times, 50 at a time; by default it is fewer.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, select

from gateway.db.tables import ACTIVE_STATES, attempt, job, ticket
from tests.gateway.conftest import delivered, until
from tests.gateway.providers.conftest import World, photograph, world_in

REQUESTS, AT_ONCE = map(int, os.environ.get("CHAOS", "60:15").split(":"))

FAL_FAULTS = (
    "rate_limit=1",
    "submit_500",
    "submit_lost",
    "runner_lost",
    "status_500_every_second",
    "cuda_oom",
    "nsfw",
    "corrupt",
    "cut_download_twice",
    "expired_result",
)
REPLICATE_FAULTS = (
    "rate_limit=1",
    "submit_lost",
    "interrupted_pa",
    "status_500_every_second",
    "cuda_oom",
    "nsfw",
    "corrupt",
    "truncated_download",
    "cut_download_twice",
    "result_404",
)
PERCENT = 2
"""Each; there are ten of them at either provider."""


@pytest.fixture
async def world(tmp_path: Path, sqlite_template: Path) -> AsyncIterator[World]:
    """A gateway for many, whose providers misbehave by chance, but by the same chance every time."""
    async with world_in(tmp_path, sqlite_template, limits={"job_deadline_s": 60.0}, pixels={"workers": 2, "queue": 512}) as world:
        for provider, faults in (("fal", FAL_FAULTS), ("replicate", REPLICATE_FAULTS)):
            world.kits[provider].faults.switch([f"{fault}@{PERCENT}%" for fault in faults])
        yield world


@pytest.mark.timeout(600)
async def test_faulty_providers_cost_nobody_an_answer_and_no_cent_is_lost(world: World):
    """Every request ends as a picture or as one clear error; no file, task or running job is left; ledger and bills are equal."""
    before = len(asyncio.all_tasks())

    responses = await _asked_all(world)

    for response in responses:
        if response.status_code == 200:
            assert await delivered(world.live, response)
        else:
            assert response.status_code in {400, 502}, response.text
            assert response.json()["error"]["attempts"]
    assert world.live.spooled == []
    await until(lambda: len(asyncio.all_tasks()) <= before + 4)  # the connections that are kept open
    books = await world.live.parts.db.read(_Books)
    assert books.running == 0
    assert len(books.jobs) == REQUESTS
    assert all(row.cost_basis == "unknown: the provider may have charged" for row in books.unknown.values())
    lost = _lost(world, books)
    assert len(books.unknown) <= len(lost), "what the journal cannot price is a submit without an answer, and nothing else"
    assert all(charge in lost for charge in _unticketed(world, books))
    assert books.known == _billed(world, books)
    assert not any(entry["event"] in {"attempt.crashed", "job.crashed"} for entry in world.live.logged)
    print(_summary(world, responses, books))  # noqa: T201 - the figures, for whoever runs it by hand with -s


async def _asked_all(world: World) -> list[httpx.Response]:
    room, chance = asyncio.Semaphore(AT_ONCE), random.Random(1)

    async def ask(what: dict[str, Any], order: tuple[str, str]) -> httpx.Response:
        async with room:
            return await world.upscale(*order, **what)

    asked = [
        ask(_request(number, chance), chance.choice((("fal", "replicate"), ("replicate", "fal")))) for number in range(REQUESTS)
    ]
    return await asyncio.gather(*asked)


def _request(number: int, chance: random.Random) -> dict[str, Any]:
    """One of a mixed lot; every picture differs."""
    model = chance.choice(("clarity-upscaler", "clarity-upscaler", "real-esrgan", "crystal-upscaler", "topaz-upscale"))
    asked: dict[str, Any] = {"model": model, "picture": photograph(20 + number % 60, 16 + number // 60)}
    asked |= chance.choice(({}, {"scale_factor": 2}, {"scale_factor": 4}, {"size": "64x48"}))
    asked |= chance.choice(({}, {}, {"n": 2}, {"n": 3}))
    return asked | chance.choice(({}, {"output_format": "webp"}, {"output_format": "jpeg"}, {"response_format": "b64_json"}))


class _Books:
    """What the journal says at the end."""

    def __init__(self, connection: Connection) -> None:
        self.jobs = connection.execute(select(job.c.id, job.c.state, job.c.cost_usd)).all()
        columns = (attempt.c.id, attempt.c.provider, attempt.c.outcome, attempt.c.cost_usd, attempt.c.cost_basis)
        self.attempts = connection.execute(select(*columns)).all()
        tickets = connection.execute(select(ticket.c.provider_id, ticket.c.attempt_id)).all()
        self.attempt_of = {row.provider_id.rpartition("/")[2]: row.attempt_id for row in tickets}
        self.running = sum(row.state in ACTIVE_STATES for row in self.jobs)
        self.unknown = {row.id: row for row in self.attempts if row.cost_usd is None}
        self.known = sum((row.cost_usd for row in self.attempts if row.cost_usd is not None), Decimal(0))


def _lost(world: World, books: _Books) -> set[str]:
    """The work whose submit was not answered, and that was not found afterwards: listed by the stand-ins, named by no ticket."""
    made = [*world.fal._jobs.listing(), *world.replicate.predictions.listing()]
    return {work["id"] for work in made if not work["answered"] and work["id"] not in books.attempt_of}


def _unticketed(world: World, books: _Books) -> set[str]:
    """What is billed and no ticket names."""
    return {charge.id for kit in world.kits.values() for charge in kit.bill.charges if charge.id not in books.attempt_of}


def _billed(world: World, books: _Books) -> Decimal:
    """All that providers bill for attempts whose cost the journal knows."""
    every = [charge for kit in world.kits.values() for charge in kit.bill.charges]
    known = [charge for charge in every if charge.id in books.attempt_of and books.attempt_of[charge.id] not in books.unknown]
    return sum((charge.usd or Decimal(0) for charge in known), Decimal(0))


def _summary(world: World, responses: list[httpx.Response], books: _Books) -> str:
    """For whoever runs it by hand."""
    statuses = Counter(response.status_code for response in responses)
    outcomes = Counter(f"{row.provider}: {row.outcome}" for row in books.attempts)
    struck = {name: kit.faults.as_json()["active"] for name, kit in world.kits.items()}
    return f"{statuses}\n{outcomes}\nledger {books.known}, bills {world.bill()}, unknown {len(books.unknown)}\n{struck}"
