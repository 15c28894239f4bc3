"""The gateway as a process: killed, told to stop, its backend killed, its port taken. Nothing is lost and nothing is left."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from gateway.db.engine import Database
from gateway.db.tables import JobState, attempt, job
from gateway.tenants.service import Tenants
from gateway.times import now
from tests.e2e.live import open_shell
from tests.gateway.backend import StandIn
from tests.gateway.conftest import MODEL, error_of, picture, until

SECRET = "a secret of the tests"


@dataclass(eq=False)
class Running:
    """A gateway in a process of its own."""

    process: asyncio.subprocess.Process
    events: list[dict[str, Any]] = field(default_factory=list)
    """Its log so far; lines that are not JSON as `{"text": …}`."""

    def told(self, event: str) -> list[dict[str, Any]]:
        """The events of one name."""
        return [one for one in self.events if one.get("event") == event]

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.told("gateway.started")[0]["address"]

    @property
    def backend_pid(self) -> int:
        """The bundled backend's process, the newest."""
        return self.told("backend.started")[-1]["pid"]

    async def listen(self) -> None:
        """Keep what it logs."""
        assert self.process.stderr
        async for line in self.process.stderr:
            try:
                self.events.append(json.loads(line))
            except ValueError:
                self.events.append({"text": line.decode(errors="replace")})


@dataclass(eq=False)
class House:
    """A folder where gateways run one after the other, with one database."""

    folder: Path
    database_url: str
    key: str
    start: Callable[..., Awaitable[Running]]

    @property
    def spools(self) -> list[str]:
        """The spool folders of all processes, and what is in them."""
        return sorted(str(path.relative_to(self.folder)) for path in (self.folder / "tmp").glob("image-gateway-*/*"))

    @property
    def processes(self) -> list[int]:
        """Whatever runs in the folder: gateways, backends, workers. What has ended and waits for its parent does not run."""
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _place(path) == str(self.folder)]

    def client(self, gateway: Running) -> httpx.AsyncClient:
        """With the key."""
        return httpx.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {self.key}"}, timeout=60, trust_env=False)

    async def journal(self) -> list[tuple[Any, ...]]:
        """State of each job with the outcome of each of its attempts."""
        async with _database(self.database_url) as db:
            rows = select(job.c.state, attempt.c.outcome).select_from(job.outerjoin(attempt, attempt.c.job_id == job.c.id))
            return await db.read(lambda connection: [tuple(row) for row in connection.execute(rows)])


@pytest.fixture
async def house(tmp_path: Path, sqlite_url: str, backend: StandIn) -> AsyncIterator[House]:
    """Gateways started here end here, whatever happens."""
    folder = tmp_path / "house"
    shell = open_shell(folder, GATEWAY_DATABASE_URL=sqlite_url, GATEWAY_SECRET_KEY=SECRET, GATEWAY_LOG__FORMAT="json")
    async with _database(sqlite_url) as db:
        made = await Tenants(db, SECRET.encode(), now).create_key("acme", "tests")
    async with AsyncExitStack() as stack:

        async def start(*, bundled: bool = False, port: int = 0, **variables: str) -> Running:
            if not bundled:
                variables["GATEWAY_LOCAL__BACKENDS"] = json.dumps([{"name": "one", "url": backend.url, "models": [MODEL]}])
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway", "serve", "--port", str(port)),
                cwd=folder,
                env={**shell.environment, **variables},
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            return await stack.enter_async_context(_listened_to(Running(process)))

        yield House(folder, sqlite_url, made.secret, start)


async def test_killed_gateway_leaves_a_true_journal_and_no_files(house: House):
    """SIGKILL in the middle of a request: the backend goes too; the next start removes the files and says what happened."""
    first = await house.start(bundled=True)
    large = picture(3000, 3000, kind="JPEG")
    async with house.client(first) as client:
        asking = asyncio.create_task(client.post("/v1/images/edits", files={"image": large}, data={"scale_factor": "4"}))
        await _until_journal(house, [(JobState.RUNNING, "running")])
        before = house.spools

        first.process.kill()

        with pytest.raises(httpx.HTTPError):
            await asking
    assert await first.process.wait() == -signal.SIGKILL
    await until(lambda: house.processes == [])
    assert await house.journal() == [(JobState.RUNNING, "running")]

    second = await house.start()

    assert await house.journal() == [(JobState.INTERRUPTED, "interrupted")]
    assert len(house.spools) == 1, "the new gateway's own, the backend's and the pixel workers' are gone"
    assert not set(before) & set(house.spools)
    assert await _stopped(second) == 0
    assert (house.spools, house.processes) == ([], [])


async def test_running_work_ends_before_the_gateway_does(house: House, backend: StandIn):
    """SIGTERM: nothing new is taken, what runs is answered, and the end is a good one with nothing left."""
    gateway = await house.start()
    backend.hold()
    async with house.client(gateway) as client:
        asking = asyncio.create_task(client.post("/v1/images/edits", files={"image": picture()}, data={"model": MODEL}))
        await backend.asked.wait()

        gateway.process.terminate()

        await _until_refused(gateway.url)
        backend.go_on.set()
        assert (await asking).status_code == 200
    assert await asyncio.wait_for(gateway.process.wait(), 10) == 0
    assert await house.journal() == [(JobState.COMPLETED, "ok")]
    assert gateway.told("gateway.drained")[0]["stopped"] == 0
    assert house.spools == []


async def test_work_beyond_the_grace_period_is_handed_back(house: House, backend: StandIn):
    """The caller is told in time, and not to repeat it blindly; the backend is told to stop; the journal says interrupted."""
    gateway = await house.start(GATEWAY_LIMITS__DRAIN_S="1")
    backend.hold()
    async with house.client(gateway) as client:
        asking = asyncio.create_task(client.post("/v1/images/edits", files={"image": picture()}, data={"model": MODEL}))
        await backend.asked.wait()

        gateway.process.terminate()
        response = await asking

    error = error_of(response, 503)
    assert (error["code"], error["job"]) == ("interrupted", error["request_id"])
    assert response.headers["x-should-retry"] == "false"
    assert await asyncio.wait_for(gateway.process.wait(), 10) == 0
    assert backend.cancelled != []
    assert await house.journal() == [(JobState.INTERRUPTED, "interrupted")]
    assert house.spools == []


async def test_killed_backend_comes_back(house: House):
    """The bundled backend is started again and requests are served; on SIGTERM it goes with the gateway."""
    gateway = await house.start(bundled=True)
    killed = gateway.backend_pid

    os.kill(killed, signal.SIGKILL)
    await until(lambda: len(gateway.told("backend.started")) == 2, within_s=30)

    async with house.client(gateway) as client:
        response = await client.post("/v1/images/edits", files={"image": picture()}, data={"model": MODEL})
        metrics = (await client.get("/metrics")).text
    assert response.status_code == 200, response.text
    assert "gateway_backend_restarts_total 1.0" in metrics
    assert gateway.backend_pid != killed
    assert await _stopped(gateway) == 0
    assert house.processes == []
    assert house.spools == []


async def test_second_gateway_on_a_port_says_so(house: House, tmp_path: Path):
    """A clear line, exit code 1, and nothing left behind."""
    first = await house.start()
    port = int(first.url.rpartition(":")[2])
    spools = house.spools

    second = await house.start(port=port)

    assert await second.process.wait() == 1
    assert f"Error: cannot listen on 127.0.0.1:{port}" in second.events[-1]["text"]
    assert len(second.events) == 1
    assert house.spools == spools
    async with house.client(first) as client:
        assert (await client.get("/health/ready")).status_code == 200


@asynccontextmanager
async def _listened_to(gateway: Running) -> AsyncIterator[Running]:
    """Read its log; return once it serves or has ended; end it at last."""
    listening = asyncio.create_task(gateway.listen())
    try:
        await until(lambda: bool(gateway.told("gateway.started")) or listening.done(), within_s=30)
        yield gateway
    finally:
        with suppress(ProcessLookupError):
            gateway.process.kill()
        await gateway.process.wait()
        await listening


@asynccontextmanager
async def _database(url: str) -> AsyncIterator[Database]:
    db = Database(url)
    try:
        yield db
    finally:
        await db.close()


async def _until_journal(house: House, wanted: list[tuple[Any, ...]]) -> None:
    async with asyncio.timeout(20):
        while await house.journal() != wanted:  # noqa: ASYNC110 -- the journal tells nobody
            await asyncio.sleep(0.02)


async def _until_refused(url: str) -> None:
    """Return once no connection is taken any more."""
    host, port = url.removeprefix("http://").split(":")
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.02)


async def _stopped(gateway: Running) -> int:
    gateway.process.terminate()
    return await asyncio.wait_for(gateway.process.wait(), 15)


def _place(process: Path) -> str | None:
    try:
        return str((process / "cwd").readlink())
    except OSError:
        return None
