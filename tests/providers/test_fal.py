"""What fal's queue and storage say, and what is made of it. Answers are those of `exchanges/fal_*.json`, with their sources."""

import asyncio
import base64
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import pytest

from normalization.plan import Call
from normalization.request import ImageRef
from providers import fal, http
from providers.base import Done, ImagePart, ImageParts, RemoteImage, Running, Ticket
from providers.drive import Unanswered, drive, follow
from providers.failures import FailureKind, ProviderFailure
from providers.fal import FalProvider, FalSettings
from providers.spool import Spool
from tests.providers.conftest import Serve, answer, read_request
from tests.providers.contract import IMAGE, ignore, image_part, png

_FOLDER = Path(__file__).parent / "exchanges"
_QUEUE: dict[str, Any] = json.loads((_FOLDER / "fal_queue.json").read_text())
_OUTPUTS: dict[str, Any] = json.loads((_FOLDER / "fal_outputs.json").read_text())
_ERRORS: dict[str, Any] = json.loads((_FOLDER / "fal_errors.json").read_text())

_KEY = "key-id:key-secret"
_ID = "019e1951-c778-7120-9c82-16efcf40ec82"
_PATH = f"fal-ai/flux/requests/{_ID}"
_NOW = datetime(2026, 1, 2, tzinfo=UTC)
_URI = "data:image/png;base64," + base64.b64encode(png()).decode()
_DONE = _OUTPUTS["clarity-upscaler"]["output"]

Said: TypeAlias = tuple[int, object] | tuple[int, object, dict[str, str]] | None
Start: TypeAlias = Callable[..., Awaitable[FalProvider]]


class Server:
    """fal in all its parts, each answering from a list, the last again and again. None: it hangs up once it was asked."""

    def __init__(self, **routes: Said | list[Said]) -> None:
        every: dict[str, Said | list[Said]] = {
            "submit": (200, _QUEUE["submitted"]),
            "status": (200, _QUEUE["completed"]),
            "result": (200, _DONE),
            "cancel": (202, _QUEUE["cancelled"]),
            "initiate": (200, {"upload_url": "SERVER/signed/1?signature=s", "file_url": "https://v3.fal.media/files/in.png"}),
            "put": (200, {}),
            "token": (200, {"token": "short-lived", "token_type": "Bearer", "base_url": "https://v3.fal.media"}),
            "cdn": (200, {"access_url": "https://v3.fal.media/files/b/in.png"}),
            **routes,
        }
        self.routes = {name: said if isinstance(said, list) else [said] for name, said in every.items()}
        self.url = ""
        self.seen: list[str] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.free = asyncio.Event()
        """What is held back where a test clears it."""
        self.free.set()
        self.asked = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await read_request(reader)
            first, *lines = head.decode().strip().split("\r\n")
            method, path, _ = first.split(" ", 2)
            name = _name(method, path)
            self.seen.append(name)
            self.paths.append(path)
            self.headers.append({key.lower(): value for key, _, value in (line.partition(": ") for line in lines)})
            self.bodies.append(body)
            self.asked.set()
            await self.free.wait()
            answers = self.routes[name]
            said = answers.pop(0) if len(answers) > 1 else answers[0]
            if said is None:
                return
            status, document, headers = (*said, cast("dict[str, str]", {}))[:3]
            text = document if isinstance(document, bytes) else json.dumps(document).encode()
            text = text.replace(b"@QUEUE", f"{self.url}/queue".encode()).replace(b"SERVER", self.url.encode())
            writer.write(answer(text, f"{status} Whatever", *(f"{key}: {value}" for key, value in headers.items())))

    def of(self, name: str) -> tuple[str, dict[str, str], bytes]:
        """The first request of a kind."""
        index = self.seen.index(name)
        return self.paths[index], self.headers[index], self.bodies[index]


def _name(method: str, path: str) -> str:
    for part, name in (("/signed/", "put"), ("/initiate", "initiate"), ("/auth/token", "token"), ("/cdn/", "cdn")):
        if part in path:
            return name
    if method == "POST":
        return "submit"
    return "cancel" if method == "PUT" else "status" if path.endswith("/status") else "result"


async def _no_nap(_: float) -> None:
    await asyncio.sleep(0)


def _settings(url: str) -> FalSettings:
    return FalSettings(f"{_KEY}\n", f"{url}/queue/", f"{url}/run", f"{url}/rest", f"{url}/cdn", f"{url}/api", False, 3600)


@pytest.fixture
def start(serve: Serve, client: http.AsyncClient, spool: Spool) -> Start:
    """Start a server, and make a provider for it."""

    async def start(server: Server, **changes: object) -> FalProvider:
        server.url = await serve(server)
        settings = replace(_settings(server.url), **cast("dict[str, Any]", changes))
        return FalProvider(settings, client=client, now=lambda: _NOW, sleep=_no_nap, spool=spool, start_timeout_s=90)

    return start


def _call(**payload: object) -> Call:
    return Call("fal-ai/flux/dev/image-to-image", MappingProxyType(cast("dict[str, Any]", {"image_url": IMAGE, **payload})))


_TICKET = Ticket("fal", "fal-ai/flux/dev/image-to-image", _PATH, _NOW)


async def _run(provider: FalProvider, images: ImageParts, call: Call | None = None) -> Done:
    return await drive(provider, call or _call(), images, deadline_s=30, on_ticket=ignore, sleep=_no_nap)


async def _fails(work: Awaitable[object]) -> ProviderFailure:
    with pytest.raises(ProviderFailure) as failed:
        await work
    return failed.value


def _large(spool: Spool) -> ImagePart:
    return image_part(spool, png() + b"\0" * (fal._INLINE_BYTES + 1))  # pyright: ignore[reportPrivateUsage] - the limit itself


# The road


async def test_a_call_is_queued_polled_and_fetched(start: Start, spool: Spool) -> None:
    """Submitted to the whole path, followed under owner and application, the picture inside, the result left at its address."""
    headers = {"x-fal-billable-units": "4.19"}
    server = Server(
        status=[(202, _QUEUE["queued"]), (202, _QUEUE["running"]), (200, _QUEUE["completed"])], result=(200, _DONE, headers)
    )
    done = await _run(await start(server), {IMAGE: image_part(spool)}, _call(creativity=0.5))
    assert server.seen == ["submit", "status", "status", "status", "result"]
    assert server.paths[0] == "/queue/fal-ai/flux/dev/image-to-image"
    assert server.paths[-2:] == [f"/queue/{_PATH}/status", f"/queue/{_PATH}"]
    assert json.loads(server.bodies[0]) == {"image_url": _URI, "creativity": 0.5}
    assert done.outputs == (RemoteImage(url=_OUTPUTS["clarity-upscaler"]["urls"][0]),)
    assert done.usage.units == Decimal("4.19")
    assert done.usage.reported == {"x-fal-billable-units": "4.19", "inference_time": "3.42"}


async def test_the_queue_is_told_what_matters(start: Start, spool: Spool) -> None:
    """Key, deadline to start, lifetime, and by default no history and no retries of fal's own."""
    server = Server()
    await (await start(server)).submit(_call(), {IMAGE: image_part(spool)})
    headers = server.headers[0]
    assert headers["authorization"] == f"Key {_KEY}"
    assert headers["x-fal-request-start-timeout"] == "90"
    assert json.loads(headers["x-fal-object-lifecycle-preference"]) == {"expiration_duration_seconds": 3600}
    assert headers["x-fal-store-io"] == "0"
    assert headers["x-fal-no-retry"] == "1"


async def test_fal_can_be_asked_for_webhooks(serve: Serve, client: http.AsyncClient) -> None:
    """The address travels in the query."""
    server = Server()
    server.url = await serve(server)
    provider = FalProvider(_settings(server.url), client=client, webhook_url="https://gateway.example/hooks?a=1&b=2")
    await provider.submit(Call("fal-ai/flux", {}), {})
    assert server.paths == ["/queue/fal-ai/flux?fal_webhook=https%3A%2F%2Fgateway.example%2Fhooks%3Fa%3D1%26b%3D2"]


async def test_fal_may_retry_where_nobody_else_could_take_over(start: Start, spool: Spool) -> None:
    """Alone, fal's own retries are worth waiting for; and a history is kept where the operator wants one."""
    server = Server()
    await (await start(server, store_io=True)).submit(_call(), {IMAGE: image_part(spool)}, alone=True)
    assert "x-fal-no-retry" not in server.headers[0]
    assert "x-fal-store-io" not in server.headers[0]


async def test_a_ticket_is_the_path_of_the_result(start: Start, spool: Spool) -> None:
    """It has no host, and is enough to go on."""
    server = Server()
    ticket = await (await start(server)).submit(_call(), {IMAGE: image_part(spool)})
    assert ticket == _TICKET
    assert (await follow(await start(server), ticket, deadline_s=5)).outputs


async def test_an_address_that_ends_in_response_is_used_as_it_is(start: Start, spool: Spool) -> None:
    """Status and cancellation stand beside it, not below."""
    server = Server(submit=(200, _QUEUE["submitted"] | {"response_url": f"@QUEUE/{_PATH}/response"}))
    provider = await start(server)
    ticket = await provider.submit(_call(), {IMAGE: image_part(spool)})
    await provider.poll(ticket)
    await provider.cancel(ticket)
    assert server.paths[1:] == [f"/queue/{_PATH}/status", f"/queue/{_PATH}/response", f"/queue/{_PATH}/cancel"]


@pytest.mark.parametrize(
    "url",
    [
        f"https://evil.example/queue/{_PATH}",
        f"SERVER/elsewhere/{_PATH}",
        f"@QUEUE/../secret/requests/{_ID}",
        f"@QUEUE/{_PATH}?token=1",
        f"@QUEUE.evil.example/{_PATH}",
        "@QUEUE/other/app/requests/another",
        "file:///etc/passwd",
        7,
        None,
    ],
)
async def test_the_key_stays_with_the_configured_host(start: Start, spool: Spool, url: object) -> None:
    """Whatever address the answer names, the result is asked for under the queue's."""
    server = Server(submit=(200, _QUEUE["submitted"] | {"response_url": url}))
    ticket = await (await start(server)).submit(_call(), {IMAGE: image_part(spool)})
    assert ticket.id == _PATH


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        ("fal-ai/flux", "fal-ai/flux"),
        ("fal-ai/flux/dev/image-to-image", "fal-ai/flux"),
        ("workflows/me/mine/deep", "workflows/me/mine"),
        ("110602490-my-app", "110602490/my-app"),
    ],
)
async def test_requests_are_kept_under_owner_and_application(start: Start, endpoint: str, path: str) -> None:
    """Also where that is derived, and for namespaces and old names."""
    provider = await start(Server(submit=(200, {"request_id": "r1"})))
    assert (await provider.submit(Call(endpoint, {"prompt": "a hat"}), {})).id == f"{path}/requests/r1"


async def test_redirects_are_not_followed(start: Start, spool: Spool, serve: Serve) -> None:
    """Not by a poll either: the key would go along."""
    other = Server()
    other.url = await serve(other)
    moved: Said = (307, {}, {"Location": f"{other.url}/queue/x"})
    provider = await start(Server(submit=moved, status=moved, cancel=moved))
    assert (await _fails(provider.submit(_call(), {IMAGE: image_part(spool)}))).kind is FailureKind.TRANSIENT
    assert isinstance(await _fails(provider.poll(_TICKET)), Unanswered)
    await _fails(provider.cancel(_TICKET))
    assert other.seen == []


async def test_without_a_key_it_takes_nothing(start: Start) -> None:
    """And says where to put one; an empty one is none."""
    server = Server()
    for key in (None, " \n"):
        provider = await start(server, key=key)
        assert provider.refusal("fal-ai/flux") == "fal: no key is set; see FAL_KEY"
        for asked in (provider.submit(_call(), {}), provider.poll(_TICKET), provider.cancel(_TICKET)):
            assert (await _fails(asked)).kind is FailureKind.CREDENTIAL
    assert (await start(server)).refusal("fal-ai/flux") is None
    assert server.seen == []


def test_the_key_is_not_shown() -> None:
    """Settings may be printed."""
    assert "key-secret" not in repr(_settings("http://fal"))


# Submits that fail


async def test_a_lost_submit_is_not_repeated(start: Start, spool: Spool) -> None:
    """The connection broke after it was sent: fal may have the work."""
    server = Server(submit=None)
    failure = await _fails(_run(await start(server), {IMAGE: image_part(spool)}))
    assert failure.kind is FailureKind.UNKNOWN
    assert server.seen == ["submit"]


async def test_an_unreachable_queue_has_nothing(start: Start, spool: Spool, client: http.AsyncClient, serve: Serve) -> None:
    """Refused before anything was sent: the next offer is safe."""
    provider = FalProvider(_settings("http://127.0.0.1:1"), client=client)
    assert (await _fails(provider.submit(_call(), {IMAGE: image_part(spool)}))).kind is FailureKind.TRANSIENT


@pytest.mark.parametrize("document", [b"<html>", {}, [], {"request_id": None}, {"request_id": "../x"}, b'{"request_id": '])
async def test_a_receipt_that_names_no_request_is_unknown(start: Start, spool: Spool, document: object) -> None:
    """It was taken, and cannot be followed."""
    provider = await start(Server(submit=(200, document)))
    assert (await _fails(provider.submit(_call(), {IMAGE: image_part(spool)}))).kind is FailureKind.UNKNOWN


# Errors


_CASES = [pytest.param(case, id=name) for name, case in _ERRORS.items() if name != "source"]


@pytest.mark.parametrize("case", _CASES)
async def test_errors_are_sorted(start: Start, spool: Spool, case: dict[str, Any]) -> None:
    """By fal's code first, by the status second; all five forms, and the HTML of what stands between."""
    said: Said = (case["status"], case["html"].encode() if "html" in case else case["body"], case.get("headers", {}))
    provider = await start(Server(**{case["at"]: said}))
    failure = await _fails(_run(provider, {IMAGE: image_part(spool)}))
    assert failure.kind == case["kind"]
    assert failure.param == case.get("param")
    assert failure.retry_after_s == case.get("retry_after_s")
    assert case.get("says", "") in failure.public
    assert not isinstance(failure, Unanswered)
    assert re.fullmatch(r"[\w ,;:'-]+", failure.public), "our own words"
    assert "SECRET" not in failure.detail


async def test_what_fal_says_is_for_the_operator(start: Start) -> None:
    """The detail has it, without key, pictures and signatures; the caller reads other words."""
    text = f"weird {_KEY} and {_URI} from https://host.example/a.png?X-Signature=abc"
    failure = await _fails((await start(Server(result=(418, {"detail": text})))).poll(_TICKET))
    assert failure.public == "fal answered with status 418"
    assert "weird [key] and data:… from https://host.example/a.png?…" in failure.detail


async def test_an_error_that_repeats_the_whole_request_is_understood(start: Start) -> None:
    """Megabytes of `input` are read past and not kept."""
    entry = {
        "loc": ["body", "strength"],
        "msg": "x",
        "type": "greater_than",
        "ctx": {"gt": 0.5},
        "input": {"image_url": "A" * 5_000_000},
    }
    failure = await _fails((await start(Server(result=(422, {"detail": [entry]})))).poll(_TICKET))
    assert failure.public == "the model on fal refuses the input: strength must be more than 0.5"
    assert len(failure.detail) < 300


@pytest.mark.parametrize("loc", [["body", "a b; DROP"], ["body", "x" * 100], "image_url", None, [None, {}], ["body"]])
async def test_odd_places_name_no_parameter(start: Start, loc: object) -> None:
    """Only what can be a field is repeated to the caller."""
    failure = await _fails((await start(Server(result=(422, {"detail": [{"loc": loc, "msg": "m", "type": "t"}]})))).poll(_TICKET))
    assert (failure.kind, failure.param) == (FailureKind.CALLER_FAULT, None)
    assert failure.public == "the model on fal refuses the input"


@pytest.mark.parametrize(
    "document", [b"", b"null", b"[]", b'{"detail": null}', b'{"detail": []}', b'{"detail": [7]}', b"\xff", b"[" * 9999]
)
async def test_errors_without_sense_are_errors(start: Start, document: bytes) -> None:
    """Whatever the body is, the status sorts it."""
    assert (await _fails((await start(Server(result=(422, document)))).poll(_TICKET))).kind is FailureKind.CALLER_FAULT


# Polls


@pytest.mark.parametrize(
    "said",
    [
        None,
        (500, {"detail": "Internal Server Error"}),
        (502, b"<html>"),
        (404, {"status": "NOT_FOUND"}),
        (200, b"<html>"),
        (200, {"status": "DREAMING"}),
        (200, []),
    ],
)
async def test_a_poll_without_an_answer_says_nothing_of_the_work(start: Start, spool: Spool, said: Said) -> None:
    """It is asked again; in the end the work is stopped, and may have been billed."""
    server = Server(status=[said, said, (200, _QUEUE["completed"])])
    assert (await _run(await start(server), {IMAGE: image_part(spool)})).outputs
    server = Server(status=said)
    failure = await _fails(_run(await start(server), {IMAGE: image_part(spool)}))
    assert failure.kind is FailureKind.TIMEOUT
    assert server.seen == ["submit", *["status"] * 5, "cancel"]


async def test_polls_that_come_too_often_wait(start: Start) -> None:
    """429 on a status is about asking, not about the work."""
    failure = await _fails((await start(Server(status=(429, {}, {"Retry-After": "3"})))).poll(_TICKET))
    assert isinstance(failure, Unanswered)
    assert failure.retry_after_s == 3


async def test_a_key_that_was_withdrawn_ends_the_polls(start: Start) -> None:
    """Asking again would not help."""
    failure = await _fails((await start(Server(status=(401, {"detail": "No user found for Key ID and Secret"})))).poll(_TICKET))
    assert failure.kind is FailureKind.CREDENTIAL
    assert not isinstance(failure, Unanswered)


async def test_waiting_and_running_differ(start: Start) -> None:
    """In the queue nothing is done yet; after that fal does not say how much."""
    provider = await start(Server(status=[(202, _QUEUE["queued"]), (202, _QUEUE["running"])]))
    assert await provider.poll(_TICKET) == Running(0.0)
    assert await provider.poll(_TICKET) == Running(None)


async def test_a_result_that_is_not_there_yet_is_asked_for_again(start: Start) -> None:
    """The status may be ahead of the result, for a moment."""
    server = Server(result=[(400, _QUEUE["not_yet"]), (400, _QUEUE["not_yet"]), (200, _DONE)])
    assert isinstance(await (await start(server)).poll(_TICKET), Done)
    assert server.seen == ["status", "result", "result", "result"]
    server = Server(result=(400, _QUEUE["not_yet"]))
    assert isinstance(await _fails((await start(server)).poll(_TICKET)), Unanswered)
    assert server.seen.count("result") == 4


@pytest.mark.parametrize(
    "said", [None, (500, {"detail": "Internal Server Error"}), (502, b"<html>"), (429, {}), (200, b"{"), (200, b'{"a": "')]
)
async def test_a_result_that_did_not_arrive_is_asked_for_again(start: Start, spool: Spool, said: Said) -> None:
    """It is paid for: a fault of the road does not end it."""
    server = Server(result=[said, (200, _DONE)])
    assert (await _run(await start(server), {IMAGE: image_part(spool)})).outputs


async def test_an_error_in_the_status_counts_where_the_result_has_none(start: Start) -> None:
    """The result of work that never ran may be unknown to the queue."""
    provider = await start(Server(status=(200, _QUEUE["completed_with_error"]), result=(404, _QUEUE["not_found"])))
    failure = await _fails(provider.poll(_TICKET))
    assert (failure.kind, failure.public) == (FailureKind.TRANSIENT, "fal did not get to the work in time")


# Results


@pytest.mark.parametrize("name", [name for name in _OUTPUTS if name != "source"])
async def test_pictures_are_found_in_every_output(start: Start, name: str) -> None:
    """One or a list, as an object or an address; masks, prompts and flagged pictures are none."""
    done = await (await start(Server(result=(200, _OUTPUTS[name]["output"])))).poll(_TICKET)
    assert isinstance(done, Done)
    assert [output.url for output in done.outputs] == _OUTPUTS[name]["urls"]


@pytest.mark.parametrize("output", [{"image": {"url": _URI}}, {"images": [_URI]}, [_URI], _URI])
async def test_pictures_inside_the_answer_go_to_files(start: Start, spool: Spool, output: object) -> None:
    """As `sync_mode` gives them."""
    done = await (await start(Server(result=(200, output)))).poll(_TICKET)
    assert isinstance(done, Done)
    (picture,) = done.outputs
    assert picture.path is not None
    assert picture.path.read_bytes() == png()


@pytest.mark.parametrize(
    "output", [None, {}, [], {"image": None}, {"images": []}, {"image": {"url": None}}, {"image": {"url": "ftp://x/y"}}, "x"]
)
async def test_success_without_a_picture_is_a_failure(start: Start, output: object) -> None:
    """The operator hears what it was billed as."""
    provider = await start(Server(result=(200, output, {"x-fal-billable-units": "1"})))
    failure = await _fails(provider.poll(_TICKET))
    assert (failure.kind, failure.public) == (FailureKind.TRANSIENT, "fal finished without a picture")
    assert "billable units 1" in failure.detail


@pytest.mark.parametrize("flags", [[True, True], [True], True])
async def test_flagged_pictures_are_refusals(start: Start, spool: Spool, flags: object) -> None:
    """They come with 200, and black; their files do not stay."""
    output = {"images": [{"url": _URI}, {"url": "https://v3.fal.media/x.png"}], "has_nsfw_concepts": flags}
    failure = await _fails((await start(Server(result=(200, output)))).poll(_TICKET))
    assert failure.kind is FailureKind.CONTENT
    assert list(spool.folder.iterdir()) == []


@pytest.mark.parametrize("units", ["", "many", "-1", "NaN", "1e9999999999"])
async def test_units_without_sense_are_not_counted(start: Start, units: str) -> None:
    """They are kept as they were told."""
    done = await (await start(Server(result=(200, _DONE, {"x-fal-billable-units": units})))).poll(_TICKET)
    assert isinstance(done, Done)
    assert done.usage.units is None
    assert done.usage.reported.get("x-fal-billable-units", "") == units


# Cancelling


@pytest.mark.parametrize("said", [(202, _QUEUE["cancelled"]), (400, _QUEUE["cancelled_too_late"]), (404, _QUEUE["not_found"])])
async def test_cancelling_what_is_over_is_no_error(start: Start, said: Said) -> None:
    """It is one PUT, with the key."""
    server = Server(cancel=said)
    await (await start(server)).cancel(_TICKET)
    assert server.paths == [f"/queue/{_PATH}/cancel"]
    assert server.headers[0]["authorization"] == f"Key {_KEY}"


@pytest.mark.parametrize("said", [None, (500, {})])
async def test_a_cancellation_that_fails_says_so(start: Start, said: Said) -> None:
    """As a failure of the provider's, which the driver lets pass."""
    assert (await _fails((await start(Server(cancel=said))).cancel(_TICKET))).kind is FailureKind.TRANSIENT


# Uploads


async def test_a_large_picture_is_uploaded_first(start: Start, spool: Spool) -> None:
    """Under a name of ours, with its length and lifetime; the signed address does not get the key."""
    server, part = Server(), _large(spool)
    await (await start(server)).submit(_call(prompt="a hat"), {IMAGE: part})
    assert server.seen == ["initiate", "put", "submit"]
    path, headers, body = server.of("initiate")
    assert path == "/rest/storage/upload/initiate?storage_type=fal-cdn-v3"
    assert headers["authorization"] == f"Key {_KEY}"
    assert json.loads(headers["x-fal-object-lifecycle"]) == {"expiration_duration_seconds": 3600}
    assert json.loads(body) == {"file_name": "input.png", "content_type": "image/png"}
    path, headers, body = server.of("put")
    assert path == "/signed/1?signature=s"
    assert "authorization" not in headers
    assert (headers["content-length"], headers["content-type"]) == (str(part.size_bytes), "image/png")
    assert body == part.path.read_bytes()
    assert json.loads(server.bodies[-1]) == {"image_url": "https://v3.fal.media/files/in.png", "prompt": "a hat"}


async def test_pictures_count_together(start: Start, spool: Spool) -> None:
    """A list of them is uploaded where their sum is too large; each stays in its place."""
    second = ImageRef("image", 1)
    server = Server()
    call = Call("fal-ai/nano-banana/edit", {"image_urls": (IMAGE, second), "prompt": "a hat"})
    await (await start(server)).submit(call, {IMAGE: _large(spool), second: image_part(spool)})
    assert server.seen.count("put") == 2
    assert json.loads(server.bodies[-1])["image_urls"] == ["https://v3.fal.media/files/in.png"] * 2


async def test_one_upload_serves_all_calls_of_a_picture(start: Start, spool: Spool) -> None:
    """At the same time and later; another file is another upload."""
    server, part = Server(), _large(spool)
    provider = await start(server)
    await asyncio.gather(*(provider.submit(_call(seed=seed), {IMAGE: part}) for seed in range(4)))
    await provider.submit(_call(), {IMAGE: part})
    assert (server.seen.count("put"), server.seen.count("submit")) == (1, 5)
    await provider.submit(_call(), {IMAGE: _large(spool)})
    assert server.seen.count("put") == 2


async def test_an_upload_is_not_used_to_the_end_of_its_life(serve: Serve, client: http.AsyncClient, spool: Spool) -> None:
    """Half of it is for the queue."""
    server, part, clock = Server(), _large(spool), [_NOW]
    server.url = await serve(server)
    provider = FalProvider(_settings(server.url), client=client, now=lambda: clock[0])
    for minutes, uploads in ((0, 1), (29, 1), (31, 2)):
        clock[0] = _NOW + timedelta(minutes=minutes)
        await provider.submit(_call(), {IMAGE: part})
        assert server.seen.count("put") == uploads


async def test_only_so_many_uploads_are_remembered(start: Start, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten first."""
    monkeypatch.setattr(fal, "_REMEMBERED_UPLOADS", 2)
    monkeypatch.setattr(fal, "_INLINE_BYTES", 1)
    server, parts = Server(), [image_part(spool) for _ in range(3)]
    provider = await start(server)
    for part in (*parts, parts[2], parts[1], parts[0]):
        await provider.submit(_call(), {IMAGE: part})
    assert server.seen.count("put") == 4


async def test_whoever_leaves_does_not_take_the_upload_along(start: Start, spool: Spool) -> None:
    """Another call still waits for it; once nobody does, it ends."""
    server, part = Server(), _large(spool)
    server.free.clear()
    provider = await start(server)
    calls = [asyncio.create_task(provider.submit(_call(), {IMAGE: part})) for _ in range(2)]
    await server.asked.wait()
    calls[0].cancel()
    await asyncio.wait([calls[0]])
    server.free.set()
    await calls[1]
    assert server.seen.count("put") == 1
    server.free.clear()
    server.asked.clear()
    before = asyncio.all_tasks()
    last = asyncio.create_task(provider.submit(_call(), {IMAGE: _large(spool)}))
    await server.asked.wait()
    last.cancel()
    await asyncio.wait([last])
    assert not {task for task in asyncio.all_tasks() - before if "_upload" in repr(task)}


@pytest.mark.parametrize(
    "broken",
    [
        {"initiate": (500, {})},
        {"initiate": (200, {})},
        {"initiate": None},
        {"initiate": (200, {"upload_url": "http://10.0.0.1/x", "file_url": "https://v3.fal.media/a"})},
        {"put": (403, b"<Error/>")},
        {"put": None},
    ],
)
async def test_an_upload_falls_back_to_a_token(start: Start, spool: Spool, broken: dict[str, Said]) -> None:
    """The token goes to the configured CDN, and the key does not."""
    server, part = Server(**cast("dict[str, Any]", broken)), _large(spool)
    await (await start(server)).submit(_call(), {IMAGE: part})
    path, headers, body = server.of("cdn")
    assert path == "/cdn/files/upload"
    assert headers["authorization"] == "Bearer short-lived"
    assert (headers["x-fal-file-name"], headers["content-length"]) == ("input.png", str(part.size_bytes))
    assert "x-fal-object-lifecycle" in headers
    assert body == part.path.read_bytes()
    assert server.of("token")[0] == "/rest/storage/auth/token?storage_type=fal-cdn-v3"
    assert json.loads(server.bodies[-1]) == {"image_url": "https://v3.fal.media/files/b/in.png"}


async def test_a_failed_upload_submits_nothing_and_is_not_remembered(start: Start, spool: Spool) -> None:
    """Another offer is safe, and so is another try."""
    server, part = Server(put=[(500, {}), (200, {})], token=(500, {})), _large(spool)
    provider = await start(server)
    failures = await asyncio.gather(*(provider.submit(_call(), {IMAGE: part}) for _ in range(2)), return_exceptions=True)
    assert [cast("ProviderFailure", failure).kind for failure in failures] == [FailureKind.TRANSIENT] * 2
    assert "submit" not in server.seen
    await provider.submit(_call(), {IMAGE: part})
    assert server.seen.count("put") == 2


async def test_a_bad_key_at_the_storage_is_a_bad_key(start: Start, spool: Spool) -> None:
    """No other way of uploading would help."""
    server = Server(initiate=(401, {"detail": "No user found for Key ID and Secret"}))
    failure = await _fails((await start(server)).submit(_call(), {IMAGE: _large(spool)}))
    assert failure.kind is FailureKind.CREDENTIAL
    assert server.seen == ["initiate"]
