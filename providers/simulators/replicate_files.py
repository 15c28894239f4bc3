"""The files API of the Replicate stand-in, and where predictions get their input pictures from.

Sources: Replicate's OpenAPI document, `/files`; recordings of the Python client's tests.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import msgspec
from multipart import MultipartError, MultipartSegment, PushMultipartParser

from providers.http import AsyncClient, HTTPError, InvalidURL, create_client
from providers.simulators.pictures import PictureUnreadable, read_data_uri
from providers.simulators.replicate_predictions import moment, new_id
from providers.simulators.replicate_work import RunFailed
from providers.simulators.serving import Request

MAX_BYTES = 100 << 20
"""Source: https://replicate.com/docs/reference/http#files.create."""
_NAME_BYTES = 255
_KEPT = timedelta(hours=24)
_FETCH_S = 30


class FileRefused(Exception):
    """An upload that is not taken: the status, and why."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An uploaded file."""

    id: str
    name: str
    mime: str
    data: bytes = field(repr=False)
    metadata: Any
    created_at: datetime
    origin: str

    @property
    def ends_at(self) -> datetime:
        """When it goes away by itself."""
        return self.created_at + _KEPT

    def as_json(self) -> dict[str, Any]:
        """As the API shows it."""
        md5 = hashlib.md5(self.data, usedforsecurity=False).hexdigest()
        return {
            "id": self.id,
            "name": self.name,
            "content_type": self.mime,
            "size": len(self.data),
            "etag": md5,
            "checksums": {"sha256": hashlib.sha256(self.data).hexdigest(), "md5": md5},
            "metadata": self.metadata,
            "created_at": moment(self.created_at),
            "expires_at": moment(self.ends_at),
            "urls": {"get": f"{self.origin}/v1/files/{self.id}"},
        }


class Files:
    """What was uploaded and is still there."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._all: dict[str, StoredFile] = {}

    def newest_first(self) -> list[StoredFile]:
        """All of them."""
        return [file for id_ in reversed(tuple(self._all)) if (file := self.find(id_)) is not None]

    def find(self, id_: str) -> StoredFile | None:
        """One, unless it was deleted or its day is over."""
        file = self._all.get(id_)
        if file is not None and self._now() >= file.ends_at:
            del self._all[id_]
            return None
        return file

    def delete(self, id_: str) -> bool:
        """Remove one. False if there was none."""
        return self.find(id_) is not None and self._all.pop(id_, None) is not None

    def store(self, request: Request) -> StoredFile:
        """Take an upload. Raises `FileRefused`."""
        parts = _parts(request)
        content = parts.get("content")
        if content is None:
            raise FileRefused(400, "Missing content")
        if len(content.raw) > MAX_BYTES:
            raise FileRefused(413, "Files must be less than 100MB in size")
        name = content.filename or _text(parts, "filename") or "file"
        if len(name.encode()) > _NAME_BYTES:
            raise FileRefused(400, f"Filename must be at most {_NAME_BYTES} bytes")
        file = StoredFile(
            id=new_id(),
            name=name,
            mime=content.content_type or _text(parts, "type") or "application/octet-stream",
            data=bytes(content.raw),
            metadata=_metadata(_text(parts, "metadata")),
            created_at=self._now(),
            origin=request.origin,
        )
        self._all[file.id] = file
        return file


@dataclass(frozen=True, slots=True)
class _Part:
    raw: bytearray
    filename: str | None
    content_type: str | None


def _parts(request: Request) -> dict[str, _Part]:
    boundary = re.search(r'boundary="?([^";]+)', request.headers.get("content-type", ""))
    if boundary is None:
        raise FileRefused(415, "Expected multipart/form-data")
    parts: dict[str, _Part] = {}
    current = _Part(bytearray(), None, None)
    try:
        with PushMultipartParser(boundary[1]) as parser:
            for event in parser.parse(request.body):
                if isinstance(event, MultipartSegment):
                    current = parts[event.name or ""] = _Part(bytearray(), event.filename, event.content_type)
                elif event:
                    current.raw.extend(event)
    except MultipartError as error:
        raise FileRefused(400, "The multipart body cannot be read") from error
    return parts


def _text(parts: dict[str, _Part], name: str) -> str:
    part = parts.get(name)
    return part.raw.decode("utf-8", "replace") if part is not None else ""


def _metadata(text: str) -> Any:
    try:
        metadata = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError as error:
        raise FileRefused(400, "Invalid metadata") from error
    if not isinstance(metadata, dict):
        raise FileRefused(400, "Invalid metadata")
    return metadata  # pyright: ignore[reportUnknownVariableType] -- whatever the client put there


class Fetcher:
    """Gets input pictures as the models' containers do: data URIs, uploaded files, results, and anything on the web."""

    def __init__(self, files: Files, result: Callable[[str], bytes | None]) -> None:
        """Take the uploaded files, and what finds a result by its path."""
        self._files = files
        self._result = result
        self._client: AsyncClient | None = None

    async def fetch(self, address: str, origin: str) -> bytes:
        """What stands there. Raises `RunFailed`."""
        try:
            inline = read_data_uri(address)
        except PictureUnreadable as error:
            raise RunFailed("Input validation error: Incorrect padding") from error
        if inline is not None:
            return inline
        url = urlsplit(address)
        if f"{url.scheme}://{url.netloc}" == origin:
            return self._own(address, url.path)
        return await self._from_the_web(address)

    async def close(self) -> None:
        """Let go of the connections."""
        if self._client is not None:
            await self._client.aclose()

    def _own(self, address: str, path: str) -> bytes:
        file = self._files.find(path.removeprefix("/v1/files/"))
        data = file.data if file is not None else self._result(path)
        if data is None:
            raise RunFailed(f"Input validation error: 404 Client Error: Not Found for url: {address}", has_run=False)
        return data

    async def _from_the_web(self, address: str) -> bytes:
        self._client = self._client or create_client(guard=None, user_agent="python-requests/2.32.3")
        try:
            answer = await self._client.get(address, follow_redirects=True, timeout=_FETCH_S)
        except (HTTPError, InvalidURL) as error:
            raise RunFailed(f"Input validation error: could not reach {address}", has_run=False) from error
        if answer.is_success:
            return answer.content
        whose = "Client" if answer.status_code < 500 else "Server"
        said = f"{answer.status_code} {whose} Error: {answer.reason_phrase} for url: {address}"
        raise RunFailed(f"Input validation error: {said}", has_run=False)
