"""A stand-in for fal: queue, synchronous runs, storage, CDN, platform API and webhooks, in one process on one port.

Each of fal's hosts is a first path segment (`/queue`, `/run`, `/rest`, `/cdn`, `/api`), or itself where the client reaches it by
name. `/files/…` needs no key, `/proxy` obeys `x-fal-target-url` as the JavaScript client sends it, and `/_sim/…` is the kit's own.
"""

import argparse
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import msgspec

from providers.catalog import Catalog, load_catalog
from providers.simulators.fal_files import Files
from providers.simulators.fal_inputs import json_refused
from providers.simulators.fal_jobs import JOB_FAULTS, Asked, Job, Jobs, Outcome, State, elsewhere
from providers.simulators.fal_models import COMPUTE_S, Endpoint, app_of, endpoints_of, unit_name, unit_price
from providers.simulators.fal_webhooks import Webhooks
from providers.simulators.kit import Faults, FaultUnknown, Kit
from providers.simulators.serving import Answer, NoAnswer, Request, add_serving_options, json_answer, run_simulator

REQUEST_FAULTS = (
    "bad_key",
    "no_credit",
    "rate_limit",
    "rate_limit_no_header",
    "submit_500",
    "submit_lost",
    "html_error",
    "runner_lost",
)
"""Decided for each request, or for each attempt of a job."""

FAULTS = (*REQUEST_FAULTS, *JOB_FAULTS)

_HOSTS: Mapping[str, str] = {
    "queue.fal.run": "queue",
    "queue.falrun.com": "queue",
    "fal.run": "run",
    "falrun.com": "run",
    "rest.fal.ai": "rest",
    "rest.alpha.fal.ai": "rest",
    "v3.fal.media": "cdn",
    "v3b.fal.media": "cdn",
    "fal.media": "cdn",
    "api.fal.ai": "api",
}
_REQUEST = re.compile(r"/(?P<app>.+)/requests/(?P<id>[^/]+)(?P<rest>/status/stream|/status|/response|/cancel|)")
_NOT_FOUND = {"status": "NOT_FOUND"}
_HTML = b"<html><head><title>502 Bad Gateway</title></head><body><center><h1>502 Bad Gateway</h1></center><hr>nginx</body></html>"
_CONCURRENCY = 40
"""The most that an account gets without a contract. Source: https://docs.fal.ai, "concurrency limits"."""


def main(argv: Sequence[str]) -> None:
    """Serve until stopped: `image-gateway sim fal --port P [--fault NAME[=ARG][@N]] …`."""
    epilog = f"Faults: {', '.join(FAULTS)}."
    parser = argparse.ArgumentParser(prog="image-gateway sim fal", description="A stand-in for fal.", epilog=epilog)
    add_serving_options(parser)
    parser.add_argument("--catalog", type=Path, help="a folder of your own model files")
    parser.add_argument("--concurrency", type=int, default=_CONCURRENCY, help="how many jobs run at once (default %(default)s)")
    options = parser.parse_args(argv)
    catalog = load_catalog(options.catalog)
    try:
        simulator = FalSimulator(catalog, faults=options.fault, speed=options.speed, concurrency=options.concurrency)
    except FaultUnknown as error:
        parser.error(str(error))
    run_simulator(simulator, options, urls_of)


def urls_of(origin: str) -> Mapping[str, str]:
    """Where fal's hosts are, given the simulator's origin."""
    hosts = {service: f"{origin}/{service}" for service in ("queue", "run", "rest", "cdn")}
    return {"origin": origin, **hosts, "api": f"{origin}/api/v1"}


@dataclass(frozen=True, slots=True)
class _Place:
    """Which of fal's hosts is asked for what, and by which names the client knows the others."""

    service: str
    path: str
    bases: Mapping[str, str]

    @classmethod
    def of(cls, request: Request) -> Self:
        host, _, port = request.host.rpartition(":") if ":" in request.host else (request.host, "", "")
        if host in _HOSTS:
            names = {service: name for name, service in reversed(list(_HOSTS.items()))}
            bases = {service: f"{request.scheme}://{name}{port and ':' + port}" for service, name in names.items()}
            return cls(_HOSTS[host], request.path, {**bases, "files": bases["cdn"], "upload": bases["cdn"]})
        bases = {**urls_of(request.origin), "files": request.origin, "upload": request.origin}
        if request.path.startswith(("/files/", "/upload/")):
            return cls("cdn", request.path, bases)
        _, service, path = f"{request.path}/".split("/", 2)
        return cls(service, f"/{path}".removesuffix("/"), bases)


class FalSimulator:
    """fal, as far as pictures go. Any key of the form `id:secret` is good unless `bad` is one of its halves."""

    def __init__(
        self, catalog: Catalog, *, faults: Sequence[str] = (), speed: float = 10.0, concurrency: int = _CONCURRENCY
    ) -> None:
        """Know the catalog's endpoints. Raises `FaultUnknown`."""
        self.kit = Kit(Faults(FAULTS, faults))
        self._endpoints = endpoints_of(catalog)
        self._apps = {endpoint.app for endpoint in self._endpoints.values()}
        self._files = Files()
        self._webhooks = Webhooks(speed)
        self._jobs = Jobs(self.kit, self._files, self._webhooks, speed=speed, concurrency=concurrency)
        self._concurrency = concurrency

    async def handle(self, request: Request) -> Answer:
        """Answer as fal would."""
        own = self.kit.answer(request)
        if own is not None:
            return own
        if request.path == "/_sim/jobs":
            return json_answer(200, self._jobs.listing())
        place = _Place.of(request)
        if place.service == "proxy":
            request, place = _forwarded(request, place)
        match place.service:
            case "queue":
                return await self._queue(request, place)
            case "run":
                return await self._run(request, place)
            case "rest":
                return self._rest(request, place)
            case "cdn":
                return self._cdn(request, place)
            case "api":
                return self._api(request, place)
            case _:
                return json_answer(404, {"detail": "Not Found"})

    async def close(self) -> None:
        """End all jobs and deliveries."""
        await self._jobs.close()
        await self._webhooks.close()

    async def _queue(self, request: Request, place: _Place) -> Answer:
        found = _REQUEST.fullmatch(place.path)
        if found is None:
            return await self._submit(request, place)
        job = self._jobs.find(found["id"])
        endpoint = job.asked.name if job else found["app"]
        route = {"": "result", "/response": "result"}.get(found["rest"], found["rest"].rpartition("/")[2])
        self.kit.counters.count(endpoint, route)
        refusal = self._unauthorized(request, found["app"])
        if refusal is not None:
            return refusal
        if job is None or app_of(job.asked.name) != found["app"]:
            return json_answer(404, _NOT_FOUND)
        if self._is_html(route):
            return _html_error()
        match request.method, route:
            case "GET", "status":
                return self._status(request, job, place)
            case "GET", "stream":
                return Answer(200, self._events(request, job, place), {"content-type": "text/event-stream"})
            case "GET", "result":
                return self._result(job, place)
            case "PUT", "cancel":
                return self._cancel(job)
            case _:
                return json_answer(405, {"detail": "Method Not Allowed"})

    async def _submit(self, request: Request, place: _Place) -> Answer:
        name = place.path.strip("/")
        if request.method != "POST":
            return json_answer(405, {"detail": "Method Not Allowed"})
        self.kit.counters.count(name, "submit")
        refusal = self._unauthorized(request, app_of(name)) or self._turned_away(name, "submit")
        if refusal is not None:
            return refusal
        longest = request.query.get("fal_max_queue_length", "")
        if longest.isdigit() and self._jobs.waiting > int(longest):
            return json_answer(429, {"detail": "The queue is longer than fal_max_queue_length", "type": "queue_length_limit"})
        lost = self.kit.faults.strike("submit_lost") is not None
        job = self._jobs.submit(self._asked(request, place, name, answered=not lost))
        if lost:
            raise NoAnswer
        webhook = {"gateway_request_id": job.id} if job.asked.webhook else {}
        told: dict[str, Any] = {"status": "IN_QUEUE", **self._links(job, place), "logs": None, "metrics": {}}
        return _identified(json_answer(200, told | {"queue_position": self._jobs.position(job)} | webhook), job)

    async def _run(self, request: Request, place: _Place) -> Answer:
        name = place.path.strip("/")
        streamed = name.endswith("/stream") and name not in self._endpoints
        name = name.removesuffix("/stream") if streamed else name
        self.kit.counters.count(name, "run")
        refusal = self._unauthorized(request, app_of(name)) or self._turned_away(name, "run")
        if refusal is not None:
            return refusal
        if self._jobs.is_busy:
            return self._too_many()
        lost = self.kit.faults.strike("submit_lost") is not None
        job = await self._jobs.run(self._asked(request, place, name, answered=not lost))
        if lost:
            raise NoAnswer
        answer = _outcome(job)
        if streamed and answer.status == 200 and isinstance(answer.body, bytes):
            return _identified(Answer(200, b"data: " + answer.body + b"\n\n", {"content-type": "text/event-stream"}), job)
        return answer

    def _asked(self, request: Request, place: _Place, name: str, *, answered: bool) -> Asked:
        return Asked(
            name=name,
            endpoint=self._endpoints.get(name),
            input=_read(request),
            files_base=place.bases["files"],
            headers={key: value for key, value in request.headers.items() if key != "authorization"},
            webhook=request.query.get("fal_webhook"),
            answered=answered,
        )

    def _unauthorized(self, request: Request, app: str) -> Answer | None:
        """401 where the key is missing, malformed or unknown."""
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        if not kind:
            detail = f'Cannot access application "{app}". Authentication is required to access this application.'
            return json_answer(401, {"detail": detail})
        halves = key.split(":")
        if kind != "Key" or len(halves) != 2 or not all(halves):
            detail = "Invalid Key Authorization header format. Expected '<key_id>:<key_secret>'."
            return json_answer(401, {"detail": detail})
        if "bad" in halves or self.kit.faults.strike("bad_key"):
            return json_answer(401, {"detail": "No user found for Key ID and Secret"})
        return None

    def _turned_away(self, name: str, route: str) -> Answer | None:
        """What is answered to work before anybody looks at it."""
        if app_of(name) not in self._apps:
            return json_answer(404, {"detail": f'Application "{name.partition("/")[2] or name}" not found'})
        if self.kit.faults.strike("no_credit"):
            detail = "User is locked. Reason: Exhausted balance. Top up your balance at fal.ai/dashboard/billing."
            return json_answer(403, {"detail": detail})
        if limited := self.kit.faults.strike("rate_limit"):
            return self._too_many(retry_after=limited.arg or "1")
        if self.kit.faults.strike("rate_limit_no_header"):
            return self._too_many()
        if self.kit.faults.strike("submit_500"):
            return json_answer(500, {"detail": "Internal Server Error"}, {"x-fal-request-id": str(uuid4())})
        return _html_error() if self._is_html(route) else None

    def _is_html(self, route: str) -> bool:
        """Whether a proxy in between answers instead: on submit and run, or on the route that `html_error=ROUTE` names."""
        fault = self.kit.faults.find("html_error")
        if fault is None or (route != fault.arg if fault.arg else route not in ("submit", "run")):
            return False
        return self.kit.faults.strike("html_error") is not None

    def _too_many(self, retry_after: str | None = None) -> Answer:
        told = {
            "detail": f"Reached concurrent requests limit of {self._concurrency}",
            "type": "concurrent_requests_limit",
            "data": {"limit": self._concurrency},
        }
        return json_answer(429, told, {"x-fal-needs-retry": "1"} | ({"retry-after": retry_after} if retry_after else {}))

    def _links(self, job: Job, place: _Place) -> dict[str, str]:
        """The id and the three addresses, which lie under owner and app only."""
        foreign = job.faults.get("foreign_urls")
        queue = elsewhere(foreign) if foreign else place.bases["queue"]
        base = f"{queue}/{app_of(job.asked.name)}/requests/{job.id}"
        return {"request_id": job.id, "response_url": base, "status_url": f"{base}/status", "cancel_url": f"{base}/cancel"}

    def _status(self, request: Request, job: Job, place: _Place) -> Answer:
        job.polls += 1
        redirect = job.faults.get("redirect")
        if redirect is not None:
            return Answer(307, b"", {"location": elsewhere(redirect) + request.path})
        if "status_500_every_second" in job.faults and job.polls % 2 == 0:
            return json_answer(500, {"detail": "Internal Server Error"}, {"x-fal-request-id": job.id})
        status = 200 if job.state is State.COMPLETED else 202
        return _identified(json_answer(status, self._state(request, job, place)), job)

    def _state(self, request: Request, job: Job, place: _Place) -> dict[str, Any]:
        logs = job.logs if request.query.get("logs", "").lower() in ("1", "true") and job.state is not State.IN_QUEUE else None
        told: dict[str, Any] = {"status": job.state.value, **self._links(job, place), "logs": logs, "metrics": {}}
        if job.state is State.IN_QUEUE:
            told["queue_position"] = self._jobs.position(job)
        if job.outcome is not None and job.outcome.status == 200:
            told["metrics"] = {"inference_time": float(COMPUTE_S)}
        if job.outcome is not None and job.outcome.error_type is not None:
            told |= {"error": job.outcome.error, "error_type": job.outcome.error_type}
        return told

    async def _events(self, request: Request, job: Job, place: _Place) -> AsyncIterator[bytes]:
        """The status as server-sent events, one for each change."""
        while True:
            changed = job.changed
            yield b"data: " + msgspec.json.encode(self._state(request, job, place)) + b"\n\n"
            if job.state is State.COMPLETED:
                return
            await changed.wait()

    def _cancel(self, job: Job) -> Answer:
        if self._jobs.cancel(job):
            return _identified(json_answer(202, {"status": "CANCELLATION_REQUESTED"}), job)
        return _identified(json_answer(400, {"status": "ALREADY_COMPLETED"}), job)

    def _result(self, job: Job, place: _Place) -> Answer:
        if job.state is not State.COMPLETED:
            return self._not_yet(job, place)
        job.results += 1
        early, missing, broken = (job.faults.get(name) for name in ("still_in_progress", "result_404", "result_500"))
        if early and job.results <= early.number(2):
            return self._not_yet(job, place)
        if missing and (missing.arg is None or job.results <= missing.number(1)):
            return json_answer(404, _NOT_FOUND)
        if broken and broken.arg is not None and job.results <= broken.number(1):
            return json_answer(500, {"detail": "Internal Server Error"}, {"x-fal-request-id": job.id})
        return _outcome(job)

    def _not_yet(self, job: Job, place: _Place) -> Answer:
        return _identified(json_answer(400, {"detail": "Request is still in progress", **self._links(job, place)}), job)

    def _rest(self, request: Request, place: _Place) -> Answer:
        if place.path == "/.well-known/jwks.json":
            self.kit.counters.count("", "jwks")
            return json_answer(200, self._webhooks.jwks())
        refusal = self._unauthorized(request, "rest")
        if refusal is not None:
            return refusal
        self.kit.counters.count("", place.path.strip("/"))
        match request.method, place.path:
            case "POST", "/storage/upload/initiate" | "/storage/upload/initiate-multipart":
                return self._files.initiate(request, place.bases["files"], place.bases["upload"])
            case "POST", "/storage/auth/token":
                return self._files.token(place.bases["cdn"])
            case _:
                return json_answer(404, {"detail": "Not Found"})

    def _cdn(self, request: Request, place: _Place) -> Answer:
        parts = place.path.strip("/").split("/")
        match request.method, parts:
            case "POST", ["files", "upload"]:
                self.kit.counters.count("", "cdn upload")
                return self._files.upload(request, place.bases["files"])
            case "POST", ["files", "upload", "multipart"]:
                return self._files.begin_parts(request, place.bases["files"])
            case "PUT" | "POST", ["files", *_, "multipart", upload_id, part]:
                return self._files.part(request, upload_id, part)
            case "PUT" | "POST", ["upload", token, *rest]:
                self._watch_for_keys(request, "upload")
                return self._files.put(request, token, "/".join(rest))
            case "GET" | "HEAD", ["files", *_]:
                self._watch_for_keys(request, "file")
                return self._files.serve(request, place.path)
            case _:
                return json_answer(404, {"detail": "Not Found"})

    def _watch_for_keys(self, request: Request, route: str) -> None:
        """Count the request, and once more if it brought a key, which nobody here needs."""
        path = request.path.removeprefix("/cdn")
        file = self._files.find(path)
        endpoint = file.endpoint if file else ""
        self.kit.counters.count(endpoint, route)
        if "authorization" in request.headers:
            self.kit.counters.count(endpoint, f"{route} with a key")

    def _api(self, request: Request, place: _Place) -> Answer:
        path = place.path.removeprefix("/v1")
        self.kit.counters.count("", path.strip("/"))
        if path == "/meta":
            return json_answer(200, {"webhook_ip_ranges": ["127.0.0.1/32"]})
        refusal = self._unauthorized(request, "api")
        if refusal is not None:
            return refusal
        if path != "/models/pricing":
            return json_answer(404, {"detail": "Not Found"})
        asked = [name for name in request.query.get("endpoint_id", "").split(",") if name][:50]
        prices = [_price(endpoint) for name in asked if (endpoint := self._endpoints.get(name)) is not None]
        return json_answer(200, {"prices": prices, "next_cursor": None, "has_more": False})


def _read(request: Request) -> Any:
    """The body as JSON, or what the model will say of it: submit itself takes anything."""
    try:
        return request.json()
    except msgspec.DecodeError as error:
        return json_refused(0, str(error))


def _outcome(job: Job) -> Answer:
    outcome = job.outcome or Outcome(500, {"detail": "Internal Server Error"})
    return _identified(json_answer(outcome.status, outcome.body, outcome.headers), job)


def _identified(answer: Answer, job: Job) -> Answer:
    """The answer as one that reached fal's own servers."""
    return Answer(answer.status, answer.body, {**answer.headers, "x-fal-request-id": job.id})


def _html_error() -> Answer:
    """What a proxy in between says; there is no `x-fal-request-id`."""
    return Answer(502, _HTML, {"content-type": "text/html"})


def _forwarded(request: Request, place: _Place) -> tuple[Request, _Place]:
    """What the JavaScript client wanted to ask when it sent its request to `/proxy` instead."""
    target = urlsplit(request.headers.get("x-fal-target-url", ""))
    service = _HOSTS.get(target.hostname or "", "")
    query = dict(parse_qsl(target.query, keep_blank_values=True))
    forwarded = Request(request.method, request.scheme, request.host, target.path, query, request.headers, request.body)
    return forwarded, _Place(service, target.path, place.bases)


def _price(endpoint: Endpoint) -> dict[str, Any]:
    terms = endpoint.offer.price
    usd = unit_price(terms)
    return {
        "endpoint_id": endpoint.name,
        "unit_price": None if usd is None else float(usd),
        "unit": unit_name(terms),
        "currency": "USD",
    }
