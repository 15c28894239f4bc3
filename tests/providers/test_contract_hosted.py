"""The adapters for fal and Replicate keep the contract, against the stand-ins."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from normalization.plan import Call
from providers import http
from providers.base import Done, ImageParts, Provider, RemoteImage, Running, Ticket
from providers.catalog import load_catalog
from providers.fal import FalProvider, FalSettings
from providers.replicate import ReplicateProvider, ReplicateSettings
from providers.simulators.fal import FalSimulator, urls_of
from providers.simulators.kit import Kit
from providers.simulators.replicate import ReplicateSimulator
from providers.simulators.serving import serving
from providers.spool import Spool
from providers.transfer import download
from tests.providers.contract import IMAGE, ProviderContract, Subject, call

FAL_MODEL = "fal-ai/clarity-upscaler"
REPLICATE_MODEL = "dfad41707589d68ecdccd1dfa600d55a208f9310748e44bfe35b4a6291453d5e"
SPEED = 1000


class Fetching:
    """A hosted provider whose results are fetched, as the gateway does it: the contract looks at files."""

    def __init__(self, provider: Provider, client: http.AsyncClient, spool: Spool) -> None:
        self.name = provider.name
        self._provider = provider
        self._client = client
        self._spool = spool

    def refusal(self, endpoint: str) -> str | None:
        return self._provider.refusal(endpoint)

    async def submit(self, call: Call, images: ImageParts, *, alone: bool = False) -> Ticket:
        return await self._provider.submit(call, images, alone=alone)

    async def poll(self, ticket: Ticket) -> Running | Done:
        news = await self._provider.poll(ticket)
        return news if isinstance(news, Running) else replace(news, outputs=tuple([await self._had(one) for one in news.outputs]))

    async def cancel(self, ticket: Ticket) -> None:
        await self._provider.cancel(ticket)

    async def _had(self, output: RemoteImage) -> RemoteImage:
        assert output.url is not None
        path = self._spool.path()
        await download(self._client, output.url, path, max_bytes=2**20, deadline_s=10)
        return RemoteImage(path=path)


def _subject(kit: Kit, make: Callable[[], Provider], client: http.AsyncClient, spool: Spool, good: Call) -> Subject:
    """Fails and hangs by the stand-in's faults, which are decided when work is taken, once each."""

    async def begun() -> None:
        """It is under way when it is submitted."""

    return Subject(
        Fetching(make(), client, spool),
        spool,
        good=good,
        failing=good,
        hanging=good,
        begun=begun,
        restarted=Fetching(make(), client, spool),
        remembers=True,
        prepare_failing=lambda: kit.faults.switch(["cuda_oom@1"]),
        prepare_hanging=lambda: kit.faults.switch(["stalled_queue@1"]),
    )


class TestFal(ProviderContract):
    """fal against the suite."""

    @pytest.fixture
    async def subject(self, client: http.AsyncClient, spool: Spool) -> AsyncIterator[Subject]:
        """A stand-in with one runner: a cancelled call must give its place back."""
        simulator = FalSimulator(load_catalog(), speed=SPEED, concurrency=1)
        async with serving(simulator) as origin:
            urls = {f"{name}_url": url for name, url in urls_of(origin).items() if name != "origin"}
            settings = FalSettings(key="id:secret", store_io=False, object_lifetime_s=3600, **urls)
            good = Call(FAL_MODEL, {"image_url": IMAGE, "upscale_factor": 2})
            yield _subject(simulator.kit, lambda: FalProvider(settings, client=client, spool=spool), client, spool, good)


class TestReplicate(ProviderContract):
    """Replicate against the suite."""

    @pytest.fixture
    async def subject(self, client: http.AsyncClient, spool: Spool) -> AsyncIterator[Subject]:
        """A stand-in, and a provider that does not wait for the answer to a create."""
        simulator = ReplicateSimulator(load_catalog(), speed=SPEED)
        async with serving(simulator) as origin:
            settings = ReplicateSettings(token="t", base_url=f"{origin}/v1", wait_s=0)
            good = call(REPLICATE_MODEL, scale_factor=2)
            yield _subject(simulator.kit, lambda: ReplicateProvider(settings, client=client, spool=spool), client, spool, good)
