"""The official OpenAI client for Node, unmodified, against a live gateway. What it does: `edit.mjs`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import MAX_IMAGE_BYTES
from tests.e2e.pictures import SIZE, look, noise_png, png

DOUBLE = (2 * SIZE[0], 2 * SIZE[1])
FORMATS = ("png", "jpeg", "webp", "gif", "avif")

DELIVERED: dict[str, tuple[tuple[int, int], str, int]] = {
    "stream_of_a_file": (DOUBLE, "PNG", 1),
    "bytes_without_a_name": (DOUBLE, "PNG", 1),
    "bytes_with_name_and_type": (DOUBLE, "PNG", 1),
    "list_of_one": (DOUBLE, "PNG", 1),
    "three_results": (DOUBLE, "PNG", 3),
    "as_url": (DOUBLE, "PNG", 1),
    "as_b64_json": (DOUBLE, "PNG", 1),
    "exact_size": ((160, 160), "PNG", 1),
    "scale_factor": ((3 * SIZE[0], 3 * SIZE[1]), "PNG", 1),
    **{f"format_{form}": (DOUBLE, form.upper(), 1) for form in FORMATS},
}
"""Case to what its pictures must be: size, format, how many."""

REFUSED: dict[str, tuple[str, int, str, str | None]] = {
    "list_of_several": ("BadRequestError", 400, "invalid_value", "image"),
    "not_a_picture": ("BadRequestError", 400, "invalid_image_file", "image"),
    "wrong_type": ("BadRequestError", 400, "invalid_type", "n"),
    "wrong_size": ("BadRequestError", 400, "invalid_value", "size"),
    "unknown_model": ("NotFoundError", 404, "model_not_found", None),
    "unknown_model_looked_up": ("NotFoundError", 404, "model_not_found", "model"),
    "wrong_key": ("AuthenticationError", 401, "invalid_api_key", None),
    "too_large": ("APIError", 413, "request_too_large", "image"),
}
"""Case to the error it must give: class, status, code, parameter."""


@pytest.fixture(scope="module")
def cases(node: Callable[..., str], gateway_url: str, api_key: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every case of the script printed."""
    folder = tmp_path_factory.mktemp("node")
    files = {"PICTURE": png(), "WORDS": b"These are words.\n" * 20, "LARGE": noise_png(2 * MAX_IMAGE_BYTES)}
    for name, content in files.items():
        (folder / f"{name.lower()}.png").write_bytes(content)
    (folder / "out").mkdir()
    printed = node(
        "edit.mjs",
        OPENAI_BASE_URL=gateway_url,
        OPENAI_API_KEY=api_key,
        OUT=str(folder / "out"),
        **{name: str(folder / f"{name.lower()}.png") for name in files},
    )
    return {entry["case"]: entry for entry in map(json.loads, printed.splitlines())}


@pytest.mark.parametrize("case", DELIVERED)
def test_pictures_come_back(cases: dict[str, Any], case: str):
    """Each way of sending one gives pictures of the asked size, format and number, which decode."""
    size, form, count = DELIVERED[case]
    pictures = [look(Path(entry["file"]).read_bytes()) for entry in cases[case]["pictures"]]
    assert [(image.size, image.format) for image in pictures] == [(size, form)] * count


def test_response_format_is_the_asked_one(cases: dict[str, Any]):
    """A link or base64, and nothing else in the entry; a link where nothing was asked."""
    kinds = {name: {entry["kind"] for entry in cases[name]["pictures"]} for name in ("as_url", "as_b64_json", "stream_of_a_file")}
    assert kinds == {"as_url": {"url"}, "as_b64_json": {"b64_json"}, "stream_of_a_file": {"url"}}


@pytest.mark.parametrize("case", DELIVERED)
def test_answers_carry_a_receipt(cases: dict[str, Any], case: str):
    """The client keeps the gateway's metadata, and knows the request's id."""
    metadata = cases[case]["metadata"]
    assert metadata["provider"] == "local"
    assert metadata["request_id"] == cases[case]["request_id"]


@pytest.mark.parametrize("case", REFUSED)
def test_errors_are_the_clients_own(cases: dict[str, Any], case: str):
    """Each refusal is the client's error class with status, code, parameter and request id."""
    entry = cases[case]
    assert (entry["error"], entry["status"], entry["code"], entry["param"]) == REFUSED[case], entry["message"]
    assert entry["requestID"].startswith("req_")


def test_models_are_listed(cases: dict[str, Any]):
    """The bundled model is in the list and can be looked up."""
    model = cases["models_retrieve"]["result"]
    assert (model["id"], model["object"]) == ("detail-upscaler", "model")
    assert "detail-upscaler" in {entry["id"] for entry in cases["models_list"]["result"]}
