"""What servers of Cog's API do wrong or differently, and what is made of it.

Answers are those of Cog 0.23.1 and 0.9.26, as they run.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias, cast

import pytest

from normalization.plan import Call
from providers import http
from providers.base import Done, RemoteImage, Running
from providers.drive import Unanswered, drive
from providers.failures import FailureKind, ProviderFailure
from providers.local.cog import BackendState, CogProvider, LocalBackend, new_prediction_id
from providers.spool import Spool
from tests.providers.conftest import Script, Serve, answer, read_request
from tests.providers.contract import IMAGE, call, ignore, image_part, png

Start: TypeAlias = Callable[[Script], Awaitable[CogProvider]]

_URI = "data:image/png;base64," + base64.b64encode(png()).decode()


class Server:
    """Answers each kind of request from a list, the last again and again. None: it hangs up; `...`: it is silent."""

    def __init__(self, **routes: object) -> None:
        self.routes = {name: cast("list[Any]", said) if isinstance(said, list) else [said] for name, said in routes.items()}
        self.seen: list[str] = []
        self.bodies: list[bytes] = []
        self.asked = asyncio.Event()
        self.free = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await read_request(reader)
            method, path, _ = head.decode().split(" ", 2)
            name = _name(method, path)
            self.seen.append(name)
            self.bodies.append(body)
            self.asked.set()
            answers = self.routes[name]
            said = answers.pop(0) if len(answers) > 1 else answers[0]
            if said is None:
                return
            if said is ...:
                await self.free.wait()
                return
            status, document = said
            text = document if isinstance(document, bytes) else json.dumps(document).encode()
            writer.write(answer(text, f"{status} Whatever"))

    def count(self, name: str) -> int:
        return self.seen.count(name)


def _name(method: str, path: str) -> str:
    if path.endswith("/cancel"):
        return "cancel"
    return {"PUT": "put", "GET": "health" if path == "/health-check" else "get"}[method]


def _succeeded(output: object, **more: object) -> tuple[int, object]:
    return 200, {"id": "x", "status": "succeeded", "output": output, "metrics": {"predict_time": 1.25}, **more}


def _failed(error: str) -> tuple[int, object]:
    return 200, {"id": "x", "status": "failed", "error": error, "metrics": {}}


def _wrong(loc: list[object], msg: str) -> dict[str, object]:
    return {"loc": loc, "msg": msg, "type": "value_error"}


async def _no_nap(_: float) -> None:
    await asyncio.sleep(0)


@pytest.fixture
async def start(serve: Serve, client: http.AsyncClient, spool: Spool) -> AsyncIterator[Start]:
    """Start a scripted server, and a provider for it."""
    providers: list[CogProvider] = []

    async def start(server: Script) -> CogProvider:
        backend = LocalBackend("machine", await serve(server), ("model",))
        providers.append(CogProvider([backend], client=client, spool=spool, sleep=_no_nap))
        return providers[-1]

    yield start
    for provider in providers:
        await provider.close()


async def _run(provider: CogProvider, spool: Spool, what: Call | None = None) -> Done:
    images = {IMAGE: image_part(spool)}
    return await drive(provider, what or call("model"), images, deadline_s=30, on_ticket=ignore)


def _files(spool: Spool) -> list[Path]:
    return list(spool.folder.iterdir())


async def test_the_call_is_one_put_with_the_picture_inside(start: Start, spool: Spool) -> None:
    """Identifier in the path, inputs under `input`, the picture as a data URI."""
    server = Server(put=_succeeded(_URI), get=(405, {}))
    provider = await start(server)
    done = await _run(provider, spool, call("model", scale_factor=2.0))
    assert json.loads(server.bodies[0]) == {"input": {"image": _URI, "scale_factor": 2.0}}
    assert server.seen == ["put"]
    assert done.usage.seconds == Decimal("1.25")
    assert done.outputs[0].path is not None
    assert done.outputs[0].path.read_bytes() == png()


@pytest.mark.parametrize(
    ("output", "count"), [(_URI, 1), ([_URI], 1), ([_URI, _URI], 2), ({"image": _URI, "caption": "a hat"}, 1), ([[_URI], None], 1)]
)
async def test_outputs_of_every_shape_are_found(start: Start, spool: Spool, output: object, count: int) -> None:
    """One, a list, or an object: whatever the model declares."""
    provider = await start(Server(put=_succeeded(output)))
    assert len((await _run(provider, spool)).outputs) == count


async def test_an_output_at_an_address_stays_there(start: Start, spool: Spool) -> None:
    """Containers with an upload address answer with links."""
    provider = await start(Server(put=_succeeded("http://files.example/a.png")))
    assert (await _run(provider, spool)).outputs == (RemoteImage(url="http://files.example/a.png"),)


@pytest.mark.parametrize("output", [None, "", [], {}, "just text", "/tmp/output.png", 7])
async def test_success_without_a_picture_is_a_failure(start: Start, spool: Spool, output: object) -> None:
    """A path inside the container, or nothing at all, is no picture."""
    provider = await start(Server(put=_succeeded(output)))
    with pytest.raises(ProviderFailure, match="without a picture") as failed:
        await _run(provider, spool)
    assert failed.value.kind is FailureKind.TRANSIENT


async def test_an_echoed_input_is_not_a_result(start: Start, spool: Spool) -> None:
    """Cog of 2024 sends the input back as well; its file is removed."""
    provider = await start(Server(put=_succeeded([_URI], input={"image": _URI}, logs="x" * 100_000)))
    assert len((await _run(provider, spool)).outputs) == 1
    assert len(_files(spool)) == 2


@pytest.mark.parametrize(
    ("error", "kind", "param"),
    [
        ("Prediction failed: Prediction failed: RuntimeError: CUDA out of memory. Tried …", FailureKind.TRANSIENT, None),
        ("CUDA out of memory. Tried …", FailureKind.TRANSIENT, None),
        ("Worker crashed", FailureKind.TRANSIENT, None),
        ("KeyError: 'x'", FailureKind.TRANSIENT, None),
        ("", FailureKind.TRANSIENT, None),
        ("UnidentifiedImageError: cannot identify image file '/tmp/a.png'", FailureKind.CALLER_FAULT, "image"),
        ("the picture has more than 64000000 pixels", FailureKind.CALLER_FAULT, "image"),
        ("Input validation error: Incorrect padding", FailureKind.CALLER_FAULT, None),
        ("Exception: NSFW content detected", FailureKind.CONTENT, None),
    ],
)
async def test_failed_predictions_are_sorted_by_their_text(
    start: Start, spool: Spool, error: str, kind: FailureKind, param: str | None
) -> None:
    """The caller's fault ends the request; the machine's lets the next offer try. Paths of the container are not shown."""
    provider = await start(Server(put=_failed(error)))
    with pytest.raises(ProviderFailure) as failed:
        await _run(provider, spool)
    assert (failed.value.kind, failed.value.param) == (kind, param)
    assert "/tmp" not in failed.value.public


@pytest.mark.parametrize(
    ("status", "body", "kind", "says", "param"),
    [
        (
            422,
            {"detail": [_wrong(["body", "input", "creativity"], "not a number")]},
            "caller_fault",
            "creativity: not",
            "creativity",
        ),
        (422, {"detail": [_wrong(["body", "input"], "missing")]}, "caller_fault", "missing", None),
        (422, {"detail": "no such input"}, "caller_fault", "no such input", None),
        (400, {"error": "not JSON"}, "caller_fault", "not JSON", None),
        (413, b"too large", "caller_fault", "too large", None),
        (401, {}, "credential", "refuses the gateway", None),
        (404, {"detail": "Not Found"}, "model_gone", "no prediction API", None),
        (500, b"oops", "transient", "status 500", None),
        (502, b"<html>", "transient", "status 502", None),
        (503, {"error": "Setup has not finished yet"}, "transient", "starting", None),
        (200, b"nonsense", "transient", "cannot be read", None),
        (200, [1, 2], "transient", "not a prediction", None),
        (200, {"status": "canceled"}, "cancelled", "told to stop", None),
        (202, {"status": "starting"}, "transient", "before it was done", None),
    ],
)
async def test_every_answer_has_a_meaning(
    start: Start, spool: Spool, status: int, body: object, kind: str, says: str, param: str | None
) -> None:
    """Statuses and bodies of both generations."""
    provider = await start(Server(put=(status, body)))
    with pytest.raises(ProviderFailure) as failed:
        await _run(provider, spool)
    assert says in failed.value.public
    assert (failed.value.kind, failed.value.param) == (kind, param)
    assert len(_files(spool)) == 1


async def test_a_starting_backend_says_when_to_come_again(start: Start, spool: Spool) -> None:
    """503 has a time to wait."""
    provider = await start(Server(put=(503, {"error": "Setup has not finished yet"})))
    with pytest.raises(ProviderFailure) as failed:
        await _run(provider, spool)
    assert failed.value.retry_after_s == 5


async def test_a_backend_that_is_not_there_is_said_so(client: http.AsyncClient, spool: Spool) -> None:
    """Refused connections are the operator's business, and the next offer's chance."""
    provider = CogProvider([LocalBackend("machine", "http://127.0.0.1:1", ("model",))], client=client, spool=spool)
    with pytest.raises(ProviderFailure, match="is not running") as failed:
        await _run(provider, spool)
    assert failed.value.kind is FailureKind.TRANSIENT
    assert [health.state for health in await provider.health()] == [BackendState.DOWN]


async def test_a_model_nobody_serves_is_gone(start: Start, spool: Spool) -> None:
    """The catalog may name what this installation lacks."""
    provider = await start(Server())
    with pytest.raises(ProviderFailure) as failed:
        await provider.submit(call("other"), {IMAGE: image_part(spool)})
    assert failed.value.kind is FailureKind.MODEL_GONE
    assert provider.refusal("other")
    assert provider.refusal("model") is None


async def test_a_broken_connection_is_not_put_again(start: Start, spool: Spool) -> None:
    """Cog would run it again."""
    server = Server(put=None, get=(405, {}))
    provider = await start(server)
    with pytest.raises(ProviderFailure, match="broke") as failed:
        await _run(provider, spool)
    assert failed.value.kind is FailureKind.TRANSIENT
    assert server.count("put") == 1


async def test_at_capacity_is_asked_again_while_the_backend_lives(start: Start, spool: Spool) -> None:
    """A 409 took nothing; the same identifier may be put again."""
    full = (409, {"error": "At capacity - all prediction slots busy", "status": "failed"})
    server = Server(put=[full, full, _succeeded(_URI)], health=(200, {"status": "BUSY"}))
    assert (await _run(await start(server), spool)).outputs
    assert server.count("put") == 3


async def test_at_capacity_for_ever_is_a_rate_limit(start: Start, spool: Spool) -> None:
    """Somebody else has the machine: a bounded wait, then the next offer."""
    server = Server(put=(409, {"detail": "Already running a prediction"}), health=(200, {"status": "BUSY"}))
    with pytest.raises(ProviderFailure, match="busy") as failed:
        await _run(await start(server), spool)
    assert failed.value.kind is FailureKind.RATE_LIMIT
    assert failed.value.retry_after_s


async def test_at_capacity_of_a_dead_worker_is_down(start: Start, spool: Spool) -> None:
    """Cog says 409 for ever once its worker has crashed."""
    server = Server(put=(409, {"error": "At capacity"}), health=(200, {"status": "UNHEALTHY"}))
    with pytest.raises(ProviderFailure, match="is down") as failed:
        await _run(await start(server), spool)
    assert failed.value.kind is FailureKind.TRANSIENT
    assert server.count("put") == 1


@pytest.mark.parametrize(
    ("health", "state"),
    [
        ((200, {"status": "STARTING"}), BackendState.STARTING),
        ((200, {"status": "READY"}), BackendState.READY),
        ((200, {"status": "BUSY"}), BackendState.BUSY),
        ((200, {"status": "SETUP_FAILED"}), BackendState.DOWN),
        ((200, {"status": "DEFUNCT"}), BackendState.DOWN),
        ((200, {"status": "UNHEALTHY"}), BackendState.DOWN),
        ((200, b"hello"), BackendState.DOWN),
        ((404, {}), BackendState.DOWN),
        (None, BackendState.DOWN),
    ],
)
async def test_health_is_one_of_four(start: Start, health: object, state: BackendState) -> None:
    """Cog's words, and everything else is down, with a reason."""
    (told,) = await (await start(Server(health=health))).health()
    assert told.state is state
    assert (told.why is not None) == (state is BackendState.DOWN)


async def test_no_answer_while_our_own_work_runs_is_busy(start: Start, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cog of 2024 hears nothing while it works. Its progress is asked for in vain, three times."""
    monkeypatch.setattr("providers.local.cog._HEALTH_TIMEOUT", http.Timeout(0.05))
    monkeypatch.setattr("providers.local.cog._ASK_TIMEOUT", http.Timeout(0.05))
    monkeypatch.setattr("providers.local.cog._NEWS_S", 0.01)
    server = Server(put=..., health=..., get=..., cancel=...)
    provider = await start(server)
    ticket = await provider.submit(call("model"), {IMAGE: image_part(spool)})
    await server.asked.wait()
    assert [health.state for health in await provider.health()] == [BackendState.BUSY]
    for _ in range(5):
        assert await provider.poll(ticket) == Running(None)
    assert server.count("get") == 3
    await provider.cancel(ticket)
    assert server.count("put") == 1
    assert [health.state for health in await provider.health()] == [BackendState.DOWN]


async def test_a_backend_without_progress_is_not_asked_again(start: Start, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain Cog says 405."""
    monkeypatch.setattr("providers.local.cog._NEWS_S", 0.01)
    server = Server(put=..., get=(405, {}), cancel=(200, {}))
    monkeypatch.setattr("providers.local.cog._CANCEL_GRACE_S", 0.01)
    provider = await start(server)
    ticket = await provider.submit(call("model"), {IMAGE: image_part(spool)})
    await server.asked.wait()
    for _ in range(3):
        assert await provider.poll(ticket) == Running(None)
    assert server.count("get") == 1
    await provider.cancel(ticket)
    assert server.count("cancel") == 1


@pytest.mark.parametrize(("said", "progress"), [({"progress": 0.25}, 0.25), ({"progress": 7}, 1.0), ({}, None), ([], None)])
async def test_progress_of_the_bundled_backend_is_passed_on(
    start: Start, spool: Spool, monkeypatch: pytest.MonkeyPatch, said: object, progress: float | None
) -> None:
    """A number from 0 to 1, or nothing."""
    monkeypatch.setattr("providers.local.cog._NEWS_S", 0.01)
    server = Server(put=..., get=(200, said), cancel=(404, {}))
    provider = await start(server)
    ticket = await provider.submit(call("model"), {IMAGE: image_part(spool)})
    await server.asked.wait()
    assert await provider.poll(ticket) == Running(progress)
    await provider.cancel(ticket)


@pytest.mark.parametrize(
    ("said", "expected"),
    [((200, {"status": "processing", "progress": 0.5}), Running(0.5)), ((200, {"status": "starting"}), Running(None))],
)
async def test_a_ticket_from_before_is_looked_up(start: Start, spool: Spool, said: object, expected: Running) -> None:
    """After a restart the bundled backend still knows the prediction."""
    before, after = await start(Server(put=...)), await start(Server(get=said))
    ticket = await before.submit(call("model"), {IMAGE: image_part(spool)})
    assert await after.poll(ticket) == expected


async def test_a_backend_that_cannot_be_asked_is_asked_again(client: http.AsyncClient, spool: Spool) -> None:
    """After a restart of both, the backend may still be starting."""
    provider = CogProvider([LocalBackend("machine", "http://127.0.0.1:1", ("model",))], client=client, spool=spool)
    ticket = await provider.submit(call("model"), {IMAGE: image_part(spool)})
    later = CogProvider([LocalBackend("machine", "http://127.0.0.1:1", ("model",))], client=client, spool=spool)
    with pytest.raises(Unanswered):
        await later.poll(ticket)
    await provider.close()


async def test_a_backend_taken_out_of_the_settings_is_a_failure(start: Start, client: http.AsyncClient, spool: Spool) -> None:
    """Its tickets lead nowhere."""
    ticket = await (await start(Server(put=...))).submit(call("model"), {IMAGE: image_part(spool)})
    with pytest.raises(ProviderFailure, match="no longer configured"):
        await CogProvider([], client=client, spool=spool).poll(ticket)


async def test_calls_wait_for_a_slot_here_and_not_in_the_backend(start: Start, spool: Spool) -> None:
    """One request in flight for each slot; a call cancelled in the queue is never sent."""
    server = Server(put=..., cancel=(404, {}))
    provider = await start(server)
    images = {IMAGE: image_part(spool)}
    first = await provider.submit(call("model"), images)
    await server.asked.wait()
    second = await provider.submit(call("model"), images)
    await asyncio.sleep(0)
    await provider.cancel(second)
    assert server.seen == ["put"]
    await provider.cancel(first)
    assert server.seen == ["put", "cancel"]


async def test_the_least_loaded_backend_is_chosen(serve: Serve, client: http.AsyncClient, spool: Spool) -> None:
    """Of several machines with the model, the one with the least to do; one that was not there comes last."""
    servers = [Server(put=..., cancel=(404, {})) for _ in range(2)]
    urls = ["http://127.0.0.1:1", *[await serve(server) for server in servers]]
    backends = [LocalBackend(f"m{index}", url, ("model",)) for index, url in enumerate(urls)]
    provider = CogProvider(backends, client=client, spool=spool)
    images = {IMAGE: image_part(spool)}
    with pytest.raises(ProviderFailure, match="m0 is not running"):
        await drive(provider, call("model"), images, deadline_s=30, on_ticket=ignore)
    tickets = [await provider.submit(call("model"), images)]
    await servers[0].asked.wait()
    tickets.append(await provider.submit(call("model"), images))
    await servers[1].asked.wait()
    assert [ticket.id.partition("@")[2] for ticket in tickets] == ["m1", "m2"]
    await provider.close()


async def test_closing_removes_what_nobody_fetched(start: Start, spool: Spool) -> None:
    """Results of calls that were given up do not stay."""
    server = Server(put=_succeeded([_URI, _URI]))
    provider = await start(server)
    await provider.submit(call("model"), {IMAGE: image_part(spool)})
    (work,) = (task for task in asyncio.all_tasks() if task.get_name().startswith("prediction "))
    await work
    assert len(_files(spool)) == 3
    await provider.close()
    assert len(_files(spool)) == 1


async def test_half_an_answer_leaves_no_file(start: Start, spool: Spool) -> None:
    """The connection breaks in the middle of the result."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        whole = answer(json.dumps(_succeeded("data:image/png;base64," + "A" * 2**20)[1]).encode())
        writer.write(whole[: len(whole) // 2])

    with pytest.raises(ProviderFailure, match="broke"):
        await _run(await start(script), spool)
    assert len(_files(spool)) == 1


def test_identifiers_are_what_cog_takes() -> None:
    """26 lower-case characters, never the same twice."""
    first, second = new_prediction_id(), new_prediction_id()
    assert len(first) == 26
    assert first.islower()
    assert first != second


def test_names_of_backends_are_unique(client: http.AsyncClient, spool: Spool) -> None:
    """A ticket names its backend."""
    twice = [LocalBackend("machine", "http://127.0.0.1:1", ("model",))] * 2
    with pytest.raises(ValueError, match="same name"):
        CogProvider(twice, client=client, spool=spool)
