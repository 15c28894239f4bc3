"""The stand-in for fal, asked by fal's own unmodified client and by hand."""

import asyncio
import base64
import gc
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import fal_client
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from PIL import Image

from providers.catalog import load_catalog
from providers.simulators.fal import FAULTS, FalSimulator
from providers.simulators.serving import Answer, Request, serving

CLARITY = "fal-ai/clarity-upscaler"
KEY = {"Authorization": "Key id:secret"}


@pytest.fixture(scope="module")
def catalog():
    return load_catalog()


@pytest.fixture(scope="module")
def png() -> bytes:
    """A picture of 24 x 16 pixels with something in it."""
    out = io.BytesIO()
    Image.radial_gradient("L").resize((24, 16)).convert("RGB").save(out, "png")
    return out.getvalue()


@pytest.fixture
def uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


@pytest.fixture
def start(catalog):
    """Start a simulator; gives a client with a key at its origin."""

    @asynccontextmanager
    async def started(*faults: str, speed: float = 1000, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
        simulator = FalSimulator(catalog, faults=faults, speed=speed, **options)
        async with serving(simulator) as origin, httpx.AsyncClient(base_url=origin, headers=KEY) as client:
            yield client

    return started


Start = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


async def submit(client: httpx.AsyncClient, given: dict[str, Any], endpoint: str = CLARITY, **more: Any) -> dict[str, Any]:
    response = await client.post(f"/queue/{endpoint}", json=given, **more)
    assert response.status_code == 200, response.text
    return response.json()


async def until(client: httpx.AsyncClient, url: str, is_so: Callable[[httpx.Response], bool]) -> httpx.Response:
    """Ask again and again until the answer is so."""
    while True:
        answer = await client.get(url)
        if is_so(answer):
            return answer
        await asyncio.sleep(0.002)


async def until_done(client: httpx.AsyncClient, told: dict[str, Any]) -> httpx.Response:
    """Poll until the status is COMPLETED; gives that status."""
    return await until(client, told["status_url"], lambda answer: answer.status_code == 200)


async def result_of(client: httpx.AsyncClient, given: dict[str, Any], endpoint: str = CLARITY) -> httpx.Response:
    told = await submit(client, given, endpoint)
    await until_done(client, told)
    return await client.get(told["response_url"])


async def bill(client: httpx.AsyncClient) -> dict[str, Any]:
    return (await client.get("/_sim/bill")).json()


async def counters(client: httpx.AsyncClient) -> dict[str, Any]:
    return (await client.get("/_sim/counters")).json()


def point_client_at(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    """What the client's environment variables and constants would say; it reads the former only when it is imported."""
    from fal_client import client as module

    for name, url in {"QUEUE_URL_FORMAT": "/queue/", "RUN_URL_FORMAT": "/run/", "REST_URL": "/rest", "CDN_URL": "/cdn"}.items():
        monkeypatch.setattr(module, name, origin + url)


@asynccontextmanager
async def async_fal_client(key: str = "id:secret") -> AsyncIterator[fal_client.AsyncClient]:
    """fal's asynchronous client, closed at the end: it has no way of its own."""
    client = fal_client.AsyncClient(key=key)
    yield client
    await (await client._client).aclose()


def size_of(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.size


async def test_async_client_uploads_subscribes_and_gets_an_enlarged_picture(start: Start, monkeypatch, png):
    """fal's asynchronous client uploads, waits through the states and finds a picture three times as large."""
    async with start() as web, async_fal_client() as client:
        point_client_at(monkeypatch, str(web.base_url))
        url = await client.upload(png, "image/png")
        seen: list[type] = []
        arguments = {"image_url": url, "upscale_factor": 3}
        result = await client.subscribe(
            CLARITY, arguments, on_queue_update=lambda status: seen.append(type(status)), with_logs=True, interval=0.001
        )
        picture = await web.get(result["image"]["url"])
        counted = await counters(web)

    assert seen[-1] is fal_client.Completed
    assert size_of(picture.content) == (72, 48)
    assert (result["image"]["width"], result["image"]["height"]) == (72, 48)
    assert int(picture.headers["content-length"]) == result["image"]["file_size"]
    assert picture.headers["etag"]
    assert counted[""] == {"storage/auth/token": 1, "cdn upload": 1}
    assert counted[CLARITY]["submit"] == 1


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # its upload never closes the connections to the CDN
async def test_sync_client_submits_polls_and_gets_the_result(start: Start, monkeypatch, png):
    """fal's synchronous client: upload, submit, status, result, run."""

    def converse() -> tuple[dict[str, Any], dict[str, Any]]:
        client = fal_client.SyncClient(key="id:secret")
        try:
            arguments = {"image_url": client.upload(png, "image/png")}
            handle = client.submit(CLARITY, arguments)
            assert isinstance(client.status(CLARITY, handle.request_id), fal_client.Status)
            return client.result(CLARITY, handle.request_id), client.run(CLARITY, arguments)
        finally:
            client._client.close()
            del client
            gc.collect()

    async with start() as web:
        point_client_at(monkeypatch, str(web.base_url))
        queued, direct = await asyncio.to_thread(converse)

    assert (queued["image"]["width"], direct["image"]["width"]) == (48, 48)


async def test_client_reads_the_errors_as_fals(start: Start, monkeypatch):
    """fal's client raises its own error with the status of the result, and cancels a request that waits."""
    async with start("stalled_queue@1") as web, async_fal_client() as client:
        point_client_at(monkeypatch, str(web.base_url))
        stalled = await client.submit(CLARITY, {"image_url": "https://example.com/a.png"})
        assert isinstance(await stalled.status(), fal_client.Queued)
        await stalled.cancel()
        assert (await stalled.status()).error_type == "client_cancelled"
        with pytest.raises(fal_client.FalClientHTTPError) as caught:
            await client.subscribe(CLARITY, {"image_url": "https://example.com/a.png"}, interval=0.001)

    assert caught.value.status_code == 422
    assert caught.value.response.json()["detail"][0]["type"] == "file_download_error"


async def test_client_falls_back_to_the_second_way_of_uploading(start: Start, monkeypatch, png):
    """Where the CDN cannot be reached, fal's client initiates an upload and PUTs it, and the model can read the file."""
    from fal_client import client as module

    async with start() as web, async_fal_client() as client:
        point_client_at(monkeypatch, str(web.base_url))
        monkeypatch.setattr(module, "CDN_URL", f"{web.base_url}/nowhere")
        url = await client.upload(png, "image/png")
        result = await client.run(CLARITY, {"image_url": url})
        counted = await counters(web)

    assert result["image"]["width"] == 48
    assert counted[""]["storage/upload/initiate"] == 1
    assert counted[""]["upload"] == 1


async def test_large_file_goes_up_in_parts(start: Start, monkeypatch, png, tmp_path: Path):
    """fal's client's multipart upload gives back the file as it was."""
    path = tmp_path / "picture.png"
    path.write_bytes(png)
    async with start() as web, async_fal_client() as client:
        point_client_at(monkeypatch, str(web.base_url))
        upload = fal_client.client.AsyncMultipartUpload
        async with httpx.AsyncClient() as plain:
            url = await upload.save_file(
                client=plain, token_manager=await client._token_manager, file_path=path, chunk_size=100, content_type="image/png"
            )
        got = await web.get(url, headers={"Authorization": ""})

    assert got.content == png


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "simulator")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = folder / "cert.pem", folder / "key.pem"
    cert_path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key_path.write_bytes(key.private_bytes(*plain))
    return cert_path, key_path


CLIENT = """
import sys, fal_client, fal_client.client as module
module.REST_URL, module.CDN_URL = sys.argv[1] + "/rest", sys.argv[1] + "/cdn"
url = fal_client.upload_file(sys.argv[2])
print(fal_client.subscribe("fal-ai/clarity-upscaler", {"image_url": url})["image"]["url"])
"""


def test_command_serves_https_to_a_client_set_by_its_environment(png, tmp_path: Path):
    """The command says where it listens, and fal's client reaches it by host names and TLS trust from the environment."""
    cert, key = certificate(tmp_path)
    (tmp_path / "in.png").write_bytes(png)
    options = ["--speed", "100", "--tls-cert", str(cert), "--tls-key", str(key)]
    script = f"from providers.simulators.fal import main; main({options!r})"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as simulator:
        try:
            assert simulator.stdout is not None
            urls = json.loads(simulator.stdout.readline())
            host = urls["origin"].removeprefix("https://")
            environment = os.environ | {
                "FAL_KEY": "id:secret",
                "FAL_RUN_HOST": f"{host}/run",
                "FAL_QUEUE_RUN_HOST": f"{host}/queue",
                "SSL_CERT_FILE": str(cert),
            }
            command = [sys.executable, "-c", CLIENT, urls["origin"], str(tmp_path / "in.png")]
            told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        finally:
            simulator.terminate()

    assert told.stdout.startswith(f"{urls['origin']}/files/b/"), told.stderr
    assert urls["queue"] == f"{urls['origin']}/queue"


async def test_states_go_by_in_order_with_fals_status_codes(start: Start, uri):
    """IN_QUEUE and IN_PROGRESS answer 202, COMPLETED 200; the result before that is 400."""
    async with start(speed=4) as web:
        told = await submit(web, {"image_url": uri})
        early = await web.get(told["response_url"])
        events = await web.get(told["status_url"] + "/stream")
        seen = [json.loads(line.removeprefix("data: "))["status"] for line in events.text.splitlines() if line]
        last = await until_done(web, told)
        result = await web.get(told["response_url"])

    assert told["status"] == "IN_QUEUE"
    assert told["queue_position"] == 0
    assert told["status_url"] == f"{web.base_url}/queue/{CLARITY}/requests/{told['request_id']}/status"
    assert (early.status_code, early.json()["detail"]) == (400, "Request is still in progress")
    assert seen == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    assert last.json()["metrics"] == {"inference_time": 2.5}
    assert result.headers["x-fal-billable-units"] == "0.001536"
    assert result.headers["x-fal-request-id"] == told["request_id"]


async def test_requests_live_under_owner_and_app(start: Start, uri):
    """An endpoint with a path of its own is polled under its app, and nowhere else."""
    endpoint = "fal-ai/flux/dev/image-to-image"
    async with start() as web:
        told = await submit(web, {"image_url": uri, "prompt": "a hat"}, endpoint)
        await until_done(web, told)
        elsewhere = await web.get(f"/queue/{endpoint}/requests/{told['request_id']}/status")
        unknown = await web.get("/queue/fal-ai/flux/requests/none/status")

    assert f"/queue/fal-ai/flux/requests/{told['request_id']}" in told["response_url"]
    assert (elsewhere.status_code, elsewhere.json()) == (404, {"status": "NOT_FOUND"})
    assert (unknown.status_code, unknown.json()) == (404, {"status": "NOT_FOUND"})


async def test_submit_takes_anything_and_the_result_refuses_it(start: Start):
    """Nothing is validated at submit; the status says COMPLETED without an error; the result has the 422."""
    async with start() as web:
        told = await submit(web, {})
        status = await until_done(web, told)
        result = await web.get(told["response_url"])
        charged = await bill(web)

    assert "error" not in status.json()
    assert result.status_code == 422
    assert result.json()["detail"][0] == {"type": "missing", "loc": ["body", "image_url"], "msg": "Field required", "input": {}}
    assert result.headers["x-fal-billable-units"] == "0"
    assert charged["jobs"] == []


WRONG = {
    "too large": (CLARITY, {"upscale_factor": 9}, "less_than_equal", {"le": 4}),
    "too small": (CLARITY, {"creativity": -1}, "greater_than_equal", {"ge": 0}),
    "no number": (CLARITY, {"upscale_factor": "big"}, "float_parsing", None),
    "a fraction": (CLARITY, {"seed": 1.5}, "int_from_float", None),
    "no boolean": (CLARITY, {"enable_safety_checker": "perhaps"}, "bool_parsing", None),
    "no text": (CLARITY, {"prompt": 3}, "string_type", None),
    "no such choice": ("fal-ai/esrgan", {"output_format": "tiff"}, "one_of", {"expected": ["png", "jpeg"]}),
    "an empty list": ("fal-ai/nano-banana/edit", {"prompt": "x", "image_urls": []}, "sequence_too_short", {"min_length": 1}),
    "too many": ("fal-ai/nano-banana/edit", {"prompt": "x", "num_images": 5}, "less_than_equal", {"le": 4}),
    "no preset": ("fal-ai/flux/dev", {"prompt": "x", "image_size": "huge"}, "one_of", None),
}


@pytest.mark.parametrize("name", WRONG)
async def test_input_is_checked_against_the_catalog(start: Start, uri, name: str):
    """Types, ranges and choices are refused in fal's own words."""
    endpoint, given, kind, ctx = WRONG[name]
    pictures = {"image_urls": [uri], "image_url": uri} | given
    async with start() as web:
        response = await web.post(f"/run/{endpoint}", json=pictures)

    entry = response.json()["detail"][0]
    assert (response.status_code, entry["type"]) == (422, kind)
    assert ctx is None or entry["ctx"] == ctx
    assert ctx is None or entry["url"] == f"https://docs.fal.ai/errors#{kind}"


async def test_unknown_fields_are_dropped_in_silence(start: Start, uri):
    """What the model does not know changes nothing, and nobody says so."""
    async with start() as web:
        response = await web.post(f"/run/{CLARITY}", json={"image_url": uri, "size": "9000x9000", "n": 40, "output_format": "gif"})

    assert response.status_code == 200
    assert (response.json()["image"]["width"], response.json()["image"]["content_type"]) == (48, "image/png")


async def test_bodies_that_are_no_json_and_paths_that_are_none(start: Start):
    """Bad JSON and unknown sub-paths show in the result only; an unknown app is 404 at once."""
    async with start() as web:
        broken = (await web.post(f"/queue/{CLARITY}", content=b"{")).json()
        await until_done(web, broken)
        path = await result_of(web, {}, f"{CLARITY}/turbo")
        app = await web.post("/queue/fal-ai/nothing", json={})
        refused = await web.get(broken["response_url"])

    assert (refused.status_code, refused.json()["detail"][0]["type"]) == (422, "json_invalid")
    assert (path.status_code, path.json()) == (404, {"detail": "Path /turbo not found"})
    assert (app.status_code, app.json()) == (404, {"detail": 'Application "nothing" not found'})


async def test_pictures_are_fetched_from_nowhere_but_here(start: Start, png):
    """Another server's picture is a file_download_error, rubbish an image_load_error."""
    rubbish = "data:image/png;base64," + base64.b64encode(png[:60]).decode()
    async with start() as web:
        fetched = await result_of(web, {"image_url": "http://127.0.0.1:1/a.png"})
        read = await result_of(web, {"image_url": rubbish})

    assert fetched.json()["detail"][0]["type"] == "file_download_error"
    assert read.json()["detail"][0]["type"] == "image_load_error"


async def test_edits_change_the_picture_and_keep_its_shape(start: Start, uri, png):
    """An edit of an unchanged size is visibly another picture, in the format that was asked for."""
    endpoint = "fal-ai/flux/dev/image-to-image"
    given = {"image_url": uri, "prompt": "night", "output_format": "png", "num_images": 2}
    async with start() as web:
        result = (await result_of(web, given, endpoint)).json()
        pictures = [(await web.get(image["url"])).content for image in result["images"]]
        charged = await bill(web)

    assert [size_of(picture) for picture in pictures] == [(24, 16), (24, 16)]
    assert len({png, *pictures}) == 3
    assert result["has_nsfw_concepts"] == [False, False]
    assert (charged["jobs"][0]["units"], charged["usd"]) == ("2", "0.06")


async def test_background_removal_leaves_transparency(start: Start, uri):
    """A cut-out has an alpha channel with something in it."""
    async with start() as web:
        result = (await result_of(web, {"image_url": uri}, "fal-ai/birefnet/v2")).json()
        data = (await web.get(result["image"]["url"])).content

    with Image.open(io.BytesIO(data)) as image:
        assert image.getchannel("A").getextrema() == (0, 255)


async def test_sync_mode_puts_the_picture_into_the_answer(start: Start, uri):
    """A data URI comes back where the model lists `sync_mode`."""
    async with start() as web:
        result = (await result_of(web, {"image_url": uri, "sync_mode": True}, "fal-ai/bria/background/remove")).json()

    assert result["image"]["url"].startswith("data:image/png;base64,")


AUTHORIZATIONS = {
    "none": ("", "Authentication is required"),
    "bearer": ("Bearer abc", "Invalid Key Authorization header format"),
    "no secret": ("Key abc", "Invalid Key Authorization header format"),
    "bad": ("Key bad:secret", "No user found for Key ID and Secret"),
}


@pytest.mark.parametrize("name", AUTHORIZATIONS)
async def test_keys_are_checked(start: Start, name: str):
    """Each wrong key has fal's own 401."""
    header, words = AUTHORIZATIONS[name]
    async with start() as web:
        response = await web.post(f"/queue/{CLARITY}", json={}, headers={"Authorization": header})

    assert response.status_code == 401
    assert words in response.json()["detail"]


async def test_cancel_ends_what_waits_and_says_when_it_is_too_late(start: Start, uri):
    """202 while it waits and never billed, 400 once it is done, 404 for another id."""
    async with start("stalled_queue@1") as web:
        stalled, done = await submit(web, {"image_url": uri}), await submit(web, {"image_url": uri})
        await until_done(web, done)
        first, second = await web.put(stalled["cancel_url"]), await web.put(done["cancel_url"])
        third = await web.put(done["cancel_url"].replace(done["request_id"], "none"))
        result = await web.get(stalled["response_url"])
        charged = await bill(web)

    assert (first.status_code, first.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert (second.status_code, second.json()) == (400, {"status": "ALREADY_COMPLETED"})
    assert (third.status_code, third.json()) == (404, {"status": "NOT_FOUND"})
    assert (result.status_code, result.json()["error_type"]) == (499, "client_cancelled")
    assert [row["id"] for row in charged["jobs"]] == [done["request_id"]]


async def test_start_timeout_ends_what_waits_too_long(start: Start, uri):
    """The customer's own deadline is a 504 that says so, also in the status."""
    async with start("stalled_queue") as web:
        told = await submit(web, {"image_url": uri}, headers={"X-Fal-Request-Timeout": "0.02"})
        status = await until_done(web, told)
        result = await web.get(told["response_url"])

    assert status.json()["error_type"] == "request_timeout"
    assert (result.status_code, result.headers["x-fal-request-timeout-type"]) == (504, "user")


async def test_runner_is_lost_once(start: Start, uri):
    """The queue tries again by itself, unless it was told not to; then the flat error is in status and result."""
    async with start() as web:
        await web.post("/_sim/faults", json={"faults": ["runner_lost@1"]})
        again = await result_of(web, {"image_url": uri})
        await web.post("/_sim/faults", json={"faults": ["runner_lost@1"]})
        told = await submit(web, {"image_url": uri}, headers={"X-Fal-No-Retry": "1"})
        status = await until_done(web, told)
        result = await web.get(told["response_url"])
        counted = await counters(web)

    assert again.status_code == 200
    assert status.json()["error_type"] == result.json()["error_type"] == "runner_disconnected"
    assert result.headers["x-fal-error-type"] == "runner_disconnected"
    assert (result.status_code, counted[CLARITY]["attempt"]) == (503, 3)


async def test_concurrency_makes_direct_calls_429_and_queued_ones_wait(start: Start, uri):
    """Over the limit, a run is refused and a queued request has others before it."""
    async with start(concurrency=1, speed=4) as web:
        first = await submit(web, {"image_url": uri})
        await until(web, first["status_url"], lambda answer: answer.json()["status"] == "IN_PROGRESS")
        await submit(web, {"image_url": uri})
        behind = await submit(web, {"image_url": uri})
        refused = await web.post(f"/run/{CLARITY}", json={"image_url": uri})

    assert behind["queue_position"] == 1
    assert (refused.status_code, refused.json()["type"]) == (429, "concurrent_requests_limit")


SUBMIT_FAULTS = {
    "bad_key": (401, "No user found"),
    "no_credit": (403, "Exhausted balance"),
    "rate_limit": (429, "concurrent_requests_limit"),
    "rate_limit_no_header": (429, "concurrent_requests_limit"),
    "submit_500": (500, "Internal Server Error"),
    "html_error": (502, "nginx"),
}


@pytest.mark.parametrize("fault", SUBMIT_FAULTS)
async def test_submit_is_turned_away(start: Start, uri, fault: str):
    """A fault of the submit strikes as often as it was told to, starts no job and bills nothing."""
    status, words = SUBMIT_FAULTS[fault]
    async with start(f"{fault}@1") as web:
        refused = await web.post(f"/queue/{CLARITY}", json={"image_url": uri})
        taken = await web.post(f"/queue/{CLARITY}", json={"image_url": uri})
        jobs = (await web.get("/_sim/jobs")).json()

    assert (refused.status_code, taken.status_code) == (status, 200)
    assert words in refused.text
    assert ("retry-after" in refused.headers) == (fault == "rate_limit")
    assert len(jobs) == 1


async def test_lost_submit_runs_and_is_billed(start: Start, uri):
    """The connection closes without an answer, yet the job runs to its end and stands on the bill as unanswered."""
    async with start("submit_lost") as web:
        with pytest.raises(httpx.RemoteProtocolError):
            await web.post(f"/queue/{CLARITY}", json={"image_url": uri})
        charged = (await until(web, "/_sim/bill", lambda answer: bool(answer.json()["jobs"]))).json()
        jobs = (await web.get("/_sim/jobs")).json()

    assert charged["unanswered"] == [jobs[0]["id"]]


async def test_status_fails_every_second_time(start: Start, uri):
    """The first poll is answered, the second is 500, and so on."""
    async with start("status_500_every_second", "stalled_queue") as web:
        told = await submit(web, {"image_url": uri})
        codes = [(await web.get(told["status_url"])).status_code for _ in range(4)]

    assert codes == [202, 500, 202, 500]


RESULT_FAULTS = {
    "result_404": ([404, 404, 404], 1),
    "result_404=1": ([404, 200, 200], 1),
    "result_500": ([500, 500, 500], 0),
    "result_500=1": ([500, 200, 200], 1),
    "still_in_progress": ([400, 400, 200], 1),
    "cuda_oom": ([500, 500, 500], 0),
    "content_policy": ([422, 422, 422], 0),
}


@pytest.mark.parametrize("fault", RESULT_FAULTS)
async def test_result_fails(start: Start, uri, fault: str):
    """The status says COMPLETED, the result says otherwise; billed is what was made."""
    expected, charges = RESULT_FAULTS[fault]
    async with start(fault) as web:
        told = await submit(web, {"image_url": uri})
        status = await until_done(web, told)
        codes = [(await web.get(told["response_url"])).status_code for _ in expected]
        charged = await bill(web)

    assert "error" not in status.json()
    assert codes == expected
    assert len(charged["jobs"]) == charges


@pytest.mark.parametrize("fault", ["nsfw", "black"])
async def test_picture_is_black(start: Start, uri, fault: str):
    """Flagged or not, a black picture of the right size comes with status 200 and is billed."""
    async with start(fault) as web:
        result = (await result_of(web, {"image_url": uri})).json()
        data = (await web.get(result["image"]["url"])).content
        charged = await bill(web)

    with Image.open(io.BytesIO(data)) as image:
        assert (image.size, image.getextrema()) == ((48, 32), ((0, 0), (0, 0), (0, 0)))
    assert result.get("has_nsfw_concepts") == ([True] if fault == "nsfw" else None)
    assert len(charged["jobs"]) == 1


async def test_picture_is_damaged_or_of_another_size(start: Start, uri, png):
    """`corrupt` has all bytes and cannot be read, `truncated_download` lacks half of them, `wrong_size` is another size."""
    got: dict[str, tuple[int, bytes]] = {}
    async with start() as web:
        for fault in ("corrupt", "truncated_download", "wrong_size", "wrong_size=input"):
            await web.post("/_sim/faults", json={"faults": [fault]})
            image = (await result_of(web, {"image_url": uri})).json()["image"]
            got[fault] = (image["file_size"], (await web.get(image["url"])).content)

    announced, data = got["corrupt"]
    assert len(data) == announced
    with pytest.raises((OSError, SyntaxError)):
        size_of(data)
    announced, data = got["truncated_download"]
    assert len(data) == announced // 2
    assert size_of(got["wrong_size"][1]) == (24, 16)
    assert got["wrong_size=input"][1] == png


async def until_cut(response: httpx.Response) -> bytes:
    """What came before the connection was closed in the middle of the body."""
    received = bytearray()
    try:
        async for piece in response.aiter_raw():
            received += piece
    except httpx.RemoteProtocolError:
        return bytes(received)
    raise AssertionError("the body came whole")


async def test_download_is_cut_twice_and_can_be_resumed(start: Start, uri):
    """Two downloads end at half of what they announced; a third, or one that goes on from there, gets the rest."""
    async with start("cut_download_twice") as web:
        image = (await result_of(web, {"image_url": uri})).json()["image"]
        cut: list[bytes] = []
        for _ in range(2):
            async with web.stream("GET", image["url"]) as response:
                cut.append(await until_cut(response))
                tag = response.headers["etag"]
        headers = {"Range": f"bytes={len(cut[1])}-", "If-Range": tag}
        rest = await web.get(image["url"], headers=headers)
        whole = await web.get(image["url"])

    assert [len(piece) for piece in cut] == [image["file_size"] // 2] * 2
    assert rest.status_code == 206
    assert cut[1] + rest.content == whole.content
    assert size_of(whole.content) == (48, 32)


async def test_download_is_slow_or_too_late(start: Start, uri):
    """`slow_download` takes the seconds that it was told; an expired file is 404."""
    loop = asyncio.get_running_loop()
    async with start("slow_download=0.1@1") as web:
        image = (await result_of(web, {"image_url": uri})).json()["image"]
        began = loop.time()
        assert (await web.get(image["url"])).status_code == 200
        took_s = loop.time() - began
        await web.post("/_sim/faults", json={"faults": ["expired_result"]})
        gone = (await result_of(web, {"image_url": uri})).json()["image"]
        response = await web.get(gone["url"])

    assert took_s >= 0.09
    assert response.status_code == 404


async def test_foreign_addresses_are_given_on_demand(start: Start, uri):
    """Addresses on somebody else's host, and a redirect to it, for proving that keys stay at home."""
    async with start("foreign_urls=https://evil.example@1") as web:
        foreign = await submit(web, {"image_url": uri})
        await web.post("/_sim/faults", json={"faults": ["redirect=https://evil.example", "foreign_result=https://evil.example"]})
        told = await submit(web, {"image_url": uri})
        redirected = await web.get(told["status_url"])
        result = await until(web, told["response_url"], lambda answer: answer.status_code == 200)

    assert foreign["status_url"].startswith("https://evil.example/fal-ai/")
    assert redirected.headers["location"].startswith("https://evil.example/")
    assert result.json()["image"]["url"].startswith("https://evil.example/files/")


async def test_key_sent_to_a_file_is_noticed(start: Start, uri):
    """Files need no key; a client that brings one is counted."""
    async with start() as web:
        image = (await result_of(web, {"image_url": uri})).json()["image"]
        async with httpx.AsyncClient() as plain:
            await plain.get(image["url"])
        clean = (await counters(web))[CLARITY]
        await web.get(image["url"])
        leaked = (await counters(web))[CLARITY]

    assert (clean["file"], clean.get("file with a key")) == (1, None)
    assert (leaked["file"], leaked["file with a key"]) == (2, 1)


class Mailbox:
    """Whoever waits for webhooks; refuses the first delivery."""

    def __init__(self) -> None:
        self.received: list[Request] = []
        self.complete = asyncio.Event()

    async def handle(self, request: Request) -> Answer:
        self.received.append(request)
        if len(self.received) == 2:
            self.complete.set()
        return Answer(500 if len(self.received) == 1 else 200)

    async def close(self) -> None:
        pass


async def test_webhook_is_signed_and_repeated(start: Start, uri):
    """A webhook that was not acknowledged comes again; its signature fits the published key."""
    mailbox = Mailbox()
    async with serving(mailbox) as target, start() as web:
        told = await submit(web, {"image_url": uri}, params={"fal_webhook": f"{target}/hook"})
        await mailbox.complete.wait()
        published = (await web.get("/rest/.well-known/jwks.json")).json()["keys"][0]

    hook = mailbox.received[1]
    headers = {name.removeprefix("x-fal-webhook-"): value for name, value in hook.headers.items()}
    message = "\n".join((headers["request-id"], headers["user-id"], headers["timestamp"], hashlib.sha256(hook.body).hexdigest()))
    key = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(published["x"] + "="))
    key.verify(bytes.fromhex(headers["signature"]), message.encode())
    assert hook.json()["request_id"] == headers["request-id"] == told["request_id"]
    assert (hook.json()["status"], hook.json()["payload"]["image"]["width"]) == ("OK", 48)
    assert told["gateway_request_id"]


async def test_prices_are_those_of_the_catalog(start: Start):
    """The pricing API tells unit and price of the endpoints that it knows."""
    async with start() as web:
        answer = (await web.get("/api/v1/models/pricing", params={"endpoint_id": f"{CLARITY},fal-ai/none"})).json()

    assert answer["prices"] == [{"endpoint_id": CLARITY, "unit_price": 0.03, "unit": "megapixels", "currency": "USD"}]


async def test_hosts_are_known_by_name_and_through_the_proxy(start: Start, uri):
    """Asked under fal's own host names it answers with them; JavaScript's proxy header works as the address does."""
    async with start() as web:
        by_name = await web.post(f"/{CLARITY}", json={"image_url": uri}, headers={"Host": "queue.fal.run"})
        proxied = await web.post(
            "/proxy", json={"image_url": uri}, headers={"x-fal-target-url": f"https://queue.fal.run/{CLARITY}"}
        )

    assert by_name.json()["status_url"].startswith(f"http://queue.fal.run/{CLARITY}/requests/")
    assert proxied.json()["status_url"].startswith(f"{web.base_url}/queue/{CLARITY}/requests/")


async def test_faults_can_be_switched_and_wrong_ones_are_refused(start: Start):
    """Unknown faults change nothing and are told the known ones; a percentage strikes about so often."""
    async with start("rate_limit@20%") as web:
        codes = [(await web.post(f"/queue/{CLARITY}", json={})).status_code for _ in range(100)]
        wrong = await web.post("/_sim/faults", json={"faults": ["no_such_thing"]})
        known = (await web.get("/_sim/faults")).json()

    assert 10 <= codes.count(429) <= 30
    assert wrong.status_code == 400
    assert list(known["active"]) == ["rate_limit@20%"]
    assert known["known"] == list(FAULTS)
