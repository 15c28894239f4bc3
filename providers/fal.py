"""fal's queue API: submit, status, result, cancel; and its storage, where pictures too large for a data URI go first.

`COMPLETED` says only that it is over: the result has a status of its own, and that decides. Nothing is submitted twice. The key
goes to the configured queue and storage hosts and nowhere else, whatever an answer names.

Source of all facts here, unless another stands beside them: https://docs.fal.ai/model-apis/model-endpoints/queue,
https://docs.fal.ai/errors, and the source of fal's own clients (fal-ai/fal, fal-ai/fal-js).
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast
from urllib.parse import quote

import msgspec

from normalization.plan import Call
from normalization.request import ImageRef
from providers import http
from providers.base import Done, ImagePart, ImageParts, RemoteImage, Running, Ticket, Usage
from providers.drive import Sleep, Unanswered
from providers.failures import FailureKind, ProviderFailure
from providers.spool import Spool
from providers.transfer import AnswerUnreadable, SpooledPart, in_thread, json_body, read_spooled_json

_INLINE_BYTES = 3 * 2**20
"""Up to so much of pictures, together, travels inside the request: 4 MiB as base64. fal publishes no limit for a request's body,
advises small data URIs, and its server SDK takes up to 10 MiB of one; an upload costs two requests more, once per picture."""

_SUBMIT_TIMEOUT = http.Timeout(120.0, connect=5.0, write=60.0)
_ASK_TIMEOUT = http.Timeout(30.0, connect=5.0)
_UPLOAD_TIMEOUT = http.Timeout(60.0, connect=5.0)
_UPLOAD_S = 120.0
"""The longest that one way of uploading a picture may take."""

_NOT_YET_S = (0.25, 0.5, 1.0)
"""Pauses where the result says that the work goes on though the status said that it is over: they are not kept in step."""

_REMEMBERED_UPLOADS = 256
_MOST_UNITS = Decimal(10**9)
"""More than any picture can be billed as: such a number is a mistake."""

_READ_BYTES = 2**18
_MAX_SHORT_BYTES = 8 * 2**20
"""An error may repeat the whole request, pictures included."""

_MAX_QUOTE = 1000


@dataclass(frozen=True, slots=True)
class FalSettings:
    """Where fal is, and what it may keep."""

    key: str | None = field(repr=False)
    """`id:secret`; None: fal takes no work."""
    queue_url: str
    run_url: str
    rest_url: str
    """Storage, upload tokens, webhook keys."""
    cdn_url: str
    """Where an upload with a token goes."""
    api_url: str
    store_io: bool
    """Whether fal keeps inputs and outputs in its history."""
    object_lifetime_s: int
    """How long fal keeps uploads and results."""


class FalProvider:
    """The provider `fal`."""

    name = "fal"

    def __init__(
        self,
        settings: FalSettings,
        *,
        client: http.AsyncClient,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Sleep = asyncio.sleep,
        spool: Spool | None = None,
        start_timeout_s: float = 600.0,
        max_picture_bytes: int = 2**30,
        webhook_url: str | None = None,
    ) -> None:
        """Take a client without a guard: it connects to configured hosts, and to the signed addresses that fal's storage names.

        Args:
            settings: Addresses, key, privacy.
            client: For everything but results, which stay at their addresses.
            now: UTC.
            sleep: Waits where a result is not there yet.
            spool: Where results that come inside the answer are put; None: such a result cannot be read.
            start_timeout_s: Work that has not begun by then is given up by fal itself.
            max_picture_bytes: The largest result inside an answer.
            webhook_url: Where fal is to say that work is over; see `providers.fal_webhooks`. None: it is only polled.
        """
        self._settings = settings
        self._key = (settings.key or "").strip()  # the end of a line, as files of secrets have it, would be refused
        self._queue = _Base(settings.queue_url)
        self._client = client
        self._now = now
        self._sleep = sleep
        self._spool = spool
        self._start_timeout_s = start_timeout_s
        self._max_picture_bytes = max_picture_bytes
        self._asking = f"?fal_webhook={quote(webhook_url, safe='')}" if webhook_url else ""
        reuse = timedelta(seconds=settings.object_lifetime_s / 2)  # the rest is for the queue that the work waits in
        self._uploads = _Uploads(self._upload, reuse, now)

    def refusal(self, endpoint: str) -> str | None:
        """Without a key it takes nothing."""
        return None if self._key else f"{self.name}: no key is set; see FAL_KEY"

    async def submit(self, call: Call, images: ImageParts, *, alone: bool = False) -> Ticket:
        """Upload what is large, and queue the call. The ticket is the path of the result under the queue's address."""
        self._expect_key()
        payload = await self._with_addresses(call.payload, images)
        body = json_body(payload, images)
        headers = body.headers | self._wishes(alone=alone)
        url = self._queue.at(call.endpoint) + self._asking
        try:
            said = await self._ask("POST", url, content=body, headers=headers, limits=_SUBMIT_TIMEOUT)
        except (http.ConnectError, http.ConnectTimeout, http.UnsupportedProtocol, http.InvalidURL) as exc:
            raise ProviderFailure(FailureKind.TRANSIENT, "fal cannot be reached", detail=f"fal: {exc}") from exc
        except http.HTTPError as exc:
            raise _unknown(f"{type(exc).__name__}: {exc}") from exc
        if not 200 <= said.status < 300:
            raise self._refused(said)
        return Ticket(self.name, call.endpoint, self._path_of(call.endpoint, said), self._now())

    async def poll(self, ticket: Ticket) -> Running | Done:
        """Ask how far it is; once it is over, fetch the result."""
        self._expect_key()
        status = await self._ask_about(ticket, "status")
        state = _member(status.document, "status")
        match state:
            case "IN_QUEUE":
                return Running(0.0)
            case "IN_PROGRESS":
                return Running()
            case "COMPLETED":
                return await self._result(ticket, status)
            case _:
                raise self._unanswered(status)

    async def cancel(self, ticket: Ticket) -> None:
        """Ask fal to drop or stop it. That it is over already, or forgotten, is as good."""
        self._expect_key()
        try:
            said = await self._ask("PUT", self._address(ticket, "cancel"), limits=_ASK_TIMEOUT)
        except http.HTTPError as exc:
            raise ProviderFailure(FailureKind.TRANSIENT, "fal cannot be told to stop", detail=f"fal: {exc}") from exc
        if said.status not in {200, 202, 400, 404}:
            raise self._failure(said)

    # Submitting

    def _expect_key(self) -> None:
        if not self._key:
            raise ProviderFailure(FailureKind.CREDENTIAL, "fal has no key; see FAL_KEY")

    def _wishes(self, *, alone: bool) -> dict[str, str]:
        """What the queue is told beside the input. Source: https://docs.fal.ai/model-apis/model-endpoints/queue, "Headers"."""
        seconds = f"{self._start_timeout_s:g}"
        headers = {
            "X-Fal-Request-Start-Timeout": seconds,
            "X-Fal-Request-Timeout": seconds,  # its older name, which older parts of fal read
            "X-Fal-Object-Lifecycle-Preference": self._lifecycle(),
        }
        if not self._settings.store_io:
            headers["X-Fal-Store-IO"] = "0"
        if not alone:
            headers["X-Fal-No-Retry"] = "1"  # else fal tries ten times before another offer hears of it
        return headers

    def _lifecycle(self) -> str:
        return msgspec.json.encode({"expiration_duration_seconds": self._settings.object_lifetime_s}).decode()

    def _path_of(self, endpoint: str, said: "_Said") -> str:
        """Where the result will be, under the queue's address.

        As fal says, if that is on the queue's host; if it names another (a proxy stands between), where it is by its documented
        form, so that the key goes to the configured host in any case.
        """
        request_id = _member(said.document, "request_id")
        if not isinstance(request_id, str) or not _SEGMENT.fullmatch(request_id):
            raise _unknown(f"status {said.status} without a request_id")
        path = self._queue.path_of(_member(said.document, "response_url"))
        if path is not None and path.removesuffix("/response").endswith(f"/requests/{request_id}"):
            return path
        return f"{_application(endpoint)}/requests/{request_id}"

    def _refused(self, said: "_Said") -> ProviderFailure:
        """A submit that was answered, but not with a receipt."""
        if said.status in {502, 504} and said.document is None and not said.of_the_work and "nginx" not in said.text:
            # some proxy gave up waiting for fal, which may have the work; fal's own entrance (nginx) says so before it passes on
            return _unknown(f"status {said.status} from a proxy: {self._quotable(_detail_text(said))}")
        return self._failure(said)

    # Following

    def _address(self, ticket: Ticket, about: str | None) -> str:
        """Of the result (None), or of what is beside it."""
        return self._queue.at(ticket.id if about is None else f"{ticket.id.removesuffix('/response')}/{about}")

    async def _ask_about(self, ticket: Ticket, about: str) -> "_Said":
        try:
            return await self._ask("GET", self._address(ticket, about), limits=_ASK_TIMEOUT)
        except http.HTTPError as exc:
            raise _no_answer(f"{type(exc).__name__}: {exc}") from exc

    def _unanswered(self, said: "_Said") -> ProviderFailure:
        """A status without a state: it ends the work only if asking again cannot help."""
        if said.status in {401, 402, 403}:
            return self._failure(said)
        seconds = _retry_after_s(said.headers, self._now())
        return _no_answer(f"status {said.status}: {self._quotable(_detail_text(said))}", retry_after_s=seconds)

    async def _result(self, ticket: Ticket, status: "_Said") -> Done:
        for pause_s in (*_NOT_YET_S, None):
            result = await self._fetch(ticket)
            if isinstance(result, _Output):
                return self._done(result, status)
            if not _is_not_yet(result):
                raise self._ended(result, status)
            if pause_s is not None:
                await self._sleep(pause_s)
        raise _no_answer("the status is COMPLETED, and the result says that the request is still in progress")

    async def _fetch(self, ticket: Ticket) -> "_Output | _Said":
        """The output, or whatever else is there."""
        url = self._address(ticket, None)
        try:
            async with self._client.stream(
                "GET", url, headers=self._authorization(), timeout=_ASK_TIMEOUT, follow_redirects=False
            ) as response:
                if response.status_code != 200 or self._spool is None:
                    said = await _read(response)
                    return _Output(said.document, said.headers) if said.status == 200 else said
                parts = await read_spooled_json(response.aiter_raw(), self._spool, max_part_bytes=self._max_picture_bytes)
                return _Output(parts.document, response.headers, parts.parts)
        except http.HTTPError as exc:
            raise _no_answer(f"{type(exc).__name__}: {exc}") from exc
        except AnswerUnreadable as exc:
            raise _no_answer(f"the result cannot be read: {exc}") from exc

    def _done(self, output: "_Output", status: "_Said") -> Done:
        """The pictures that passed fal's safety check. Files of the others are removed."""
        found = _texts(output.document)
        kept = _unflagged(found, _member(output.document, "has_nsfw_concepts"))
        pictures = [picture for text in kept if (picture := _picture(text, output.parts))]
        used = _usage(output.headers, status.document)
        output.discard({picture.path for picture in pictures})
        if pictures:
            return Done(tuple(pictures), used)
        if len(kept) < len(found):
            raise ProviderFailure(
                FailureKind.CONTENT, _CONTENT, detail=f"fal: has_nsfw_concepts; {_told(used)}", usage=_billed(used)
            )
        detail = f"fal: the output has {_shape(output.document)}; {_told(used)}"
        raise ProviderFailure(FailureKind.TRANSIENT, "fal finished without a picture", detail=detail, usage=_billed(used))

    def _ended(self, said: "_Said", status: "_Said") -> ProviderFailure:
        """What a result other than 200 means, once the status says that it is over."""
        failed = said.of_the_work or "error" in status.fields or "error_type" in status.fields
        if said.status == 404 and not said.code and not _NO_SUCH.match(_detail_text(said)):
            return self._failure(status) if "error" in status.fields or status.code else self._gone(said)
        failure = self._failure(said)
        if said.status == 429 or (said.status >= 500 and not failed):
            # of the queue or of what stands before it
            return Unanswered(failure.kind, failure.public, detail=failure.detail, retry_after_s=failure.retry_after_s)
        return failure

    def _gone(self, said: "_Said") -> ProviderFailure:
        """The work was done, and will be billed: hence not `transient`, after which it would count as free."""
        detail = f"fal: status {said.status}: {self._quotable(_detail_text(said))}"
        return ProviderFailure(FailureKind.TIMEOUT, "fal no longer has the result", detail=detail)

    # Asking

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Key {self._key}"}

    async def _ask(
        self,
        method: str,
        url: str,
        *,
        content: Any = None,  # what httpx takes: bytes, or an asynchronous iterable of bytes
        headers: Mapping[str, str] | None = None,
        limits: http.Timeout,
    ) -> "_Said":
        """Ask a configured host, with the key. Redirects are not followed: the key would go along."""
        every = {**self._authorization(), **(headers or {})}
        async with self._client.stream(
            method, url, content=content, headers=every, timeout=limits, follow_redirects=False
        ) as response:
            return await _read(response)

    # Uploading

    async def _with_addresses(self, payload: Mapping[str, object], images: ImageParts) -> Mapping[str, object]:
        """The payload with addresses in place of pictures, where these are too large to travel inside."""
        refs = {ref for value in payload.values() for ref in _refs(value)}
        if sum(images[ref].size_bytes for ref in refs) <= _INLINE_BYTES:
            return payload
        urls = {ref: await self._uploads.address_of(images[ref]) for ref in sorted(refs, key=str)}
        return {name: _replaced(value, urls) for name, value in payload.items()}

    async def _upload(self, part: ImagePart) -> str:
        """Put a picture where fal can read it: at a signed address, or, where that fails, on its CDN with a token."""
        try:
            return await self._in_time(self._upload_signed, part)
        except _UploadFailed as first:
            try:
                return await self._in_time(self._upload_with_token, part)
            except _UploadFailed as second:
                detail = self._quotable(f"upload: {first}; with a token: {second}")
                raise ProviderFailure(FailureKind.TRANSIENT, "fal did not take the picture", detail=f"fal: {detail}") from second

    async def _in_time(self, upload: Callable[[ImagePart], Awaitable[str]], part: ImagePart) -> str:
        try:
            async with asyncio.timeout(_UPLOAD_S):
                return await upload(part)
        except TimeoutError as exc:
            raise _UploadFailed("too slow") from exc
        except (http.HTTPError, http.InvalidURL) as exc:
            raise _UploadFailed(f"{type(exc).__name__}: {exc}") from exc

    async def _upload_signed(self, part: ImagePart) -> str:
        """Source: fal-ai/fal-js, libs/client/src/storage.ts."""
        wanted = msgspec.json.encode({"file_name": _file_name(part), "content_type": part.mime})
        headers = {"Content-Type": "application/json", "X-Fal-Object-Lifecycle": self._lifecycle()}
        said = await self._storage("upload/initiate", wanted, headers)
        upload_url, file_url = _address(said, "upload_url"), _address(said, "file_url")
        if not self._may_be_sent_to(upload_url):
            raise _UploadFailed("the address for the upload is neither https nor on a configured host")
        await self._send_file("PUT", upload_url, part, {})
        return file_url

    async def _upload_with_token(self, part: ImagePart) -> str:
        """Source: fal-ai/fal, projects/fal_client/src/fal_client/client.py."""
        said = await self._storage("auth/token", b"{}", {"Content-Type": "application/json"})
        token = _member(said.document, "token")
        if not isinstance(token, str):
            raise _UploadFailed("no token")
        headers = {
            "Authorization": f"Bearer {token}",
            "X-Fal-File-Name": _file_name(part),
            "X-Fal-Object-Lifecycle": self._lifecycle(),
        }
        cdn = _Base(self._settings.cdn_url)
        return _address(await self._send_file("POST", cdn.at("files/upload"), part, headers), "access_url")

    async def _storage(self, what: str, body: bytes, headers: Mapping[str, str]) -> "_Said":
        url = _Base(self._settings.rest_url).at(f"storage/{what}?storage_type=fal-cdn-v3")
        said = await self._ask("POST", url, content=body, headers=headers, limits=_ASK_TIMEOUT)
        if said.status in {401, 402, 403}:
            raise self._failure(said)
        if not 200 <= said.status < 300:
            raise _UploadFailed(f"status {said.status}")
        return said

    async def _send_file(self, method: str, url: str, part: ImagePart, headers: Mapping[str, str]) -> "_Said":
        """Without the key: a signed address, or a token, is enough."""
        every = {**headers, "Content-Type": part.mime, "Content-Length": str(part.size_bytes)}
        async with self._client.stream(
            method, url, content=_File(part), headers=every, timeout=_UPLOAD_TIMEOUT, follow_redirects=False
        ) as response:
            said = await _read(response)
        if not 200 <= said.status < 300:
            raise _UploadFailed(f"status {said.status} for the file")
        return said

    def _may_be_sent_to(self, url: str) -> bool:
        """The client has no guard, so an address that an answer names is either https or on a host that the operator named."""
        ours = (self._settings.rest_url, self._settings.cdn_url, self._settings.queue_url)
        target = _url(url)
        return target is not None and (target.scheme == "https" or any(_origin(target) == _origin(http.URL(base)) for base in ours))

    # Failures

    def _failure(self, said: "_Said") -> ProviderFailure:
        """Sort an answer that is an error: by fal's own code first, by its status second."""
        verdict = _by_type(said) or _by_status(said)
        units = said.headers.get("x-fal-billable-units")
        billed = f"; {units[:20]} billable units" if units else ""
        return ProviderFailure(
            verdict.kind,
            verdict.public,
            detail=f"fal: status {said.status}: {self._quotable(_essence(said))}{billed}",
            param=verdict.param,
            retry_after_s=_retry_after_s(said.headers, self._now()) if verdict.kind in _PASSING else None,
            usage=_billed(_usage(said.headers, None)),
        )

    def _quotable(self, text: str) -> str:
        """What fal said, for the operator's log: short, without key, pictures, or what signs an address."""
        for secret in filter(None, (self._key, self._key.partition(":")[2])):
            text = text.replace(secret, "[key]")
        text = _SIGNED.sub(r"\1?…", _DATA_URI.sub("data:…", text))
        line = " ".join(text.split())
        return line if len(line) <= _MAX_QUOTE else f"{line[: _MAX_QUOTE - 1]}…"


# Addresses

_SEGMENT = re.compile(r"[\w~-][\w.~-]*", re.ASCII)
_PATH = re.compile(rf"{_SEGMENT.pattern}(?:/{_SEGMENT.pattern})*", re.ASCII)
"""A path that means the same wherever it stands: no empty parts, none that begin with a dot, nothing escaped."""

_NAMESPACES = frozenset({"workflows", "comfy"})
_OLD_ENDPOINT = re.compile(r"(\d+)-([\w-]+)", re.ASCII)
_WEB = re.compile(r"https?://", re.IGNORECASE)


class _Base:
    """A configured address under which others are."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def at(self, path: str) -> str:
        return f"{self._url}/{path}"

    def path_of(self, url: object) -> str | None:
        """What of an address comes after this one; None if it is elsewhere."""
        here, there = _url(self._url), _url(url)
        if here is None or there is None or _origin(here) != _origin(there) or there.query or there.userinfo:
            return None
        prefix = here.path.rstrip("/") + "/"
        path = there.raw_path.decode("ascii")
        below = path[len(prefix) :] if path.startswith(prefix) else ""
        return below if _PATH.fullmatch(below) else None


def _application(endpoint: str) -> str:
    """Owner and name, under which requests are kept whatever path of the application they went to.

    Source: fal-ai/fal, projects/fal_client/src/fal_client/client.py, `AppId`.
    """
    parts = endpoint.strip("/").split("/")
    if len(parts) == 1 and (old := _OLD_ENDPOINT.fullmatch(endpoint)):
        return f"{old[1]}/{old[2]}"
    return "/".join(parts[: 3 if parts[0] in _NAMESPACES else 2])


def _url(text: object) -> http.URL | None:
    """An absolute http address; None for anything else."""
    if not isinstance(text, str) or not _WEB.match(text):
        return None
    try:
        return http.URL(text)
    except http.InvalidURL:
        return None


def _origin(url: http.URL) -> tuple[str, str, int]:
    return url.scheme, url.host.lower(), url.port or (443 if url.scheme == "https" else 80)


# Answers


@dataclass(frozen=True, slots=True)
class _Said:
    """A short answer."""

    status: int
    headers: Mapping[str, str]
    """Found in any case."""
    text: str
    document: Any
    """The JSON; None if it is none."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """Those of the JSON that say something."""
        if not isinstance(self.document, dict):
            return {}
        return {name: value for name, value in cast("dict[str, Any]", self.document).items() if value is not None}

    @property
    def problem(self) -> Mapping[str, Any]:
        """The first entry of a model's error; empty if it is not of that form."""
        detail = self.fields.get("detail")
        entries = cast("list[Any]", detail) if isinstance(detail, list) else []
        return cast("dict[str, Any]", entries[0]) if entries and isinstance(entries[0], dict) else {}

    @property
    def code(self) -> str:
        """The name that fal has for what went wrong; empty where it gives none."""
        named = (
            self.fields.get("error_type"),
            self.headers.get("x-fal-error-type"),
            self.problem.get("type"),
            self.fields.get("type"),
        )
        return next((name for name in named if isinstance(name, str) and name), "")

    @property
    def of_the_work(self) -> bool:
        """Whether an error is the work's own: those of the road there have neither code nor request.

        Source: fal-ai/fal, projects/fal_client/src/fal_client/client.py, on errors of the ingress.
        """
        return bool(self.code) or "x-fal-request-id" in self.headers


async def _read(response: http.Response) -> _Said:
    """Read at most the beginning of an answer that should be short."""
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > _MAX_SHORT_BYTES:
            break
    try:
        document = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = None
    return _Said(response.status_code, response.headers, content[:20_000].decode("utf-8", "replace"), document)


def _member(document: Any, key: str) -> Any:
    return cast("dict[str, Any]", document).get(key) if isinstance(document, dict) else None


def _is_not_yet(said: _Said) -> bool:
    return said.status == 400 and "still in progress" in _detail_text(said).lower()


def _detail_text(said: _Said) -> str:
    """The sentence of an error, whichever form it has."""
    for text in (said.fields.get("detail"), said.problem.get("msg"), said.fields.get("error"), said.fields.get("status")):
        if isinstance(text, str):
            return text
    if said.document is not None or said.text.lstrip().startswith(("{", "[")):
        return ""  # JSON of another form, which may repeat the request
    return said.text[:300]


def _unknown(why: str) -> ProviderFailure:
    return ProviderFailure(
        FailureKind.UNKNOWN, "fal did not confirm the work; whether it has it is not known", detail=f"fal: {why}"
    )


def _no_answer(why: str, *, retry_after_s: float | None = None) -> Unanswered:
    """About work that goes on meanwhile, and may be billed: hence not `transient`, after which it would count as free."""
    public = "fal did not say what became of the work"
    return Unanswered(FailureKind.TIMEOUT, public, detail=f"{public}: {why}", retry_after_s=retry_after_s)


def _retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds, or a date. Source: RFC 9110, section 10.2.3."""
    text = headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max((when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds(), 0.0)


# Results


@dataclass(frozen=True, slots=True)
class _Output:
    """What a model made."""

    document: Any
    headers: Mapping[str, str]
    parts: Mapping[str, SpooledPart] = field(default_factory=dict[str, SpooledPart])
    """Pictures that came inside."""

    def discard(self, keep: set[Path | None]) -> None:
        for part in self.parts.values():
            if part.path not in keep:
                part.path.unlink(missing_ok=True)


def _texts(output: Any) -> list[str]:
    """The pictures of an output: `images` or `image` where there is one (beside it may be masks), else whatever holds a file."""
    match output:
        case str():
            return [output]
        case list():
            return [text for item in cast("list[Any]", output) for text in _texts(item)]
        case dict():
            members = cast("dict[str, Any]", output)
            if isinstance(url := members.get("url"), str):
                return [url]
            named = [members.get(name) for name in ("images", "image", "output")]
            files = [cast("object", value) for value in members.values() if isinstance(value, dict | list)]
            return next((texts for value in (*named, *files) if (texts := _texts(value))), list[str]())
        case _:
            return []


def _unflagged(found: Sequence[str], flags: Any) -> list[str]:
    """Those that the safety check let pass; none where it cannot be said which it did not."""
    marks = cast("list[Any]", flags) if isinstance(flags, list) else [flags] * len(found)
    if len(marks) != len(found):
        marks = [any(mark is True for mark in marks)] * len(found)
    return [text for text, mark in zip(found, marks, strict=True) if mark is not True]


def _picture(text: str, parts: Mapping[str, SpooledPart]) -> RemoteImage | None:
    if part := parts.get(text):
        return RemoteImage(path=part.path)
    return RemoteImage(url=text) if _url(text) else None


def _usage(headers: Mapping[str, str], status: Any) -> Usage:
    """What fal says it will bill, and how long the model ran."""
    reported: dict[str, str] = {}
    if units := headers.get("x-fal-billable-units"):
        reported["x-fal-billable-units"] = units[:40]
    seconds = _member(_member(status, "metrics"), "inference_time")
    if isinstance(seconds, int | float):
        reported["inference_time"] = str(seconds)
    return Usage(units=_decimal(units), reported=MappingProxyType(reported))


def _billed(used: Usage) -> Usage | None:
    """What failed work is billed all the same; None where fal does not say, which is the rule."""
    return used if used.units is not None else None


def _decimal(text: str | None) -> Decimal | None:
    try:
        number = Decimal(text or "")
    except InvalidOperation:
        return None
    return number if number.is_finite() and 0 <= number < _MOST_UNITS else None


def _told(used: Usage) -> str:
    return f"billable units {used.units}" if used.units is not None else "no billable units told"


def _shape(output: Any) -> str:
    """Its fields, for the operator; never their values."""
    if isinstance(output, dict):
        return "the fields " + ", ".join(str(name)[:40] for name in list(cast("dict[str, Any]", output))[:20])
    return f"the type {type(output).__name__}"


# Failures

_CONTENT = "fal's safety check refused the request or its result"

_PASSING = frozenset({FailureKind.RATE_LIMIT, FailureKind.TRANSIENT})
"""Kinds for which a time to come back means something."""


@dataclass(frozen=True, slots=True)
class _Verdict:
    kind: FailureKind
    public: str
    param: str | None = None


_TYPES = {
    "content_policy_violation": _Verdict(FailureKind.CONTENT, _CONTENT),
    "internal_server_error": _Verdict(FailureKind.TRANSIENT, "the model on fal failed"),
    "generation_timeout": _Verdict(FailureKind.TRANSIENT, "the model on fal took too long"),
    "downstream_service_error": _Verdict(FailureKind.TRANSIENT, "a service behind the model on fal failed"),
    "downstream_service_unavailable": _Verdict(FailureKind.TRANSIENT, "a service behind the model on fal is not available"),
    "no_media_generated": _Verdict(FailureKind.TRANSIENT, "the model on fal made no picture"),
    "request_timeout": _Verdict(FailureKind.TRANSIENT, "fal did not get to the work in time"),
    "startup_timeout": _Verdict(FailureKind.TRANSIENT, "fal did not start the work in time"),
    "runner_scheduling_failure": _Verdict(FailureKind.TRANSIENT, "fal found no machine for the work"),
    "runner_connection_timeout": _Verdict(FailureKind.TRANSIENT, "fal lost the machine with the work"),
    "runner_disconnected": _Verdict(FailureKind.TRANSIENT, "fal lost the machine with the work"),
    "runner_connection_refused": _Verdict(FailureKind.TRANSIENT, "fal lost the machine with the work"),
    "runner_connection_error": _Verdict(FailureKind.TRANSIENT, "fal lost the machine with the work"),
    "runner_incomplete_response": _Verdict(FailureKind.TRANSIENT, "fal lost the machine with the work"),
    "runner_server_error": _Verdict(FailureKind.TRANSIENT, "the model on fal failed"),
    "internal_error": _Verdict(FailureKind.TRANSIENT, "fal failed"),
    "client_disconnected": _Verdict(FailureKind.CANCELLED, "fal was told to stop"),
    "client_cancelled": _Verdict(FailureKind.CANCELLED, "fal was told to stop"),
    "bad_request": _Verdict(FailureKind.TRANSIENT, "fal does not understand the gateway"),  # headers, which no caller sets
    "concurrent_requests_limit": _Verdict(FailureKind.RATE_LIMIT, "fal has as much of our work as it takes at once"),
}
"""fal's own codes that say whose fault it was. All others that come with 422 are the input's.

Source: https://docs.fal.ai/errors and https://docs.fal.ai/model-apis/errors.
"""

_PICTURE_TYPES = {
    "image_too_small": ("is too small for this model", "min"),
    "image_too_large": ("is too large for this model", "max"),
    "file_too_large": ("has too many bytes for this model", ""),
    "image_load_error": ("cannot be read", ""),
    "file_download_error": ("cannot be fetched", ""),
    "unsupported_image_format": ("has a format that this model does not take", ""),
    "face_detection_error": ("shows no face that this model finds", ""),
}
"""Codes about a picture: what is wrong with it, and which bound of its edges the error tells."""

_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
}

_PICTURE_FIELDS = {
    "image": "image",
    "image_url": "image",
    "image_urls": "image",
    "input_image_url": "image",
    "mask": "mask",
    "mask_url": "mask",
    "mask_image_url": "mask",
}
"""fal's fields for pictures, and what callers call them; all others are told by fal's name."""

_FIELD = re.compile(r"[A-Za-z_]\w{0,59}", re.ASCII)
_DATA_URI = re.compile(r"data:[\w/.+;=-]*,[\w+/=%-]*", re.ASCII)
_SIGNED = re.compile(r"(https?://[^\s?\"']+)\?[^\s\"']*", re.IGNORECASE)

_NO_SUCH = re.compile(r"(application|path|method)\b", re.IGNORECASE)
"""How a 404 or 405 begins that is about the endpoint. A request that fal has forgotten reads otherwise."""

_LOCKED = re.compile(r"locked|balance|billing|top up|payment|credit", re.IGNORECASE)
_UNSAFE = re.compile(r"nsfw|content[ _]policy|content moderation|safety (checker|filter|system)|sensitive content", re.IGNORECASE)
_UNREADABLE = re.compile(r"cannot (identify|decode) image|image file is truncated|failed to (load|decode|download)", re.IGNORECASE)


def _by_type(said: _Said) -> _Verdict | None:
    """By fal's code; None where it has none, or one that says less than the status."""
    code, problem = said.code, said.problem
    if verdict := _TYPES.get(code):
        return verdict
    if not problem or said.status not in {400, 422}:
        return None
    name = _field_of(problem)
    param = _PICTURE_FIELDS.get(name, name) or None
    if code in _PICTURE_TYPES:
        return _Verdict(FailureKind.CALLER_FAULT, _about_picture(code, param or "image", problem), param or "image")
    if _UNSAFE.search(_detail_text(said)):  # of models whose errors have not been given fal's codes yet
        return _Verdict(FailureKind.CONTENT, _CONTENT)
    return _Verdict(FailureKind.CALLER_FAULT, _about_value(code, param, problem), param)


def _field_of(problem: Mapping[str, Any]) -> str:
    """The parameter at fault: the first name of the place, which may go on into it. Empty where there is none."""
    place = problem.get("loc")
    parts = cast("list[Any]", place) if isinstance(place, list) else []
    names = (part for part in parts if isinstance(part, str) and part != "body")
    return next((name for name in names if _FIELD.fullmatch(name)), "")


def _about_picture(code: str, param: str, problem: Mapping[str, Any]) -> str:
    what, bound = _PICTURE_TYPES[code]
    width, height = (_number(problem, f"{bound}_{edge}") for edge in ("width", "height"))
    limit = f": at {'most' if bound == 'max' else 'least'} {width}x{height} pixels" if bound and width and height else ""
    if code == "file_too_large" and (size := _number(problem, "max_size")):
        limit = f": at most {size} bytes"
    return f"the {'mask' if param == 'mask' else 'picture'} {what}{limit}"


def _about_value(code: str, param: str | None, problem: Mapping[str, Any]) -> str:
    """Our own words: fal's may quote the request."""
    key, words = _BOUNDS.get(code, ("", ""))
    if param and key and (number := _number(problem, key)):
        return f"the model on fal refuses the input: {param} must be {words} {number}"
    if param and code in {"missing", "value_error.missing"}:
        return f"the model on fal refuses the input: {param} is missing"
    return f"the model on fal refuses the input: {param} is not valid" if param else "the model on fal refuses the input"


def _number(problem: Mapping[str, Any], key: str) -> str:
    number = _member(problem.get("ctx"), key)
    return f"{number:g}" if isinstance(number, float) else str(number) if isinstance(number, int) else ""


def _by_status(said: _Said) -> _Verdict:
    text = _detail_text(said)
    match said.status:
        case 400 | 422 if _UNSAFE.search(text):
            return _Verdict(FailureKind.CONTENT, _CONTENT)
        case 400 | 422 if _UNREADABLE.search(text):
            return _Verdict(FailureKind.CALLER_FAULT, "the model on fal cannot read the picture", "image")
        case 400 | 422:
            return _Verdict(FailureKind.CALLER_FAULT, "the model on fal refuses the input")
        case 402:
            return _Verdict(FailureKind.QUOTA, "the gateway's account at fal is out of credit")
        case 403 if _LOCKED.search(text):
            return _Verdict(FailureKind.QUOTA, "the gateway's account at fal is out of credit")
        case 401 | 403:
            return _Verdict(FailureKind.CREDENTIAL, "fal refuses the gateway's key")
        case 404 | 405:
            return _Verdict(FailureKind.MODEL_GONE, "fal does not have this model any more")
        case 413:
            return _Verdict(FailureKind.CALLER_FAULT, "the picture is too large for fal", "image")
        case 429:
            return _Verdict(FailureKind.RATE_LIMIT, "fal takes no more requests just now")
        case 499:
            return _Verdict(FailureKind.CANCELLED, "fal was told to stop")
        case 200:  # of a status that tells an error
            return _Verdict(FailureKind.TRANSIENT, "fal ended the work with an error")
        case status:
            return _Verdict(FailureKind.TRANSIENT, f"fal answered with status {status}")


def _essence(said: _Said) -> str:
    """What an error says, without `input`, which may be the whole request."""
    if not said.problem:
        return f"{said.code}: {_detail_text(said)}" if said.code else _detail_text(said)
    problem = said.problem
    return f"{said.code} at {problem.get('loc')}: {str(problem.get('msg'))[:300]}"


# Uploads


class _UploadFailed(Exception):
    """One way of uploading did not work. Nothing has been submitted."""


@dataclass(slots=True)
class _Upload:
    task: asyncio.Task[str]
    begun_at: datetime
    waiting: int = 0
    """How many calls need it now."""

    def is_good(self, now: datetime, reuse: timedelta) -> bool:
        ended_well = not self.task.done() or (not self.task.cancelled() and self.task.exception() is None)
        return ended_well and now - self.begun_at < reuse


class _Uploads:
    """Uploads each file once, for all calls that name it, at the same time or one after another."""

    def __init__(self, upload: Callable[[ImagePart], Awaitable[str]], reuse: timedelta, now: Callable[[], datetime]) -> None:
        self._upload = upload
        self._reuse = reuse
        self._now = now
        self._known: dict[Path, _Upload] = {}
        """By file, whose names are random and never used twice; oldest first."""

    async def address_of(self, part: ImagePart) -> str:
        """Where fal can read the picture. Raises `ProviderFailure`."""
        upload = self._known.get(part.path)
        if upload is None or not upload.is_good(self._now(), self._reuse):
            upload = self._begin(part)
        upload.waiting += 1
        try:
            return await asyncio.shield(upload.task)
        finally:
            upload.waiting -= 1
            if not upload.waiting and not upload.task.done():
                await self._give_up(part.path, upload)

    def _begin(self, part: ImagePart) -> _Upload:
        self._known.pop(part.path, None)
        self._forget_oldest()
        upload = _Upload(asyncio.ensure_future(self._upload(part)), self._now())
        self._known[part.path] = upload
        return upload

    def _forget_oldest(self) -> None:
        too_many = len(self._known) - _REMEMBERED_UPLOADS + 1
        ended = [path for path, upload in self._known.items() if upload.task.done()]
        for path in ended[: max(too_many, 0)]:
            del self._known[path]

    async def _give_up(self, path: Path, upload: _Upload) -> None:
        """Nobody waits for it any more."""
        if self._known.get(path) is upload:
            del self._known[path]
        upload.task.cancel()
        await asyncio.wait([upload.task])


@dataclass(frozen=True, slots=True)
class _File:
    """A picture's bytes, read piece by piece."""

    part: ImagePart

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for offset in range(0, self.part.size_bytes, _READ_BYTES):
            yield await in_thread(_read_piece, self.part, offset)


def _read_piece(part: ImagePart, offset: int) -> bytes:
    expected = min(_READ_BYTES, part.size_bytes - offset)
    with part.path.open("rb", buffering=0) as file:
        file.seek(offset)
        content = file.read(expected)
    if len(content) != expected:
        raise OSError(f"{part.path.name} is shorter than it was")
    return content


def _file_name(part: ImagePart) -> str:
    """The caller's name for it is nobody's business."""
    return f"input.{part.mime.rpartition('/')[2]}"


def _address(said: _Said, name: str) -> str:
    url = _member(said.document, name)
    if _url(url) is None:
        raise _UploadFailed(f"the answer has no {name}")
    return cast("str", url)


def _refs(value: object) -> list[ImageRef]:
    """The pictures that a payload's value names."""
    if isinstance(value, ImageRef):
        return [value]
    if isinstance(value, tuple | list):
        return [ref for item in cast("Sequence[object]", value) for ref in _refs(item)]
    return []


def _replaced(value: object, urls: Mapping[ImageRef, str]) -> object:
    if isinstance(value, ImageRef):
        return urls[value]
    if isinstance(value, tuple | list):
        return [_replaced(item, urls) for item in cast("Sequence[object]", value)]
    return value
