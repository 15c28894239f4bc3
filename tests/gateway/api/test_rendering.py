"""Errors as answers: OpenAI's body and header fields, whoever raised and wherever."""

from typing import Any

import httpx
import pytest
import structlog
from litestar import Litestar, MediaType, Request, get, post
from litestar.exceptions import HTTPException, ImproperlyConfiguredException
from litestar.middleware import ASGIMiddleware
from litestar.params import FromPath, FromQuery
from litestar.testing import RequestFactory
from structlog.testing import LogCapture

from gateway.api.rendering import RequestId, error_handlers, new_request_id, request_id_of
from gateway.errors import (
    AllOffersFailed,
    BadRequest,
    Conflict,
    GatewayError,
    InternalError,
    ModelNotFound,
    OverBudget,
    Overloaded,
    RateLimited,
    TimedOut,
    TooLarge,
    Unauthenticated,
)
from normalization.request import InvalidParameter


class App:
    """A small application whose routes raise what they are told to."""

    def __init__(self) -> None:
        self.raises: Exception | None = None
        self.written = LogCapture()
        self.log = structlog.wrap_logger(None, processors=[structlog.contextvars.merge_contextvars, self.written])

        @get("/ok", media_type=MediaType.TEXT)
        async def ok(request: Request[Any, Any, Any]) -> str:
            if self.raises:
                raise self.raises
            return request_id_of(request.scope) or ""

        @post("/typed/{number:int}", status_code=200)
        async def typed(number: FromPath[int], n: FromQuery[int]) -> dict[str, int]:
            return {"n": n + number}

        app = Litestar([ok, typed], exception_handlers=error_handlers(self.log), logging_config=None)
        ids = iter(f"req_{index}" for index in range(100))
        self.asgi: Any = RequestId(app, log=self.log, new_id=lambda: next(ids))

    async def ask(self, method: str = "GET", path: str = "/ok", **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.asgi, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path, **options)


@pytest.fixture
def app() -> App:
    return App()


async def test_every_answer_carries_openais_header_fields(app: App) -> None:
    """A good answer has a request id of its own, its time and the version; the handler sees the same id."""
    first, second = await app.ask(), await app.ask()

    assert first.text == first.headers["x-request-id"] == "req_0"
    assert second.headers["x-request-id"] == "req_1"
    assert first.headers["openai-processing-ms"].isdecimal()
    assert first.headers["openai-version"] == "2020-10-01"


@pytest.mark.parametrize(
    ("error", "status", "type_", "code"),
    [
        (BadRequest("m", param="size"), 400, "invalid_request_error", "invalid_value"),
        (InvalidParameter("size", "invalid_type", "m"), 400, "invalid_request_error", "invalid_type"),
        (Unauthenticated("m", code="invalid_api_key"), 401, "invalid_request_error", "invalid_api_key"),
        (OverBudget("m"), 402, "insufficient_quota", "insufficient_quota"),
        (ModelNotFound("m"), 404, "invalid_request_error", "model_not_found"),
        (Conflict("m"), 409, "invalid_request_error", None),
        (TooLarge("m"), 413, "invalid_request_error", "request_too_large"),
        (RateLimited("m"), 429, "requests", "rate_limit_exceeded"),
        (AllOffersFailed("m"), 502, "server_error", "all_offers_failed"),
        (Overloaded("m"), 503, "server_error", "overloaded"),
        (TimedOut("m"), 504, "server_error", "deadline_exceeded"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
async def test_errors_have_openais_shape(app: App, error: Exception, status: int, type_: str, code: str | None) -> None:
    """Each error of the tree is answered with its status and OpenAI's members first, the id and the money behind."""
    app.raises = error

    answer = await app.ask()

    body = answer.json()["error"]
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert list(body)[:7] == ["message", "type", "param", "code", "request_id", "billed_usd", "retry_safe"]
    assert (body["message"], body["type"], body["code"]) == ("m", type_, code)
    assert body["param"] == getattr(error, "param", None)
    assert body["request_id"] == answer.headers["x-request-id"] == "req_0"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BadRequest("m"), None),
        (Conflict("m"), "false"),
        (RateLimited("m"), None),
        (OverBudget("m"), "false"),
        (Overloaded("m"), None),
        (TimedOut("m"), "false"),
        (InternalError("m"), "false"),
        (RuntimeError("m"), "false"),
        (AllOffersFailed("m", extra={"retry_safe": False}), "false"),
        (AllOffersFailed("m", extra={"retry_safe": True}), None),
        (HTTPException(status_code=409, detail="m"), "false"),
        (HTTPException(status_code=408, detail="m"), "false"),
    ],
    ids=repr,
)
async def test_clients_are_told_not_to_repeat_what_cannot_succeed(app: App, error: Exception, expected: str | None) -> None:
    """What a repeat cannot mend, or could pay for twice, has `x-should-retry: false`; the rest is left to the client."""
    app.raises = error

    assert (await app.ask()).headers.get("x-should-retry") == expected


async def test_extra_members_and_waiting_times_are_shown(app: App) -> None:
    """`extra` stands in the body, over the defaults, and `retry_after_s` in the header, at least one second."""
    app.raises = Overloaded("m", retry_after_s=0.2, extra={"billed_usd": "0.01", "attempts": [1]})

    answer = await app.ask()

    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["billed_usd"] == "0.01"
    assert answer.json()["error"]["attempts"] == [1]


async def test_a_crash_says_nothing_of_itself_but_to_the_log(app: App) -> None:
    """An exception that nobody foresaw is a 500 without a word of it, and is logged with its trace and the id."""
    app.raises = ValueError("secret sk-123")

    answer = await app.ask()

    assert answer.status_code == 500
    assert "secret" not in answer.text
    body = answer.json()["error"]
    assert (body["type"], body["code"], body["billed_usd"], body["retry_safe"]) == ("server_error", "internal_error", None, False)
    (entry,) = app.written.entries
    assert (entry["event"], entry["log_level"], entry["request_id"]) == ("request.crashed", "error", "req_0")
    assert entry["exc_info"] is app.raises


async def test_refusals_are_information_and_faults_are_errors(app: App) -> None:
    """A 4xx is logged as information, with the operator's detail; a 5xx as an error."""
    app.raises = BadRequest("m", detail="d")
    await app.ask()
    app.raises = Overloaded("m", detail="e")
    await app.ask()

    assert [(entry["log_level"], entry["detail"]) for entry in app.written.entries] == [("info", "d"), ("error", "e")]


async def test_an_unknown_route_is_openais_404(app: App) -> None:
    """The message names method and path; the answer has an id."""
    answer = await app.ask("POST", "/v1/foo?key=secret")

    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "Invalid URL (POST /v1/foo)"
    assert (answer.json()["error"]["code"], answer.json()["error"]["request_id"]) == (None, "req_0")
    assert answer.headers["x-request-id"] == "req_0"


async def test_a_wrong_method_is_405(app: App) -> None:
    """The code is `method_not_supported`, and the answer says what the path takes."""
    answer = await app.ask("POST", "/ok")

    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_supported"
    assert "GET" in answer.headers["allow"]
    assert answer.headers["x-request-id"] == "req_0"


@pytest.mark.parametrize(("path", "param"), [("/typed/1?n=x", "n"), ("/typed/1", None)])
async def test_the_frameworks_own_validation_is_a_400(app: App, path: str, param: str | None) -> None:
    """What litestar itself refuses is a 400 in the same shape, with the parameter's name where litestar gives it."""
    answer = await app.ask("POST", path)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_the_frameworks_faults_keep_their_words_to_themselves(app: App) -> None:
    """A 500 of litestar's is as silent as any other."""
    app.raises = ImproperlyConfiguredException("inner words")

    answer = await app.ask()

    assert answer.status_code == 500
    assert "inner words" not in answer.text


async def test_errors_outside_of_the_application_are_answered_too() -> None:
    """A middleware that fails, even outside of litestar, ends in the same body, id included."""
    app = App()

    async def failing(_scope: Any, _receive: Any, _send: Any) -> None:
        raise Unauthenticated("no key")

    app.asgi = RequestId(failing, log=app.log, new_id=lambda: "req_x")
    refused = await app.ask()

    async def crashing(_scope: Any, _receive: Any, _send: Any) -> None:
        raise KeyError("inner")

    app.asgi = RequestId(crashing, log=app.log, new_id=lambda: "req_y")
    crashed = await app.ask()

    assert (refused.status_code, refused.json()["error"]["request_id"], refused.headers["x-request-id"]) == (401, "req_x", "req_x")
    assert (crashed.status_code, "inner" in crashed.text) == (500, False)


async def test_errors_of_litestars_middleware_are_answered_too(app: App) -> None:
    """An error raised in a litestar middleware goes through the same handler."""

    class Refusing(ASGIMiddleware):
        async def handle(self, scope: Any, receive: Any, send: Any, next_app: Any) -> None:
            raise Unauthenticated("no key", code="invalid_api_key")

    @get("/x")
    async def handler() -> None:
        return None

    inner = Litestar([handler], middleware=[Refusing()], exception_handlers=error_handlers(app.log), logging_config=None)
    app.asgi = RequestId(inner, log=app.log)

    answer = await app.ask(path="/x")

    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_a_failure_after_the_answer_began_is_not_papered_over(app: App) -> None:
    """Once an answer has started, an exception reaches the server, which closes the connection."""

    async def failing(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("late")

    middleware = RequestId(failing, log=app.log)

    async def send(_message: Any) -> None:
        return None

    with pytest.raises(RuntimeError, match="late"):
        await middleware(RequestFactory().get("/").scope, send, send)


def test_request_ids_are_openais() -> None:
    """Ids begin with `req_` and do not repeat."""
    ids = {new_request_id() for _ in range(100)}

    assert len(ids) == 100
    assert all(found.startswith("req_") for found in ids)


def test_every_error_of_the_tree_has_a_string_type() -> None:
    """OpenAI requires `type` to be text, whatever the error."""
    kinds = [GatewayError, *GatewayError.__subclasses__()]

    assert all(isinstance(kind.type, str) and 400 <= kind.status < 600 for kind in kinds)
