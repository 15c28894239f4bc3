"""Multipart bodies: streamed into the spool, limited while reading, refused when malformed."""

import asyncio
import errno
import hashlib
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.api.brackets import build_fields
from gateway.api.multipart import FormLimits, Multipart, MultipartReader
from gateway.api.uploads import SpoolFile
from gateway.errors import BadRequest, GatewayError, Overloaded, TooLarge
from normalization.request import Text
from providers.spool import Spool

BOUNDARY = "limit"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def part(disposition: str, body: bytes, content_type: str | None = None) -> bytes:
    declared = f"Content-Type: {content_type}\r\n" if content_type else ""
    return f"--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n{declared}\r\n".encode() + body + b"\r\n"


def text(name: str, value: str) -> bytes:
    return part(f'name="{name}"', value.encode())


def file(name: str, body: bytes, content_type: str = "image/png") -> bytes:
    return part(f'name="{name}"; filename="a.png"', body, content_type)


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


async def pieces(body: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


class Reading:
    def __init__(self, spool: Spool) -> None:
        self.spool = spool

    async def __call__(
        self, body: bytes, *, size: int = 65536, limits: FormLimits | None = None, content_type: str = CONTENT_TYPE
    ) -> Multipart:
        reader = MultipartReader(self.spool, limits or FormLimits(), lists=frozenset({"image"}), singles=frozenset({"mask"}))
        try:
            return await reader.read(pieces(body, size), content_type)
        except BaseException:
            reader.discard()
            raise


@pytest.fixture
def read(spool: Spool) -> Reading:
    return Reading(spool)


@pytest.mark.parametrize("size", [1, 7, 4096])
async def test_files_and_texts_come_whole_however_the_body_is_cut(read: Reading, size: int) -> None:
    """Files land in the spool with size and hash, texts in memory, wherever the pieces of the body end."""
    content = bytes(range(256)) * 9 + b"\r\n--limi\r\n--"
    body = form(text("prompt", "a hat, grün"), file("image", content), text("n", "2"))

    got = await read(body, size=size)

    assert got.fields == (("prompt", "a hat, grün"), ("n", "2"))
    assert all(isinstance(value, Text) for _, value in got.fields)
    received = got.files[0].file
    assert received.path.read_bytes() == content
    assert (received.size_bytes, received.sha256) == (len(content), hashlib.sha256(content).hexdigest())


async def test_a_large_upload_is_never_held_in_memory(read: Reading) -> None:
    """Of an upload of 24 MiB, less than 2 MiB are in memory at any time."""
    head, tail = file("image", b"")[:-2], b"\r\n" + form()
    piece = bytes(65536)

    async def body() -> AsyncIterator[bytes]:
        yield head
        for _ in range(384):
            yield piece
        yield tail

    reader = MultipartReader(read.spool, FormLimits(), lists=frozenset({"image"}), singles=frozenset())
    tracemalloc.start()
    try:
        got = await reader.read(body(), CONTENT_TYPE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert got.files[0].file.size_bytes == 24 * 2**20
    assert peak < 2 * 2**20


@pytest.mark.parametrize(
    "raw",
    [
        part("name=\"image\"; filename*=utf-8''b%C3%BC.png", b"x"),
        part('name="image"', b"x", "image/png"),
        part('name="image"', b"x", "application/octet-stream"),
        part('name="image"; filename=""', b"x", "application/octet-stream"),
        part("name=image; filename=upload", b"x"),
    ],
    ids=["extended file name", "type alone", "octet-stream alone", "empty file name", "unquoted"],
)
async def test_a_file_is_known_by_its_name_or_its_type(read: Reading, raw: bytes) -> None:
    """A part with any kind of file name, or with a type that is not text, is a file."""
    got = await read(form(raw))

    assert [found.file.path.read_bytes() for found in got.files] == [b"x"]


async def test_image_names_may_be_mixed(read: Reading) -> None:
    """`image` and `image[]` may stand in one form, in their order; a mask beside them."""
    got = await read(form(file("image", b"1"), file("image[]", b"2"), file("image[]", b"3"), file("mask", b"m")))

    assert [(found.name, found.file.path.read_bytes()) for found in got.files] == [
        ("image", b"1"),
        ("image[]", b"2"),
        ("image[]", b"3"),
        ("mask", b"m"),
    ]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (form(text("image", "http://a/b.png")), "invalid_type", "image"),
        (form(text("image[]", "x")), "invalid_type", "image"),
        (form(file("prompt", b"x")), "invalid_type", "prompt"),
        (form(file("image", b"1"), file("image", b"2")), "duplicate_parameter", "image"),
        (form(file("mask", b"1"), file("mask", b"2")), "duplicate_parameter", "mask"),
        (form(file("mask[]", b"1")), "invalid_type", "mask"),
        (form(file("image[a]", b"1")), "invalid_type", "image"),
        (form(*[file("image[]", b"1")] * 17), "array_above_max_length", "image"),
        (form(part("", b"x")), "invalid_value", None),
        (form(text("a[b", "x")), "invalid_value", None),
        (form(part('name="prompt"', b"\xff\xfe")), "invalid_type", "prompt"),
        (form(text("prompt", "a\0b")), "invalid_value", "prompt"),
        (form(text("prompt", "x"))[:-8], "invalid_multipart", None),
        (b"", "invalid_multipart", None),
        (b"not a form at all" * 20, "invalid_multipart", None),
        (b"--limit\r\nNonsense\r\n\r\nx\r\n--limit--", "invalid_multipart", None),
        (b"--limit\r\nContent-Type: text/plain\r\n\r\nx\r\n--limit--", "invalid_multipart", None),
        (form(part('name="a"', b"x", "a" * 5000)), "invalid_multipart", None),
    ],
)
async def test_malformed_forms_are_bad_requests(
    read: Reading, left_in_spool: Callable[[], list[Path]], body: bytes, code: str, param: str | None
) -> None:
    """Whatever is wrong with a form is a 400 that names the field, and leaves no file."""
    with pytest.raises(BadRequest) as caught:
        await read(body)

    assert (caught.value.code, caught.value.param) == (code, param)
    assert left_in_spool() == []


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=ü",
    ],
)
async def test_a_form_needs_a_boundary(read: Reading, content_type: str) -> None:
    """Without a usable boundary the body is refused before it is read."""
    with pytest.raises(BadRequest, match="boundary"):
        await read(form(), content_type=content_type)


@pytest.mark.parametrize(
    ("limits", "body", "error", "param"),
    [
        (FormLimits(max_file_bytes=10), form(file("image", b"x" * 11)), TooLarge, "image"),
        (FormLimits(max_body_bytes=50), form(text("a", "x")), TooLarge, "image"),
        (FormLimits(max_field_bytes=10), form(text("prompt", "x" * 11)), TooLarge, "prompt"),
        (FormLimits(max_text_bytes=15), form(text("a", "x" * 10), text("b", "x" * 10)), TooLarge, "b"),
        (FormLimits(max_parts=2), form(text("a", "x"), text("b", "x"), text("c", "x")), BadRequest, None),
    ],
    ids=["file", "body", "field", "text", "parts"],
)
async def test_limits_hold_while_reading(
    read: Reading,
    left_in_spool: Callable[[], list[Path]],
    limits: FormLimits,
    body: bytes,
    error: type[GatewayError],
    param: str | None,
) -> None:
    """Each limit ends the reading, with 413 for bytes and 400 for counts."""
    with pytest.raises(error) as caught:
        await read(body, limits=limits)

    assert caught.value.param == param
    assert left_in_spool() == []


async def test_as_many_bytes_as_allowed_are_taken(read: Reading) -> None:
    """The limit itself is still allowed, and 16 pictures are."""
    got = await read(form(*[file("image[]", b"x" * 10)] * 16), limits=FormLimits(max_file_bytes=10))

    assert len(got.files) == 16


@pytest.mark.parametrize("size", [1000, 2_000_000], ids=["written here", "written in a thread"])
@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_503_and_leaves_nothing(
    read: Reading, left_in_spool: Callable[[], list[Path]], monkeypatch: pytest.MonkeyPatch, reason: int, size: int
) -> None:
    """When the spool's disk is full the answer is 503 with a time to try again, and the files are gone."""

    def refuse(self: SpoolFile, block: bytearray) -> None:
        raise OSError(reason, "no room")

    monkeypatch.setattr(SpoolFile, "_append", refuse)

    with pytest.raises(Overloaded) as caught:
        await read(form(file("image", b"x" * size)))

    assert caught.value.retry_after_s
    assert left_in_spool() == []


async def test_cancelling_a_read_leaves_nothing(spool: Spool, left_in_spool: Callable[[], list[Path]]) -> None:
    """A request that is cancelled while its file is being written leaves no file, though a thread may still write."""
    reader = MultipartReader(spool, FormLimits(), lists=frozenset({"image"}), singles=frozenset())
    waiting = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield file("image", bytes(600_000))[:-2]
        waiting.set()
        await asyncio.Event().wait()

    reading = asyncio.create_task(reader.read(body(), CONTENT_TYPE))
    await waiting.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    reader.discard()

    assert left_in_spool() == []


@pytest.mark.parametrize(
    ("pairs", "built"),
    [
        ([("a", "1")], {"a": "1"}),
        ([("a", "")], {"a": ""}),
        ([("a[]", "1")], {"a": ["1"]}),
        ([("a[]", "1"), ("b", "x"), ("a[]", "2")], {"a": ["1", "2"], "b": "x"}),
        ([("a[b][c]", "1"), ("a[d]", "2")], {"a": {"b": {"c": "1"}, "d": "2"}}),
        ([("a[0]", "x"), ("a[1]", "y")], {"a": ["x", "y"]}),
        ([("a[1][k]", "y"), ("a[0][k]", "x")], {"a": [{"k": "x"}, {"k": "y"}]}),
        ([("l[][p]", "x"), ("l[][s]", "1"), ("l[][p]", "y"), ("l[][s]", "2")], {"l": [{"p": "x", "s": "1"}, {"p": "y", "s": "2"}]}),
        ([("l[][p]", "x"), ("l[][p]", "y"), ("l[][s]", "1"), ("l[][s]", "2")], {"l": [{"p": "x", "s": "1"}, {"p": "y", "s": "2"}]}),
        ([("l[][p]", "x"), ("l[][s]", "1"), ("l[][p]", "y")], {"l": [{"p": "x", "s": "1"}, {"p": "y"}]}),
        ([("l[][p]", "x"), ("l[][s]", "1")], {"l": [{"p": "x", "s": "1"}]}),
        ([("l[][t][]", "x"), ("l[][t][]", "y")], {"l": [{"t": ["x", "y"]}]}),
    ],
    ids=str,
)
def test_bracketed_names_become_lists_and_objects(pairs: list[tuple[str, str]], built: object) -> None:
    """The bracket forms of both official clients give the values that they were made from."""
    assert build_fields([(name, Text(value)) for name, value in pairs]) == built


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["a", "a"], "duplicate_parameter"),
        (["a[b]", "a[b]"], "duplicate_parameter"),
        (["a", "a[]"], "invalid_type"),
        (["a[]", "a[b]"], "invalid_type"),
        (["a[]", "a[][b]"], "invalid_type"),
        (["l[][p]", "l[][p]", "l[][s]"], "invalid_value"),
        (["a" + "[b]" * 9], "invalid_value"),
        (["[a]"], "invalid_value"),
        (["a]"], "invalid_value"),
        (["a\tb"], "invalid_value"),
    ],
    ids=str,
)
def test_names_that_contradict_each_other_are_refused(names: list[str], code: str) -> None:
    """Nothing is guessed: a name in two shapes, a scalar twice, or rows that cannot be told apart are a 400."""
    with pytest.raises(BadRequest) as caught:
        build_fields([(name, Text("1")) for name in names])

    assert caught.value.code == code
