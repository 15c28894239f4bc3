"""Pictures on their way: exact bytes whatever the cuts, bounded memory, clear errors, and no file left behind."""

import asyncio
import base64
import json
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normalization.request import ImageRef, Text
from providers import http
from providers.base import ImagePart
from providers.spool import Spool
from providers.transfer import (
    AnswerUnreadable,
    DataUriScanner,
    SpooledJson,
    TooManyValues,
    TransferFailed,
    TransferFault,
    download,
    in_thread,
    json_body,
    read_spooled_json,
)
from tests.providers.conftest import Serve, answer, read_request

IMAGE = ImageRef("image")
MASK = ImageRef("mask")

IMPOSSIBLE = [
    "http://user:secret@example.com/",
    "http://user@example.com/",
    "http://127.0.0.1:99999/",
    "http://127.0.0.1:-1/",
    "http://a..b/",
    f"http://{'a' * 64}.com/",
    "http://xn--/",
    "http://xn--a/",
    "http://./",
]


def _part(spool: Spool, content: bytes, mime: str = "image/png") -> ImagePart:
    path = spool.path(".png")
    path.write_bytes(content)
    return ImagePart(path, mime, len(content))


async def _body(document: dict[str, object], images: dict[ImageRef, ImagePart]) -> tuple[bytes, int]:
    body = json_body(document, images)
    return b"".join([piece async for piece in body]), body.size_bytes


def _scan(
    spool: Spool, pieces: list[bytes], *, max_part_bytes: int = 2**20, max_text_bytes: int = 2**16, max_parts: int = 8
) -> SpooledJson:
    scanner = DataUriScanner(spool, max_part_bytes=max_part_bytes, max_text_bytes=max_text_bytes, max_parts=max_parts)
    try:
        for piece in pieces:
            scanner.feed(piece)
        return scanner.finish()
    except AnswerUnreadable:
        scanner.discard()
        raise


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 3 * 2**16 - 1, 3 * 2**16, 3 * 2**16 + 1, 500_000])
async def test_pictures_in_a_document_are_data_uris_of_the_announced_length(spool: Spool, size: int) -> None:
    """The length is known before a byte is read, and what is sent is plain JSON."""
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    part = _part(spool, content)
    text, announced = await _body(
        {"input": {"image": IMAGE, "scale": 2.0, "list": [IMAGE, None], "empty": {}, "none": []}}, {IMAGE: part}
    )
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    assert len(text) == announced
    assert json.loads(text) == {"input": {"image": uri, "scale": 2.0, "list": [uri, None], "empty": {}, "none": []}}


async def test_text_that_came_from_a_form_is_text(spool: Spool) -> None:
    """`Text` is a string to JSON; quotes and other alphabets survive; a tuple of pictures is a list."""
    images = {IMAGE: _part(spool, b"a"), MASK: _part(spool, b"b", "image/webp")}
    text, _ = await _body({"prompt": Text('a "hat" ü'), "images": (IMAGE, MASK), "on": True}, images)
    assert json.loads(text) == {
        "prompt": 'a "hat" ü',
        "images": ["data:image/png;base64,YQ==", "data:image/webp;base64,Yg=="],
        "on": True,
    }


async def test_a_file_that_shrank_is_an_error(spool: Spool) -> None:
    """A body shorter than announced would hang the server."""
    part = _part(spool, b"x" * 100)
    part.path.write_bytes(b"x" * 50)
    with pytest.raises(OSError, match="shorter"):
        await _body({"image": IMAGE}, {IMAGE: part})


def test_a_picture_that_is_not_there_is_an_error() -> None:
    """A plan that names a picture nobody prepared is a fault of ours."""
    with pytest.raises(KeyError):
        json_body({"image": IMAGE}, {})


async def test_a_large_picture_passes_in_small_pieces(spool: Spool) -> None:
    """50 MB go out, and come back, without ever being in memory."""
    part = _part(spool, b"\x00" * 50_000_000)
    body = json_body({"output": [IMAGE]}, {IMAGE: part})
    tracemalloc.start()
    try:
        result = await read_spooled_json(body, spool, max_part_bytes=2**26)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    (received,) = result.parts.values()
    assert (received.size_bytes, received.mime) == (50_000_000, "image/png")
    assert received.path.read_bytes() == part.path.read_bytes()
    assert peak < 4_000_000


_JSON_TEXT = st.text(alphabet=st.sampled_from('abc:,;"\\/\n\u00fcdt\U0001f600{}[]'), max_size=20)


@given(
    pictures=st.lists(st.binary(max_size=40), max_size=3),
    words=st.lists(_JSON_TEXT, max_size=3),
    slashes=st.booleans(),
    plus=st.booleans(),
    cuts=st.lists(st.integers(0, 12), max_size=30),
)
@settings(max_examples=300, deadline=None)
def test_answers_are_read_the_same_wherever_they_are_cut(
    tmp_path_factory: pytest.TempPathFactory, pictures: list[bytes], words: list[str], slashes: bool, plus: bool, cuts: list[int]
) -> None:
    """Pieces of any size, escapes of any kind: the same pictures, the same text."""
    spool = Spool(tmp_path_factory.mktemp("spools"))
    uris = ["data:image/png;base64," + base64.b64encode(picture).decode() for picture in pictures]
    text = json.dumps({"output": uris, "words": words, "id": "x"})
    if slashes:
        text = text.replace("/", "\\/")
    if plus:
        text = text.replace("+", "\\u002B")
    rest, pieces = text.encode(), list[bytes]()
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    result = _scan(spool, [*pieces, rest])
    assert [result.parts[key].path.read_bytes() for key in result.document["output"]] == pictures
    assert {part.mime for part in result.parts.values()} <= {"image/png"}
    assert (result.document["words"], result.document["id"]) == (words, "x")
    result.discard()
    assert not _files(spool.folder)
    spool.close()


@pytest.mark.parametrize(
    "base64_text",
    ["YWJj=YWJj", "YQ==YQ==", "YWJjZ", "YW!j", "YWJj\\u00e9", 'YWJj\\"', "YWJj\\\\", "=", "===="],
)
def test_broken_base64_is_an_error(spool: Spool, base64_text: str) -> None:
    """A picture that cannot be decoded is not delivered, and leaves nothing."""
    with pytest.raises(AnswerUnreadable):
        _scan(spool, [b'{"output": "data:image/png;base64,' + base64_text.encode() + b'"}'])
    assert not _files(spool.folder)


@pytest.mark.parametrize("base64_text", ["YWI", "YWI=", "Y\\nWI\\r\\n="])
def test_missing_padding_and_line_ends_lose_nothing(spool: Spool, base64_text: str) -> None:
    """What some servers write is understood."""
    result = _scan(spool, [b'["data:image/png;base64,' + base64_text.encode() + b'"]'])
    assert result.parts[result.document[0]].path.read_bytes() == b"ab"


@pytest.mark.parametrize(
    "text",
    ['{"a": ', '{"a": "b', '["data:image/png;base64,YWJj', '["data:image/png;base64,YWJj"', "nonsense", "", "[" * 100_000],
)
def test_what_is_not_json_is_an_error(spool: Spool, text: str) -> None:
    """An answer that breaks off anywhere is unusable, and leaves nothing."""
    with pytest.raises(AnswerUnreadable):
        _scan(spool, [text.encode()], max_text_bytes=2**20)
    assert not _files(spool.folder)


def test_only_base64_data_uris_are_taken_out(spool: Spool) -> None:
    """Other strings stay, also those that begin alike."""
    strings = [
        "data:text/plain,hello",
        "data:",
        "database",
        "http://host/data:image/png;base64,AAAA",
        "data:" + "x" * 600,
        "Data",
        "",
    ]
    result = _scan(spool, [json.dumps(strings).encode()])
    assert (result.document, result.parts) == (strings, {})


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"max_part_bytes": 99}, "more than 99 bytes"),
        ({"max_parts": 1}, "more than 1 pictures"),
        ({"max_text_bytes": 50}, "of text"),
    ],
)
def test_answers_are_bounded(spool: Spool, limits: dict[str, int], says: str) -> None:
    """Neither files nor text nor their number grow without end."""
    uri = "data:image/png;base64," + base64.b64encode(b"x" * 100).decode()
    with pytest.raises(AnswerUnreadable, match=says):
        _scan(spool, [json.dumps([uri, uri]).encode()], **limits)
    assert not _files(spool.folder)


@pytest.mark.parametrize(
    "text", [b'["",' * 700_000, b'[""' + b',""' * 700_000, b'""' * 10**6, b"[0" + b",0" * 10**6, b"[{" * 10**6]
)
async def test_many_small_values_cost_little(spool: Spool, text: bytes) -> None:
    """They are counted as they pass, and given up before anybody builds or walks them."""

    async def pieces() -> AsyncIterator[bytes]:
        yield text

    started_s = time.process_time()
    with pytest.raises(TooManyValues, match="more than 20000 values"):
        await read_spooled_json(pieces(), spool, max_part_bytes=10, max_values=20_000)
    assert time.process_time() - started_s < 0.5


def test_the_time_for_a_piece_grows_with_its_length_only(spool: Spool) -> None:
    """What is left of a piece is not copied for every string in it."""
    started_s = time.process_time()
    result = _scan(spool, [b'[""' + b',""' * 20_000 + b"]" + b" " * 2**21], max_text_bytes=2**22)
    assert len(result.document) == 20_001
    assert time.process_time() - started_s < 0.5


def test_values_up_to_the_limit_are_taken(spool: Spool) -> None:
    """Names of members and commas in text are no values."""
    scanner = DataUriScanner(spool, max_part_bytes=10, max_text_bytes=1000, max_parts=1, max_values=6)
    scanner.feed(b'{"a": 1, "b,[{": ["x,y", null, 2]}')
    assert scanner.finish().document == {"a": 1, "b,[{": ["x,y", None, 2]}


async def test_an_answer_given_up_half_way_leaves_no_file(spool: Spool) -> None:
    """Also when the connection breaks in the middle of a picture."""

    async def broken() -> AsyncIterator[bytes]:
        yield b'{"output": "data:image/png;base64,' + b"A" * 2**19
        raise http.ReadError("gone")

    with pytest.raises(http.ReadError):
        await read_spooled_json(broken(), spool, max_part_bytes=2**20)
    assert not _files(spool.folder)


def test_an_answer_cannot_name_a_file_that_it_did_not_bring(spool: Spool) -> None:
    """Keys of files are drawn at random."""
    first = _scan(spool, [b'["data:image/png;base64,YWJj"]'])
    second = _scan(spool, [json.dumps([first.document[0]]).encode()])
    assert second.parts == {}


async def test_downloads_are_written_to_their_file(client: http.AsyncClient, serve: Serve, tmp_path: Path) -> None:
    """The file, its size, and what the server calls it."""
    content = b"picture" * 100_000
    url = await serve(_answering(answer(content, "200 OK", "Content-Type: image/webp")))
    fetched = await download(client, f"{url}/a.webp", tmp_path / "out", max_bytes=2**20, deadline_s=10)
    assert (tmp_path / "out").read_bytes() == content
    assert (fetched.size_bytes, fetched.content_type) == (len(content), "image/webp")


async def test_three_redirects_are_followed_and_a_fourth_is_not(client: http.AsyncClient, serve: Serve, tmp_path: Path) -> None:
    """The bodies of redirects are not read, the result is."""
    url = await serve(_answering(answer(b"here")))
    for _ in range(3):
        url = await serve(_answering(answer(b"", "302 Found", f"Location: {url}")))
    fetched = await download(client, url, tmp_path / "out", max_bytes=10, deadline_s=10)
    assert fetched.path.read_bytes() == b"here"
    url = await serve(_answering(answer(b"", "302 Found", f"Location: {url}")))
    with pytest.raises(TransferFailed, match="redirects"):
        await download(client, url, tmp_path / "other", max_bytes=10, deadline_s=10)


@pytest.mark.parametrize(
    ("whole", "fault"),
    [
        (answer(b"gone", "404 Not Found"), TransferFault.STATUS),
        (answer(b"x" * 1001), TransferFault.TOO_LARGE),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 1001, TransferFault.TOO_LARGE),
        (answer(b"x" * 100)[:-1], TransferFault.CUT),
        (b"nonsense\r\n\r\n", TransferFault.CUT),
        (answer(b"", "302 Found", "Location: file:///etc/passwd"), TransferFault.ADDRESS),
        (answer(b"", "302 Found", "Location: http://0177.0.0.1/"), TransferFault.ADDRESS),
        *((answer(b"", "302 Found", f"Location: {url}"), TransferFault.ADDRESS) for url in IMPOSSIBLE),
    ],
)
async def test_failed_downloads_say_why_and_leave_no_file(
    client: http.AsyncClient, serve: Serve, tmp_path: Path, whole: bytes, fault: TransferFault
) -> None:
    """Every mishap has its name; the message has the host but not the signed address."""
    url = await serve(_answering(whole))
    with pytest.raises(TransferFailed) as failed:
        await download(client, f"{url}/a?sig=secret", tmp_path / "out", max_bytes=1000, deadline_s=10)
    assert failed.value.fault is fault
    assert "secret" not in failed.value.public
    assert not _files(tmp_path)


async def test_downloads_have_a_deadline(client: http.AsyncClient, serve: Serve, tmp_path: Path) -> None:
    """A server that stops in the middle is given up."""

    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer(b"x" * 10)[:-5])
        await reader.read()

    with pytest.raises(TransferFailed) as failed:
        await download(client, await serve(stuck), tmp_path / "out", max_bytes=1000, deadline_s=0.05)
    assert failed.value.fault is TransferFault.TIMEOUT
    assert not _files(tmp_path)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/", "http://[::1]/", "ftp://host/", "http://0177.0.0.1/", "not an address", "", *IMPOSSIBLE]
)
async def test_addresses_inside_or_strange_are_refused(guarded: http.AsyncClient, tmp_path: Path, url: str) -> None:
    """A caller's link cannot look into the operator's network."""
    with pytest.raises(TransferFailed) as failed:
        await download(guarded, url, tmp_path / "out", max_bytes=1000, deadline_s=10)
    assert failed.value.fault is TransferFault.ADDRESS
    assert "secret" not in failed.value.public


async def test_cancelled_file_work_is_waited_for() -> None:
    """No thread writes after its caller has cleaned up."""
    loop, started, ended = asyncio.get_running_loop(), asyncio.Event(), list[str]()

    release = threading.Event()

    def work() -> None:
        loop.call_soon_threadsafe(started.set)
        release.wait(10)
        ended.append("work")

    task = asyncio.create_task(in_thread(work))
    await started.wait()
    task.cancel()
    await asyncio.sleep(0)
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["work"]


def _answering(whole: bytes):
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(whole)

    return script
