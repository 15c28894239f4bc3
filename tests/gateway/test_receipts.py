"""The receipt is complete and true for any request: property tests over everything that can be sent."""

import base64
import io
import json
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from normalization.request import PARAMETERS
from tests.gateway.conftest import MODEL, Live, in_one_loop, picture

KNOWN: dict[str, st.SearchStrategy[Any]] = {
    "prompt": st.sampled_from(["", "a fox", "ein Fuchs, größer", "12", "true"]),
    "negative_prompt": st.just("blur"),
    "n": st.integers(1, 4),
    "size": st.one_of(
        st.just("auto"), st.builds("{}x{}".format, st.integers(1, 80), st.integers(1, 80)), st.sampled_from(["3:2", "16:9"])
    ),
    "aspect_ratio": st.sampled_from(["auto", "1:1", "3:2"]),
    "resolution": st.sampled_from(["1K", "2k"]),
    "scale_factor": st.one_of(st.integers(1, 6), st.floats(0.1, 6).map(lambda factor: round(factor, 3))),
    "sharpen": st.integers(0, 10),
    "creativity": st.floats(0, 1),
    "resemblance": st.floats(0, 1),
    "guidance_scale": st.floats(0, 20),
    "num_inference_steps": st.integers(1, 50),
    "seed": st.integers(0, 2**31),
    "quality": st.sampled_from(["auto", "low", "hd"]),
    "background": st.sampled_from(["auto", "opaque", "transparent"]),
    "output_format": st.sampled_from(["png", "jpeg", "jpg", "webp", "gif", "avif"]),
    "output_compression": st.integers(0, 100),
    "response_format": st.sampled_from(["url", "b64_json"]),
    "enable_safety_checker": st.booleans(),
    "style": st.just("vivid"),
    "moderation": st.sampled_from(["auto", "low"]),
    "input_fidelity": st.sampled_from(["low", "high"]),
    "user": st.just("somebody"),
    "safety_identifier": st.just("somebody"),
    "fit": st.sampled_from(["cover", "contain", "pad"]),
    "background_color": st.just("#00ff00"),
    "stream": st.just(False),
    "partial_images": st.integers(0, 3),
    "mask_feather": st.sampled_from([0, 2.5]),
    "metadata": st.sampled_from(["strip", "keep"]),
}
"""Values that are in bounds. Each name of the gateway's vocabulary, and one of the model's own."""

UNKNOWN = st.text("abcxyz_-.0", min_size=1, max_size=8).map(lambda name: f"x_{name}")
ANYTHING = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
    st.integers(-9, 99),
    st.booleans(),
    st.lists(st.integers(0, 9), min_size=1, max_size=3),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 9), min_size=1, max_size=2),
)
IMAGES = {
    "png": picture(6, 4),
    "clear": picture(5, 7, mode="RGBA", color=(0, 255, 0, 0)),
    "gray": picture(3, 3, mode="L", color=90),
    "jpeg": picture(8, 2, "JPEG"),
    "gif": picture(4, 4, "GIF"),
}
MASKS = {name: picture(*Image.open(io.BytesIO(content)).size, mode="RGBA", color=(0, 0, 0, 0)) for name, content in IMAGES.items()}

good_fields = st.fixed_dictionaries({}, optional=KNOWN)
unknown_fields = st.dictionaries(UNKNOWN, ANYTHING, max_size=3)
any_fields = st.dictionaries(st.one_of(st.sampled_from([*PARAMETERS, "sharpen", "mask", "image"]), UNKNOWN), ANYTHING, max_size=5)
at_leisure = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_every_parameter_of_the_vocabulary_is_generated():
    """A new parameter is not forgotten here."""
    assert set(KNOWN) - {"sharpen"} == set(PARAMETERS)


@in_one_loop
@at_leisure
@given(st.sampled_from([*IMAGES]), st.booleans(), good_fields, unknown_fields, st.booleans())
async def test_each_parameter_is_decided_once_and_the_delivery_is_what_was_asked(
    shared: Live, image: str, masked: bool, known: dict[str, Any], unknown: dict[str, Any], as_json: bool
):
    """One entry for each parameter sent, `image` included and `model` not; size and format as asked; never a 5xx."""
    mask = MASKS[image] if masked else None
    sent = {**known, **unknown}

    response = await _send(shared, IMAGES[image], mask, sent, as_json=as_json)

    assert response.status_code in (200, 400), response.text
    assert shared.spooled == []
    if response.status_code == 400:
        assert response.json()["error"]["param"] is not None
        return
    body = response.json()
    entries = body["metadata"]["normalization"]
    assert sorted(entry["param"] for entry in entries) == sorted([*sent, "image", *(["mask"] if masked else [])])
    named = {entry["param"]: entry for entry in entries}
    assert all(named[name]["known"] is False for name in unknown)
    assert len(body["data"]) == sent.get("n", 1)
    for picture_ in body["data"]:
        await _check(shared, picture_, sent)


async def _check(live: Live, entry: dict[str, str], sent: dict[str, Any]) -> None:
    """One delivered picture against what was asked."""
    content = base64.b64decode(entry["b64_json"]) if "b64_json" in entry else (await live.client.get(entry["url"])).content
    assert ("b64_json" in entry) == (sent.get("response_format") == "b64_json")
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        asked = sent.get("output_format", "png").replace("jpg", "jpeg")
        assert (image.format or "").lower() == asked
        if "x" in sent.get("size", ""):
            width, height = map(int, sent["size"].split("x"))
            if sent.get("fit") == "contain":
                assert image.width <= width
                assert image.height <= height
            else:
                assert image.size == (width, height)


@in_one_loop
@at_leisure
@given(any_fields, st.booleans())
async def test_no_value_of_any_parameter_is_a_fault_of_ours(shared: Live, sent: dict[str, Any], as_json: bool):
    """Whatever is sent under whatever name: served, or the caller's error."""
    response = await _send(shared, IMAGES["png"], None, sent, as_json=as_json)

    assert response.status_code in (200, 400), response.text
    assert response.headers["x-request-id"]
    assert shared.spooled == []


@in_one_loop
async def test_header_stays_short_with_very_many_parameters(shared: Live):
    """Clients refuse long header lines; the body has everything."""
    response = await shared.edit(**{f"x_a_rather_long_name_of_a_parameter_{index}": 1 for index in range(300)})

    line = response.headers["x-gateway-normalization"]
    assert len(response.json()["metadata"]["normalization"]) == 301
    assert len(line) < 4200
    assert int(line.rpartition("more=")[2]) + line.count(",") == 301


async def _send(live: Live, image: bytes, mask: bytes | None, sent: dict[str, Any], *, as_json: bool) -> httpx.Response:
    if as_json:
        body = {"images": [{"image_url": _data_url(image)}], "model": MODEL, **sent}
        if mask is not None:
            body["mask"] = {"image_url": _data_url(mask)}
        return await live.client.post("/v1/images/edits", json=body)
    parts: list[tuple[str, Any]] = [("image", ("a", image)), ("model", (None, MODEL))]
    parts += [("mask", ("m", mask))] if mask is not None else []
    parts += [part for name, value in sent.items() for part in _form(name, value)]
    return await live.client.post("/v1/images/edits", files=parts)


def _form(name: str, value: Any) -> list[tuple[str, Any]]:
    """A value as the official clients put it into a form."""
    if isinstance(value, list):
        return [part for item in value for part in _form(f"{name}[]", item)]
    if isinstance(value, dict):
        return [part for key, item in value.items() for part in _form(f"{name}[{key}]", item)]
    return [(name, (None, value if isinstance(value, str) else json.dumps(value)))]


def _data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
