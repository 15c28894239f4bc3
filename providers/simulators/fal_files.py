"""fal's storage: files that anybody may fetch, and the two ways to upload one."""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from providers.simulators.kit import Fault
from providers.simulators.serving import Answer, Request, json_answer

_MOST_BYTES = 512 << 20
"""Of all files together; beyond it the oldest are gone."""
_EXTENSIONS = {"image/png": "png", "image/jpeg": "jpeg", "image/webp": "webp", "image/gif": "gif"}
_FOREVER = "public, max-age=5184000, immutable"


@dataclass(slots=True)
class StoredFile:
    """One file, and how its downloads go wrong."""

    data: bytes = field(repr=False)
    mime: str
    endpoint: str = ""
    """Which made it; empty for uploads."""
    faults: Mapping[str, Fault] = field(default_factory=dict[str, Fault])
    lifecycle: str | None = None
    """The header that came with the upload or the job."""
    downloads: int = 0


@dataclass(slots=True)
class _Upload:
    """One that has been announced."""

    path: str
    mime: str
    lifecycle: str | None
    parts: dict[int, bytes] = field(default_factory=dict[int, bytes])


class Files:
    """All files, by path; paths cannot be guessed."""

    def __init__(self) -> None:
        self._files: dict[str, StoredFile] = {}
        self._uploads: dict[str, _Upload] = {}
        self._tokens: set[str] = set()

    def find(self, path: str) -> StoredFile | None:
        """The file at `/files/…`."""
        return self._files.get(path)

    def store(self, file: StoredFile) -> str:
        """Keep a file. Returns its path."""
        path = _new_path(file.mime)
        self._keep(path, file)
        return path

    def serve(self, request: Request, path: str) -> Answer:
        """Answer a download, with ranges, and as badly as the file's faults say."""
        file = self._files.get(path)
        if file is None or "expired_result" in file.faults:
            return json_answer(404, {"detail": "Not Found"})
        if request.method == "GET":
            file.downloads += 1
        data = file.data[: len(file.data) // 2] if "truncated_download" in file.faults else file.data
        tag = f'"{hashlib.md5(file.data, usedforsecurity=False).hexdigest()}"'
        headers = {
            "content-type": file.mime,
            "etag": tag,
            "accept-ranges": "bytes",
            "cache-control": _FOREVER,
            "access-control-allow-origin": "*",
        }
        start = _range_start(request, tag)
        if start >= len(data):
            return Answer(416, b"", headers | {"content-range": f"bytes */{len(data)}"})
        if start:
            headers["content-range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        slow = file.faults.get("slow_download")
        cut = "cut_download_twice" in file.faults and file.downloads <= 2
        return Answer(
            206 if start else 200,
            data[start:],
            headers,
            cut_at=(len(data) - start) // 2 if cut else None,
            takes_s=slow.number(5.0) if slow else 0.0,
        )

    def initiate(self, request: Request, files_base: str, upload_base: str) -> Answer:
        """`POST /storage/upload/initiate` and `…/initiate-multipart`."""
        told: dict[str, Any] = request.json()
        missing = [name for name in ("file_name", "content_type") if name not in told]
        if missing:
            wrong = [{"loc": ["body", name], "msg": "field required", "type": "value_error.missing"} for name in missing]
            return json_answer(422, {"detail": wrong})
        mime = str(told["content_type"])
        upload = _Upload(_new_path(mime), mime, _lifecycle(request))
        token = secrets.token_urlsafe(24)
        self._uploads[token] = upload
        upload_url = f"{upload_base}/upload/{token}?signature={secrets.token_hex(8)}"
        urls = {"upload_url": upload_url, "file_url": files_base + upload.path}
        return json_answer(200, urls)

    def put(self, request: Request, token: str, part: str) -> Answer:
        """`PUT {upload_url}`, or one of its parts, or `POST …/complete`."""
        upload = self._uploads.get(token)
        if upload is None:
            return json_answer(403, {"detail": "The signature is not valid"})
        if part == "complete":
            self._complete(token, upload)
            return json_answer(200, {})
        if part:
            upload.parts[int(part)] = request.body
            etag = hashlib.md5(request.body, usedforsecurity=False).hexdigest()
            return json_answer(200, {"partNumber": int(part), "etag": etag}, {"etag": f'"{etag}"'})
        self._keep(
            upload.path, StoredFile(request.body, request.headers.get("content-type", upload.mime), lifecycle=upload.lifecycle)
        )
        del self._uploads[token]
        return Answer(200)

    def token(self, cdn_base: str) -> Answer:
        """`POST /storage/auth/token`."""
        token = secrets.token_urlsafe(24)
        self._tokens.add(token)
        expires = datetime.now(UTC) + timedelta(hours=1)
        return json_answer(
            200, {"token": token, "token_type": "Bearer", "base_url": cdn_base, "expires_at": expires.isoformat(timespec="seconds")}
        )

    def upload(self, request: Request, files_base: str) -> Answer:
        """`POST /files/upload`, with such a token."""
        if not self._holds_token(request):
            return _token_needed()
        mime = request.headers.get("content-type", "application/octet-stream")
        return json_answer(
            200, {"access_url": files_base + self.store(StoredFile(request.body, mime, lifecycle=_lifecycle(request)))}
        )

    def begin_parts(self, request: Request, files_base: str) -> Answer:
        """`POST /files/upload/multipart`."""
        if not self._holds_token(request):
            return _token_needed()
        mime = request.headers.get("content-type", "application/octet-stream")
        upload = _Upload(_new_path(mime), mime, _lifecycle(request))
        upload_id = secrets.token_urlsafe(16)
        self._uploads[upload_id] = upload
        return json_answer(200, {"access_url": files_base + upload.path, "uploadId": upload_id})

    def part(self, request: Request, upload_id: str, part: str) -> Answer:
        """`PUT {access_url}/multipart/{uploadId}/{n}` and `POST …/complete`."""
        return self.put(request, upload_id, part) if self._holds_token(request) else _token_needed()

    def _holds_token(self, request: Request) -> bool:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        return kind == "Bearer" and token in self._tokens

    def _complete(self, token: str, upload: _Upload) -> None:
        data = b"".join(upload.parts[number] for number in sorted(upload.parts))
        self._keep(upload.path, StoredFile(data, upload.mime, lifecycle=upload.lifecycle))
        del self._uploads[token]

    def _keep(self, path: str, file: StoredFile) -> None:
        self._files[path] = file
        total = sum(len(kept.data) for kept in self._files.values())
        for oldest in list(self._files)[:-1]:
            if total <= _MOST_BYTES:
                break
            total -= len(self._files.pop(oldest).data)


def _new_path(mime: str) -> str:
    name = secrets.token_urlsafe(16)
    extension = _EXTENSIONS.get(mime, "bin")
    return f"/files/b/{secrets.token_hex(4)}/{name}.{extension}"


def _lifecycle(request: Request) -> str | None:
    headers = request.headers
    return headers.get("x-fal-object-lifecycle") or headers.get("x-fal-object-lifecycle-preference")


def _range_start(request: Request, tag: str) -> int:
    """Where the client wants to go on, if it has an earlier part of this very file; 0 else."""
    unit, _, span = request.headers.get("range", "").partition("=")
    start, _, end = span.partition("-")
    same = request.headers.get("if-range", tag) == tag
    return int(start) if unit == "bytes" and start.isdigit() and not end and same else 0


def _token_needed() -> Answer:
    return json_answer(401, {"detail": "Invalid token"})
