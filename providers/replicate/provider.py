"""The three verbs for Replicate. A create is never repeated unless it is certain that it made nothing."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast
from uuid import uuid4

import msgspec

from normalization.plan import Call
from normalization.request import ImageRef
from providers import http
from providers.base import Done, ImagePart, ImageParts, RemoteImage, Running, Ticket
from providers.drive import Sleep, Unanswered
from providers.failures import FailureKind, ProviderFailure
from providers.replicate.answers import ADDRESS, ENDED, PLAIN_ID, Prediction, Unusable, read_short, texts, time_of, usage
from providers.replicate.api import Api, ReplicateSettings
from providers.replicate.creates import Create, Likeness, likenesses, prepared, refs
from providers.replicate.files import Upload, Uploads
from providers.replicate.verdicts import Verdicts, ran, retry_after_s
from providers.replicate.webhooks import WebhookRefused, verify_webhook, webhook_key
from providers.spool import Spool
from providers.transfer import SpooledJson, in_thread

_MAX_DATA_URI_BYTES = 256_000
"""A picture whose data URI is longer is uploaded. Source: api.replicate.com/openapi.json, `input` of `POST /predictions`."""

_MIN_CANCEL_AFTER_S = 5
"""Source: api.replicate.com/openapi.json, header `Cancel-After`."""

_MAX_WAIT_S = 60
"""Source: api.replicate.com/openapi.json, header `Prefer`."""

_ANSWER_S = 30.0
"""How long the answer to a create may take beyond the wait that was asked for."""

_LOOKS_S = (0.5, 2.0, 3.0, 4.0)
"""Pauses before each look for a prediction whose create got no answer."""

_LOOKS_IN_VAIN = 2
"""After so many looks that did not find it, it was not made."""

_MAX_PAGES = 20
"""How far back a look goes, 100 predictions a page."""

_CANCEL_PAUSES_S = (0.5, 1.5)
"""Before each further try of a cancellation."""

_CLOSING_S = 5.0
_MAX_KNOWN = 10_000


@dataclass(frozen=True, slots=True)
class _Look:
    """What a look for a lost prediction showed."""

    found: str | None
    unclear: bool
    """Whether there is one that may be it."""


class _Delivery(msgspec.Struct):
    """What is read of a webhook's body."""

    id: str


class ReplicateProvider:
    """The provider `replicate`."""

    name = "replicate"

    def __init__(
        self,
        settings: ReplicateSettings,
        *,
        client: http.AsyncClient,
        spool: Spool,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        make_id: Callable[[], str] = lambda: uuid4().hex,
        sleep: Sleep = asyncio.sleep,
        max_picture_bytes: int = 2**30,
    ) -> None:
        """Take the settings, a client without a guard (the address is the operator's), and where pictures of answers are put."""
        self._settings = settings
        self._api = Api(settings, client, spool, max_picture_bytes)
        self._verdicts = Verdicts(settings.token)
        self._uploads = Uploads(self._api, self._verdicts, make_id, sleep)
        self._webhook_key: bytes | None = None
        self._now = now
        self._sleep = sleep
        self._known: dict[str, None] = {}
        """Predictions that belong to a ticket, newest last: a look for a lost one must not find them."""
        self._creating: set[Create] = set()
        self._uses: dict[str, tuple[Upload, ...]] = {}
        """Which uploads a prediction reads."""
        self._calling_off: set[asyncio.Task[None]] = set()

    def refusal(self, endpoint: str) -> str | None:
        """Whether there is a token."""
        return None if self._settings.token else f"{self.name}: no token is set; see REPLICATE_API_TOKEN"

    async def submit(self, call: Call, images: ImageParts, *, alone: bool = False) -> Ticket:
        """Upload the pictures that are too large to send along, and create a prediction. Replicate does not try twice by itself."""
        uploads = self._uploads.need(_large(call, images))
        try:
            files = {ref: await upload.url() for ref, upload in uploads.items()}
            create = self._begin(call, images, files)
            prediction = await self._carried_out(create)
        except BaseException:
            self._uploads.release(uploads.values())
            raise
        self._uses[prediction] = tuple(uploads.values())
        return self._ticket(create, prediction)

    async def poll(self, ticket: Ticket) -> Running | Done:
        """Ask once. Only the answer that says it is over says what it used, so that the one to the create is not enough."""
        self._claim(ticket.id)
        answer, prediction = await self._look_at(ticket)
        if prediction.status not in ENDED:
            answer.discard()
            return Running()
        self._let_go(ticket)
        return self._ended(answer, prediction)

    async def cancel(self, ticket: Ticket) -> None:
        """Ask that it stop, a few times if there is no answer: what runs on is paid for."""
        try:
            for pause_s in (*_CANCEL_PAUSES_S, None):
                if await self._told_to_stop(ticket):
                    return
                if pause_s is not None:
                    await self._sleep(pause_s)
        finally:
            self._let_go(ticket)
        raise ProviderFailure(FailureKind.TRANSIENT, "replicate could not be told to stop")

    async def verify_webhook(self, headers: Mapping[str, str], body: bytes) -> str:
        """The id of the prediction that a delivery says is over; the account's secret is asked for once.

        Raises:
            WebhookRefused: If the delivery is not Replicate's, or the secret cannot be had.
        """
        if self._webhook_key is None:
            try:
                async with self._api.ask("GET", "/webhooks/default/secret") as response:
                    secret = msgspec.json.decode(await response.aread(), type=dict[str, str])["key"]
                self._webhook_key = webhook_key(secret)
            except (http.HTTPError, msgspec.MsgspecError, KeyError, ValueError) as exc:
                raise WebhookRefused("the secret cannot be had") from exc
        verify_webhook(headers, body, key=self._webhook_key, now=self._now())
        try:
            return msgspec.json.decode(body, type=_Delivery).id
        except msgspec.MsgspecError as exc:
            raise WebhookRefused("the delivery names no prediction") from exc

    async def close(self) -> None:
        """Call off what was left half-way and delete what was uploaded, in a few seconds or not at all."""
        if self._calling_off:
            await asyncio.wait(self._calling_off, timeout=_CLOSING_S)
        left = list(self._calling_off)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._uploads.close()

    # Creating

    def _begin(self, call: Call, images: ImageParts, files: Mapping[ImageRef, str]) -> Create:
        sent = cast("dict[str, object]", prepared(call.payload, files))
        started = asyncio.get_running_loop().time()
        hook = self._settings.webhook_url
        return Create(call.endpoint, sent, images, frozenset(files.values()), self._now(), started, hook)

    def _ticket(self, create: Create, prediction: str) -> Ticket:
        return Ticket(self.name, create.endpoint, prediction, create.sent_at)

    async def _carried_out(self, create: Create) -> str:
        """Create it. Left half-way, it is called off as soon as it is known what to call off."""
        work = asyncio.create_task(self._create(create), name="create prediction")
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            task = asyncio.create_task(self._call_off(create, work), name="call prediction off")
            self._calling_off.add(task)
            task.add_done_callback(self._calling_off.discard)
            raise

    async def _call_off(self, create: Create, work: asyncio.Task[str]) -> None:
        if not create.sent:
            work.cancel()
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            work.cancel()
            raise
        if work.cancelled() or work.exception() is not None:
            return  # nothing came of it, or nobody can say what
        with suppress(ProviderFailure):
            await self.cancel(self._ticket(create, work.result()))

    async def _create(self, create: Create) -> str:
        """The identifier of the prediction."""
        self._creating.add(create)
        try:
            prediction = await self._post(create)
            if prediction is not None:
                self._claim(prediction)
        finally:
            self._creating.discard(create)
            create.answered.set()
        return prediction if prediction is not None else await self._look_up(create)

    async def _post(self, create: Create) -> str | None:
        """Ask for it, once. None if the answer was lost. Raises `ProviderFailure` if it is certain that nothing came of it."""
        body = create.body()
        limits = http.Timeout(60.0, connect=10.0, read=self._wait_s + _ANSWER_S)
        try:
            async with self._api.ask(
                "POST", "/predictions", headers={**body.headers, **self._terms()}, content=create.watched(body), limits=limits
            ) as response:
                if response.is_success:
                    answer, prediction = await self._api.read_prediction(response)
                    answer.discard()
                    return prediction.id
                said = await read_short(response)
        except (http.ConnectError, http.ConnectTimeout) as exc:
            raise self._verdicts.failure(FailureKind.TRANSIENT, "replicate cannot be reached", exc) from exc
        except (http.HTTPError, Unusable) as exc:
            if not create.sent:
                raise self._verdicts.failure(FailureKind.TRANSIENT, "the connection to replicate broke", exc) from exc
            create.lost = f"{type(exc).__name__}: {exc}"
            return None
        if said.status == 408 or said.status >= 500:
            create.lost = str(said)
            return None
        raise self._verdicts.refused(said)

    def _terms(self) -> dict[str, str]:
        """How long it may run, and how long the answer may wait for it."""
        terms = {"Cancel-After": f"{max(round(self._settings.cancel_after_s), _MIN_CANCEL_AFTER_S)}s"}
        return {**terms, "Prefer": f"wait={self._wait_s}"} if self._wait_s else terms

    @property
    def _wait_s(self) -> int:
        return min(max(self._settings.wait_s, 0), _MAX_WAIT_S)

    def _claim(self, prediction: str) -> None:
        self._known.pop(prediction, None)
        self._known[prediction] = None
        if len(self._known) > _MAX_KNOWN:
            del self._known[next(iter(self._known))]

    # Finding what a lost answer was about

    async def _look_up(self, create: Create) -> str:
        """Find the prediction of a create that got no answer.

        Raises:
            ProviderFailure: Kind `transient` if there is none, `unknown` if that cannot be said.
        """
        await self._expect_others(create)
        in_vain, why = 0, "it was not looked for often enough"
        for pause_s in _LOOKS_S:
            await self._sleep(pause_s)
            try:
                look = await self._look_for(create)
            except (http.HTTPError, Unusable) as exc:
                why = f"predictions cannot be listed: {exc}"
                continue
            if look.found is not None:
                return look.found
            if look.unclear:
                why = "there is a prediction that may be it"
                break
            in_vain += 1
            if in_vain == _LOOKS_IN_VAIN:
                raise self._verdicts.failure(FailureKind.TRANSIENT, "replicate did not take the work", create.lost)
        message = "replicate did not answer; whether it has the work is not known"
        raise self._verdicts.failure(FailureKind.UNKNOWN, message, f"{create.lost}; {why}")

    async def _expect_others(self, create: Create) -> None:
        """Wait for creates under way: theirs may be just like this one, and is not to be taken for it."""
        for other in [other for other in self._creating if other.endpoint == create.endpoint]:
            await other.answered.wait()

    async def _look_for(self, create: Create) -> _Look:
        """Go through the newest predictions, back to when the create was sent. What is found belongs to this create from now on."""
        query, same, unclear = "", list[str](), False
        since: datetime | None = None
        for _ in range(_MAX_PAGES):
            async with self._api.ask("GET", f"/predictions{query}") as response:
                since = since or create.since(response)
                answer, page = await self._api.read_page(response)
            young = [one for one in page.results if (made := time_of(one.created_at)) is None or made >= since]
            try:
                alike = await in_thread(likenesses, create, young, answer.parts)
            finally:
                answer.discard()
            fresh = [(one.id, likeness) for one, likeness in zip(young, alike, strict=True) if one.id not in self._known]
            unclear |= any(likeness is Likeness.UNCLEAR for _, likeness in fresh)
            same += [name for name, likeness in fresh if likeness is Likeness.SAME]
            if len(young) < len(page.results) or not page.next:
                found = next((name for name in reversed(same) if name not in self._known), None)
                if found is not None:
                    self._claim(found)
                return _Look(found, unclear)
            query = f"?{http.URL(page.next).query.decode('ascii')}"
        raise Unusable(f"more than {_MAX_PAGES} pages of them are younger")

    # Asking

    async def _look_at(self, ticket: Ticket) -> tuple[SpooledJson, Prediction]:
        path = _path(ticket)
        try:
            async with self._api.ask("GET", path) as response:
                if response.status_code == 200:
                    return await self._api.read_prediction(response)
                said = await read_short(response)
        except (http.HTTPError, Unusable) as exc:
            raise self._unanswered(f"{type(exc).__name__}: {exc}") from exc
        raise self._unanswered(str(said), retry_after_s(said) if said.status in {429, 503} else None)

    def _unanswered(self, why: str, wait_s: float | None = None) -> Unanswered:
        """Whatever is wrong with the asking, the work may go on and be charged: in the end it is as if it had taken too long."""
        message = "replicate does not say how the work goes"
        return Unanswered(FailureKind.TIMEOUT, message, detail=f"{message}: {self._verdicts.clean(why)}", retry_after_s=wait_s)

    async def _told_to_stop(self, ticket: Ticket) -> bool:
        """False if it is worth another try. That there is nothing to stop any more is fine."""
        try:
            async with self._api.ask("POST", f"{_path(ticket)}/cancel") as response:
                return response.status_code != 429 and response.status_code < 500
        except http.HTTPError:
            return False

    def _let_go(self, ticket: Ticket) -> None:
        self._uploads.release(self._uses.pop(ticket.id, ()))

    def _ended(self, answer: SpooledJson, prediction: Prediction) -> Done:
        """The result of a prediction that has ended. Raises `ProviderFailure`, and then no file is left."""
        keep = frozenset[str]()
        try:
            match prediction.status:
                case "succeeded":
                    done = self._done(answer, prediction)
                    keep = frozenset(text for text in texts(prediction.output) if text in answer.parts)
                    return done
                case "failed":
                    raise _charged(self._verdicts.failed(prediction), prediction)
                case "aborted":  # its deadline passed in the queue: nothing ran, nothing is charged
                    raise self._verdicts.failure(FailureKind.TRANSIENT, "replicate did not come to it in time", ran(prediction))
                case _:
                    raise _charged(self._stopped(prediction), prediction)
        finally:
            answer.discard(keep=keep)

    def _done(self, answer: SpooledJson, prediction: Prediction) -> Done:
        outputs: list[RemoteImage] = []
        for text in texts(prediction.output):
            if part := answer.parts.get(text):
                outputs.append(RemoteImage(path=part.path))
            elif ADDRESS.match(text):
                outputs.append(RemoteImage(url=text))
        if not outputs:
            gone = "replicate has no picture any more" if prediction.data_removed else "the model finished, but there is no picture"
            raise _charged(
                self._verdicts.failure(FailureKind.TRANSIENT, gone, f"{prediction.output!r:.200}; {ran(prediction)}"), prediction
            )
        return Done(tuple(outputs), usage(prediction))

    def _stopped(self, prediction: Prediction) -> ProviderFailure:
        deadline = time_of(prediction.deadline)
        if deadline is not None and deadline <= self._now():
            return self._verdicts.failure(FailureKind.TIMEOUT, "replicate did not finish in time", ran(prediction))
        return self._verdicts.failure(FailureKind.CANCELLED, "the work at replicate was cancelled", ran(prediction))


def _charged(failure: ProviderFailure, prediction: Prediction) -> ProviderFailure:
    """The failure, with the seconds that are charged all the same where it has run."""
    used = usage(prediction)
    failure.usage = used if used.seconds is not None else None
    return failure


def _large(call: Call, images: ImageParts) -> dict[ImageRef, ImagePart]:
    """The pictures of a call that are too large to send along."""
    return {ref: images[ref] for ref in refs(call.payload) if _data_uri_length(images[ref]) > _MAX_DATA_URI_BYTES}


def _data_uri_length(part: ImagePart) -> int:
    return len(f"data:{part.mime};base64,") + (part.size_bytes + 2) // 3 * 4


def _path(ticket: Ticket) -> str:
    if not PLAIN_ID.fullmatch(ticket.id):
        raise ProviderFailure(FailureKind.UNKNOWN, "the ticket names no prediction of replicate")
    return f"/predictions/{ticket.id}"
