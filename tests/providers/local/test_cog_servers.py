"""The contract against real servers: Cog as it is published, and the bundled backend. They are not told apart by the client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from io import BytesIO

import pytest
from PIL import Image

from normalization.plan import Call
from providers import http
from providers.base import Done, Provider, Running
from providers.drive import drive
from providers.failures import FailureKind, ProviderFailure
from providers.local.cog import BackendHealth, BackendState, CogProvider, LocalBackend
from providers.spool import Spool
from tests.providers.contract import IMAGE, ProviderContract, Subject, call, ignore, image_part

_MODEL = "detail-upscaler"


def _noise(width: int, height: int) -> bytes:
    buffer = BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


async def _busy(client: http.AsyncClient, url: str) -> None:
    await _says(client, url, "BUSY")


async def _says(client: http.AsyncClient, url: str, status: str) -> None:
    """Wait until the server's health is this."""
    while True:
        with suppress(http.TimeoutException):
            if (await client.get(f"{url}/health-check")).json()["status"] == status:
                return
        await asyncio.sleep(0.01)


async def _close_when_idle(provider: CogProvider, client: http.AsyncClient, url: str) -> None:
    """The next test finds the server as this one did."""
    await provider.close()
    async with asyncio.timeout(30):
        await _says(client, url, "READY")


def _provider(url: str, client: http.AsyncClient, spool: Spool) -> CogProvider:
    return CogProvider([LocalBackend("machine", url, (_MODEL,))], client=client, spool=spool)


class TestCog(ProviderContract):
    """Cog of today."""

    @pytest.fixture
    async def subject(self, cog_url: str, client: http.AsyncClient, spool: Spool) -> AsyncIterator[Subject]:
        provider = _provider(cog_url, client, spool)
        yield Subject(
            provider,
            spool,
            good=call(_MODEL, scale_factor=2.0),
            failing=call(_MODEL, fail="CUDA out of memory. Tried to allocate 2 GiB"),
            hanging=call(_MODEL, seconds=600),
            begun=lambda: _busy(client, cog_url),
            restarted=_provider(cog_url, client, spool),
        )
        await _close_when_idle(provider, client, cog_url)

    async def test_several_pictures_come_in_their_order(self, subject: Subject, spool: Spool) -> None:
        """A list of outputs is a list of files."""
        done = await _drive(subject.provider, call(_MODEL, copies=3), spool)
        assert len({output.path for output in done.outputs}) == 3

    async def test_a_broken_picture_is_the_callers_fault(self, subject: Subject, spool: Spool) -> None:
        """What the model cannot open is not tried elsewhere."""
        with pytest.raises(ProviderFailure, match="cannot identify") as failed:
            await _drive(subject.provider, call(_MODEL), spool, b"not a picture")
        assert (failed.value.kind, failed.value.param) == (FailureKind.CALLER_FAULT, "image")

    async def test_somebody_elses_prediction_is_waited_for(
        self, subject: Subject, cog_url: str, client: http.AsyncClient, spool: Spool
    ) -> None:
        """ "At capacity" means that nothing was taken: asked again, until there is room."""
        stranger = await subject.provider.submit(subject.hanging, {IMAGE: image_part(spool)})
        await subject.begun()
        slept = list[float]()

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            await subject.provider.cancel(stranger)
            await _says(client, cog_url, "READY")

        backend = LocalBackend("machine", cog_url, (_MODEL,))
        ours = CogProvider([backend], client=client, spool=spool, sleep=sleep)
        assert (await _drive(ours, subject.good, spool)).outputs
        assert slept == [0.25]

    async def test_its_health_is_told(self, subject: Subject, spool: Spool) -> None:
        """READY, then BUSY."""
        assert isinstance(subject.provider, CogProvider)
        assert await subject.provider.health() == (BackendHealth("machine", BackendState.READY),)
        await subject.provider.submit(subject.hanging, {IMAGE: image_part(spool)})
        await subject.begun()
        assert await subject.provider.health() == (BackendHealth("machine", BackendState.BUSY),)


class TestBundledBackend(ProviderContract):
    """The bundled backend."""

    @pytest.fixture
    async def subject(self, bundled_url: str, client: http.AsyncClient, spool: Spool) -> AsyncIterator[Subject]:
        provider = _provider(bundled_url, client, spool)
        yield Subject(
            provider,
            spool,
            good=call(_MODEL, scale_factor=2),
            failing=call(_MODEL, scale_factor=2),
            hanging=call(_MODEL, scale_factor=4),
            begun=lambda: _busy(client, bundled_url),
            restarted=_provider(bundled_url, client, spool),
            remembers=True,
            failing_kind=FailureKind.CALLER_FAULT,
            failing_picture=b"not a picture",
            hanging_picture=_noise(1500, 1500),
        )
        await _close_when_idle(provider, client, bundled_url)

    async def test_progress_is_told(self, subject: Subject, spool: Spool) -> None:
        """The bundled backend can be asked how far it is."""
        ticket = await subject.provider.submit(subject.hanging, {IMAGE: image_part(spool, subject.hanging_picture)})
        await subject.begun()
        news = await subject.provider.poll(ticket)
        assert isinstance(news, Running)
        assert news.progress is not None
        assert 0 <= news.progress <= 1
        assert subject.restarted is not None
        assert isinstance(await subject.restarted.poll(ticket), Running)

    async def test_a_refused_input_names_the_parameter(self, subject: Subject, spool: Spool) -> None:
        """What is out of bounds is the caller's fault, and the message says which."""
        with pytest.raises(ProviderFailure, match="scale_factor") as failed:
            await _drive(subject.provider, call(_MODEL, scale_factor=99), spool)
        assert (failed.value.kind, failed.value.param) == (FailureKind.CALLER_FAULT, "scale_factor")


async def _drive(provider: Provider, what: Call, spool: Spool, picture: bytes | None = None) -> Done:
    return await drive(provider, what, {IMAGE: image_part(spool, picture)}, deadline_s=60, on_ticket=ignore)
