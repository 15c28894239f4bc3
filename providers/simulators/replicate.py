"""A stand-in for Replicate: the HTTP API that its clients speak, over the catalog's models, which really make pictures.

It differs in this: webhook addresses may be http, no limit on rates is enforced, and deployments, trainings and streams are absent.

Sources: https://replicate.com/docs/reference/http; Replicate's OpenAPI document; recordings of the Python client's tests.
"""

import argparse
import asyncio
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

from providers.catalog import Catalog, CatalogError, load_catalog
from providers.simulators.kit import Faults, FaultUnknown, Kit
from providers.simulators.replicate_files import Fetcher, FileRefused, Files
from providers.simulators.replicate_models import Complaint, SoldModel, complaints, open_storefront
from providers.simulators.replicate_predictions import EVENTS, Output, Prediction, Predictions, elsewhere, moment, new_id
from providers.simulators.replicate_webhooks import Webhooks
from providers.simulators.serving import Answer, NoAnswer, Request, add_serving_options, json_answer, run_simulator

CALL_FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "bad_key": "every call is answered 401",
        "no_credit": "creates are answered 402",
        "rate_limit": "creates are answered 429, the seconds (=ARG, 30) in the body and in Retry-After",
        "rate_limit_no_header": "the same, the seconds in the body only",
        "submit_500": "creates are answered 500, and nothing is created",
        "html_error": "creates are answered 502 with a page in HTML, and nothing is created",
        "submit_lost": "the prediction is created, then the connection is closed without an answer",
    }
)
"""What can go wrong with a call, decided for each."""

PREDICTION_FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "stalled_queue": "it never starts",
        "status_500_every_second": "every second GET of it is answered 500",
        "redirect": "GETs of it are redirected to the origin =ARG (http://127.0.0.2:9)",
        "cuda_oom": "it fails: out of memory",
        "nsfw": "it fails: flagged content",
        "interrupted_pa": "it fails: interrupted, code PA",
        "black": "results are black",
        "corrupt": "results are rubbish in their second half",
        "wrong_size": "results have two thirds of their width and height",
        "truncated_download": "results end at their half, and are announced so",
        "empty_output": "it succeeds without a result",
        "result_404": "results are not found",
        "expired_result": "results are removed as soon as it has succeeded",
        "cut_download_twice": "the connection is closed at half of what was asked, twice for each result",
        "slow_download": "results take =ARG seconds (5)",
        "foreign_urls": "its own addresses are at the origin =ARG (http://127.0.0.2:9)",
        "foreign_result": "results' addresses are at the origin =ARG (http://127.0.0.2:9)",
        "webhook_lost": "its webhooks are not sent",
    }
)
"""What can go wrong with a prediction, decided for each when it is created."""

FAULTS: Mapping[str, str] = MappingProxyType({**CALL_FAULTS, **PREDICTION_FAULTS})

HARDWARE = (
    ("CPU", "cpu"),
    ("Nvidia T4 GPU", "gpu-t4"),
    ("Nvidia L40S GPU", "gpu-l40s"),
    ("2x Nvidia L40S GPU", "gpu-2x-l40s"),
    ("Nvidia A100 (80GB) GPU", "gpu-a100-large"),
    ("Nvidia H100 GPU", "gpu-h100"),
)

_PAGE = 100
_LIMITS = {True: 600, False: 3000}
"""Calls a minute: creates, and all else. Source: https://replicate.com/docs/topics/predictions/rate-limits."""
_BAD_TOKEN = "bad"  # noqa: S105 - the one that is no key here
_SHORTEST_LIFE_S = 5
_NOT_FOUND = "The requested resource could not be found."
_BROKEN = "Internal server error"
_HTML = b"<html><head><title>502 Bad Gateway</title></head><body><center><h1>502 Bad Gateway</h1></center></body></html>"


class _Refused(Exception):
    """A call that is answered with a problem."""

    def __init__(self, status: int, detail: str, title: str | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.body = {"detail": detail, "status": status, **({"title": title} if title else {}), **more}
        self.headers: dict[str, str] = {}

    def answer(self) -> Answer:
        return json_answer(self.status, self.body, {"content-type": "application/problem+json", **self.headers})


class ReplicateSimulator:
    """One account at the stand-in."""

    def __init__(
        self,
        catalog: Catalog,
        faults: Iterable[str] = (),
        *,
        speed: float = 10.0,
        delivery: str | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take what is sold.

        Args:
            catalog: Its Replicate offers are the models.
            faults: What is switched on from the start; see `FAULTS`.
            speed: How many times faster than life predictions run; they are billed as in life.
            delivery: The origin of results' addresses, where it is to differ from the API's.
            now: The clock for deadlines and for what expires.

        Raises:
            FaultUnknown: For a fault that is not one.
        """
        self.kit = Kit(Faults(FAULTS, faults))
        self.webhooks = Webhooks(speed)
        self.models = open_storefront(catalog)
        self.files = Files(now)
        self.predictions = Predictions(self.kit, self.webhooks, now, speed, delivery)
        self._fetcher = Fetcher(self.files, self._result)
        self._now = now

    async def handle(self, request: Request) -> Answer:
        """Answer a call, or close its connection."""
        own = self.kit.answer(request)
        if own is not None:
            return own
        if request.path == "/_sim/jobs":
            return json_answer(200, self.predictions.listing())
        if request.path.startswith("/delivery/"):
            return self._deliver(request)
        try:
            answer = await self._call(request)
        except _Refused as refused:
            answer = refused.answer()
        return _with_limits(answer, is_create=request.method == "POST" and request.path.endswith("predictions"))

    async def close(self) -> None:
        """End whatever still runs."""
        await self.predictions.close()
        await self.webhooks.close()
        await self._fetcher.close()

    async def _call(self, request: Request) -> Answer:
        parts = request.path.strip("/").split("/")
        if parts[0] != "v1":
            raise _Refused(404, _NOT_FOUND)
        self._check_token(request)
        match request.method, *parts[1:]:
            case "POST", "predictions":
                return await self._create(request, None)
            case "POST", "models", owner, name, "predictions":
                return await self._create(request, self._official(owner, name))
            case "GET", "predictions":
                return self._list(request)
            case "GET", "predictions", id_:
                return self._get(id_)
            case "POST", "predictions", id_, "cancel":
                return self._cancel(id_)
            case _, "files", *rest:
                return self._file_call(request, rest)
            case "GET", *rest:
                return self._look_up(rest)
            case _:
                raise _Refused(404, _NOT_FOUND)

    def _check_token(self, request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        known = scheme in ("Bearer", "Token") and token.strip() not in ("", _BAD_TOKEN)
        if not known or self.kit.faults.strike("bad_key"):
            self.kit.counters.count("", "refused")
            raise _Refused(401, "You did not pass a valid authentication token", "Unauthenticated")

    async def _create(self, request: Request, official: SoldModel | None) -> Answer:
        body = _json_body(request)
        model = official or self._versioned(body)
        self.kit.counters.count(model.endpoint if model else "", "create")
        self._refuse_by_fault()
        _check_body(body, with_version=official is None)
        if model is None:
            raise _Refused(
                422,
                "The specified version does not exist (or perhaps you don't have permission to use it?)",
                "Invalid version or not permitted",
            )
        _complain(complaints(model.inputs, body["input"]))
        prediction = self._prediction(request, body, model)
        lost = self.kit.faults.strike("submit_lost")
        prediction.answered = lost is None
        self.predictions.start(prediction, lambda address: self._fetcher.fetch(address, request.origin))
        if lost is not None:
            raise NoAnswer
        return await _waited(prediction, request)

    def _refuse_by_fault(self) -> None:
        strike = self.kit.faults.strike
        if strike("no_credit"):
            raise _Refused(
                402,
                "You have insufficient credit to run this model. Go to https://replicate.com/account/billing#billing to purchase"
                " credit. Once you purchase credit, please wait a few minutes before trying again.",
                "Insufficient credit",
            )
        for name in ("rate_limit", "rate_limit_no_header"):
            fault = strike(name)
            if fault is not None:
                raise _throttled(round(fault.number(30)), tell=name == "rate_limit")
        if strike("submit_500"):
            raise _Refused(500, _BROKEN)
        if strike("html_error"):
            raise _Page(502)

    def _official(self, owner: str, name: str) -> SoldModel:
        model = self.models.named(owner, name)
        if model is None or not model.is_official:
            self.kit.counters.count(model.endpoint if model else "", "create")
            raise _Refused(404, _NOT_FOUND)
        return model

    def _versioned(self, body: Mapping[str, Any]) -> SoldModel | None:
        version = body.get("version")
        return self.models.versioned(version) if isinstance(version, str) else None

    def _prediction(self, request: Request, body: Mapping[str, Any], model: SoldModel) -> Prediction:
        now = self._now()
        life_s = _life_s(request.headers.get("cancel-after"))
        struck = {name: self.kit.faults.strike(name) for name in PREDICTION_FAULTS}
        return Prediction(
            id=new_id(),
            number=self.predictions.count(),
            model=model,
            given=body["input"],
            created_at=now,
            origin=request.origin,
            deadline=now + timedelta(seconds=life_s) if life_s is not None else None,
            webhook=body.get("webhook"),
            events=frozenset(body.get("webhook_events_filter") or ("output", "completed")),
            faults={name: fault for name, fault in struck.items() if fault is not None},
        )

    def _list(self, request: Request) -> Answer:
        self.kit.counters.count("", "list")
        every = self.predictions.newest_first()
        since, until = (_moment(request.query.get(name)) for name in ("created_after", "created_before"))
        if request.query.get("source") == "web":
            every = []
        found = [one for one in every if (since is None or one.created_at >= since) and (until is None or one.created_at < until)]
        return json_answer(200, _page(found, request))

    def _get(self, id_: str) -> Answer:
        prediction = self._known(id_, "get")
        prediction.polls += 1
        redirect = prediction.faults.get("redirect")
        if redirect is not None:
            return Answer(307, b"", {"location": f"{elsewhere(redirect)}/v1/predictions/{id_}"})
        if "status_500_every_second" in prediction.faults and prediction.polls % 2 == 0:
            raise _Refused(500, _BROKEN)
        return json_answer(200, prediction.as_json())

    def _cancel(self, id_: str) -> Answer:
        prediction = self._known(id_, "cancel")
        self.predictions.cancel(prediction)
        return json_answer(200, prediction.as_json())

    def _known(self, id_: str, route: str) -> Prediction:
        prediction = self.predictions.find(id_)
        self.kit.counters.count(prediction.model.endpoint if prediction else "", route)
        if prediction is None:
            raise _Refused(404, _NOT_FOUND)
        return prediction

    def _file_call(self, request: Request, rest: Sequence[str]) -> Answer:
        self.kit.counters.count("", f"file {request.method.lower()}")
        match request.method, *rest:
            case ("POST",):
                try:
                    return json_answer(201, self.files.store(request).as_json())
                except FileRefused as refused:
                    raise _Refused(refused.status, refused.detail) from refused
            case ("GET",):
                stored = [file.as_json() for file in self.files.newest_first()]
                return json_answer(200, {"previous": None, "next": None, "results": stored})
            case "GET", id_:
                file = self.files.find(id_)
                if file is not None:
                    return json_answer(200, file.as_json())
            case "DELETE", id_:
                if self.files.delete(id_):
                    return Answer(204)
            case _:
                pass
        raise _Refused(404, "File not found")

    def _look_up(self, rest: Sequence[str]) -> Answer:
        """What is only read: the account, the models."""
        self.kit.counters.count("", "look up")
        match rest:
            case ["account"]:
                return json_answer(200, {"type": "user", "username": "sim", "name": "Simulated account", "github_url": None})
            case ["hardware"]:
                return json_answer(200, [{"name": name, "sku": sku} for name, sku in HARDWARE])
            case ["webhooks", "default", "secret"]:
                return json_answer(200, {"key": self.webhooks.secret})
            case ["models"]:
                return json_answer(200, _only_page([_model_json(model) for model in self.models.models.values()]))
            case ["models", owner, name, *more]:
                model = self.models.named(owner, name)
                if model is not None:
                    return _model_answer(model, more)
            case _:
                pass
        raise _Refused(404, _NOT_FOUND)

    def _result(self, path: str) -> bytes | None:
        output = self.predictions.output(path)
        return output.data if output is not None else None

    def _deliver(self, request: Request) -> Answer:
        """A result file. Nobody has to say who they are; whoever sends a token here has told it to a stranger."""
        counted = "result with a token" if "authorization" in request.headers else "result"
        self.kit.counters.count("", counted)
        output = self.predictions.output(request.path)
        if output is None or "result_404" in output.faults:
            return Answer(
                404,
                b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>NoSuchKey</Code></Error>",
                {"content-type": "application/xml"},
            )
        return self._file_answer(request, output)

    def _file_answer(self, request: Request, output: Output) -> Answer:
        size = len(output.data)
        headers = {"content-type": output.mime, "accept-ranges": "bytes", "etag": f'"{request.path.split("/")[3]}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        start, end = (int(asked[1]), min(int(asked[2] or size), size - 1) + 1) if asked else (0, size)
        if start >= end:
            return Answer(416, b"", {"content-range": f"bytes */{size}"})
        if asked:
            headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
        slow = output.faults.get("slow_download")
        cut_at = None
        if output.cuts < 2 and "cut_download_twice" in output.faults:
            output.cuts += 1
            cut_at = (end - start) // 2
        takes_s = slow.number(5) if slow is not None else 0.0
        return Answer(206 if asked else 200, output.data[start:end], headers, cut_at=cut_at, takes_s=takes_s)


class _Page(_Refused):
    """A fault of the edge, which speaks HTML."""

    def __init__(self, status: int) -> None:
        super().__init__(status, "")

    def answer(self) -> Answer:
        return Answer(self.status, _HTML, {"content-type": "text/html"})


def _throttled(seconds: int, *, tell: bool) -> _Refused:
    detail = f"Request was throttled. Your rate limit resets in ~{seconds}s."
    refused = _Refused(429, detail, retry_after=seconds)
    if tell:
        refused.headers["retry-after"] = str(seconds)
    return refused


def _json_body(request: Request) -> dict[str, Any]:
    try:
        body = request.json()
    except ValueError as error:
        raise _Refused(400, "The request body is not valid JSON") from error
    if not isinstance(body, dict):
        raise _Refused(400, "The request body is not a JSON object")
    return body  # pyright: ignore[reportUnknownVariableType] -- JSON objects have text for keys


def _check_body(body: Mapping[str, Any], *, with_version: bool) -> None:
    """Refuse a create that is wrong whatever the model."""
    required = ("version", "input") if with_version else ("input",)
    allowed = {*required, "webhook", "webhook_events_filter", "stream"}
    found = [Complaint("required", "", f"{name} is required") for name in required if name not in body]
    found += [
        Complaint("additional_property_not_allowed", "", f"Additional property {name} is not allowed")
        for name in body
        if name not in allowed
    ]
    for name, kind, words in (("version", str, "string"), ("input", dict, "object"), ("webhook", str, "string")):
        if name in body and not isinstance(body[name], kind) and name in allowed:
            found.append(Complaint("invalid_type", name, f"Invalid type. Expected: {words}, given: {type(body[name]).__name__}"))
    events = body.get("webhook_events_filter", [])
    if not isinstance(events, list) or not all(event in EVENTS for event in events):  # pyright: ignore[reportUnknownVariableType] -- looked at here
        allowed_events = ", ".join(f'"{event}"' for event in EVENTS)
        words = f"webhook_events_filter must be one of the following: {allowed_events}"
        found.append(Complaint("enum", "webhook_events_filter", words))
    if isinstance(body.get("webhook"), str) and not re.match(r"https?://\S", body["webhook"]):
        found.append(Complaint("format", "webhook", "Does not match format 'uri'"))
    _complain(found)


def _complain(found: Sequence[Complaint]) -> None:
    if found:
        fields = [{"type": one.type, "field": one.field, "description": one.description} for one in found]
        raise _Refused(422, "".join(one.line for one in found), "Input validation failed", invalid_fields=fields)


async def _waited(prediction: Prediction, request: Request) -> Answer:
    """The answer to a create, after as long as the client wants to wait for the outputs."""
    asked = re.fullmatch(r"wait(?:=(\d+))?", request.headers.get("prefer", ""))
    wait_s = int(asked[1] or 60) if asked else 0
    if not 1 <= wait_s <= 60:  # a preference that is not understood is ignored
        return json_answer(201, prediction.as_json())
    applied = {"preference-applied": request.headers["prefer"]}
    try:
        async with asyncio.timeout(wait_s):
            await prediction.has_news.wait()
    except TimeoutError:
        # Also what runs already is said to be starting.
        return json_answer(202, {**prediction.as_json(), "status": "starting"}, applied)
    return json_answer(201, prediction.as_blocking_json(), applied)


def _life_s(text: str | None) -> float | None:
    """The seconds of `Cancel-After`: `90`, `30s`, `5m`, `1h30m45s`."""
    if text is None:
        return None
    written = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text.strip())
    if written is None or not any(written.groups()):
        raise _Refused(400, f"Invalid Cancel-After header: {text}")
    hours, minutes, seconds = (int(part or 0) for part in written.groups())
    life_s = hours * 3600 + minutes * 60 + seconds
    if life_s < _SHORTEST_LIFE_S:
        raise _Refused(400, f"Invalid Cancel-After header: the minimum duration is {_SHORTEST_LIFE_S} seconds")
    return life_s


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise _Refused(400, "Invalid date-time") from error
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _page(found: Sequence[Prediction], request: Request) -> dict[str, Any]:
    """The newest hundred, or those around the cursor, and the ways to the next and the previous ones."""
    first = _after_cursor(found, request.query.get("cursor"))
    shown = found[first : first + _PAGE]
    here = f"{request.origin}/v1/predictions?cursor="
    older = first + _PAGE < len(found)
    return {
        "previous": f"{here}{_cursor('to', shown[0].number)}" if first and shown else None,
        "next": f"{here}{_cursor('from', shown[-1].number)}" if older else None,
        "results": [prediction.as_json() for prediction in shown],
    }


def _after_cursor(found: Sequence[Prediction], cursor: str | None) -> int:
    if cursor is None:
        return 0
    try:
        side, _, number = urlsafe_b64decode(cursor).decode().partition(" ")
        at = int(number)
    except ValueError as error:
        raise _Refused(400, "Invalid cursor") from error
    if side == "to":
        return max(0, sum(one.number > at for one in found) - _PAGE)
    return sum(one.number >= at for one in found)


def _cursor(side: str, number: int) -> str:
    return urlsafe_b64encode(f"{side} {number:011}".encode()).decode()


def _only_page(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {"previous": None, "next": None, "results": results}


def _model_answer(model: SoldModel, more: Sequence[str]) -> Answer:
    match more:
        case []:
            return json_answer(200, _model_json(model))
        case ["versions"]:
            return json_answer(200, _only_page([_version_json(model)]))
        case ["versions", id_] if id_ == model.version:
            return json_answer(200, _version_json(model))
        case _:
            raise _Refused(404, _NOT_FOUND)


def _model_json(model: SoldModel) -> dict[str, Any]:
    return {
        "url": f"https://replicate.com/{model.id}",
        "owner": model.owner,
        "name": model.name,
        "description": None,
        "visibility": "public",
        "is_official": model.is_official,
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "run_count": 0,
        "cover_image_url": None,
        "default_example": None,
        "latest_version": _version_json(model),
    }


def _version_json(model: SoldModel) -> dict[str, Any]:
    return {
        "id": model.version,
        "created_at": moment(datetime(2024, 10, 5, tzinfo=UTC)),
        "cog_version": "0.9.9",
        "openapi_schema": model.openapi_schema(),
    }


def _with_limits(answer: Answer, *, is_create: bool) -> Answer:
    """The answer with what is left of this minute's calls; the stand-in has never seen another call."""
    limits = {"ratelimit-remaining": str(_LIMITS[is_create] - 1), "ratelimit-reset": "1"}
    return replace(answer, headers={**answer.headers, **limits})


def main(argv: Sequence[str]) -> None:
    """Serve until stopped: `image-gateway sim replicate --port P [--fault NAME[=ARG][@N]] …`.

    Once it listens, it prints `{"origin": "http://…", "base_url": "http://…/v1"}` on stdout.
    """
    of_calls, of_predictions = (_listed(faults) for faults in (CALL_FAULTS, PREDICTION_FAULTS))
    parser = argparse.ArgumentParser(
        prog="image-gateway sim replicate",
        description="A stand-in for Replicate: any token but `bad` is good.",
        epilog=f"faults of calls:{of_calls}\n\nfaults of predictions, decided when they are created:{of_predictions}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_serving_options(parser)
    parser.add_argument("--catalog", type=Path, help="a folder of model files, added to the packaged ones or overriding them")
    parser.add_argument("--delivery", help="the origin of results' addresses (default: where the API is)")
    options = parser.parse_args(argv)
    try:
        simulator = ReplicateSimulator(load_catalog(options.catalog), options.fault, speed=options.speed, delivery=options.delivery)
    except (FaultUnknown, CatalogError) as error:
        parser.error(str(error))
    run_simulator(simulator, options, lambda origin: {"origin": origin, "base_url": f"{origin}/v1"})


def _listed(faults: Mapping[str, str]) -> str:
    return "".join(f"\n  {name:24} {what}" for name, what in faults.items())
