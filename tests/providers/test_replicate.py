"""What Replicate answers, and what is made of it; above all, that no create is made twice."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from pathlib import Path
from typing import Any, TypeAlias, cast

import pytest

from normalization.plan import Call
from normalization.request import ImageRef
from providers import http
from providers.base import Done, ImagePart, ImageParts, RemoteImage, Running, Ticket
from providers.drive import Unanswered, drive
from providers.failures import FailureKind, ProviderFailure
from providers.replicate import ReplicateProvider, ReplicateSettings, WebhookRefused, verify_webhook, webhook_key
from providers.spool import Spool
from tests.providers.conftest import Serve, answer, read_request
from tests.providers.contract import IMAGE, call, ignore, image_part, png

EXCHANGES = Path(__file__).parent / "exchanges"
VERSION = "dfad41707589d68ecdccd1dfa600d55a208f9310748e44bfe35b4a6291453d5e"
TOKEN = "r8_the-operators-own"
LARGE = 200_000
"""Bytes of a picture whose data URI is over the limit."""

_URI = "data:image/png;base64," + base64.b64encode(png()).decode()


def _exchange(name: str) -> Any:
    return json.loads((EXCHANGES / f"replicate_{name}.json").read_text())


PREDICTION = _exchange("prediction")
CREATED, SUCCEEDED, FILE = PREDICTION["created"], PREDICTION["succeeded"], _exchange("file")

Said: TypeAlias = "tuple[int, object] | tuple[int, object, list[str]] | None"


class Replicate:
    """Answers each kind of request from a list, the last again and again. None: it hangs up; `...`: it is silent."""

    def __init__(self, **routes: object) -> None:
        usual: dict[str, object] = {
            "create": (201, CREATED),
            "get": (200, SUCCEEDED),
            "cancel": (200, {**CREATED, "status": "canceled"}),
            "upload": (201, FILE),
            "delete": (204, b""),
            "list": (200, {"results": []}),
        }
        self.routes = {
            name: cast("list[Any]", said) if isinstance(said, list) else [said] for name, said in {**usual, **routes}.items()
        }
        self.seen: list[str] = []
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.asked = asyncio.Event()
        self.free = asyncio.Event()
        self.late: Said = None
        """What the silent ones get once it is free."""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await read_request(reader)
            name = _name(*head.decode().split(" ", 2)[:2])
            self.seen.append(name)
            self.heads.append(head.decode())
            self.bodies.append(body)
            self.asked.set()
            answers = self.routes[name]
            said = answers.pop(0) if len(answers) > 1 else answers[0]
            if callable(said):
                said = said(self)
            if said is ...:
                await self.free.wait()
                said = self.late
            if said is None:
                return
            status, document, *headers = said
            text = document if isinstance(document, bytes) else json.dumps(document).encode()
            writer.write(answer(text, f"{status} Whatever", *(headers[0] if headers else [])))

    def count(self, name: str) -> int:
        return self.seen.count(name)

    def sent(self, name: str, which: int = 0) -> tuple[str, bytes]:
        """Head and body of a request."""
        return [(head, body) for seen, head, body in zip(self.seen, self.heads, self.bodies, strict=True) if seen == name][which]

    def input(self, which: int = 0) -> dict[str, Any]:
        return json.loads(self.sent("create", which)[1])["input"]


def _name(method: str, path: str) -> str:
    path = path.partition("?")[0]
    if path.endswith("/cancel"):
        return "cancel"
    kind = "file" if path.startswith("/v1/files") else "prediction"
    one = path.count("/") > 2
    return {
        ("POST", "prediction", False): "create",
        ("GET", "prediction", True): "get",
        ("GET", "prediction", False): "list",
        ("POST", "file", False): "upload",
        ("DELETE", "file", True): "delete",
    }[method, kind, one]


async def _no_nap(_: float) -> None:
    await asyncio.sleep(0)


Start: TypeAlias = Callable[..., Awaitable[ReplicateProvider]]


@pytest.fixture
async def start(serve: Serve, client: http.AsyncClient, spool: Spool) -> AsyncIterator[Start]:
    """Start a scripted Replicate, and a provider for it."""
    providers: list[ReplicateProvider] = []

    async def start(server: Replicate, **more: Any) -> ReplicateProvider:
        options: dict[str, Any] = {"sleep": _no_nap, **more}
        settings = ReplicateSettings(TOKEN, f"{await serve(server)}/v1/", **options.pop("settings", {}))
        providers.append(ReplicateProvider(settings, client=client, spool=spool, **options))
        return providers[-1]

    yield start
    for provider in providers:
        await provider.close()


async def _run(provider: ReplicateProvider, spool: Spool, what: Call | None = None) -> Done:
    return await drive(provider, what or call(VERSION), _images(spool), deadline_s=30, on_ticket=ignore, sleep=_no_nap)


def _images(spool: Spool, size: int | None = None) -> ImageParts:
    content = None if size is None else bytes(index % 251 for index in range(size))
    return {IMAGE: image_part(spool, content)}


def _files(spool: Spool) -> list[Path]:
    return list(spool.folder.iterdir())


async def _settle(server: Replicate, name: str, count: int = 1) -> None:
    """Until something that nobody waits for has been asked."""
    while server.count(name) < count:
        server.asked.clear()
        await asyncio.wait_for(server.asked.wait(), 5)


def _ticket(prediction: str = "abc") -> Ticket:
    return Ticket("replicate", VERSION, prediction, datetime.now(UTC))


def _made(payload: object, at: datetime | None = None, **more: object) -> dict[str, object]:
    """A prediction as a list shows it."""
    when = (at or datetime.now(UTC)).isoformat()
    return {**CREATED, "id": "found", "input": payload, "created_at": when, **more}


class TestTheUsualCourse:
    """Create, ask, done."""

    async def test_a_call_is_one_create_with_the_picture_inside(self, start: Start, spool: Spool):
        """The version in the body, the token in the header, both deadlines, and what it used from the last answer."""
        server = Replicate(get=[(200, {**SUCCEEDED, "status": "processing", "metrics": None}), (200, SUCCEEDED)])
        done = await _run(await start(server), spool, call(VERSION, scale_factor=2.0))
        head, body = server.sent("create")
        assert json.loads(body) == {"version": VERSION, "input": {"image": _URI, "scale_factor": 2.0}}
        assert f"authorization: bearer {TOKEN}\r\n" in head.lower()
        assert "prefer: wait=2\r\n" in head.lower()
        assert "cancel-after: 3600s\r\n" in head.lower()
        assert f"content-length: {len(body)}\r\n" in head.lower()
        assert server.seen == ["create", "get", "get"]
        assert done.outputs == (RemoteImage(url="https://replicate.delivery/xezq/abc/out-0.png"),)
        assert done.usage.seconds == Decimal("13.103271")
        assert done.usage.reported == {"image_count": "1", "predict_time": "13.103271", "total_time": "15.2"}

    async def test_the_deadline_is_never_under_the_least_that_is_taken(self, start: Start, spool: Spool):
        """Replicate takes 5 s and more; without a wait none is asked for."""
        server = Replicate()
        await _run(await start(server, settings={"cancel_after_s": 0.1, "wait_s": 0}), spool)
        head = server.sent("create")[0].lower()
        assert "cancel-after: 5s\r\n" in head
        assert "prefer:" not in head

    async def test_nothing_null_is_sent(self, start: Start, spool: Spool):
        """Replicate refuses null for an optional input."""
        server = Replicate()
        await _run(await start(server), spool, call(VERSION, seed=None, lora=[1, None], prompt=""))
        assert server.input() == {"image": _URI, "lora": [1], "prompt": ""}

    @pytest.mark.parametrize("status", ["starting", "processing", "queued"])
    async def test_work_that_is_not_over_runs(self, start: Start, status: str):
        """Also under a name that nobody knows yet."""
        provider = await start(Replicate(get=(200, {**CREATED, "status": status})))
        assert await provider.poll(_ticket()) == Running()

    async def test_an_early_answer_may_lack_nearly_everything(self, start: Start, spool: Spool):
        """Only the identifier and the state can be relied on."""
        provider = await start(Replicate(create=(202, {"id": "abc", "status": "starting"})))
        assert (await provider.submit(call(VERSION), _images(spool))).id == "abc"

    async def test_a_ticket_of_an_earlier_process_is_enough(self, start: Start):
        """Nothing else is needed to have the result."""
        server = Replicate()
        assert isinstance(await (await start(server)).poll(_ticket("of-before")), Done)
        assert "GET /v1/predictions/of-before " in server.heads[0]

    async def test_without_a_token_it_says_so(self, client: http.AsyncClient, spool: Spool):
        """The operator reads which variable to set; the token itself is in no description."""
        provider = ReplicateProvider(ReplicateSettings(None), client=client, spool=spool)
        assert provider.refusal(VERSION) == "replicate: no token is set; see REPLICATE_API_TOKEN"
        assert TOKEN not in repr(ReplicateSettings(TOKEN))


class TestOutputs:
    """Every shape that models give."""

    @pytest.mark.parametrize(
        ("output", "count"),
        [
            ("https://replicate.delivery/a.png", 1),
            (["https://replicate.delivery/a.png", "https://replicate.delivery/b.png"], 2),
            ({"image": "https://replicate.delivery/a.png", "caption": "a hat"}, 1),
            (_URI, 1),
            ([_URI, "https://replicate.delivery/b.png", None], 2),
        ],
    )
    async def test_pictures_are_found(self, start: Start, output: object, count: int):
        """One, a list, an object; addresses or data URIs."""
        done = await (await start(Replicate(get=(200, {**SUCCEEDED, "output": output})))).poll(_ticket())
        assert isinstance(done, Done)
        assert len(done.outputs) == count

    async def test_a_picture_inside_the_answer_is_in_a_file(self, start: Start, spool: Spool):
        """What else was inside, such as the input, is not kept."""
        said = {**SUCCEEDED, "input": {"image": _URI}, "output": _URI}
        done = await (await start(Replicate(get=(200, said)))).poll(_ticket())
        assert isinstance(done, Done)
        (file,) = _files(spool)
        assert done.outputs == (RemoteImage(path=file),)
        assert file.read_bytes() == png()

    @pytest.mark.parametrize("output", [None, [], "", {}, "just text", 7, [None]])
    async def test_success_without_a_picture_is_a_failure(self, start: Start, spool: Spool, output: object):
        """Some models give nothing and call it success."""
        provider = await start(Replicate(get=(200, {**SUCCEEDED, "output": output, "input": {"image": _URI}})))
        with pytest.raises(ProviderFailure, match="no picture") as failed:
            await provider.poll(_ticket())
        assert failed.value.kind is FailureKind.TRANSIENT
        assert _files(spool) == []


class TestRefusals:
    """A create that was answered with an error: nothing was made."""

    @pytest.mark.parametrize("said", _exchange("refusals"), ids=lambda said: f"{said['status']}-{said['kind']}")
    async def test_a_status_has_its_kind(self, start: Start, spool: Spool, said: dict[str, Any]):
        """Read from the problem document; asked once; neither the account's trouble nor the token reaches the caller."""
        body = said["body"] if isinstance(said["body"], dict) else said["body"].encode()
        server = Replicate(create=(said["status"], body, said.get("headers", [])))
        with pytest.raises(ProviderFailure) as failed:
            await _run(await start(server), spool)
        assert failed.value.kind == said["kind"]
        assert failed.value.param == said.get("param")
        assert failed.value.retry_after_s == said.get("retry_after_s")
        assert said.get("public", "") in failed.value.public
        assert "billing" not in failed.value.public
        assert "token" not in failed.value.public or said["status"] == 401
        assert server.seen == ["create"]

    async def test_a_token_that_is_echoed_is_not_written_down(self, start: Start, spool: Spool):
        """Not even for the operator; nor what may be signed in an address."""
        text = f"bad token {TOKEN} at https://host.example/path?signature=abc"
        provider = await start(Replicate(create=(401, {"detail": text})))
        with pytest.raises(ProviderFailure) as failed:
            await _run(provider, spool)
        assert TOKEN not in failed.value.detail
        assert "signature" not in failed.value.detail
        assert "https://host.example/…" in failed.value.detail

    async def test_an_unreachable_replicate_is_left_for_another_offer(self, client: http.AsyncClient, spool: Spool):
        """Without a connection nothing was asked."""
        provider = ReplicateProvider(ReplicateSettings(TOKEN, "http://127.0.0.1:1/v1"), client=client, spool=spool)
        with pytest.raises(ProviderFailure) as failed:
            await _run(provider, spool)
        assert failed.value.kind is FailureKind.TRANSIENT

    async def test_a_request_that_was_cut_made_nothing(self, serve: Serve, client: http.AsyncClient, spool: Spool):
        """A body that did not get through is not looked for."""
        heads: list[bytes] = []

        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.transport.abort()

        settings = ReplicateSettings(TOKEN, await serve(hang_up))
        provider = ReplicateProvider(settings, client=client, spool=spool, sleep=_no_nap)
        many = tuple(ImageRef("image", index) for index in range(14))
        images = {ref: image_part(spool, bytes(190_000)) for ref in many}  # more than a connection's buffers hold
        with pytest.raises(ProviderFailure) as failed:
            await provider.submit(Call(VERSION, {"images": many}), images)
        assert failed.value.kind is FailureKind.TRANSIENT
        assert len(heads) == 1


class TestFailedPredictions:
    """A create that was taken, and came to nothing."""

    @pytest.mark.parametrize("said", _exchange("failures"), ids=lambda said: str(said["error"])[:40])
    async def test_an_error_text_has_its_kind(self, start: Start, spool: Spool, said: dict[str, Any]):
        """The provider's own words decide; how long it ran is told to the operator, addresses are not told in full."""
        failure = {**SUCCEEDED, "status": "failed", "error": said["error"], "output": None}
        with pytest.raises(ProviderFailure) as failed:
            await _run(await start(Replicate(get=(200, failure))), spool)
        assert failed.value.kind == said["kind"]
        assert failed.value.param == said.get("param")
        assert said.get("public", "") in failed.value.public
        assert "ran for 13.103271 s" in failed.value.detail
        assert "secret" not in failed.value.detail

    async def test_aborted_is_the_end(self, start: Start):
        """Its deadline passed in the queue: nothing was charged, and another offer may be tried."""
        with pytest.raises(ProviderFailure) as failed:
            await (await start(Replicate(get=(200, {**CREATED, "status": "aborted"})))).poll(_ticket())
        assert failed.value.kind is FailureKind.TRANSIENT

    @pytest.mark.parametrize(
        ("deadline", "kind"), [("2020-01-01T00:00:00Z", FailureKind.TIMEOUT), (None, FailureKind.CANCELLED)], ids=["late", "asked"]
    )
    async def test_cancelled_by_the_deadline_is_a_timeout(self, start: Start, deadline: str | None, kind: FailureKind):
        """Replicate calls both `canceled`."""
        server = Replicate(get=(200, {**CREATED, "status": "canceled", "deadline": deadline}))
        with pytest.raises(ProviderFailure) as failed:
            await (await start(server)).poll(_ticket())
        assert failed.value.kind is kind


class TestUnansweredPolls:
    """A poll that says nothing of the work."""

    @pytest.mark.parametrize(
        "said",
        [(500, {}), (502, b"<html>"), (404, {"detail": "not found"}), (401, {}), (302, b""), (200, b"{"), (200, {"id": "x"}), None],
        ids=["500", "502", "404", "401", "302", "cut", "no-state", "hung-up"],
    )
    async def test_it_is_asked_again(self, start: Start, spool: Spool, said: object):
        """The work is not given up for one bad answer."""
        server = Replicate(get=[said, (200, {**CREATED, "status": "processing"}), said, (200, SUCCEEDED)])
        assert (await _run(await start(server), spool)).outputs
        assert server.count("create") == 1

    async def test_a_busy_answer_says_when_to_ask_again(self, start: Start):
        """429 on a poll is no failure of the work."""
        provider = await start(Replicate(get=(429, {"retry_after": 3})))
        with pytest.raises(Unanswered) as unanswered:
            await provider.poll(_ticket())
        assert unanswered.value.retry_after_s == 3

    async def test_never_an_answer_is_a_timeout(self, start: Start, spool: Spool):
        """It was told to stop, and may have been charged."""
        server = Replicate(get=(500, {}))
        with pytest.raises(ProviderFailure) as failed:
            await _run(await start(server), spool)
        assert failed.value.kind is FailureKind.TIMEOUT
        assert server.count("cancel") == 1

    async def test_a_ticket_is_no_path(self, start: Start):
        """An identifier that leads elsewhere is not asked for, with the token, anywhere."""
        server = Replicate()
        provider = await start(server)
        with pytest.raises(ProviderFailure):
            await provider.poll(_ticket("../account"))
        assert server.seen == []


class TestLostAnswers:
    """A create that got no answer: looked up before anything else, and never made twice."""

    LOST = pytest.mark.parametrize("lost", [None, (500, b"<html>"), (503, {}), (201, b"{"), (200, {"no": "id"})])

    @LOST
    async def test_what_is_found_is_as_if_it_had_been_answered(self, start: Start, spool: Spool, lost: Said):
        """The newest predictions are asked for, and the one that is like ours is ours."""
        server = Replicate(create=lost, list=lambda _: (200, {"results": [_made({"image": _URI})]}))
        provider = await start(server)
        images = _images(spool)
        assert (await provider.submit(call(VERSION), images)).id == "found"
        assert server.seen == ["create", "list"]
        assert len(_files(spool)) == 1

    @LOST
    async def test_what_is_not_there_was_not_made(self, start: Start, spool: Spool, lost: Said):
        """After a second look another offer may be tried."""
        server = Replicate(create=lost)
        with pytest.raises(ProviderFailure) as failed:
            await _run(await start(server), spool)
        assert failed.value.kind is FailureKind.TRANSIENT
        assert server.seen == ["create", "list", "list"]

    async def test_the_second_look_may_find_it(self, start: Start, spool: Spool):
        """It may take a moment to be listed."""
        server = Replicate(create=None, list=[(200, {"results": []}), lambda _: (200, {"results": [_made({"image": _URI})]})])
        assert (await (await start(server)).submit(call(VERSION), _images(spool))).id == "found"

    @pytest.mark.parametrize("said", [(500, {}), (200, b"[]"), None], ids=str)
    async def test_where_nobody_can_look_nobody_knows(self, start: Start, spool: Spool, said: Said):
        """Then no other offer is tried, since money may have been spent."""
        server = Replicate(create=None, list=said)
        with pytest.raises(ProviderFailure) as failed:
            await _run(await start(server), spool)
        assert failed.value.kind is FailureKind.UNKNOWN
        assert server.count("create") == 1

    @pytest.mark.parametrize(
        ("payload", "more"),
        [
            ({"image": _URI, "seed": 1}, {"created_at": "2026-03-08T09:42:11.123456789Z"}),
            ({"image": _URI, "seed": 8}, {}),
            ({"image": "data:image/png;base64," + base64.b64encode(png(5, 5)).decode(), "seed": 1}, {}),
            ({"image": _URI, "seed": 1}, {"version": "f" * 64}),
            ({"image": "https://api.replicate.com/v1/files/abc", "seed": 1}, {}),
            ({"image": _URI, "seed": True}, {}),
        ],
        ids=["older", "other-seed", "other-picture", "other-version", "uploaded-picture", "other-type"],
    )
    async def test_others_are_not_taken_for_ours(self, start: Start, spool: Spool, payload: object, more: dict[str, Any]):
        """Same time, model and input, or it is somebody else's."""
        server = Replicate(create=None, list=lambda _: (200, {"results": [_made(payload, **more)]}))
        with pytest.raises(ProviderFailure) as failed:
            await _run(await start(server), spool, call(VERSION, seed=1))
        assert failed.value.kind is FailureKind.TRANSIENT

    @pytest.mark.parametrize(
        "payload",
        [
            {},
            None,
            {"image": "https://replicate.delivery/pbxt/a.png", "seed": 7},
            {"image": _URI},
            {"image": _URI, "seed": 7, "x": 1},
        ],
        ids=["removed", "missing", "moved", "less", "more"],
    )
    async def test_what_may_be_ours_leaves_it_unknown(self, start: Start, spool: Spool, payload: object):
        """Neither taken as ours nor taken as not made."""
        server = Replicate(create=None, list=lambda _: (200, {"results": [_made(payload)]}))
        with pytest.raises(ProviderFailure) as failed:
            await _run(await start(server), spool, call(VERSION, seed=7))
        assert failed.value.kind is FailureKind.UNKNOWN

    async def test_an_official_model_is_known_by_its_name(self, start: Start, spool: Spool):
        """Its version is hidden."""
        made = _made({"image": _URI}, model="google/upscaler", version="hidden")
        server = Replicate(create=None, list=(200, {"results": [made]}))
        assert (await (await start(server)).submit(call("google/upscaler"), _images(spool))).id == "found"

    async def test_an_uploaded_picture_is_known_by_its_address(self, start: Start, spool: Spool):
        """It is only ours."""
        others = [_made({"image": FILE["urls"]["get"] + "x"}, id="other"), _made({"image": FILE["urls"]["get"]})]
        server = Replicate(create=None, list=(200, {"results": others}))
        assert (await (await start(server)).submit(call(VERSION), _images(spool, LARGE))).id == "found"

    async def test_the_servers_clock_is_what_counts(self, start: Start, spool: Spool):
        """Ours may be wrong by hours."""
        theirs = datetime.now(UTC) - timedelta(hours=3)
        headers = [f"Date: {format_datetime(theirs, usegmt=True)}"]
        server = Replicate(create=None, list=(200, {"results": [_made({"image": _URI}, theirs)]}, headers))
        assert (await (await start(server)).submit(call(VERSION), _images(spool))).id == "found"

    async def test_pages_are_followed_at_our_own_address(self, start: Start, spool: Spool):
        """The token does not go to wherever the next page is said to be."""
        first = {
            "results": [_made({"image": "data:image/png;base64,AAAA"}, id="other")],
            "next": "http://127.0.0.1:9/x?cursor=c%3D1",
        }
        server = Replicate(create=None, list=[(200, first), (200, {"results": [_made({"image": _URI})], "next": None})])
        assert (await (await start(server)).submit(call(VERSION), _images(spool))).id == "found"
        assert "GET /v1/predictions?cursor=c%3D1 " in server.sent("list", 1)[0]

    async def test_two_lost_ones_are_two(self, start: Start, spool: Spool):
        """Equal calls whose answers were both lost do not get the same prediction."""
        made = {"results": [_made({"image": _URI}, id="second"), _made({"image": _URI}, id="first")]}
        provider = await start(Replicate(create=None, list=(200, made)))
        images = _images(spool)
        tickets = await asyncio.gather(*(provider.submit(call(VERSION), images) for _ in range(2)))
        assert {ticket.id for ticket in tickets} == {"first", "second"}

    async def test_the_prediction_of_an_equal_call_is_not_taken(self, start: Start, spool: Spool):
        """Not even while that call still waits for its answer."""
        server = Replicate(create=[..., None], list=(200, {"results": [_made({"image": _URI})]}))
        server.late = (201, {**CREATED, "id": "found"})
        provider = await start(server)
        images = _images(spool)
        first = asyncio.create_task(provider.submit(call(VERSION), images))
        await _settle(server, "create")
        second = asyncio.create_task(provider.submit(call(VERSION), images))
        await _settle(server, "create", 2)
        server.free.set()
        assert (await first).id == "found"
        with pytest.raises(ProviderFailure) as failed:
            await second
        assert failed.value.kind is FailureKind.TRANSIENT


class TestLeaving:
    """What happens to work that nobody waits for any more."""

    async def test_a_cancellation_is_one_post(self, start: Start):
        """At our own address."""
        server = Replicate()
        await (await start(server)).cancel(_ticket())
        assert "POST /v1/predictions/abc/cancel " in server.heads[0]

    async def test_a_cancellation_is_tried_again(self, start: Start):
        """What runs on is paid for."""
        server = Replicate(cancel=[(500, {}), None, (200, CREATED)])
        await (await start(server)).cancel(_ticket())
        assert server.count("cancel") == 3

    async def test_what_has_ended_cannot_be_cancelled(self, start: Start):
        """Whatever Replicate says then is fine."""
        await (await start(Replicate(cancel=(404, {})))).cancel(_ticket())

    async def test_a_cancellation_that_nobody_hears_is_a_failure(self, start: Start):
        """The driver knows that it is best effort."""
        with pytest.raises(ProviderFailure):
            await (await start(Replicate(cancel=(500, {})))).cancel(_ticket())

    async def test_a_create_that_was_left_is_cancelled_once_it_is_answered(self, start: Start, spool: Spool):
        """Until then nobody knows what to cancel."""
        server = Replicate(create=...)
        server.late = (201, CREATED)
        provider = await start(server)
        work = asyncio.create_task(provider.submit(call(VERSION), _images(spool)))
        await _settle(server, "create")
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        server.free.set()
        await _settle(server, "cancel")
        assert f"POST /v1/predictions/{CREATED['id']}/cancel " in server.sent("cancel")[0]

    async def test_closing_waits_for_what_is_called_off(self, start: Start, spool: Spool):
        """A gateway that stops does not leave paid work behind."""
        server = Replicate(create=...)
        server.late = (201, CREATED)
        provider = await start(server)
        work = asyncio.create_task(provider.submit(call(VERSION), _images(spool)))
        await _settle(server, "create")
        work.cancel()
        await asyncio.wait([work])
        server.free.set()
        await provider.close()
        assert server.count("cancel") == 1


class TestFiles:
    """Pictures that are too large to send along."""

    async def test_a_large_picture_is_uploaded_and_deleted(self, start: Start, spool: Spool):
        """A form of one file with its exact length; the address in the input; deleted once the result is there."""
        server = Replicate()
        images = _images(spool, LARGE)
        provider = await start(server, make_id=lambda: "edge")
        await drive(provider, call(VERSION), images, deadline_s=30, on_ticket=ignore)
        head, body = server.sent("upload")
        assert "content-type: multipart/form-data; boundary=edge\r\n" in head.lower()
        assert f"content-length: {len(body)}\r\n" in head.lower()
        start_of_form = (
            b'--edge\r\nContent-Disposition: form-data; name="content"; filename="picture.png"\r\nContent-Type: image/png\r\n\r\n'
        )
        assert body == start_of_form + images[IMAGE].path.read_bytes() + b"\r\n--edge--\r\n"
        assert server.input() == {"image": FILE["urls"]["get"]}
        await _settle(server, "delete")
        assert f"DELETE /v1/files/{FILE['id']} " in server.sent("delete")[0]

    @pytest.mark.parametrize(("size", "uploads"), [(191_982, 0), (191_983, 1)])
    async def test_the_limit_is_on_the_data_uri(self, start: Start, spool: Spool, size: int, uploads: int):
        """256 kB of text, prefix and all."""
        server = Replicate()
        await (await start(server)).submit(call(VERSION), _images(spool, size))
        assert server.count("upload") == uploads
        if not uploads:
            assert len(server.input()["image"]) <= 256_000

    async def test_calls_share_an_upload(self, start: Start, spool: Spool):
        """One upload for all calls of a plan, deleted when the last is over."""
        ids = iter("abc")
        server = Replicate(create=lambda _: (201, {**CREATED, "id": next(ids)}))
        provider = await start(server)
        images = _images(spool, LARGE)
        tickets = await asyncio.gather(*(provider.submit(call(VERSION, seed=seed), images) for seed in range(3)))
        await provider.poll(tickets[0])
        await provider.cancel(tickets[1])
        assert server.count("upload") == 1
        assert server.count("delete") == 0
        await provider.poll(tickets[2])
        await _settle(server, "delete")
        await provider.close()
        assert (server.count("upload"), server.count("delete")) == (1, 1)

    async def test_another_try_finds_the_upload_still_there(self, start: Start, spool: Spool):
        """It is kept for a moment after the end."""
        waits: list[asyncio.Event] = []

        async def nap(_: float) -> None:
            waits.append(asyncio.Event())
            await waits[-1].wait()

        server = Replicate(create=[(429, {}), (201, CREATED)])
        provider = await start(server, sleep=nap)
        images = _images(spool, LARGE)
        with pytest.raises(ProviderFailure):
            await provider.submit(call(VERSION), images)
        ticket = await provider.submit(call(VERSION), images)
        for wait in waits:
            wait.set()
        assert isinstance(await provider.poll(ticket), Done)
        assert (server.count("upload"), server.count("delete")) == (1, 0)
        await provider.close()
        assert server.count("delete") == 1

    @pytest.mark.parametrize("route", ["create", "get"])
    async def test_a_failure_deletes_too(self, start: Start, spool: Spool, route: str):
        """Refused or failed: the picture is of no more use."""
        said = {"create": (402, {}), "get": (200, {**SUCCEEDED, "status": "failed", "error": "no"})}[route]
        server = Replicate(**{route: said})
        with pytest.raises(ProviderFailure):
            await drive(await start(server), call(VERSION), _images(spool, LARGE), deadline_s=30, on_ticket=ignore)
        await _settle(server, "delete")

    async def test_a_result_does_not_wait_for_the_deletion(self, start: Start, spool: Spool):
        """A deletion that fails or hangs is nobody's business."""
        server = Replicate(delete=...)
        assert await drive(await start(server), call(VERSION), _images(spool, LARGE), deadline_s=30, on_ticket=ignore)
        await _settle(server, "delete")
        server.free.set()

    @pytest.mark.parametrize("lost", [None, (500, {}), (201, {"id": "x"})], ids=str)
    async def test_an_upload_is_tried_again(self, start: Start, spool: Spool, lost: Said):
        """It costs nothing."""
        server = Replicate(upload=[lost, (201, FILE)])
        await (await start(server)).submit(call(VERSION), _images(spool, LARGE))
        assert server.count("upload") == 2

    @pytest.mark.parametrize(
        ("said", "kind", "times"),
        [
            ((401, {}), FailureKind.CREDENTIAL, 1),
            ((429, {"retry_after": 4}), FailureKind.RATE_LIMIT, 1),
            ((500, {}), FailureKind.TRANSIENT, 2),
            ((413, {"detail": "Files must be less than 100MB in size"}), FailureKind.TRANSIENT, 2),
        ],
    )
    async def test_without_the_upload_nothing_is_created(
        self, start: Start, spool: Spool, said: Said, kind: FailureKind, times: int
    ):
        """Every call that needed it fails alike."""
        server = Replicate(upload=said)
        provider = await start(server)
        images = _images(spool, LARGE)
        results = await asyncio.gather(*(provider.submit(call(VERSION), images) for _ in range(2)), return_exceptions=True)
        assert [cast("ProviderFailure", result).kind for result in results] == [kind, kind]
        assert (server.count("upload"), server.count("create")) == (times, 0)

    async def test_an_upload_is_ended_when_nobody_needs_it(self, start: Start, spool: Spool):
        """Whoever asked has left before it was through."""
        server = Replicate(upload=...)
        provider = await start(server)
        work = asyncio.create_task(provider.submit(call(VERSION), _images(spool, LARGE)))
        await _settle(server, "upload")
        work.cancel()
        await asyncio.wait([work])
        await provider.close()
        assert (server.count("create"), server.count("delete")) == (0, 0)

    async def test_pictures_in_lists_are_uploaded_too(self, start: Start, spool: Spool):
        """Small ones stay in the request."""
        server = Replicate()
        small, large = ImageRef("image", 0), ImageRef("image", 1)
        images: dict[ImageRef, ImagePart] = {small: image_part(spool), large: image_part(spool, bytes(LARGE))}
        await (await start(server)).submit(Call("google/nano-banana", {"image_input": (small, large)}), images)
        assert server.input() == {"image_input": [_URI, FILE["urls"]["get"]]}


class TestWebhooks:
    """Deliveries that Replicate signed."""

    KEY = b"a key of twenty-four byt"
    NOW = datetime(2026, 3, 8, 9, 42, tzinfo=UTC)

    def _headers(self, body: bytes, **more: str) -> dict[str, str]:
        sent = str(int(self.NOW.timestamp()))
        digest = hmac.new(self.KEY, b"msg_1." + sent.encode() + b"." + body, hashlib.sha256).digest()
        signature = "v1," + base64.b64encode(digest).decode()
        return {"webhook-id": "msg_1", "webhook-timestamp": sent, "webhook-signature": signature, **more}

    def test_a_genuine_one_is_known_by_its_identifier(self):
        """One good signature among several is enough: keys are changed so."""
        headers = self._headers(b"{}")
        several = {**headers, "webhook-signature": f"v1,AAAA v2,x {headers['webhook-signature']}"}
        key = webhook_key("whsec_" + base64.b64encode(self.KEY).decode())
        assert verify_webhook(headers, b"{}", key=key, now=self.NOW) == "msg_1"
        assert verify_webhook(several, b"{}", key=key, now=self.NOW) == "msg_1"

    def test_the_published_example_is_genuine(self):
        """Source: standard-webhooks/standard-webhooks, the libraries' tests."""
        headers = {
            "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "webhook-timestamp": "1614265330",
            "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        }
        key = webhook_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        assert verify_webhook(headers, b'{"test": 2432232314}', key=key, now=datetime.fromtimestamp(1614265330, UTC))

    @pytest.mark.parametrize(
        "more",
        [
            {"webhook-id": "msg_2"},
            {"webhook-id": ""},
            {"webhook-timestamp": "1772962921"},
            {"webhook-timestamp": "soon"},
            {"webhook-signature": "v1,AAAA"},
            {"webhook-signature": "ü"},
            {"webhook-signature": ""},
        ],
    )
    def test_anything_else_is_refused(self, more: dict[str, str]):
        """A changed or missing header."""
        with pytest.raises(WebhookRefused):
            verify_webhook(self._headers(b"{}", **more), b"{}", key=self.KEY, now=self.NOW)

    def test_a_changed_body_is_refused(self):
        """Every byte is signed."""
        with pytest.raises(WebhookRefused, match="signature"):
            verify_webhook(self._headers(b"{}"), b"{} ", key=self.KEY, now=self.NOW)

    @pytest.mark.parametrize("late_s", [-301, 301])
    def test_an_old_one_is_refused(self, late_s: int):
        """Somebody may have kept it."""
        now = self.NOW + timedelta(seconds=late_s)
        with pytest.raises(WebhookRefused, match="just now"):
            verify_webhook(self._headers(b"{}"), b"{}", key=self.KEY, now=now)

    @pytest.mark.parametrize("secret", ["", "whsec_", "whsec_not base64"])
    def test_a_secret_without_a_key_is_an_error(self, secret: str):
        """An empty key would be everybody's."""
        with pytest.raises(ValueError, match="secret"):
            webhook_key(secret)


def test_settings_have_the_public_defaults():
    """As Replicate documents them."""
    settings = ReplicateSettings(TOKEN)
    assert settings.base_url == "https://api.replicate.com/v1"
    assert replace(settings, wait_s=0).wait_s == 0
