"""The stand-in for Replicate, asked by Replicate's own unmodified Python client and by hand."""

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
import replicate
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image, ImageChops
from replicate.exceptions import ModelError, ReplicateError
from replicate.webhook import Webhooks

from providers.catalog import Catalog, load_catalog
from providers.simulators.replicate import FAULTS, ReplicateSimulator
from providers.simulators.serving import Answer, Request, Tls, serving

VERSION = "dfad41707589d68ecdccd1dfa600d55a208f9310748e44bfe35b4a6291453d5e"
CLARITY = f"philz1337x/clarity-upscaler:{VERSION}"
KONTEXT = "black-forest-labs/flux-kontext-pro"
SCHNELL = "black-forest-labs/flux-schnell"
TOKEN = "r8_simulated"
SIZE = (24, 16)

Start = Callable[..., AbstractAsyncContextManager["Running"]]


class Running:
    """A stand-in that listens, and a plain client of its API."""

    def __init__(self, simulator: ReplicateSimulator, origin: str, http: httpx.AsyncClient) -> None:
        self.simulator = simulator
        self.origin = origin
        self.http = http
        """Sends the token; knows `/predictions` and the like."""

    async def create(self, given: dict[str, Any], version: str = VERSION, **headers: str) -> httpx.Response:
        """A create, with headers such as `prefer`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post("/predictions", json={"version": version, "input": given}, headers=named)

    async def ended(self, id_: str) -> dict[str, Any]:
        """The prediction once it has ended."""
        return await self.reaches(id_, "succeeded", "failed", "canceled", "aborted")

    async def reaches(self, id_: str, *statuses: str) -> dict[str, Any]:
        """The prediction once it has one of these statuses."""
        while True:
            facts = (await self.http.get(f"/predictions/{id_}")).json()
            if facts["status"] in statuses:
                return facts
            await asyncio.sleep(0.005)

    async def run(self, given: dict[str, Any], version: str = VERSION) -> dict[str, Any]:
        """Create, and wait for the end."""
        return await self.ended((await self.create(given, version)).json()["id"])

    async def fetch(self, url: str, **headers: str) -> httpx.Response:
        """What is at an address, without the token."""
        async with httpx.AsyncClient() as client:
            return await client.get(url, headers=headers)


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


@pytest.fixture(scope="module")
def png() -> bytes:
    """A picture with something in it."""
    out = io.BytesIO()
    Image.radial_gradient("L").resize(SIZE).convert("RGB").save(out, "png")
    return out.getvalue()


@pytest.fixture
def uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


@pytest.fixture
def start(catalog: Catalog) -> Start:
    """Start a stand-in."""

    @asynccontextmanager
    async def started(*faults: str, speed: float = 2000, tls: Tls | None = None, **options: Any) -> AsyncIterator[Running]:
        simulator = ReplicateSimulator(catalog, faults, speed=speed, **options)
        async with (
            serving(simulator, tls=tls) as origin,
            httpx.AsyncClient(
                base_url=f"{origin}/v1", headers={"authorization": f"Bearer {TOKEN}"}, trust_env=False, verify=not tls
            ) as http,
        ):
            yield Running(simulator, origin, http)

    return started


@contextmanager
def official(origin: str, token: str = TOKEN) -> Iterator[replicate.Client]:
    """Replicate's own client, as its documentation says but for the address."""
    client = replicate.Client(token, base_url=origin)
    client.poll_interval = 0.005
    try:
        yield client
    finally:
        client._client.close()  # it has no way of its own to let go of its connections


def look(data: bytes) -> Image.Image:
    """The picture, decoded."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


# Replicate's own client


async def test_official_client_runs_a_community_model_by_its_version(start: Start, png: bytes) -> None:
    """`replicate.run` uploads the file, waits, and gives the address of a picture three times as large."""
    async with start() as sim:

        def run() -> Any:
            with official(sim.origin) as client:
                return client.run(CLARITY, input={"image": io.BytesIO(png), "scale_factor": 3})

        (url,) = await asyncio.to_thread(run)
        enlarged = look((await sim.fetch(url)).content)

        assert enlarged.size == (3 * SIZE[0], 3 * SIZE[1])
        back = enlarged.convert("RGB").resize(SIZE)
        assert max(high for _, high in ImageChops.difference(back, look(png)).getextrema()) < 16
        assert sim.simulator.kit.counters.of("", "file post") == 1


async def test_official_client_runs_an_official_model_by_its_name(start: Start) -> None:
    """`replicate.run("owner/name")` takes the models path and gives every picture asked for."""
    async with start() as sim:

        def run() -> Any:
            with official(sim.origin) as client:
                return client.run(SCHNELL, input={"prompt": "a hat", "num_outputs": 2, "megapixels": "0.25"})

        urls = await asyncio.to_thread(run)
        first, second = [look((await sim.fetch(url)).content) for url in urls]

        assert first.size == (512, 512)
        assert first.tobytes() != second.tobytes()


async def test_official_client_reads_results_over_tls(
    start: Start, png: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over https the client gives file objects, which read as pictures; the certificate is trusted by SSL_CERT_FILE."""
    tls = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.cert))
    async with start(tls=tls) as sim:

        def run() -> bytes:
            with official(sim.origin) as client:
                (result,) = client.run(CLARITY, input={"image": io.BytesIO(png)}, file_encoding_strategy="base64")
                return result.read()

        assert look(await asyncio.to_thread(run)).size == (2 * SIZE[0], 2 * SIZE[1])


async def test_official_client_finds_the_address_in_the_environment(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variables that the client reads, no line of a program changes."""
    async with start() as sim:
        monkeypatch.setenv("REPLICATE_BASE_URL", sim.origin)
        monkeypatch.setenv("REPLICATE_API_TOKEN", TOKEN)

        def account() -> str:
            client = replicate.Client()
            try:
                return client.accounts.current().username
            finally:
                client._client.close()

        assert await asyncio.to_thread(account) == "sim"


async def test_official_client_creates_waits_and_lists(start: Start, uri: str) -> None:
    """Without blocking, a prediction goes from starting to succeeded, with metrics, and is the newest in the list."""
    async with start() as sim:

        def work() -> tuple[Any, ...]:
            with official(sim.origin) as client:
                prediction = client.predictions.create(version=VERSION, input={"image": uri}, wait=False)
                begun = prediction.status
                prediction.wait()
                return begun, prediction, client.predictions.list().results[0]

        begun, prediction, listed = await asyncio.to_thread(work)

        assert (begun, prediction.status, listed.id) == ("starting", "succeeded", prediction.id)
        assert prediction.metrics["predict_time"] == 13
        assert prediction.model == "philz1337x/clarity-upscaler"
        assert prediction.version == VERSION


async def test_official_client_cancels(start: Start, uri: str) -> None:
    """The answer to a cancel says `canceled` already."""
    async with start("stalled_queue") as sim:

        def work() -> str:
            with official(sim.origin) as client:
                prediction = client.predictions.create(version=VERSION, input={"image": uri})
                prediction.cancel()
                return prediction.status

        assert await asyncio.to_thread(work) == "canceled"
        assert sim.simulator.kit.bill.charges == []


async def test_official_client_keeps_files(start: Start, png: bytes, tmp_path: Path) -> None:
    """A file is stored with its name, type, checksum and metadata, listed, found, and deleted once."""
    path = tmp_path / "hat.png"
    path.write_bytes(png)
    async with start() as sim:

        def work() -> None:
            with official(sim.origin) as client:
                stored = client.files.create(path, metadata={"of": "a test"})
                assert (stored.name, stored.content_type, stored.size) == ("hat.png", "image/png", len(png))
                assert stored.metadata == {"of": "a test"}
                assert set(stored.checksums) == {"sha256", "md5"}
                assert stored.urls["get"] == f"{sim.origin}/v1/files/{stored.id}"
                assert [file.id for file in client.files.list()] == [stored.id]
                assert client.files.get(stored.id).etag == stored.etag
                assert client.files.delete(stored.id)
                with pytest.raises(ReplicateError, match="File not found"):
                    client.files.get(stored.id)

        await asyncio.to_thread(work)


async def test_official_client_reads_models(start: Start) -> None:
    """A model tells its latest version, and the version its inputs."""
    async with start() as sim:

        def work() -> Any:
            with official(sim.origin) as client:
                model = client.models.get("philz1337x/clarity-upscaler")
                assert client.hardware.list()
                assert len(client.models.list().results) >= 8
                return model, model.versions.get(VERSION), model.versions.list()[0]

        model, version, listed = await asyncio.to_thread(work)
        inputs = version.openapi_schema["components"]["schemas"]["Input"]

        assert (model.latest_version.id, listed.id) == (VERSION, VERSION)
        assert inputs["required"] == ["image"]
        assert inputs["properties"]["creativity"]["maximum"] == 1
        assert "multistep_factor" not in inputs["properties"]


async def test_official_client_tells_failures(start: Start, uri: str) -> None:
    """A failed prediction is the client's ModelError with the model's words; a refusal is its ReplicateError."""
    async with start("cuda_oom@1") as sim:

        def work() -> None:
            with official(sim.origin) as client:
                with pytest.raises(ModelError, match="CUDA out of memory"):
                    client.run(CLARITY, input={"image": uri})
                with pytest.raises(ReplicateError) as refused:
                    client.run(CLARITY, input={"image": uri, "creativity": 2})
            assert (refused.value.status, refused.value.title) == (422, "Input validation failed")
            assert refused.value.detail == "- input.creativity: Must be less than or equal to 1\n"

        await asyncio.to_thread(work)


async def test_official_async_client_runs(start: Start, png: bytes) -> None:
    """The asynchronous half of the client runs, polls and lists."""
    async with start() as sim:
        client = replicate.Client(TOKEN, base_url=sim.origin)
        client.poll_interval = 0.005
        async with client._async_client:
            url = await client.async_run(KONTEXT, input={"prompt": "a hat", "input_image": io.BytesIO(png)}, wait=False)
            prediction = await client.predictions.async_create(version=VERSION, input={"image": url})
            await prediction.async_wait()
            listed = await client.predictions.async_list()

        assert [one.model for one in listed.results] == ["philz1337x/clarity-upscaler", KONTEXT]
        assert prediction.status == "succeeded"
        assert listed.results[1].version == "hidden"


async def test_official_client_pages_through_predictions(start: Start) -> None:
    """A hundred to a page, newest first; the cursor leads on and back."""
    async with start("stalled_queue") as sim:
        made = [(await sim.create({"prompt": str(number)}, SCHNELL)).json()["id"] for number in range(103)]

        def work() -> list[Any]:
            with official(sim.origin) as client:
                first = client.predictions.list()
                second = client.predictions.list(first.next)
                return [first, second, client.predictions.list(second.previous)]

        first, second, again = await asyncio.to_thread(work)

    newest = made[::-1]
    assert [one.id for one in first] == newest[:100]
    assert [one.id for one in second] == newest[100:]
    assert [one.id for one in again] == newest[:100]
    assert (first.previous, second.next) == (None, None)


async def test_official_client_validates_webhooks(start: Start, uri: str) -> None:
    """Webhooks come for the events asked for, signed so that the client believes them; the last is repeated under its id."""
    inbox = Inbox(refuse=1)
    async with serving(inbox) as hook, start() as sim:
        secret = (await sim.http.get("/webhooks/default/secret")).json()["key"]
        body = {"version": VERSION, "input": {"image": uri}, "webhook": f"{hook}/in"}
        made = await sim.http.post("/predictions", json={**body, "webhook_events_filter": ["completed"]})
        await inbox.has(2)

    first, second = inbox.received
    for request in inbox.received:
        Webhooks.validate(  # raises if the signature is wrong
            headers=dict(request.headers), body=request.body.decode(), secret=replicate.webhook.WebhookSigningSecret(key=secret)
        )
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert (second.json()["id"], second.json()["status"]) == (made.json()["id"], "succeeded")
    assert secret.startswith("whsec_")


async def test_webhooks_tell_every_event(start: Start, uri: str) -> None:
    """Start, logs, output and end are told, each with the prediction as it was then."""
    inbox = Inbox()
    events = ["start", "output", "logs", "completed"]
    async with serving(inbox) as hook, start(speed=100) as sim:
        body = {"version": VERSION, "input": {"image": uri}, "webhook": hook, "webhook_events_filter": events}
        await sim.http.post("/predictions", json=body)
        await inbox.has(4)

    assert sorted(request.json()["status"] for request in inbox.received) == ["processing"] * 3 + ["succeeded"]


# Creating and waiting


@pytest.mark.parametrize("version", [VERSION, CLARITY])
async def test_community_models_are_asked_for_by_version(start: Start, uri: str, version: str) -> None:
    """With and without the name before it."""
    async with start() as sim:
        assert (await sim.create({"image": uri}, version)).status_code == 201


@pytest.mark.parametrize("version", ["philz1337x/clarity-upscaler", "0" * 64, "nobody/nothing", f"{KONTEXT}:{VERSION}"])
async def test_unknown_versions_are_refused(start: Start, uri: str, version: str) -> None:
    """A community model without its version is as unknown as one that is not there."""
    async with start() as sim:
        answer = await sim.create({"image": uri}, version)

    assert (answer.status_code, answer.json()["title"]) == (422, "Invalid version or not permitted")
    assert answer.headers["content-type"] == "application/problem+json"


async def test_models_path_is_for_official_models(start: Start, uri: str) -> None:
    """A community model there is 404."""
    async with start() as sim:
        official_one = await sim.http.post(f"/models/{SCHNELL}/predictions", json={"input": {"prompt": "a hat"}})
        community = await sim.http.post("/models/philz1337x/clarity-upscaler/predictions", json={"input": {"image": uri}})

    assert (official_one.status_code, official_one.json()["version"]) == (201, "hidden")
    assert (community.status_code, community.json()["detail"]) == (404, "The requested resource could not be found.")


async def test_blocking_create_answers_with_output_before_the_end(start: Start, uri: str) -> None:
    """`Prefer: wait`: 201, output filled, still processing, no metrics; the terminal GET has them."""
    async with start() as sim:
        answer = await sim.create({"image": uri}, prefer="wait=5")
        facts = answer.json()
        ended = await sim.ended(facts["id"])

    assert (answer.status_code, answer.headers["preference-applied"]) == (201, "wait=5")
    assert (facts["status"], len(facts["output"])) == ("processing", 1)
    assert not {"metrics", "completed_at"} & set(facts)
    assert (ended["status"], ended["metrics"]["predict_time"]) == ("succeeded", 13)


async def test_blocking_create_that_takes_too_long_is_starting(start: Start, uri: str) -> None:
    """202 and `starting`, even though it runs."""
    async with start(speed=5) as sim:
        answer = await sim.create({"image": uri}, prefer="wait=1")
        now = (await sim.http.get(f"/predictions/{answer.json()['id']}")).json()

    assert (answer.status_code, answer.json()["status"], now["status"]) == (202, "starting", "processing")


@pytest.mark.parametrize(
    ("written", "seconds"), [("90", 90), ("30s", 30), ("5m", 300), ("1h30m45s", 5445), ("2h30m", 9000), ("5", 5)]
)
async def test_cancel_after_sets_the_deadline(start: Start, uri: str, written: str, seconds: int) -> None:
    """In hours, minutes and seconds; a plain number is seconds."""
    async with start("stalled_queue") as sim:
        facts = (await sim.create({"image": uri}, cancel_after=written)).json()

    life = datetime.fromisoformat(facts["deadline"]) - datetime.fromisoformat(facts["created_at"])
    assert life == timedelta(seconds=seconds)


@pytest.mark.parametrize("written", ["4s", "soon", "-5", ""])
async def test_bad_cancel_after_is_refused(start: Start, uri: str, written: str) -> None:
    """Five seconds at least."""
    async with start() as sim:
        assert (await sim.create({"image": uri}, cancel_after=written)).status_code == 400


async def test_deadline_aborts_what_has_not_started(start: Start, uri: str) -> None:
    """`aborted`, and free; what runs is `canceled`, and paid for."""
    clock = Clock()
    async with start("stalled_queue@1", speed=0.2, now=clock) as sim:
        queued = (await sim.create({"image": uri}, cancel_after="10s")).json()["id"]
        clock.ahead += timedelta(seconds=11)
        aborted = await sim.ended(queued)
        assert sim.simulator.kit.bill.charges == []
    async with start(speed=20, now=clock) as sim:
        running = (await sim.create({"image": uri}, cancel_after="10s")).json()["id"]
        await sim.reaches(running, "processing")
        clock.ahead += timedelta(seconds=11)
        canceled = await sim.ended(running)
        charges = sim.simulator.kit.bill.charges

    assert (aborted["status"], "predict_time" in aborted["metrics"]) == ("aborted", False)
    assert canceled["status"] == "canceled"
    assert [(charge.id, charge.seconds) for charge in charges] == [(running, 13)]


async def test_results_are_removed_after_an_hour(start: Start, uri: str) -> None:
    """Then the prediction has no input, output or logs, and the file is gone; uploads last a day."""
    clock = Clock()
    async with start(now=clock) as sim:
        file = (await sim.http.post("/files", files={"content": b"hat"})).json()
        ended = await sim.run({"image": uri})
        clock.ahead += timedelta(hours=1, seconds=1)
        later = await sim.ended(ended["id"])
        gone = await sim.fetch(ended["output"][0])
        still = await sim.http.get(f"/files/{file['id']}")
        clock.ahead += timedelta(hours=23)
        expired = await sim.http.get(f"/files/{file['id']}")

    assert (later["data_removed"], later["output"], later["input"], later["logs"]) == (True, None, {}, "")
    assert (gone.status_code, still.status_code, expired.status_code) == (404, 200, 404)


# What is refused


REFUSED: dict[str, tuple[dict[str, Any], tuple[str, str, str]]] = {
    "null": ({"seed": None}, ("invalid_type", "input.seed", "Invalid type. Expected: integer, given: null")),
    "text for a number": (
        {"creativity": "0.5"},
        ("invalid_type", "input.creativity", "Invalid type. Expected: number, given: string"),
    ),
    "a fraction for an integer": ({"seed": 1.5}, ("invalid_type", "input.seed", "Invalid type. Expected: integer, given: number")),
    "a boolean for a number": ({"seed": True}, ("invalid_type", "input.seed", "Invalid type. Expected: integer, given: boolean")),
    "too small": ({"dynamic": 0}, ("number_gte", "input.dynamic", "Must be greater than or equal to 1")),
    "too large": ({"resemblance": 3.1}, ("number_lte", "input.resemblance", "Must be less than or equal to 3")),
    "not a choice": (
        {"output_format": "gif"},
        ("enum", "input.output_format", 'output_format must be one of the following: "png", "jpg", "webp"'),
    ),
    "not an address": ({"image": "hat.png"}, ("format", "input.image", "Does not match format 'uri'")),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_inputs_are_strict(start: Start, uri: str, case: str) -> None:
    """Types, bounds and choices are the schema's, null is refused, and nothing is created."""
    given, (kind, field, description) = REFUSED[case]
    async with start() as sim:
        answer = await sim.create({"image": uri, **given})
        listed = (await sim.http.get("/predictions")).json()["results"]

    assert (answer.status_code, answer.json()["title"]) == (422, "Input validation failed")
    assert answer.json()["invalid_fields"] == [{"type": kind, "field": field, "description": description}]
    assert answer.json()["detail"] == f"- {field}: {description}\n"
    assert listed == []


async def test_missing_and_misplaced_members_are_told(start: Start, uri: str) -> None:
    """The body's own members are as strict as the input's."""
    async with start() as sim:
        without_image = (await sim.create({})).json()
        no_version = (await sim.http.post("/predictions", json={"input": {}, "model": "x"})).json()
        version_twice = await sim.http.post(f"/models/{SCHNELL}/predictions", json={"input": {"prompt": "x"}, "version": VERSION})
        not_json = await sim.http.post("/predictions", content=b"{")
        odd_event = {"version": VERSION, "input": {"image": uri}, "webhook_events_filter": ["end"]}
        odd = await sim.http.post("/predictions", json=odd_event)

    assert without_image["invalid_fields"] == [{"type": "required", "field": "input", "description": "image is required"}]
    assert no_version["detail"] == "- version is required\n- Additional property model is not allowed\n"
    assert (version_twice.status_code, not_json.status_code, odd.status_code) == (422, 400, 422)


async def test_unknown_inputs_are_dropped(start: Start, uri: str) -> None:
    """A typo in a name is silent."""
    async with start() as sim:
        assert (await sim.run({"image": uri, "scale": 7, "creativty": None}))["status"] == "succeeded"


@pytest.mark.parametrize("header", [None, "Bearer bad", "Bearer", "Basic x"])
async def test_tokens_are_asked_for(start: Start, header: str | None) -> None:
    """Any token but `bad` will do, with either word before it; results need none."""
    async with start() as sim:
        headers = {"authorization": header} if header is not None else {}
        refused = await sim.fetch(f"{sim.origin}/v1/account", **headers)
        accepted = await sim.fetch(f"{sim.origin}/v1/account", authorization="Token r8_x")

    assert (refused.status_code, accepted.status_code) == (401, 200)
    assert refused.json()["title"] == "Unauthenticated"


async def test_tokens_sent_for_results_are_counted(start: Start, uri: str) -> None:
    """Whoever fetches a result with a token has told it to a stranger, which a test can see."""
    async with start() as sim:
        url = (await sim.run({"image": uri}))["output"][0]
        await sim.fetch(url)
        await sim.http.get(url)
        counters = sim.simulator.kit.counters

    assert (counters.of("", "result"), counters.of("", "result with a token")) == (1, 1)


async def test_answers_tell_the_rate_limits(start: Start) -> None:
    """Every answer of the API does: 600 creates a minute, 3000 of all else."""
    async with start() as sim:
        create, other = await sim.create({}), await sim.http.get("/account")

    assert (create.headers["ratelimit-remaining"], other.headers["ratelimit-remaining"]) == ("599", "2999")


async def test_files_have_limits(start: Start) -> None:
    """A name of at most 255 bytes; a form with the right part."""
    async with start() as sim:
        long = await sim.http.post("/files", files={"content": ("x" * 256, b"hat")})
        nameless = await sim.http.post("/files", files={"file": b"hat"})
        no_form = await sim.http.post("/files", content=b"hat")

    assert (long.status_code, nameless.status_code, no_form.status_code) == (400, 400, 415)


# What the models do


async def test_upscalers_really_upscale(start: Start, uri: str, png: bytes) -> None:
    """Each by its own input's name and default; with a mask the size stays; the format is the asked one."""
    async with start() as sim:

        async def size(given: dict[str, Any], version: str) -> tuple[tuple[int, int], str | None]:
            output = (await sim.run({"image": uri, **given}, version))["output"]
            image = look((await sim.fetch(output if isinstance(output, str) else output[0])).content)
            return (image.width // SIZE[0], image.height // SIZE[1]), image.format

        assert await size({}, VERSION) == ((2, 2), "PNG")
        assert await size({"scale_factor": 3, "output_format": "jpg"}, VERSION) == ((3, 3), "JPEG")
        assert await size({"mask": uri}, VERSION) == ((1, 1), "PNG")
        assert await size({"scale": 5}, "nightmareai/real-esrgan") == ((5, 5), "PNG")
        assert await size({"upscale_factor": "6x"}, "topazlabs/image-upscale") == ((6, 6), "PNG")
        assert await size({}, "recraft-ai/recraft-crisp-upscale") == ((4, 4), "PNG")


async def test_output_shapes_are_the_models_own(start: Start, uri: str) -> None:
    """A list for some, one address for the others."""
    async with start() as sim:
        kontext = await sim.run({"prompt": "a hat", "input_image": uri}, KONTEXT)
        schnell = await sim.run({"prompt": "a hat"}, SCHNELL)

    assert isinstance(kontext["output"], str)
    assert isinstance(schnell["output"], list)


async def test_inputs_are_taken_from_files_and_results(start: Start, png: bytes) -> None:
    """The address of an upload or of a result is fetched without a token; a deleted one fails the prediction."""
    async with start() as sim:
        file = (await sim.http.post("/files", files={"content": ("a.png", png, "image/png")})).json()
        first = await sim.run({"image": file["urls"]["get"]})
        second = await sim.run({"image": first["output"][0]})
        await sim.http.delete(f"/files/{file['id']}")
        lost = await sim.run({"image": file["urls"]["get"]})
        unreadable = await sim.run({"image": "data:image/png;base64,aGF0"})

    assert (first["status"], second["status"]) == ("succeeded", "succeeded")
    assert lost["error"].startswith("Input validation error: 404 Client Error: Not Found for url:")
    assert unreadable["error"].startswith("cannot identify image file")


async def test_results_are_served_in_ranges(start: Start, uri: str) -> None:
    """A download can be resumed."""
    async with start() as sim:
        url = (await sim.run({"image": uri}))["output"][0]
        whole = await sim.fetch(url)
        rest = await sim.fetch(url, range="bytes=10-")
        beyond = await sim.fetch(url, range=f"bytes={len(whole.content)}-")

    assert (rest.status_code, rest.content) == (206, whole.content[10:])
    assert rest.headers["content-range"] == f"bytes 10-{len(whole.content) - 1}/{len(whole.content)}"
    assert (whole.headers["content-type"], beyond.status_code) == ("image/png", 416)


# What it costs


async def test_bill_is_by_the_second_or_by_the_picture(start: Start, uri: str) -> None:
    """At the catalog's prices: seconds of life for clarity, pictures for flux, megapixels of the result for crystal."""
    async with start() as sim:
        await sim.run({"image": uri})
        await sim.run({"prompt": "a hat", "num_outputs": 3, "megapixels": "0.25"}, SCHNELL)
        await sim.run({"image": uri}, "philz1337x/crystal-upscaler")
        bill = (await sim.fetch(f"{sim.origin}/_sim/bill")).json()

    assert [job["usd"] for job in bill["jobs"]] == ["0.012675", "0.009", "0.000024576"]
    assert bill["usd"] == "0.021699576"


async def test_failures_cost_machine_time_only(start: Start, uri: str) -> None:
    """A failed run is paid for where seconds are; one that was never run, or is sold by the picture, is not."""
    async with start("nsfw") as sim:
        await sim.run({"image": uri})
        await sim.run({"prompt": "a hat"}, SCHNELL)
        assert [charge.usd for charge in sim.simulator.kit.bill.charges] == [Decimal("0.012675")]
    async with start("interrupted_pa") as sim:
        await sim.run({"image": uri})
        assert sim.simulator.kit.bill.charges == []


# Faults


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ("bad_key", 401, "Unauthenticated"),
        ("no_credit", 402, "Insufficient credit"),
        ("rate_limit=7", 429, "resets in ~7s"),
        ("rate_limit_no_header", 429, '"retry_after":30'),
        ("submit_500", 500, "error"),
        ("html_error", 502, "<html>"),
    ],
)
async def test_creates_can_be_refused(start: Start, uri: str, fault: str, status: int, said: str) -> None:
    """Each refusal has Replicate's status and words, and creates nothing; told once, it happens once."""
    async with start(f"{fault}@1") as sim:
        answer = await sim.create({"image": uri})
        listed = (await sim.http.get("/predictions")).json()["results"]

        assert (answer.status_code, said in answer.text) == (status, True)
        assert answer.headers.get("retry-after") == ("7" if fault == "rate_limit=7" else None)
        assert listed == []
        assert (await sim.create({"image": uri})).status_code == 201


async def test_lost_create_is_found_in_the_list_and_billed(start: Start, uri: str) -> None:
    """The connection ends without an answer, but the prediction runs, and the bill says that nobody was told."""
    async with start("submit_lost") as sim:
        with pytest.raises(httpx.RemoteProtocolError):
            await sim.create({"image": uri})
        (listed,) = (await sim.http.get("/predictions")).json()["results"]
        await sim.ended(listed["id"])
        bill = (await sim.fetch(f"{sim.origin}/_sim/bill")).json()

    assert (bill["unanswered"], bill["usd"]) == ([listed["id"]], "0.012675")


async def test_every_second_poll_can_fail(start: Start, uri: str) -> None:
    """200, 500, 200, 500, for each prediction by itself."""
    async with start("status_500_every_second", "stalled_queue") as sim:
        url = (await sim.create({"image": uri})).json()["urls"]["get"]
        assert [(await sim.http.get(url)).status_code for _ in range(4)] == [200, 500, 200, 500]


@pytest.mark.parametrize(
    ("fault", "said"),
    [("cuda_oom", "CUDA out of memory"), ("nsfw", "NSFW content detected"), ("interrupted_pa", "(code: PA)")],
)
async def test_predictions_can_fail(start: Start, uri: str, fault: str, said: str) -> None:
    """HTTP is 200; the failure is in the prediction."""
    async with start(fault) as sim:
        ended = await sim.run({"image": uri})

    assert (ended["status"], said in ended["error"], ended["output"]) == ("failed", True, None)


async def test_results_can_be_spoilt(start: Start, uri: str) -> None:
    """Black, of another size, rubbish, half, gone, or none at all; the prediction succeeds, and costs, all the same."""

    async def spoilt(fault: str) -> tuple[Any, httpx.Response | None]:
        async with start(fault) as sim:
            blocking = (await sim.create({"image": uri}, prefer="wait=10")).json()
            output = blocking["output"]
            ended = await sim.ended(blocking["id"])
            assert (ended["status"], len(sim.simulator.kit.bill.charges)) == ("succeeded", 1)
            return ended, await sim.fetch(output[0]) if output else None

    double = (2 * SIZE[0], 2 * SIZE[1])
    _, black = await spoilt("black")
    _, small = await spoilt("wrong_size")
    _, corrupt = await spoilt("corrupt")
    _, half = await spoilt("truncated_download")
    _, missing = await spoilt("result_404")
    removed, expired = await spoilt("expired_result")
    empty, nothing = await spoilt("empty_output")

    assert black
    assert small
    assert corrupt
    assert half
    assert missing
    assert expired
    assert (look(black.content).size, look(black.content).getbbox()) == (double, None)
    assert look(small.content).size == (32, 21)
    for damaged in (corrupt, half):
        assert damaged.status_code == 200
        with pytest.raises((OSError, SyntaxError)):
            look(damaged.content)
    assert (missing.status_code, expired.status_code) == (404, 404)
    assert (removed["data_removed"], removed["output"]) == (True, None)
    assert (empty["output"], nothing) == ([], None)


async def test_downloads_can_be_cut_twice(start: Start, uri: str) -> None:
    """The connection ends at half of what was asked; the third time all of it comes."""
    async with start("cut_download_twice") as sim:
        url = (await sim.run({"image": uri}))["output"][0]
        for _ in range(2):
            with pytest.raises(httpx.RemoteProtocolError):
                await sim.fetch(url)
        assert look((await sim.fetch(url)).content).size == (2 * SIZE[0], 2 * SIZE[1])


async def test_downloads_can_be_slow(start: Start, uri: str) -> None:
    """The body comes in pieces over the time that was said."""
    async with start("slow_download=0.1") as sim:
        url = (await sim.run({"image": uri}))["output"][0]
        answer = await sim.fetch(url)

    assert answer.elapsed >= timedelta(seconds=0.09)


async def test_addresses_can_lead_elsewhere(start: Start, uri: str) -> None:
    """To somebody else's server: in the prediction, in its output, or by a redirect."""
    async with start("foreign_urls=http://127.0.0.3:1", "foreign_result=http://127.0.0.3:2", "redirect=http://127.0.0.3:3") as sim:
        made = (await sim.create({"image": uri}, prefer="wait=10")).json()
        asked = await sim.http.get(f"/predictions/{made['id']}")

    assert made["urls"]["get"].startswith("http://127.0.0.3:1/")
    assert made["output"][0].startswith("http://127.0.0.3:2/")
    assert (asked.status_code, asked.headers["location"]) == (307, f"http://127.0.0.3:3/v1/predictions/{made['id']}")


async def test_large_inputs_belong_into_files(start: Start) -> None:
    """Several megabytes inline interrupt the prediction, as users of the real one found."""
    async with start() as sim:
        ended = await sim.run({"image": f"data:image/png;base64,{'A' * 6_000_000}"})

    assert (ended["status"], ended["error"]) == ("failed", "Prediction interrupted; please retry (code: PA)")


async def test_faults_are_switched_at_run_time(start: Start, uri: str) -> None:
    """`/_sim` has the faults, what came in, the bill and the counters."""
    async with start() as sim, httpx.AsyncClient(base_url=sim.origin) as kit:
        assert (await kit.post("/_sim/faults", json={"faults": ["no_credit@1"]})).status_code == 200
        assert (await sim.create({"image": uri})).status_code == 402
        await sim.run({"image": uri})
        (job,) = (await kit.get("/_sim/jobs")).json()
        counters = (await kit.get("/_sim/counters")).json()
        unknown = await kit.post("/_sim/faults", json={"faults": ["flood"]})

    assert (job["endpoint"], job["status"], job["input"]) == (VERSION, "succeeded", {"image": "data:image/png;base64,…"})
    assert counters[VERSION]["create"] == 2
    assert unknown.status_code == 400


# The command


def test_command_serves_until_stopped() -> None:
    """`image-gateway sim replicate` prints its addresses, answers, and ends by SIGTERM with exit status 0."""
    command = [sys.executable, "-m", "gateway", "sim", "replicate", "--port", "0", "--fault", "no_credit"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as process:
        assert process.stdout
        try:
            addresses = json.loads(process.stdout.readline())
            headers = {"authorization": f"Bearer {TOKEN}"}
            body = {"version": SCHNELL, "input": {"prompt": "a hat"}}
            answer = httpx.post(f"{addresses['base_url']}/predictions", json=body, headers=headers, trust_env=False)
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(timeout=20)

    assert (answer.status_code, status) == (402, 0)


def test_every_fault_is_described() -> None:
    """The command's help says what each does."""
    assert all(FAULTS.values())


class Clock:
    """The time of day, put forward at will."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


class Inbox:
    """Receives webhooks, and refuses the first few."""

    def __init__(self, refuse: int = 0) -> None:
        self.received: list[Request] = []
        self._refuse = refuse
        self._came = asyncio.Event()

    async def handle(self, request: Request) -> Answer:
        self.received.append(request)
        self._came.set()
        return Answer(500 if len(self.received) <= self._refuse else 204)

    async def close(self) -> None:
        pass

    async def has(self, count: int) -> None:
        """Wait until so many have come."""
        while len(self.received) < count:
            self._came.clear()
            await self._came.wait()


def make_certificate(folder: Path) -> Tls:
    """A certificate for 127.0.0.1 that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "simulator")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    tls = Tls(folder / "cert.pem", folder / "key.pem")
    tls.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    tls.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return tls
