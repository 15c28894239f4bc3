"""A request body becomes checked inputs with pictures in files, or a list of what is wrong; no file is left behind."""

import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from providers.local.engine.model import InputField, InputType
from providers.local.engine.request_body import BodyMalformed, BodyTooLarge, InputInvalid, Task, read_task, receive_body
from providers.spool import Spool

FIELDS = (
    InputField("image", InputType.FILE, "", required=True),
    InputField("scale_factor", InputType.NUMBER, "", default=2.0, min=1, max=8),
    InputField("steps", InputType.INTEGER, "", default=3, min=1, max=9),
    InputField("mode", InputType.TEXT, "", default="a", choices=("a", "b")),
    InputField("tiled", InputType.BOOLEAN, "", default=False),
)
PICTURE = bytes(range(256)) * 20_000
"""Longer than what is decoded at a time."""
SMALL = "data:image/png;base64,AAAA"


def data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def read(text: str | bytes, spool: Spool) -> Task:
    with (spool.folder / "body").open("wb+") as body:
        (spool.folder / "body").unlink()
        body.write(text if isinstance(text, bytes) else text.encode())
        body.flush()
        return read_task(body, FIELDS, spool)


def problems(document: Any, spool: Spool) -> list[tuple[tuple[str, ...], str]]:
    with pytest.raises(InputInvalid) as invalid:
        read(json.dumps(document), spool)
    assert list(spool.folder.iterdir()) == []
    return [(problem.loc, problem.type) for problem in invalid.value.problems]


def test_inputs_are_typed_and_completed(spool: Spool):
    """What is given is taken, what is not has its default, and the picture is in a file."""
    task = read(json.dumps({"id": "x", "input": {"image": data_uri(PICTURE), "scale_factor": 3}}), spool)
    [path] = task.files
    assert path.read_bytes() == PICTURE
    assert task.id == "x"
    assert dict(task.inputs) == {"image": path, "scale_factor": 3, "steps": 3, "mode": "a", "tiled": False}


def test_escaped_slashes_are_understood(spool: Spool):
    """Some JSON encoders escape every slash, of which base64 has many."""
    body = json.dumps({"input": {"image": data_uri(b"\xff" * 3000)}}).replace("/", "\\/")
    [path] = read(body, spool).files
    assert path.read_bytes() == b"\xff" * 3000


def test_null_means_not_given(spool: Spool):
    """An optional input that is null has its default."""
    assert read(json.dumps({"input": {"image": SMALL, "mode": None}}), spool).inputs["mode"] == "a"


@pytest.mark.parametrize(
    ("inputs", "name", "type_"),
    [
        ({}, "image", "missing"),
        ({"image": None}, "image", "string_type"),
        ({"image": 7}, "image", "string_type"),
        ({"image": "http://127.0.0.1/a.png"}, "image", "data_uri"),
        ({"image": "data:image/png,abc"}, "image", "data_uri"),
        ({"image": "data:image/png;base64,A*AA"}, "image", "data_uri"),
        ({"image": "data:image/png;base64,AAAAA"}, "image", "data_uri"),
        ({"image": "data:image/png;base64,ÄAAA"}, "image", "data_uri"),
        ({"image": SMALL, "scale_factor": "2"}, "scale_factor", "number_type"),
        ({"image": SMALL, "scale_factor": True}, "scale_factor", "number_type"),
        ({"image": SMALL, "scale_factor": 0.99}, "scale_factor", "greater_than_equal"),
        ({"image": SMALL, "scale_factor": 8.01}, "scale_factor", "less_than_equal"),
        ({"image": SMALL, "scale_factor": 10**400}, "scale_factor", "less_than_equal"),
        ({"image": SMALL, "steps": 1.5}, "steps", "integer_type"),
        ({"image": SMALL, "mode": "c"}, "mode", "enum"),
        ({"image": SMALL, "tiled": 1}, "tiled", "boolean_type"),
    ],
)
def test_wrong_input_is_named(inputs: dict[str, Any], name: str, type_: str, spool: Spool):
    """Every kind of wrong value is refused with its place, and the picture's file is gone."""
    assert problems({"input": inputs}, spool) == [(("body", "input", name), type_)]


def test_all_problems_are_told_at_once(spool: Spool):
    """A caller need not try again for every mistake."""
    assert len(problems({"input": {"scale_factor": 0, "steps": 0, "other": 1}}, spool)) == 3


def test_what_the_backend_does_not_do_is_refused(spool: Spool):
    """A webhook that would never be called is not taken silently."""
    assert problems({"input": {"image": SMALL}, "webhook": "http://x"}, spool) == [(("body", "webhook"), "extra_forbidden")]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"input": {"image": "\xff"}}'])
def test_what_is_not_json_is_refused(body: bytes, spool: Spool):
    """A body that is no JSON object is malformed."""
    with pytest.raises((BodyMalformed, InputInvalid)):
        read(body, spool)
    assert list(spool.folder.iterdir()) == []


@pytest.mark.parametrize("value", ["[]", "7", "null", '{"image":' + "[" * 100_000])
def test_input_must_be_an_object(value: str, spool: Spool):
    """`input` itself is checked."""
    with pytest.raises((BodyMalformed, InputInvalid)):
        read('{"input": ' + value + "}", spool)


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_body_is_written_as_it_comes(spool: Spool):
    """The body lies in a file without a name."""
    with await receive_body(chunks(b"ab", b"cd"), spool, 4) as body:
        body.seek(0, io.SEEK_SET)
        assert body.read() == b"abcd"
        assert list(spool.folder.iterdir()) == []


async def test_body_over_the_limit_is_refused(spool: Spool):
    """One byte too many ends it."""
    with pytest.raises(BodyTooLarge):
        await receive_body(chunks(b"abc", b"de"), spool, 4)


async def test_full_disk_is_told(spool: Spool):
    """When the folder cannot take the body, that is an `OSError` for the handler."""
    spool.close()
    with pytest.raises(OSError, match="No such file"):
        await receive_body(chunks(b"a"), spool, 4)
