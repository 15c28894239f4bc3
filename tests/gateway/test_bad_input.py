"""Whatever a caller sends: a clear error in OpenAI's shape, nothing left behind, nobody told to repeat in vain."""

import asyncio
import json
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PosixPath
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import func, select

from gateway.db.tables import JobState, job
from tests.gateway.backend import StandIn
from tests.gateway.conftest import MODEL, Live, Open, chunked, error_of, form_body, in_one_loop, picture, until

SMALL = {"max_image_bytes": 100_000, "max_image_pixels": 1_000_000}


def bomb(edge: int = 30_000) -> bytes:
    """A PNG of a few bytes whose header announces very many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


WRONG: Mapping[str, tuple[dict[str, Any], int, str | None, str | None]] = {
    "not an image": ({"image": b"GIF89a? no, words."}, 400, "image", "invalid_image_file"),
    "empty file": ({"image": b""}, 400, "image", "invalid_image_file"),
    "truncated": ({"image": picture(64, 64)[:-40]}, 400, "image", "invalid_image_file"),
    "bomb": ({"image": bomb()}, 400, "image", None),
    "17 images": ({"image": [picture()] * 17}, 400, "image", "array_above_max_length"),
    "two images for one": ({"image": [picture()] * 2}, 400, "image", None),
    "mask of another size": ({"mask": picture(7, 4, mode="RGBA", color=(0, 0, 0, 0))}, 400, "mask", None),
    "mask is not an image": ({"mask": b"words"}, 400, "mask", "invalid_image_file"),
    "n is text": ({"n": "abc"}, 400, "n", "invalid_type"),
    "n is a fraction": ({"n": "1.5"}, 400, "n", "invalid_type"),
    "n is zero": ({"n": 0}, 400, "n", "integer_below_min_value"),
    "n is too large": ({"n": 11}, 400, "n", "integer_above_max_value"),
    "size is words": ({"size": "12by12"}, 400, "size", "invalid_value"),
    "size is zero": ({"size": "0x10"}, 400, "size", "invalid_value"),
    "size is too long": ({"size": "99999x10"}, 400, "size", "invalid_value"),
    "size is too large": ({"size": "16000x16000"}, 400, "size", "invalid_value"),
    "size is too large for AVIF": ({"size": "10000x10000", "output_format": "avif"}, 400, "size", "invalid_value"),
    "size is too long for WebP": ({"size": "16384x10", "output_format": "webp"}, 400, "size", "invalid_value"),
    "factor is text": ({"scale_factor": "double"}, 400, "scale_factor", "invalid_type"),
    "factor is nan": ({"scale_factor": "nan"}, 400, "scale_factor", "invalid_type"),
    "factor is zero": ({"scale_factor": 0}, 400, "scale_factor", "invalid_value"),
    "factor makes too many pixels": ({"image": picture(1000, 1000), "scale_factor": 200}, 400, "scale_factor", "invalid_value"),
    "unknown format": ({"output_format": "bmp"}, 400, "output_format", "invalid_value"),
    "compression is too large": ({"output_compression": 101}, 400, "output_compression", "integer_above_max_value"),
    "unknown answer": ({"response_format": "file"}, 400, "response_format", "invalid_value"),
    "transparent jpeg": ({"output_format": "jpeg", "background": "transparent"}, 400, "background", "invalid_value"),
    "stream": ({"stream": "true"}, 400, "stream", None),
    "no picture": ({"image": []}, 400, "image", "missing_required_parameter"),
    "null character": ({"prompt": "a\0b"}, 400, "prompt", None),
    "long prompt": ({"prompt": "a" * 32_001}, 400, "prompt", "string_above_max_length"),
    "unknown model": ({"model": "detail-upscale"}, 404, None, "model_not_found"),
    "empty model": ({"model": ""}, 400, "model", "missing_required_parameter"),
    "unmatched brackets": ({"extra[": "1"}, 400, None, None),
    "a name in two shapes": ({"extra": "1", "extra[]": "2"}, 400, "extra", None),
}


@in_one_loop
@pytest.mark.parametrize("case", WRONG)
async def test_wrong_values_are_named(shared: Live, case: str):
    """Each is a 4xx that names the parameter; no backend is asked and no file is left."""
    fields, status, param, code = WRONG[case]
    before = len(shared.backend.inputs)

    error = error_of(await shared.edit(**fields), status)

    assert error["param"] == param
    if code is not None:
        assert error["code"] == code
    assert len(shared.backend.inputs) == before
    assert shared.spooled == []


@in_one_loop
async def test_unknown_model_comes_with_a_guess(shared: Live):
    """A slip of the pen is answered with the right name."""
    error = error_of(await shared.edit(model="detail-upscalr"), 404)

    assert f"Did you mean {MODEL}" in error["message"]


BROKEN: Mapping[str, tuple[str, bytes]] = {
    "no boundary": ("multipart/form-data", b"--b\r\n"),
    "another boundary": ("multipart/form-data; boundary=other", form_body(b"")),
    "cut short": ("multipart/form-data; boundary=b0undary", form_body(picture())[:-20]),
    "empty form": ("multipart/form-data; boundary=b0undary", b""),
    "part without a head": ("multipart/form-data; boundary=b0undary", b"--b0undary\r\n\r\n\r\n--b0undary--"),
    "head that never ends": ("multipart/form-data; boundary=b0undary", b"--b0undary\r\nx: " + b"y" * 100_000),
    "not JSON": ("application/json", b"{"),
    "JSON of another kind": ("application/json", b"[1, 2]"),
    "deep JSON": ("application/json", b'{"a":' + b"[" * 100_000),
    "JSON without pictures": ("application/json", b'{"model": "detail-upscaler"}'),
    "picture by file id": ("application/json", b'{"images": [{"file_id": "file-1"}]}'),
    "broken data URL": ("application/json", b'{"images": [{"image_url": "data:image/png;base64,####"}]}'),
    "private address": ("application/json", b'{"images": [{"image_url": "http://127.0.0.1:9/a.png"}]}'),
    "invalid UTF-8": ("application/json", b'{"prompt": "\xff\xfe"}'),
    "another type": ("application/xml", b"<a/>"),
    "no type": ("", b"something"),
}


@in_one_loop
@pytest.mark.parametrize("case", BROKEN)
async def test_broken_bodies_are_400(shared: Live, case: str):
    """A body that cannot be understood is the caller's to mend."""
    kind, body = BROKEN[case]

    error_of(await shared.client.post("/v1/images/edits", content=body, headers={"content-type": kind} if kind else {}), 400)

    assert shared.spooled == []


CONTROLS = {
    "x-gateway-on-unsupported": ("explode", ("error", "drop")),
    "x-gateway-route": ("fastest", ("price", "latency", "balanced", "native_first")),
    "x-gateway-provider-order": ("acme", ("local",)),
    "x-gateway-max-cost-usd": ("cheap", ("US dollars",)),
    "x-gateway-dry-run": ("perhaps", ("true", "false")),
}


@in_one_loop
@pytest.mark.parametrize("header", CONTROLS)
async def test_unknown_control_values_are_answered_with_the_known_ones(shared: Live, header: str):
    """A control that is not understood is never ignored."""
    value, known = CONTROLS[header]

    error = error_of(await shared.edit(headers={header: value}), 400)

    assert error["param"] == header
    assert all(word in error["message"] for word in known)


@in_one_loop
@pytest.mark.parametrize(("method", "path", "status"), [("POST", "/v1/nothing", 404), ("DELETE", "/v1/images/edits", 405)])
async def test_unknown_routes_and_methods_are_in_openais_shape(shared: Live, method: str, path: str, status: int):
    """Not the framework's own words."""
    error_of(await shared.client.request(method, path), status)


@pytest.mark.parametrize("framing", ["with a length", "chunked"])
@pytest.mark.parametrize("what", ["file", "body"])
async def test_too_many_bytes_are_413_that_the_client_can_read(open_live: Open, sqlite_url: str, framing: str, what: str):
    """The client sends to the end and then reads the answer; the connection is not reset under it."""
    live = await open_live(sqlite_url, limits=SMALL)
    body = form_body(b"x" * (300_000 if what == "file" else 12_000_000))
    head = b"transfer-encoding: chunked" if framing == "chunked" else b"content-length: %d" % len(body)

    answer = await talk(live, head, chunked(body) if framing == "chunked" else body)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"request_too_large"' in answer
    assert live.spooled == []


async def test_client_gone_half_way_leaves_nothing(open_live: Open, sqlite_url: str):
    """No file in the spool, no job in the journal."""
    live = await open_live(sqlite_url)
    body = form_body(os.urandom(2_000_000))
    _, writer = await connect(live, b"content-length: %d" % len(body))
    writer.write(body[:1_000_000])
    await until(lambda: live.spooled != [])

    writer.transport.abort()

    await until(lambda: live.spooled == [])
    assert await jobs_in(live) == 0
    assert [event["code"] for event in live.logged] == ["client_closed_request"]


async def test_client_gone_while_the_work_runs_changes_nothing_about_the_work(on_both: Live):
    """The work ends, is recorded and its picture is kept; the journal says that nobody waited."""
    on_both.backend.hold()
    asking = asyncio.create_task(on_both.edit())
    await on_both.backend.asked.wait()
    (running,) = on_both.parts.jobs._running

    asking.cancel()
    while not (await on_both.job(running)).client_gone:  # noqa: ASYNC110 -- the journal tells nobody
        await asyncio.sleep(0.005)
    on_both.backend.go_on.set()

    record = await on_both.ended(running)
    assert record.state is JobState.COMPLETED
    assert record.client_gone
    assert [made.outcome for made in record.attempts] == ["ok"]
    assert await on_both.parts.services.store.size(record.assets[0].key) == record.assets[0].size_bytes
    assert on_both.spooled == []


class FullDisk(PosixPath):
    """A path whose file can be made and takes not a byte: what it is written to says ENOSPC, as a full disk does."""

    def open(self, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
        opened = super().open(mode, buffering, *rest, **more)
        if "r" in mode:
            return opened
        opened.close()
        return Path("/dev/full").open("wb", buffering=0)


def fill(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the spool's disk is full."""
    spool = live.parts.services.spool
    usual = spool.path
    monkeypatch.setattr(spool, "path", lambda suffix="": FullDisk(usual(suffix)))
    # What is written by handle meets the same device.
    monkeypatch.setattr("providers.spool._write", _write_to_a_full_disk)


def _write_to_a_full_disk(handle: int, content: bytes) -> None:
    os.close(handle)
    if content:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(content)


async def test_full_disk_while_receiving_is_503(live: Live, monkeypatch: pytest.MonkeyPatch):
    """The caller may try again later; the file that was begun is gone and there is no job."""
    fill(live, monkeypatch)

    response = await live.edit(picture(200, 200))

    error = error_of(response, 503)
    assert error["code"] == "spool_full"
    assert response.headers["retry-after"] == "30"
    assert live.spooled == []
    assert await jobs_in(live) == 0


async def test_full_disk_while_working_is_503_and_recorded(live: Live, monkeypatch: pytest.MonkeyPatch):
    """The result finds no room: nothing is left, and the journal does not say that anything still runs."""
    live.backend.hold()
    asking = asyncio.create_task(live.edit())
    await live.backend.asked.wait()
    fill(live, monkeypatch)
    live.backend.go_on.set()

    error = error_of(await asking, 503)

    assert error["code"] == "spool_full"
    assert error["retry_safe"] is True, "this offer costs nothing"
    record = await live.job(error["request_id"])
    assert (record.state, [made.outcome for made in record.attempts]) == (JobState.FAILED, ["unknown"])
    assert live.spooled == []


async def test_deadline_is_504_with_the_job_and_the_work_goes_on(open_live: Open, database_url: str):
    """Clients do not repeat it, and the job can be looked at later."""
    live = await open_live(database_url, limits={"request_deadline_s": 0.1})
    live.backend.hold()

    response = await live.edit()

    error = error_of(response, 504)
    assert response.headers["x-should-retry"] == "false"
    assert error["job"] == error["request_id"]
    assert (error["billed_usd"], error["retry_safe"]) == (None, False)
    assert (await live.job(error["job"])).state is JobState.RUNNING
    live.backend.go_on.set()
    assert (await live.ended(error["job"])).state is JobState.COMPLETED
    assert (await live.client.get(f"/v1/jobs/{error['job']}")).json()["state"] == "completed"


FAILURES: Mapping[str, tuple[Callable[[StandIn], None], str]] = {
    "failed": (lambda backend: backend.fails("something broke"), "transient"),
    "out of memory": (lambda backend: backend.fails("CUDA out of memory"), "transient"),
    "status 500": (lambda backend: backend.replies.append((500, b"oops")), "transient"),
    "closed connection": (lambda backend: backend.replies.append(None), "transient"),
    "not a prediction": (lambda backend: backend.replies.append((200, b"[]")), "transient"),
    "not a picture": (lambda backend: setattr(backend, "picture", lambda _: b"words"), "transient"),
    "cut picture": (lambda backend: setattr(backend, "picture", lambda _: picture(64, 64)[:-40]), "transient"),
    "no such model": (lambda backend: backend.replies.append((404, b"{}")), "model_gone"),
    "refused": (lambda backend: backend.replies.append((401, b"{}")), "credential"),
}


@in_one_loop
@pytest.mark.parametrize("case", FAILURES)
async def test_failed_offers_are_502_with_every_attempt(shared: Live, case: str):
    """The account says who was tried and that nothing is billed; repeating is advised only where it can help."""
    prepare, outcome = FAILURES[case]
    prepare(shared.backend)

    response = await shared.edit()

    error = error_of(response, 502)
    assert error["code"] == "all_offers_failed"
    assert [(one["provider"], one["outcome"]) for one in error["attempts"]] == [("local", outcome)]
    assert (error["billed_usd"], error["retry_safe"]) == ("0", True)
    assert response.headers.get("x-should-retry") == (None if outcome == "transient" else "false")
    record = await shared.job(error["request_id"])
    assert (record.state, [made.outcome for made in record.attempts]) == (JobState.FAILED, [outcome])
    assert shared.spooled == []


@in_one_loop
async def test_input_that_the_backend_refuses_is_400(shared: Live):
    """A backend's 422 is the caller's to mend, and names the parameter."""
    refusal = {"detail": [{"loc": ["body", "input", "strength"], "msg": "must be at most 1"}]}
    shared.backend.replies.append((422, json.dumps(refusal).encode()))

    error = error_of(await shared.edit(strength=7), 400)

    assert (error["param"], error["billed_usd"]) == ("strength", "0")
    assert "at most 1" in error["message"]


async def test_no_backend_is_503_that_is_not_repeated(open_live: Open, sqlite_url: str):
    """What the operator has not set up does not come by asking again."""
    live = await open_live(sqlite_url, local={"backends": []})

    response = await live.edit()

    assert error_of(response, 503)["code"] == "no_offer_available"
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("part", ["journal.open_job", "store.put_file"])
async def test_crash_is_500_without_a_word_of_the_inside(live: Live, monkeypatch: pytest.MonkeyPatch, part: str):
    """Callers get the request id and the advice not to repeat; operators get the trace; nothing is left running or lying about."""

    async def crash(*_: object, **__: object) -> None:
        raise RuntimeError("inner words about /etc/place")

    name, method = part.split(".")
    monkeypatch.setattr(getattr(live.parts.services, name), method, crash)

    response = await live.edit()

    error = error_of(response, 500)
    assert "inner" not in response.text
    assert (error["code"], response.headers["x-should-retry"]) == ("internal_error", "false")
    assert any("inner words" in str(event) for event in live.logged)
    assert live.spooled == []
    if method == "put_file":
        record = await live.job(error["request_id"])
        assert (record.state, [made.outcome for made in record.attempts]) == (JobState.FAILED, ["unknown"])


async def test_requests_of_strangers_are_refused_before_their_body_is_read(live: Live):
    """A body that is announced and never comes delays the answer to a wrong key by nothing."""
    reader, writer = await connect(live, b"content-length: 1000000", key="sk-wrong", expect=True)

    answer = await reader.read()

    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"100 Continue" not in answer
    writer.close()


async def connect(
    live: Live, head: bytes, key: str | None = None, *, expect: bool = False
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which an edit has been begun."""
    place = urlsplit(live.url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    lines = [
        b"POST /v1/images/edits HTTP/1.1",
        b"host: gateway",
        f"authorization: Bearer {key or live.key}".encode(),
        b"content-type: multipart/form-data; boundary=b0undary",
        head,
        *([b"expect: 100-continue"] if expect else []),
    ]
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
    await writer.drain()
    return reader, writer


async def talk(live: Live, head: bytes, body: bytes) -> bytes:
    """Send everything, then read everything, as simple clients do."""
    reader, writer = await connect(live, head + b"\r\nconnection: close")
    writer.write(body)
    await writer.drain()
    answer = await reader.read()
    writer.close()
    return answer


async def jobs_in(live: Live) -> int:
    """How many jobs the journal has."""
    return await live.parts.db.read(lambda connection: connection.execute(select(func.count()).select_from(job)).scalar_one())


@in_one_loop
async def test_shape_that_would_make_a_giant_is_refused_before_the_work(shared: Live):
    """A thin picture padded to a square would have 900 million pixels: a 400, and no backend is asked."""
    before = len(shared.backend.inputs)

    error = error_of(await shared.edit(picture(30_000, 10), size="1:1", fit="pad"), 400)

    assert (error["param"], len(shared.backend.inputs)) == ("size", before)
