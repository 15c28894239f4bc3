"""Webhooks of providers: verified, and then a reason to poll at once."""

from pathlib import Path
from typing import Any

import pytest

from normalization.plan import Call
from normalization.request import ImageRef
from providers import http
from providers.base import ImagePart
from providers.catalog import load_catalog
from providers.drive import drive
from providers.fal import FalProvider, FalSettings
from providers.replicate import ReplicateProvider, ReplicateSettings
from providers.simulators.fal import FalSimulator
from providers.simulators.replicate import ReplicateSimulator
from providers.simulators.serving import serving
from tests.gateway.conftest import Live, Open, error_of, picture

VERSION = "dfad41707589d68ecdccd1dfa600d55a208f9310748e44bfe35b4a6291453d5e"


async def _no_ticket_needed(_: Any) -> None:
    return None


@pytest.mark.parametrize("name", ["fal", "replicate"])
async def test_signed_webhook_ends_the_wait_for_the_next_poll(open_live: Open, sqlite_url: str, tmp_path: Path, name: str):
    """With slow polling the result is there as soon as the provider says so, not at the next poll."""
    image = tmp_path / "in.png"
    image.write_bytes(picture(40, 30))
    parts = {ImageRef("image"): ImagePart(image, "image/png", image.stat().st_size)}
    simulator = FalSimulator(load_catalog(), speed=4) if name == "fal" else ReplicateSimulator(load_catalog(), speed=4)
    async with serving(simulator) as origin, http.create_client(guard=None) as client:
        sections = {"rest_url": f"{origin}/rest"} if name == "fal" else {"base_url": f"{origin}/v1"}
        tokens = {"fal_key": "a:b", "replicate_api_token": "r8_x"}
        live = await open_live(sqlite_url, **{name: sections}, **tokens)
        hook = f"{live.url}/webhooks/{name}"
        urls = {part: f"{origin}/{part}" for part in ("queue", "run", "rest", "cdn")}
        if name == "fal":
            own = FalSettings("a:b", *(urls[part] for part in ("queue", "run", "rest", "cdn")), f"{origin}/api/v1", False, 3600)
            provider: Any = FalProvider(own, client=client, webhook_url=hook)
            call = Call("fal-ai/clarity-upscaler", {"image_url": ImageRef("image")})
        else:
            settings = ReplicateSettings("r8_x", f"{origin}/v1", wait_s=0, webhook_url=hook)
            provider = ReplicateProvider(settings, client=client, spool=live.parts.services.spool)
            call = Call(VERSION, {"image": ImageRef("image")})
        nudges = live.parts.services.nudges
        done = await drive(provider, call, parts, deadline_s=30, on_ticket=_no_ticket_needed, nudges=nudges, chance=lambda: 0.5)

        assert len(done.outputs) == 1
        assert nudges._watched == {}
        taken = {"route": "/webhooks/{provider}", "method": "POST", "status": "200"}
        assert live.parts.services.metrics.registry.get_sample_value("gateway_requests_total", taken)
        if name == "replicate":
            await provider.close()


@pytest.mark.parametrize("name", ["fal", "replicate"])
async def test_unsigned_webhook_is_refused(live: Live, name: str):
    """Anybody may post there, and nothing comes of it."""
    response = await live.client.post(
        f"{live.url}/webhooks/{name}", json={"request_id": "x", "id": "x"}, headers={"authorization": ""}
    )

    error_of(response, 401)


async def test_webhook_of_nobody_is_not_found(live: Live):
    """There is one for each provider that has webhooks."""
    error_of(await live.client.post(f"{live.url}/webhooks/acme", json={}), 404)
