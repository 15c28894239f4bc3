"""Client of Cog's prediction API: the bundled backend, and any Cog container, of 2024 or of now.

Cog answers a prediction in the request that made it and (but for the bundled backend) cannot be asked about it later. So each
call is a task that holds one open PUT; tickets name it. An identifier is never PUT again once it may have run: Cog would run it
again. Pictures go both ways as data URIs.
"""

import asyncio
import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple, cast
from uuid import uuid4

import msgspec

from normalization.plan import Call
from providers import http
from providers.base import Done, ImageParts, RemoteImage, Running, Ticket, Usage
from providers.drive import Sleep, Unanswered
from providers.failures import FailureKind, ProviderFailure
from providers.spool import Spool
from providers.transfer import AnswerUnreadable, JsonBody, SpooledJson, json_body, read_spooled_json

_WORK_TIMEOUT = http.Timeout(None, connect=5.0, write=60.0)
"""For the PUT that a prediction lives in: its deadline is the driver's."""

_ASK_TIMEOUT = http.Timeout(1.0)
_HEALTH_TIMEOUT = http.Timeout(2.0)
_FETCH_TIMEOUT = http.Timeout(60.0, connect=5.0)

_NEWS_S = 1.0
"""How long a poll waits for the end before it says that the work goes on."""

_CANCEL_GRACE_S = 3.0
"""How long a cancelled prediction may take to say so before its connection is closed."""

_CAPACITY_WAITS_S = (0.25, 0.5, 1.0, 2.0, 2.0, 4.0, 4.0, 8.0, 8.0)
"""Pauses after "at capacity": somebody else uses the backend beside the gateway."""

_MAX_SHORT_BYTES = 2**20
_MAX_QUIET_ASKS = 3

_PICTURE_URL = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LocalBackend:
    """One server of the operator's own: an entry of `GATEWAY_LOCAL__BACKENDS`."""

    name: str
    url: str
    models: tuple[str, ...]
    """Which models it serves: the `endpoint` of offers of the provider `local`."""
    slots: int = 1
    """How many predictions it takes at once."""


class BackendState(StrEnum):
    """What a backend can do just now."""

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class BackendHealth:
    """One backend's state."""

    backend: str
    state: BackendState
    why: str | None = None
    """For the operator, when it is down."""


_STATES = {"READY": BackendState.READY, "BUSY": BackendState.BUSY, "STARTING": BackendState.STARTING}
"""Of `GET /health-check`. Source: replicate/cog, docs/http.md. All others (SETUP_FAILED, DEFUNCT, UNHEALTHY) are down."""


class _Backend:
    """A backend, and what this process knows of it."""

    def __init__(self, facts: LocalBackend) -> None:
        self.facts = facts
        self.name = facts.name
        self.url = facts.url.rstrip("/")
        self.slots = asyncio.Semaphore(facts.slots)
        self.waiting = 0
        """Calls that run on it or wait for it."""
        self.running = 0
        self.unreachable = False
        self.tells_progress = True

    @property
    def preference(self) -> tuple[bool, float]:
        """Sorts backends of one model: reachable before not, then by how much each has to do."""
        return self.unreachable, self.waiting / self.facts.slots


@dataclass(slots=True)
class _Run:
    """A call under way."""

    backend: _Backend
    prediction: str
    task: asyncio.Task[Done] | None = None
    sent: bool = False
    """Whether the backend may know of it."""
    quiet_asks: int = 0
    """How often in a row its progress was asked for in vain."""


class _Prediction(msgspec.Struct):
    """What is read of Cog's answer. Source: replicate/cog, docs/http.md."""

    status: str
    output: Any = None
    error: str | None = None
    metrics: dict[str, Any] | None = None
    progress: float | None = None
    """Of the bundled backend only."""


def new_prediction_id() -> str:
    """26 characters, as Cog wants them."""
    return base64.b32encode(uuid4().bytes).decode("ascii").rstrip("=").lower()


class CogProvider:
    """The provider `local`: the operator's own machines. What goes wrong here costs nothing, so the next offer may be tried."""

    name = "local"

    def __init__(
        self,
        backends: Sequence[LocalBackend],
        *,
        client: http.AsyncClient,
        spool: Spool,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        make_id: Callable[[], str] = new_prediction_id,
        sleep: Sleep = asyncio.sleep,
        max_picture_bytes: int = 2**30,
    ) -> None:
        """Take the backends, a client without a guard (these addresses are the operator's), and where results are put."""
        self._backends = {facts.name: _Backend(facts) for facts in backends}
        if len(self._backends) != len(backends):
            raise ValueError("two local backends have the same name")
        self._client = client
        self._spool = spool
        self._now = now
        self._make_id = make_id
        self._sleep = sleep
        self._max_picture_bytes = max_picture_bytes
        self._runs: dict[str, _Run] = {}

    def refusal(self, endpoint: str) -> str | None:
        """Whether any backend serves the model at all."""
        serves = any(endpoint in backend.facts.models for backend in self._backends.values())
        return None if serves else f"{self.name}: no backend serves {endpoint}; see GATEWAY_LOCAL__BACKENDS"

    async def submit(self, call: Call, images: ImageParts, *, alone: bool = False) -> Ticket:
        """Begin the call on the least loaded backend of its model. Refusals are met by the first poll."""
        backend = self._choose(call.endpoint)
        run = _Run(backend, self._make_id())
        ticket = Ticket(self.name, call.endpoint, f"{run.prediction}@{backend.name}", self._now())
        run.task = asyncio.create_task(self._carry_out(run, call, images), name=f"prediction {run.prediction}")
        self._runs[ticket.id] = run
        return ticket

    async def poll(self, ticket: Ticket) -> Running | Done:
        """Wait about a second for the end. Files of a `Done` belong to whoever asked."""
        run = self._runs.get(ticket.id)
        if run is None or run.task is None:
            return await self._poll_unknown(ticket)
        await asyncio.wait([run.task], timeout=_NEWS_S)
        if not run.task.done():
            return Running(await self._progress(run))
        self._runs.pop(ticket.id, None)
        return run.task.result()

    async def cancel(self, ticket: Ticket) -> None:
        """Tell the backend to stop, then close the connection and remove what came of it."""
        run = self._runs.pop(ticket.id, None)
        if run is None:
            await self._tell_to_stop(*self._place(ticket))
        else:
            await self._abandon(run)

    async def health(self) -> tuple[BackendHealth, ...]:
        """The state of every backend, asked now."""
        return tuple(await asyncio.gather(*(self._health(backend) for backend in self._backends.values())))

    async def close(self) -> None:
        """Cancel all that runs and remove its files."""
        runs, self._runs = list(self._runs.values()), {}
        await asyncio.gather(*(self._abandon(run) for run in runs))

    def _choose(self, model: str) -> _Backend:
        able = [backend for backend in self._backends.values() if model in backend.facts.models]
        if not able:
            raise ProviderFailure(FailureKind.MODEL_GONE, f"no local backend serves {model}")
        return min(able, key=lambda backend: backend.preference)

    async def _carry_out(self, run: _Run, call: Call, images: ImageParts) -> Done:
        backend = run.backend
        backend.waiting += 1
        try:
            async with backend.slots:
                backend.running += 1
                run.sent = True
                try:
                    return await self._predict(run, call, images)
                finally:
                    backend.running -= 1
        finally:
            backend.waiting -= 1

    async def _predict(self, run: _Run, call: Call, images: ImageParts) -> Done:
        """PUT until the backend has room: an answer of 409 means that nothing was taken, so that it may be asked again."""
        body = json_body({"input": call.payload}, images)
        for pause_s in (*_CAPACITY_WAITS_S, None):
            done = await self._put(run, body)
            if done is not None:
                return done
            await self._expect_life(run.backend)
            if pause_s is not None:
                await self._sleep(pause_s)
        raise ProviderFailure(FailureKind.RATE_LIMIT, f"the local backend {run.backend.name} is busy", retry_after_s=10)

    async def _put(self, run: _Run, body: JsonBody) -> Done | None:
        """One try. None if the backend has no room."""
        backend = run.backend
        url = f"{backend.url}/predictions/{run.prediction}"
        try:
            async with self._client.stream("PUT", url, content=body, headers=body.headers, timeout=_WORK_TIMEOUT) as response:
                backend.unreachable = False
                if response.status_code == 409:
                    return None
                if response.status_code not in {200, 201, 202}:
                    raise await self._refusal(backend, response)
                return _ended(backend, *await self._read(backend, response))
        except (http.ConnectError, http.ConnectTimeout) as exc:
            backend.unreachable = True
            raise _transient(f"the local backend {backend.name} is not running", exc) from exc
        except http.HTTPError as exc:
            raise _transient(f"the connection to the local backend {backend.name} broke while it was working", exc) from exc

    async def _read(self, backend: _Backend, response: http.Response) -> tuple[SpooledJson, _Prediction]:
        try:
            answer = await read_spooled_json(response.aiter_raw(), self._spool, max_part_bytes=self._max_picture_bytes)
        except AnswerUnreadable as exc:
            raise _transient(f"the local backend {backend.name} gave an answer that cannot be read", exc) from exc
        try:
            return answer, msgspec.convert(answer.document, _Prediction)
        except msgspec.ValidationError as exc:
            answer.discard()
            raise _transient(f"the local backend {backend.name} gave an answer that is not a prediction", exc) from exc

    async def _refusal(self, backend: _Backend, response: http.Response) -> ProviderFailure:
        """What a status other than success means."""
        said = await _read_short(response)
        match response.status_code:
            case 400 | 422:
                return _invalid(backend, said)
            case 413:
                return ProviderFailure(FailureKind.CALLER_FAULT, f"the picture is too large for the local backend {backend.name}")
            case 401 | 403:
                return ProviderFailure(
                    FailureKind.CREDENTIAL, f"the local backend {backend.name} refuses the gateway", detail=said.text
                )
            case 404 | 405:
                message = f"the local backend {backend.name} has no prediction API at its address"
                return ProviderFailure(FailureKind.MODEL_GONE, message, detail=said.text)
            case 503:
                message = f"the local backend {backend.name} is still starting"
                return ProviderFailure(FailureKind.TRANSIENT, message, detail=said.text, retry_after_s=5)
            case status:
                return _transient(f"the local backend {backend.name} answered with status {status}", said.text)

    async def _expect_life(self, backend: _Backend) -> None:
        """After "at capacity": a backend whose worker died says so for ever."""
        health = await self._health(backend)
        if health.state is BackendState.DOWN:
            raise _transient(f"the local backend {backend.name} is down", health.why)

    async def _health(self, backend: _Backend) -> BackendHealth:
        try:
            response = await self._client.get(f"{backend.url}/health-check", timeout=_HEALTH_TIMEOUT)
            status = _member(_json(response.content), "status")
        except (http.ConnectError, http.ConnectTimeout) as exc:
            backend.unreachable = True
            return BackendHealth(backend.name, BackendState.DOWN, f"it cannot be reached: {exc}")
        except http.HTTPError as exc:
            if backend.running:  # Cog of 2024 hears nothing while it works
                return BackendHealth(backend.name, BackendState.BUSY)
            return BackendHealth(backend.name, BackendState.DOWN, f"it does not answer: {exc}")
        backend.unreachable = False
        state = _STATES.get(str(status), BackendState.DOWN)
        return BackendHealth(backend.name, state, f"it says {status}" if state is BackendState.DOWN else None)

    async def _progress(self, run: _Run) -> float | None:
        """Ask the bundled backend how far it is. Others do not know the question, and are not asked again."""
        if not run.sent or not run.backend.tells_progress or run.quiet_asks >= _MAX_QUIET_ASKS:
            return None
        url = f"{run.backend.url}/predictions/{run.prediction}"
        try:
            async with self._client.stream("GET", url, timeout=_ASK_TIMEOUT) as response:
                if response.status_code == 405:
                    run.backend.tells_progress = False
                said = await _read_short(response)
        except http.HTTPError:
            run.quiet_asks += 1
            return None
        run.quiet_asks = 0
        progress = _member(said.document, "progress")
        return min(max(float(progress), 0.0), 1.0) if isinstance(progress, int | float) else None

    async def _poll_unknown(self, ticket: Ticket) -> Running | Done:
        """Look up a ticket of a process before this one. Only the bundled backend remembers predictions."""
        backend, prediction = self._place(ticket)
        try:
            async with self._client.stream("GET", f"{backend.url}/predictions/{prediction}", timeout=_FETCH_TIMEOUT) as response:
                if response.status_code != 200:
                    message = f"the local backend {backend.name} lost the work when the gateway was started again"
                    raise _transient(message, f"status {response.status_code} for the prediction")
                return await self._look(backend, response)
        except http.HTTPError as exc:
            message = f"the local backend {backend.name} cannot be asked for the work"
            raise Unanswered(FailureKind.TRANSIENT, message, detail=f"{message}: {exc}") from exc

    async def _look(self, backend: _Backend, response: http.Response) -> Running | Done:
        """Read a prediction that may be under way."""
        answer, prediction = await self._read(backend, response)
        if prediction.status in {"starting", "processing"}:
            answer.discard()
            return Running(prediction.progress)
        return _ended(backend, answer, prediction)

    async def _tell_to_stop(self, backend: _Backend, prediction: str) -> bool:
        """Whether the backend said that it will. Cog of 2024 hears it only when it is done."""
        try:
            response = await self._client.post(f"{backend.url}/predictions/{prediction}/cancel", timeout=_HEALTH_TIMEOUT)
        except http.HTTPError:
            return False
        return response.is_success

    async def _abandon(self, run: _Run) -> None:
        task = run.task
        assert task is not None
        if run.sent and not task.done() and await self._tell_to_stop(run.backend, run.prediction):
            await asyncio.wait([task], timeout=_CANCEL_GRACE_S)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            for output in task.result().outputs:
                if output.path is not None:
                    output.path.unlink(missing_ok=True)

    def _place(self, ticket: Ticket) -> tuple[_Backend, str]:
        prediction, _, name = ticket.id.partition("@")
        backend = self._backends.get(name)
        if backend is None:
            raise _transient(f"the local backend {name} is no longer configured", ticket.id)
        return backend, prediction


@dataclass(frozen=True, slots=True)
class _Said:
    """A short answer: its text, and the JSON in it, if it is JSON."""

    text: str
    document: Any


async def _read_short(response: http.Response) -> _Said:
    """Read at most the beginning of an answer that should be short."""
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > _MAX_SHORT_BYTES:
            break
    return _Said(content[:1000].decode("utf-8", "replace"), _json(content))


def _json(content: bytes | bytearray) -> Any:
    """What the JSON says; None if it is none."""
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _ended(backend: _Backend, answer: SpooledJson, prediction: _Prediction) -> Done:
    """The result of a prediction that has ended. Raises `ProviderFailure`, and then no file is left."""
    keep = frozenset[str]()
    try:
        match prediction.status:
            case "succeeded":
                keep = frozenset(key for key in _texts(prediction.output) if key in answer.parts)
                return _done(backend, answer, prediction)
            case "failed":
                raise _failure(backend, prediction.error or "")
            case "canceled" | "aborted":
                raise ProviderFailure(FailureKind.CANCELLED, f"the local backend {backend.name} was told to stop")
            case other:
                raise _transient(f"the local backend {backend.name} answered before it was done", other)
    finally:
        answer.discard(keep=keep)


def _done(backend: _Backend, answer: SpooledJson, prediction: _Prediction) -> Done:
    outputs: list[RemoteImage] = []
    for text in _texts(prediction.output):
        if part := answer.parts.get(text):
            outputs.append(RemoteImage(path=part.path))
        elif _PICTURE_URL.match(text):
            outputs.append(RemoteImage(url=text))
    if not outputs:
        raise _transient(f"the local backend {backend.name} finished without a picture", prediction.output)
    seconds = (prediction.metrics or {}).get("predict_time")
    return Done(tuple(outputs), Usage(seconds=Decimal(str(seconds)) if isinstance(seconds, int | float) else None))


def _texts(output: Any) -> list[str]:
    """All strings of an output: Cog models give one, a list, or an object of them."""
    match output:
        case str():
            return [output]
        case list():
            return [text for item in cast("list[Any]", output) for text in _texts(item)]
        case dict():
            return [text for item in cast("dict[str, Any]", output).values() for text in _texts(item)]
        case _:
            return []


class _Telling(NamedTuple):
    """An error text that says whose fault it was."""

    text: re.Pattern[str]
    kind: FailureKind
    public: str
    param: str | None = None


_TELLING = (
    _Telling(
        re.compile(r"nsfw|safety (checker|filter|system)|sensitive content", re.I),
        FailureKind.CONTENT,
        "the model's safety check refused the picture",
    ),
    _Telling(
        re.compile(r"cannot (identify|decode) image file|image file is truncated|broken data stream", re.I),
        FailureKind.CALLER_FAULT,
        "the model cannot read the picture",
        "image",
    ),
    _Telling(
        re.compile(r"(?P<why>the picture has .*pixels.*)", re.I), FailureKind.CALLER_FAULT, "the model refuses the picture", "image"
    ),
    _Telling(re.compile(r"input validation error:?\s*(?P<why>.*)", re.I), FailureKind.CALLER_FAULT, "the model refuses the input"),
    _Telling(re.compile(r"out of memory", re.I), FailureKind.TRANSIENT, "the model ran out of memory"),
    _Telling(re.compile(r"worker crashed", re.I), FailureKind.TRANSIENT, "the model crashed"),
)
"""Models raise what they like; what is not in here is a fault that another offer may not have.

Source: errors of Pillow, PyTorch, diffusers, Cog and the bundled backend as they are raised.
"""


def _failure(backend: _Backend, error: str) -> ProviderFailure:
    """Read the error of a prediction that failed."""
    for telling in _TELLING:
        if found := telling.text.search(error):
            why = found.groupdict().get("why")
            public = f"{telling.public}: {_short(why)}" if why else telling.public
            return ProviderFailure(telling.kind, public, detail=f"{backend.name}: {error[:2000]}", param=telling.param)
    return _transient(f"the model on the local backend {backend.name} failed", error)


def _invalid(backend: _Backend, said: _Said) -> ProviderFailure:
    """Read the two shapes of a refused input: a list of problems with their places, or one sentence."""
    detail: Any = _member(said.document, "detail")
    problems = [_problem(entry) for entry in cast("list[Any]", detail)] if isinstance(detail, list) else []
    if problems:
        message = "; ".join(f"{param}: {text}" if param else text for param, text in problems)
        param = problems[0][0]
    else:
        message, param = str(cast("object", detail) or _member(said.document, "error") or "it gives no reason"), None
    public = f"the local backend {backend.name} refuses the input: {_short(message)}"
    return ProviderFailure(FailureKind.CALLER_FAULT, public, detail=said.text, param=param)


def _problem(entry: Any) -> tuple[str | None, str]:
    place = _member(entry, "loc")
    names = [str(name) for name in cast("list[Any]", place) if name not in ("body", "input")] if isinstance(place, list) else []
    return (names[0] if names else None), str(_member(entry, "msg") or "not valid")


def _member(document: Any, key: str) -> Any:
    return cast("dict[str, Any]", document).get(key) if isinstance(document, dict) else None


def _short(text: str) -> str:
    """Enough for a person, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:299]}…"


def _transient(public: str, why: object) -> ProviderFailure:
    """A fault that another offer may not have; on machines of our own it cost nothing."""
    return ProviderFailure(FailureKind.TRANSIENT, public, detail=f"{public}: {str(why)[:2000]}")
