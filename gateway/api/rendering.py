"""The one place where errors become answers, and the header fields that every answer carries.

`error_handlers` is for litestar; `RequestId` is the outermost middleware, so that nothing escapes either.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast
from uuid import uuid4

import msgspec
import structlog
from litestar import Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import ASGIApp, HTTPResponseStartEvent, Message, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from gateway.errors import (
    BadRequest,
    Forbidden,
    GatewayError,
    InternalError,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    RateLimited,
    TimedOut,
    TooLarge,
    Unauthenticated,
)
from normalization.request import InvalidParameter

_JSON = "application/json"
_RETRIED_BY_CLIENTS = frozenset({408, 409, 429})
"""Besides every 5xx. Source: the retry rules of openai-python and openai-node."""
_OPENAI_VERSION = (b"openai-version", b"2020-10-01")

AnyRequest = Request[Any, Any, State]


@dataclass(frozen=True, slots=True)
class RenderedError:
    """An error as it goes over the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def new_request_id() -> str:
    """A fresh id for one request."""
    return f"req_{uuid4().hex}"


def error_handlers(log: FilteringBoundLogger) -> dict[int | type[Exception], Callable[[AnyRequest, Exception], Response[bytes]]]:
    """What litestar is given as `exception_handlers`.

    Args:
        log: Gets every error: a 5xx as an error, with the operator's detail and, for a crash, the trace; the rest as information.
    """

    def answer_error(request: AnyRequest, failure: Exception) -> Response[bytes]:
        rendered = render_error(failure, request.scope)
        log_error(log, failure, rendered.status)
        return Response(rendered.body, status_code=rendered.status, headers=dict(rendered.headers), media_type=_JSON)

    return {Exception: answer_error}


def render_error(failure: Exception, scope: Scope) -> RenderedError:
    """Write any exception as OpenAI's error body, without anything that its public message does not say."""
    error = translate(failure, scope["method"] if scope["type"] == "http" else "", scope["path"])
    foreign = failure if isinstance(failure, HTTPException) else None
    status = foreign.status_code if foreign else error.status
    members = _members(error, request_id_of(scope))
    headers = {**(foreign.headers or {} if foreign else {}), **_headers(error, status, retry_safe=members["retry_safe"])}
    return RenderedError(status, headers, msgspec.json.encode({"error": members}))


def translate(failure: Exception, method: str, path: str) -> GatewayError:
    """The gateway's own error for any exception; `InternalError`, with no word of the original, for what nobody foresaw."""
    match failure:
        case GatewayError():
            return failure
        case InvalidParameter():
            return BadRequest(failure.message, param=failure.param or None, code=failure.code)
        case HTTPException():
            return _translate_framework(failure, method, path)
        case _:
            return InternalError("the gateway failed in a way that it should not; the request id leads to the details")


def log_error(log: FilteringBoundLogger, failure: Exception, status: int) -> None:
    """Write an error to the log: a crash with its trace, a refusal as information."""
    if isinstance(failure, GatewayError):
        write = log.error if status >= HTTPStatus.INTERNAL_SERVER_ERROR else log.info
        write("request.failed", status=status, code=failure.code, param=failure.param, detail=failure.detail)
    elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request.crashed", status=status, exc_info=failure)
    else:
        log.info("request.refused", status=status)


class RequestId:
    """The outermost middleware: an id for the request, OpenAI's header fields on every answer, and no crash without an answer.

    The id is put in `scope["state"]["request_id"]` and bound, as `request_id`, to whatever is logged meanwhile.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        log: FilteringBoundLogger,
        new_id: Callable[[], str] = new_request_id,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Wrap `app`.

        Args:
            app: The whole application.
            log: Where crashes go that even the application's own error handler did not catch.
            new_id: Makes request ids.
            clock: Seconds, for `openai-processing-ms`: from the request's head to the answer's.
        """
        self._app = app
        self._log = log
        self._new_id = new_id
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = self._new_id()
        # litestar keeps a state that is there already; servers share theirs between requests, so it is copied
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        started_s = self._clock()
        answered = False

        async def send_named(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                message = _named(message, request_id, round((self._clock() - started_s) * 1000))
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_named)
            except Exception as failure:
                if answered:
                    raise  # too late for an answer: the server closes the connection, so that nobody takes a part for the whole
                rendered = render_error(failure, scope)
                log_error(self._log, failure, rendered.status)
                await _send_rendered(rendered, send_named)


def request_id_of(scope: Scope) -> str | None:
    """The id that `RequestId` gave the request; None outside of it."""
    found = scope["state"].get("request_id") if "state" in scope else None
    return found if isinstance(found, str) else None


def _members(error: GatewayError, request_id: str | None) -> dict[str, Any]:
    """The members of `error`, OpenAI's four first."""
    nothing_ran = not isinstance(error, InternalError | TimedOut)
    return {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
        "request_id": request_id,
        # after a crash or at a deadline nobody can say here what has been paid
        "billed_usd": "0" if nothing_ran else None,
        "retry_safe": nothing_ran,
        **error.extra,
    }


def _headers(error: GatewayError, status: int, *, retry_safe: bool) -> dict[str, str]:
    headers: dict[str, str] = {}
    should_retry = error.should_retry
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and not retry_safe:
        should_retry = False
    if should_retry is not None:
        headers["x-should-retry"] = str(should_retry).lower()
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return headers


def _translate_framework(failure: HTTPException, method: str, path: str) -> GatewayError:
    """Litestar's own refusals, which know nothing of the request's meaning."""
    status = failure.status_code
    match status:
        case 401:
            return Unauthenticated(failure.detail)
        case 403:
            return Forbidden(failure.detail)
        case 404:
            return NotFound(f"Invalid URL ({method} {path})")
        case 405:
            return MethodNotAllowed(_method_not_allowed(failure, method, path))
        case 413:
            return TooLarge(failure.detail)
        case 429:
            return RateLimited(failure.detail)
        case 503:
            return Overloaded("the gateway cannot take requests at the moment; try again later")
        case _ if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return InternalError("the gateway failed in a way that it should not; the request id leads to the details")
        case _:
            return _bad_request(failure, final=status in _RETRIED_BY_CLIENTS)


class _FinalBadRequest(BadRequest):
    """With a status that clients repeat by themselves, though it would end the same."""

    should_retry = False


def _bad_request(failure: HTTPException, *, final: bool) -> GatewayError:
    """A 4xx of litestar's, with the first parameter it names."""
    kind = _FinalBadRequest if final else BadRequest
    if isinstance(failure, ValidationException) and isinstance(failure.extra, list) and failure.extra:
        first = cast("dict[str, Any]", failure.extra[0])  # litestar's list of {message, key, source}
        return kind(str(first.get("message", failure.detail)), param=first.get("key"))
    return kind(failure.detail)


def _method_not_allowed(failure: HTTPException, method: str, path: str) -> str:
    allowed = (failure.headers or {}).get("Allow") or (failure.headers or {}).get("allow")
    return f"Not allowed to {method} on {path}" + (f"; use {allowed}." if allowed else ".")


def _named(message: Message, request_id: str, processing_ms: int) -> Message:
    start = cast("HTTPResponseStartEvent", message)
    headers = [*start.get("headers", []), (b"x-request-id", request_id.encode()), _OPENAI_VERSION]
    if not any(name == b"openai-processing-ms" for name, _ in headers):
        headers.append((b"openai-processing-ms", b"%d" % processing_ms))
    return cast("Message", {**start, "headers": headers})


async def _send_rendered(rendered: RenderedError, send: Send) -> None:
    headers = {"content-type": _JSON, "content-length": str(len(rendered.body)), **rendered.headers}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": rendered.status, "headers": encoded})
    await send({"type": "http.response.body", "body": rendered.body, "more_body": False})
