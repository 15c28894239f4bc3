"""The official OpenAI client for Python, unmodified, sync and async, against a live gateway."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import ImagesResponse

from tests.e2e.conftest import MAX_IMAGE_BYTES
from tests.e2e.live import LiveGateway
from tests.e2e.pictures import SIZE, bomb, encoded, look, noise_png, picture, png, sideways_jpeg, swapped_profile
from tests.e2e.web import Answer, fetch

MODEL = "detail-upscaler"
DOUBLE = (2 * SIZE[0], 2 * SIZE[1])
FORMATS = ("png", "jpeg", "webp", "gif", "avif")

Edit = Callable[..., Awaitable[ImagesResponse]]


@pytest.fixture(params=["sync", "async"])
async def edit(request: pytest.FixtureRequest, gateway_url: str, api_key: str) -> AsyncIterator[Edit]:
    """`client.images.edit` of either client, with the bundled model and a small PNG unless told otherwise."""
    common = {"model": MODEL, "prompt": "", "image": ("picture.png", png(), "image/png")}
    if request.param == "sync":
        with OpenAI(base_url=gateway_url, api_key=api_key) as client:
            yield lambda **members: asyncio.to_thread(client.images.edit, **{**common, **members})
    else:
        async with AsyncOpenAI(base_url=gateway_url, api_key=api_key) as client:
            yield lambda **members: client.images.edit(**{**common, **members})


@pytest.fixture
async def client(gateway_url: str, api_key: str) -> AsyncIterator[AsyncOpenAI]:
    """The async client, for what has nothing to do with either."""
    async with AsyncOpenAI(base_url=gateway_url, api_key=api_key) as client:
        yield client


# --- ways of sending a picture ------------------------------------------------------------------------------------------------


def write_file(folder: Path) -> Path:
    """A picture in a file."""
    path = folder / "source.png"
    path.write_bytes(png())
    return path


SENT: dict[str, Callable[[Path], Any]] = {
    "path": write_file,
    "stream": lambda folder: BytesIO(png()),
    "bytes": lambda folder: png(),
    "named_bytes": lambda folder: ("a.png", png(), "image/png"),
    "lying_type": lambda folder: ("a.jpg", png(), "image/jpeg"),
    "list_of_one": lambda folder: [("a.png", png(), "image/png")],
}


@pytest.mark.parametrize("way", SENT)
async def test_a_picture_comes_back_twice_the_size(edit: Edit, tmp_path: Path, way: str):
    """However the picture is handed over, a picture of twice its size comes back."""
    response = await edit(image=SENT[way](tmp_path))

    assert [image.size for image in await pictures(response)] == [DOUBLE]


async def test_a_list_of_several_is_refused_by_a_model_that_takes_one(edit: Edit):
    """Two pictures for a model that enlarges one are a clear 400, not a silent choice."""
    with pytest.raises(openai.BadRequestError) as refusal:
        await edit(image=[("a.png", png(), "image/png"), ("b.png", png(), "image/png")])

    assert (refusal.value.param, refusal.value.code) == ("image", "invalid_value")


# --- what is asked of the answer ----------------------------------------------------------------------------------------------


async def test_n_gives_so_many(edit: Edit):
    """`n=3` gives three pictures."""
    response = await edit(n=3)

    assert [image.size for image in await pictures(response)] == [DOUBLE] * 3


async def test_link_is_the_default_and_base64_on_demand(edit: Edit):
    """`response_format` gives the one or the other, never both, and a link if nothing is said."""
    default, url, base64_json = await edit(), await edit(response_format="url"), await edit(response_format="b64_json")

    for response in (default, url):
        assert [(bool(entry.url), entry.b64_json) for entry in entries(response)] == [(True, None)]
    assert [(entry.url, bool(entry.b64_json)) for entry in entries(base64_json)] == [(None, True)]


@pytest.mark.parametrize("form", FORMATS)
async def test_output_format_is_the_asked_one(edit: Edit, form: str):
    """Each format comes back as itself, and the answer names it if OpenAI's has a name for it."""
    response = await edit(output_format=form)

    assert [(image.format, image.size) for image in await pictures(response)] == [(form.upper(), DOUBLE)]
    assert getattr(response, "output_format", None) == (None if form == "avif" else form)


@pytest.mark.parametrize("form", ["jpeg", "webp", "avif"])
async def test_output_compression_makes_files_smaller(edit: Edit, form: str):
    """Low quality is a smaller file than high."""
    low = await edit(output_format=form, output_compression=20, response_format="b64_json")
    high = await edit(output_format=form, output_compression=95, response_format="b64_json")

    assert len(entries(low)[0].b64_json or "") < len(entries(high)[0].b64_json or "")


@pytest.mark.parametrize(("size", "start"), [("1024x1024", (512, 512)), ("96x96", SIZE), ("100x30", SIZE), ("1024x1024", (64, 48))])
async def test_size_is_exact(edit: Edit, size: str, start: tuple[int, int]):
    """The delivered picture has exactly the asked size, whatever its shape or how far it is from the sent one."""
    response = await edit(size=size, image=("a.png", png(start), "image/png"))

    assert [f"{image.width}x{image.height}" for image in await pictures(response)] == [size]
    assert getattr(response, "size", None) == size


@pytest.mark.parametrize("factor", [1, 1.5, 3, 4])
async def test_scale_factor_goes_through_extra_body(edit: Edit, factor: float):
    """A parameter of the model's own is typed by the model's schema, though a form only carries text."""
    response = await edit(extra_body={"scale_factor": factor})

    assert [image.size for image in await pictures(response)] == [(round(SIZE[0] * factor), round(SIZE[1] * factor))]


@pytest.mark.parametrize("prompt", ["", "a picture of a boat"])
async def test_prompt_may_be_empty_or_not(edit: Edit, prompt: str):
    """A model that needs no prompt takes an empty one, and reports one that it cannot use."""
    response = await edit(prompt=prompt)

    assert len(entries(response)) == 1


# --- what the picture keeps ---------------------------------------------------------------------------------------------------


async def test_orientation_is_applied(edit: Edit):
    """A picture stored on its side comes back upright, with no orientation left in it."""
    response = await edit(image=("a.jpg", sideways_jpeg(), "image/jpeg"))

    (image,) = await pictures(response)
    assert image.size == (DOUBLE[1], DOUBLE[0])
    assert image.getexif().get(0x0112, 1) == 1


async def test_colour_is_brought_to_srgb(edit: Edit):
    """A picture whose profile calls green red comes back green."""
    plain = picture()
    plain.paste((250, 10, 10), (0, 0, *SIZE))
    response = await edit(image=("a.png", encoded(plain, icc_profile=swapped_profile()), "image/png"))

    (image,) = await pictures(response)
    red, green, _ = image.convert("RGB").getpixel((DOUBLE[0] // 2, DOUBLE[1] // 2))
    assert green > 200 > 100 > red


@pytest.mark.parametrize("form", ["png", "webp", "avif", "gif"])
async def test_transparency_is_kept_where_the_format_has_it(edit: Edit, form: str):
    """Clear stays clear and solid stays solid."""
    response = await edit(image=("a.png", png(mode="RGBA"), "image/png"), output_format=form)

    (image,) = await pictures(response)
    alpha = image.convert("RGBA").getchannel("A")
    assert alpha.getpixel((4, 20)) < 20
    assert alpha.getpixel((DOUBLE[0] - 4, 20)) > 235


async def test_transparency_is_flattened_on_white_for_jpeg(edit: Edit):
    """A format without transparency shows white where nothing was."""
    response = await edit(image=("a.png", png(mode="RGBA"), "image/png"), output_format="jpeg")

    (image,) = await pictures(response)
    assert min(image.getpixel((4, 20))) > 235


# --- the receipt and the link -------------------------------------------------------------------------------------------------


async def test_receipt_has_one_entry_for_each_parameter(edit: Edit):
    """Everything that was sent is decided once, and nothing else is."""
    sent = {
        "n": 2,
        "size": "100x60",
        "output_format": "webp",
        "output_compression": 80,
        "response_format": "url",
        "user": "someone",
    }
    response = await edit(**sent, extra_body={"sharpen": 1})

    metadata = extra(response, "metadata")
    decided = sorted(entry["param"] for entry in metadata["normalization"])
    assert decided == sorted(set(decided)), "a parameter is decided twice"
    assert {*sent, "image", "sharpen"} <= set(decided)


async def test_parameter_that_nobody_knows_goes_upstream(edit: Edit):
    """It is sent as it is, typed by its look, and the receipt says that no catalog entry knows it."""
    response = await edit(extra_body={"nobody_knows": 1.5})

    (entry,) = [entry for entry in extra(response, "metadata")["normalization"] if entry["param"] == "nobody_knows"]
    assert (entry["mode"], entry["known"], entry["sent"]) == ("passthrough", False, {"nobody_knows": 1.5})


async def test_answer_names_its_request_and_what_it_cost(edit: Edit):
    """The receipt and the header have the same id; the local backend costs nothing unless told."""
    response = await edit()

    metadata = extra(response, "metadata")
    assert response._request_id == metadata["request_id"]  # the client's documented way to it
    assert (metadata["model"], metadata["provider"], metadata["cost"]["billed_usd"]) == (MODEL, "local", "0")
    assert [attempt["outcome"] for attempt in metadata["attempts"]] == ["ok"]


async def test_link_is_served_to_anyone_for_a_while(edit: Edit):
    """A link needs no key, says type, length and ETag, answers ranges and conditions, and refuses a changed signature."""
    url = entries(await edit(output_format="webp"))[0].url or ""

    whole = await get(url)
    part = await get(url, Range="bytes=4-11")
    again = await get(url, **{"If-None-Match": whole.headers["etag"]})
    forged = await get(url[:-1] + ("0" if url[-1] != "0" else "1"))

    assert (whole.status, whole.headers["content-type"], int(whole.headers["content-length"])) == (
        200,
        "image/webp",
        len(whole.body),
    )
    assert (part.status, part.body) == (206, whole.body[4:12])
    assert (again.status, again.body) == (304, b"")
    assert forged.status in {401, 403, 404}


# --- models -------------------------------------------------------------------------------------------------------------------


async def test_models_are_listed_and_looked_up(client: AsyncOpenAI, gateway_url: str, api_key: str):
    """The bundled model is listed; it is found under its own id and under its provider's."""
    listed = [model.id async for model in client.models.list()]
    one = await client.models.retrieve(MODEL)
    with OpenAI(base_url=gateway_url, api_key=api_key) as sync:
        pinned = await asyncio.to_thread(sync.models.retrieve, f"local/{MODEL}")

    assert MODEL in listed
    assert (one.id, one.object) == (MODEL, "model")
    assert pinned.id == f"local/{MODEL}"


# --- errors -------------------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], type[openai.APIStatusError], str, str | None]] = {
    "not_a_picture": ({"image": b"These are words.\n" * 30}, openai.BadRequestError, "invalid_image_file", "image"),
    "empty": ({"image": ("a.png", b"", "image/png")}, openai.BadRequestError, "invalid_image_file", "image"),
    "truncated": ({"image": png((400, 300))[:-400]}, openai.BadRequestError, "invalid_image_file", "image"),
    "words_for_n": ({"extra_body": {"n": "abc"}}, openai.BadRequestError, "invalid_type", "n"),
    "none_of_it": ({"n": 0}, openai.BadRequestError, "integer_below_min_value", "n"),
    "too_many_of_it": ({"n": 11}, openai.BadRequestError, "integer_above_max_value", "n"),
    "no_such_size": ({"size": "12by12"}, openai.BadRequestError, "invalid_value", "size"),
    "seventeen": ({"image": [("a.png", png(), "image/png")] * 17}, openai.BadRequestError, "array_above_max_length", "image"),
    "mask_of_another_size": (
        {"mask": ("m.png", png((10, 10), "RGBA"), "image/png")},
        openai.BadRequestError,
        "invalid_value",
        "mask",
    ),
    "unknown_model": ({"model": "detail-upscalr"}, openai.NotFoundError, "model_not_found", None),
}
"""Request members to the error's class, code and parameter."""


@pytest.mark.parametrize("case", BAD)
async def test_bad_input_is_a_clear_error(edit: Edit, case: str):
    """Each is the client's own error class, with code, parameter and request id, and a message that names the parameter."""
    members, kind, code, param = BAD[case]
    with pytest.raises(kind) as refusal:
        await edit(**members)

    error = refusal.value
    assert (error.code, error.param) == (code, param), error.message
    assert (error.request_id or "").startswith("req_")
    assert error.type in {"invalid_request_error", "image_generation_user_error"}


async def test_unknown_model_is_answered_with_a_guess(edit: Edit):
    """A slip of the pen gets the right name."""
    with pytest.raises(openai.NotFoundError, match=rf"mean .*{MODEL}\b"):
        await edit(model="detail-upscalr")


async def test_a_bomb_is_refused_by_its_header(edit: Edit):
    """A small file of 400 million pixels is refused, before anything decodes it."""
    with pytest.raises(openai.APIStatusError) as refusal:
        await edit(image=("a.png", bomb(), "image/png"))

    assert refusal.value.status_code in {400, 413}
    assert (refusal.value.code, refusal.value.param) == ("too_many_pixels", "image")


async def test_too_many_bytes_are_413(edit: Edit):
    """The client reads the answer, and is not cut off while it still sends."""
    with pytest.raises(openai.APIStatusError) as refusal:
        await edit(image=("a.png", noise_png(3 * MAX_IMAGE_BYTES), "image/png"))

    error = refusal.value
    assert (error.status_code, error.code, error.param) == (413, "request_too_large", "image")
    assert (error.request_id or "").startswith("req_")


@pytest.mark.parametrize("key", ["sk-wrong", "My API Key"])
async def test_wrong_key_is_an_authentication_error(gateway_url: str, key: str):
    """A key that nobody has is refused, shown only in part."""
    async with AsyncOpenAI(base_url=gateway_url, api_key=key) as client:
        with pytest.raises(openai.AuthenticationError) as refusal:
            await client.models.list()

    assert (refusal.value.code, refusal.value.param, refusal.value.type) == ("invalid_api_key", None, "invalid_request_error")
    assert (refusal.value.request_id or "").startswith("req_")


async def test_revoked_key_is_refused(gateway: LiveGateway):
    """A key that was revoked on the command line, by another process, is no longer taken."""
    made = gateway.shell.make_key("leaver")
    await asyncio.to_thread(gateway.shell.run, "keys", "revoke", made["key_id"])
    async with AsyncOpenAI(base_url=gateway.api, api_key=made["key"]) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_no_key_is_refused(gateway_url: str):
    """Without a key the answer is 401 in OpenAI's shape, before the body is read."""
    answer = await asyncio.to_thread(fetch, f"{gateway_url}/images/edits", method="POST", body=b"x" * 1000)

    assert (answer.status, answer.json()["error"]["type"]) == (401, "invalid_request_error")
    assert answer.headers["x-request-id"].startswith("req_")


async def test_unknown_route_is_a_not_found_error(client: AsyncOpenAI):
    """A route of OpenAI's that the gateway does not have is a 404 in its shape."""
    with pytest.raises(openai.NotFoundError) as refusal:
        await client.fine_tuning.jobs.list()

    assert refusal.value.type == "invalid_request_error"
    assert (refusal.value.request_id or "").startswith("req_")


# --- looking at answers -------------------------------------------------------------------------------------------------------


def entries(response: ImagesResponse) -> list[Any]:
    """The answer's pictures, of which there is at least one."""
    assert response.data
    return list(response.data)


def extra(response: ImagesResponse, name: str) -> Any:
    """A member that OpenAI's own answers do not have."""
    return (response.model_extra or {})[name]


async def pictures(response: ImagesResponse) -> list[Any]:
    """The delivered pictures, decoded; links are fetched without a key."""
    return [
        look(base64.b64decode(entry.b64_json) if entry.b64_json else (await get(entry.url)).body) for entry in entries(response)
    ]


async def get(url: str, **headers: str) -> Answer:
    """Fetch an address without the client."""
    return await asyncio.to_thread(fetch, url, headers=headers)
