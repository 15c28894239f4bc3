"""Pictures at Replicate: each is uploaded once for all calls that need it, and deleted when none does."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from normalization.request import ImageRef
from providers import http
from providers.base import ImagePart
from providers.drive import Sleep
from providers.failures import FailureKind, ProviderFailure
from providers.replicate.answers import ADDRESS, PLAIN_ID, File, Said, read_short
from providers.replicate.api import Api
from providers.replicate.verdicts import Verdicts
from providers.transfer import in_thread

_TIMEOUT = http.Timeout(60.0, connect=10.0)

_PAUSES_S = (1.0,)
"""Before each further try of an upload."""

_LINGER_S = 5.0
"""How long a picture is kept once no call needs it: another try of the same picture may be about to."""

_CLOSING_S = 5.0
_READ_BYTES = 2**18


@dataclass(slots=True, eq=False)
class Upload:
    """One picture at Replicate, or on its way there."""

    path: Path
    task: asyncio.Task[File]
    users: int = 0
    """How many calls need it."""

    @property
    def failed(self) -> bool:
        """Whether it will never be there."""
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)

    async def url(self) -> str:
        """What goes into a prediction's input. Raises `ProviderFailure`."""
        return (await asyncio.shield(self.task)).urls.get


class Uploads:
    """All of them."""

    def __init__(self, api: Api, verdicts: Verdicts, make_id: Callable[[], str], sleep: Sleep) -> None:
        """Take what is needed to ask."""
        self._api = api
        self._verdicts = verdicts
        self._make_id = make_id
        self._sleep = sleep
        self._by_path: dict[Path, Upload] = {}
        self._lingering: set[asyncio.Task[None]] = set()

    def need(self, parts: Mapping[ImageRef, ImagePart]) -> dict[ImageRef, Upload]:
        """Have pictures uploaded that are not there yet. Whoever needs them releases them."""
        uploads = {ref: self._upload_of(part) for ref, part in parts.items()}
        for upload in uploads.values():
            upload.users += 1
        return uploads

    def release(self, uploads: Iterable[Upload]) -> None:
        """Say that a call needs them no more. Nobody waits for what follows."""
        for upload in uploads:
            upload.users -= 1
            if not upload.users:
                task = asyncio.create_task(self._linger(upload))
                self._lingering.add(task)
                task.add_done_callback(self._lingering.discard)

    async def close(self) -> None:
        """Delete what is there, in a few seconds or not at all."""
        uploads, self._by_path = list(self._by_path.values()), {}
        lingering = list(self._lingering)
        for task in lingering:
            task.cancel()
        await asyncio.gather(*lingering, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_S):
                await asyncio.gather(*(self._delete(upload) for upload in uploads))

    def _upload_of(self, part: ImagePart) -> Upload:
        upload = self._by_path.get(part.path)
        if upload is None or upload.failed:
            upload = Upload(part.path, asyncio.create_task(self._upload(part), name="upload picture"))
            self._by_path[part.path] = upload
        return upload

    async def _upload(self, part: ImagePart) -> File:
        """An upload costs nothing, so that once more does no harm."""
        for pause_s in _PAUSES_S:
            try:
                return await self._upload_once(part)
            except ProviderFailure as failure:
                if failure.kind is not FailureKind.TRANSIENT:
                    raise
            await self._sleep(pause_s)
        return await self._upload_once(part)

    async def _upload_once(self, part: ImagePart) -> File:
        form = _form(part, self._make_id())
        try:
            async with self._api.ask("POST", "/files", headers=form.headers, content=form, limits=_TIMEOUT) as response:
                said = await read_short(response)
        except http.HTTPError as exc:
            raise self._verdicts.failure(FailureKind.TRANSIENT, "the picture could not be sent to replicate", exc) from exc
        if not 200 <= said.status < 300:
            raise self._verdicts.refused(said)
        return self._file(said)

    def _file(self, said: Said) -> File:
        try:
            file = msgspec.convert(said.document, File)
        except msgspec.ValidationError as exc:
            raise self._verdicts.failure(FailureKind.TRANSIENT, "replicate does not say where it put the picture", said) from exc
        if not ADDRESS.match(file.urls.get) or not PLAIN_ID.fullmatch(file.id):
            raise self._verdicts.failure(FailureKind.TRANSIENT, "replicate does not say where it put the picture", said)
        return file

    async def _linger(self, upload: Upload) -> None:
        await self._sleep(_LINGER_S)
        if upload.users == 0 and self._by_path.get(upload.path) is upload:
            del self._by_path[upload.path]
            await self._delete(upload)

    async def _delete(self, upload: Upload) -> None:
        """Best effort: what is forgotten expires after a day."""
        if not upload.task.done():
            upload.task.cancel()
            await asyncio.wait([upload.task])
        if upload.failed:
            return
        with suppress(http.HTTPError):
            async with self._api.ask("DELETE", f"/files/{upload.task.result().id}"):
                pass


@dataclass(frozen=True, slots=True)
class _Form:
    """A multipart form of one file, which is read as it is sent."""

    head: bytes
    part: ImagePart
    tail: bytes
    headers: Mapping[str, str]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.head
        for offset in range(0, self.part.size_bytes, _READ_BYTES):
            yield await in_thread(_read_piece, self.part, offset)
        yield self.tail


def _form(part: ImagePart, boundary: str) -> _Form:
    """The form of `POST /files`. The picture's own name is nobody's business."""
    name = f"picture.{part.mime.partition('/')[2].partition('+')[0]}"
    disposition = f'Content-Disposition: form-data; name="content"; filename="{name}"'
    head = f"--{boundary}\r\n{disposition}\r\nContent-Type: {part.mime}\r\n\r\n".encode("ascii")
    tail = f"\r\n--{boundary}--\r\n".encode("ascii")
    length = len(head) + part.size_bytes + len(tail)
    return _Form(head, part, tail, {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(length)})


def _read_piece(part: ImagePart, offset: int) -> bytes:
    expected = min(_READ_BYTES, part.size_bytes - offset)
    with part.path.open("rb", buffering=0) as file:
        file.seek(offset)
        content = file.read(expected)
    if len(content) != expected:
        raise OSError(f"{part.path.name} is shorter than it was")
    return content
