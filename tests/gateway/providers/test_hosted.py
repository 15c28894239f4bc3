"""One request, served by fal or by Replicate: the same picture, each one's price, and a receipt that says why it was who."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.gateway.conftest import delivered, error_of, in_one_loop
from tests.gateway.providers.conftest import FAL_KEY, MODEL, REPLICATE_TOKEN, World, fal_urls, photograph, told, world_in

CLOSED = "http://127.0.0.1:9"
"""Nobody listens there."""
NOWHERE = "http://nowhere.invalid"
"""A name that no server of names knows. Source: RFC 2606."""


@in_one_loop
@pytest.mark.parametrize("provider", ["fal", "replicate"])
async def test_either_provider_serves_the_same_request(world: World, provider: str):
    """Pinned to one of them, the same request gives a picture of the asked size and format, and names whom it came from."""
    response = await world.upscale(model=f"{provider}/{MODEL}", size="48x32", creativity=0.4, seed=7, output_format="webp")

    (image,) = await delivered(world.live, response)
    assert (image.size, image.format) == ((48, 32), "WEBP")
    assert response.json()["metadata"]["provider"] == provider
    assert [world.submits(name) for name in ("fal", "replicate")] == [provider == "fal", provider == "replicate"]


@in_one_loop
@pytest.mark.parametrize(("provider", "usd"), [("fal", "0.12582912"), ("replicate", "0.012675")])
async def test_each_costs_what_it_charges(world: World, provider: str, usd: str):
    """1024 x 1024 doubled: fal's megapixels, or Replicate's seconds, times their price; answer, journal and bill agree."""
    response = await world.upscale(model=f"{provider}/{MODEL}", picture=photograph(1024, 1024), scale_factor=2)

    (image,) = await delivered(world.live, response)
    assert image.size == (2048, 2048)
    assert response.json()["metadata"]["cost"]["usd"] == response.headers["x-gateway-cost-usd"] == usd
    assert (await world.job(response)).cost_usd == world.bill() == Decimal(usd)


@in_one_loop
async def test_equal_calls_at_replicate_get_seeds_of_their_own(world: World):
    """Its default seed is fixed, so three pictures are three calls with three seeds."""
    response = await world.upscale(model=f"replicate/{MODEL}", n=3, seed=5)

    assert len(await delivered(world.live, response)) == 3
    assert sorted(job["input"]["seed"] for job in world.replicate.predictions.listing()[-3:]) == [5, 6, 7]
    assert (await world.job(response)).cost_usd == world.bill() == 3 * Decimal("0.012675")


@in_one_loop
async def test_equal_calls_at_replicate_differ_though_no_seed_is_asked_for(world: World):
    """The gateway makes up seeds that differ."""
    await world.upscale(model=f"replicate/{MODEL}", n=3)

    assert len({job["input"].get("seed") for job in world.replicate.predictions.listing()[-3:]}) == 3


@in_one_loop
async def test_who_can_only_imitate_a_factor_is_not_tried(world: World):
    """fal, the cheaper one, enlarges up to 4 times: for 8 times it is not asked, and the receipt says why."""
    twice = await world.upscale(scale_factor=2)
    response = await world.upscale(scale_factor=8)

    (image,) = await delivered(world.live, response)
    offers = {offer["provider"]: offer for offer in response.json()["metadata"]["offers"]}
    assert image.size == (192, 128)
    assert (told(twice), told(response)) == (["fal: ok"], ["replicate: ok"])
    assert world.submits("fal") == 1
    assert offers["fal"]["verdict"] == "skipped"
    assert offers["fal"]["reasons"] == ["not needed", "balanced: steady, 0 unsupported, 1 emulated, 0.00018432 USD"]
    assert offers["replicate"]["reasons"] == ["balanced: steady, 0 unsupported, 0 emulated, 0.012675 USD"]


@pytest.fixture(params=[CLOSED, NOWHERE], ids=["refused", "no such host"])
async def without_fal(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> AsyncIterator[World]:
    """A gateway whose fal cannot be reached."""
    async with world_in(tmp_path, sqlite_template, fal=fal_urls(request.param)) as world:
        yield world


async def test_with_fal_down_it_comes_from_replicate_in_the_same_call(without_fal: World):
    """The caller gets the picture, and learns that fal was tried."""
    response = await without_fal.upscale("fal", "replicate", size="48x32")

    (image,) = await delivered(without_fal.live, response)
    assert image.size == (48, 32)
    assert told(response) == ["fal: transient", "replicate: ok"]
    assert (await without_fal.job(response)).cost_usd == without_fal.bill()


async def test_with_all_down_each_attempt_is_a_line(tmp_path: Path, sqlite_template: Path):
    """502 with who was tried and how it ended, nothing billed, safe to repeat; no key anywhere."""
    async with world_in(tmp_path, sqlite_template, fal=fal_urls(CLOSED), replicate={"base_url": f"{NOWHERE}/v1"}) as world:
        response = await world.upscale("fal", "replicate")

        error = error_of(response, 502)
        assert told(response) == ["fal: transient", "replicate: transient"]
        assert (error["billed_usd"], error["retry_safe"]) == ("0", True)
        assert (await world.job(response)).cost_usd == 0
        written = f"{response.text} {response.headers} {world.live.logged} {await world.job(response)}"
        assert not any(secret in written for secret in (FAL_KEY, "fal-secret", REPLICATE_TOKEN))


async def test_callers_are_spared_a_provider_that_went_away(without_fal: World):
    """After a few refusals fal rests, and is not tried by the others."""
    responses = [await without_fal.upscale("fal", "replicate") for _ in range(6)]
    responses += await asyncio.gather(*(without_fal.upscale("fal", "replicate") for _ in range(20)))

    assert {response.status_code for response in responses} == {200}
    assert told(responses[0]) == ["fal: transient", "replicate: ok"]
    assert all(told(response) == ["replicate: ok"] for response in responses[6:])
