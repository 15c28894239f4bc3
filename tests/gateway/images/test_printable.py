"""What the journal stores of a request and its receipt: prompts whole and once, nothing else at length."""

import json
from typing import Any

import pytest

from gateway.images.printable import printable_request, withheld
from normalization.pixels.formats import Format, Size
from normalization.request import ImageRequest, RequestMode, Text
from tests.gateway.conftest import Live

KIB = 1024


def request(**asked: Any) -> ImageRequest:
    return ImageRequest(RequestMode.EDIT, "m", asked)


def size_of(stored: object) -> int:
    return len(json.dumps(stored, ensure_ascii=False).encode())


def test_short_values_are_kept_as_they_are():
    """Sizes and formats as text, numbers as numbers."""
    stored = printable_request(request(size=Size(4, 3), n=2, output_format=Format.PNG, own={"a": [1, "b"]}))

    assert stored == {"size": "4x3", "n": 2, "output_format": "png", "own": {"a": [1, "b"]}}


def test_prompts_are_kept_whole_up_to_their_limit():
    """As long as the vocabulary lets them be; a model's own prompt is cut there."""
    stored = printable_request(request(prompt="ö" * 32_000, negative_prompt="-" * 32_000, system_prompt=Text("s" * 40_000)))

    assert stored["prompt"] == "ö" * 32_000
    assert stored["negative_prompt"] == "-" * 32_000
    assert str(stored["system_prompt"]).startswith("s" * 32_000 + "… (40000")


@pytest.mark.parametrize(
    "value",
    [Text("x" * 300_000), list(range(100_000)), {"a": {"b": ["x" * 300_000] * 20}}, {f"k{i}": i for i in range(50_000)}],
    ids=["text", "list", "nested", "object"],
)
def test_long_values_are_cut_in_the_request_and_in_the_receipt(value: Any):
    """Whatever their kind; the length they had is told."""
    line = {"param": "x", "mode": "passthrough", "asked": value, "sent": {"x": value}, "known": False}

    assert size_of(printable_request(request(x=value))) < 5 * KIB
    assert size_of(withheld(line)) < 10 * KIB
    assert withheld(line)["param"] == "x"


def test_of_too_many_parameters_the_first_are_kept():
    """And how many are missing is told."""
    stored = printable_request(request(**{f"x{number}": "y" * 400 for number in range(1000)}, prompt="a fox"))

    assert size_of(stored) < 66 * KIB
    assert (stored["x0"], stored["prompt"]) == ("y" * 400, "a fox")
    assert stored["…"] == f"{1000 - len(stored) + 2} further parameters are not kept"


async def test_job_with_a_huge_unknown_value_is_small_in_the_journal(live: Live):
    """The answer has the whole value; the journal its beginning."""
    response = await live.edit(whatever="x" * 300_000)

    record = await live.job(response.headers["x-request-id"])
    assert response.status_code == 200
    assert len(response.content) > 300_000
    assert size_of(dict(record.request)) < 5 * KIB
    assert size_of([dict(line) for line in record.normalization or ()]) < 5 * KIB
