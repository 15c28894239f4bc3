"""The bundled backend: a process of its own that serves one model through Cog's HTTP prediction API.

Whoever can drive a Cog container can drive it. Beyond Cog it has a queue, `GET /predictions/{id}` with `progress`, and it
answers a repeated PUT of a finished id with the same result. It takes pictures as data URIs only and sends no webhooks.

Source of the API: replicate/cog, `docs/http.md` and `architecture/03-prediction-api.md`, and Cog 0.23.1 as it answers.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import IO, Any, TypeAlias

import msgspec
import pybase64
from litestar import Litestar, Request, Response, get, post, put
from litestar.datastructures import State
from litestar.response import Stream
from litestar.types import Receive

from providers.local.engine.model import BackendModel
from providers.local.engine.models import MODELS
from providers.local.engine.pool import RunFailed, WorkerPool
from providers.local.engine.predictions import AtCapacity, Prediction, Predictions, Status, new_id
from providers.local.engine.process import Stopping, fast_loop, listen, serve_until_stopped
from providers.local.engine.request_body import BodyMalformed, BodyTooLarge, InputInvalid, Task, read_task, receive_body
from providers.local.engine.schema import Problem, openapi_document
from providers.spool import Spool

HttpRequest: TypeAlias = Request[Any, Any, State]
HttpResponse: TypeAlias = Response[Any]

MAX_BODY_BYTES = 100 << 20
"""Room for a picture of 75 MB as base64."""
_DRAIN_BYTES = 32 << 20
"""What is still read of a body that is refused, so that the client reads the answer instead of meeting a closed connection."""
_BODY_DEADLINE_S = 120
_PIECE_BYTES = 48 << 10
"""Of a result, encoded at a time: a multiple of 3, so that the pieces' base64 can be joined."""
_LONGEST_ID = 128
_COG_PROTOCOL = "0.23.1"
"""The Cog version whose answers these are; clients tell its generations apart by it."""


@dataclass(slots=True)
class _Setup:
    """How far the first worker is, in Cog's words."""

    status: str
    started_at: datetime
    completed_at: datetime | None = None
    logs: str = ""


class Backend:
    """Everything the handlers need: the model, its workers, its predictions, its files."""

    def __init__(self, model: BackendModel, pool: WorkerPool, spool: Spool, queue_length: int) -> None:
        self.model = model
        self.spool = spool
        self.predictions = Predictions(pool, spool, queue_length)
        self.setup = _Setup("starting", datetime.now(UTC))
        self.stopping = Stopping()
        self._pool = pool

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Start the first worker beside what happens inside; at the end drain, then end the workers."""
        warming = asyncio.create_task(self._warm_up())
        try:
            yield
        finally:
            warming.cancel()
            await self.predictions.drain(self.stopping.left_s)
            await self._pool.close()

    async def _warm_up(self) -> None:
        try:
            await self._pool.warm_up()
            self.setup.status = "succeeded"
        except (RunFailed, OSError) as error:
            self.setup.status, self.setup.logs = "failed", str(error)
        self.setup.completed_at = datetime.now(UTC)

    @property
    def health(self) -> str:
        """One of Cog's health states. BUSY means that a new prediction would wait, not that it would be refused."""
        if self.setup.status == "starting":
            return "STARTING"
        if self.setup.status == "failed":
            return "SETUP_FAILED"
        return "BUSY" if self.predictions.is_busy else "READY"


def create_backend_app(backend: Backend) -> Litestar:
    """The HTTP face of `backend`."""
    return Litestar(
        route_handlers=[_root, _health, _openapi, _post_prediction, _put_prediction, _get_prediction, _cancel, _shutdown],
        state=State({"backend": backend}),
        before_request=_refuse_browsers,
        exception_handlers={
            BodyTooLarge: _too_large,
            BodyMalformed: _malformed,
            InputInvalid: _invalid,
            AtCapacity: _at_capacity,
            TimeoutError: _too_slow,
            OSError: _not_stored,
        },
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,  # counted here, while it is read
    )


@get("/", sync_to_thread=False)
def _root() -> dict[str, str]:
    return {
        "cog_version": _COG_PROTOCOL,
        "openapi_url": "/openapi.json",
        "healthcheck_url": "/health-check",
        "predictions_url": "/predictions",
        "predictions_idempotent_url": "/predictions/{prediction_id}",
        "predictions_cancel_url": "/predictions/{prediction_id}/cancel",
        "shutdown_url": "/shutdown",
    }


@get("/health-check", sync_to_thread=False)
def _health(state: State) -> dict[str, Any]:
    backend = _backend(state)
    backend.predictions.forget_old()
    return {
        "status": backend.health,
        "setup": asdict(backend.setup),
        "version": {"coglet": _COG_PROTOCOL, "image-gateway": _own_version(), "python": sys.version.split()[0]},
        "model": backend.model.name,
        "queue": backend.predictions.waiting,
    }


@get("/openapi.json", sync_to_thread=False)
def _openapi(state: State) -> dict[str, Any]:
    return openapi_document(_backend(state).model, _own_version())


@post("/predictions", status_code=200)
async def _post_prediction(request: HttpRequest, state: State) -> HttpResponse:
    return await _predict(request, _backend(state), None)


@put("/predictions/{prediction_id:str}")
async def _put_prediction(request: HttpRequest, state: State, prediction_id: str) -> HttpResponse:
    return await _predict(request, _backend(state), prediction_id)


@get("/predictions/{prediction_id:str}", sync_to_thread=False)
def _get_prediction(state: State, prediction_id: str) -> HttpResponse:
    prediction = _backend(state).predictions.find(prediction_id)
    if prediction is None:
        return _detail(404, f"no prediction {prediction_id}: it never was, or it is no longer kept")
    prediction.asked_again = True
    return _answer(prediction)


@post("/predictions/{prediction_id:str}/cancel", status_code=200)
async def _cancel(state: State, prediction_id: str) -> HttpResponse:
    predictions = _backend(state).predictions
    prediction = predictions.find(prediction_id)
    if prediction is None:
        return Response({}, status_code=404)
    await predictions.cancel(prediction)
    return Response({})


@post("/shutdown", status_code=200, sync_to_thread=False)
def _shutdown(state: State) -> dict[str, str]:
    _backend(state).stopping.ask()
    return {}


def _refuse_browsers(request: HttpRequest) -> HttpResponse | None:
    """A page in somebody's browser must not reach a server on the loopback interface that asks for no key."""
    if "origin" in request.headers or "sec-fetch-site" in request.headers:
        return _detail(403, "requests from web pages are not served")
    return None


async def _predict(request: HttpRequest, backend: Backend, id_: str | None) -> HttpResponse:
    """Run a prediction and answer with its end, or at once where that is asked for or the id is known already."""
    if id_ is not None and (known := backend.predictions.find(id_)) is not None:
        await _drain(request.stream())
        return _repeated(known)
    if backend.predictions.is_full:
        await _drain(request.stream())
        raise AtCapacity
    task = await _task(request, backend, id_)
    id_ = id_ or task.id or new_id()
    try:
        if (known := backend.predictions.find(id_)) is not None:  # two at once, and the other was read first
            _discard(task)
            return _repeated(known)
        prediction = backend.predictions.start(id_, task)
    except AtCapacity:
        _discard(task)
        raise
    if "respond-async" in request.headers.get("prefer", ""):
        prediction.asked_again = True
        return Response({"id": id_, "status": Status.STARTING}, status_code=202)
    await _ended_or_left(request.receive, prediction, backend.predictions)
    return _answer(prediction)


async def _task(request: HttpRequest, backend: Backend, id_: str | None) -> Task:
    """Read the request's body into a checked task."""
    stream = request.stream()
    try:
        async with asyncio.timeout(_BODY_DEADLINE_S):
            body = await receive_body(stream, backend.spool, MAX_BODY_BYTES)
    except TimeoutError:
        raise
    except (BodyTooLarge, OSError):
        await _drain(stream)
        raise
    with body:
        task = await asyncio.to_thread(read_task, body, backend.model.inputs, backend.spool)
    problem = _id_problem(id_, task.id)
    if problem is not None:
        _discard(task)
        raise InputInvalid([problem])
    return task


def _id_problem(in_url: str | None, in_body: str | None) -> Problem | None:
    if len(in_url or in_body or "") > _LONGEST_ID:
        return Problem(("body", "id"), f"prediction ID is longer than {_LONGEST_ID} characters", "value_error")
    if in_url is not None and in_body not in (None, in_url):
        return Problem(("body", "id"), "prediction ID must match the ID supplied in the URL", "value_error")
    return None


def _discard(task: Task) -> None:
    for path in task.files:
        path.unlink(missing_ok=True)


async def _drain(stream: AsyncIterator[bytes]) -> None:
    """Read on, up to a bound, what is not wanted."""
    left = _DRAIN_BYTES + MAX_BODY_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_BODY_DEADLINE_S):
            async for chunk in stream:
                left -= len(chunk)
                if left < 0:
                    return


async def _ended_or_left(receive: Receive, prediction: Prediction, predictions: Predictions) -> None:
    """Wait for the end. If the client leaves first and nobody else has asked for the prediction, cancel it, as Cog does."""
    ended = asyncio.create_task(prediction.ended.wait())
    left = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((ended, left), return_when=asyncio.FIRST_COMPLETED)
        if not prediction.has_ended and not prediction.asked_again:
            await predictions.cancel(prediction)
    finally:
        for task in (ended, left):
            task.cancel()
        await asyncio.gather(ended, left, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _repeated(prediction: Prediction) -> HttpResponse:
    """The answer to a PUT of an id that is known: 202 while it runs, as Cog; its result afterwards, unlike Cog."""
    prediction.asked_again = True
    return _answer(prediction, 200 if prediction.has_ended else 202)


def _answer(prediction: Prediction, status_code: int = 200) -> HttpResponse:
    facts = _facts(prediction)
    if prediction.output is None:
        return Response(facts, status_code=status_code)
    # Opened now: if the prediction is forgotten meanwhile, the file can still be read to its end.
    file = prediction.output.open("rb", buffering=0)
    head = msgspec.json.encode(facts)[:-1] + b',"output":"data:image/png;base64,'
    length = len(head) + (prediction.output_bytes + 2) // 3 * 4 + 2
    return Stream(
        _output_pieces(file, head),
        status_code=status_code,
        media_type="application/json",
        headers={"content-length": str(length)},
    )


async def _output_pieces(file: IO[bytes], head: bytes) -> AsyncIterator[bytes]:
    """The answer with the result in it; the picture goes from the file to the socket in small pieces."""
    with file:
        yield head
        while piece := file.read(_PIECE_BYTES):
            yield pybase64.b64encode(piece)
        yield b'"}'


def _facts(prediction: Prediction) -> dict[str, Any]:
    """All of a prediction but its output."""
    facts = {
        "id": prediction.id,
        "status": prediction.status,
        "progress": prediction.progress,
        "logs": prediction.logs,
        "metrics": {} if prediction.seconds is None else {"predict_time": prediction.seconds},
        "created_at": prediction.created_at,
        "started_at": prediction.started_at,
        "completed_at": prediction.completed_at,
        "error": prediction.error,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _too_large(_: HttpRequest, __: BodyTooLarge) -> HttpResponse:
    return _detail(413, f"the body is longer than {MAX_BODY_BYTES} bytes")


def _malformed(_: HttpRequest, error: BodyMalformed) -> HttpResponse:
    return _detail(400, f"Failed to parse the request body as JSON: {error}")


def _invalid(_: HttpRequest, error: InputInvalid) -> HttpResponse:
    return Response({"detail": [asdict(problem) for problem in error.problems]}, status_code=422)


def _at_capacity(_: HttpRequest, __: AtCapacity) -> HttpResponse:
    return _failed(409, "At capacity - all prediction slots busy")


def _too_slow(_: HttpRequest, __: TimeoutError) -> HttpResponse:
    return _detail(408, f"the body did not arrive within {_BODY_DEADLINE_S} s")


def _not_stored(_: HttpRequest, error: OSError) -> HttpResponse:
    return _failed(503, f"cannot store the request: {error.strerror}")


def _detail(status_code: int, detail: str) -> HttpResponse:
    return Response({"detail": detail}, status_code=status_code)


def _failed(status_code: int, error: str) -> HttpResponse:
    return Response({"error": error, "status": Status.FAILED}, status_code=status_code)


def _backend(state: State) -> Backend:
    backend = state["backend"]
    assert isinstance(backend, Backend)
    return backend


def _own_version() -> str:
    try:
        return version("image-gateway")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"


def main(argv: list[str] | None = None) -> int:
    """Run the backend as `python -m providers.local.server` does; returns the exit status.

    Once it listens, it prints one line on stdout: `{"url": "http://127.0.0.1:PORT"}`.
    """
    options = _options(argv)
    with (
        closing(listen(options.host, options.port)) as listener,
        closing(Spool()) as spool,
        asyncio.Runner(loop_factory=fast_loop) as runner,
    ):
        runner.run(_serve(options, listener, spool))
    return 0


async def _serve(options: argparse.Namespace, listener: socket.socket, spool: Spool) -> None:
    backend = Backend(MODELS[options.model](), WorkerPool(options.model, options.workers), spool, options.queue)
    async with backend.running():
        await serve_until_stopped(
            create_backend_app(backend), listener, backend.stopping, exit_with_parent=options.exit_with_parent
        )


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="image-gateway local serve", description="Serve a model through Cog's prediction API.")
    parser.add_argument("--host", default="127.0.0.1", help="there is no authentication: keep it on the loopback interface")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--device", choices=("cpu",), default="cpu")
    parser.add_argument("--model", choices=tuple(MODELS), default="detail-upscaler")
    parser.add_argument("--workers", type=_positive, default=os.cpu_count() or 1, help="predictions that run at the same time")
    parser.add_argument("--queue", type=int, default=32, help="predictions that may wait beyond those")
    parser.add_argument("--exit-with-parent", action="store_true", help="exit when stdin is closed")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
