"""Requests to Replicate's API. All carry the token, so all go to paths below the one base URL and follow no redirect."""

from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from providers import http
from providers.replicate.answers import PLAIN_ID, Prediction, PredictionPage, Unusable
from providers.spool import Spool
from providers.transfer import AnswerUnreadable, SpooledJson, read_spooled_json

T = TypeVar("T")

ASK_TIMEOUT = http.Timeout(15.0, connect=5.0)

_MAX_PAGE_BYTES = 2**26
_MAX_PAGE_PARTS = 5000


@dataclass(frozen=True, slots=True)
class ReplicateSettings:
    """Where Replicate is, and who asks."""

    token: str | None = field(repr=False)
    """None: no offer of Replicate is eligible."""
    base_url: str = "https://api.replicate.com/v1"
    wait_s: int = 2
    """How long a create is held open for the result, 0 to 60 s. Short: until it is answered there is no ticket to store."""
    cancel_after_s: float = 3600.0
    """When Replicate ends a prediction by itself, at least 5 s after it was created. Bounds what is lost if the gateway dies."""
    webhook_url: str | None = None
    """Where Replicate is to say that work is over, https. None: it is only polled."""


class Api:
    """Replicate's API, as far as it is used."""

    def __init__(self, settings: ReplicateSettings, client: http.AsyncClient, spool: Spool, max_picture_bytes: int) -> None:
        """Take a client without a guard: the address is the operator's. Pictures inside answers are put into the spool."""
        self._base_url = settings.base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {settings.token or ''}", "Accept": "application/json"}
        self._client = client
        self._spool = spool
        self._max_picture_bytes = max_picture_bytes

    @asynccontextmanager
    async def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: AsyncIterable[bytes] | None = None,
        limits: http.Timeout = ASK_TIMEOUT,
    ) -> AsyncGenerator[http.Response]:
        """Make one request. Raises `http.HTTPError`."""
        async with self._client.stream(
            method,
            f"{self._base_url}{path}",
            headers={**self._headers, **(headers or {})},
            content=content,
            timeout=limits,
            follow_redirects=False,
        ) as response:
            yield response

    async def read_prediction(self, response: http.Response) -> tuple[SpooledJson, Prediction]:
        """A prediction, and the answer whose files it names. Raises `Unusable`, `http.HTTPError`, and then no file is left."""
        answer = await self._read(response, max_text_bytes=2**24, max_parts=64)
        prediction = _converted(answer, Prediction)
        if not PLAIN_ID.fullmatch(prediction.id):
            answer.discard()
            raise Unusable("the prediction's identifier is not one")
        return answer, prediction

    async def read_page(self, response: http.Response) -> tuple[SpooledJson, PredictionPage]:
        """A page of predictions. Errors as for one."""
        if response.status_code != 200:
            raise Unusable(f"status {response.status_code}")
        answer = await self._read(response, max_text_bytes=_MAX_PAGE_BYTES, max_parts=_MAX_PAGE_PARTS)
        return answer, _converted(answer, PredictionPage)

    async def _read(self, response: http.Response, *, max_text_bytes: int, max_parts: int) -> SpooledJson:
        try:
            return await read_spooled_json(
                response.aiter_raw(),
                self._spool,
                max_part_bytes=self._max_picture_bytes,
                max_text_bytes=max_text_bytes,
                max_parts=max_parts,
            )
        except AnswerUnreadable as exc:
            raise Unusable(str(exc)) from exc


def _converted(answer: SpooledJson, kind: type[T]) -> T:
    try:
        return msgspec.convert(answer.document, kind)
    except msgspec.ValidationError as exc:
        answer.discard()
        raise Unusable(f"the answer is not a {kind.__name__}") from exc
