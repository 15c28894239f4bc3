"""Edits that succeed: size, format, orientation, colour and transparency of what is delivered, links, and what the journal says."""

import base64
import io
import json
from typing import Any

import httpx
import pytest
from PIL import Image, ImageCms

from gateway.db.tables import JobState
from tests.gateway.conftest import MODEL, Live, Open, delivered, error_of, in_one_loop, picture

FORMATS = ("png", "jpeg", "webp", "gif", "avif")


@pytest.mark.parametrize("answer", ["url", "b64_json"])
async def test_edit_is_delivered_and_recorded(on_both: Live, answer: str):
    """The picture comes back, and the journal has the job, its attempt, its ticket's end, its picture and the receipt."""
    response = await on_both.edit(scale_factor=2, response_format=answer, prompt="a fox")

    (image,) = await delivered(on_both, response)
    assert image.size == (12, 8)
    body = response.json()
    assert set(body["data"][0]) == {answer}
    assert (body["output_format"], body["size"], body["background"]) == ("png", "12x8", "opaque")
    assert body["metadata"]["request_id"] == response.headers["x-request-id"]
    record = await on_both.job(response.headers["x-request-id"])
    assert (record.state, record.provider, record.images_delivered) == (JobState.COMPLETED, "local", 1)
    assert [made.outcome for made in record.attempts] == ["ok"]
    assert [str(kept.size) for kept in record.assets] == ["12x8"]
    assert list(record.normalization or ()) == body["metadata"]["normalization"]
    assert record.request["prompt"] == "a fox"
    assert on_both.spooled == []


@in_one_loop
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("size", ["64x64", "33x7", "5x5"])
async def test_size_and_format_are_exact(shared: Live, form: str, size: str):
    """Whatever the backend gives, the picture has the asked format and size, and decodes."""
    (image,) = await delivered(shared, await shared.edit(size=size, output_format=form))

    assert (image.format or "").lower() == form
    assert f"{image.width}x{image.height}" == size


@in_one_loop
@pytest.mark.parametrize(("fit", "corner"), [("cover", (255, 0, 0)), ("pad", (0, 0, 255))])
async def test_fit_rules_how_another_shape_is_reached(shared: Live, fit: str, corner: tuple[int, ...]):
    """`cover` fills the size, `pad` fills the rest with the colour."""
    response = await shared.edit(size="20x40", fit=fit, background_color="#0000ff", output_format="png")

    (image,) = await delivered(shared, response)
    assert image.size == (20, 40)
    assert image.convert("RGB").getpixel((0, 0)) == corner


@in_one_loop
async def test_n_equal_pictures_cost_one_call(shared: Live):
    """A model that gives equal pictures for equal input is asked once."""
    response = await shared.edit(n=3)

    assert len(await delivered(shared, response)) == 3
    assert len(shared.backend.inputs) == 1


@in_one_loop
async def test_turned_photographs_come_back_upright(shared: Live):
    """The orientation that a camera wrote is applied: the asked size is that of the upright picture."""
    stored = Image.new("RGB", (40, 20), "blue")
    stored.paste((255, 0, 0), (0, 0, 10, 20))  # the left end as stored is the top when upright
    exif = Image.Exif()
    exif[274] = 6

    plain = await delivered(shared, await shared.edit(_saved(stored, "JPEG", exif=exif, quality=95)))
    sized = await delivered(shared, await shared.edit(_saved(stored, "JPEG", exif=exif, quality=95), size="30x60"))

    assert [image.size for image in (*plain, *sized)] == [(40, 80), (30, 60)]
    for image in (*plain, *sized):
        assert image.getexif().get(274, 1) == 1
        red, _, blue = _rgb(image, (image.width // 2, image.height // 10))
        assert red > 200 > 60 > blue


@in_one_loop
async def test_colours_come_back_in_srgb(shared: Live):
    """A profile that swaps colours is followed, and the result says nothing else than sRGB."""
    swapped = ImageCms.ImageCmsProfile(io.BytesIO(_swapping_profile()))

    (image,) = await delivered(
        shared, await shared.edit(_saved(Image.new("RGB", (8, 8), "red"), "PNG", icc_profile=swapped.tobytes()))
    )

    red, green, _ = _rgb(image, (4, 4))
    assert green > 200 > 60 > red
    assert not image.info.get("icc_profile")


@in_one_loop
async def test_print_colours_come_back_as_rgb(shared: Live):
    """A CMYK photograph reaches the backend, and the caller, in RGB."""
    (image,) = await delivered(shared, await shared.edit(picture(8, 8, "JPEG", "CMYK", (0, 255, 255, 0))))

    assert image.mode == "RGB"
    red, green, blue = _rgb(image, (4, 4))
    assert red > 150 > 100 > max(green, blue)


@in_one_loop
@pytest.mark.parametrize("form", ["png", "webp", "avif"])
@pytest.mark.parametrize("size", [None, "24x16"])
async def test_transparency_is_kept_where_the_format_has_it(shared: Live, form: str, size: str | None):
    """Clear stays clear and solid stays solid."""
    (image,) = await delivered(shared, await shared.edit(_half_clear(), output_format=form, size=size))

    alpha = image.convert("RGBA").getchannel("A")
    assert alpha.getpixel((0, 0)) == 0
    assert alpha.getpixel((image.width - 1, 0)) == 255


@in_one_loop
async def test_transparency_is_laid_on_white_for_jpeg(shared: Live):
    """And on the asked colour, if one is asked for."""
    (white,) = await delivered(shared, await shared.edit(_half_clear(), output_format="jpeg"))
    (black,) = await delivered(shared, await shared.edit(_half_clear(), output_format="jpeg", background_color="#000000"))

    assert min(_rgb(white, (0, 0))) > 240
    assert max(_rgb(black, (0, 0))) < 15


@in_one_loop
async def test_outside_of_the_mask_the_original_stays(shared: Live):
    """Transparent means edit: only there the backend's picture shows."""
    shared.backend.picture = lambda _: picture(12, 8, color="blue")
    mask = Image.new("RGBA", (6, 4), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 3, 4))

    (image,) = await delivered(shared, await shared.edit(mask=_saved(mask, "PNG")))

    assert _rgb(image, (1, 4)) == (0, 0, 255)
    assert _rgb(image, (10, 4)) == (255, 0, 0)


@in_one_loop
@pytest.mark.parametrize("name", ["image", "image[]", "image[0]"])
async def test_a_file_may_come_under_any_of_its_names(shared: Live, name: str):
    """As the clients of OpenAI send one file, a list of one, and indexed files."""
    response = await shared.client.post("/v1/images/edits", files={name: ("a.png", picture())}, data={"model": MODEL})

    assert len(await delivered(shared, response)) == 1


@in_one_loop
@pytest.mark.parametrize("members", [{"images": [{"image_url": "…"}]}, {"image": "…"}])
async def test_json_form_takes_data_urls(shared: Live, members: dict[str, Any]):
    """OpenAI's other form, with values of their own types."""
    url = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    body = json.loads(json.dumps({**members, "model": MODEL, "scale_factor": 3, "n": None}).replace("\\u2026", url))

    (image,) = await delivered(shared, await shared.client.post("/v1/images/edits", json=body))

    assert image.size == (18, 12)


async def test_json_form_fetches_addresses_that_the_operator_allows(open_live: Open, sqlite_url: str):
    """Only those: the guard against private addresses is on for all others. The gateway's own link serves as the address."""
    first = await open_live(sqlite_url)
    link = (await first.edit()).json()["data"][0]["url"]
    second = await open_live(sqlite_url, fetch={"allow_hosts": [link.split("/")[2]]})
    body = {"model": MODEL, "images": [{"image_url": link}]}

    refused = await first.client.post("/v1/images/edits", json=body)
    (image,) = await delivered(second, await second.client.post("/v1/images/edits", json=body))

    error_of(refused, 400)
    assert image.size == (24, 16)


@in_one_loop
async def test_links_are_good_for_anyone_in_whole_and_in_part(shared: Live):
    """Absolute, without a key, with type, length, ETag and ranges; a changed signature is 404."""
    url = (await shared.edit(output_format="webp")).json()["data"][0]["url"]

    async with httpx.AsyncClient(trust_env=False) as anyone:
        whole = await anyone.get(url)
        part = await anyone.get(url, headers={"range": "bytes=0-3"})
        same = await anyone.get(url, headers={"if-none-match": whole.headers["etag"]})
        forged = await anyone.get(url[:-2])

    assert url.startswith(f"{shared.url}/assets/img_")
    assert (whole.status_code, whole.headers["content-type"]) == (200, "image/webp")
    assert int(whole.headers["content-length"]) == len(whole.content)
    assert (part.status_code, part.content) == (206, b"RIFF")
    assert same.status_code == 304
    error_of(forged, 404)


async def test_links_begin_with_the_public_address(open_live: Open, sqlite_url: str):
    """`GATEWAY_PUBLIC_URL` is what callers see, path prefix included."""
    live = await open_live(sqlite_url, public_url="https://images.example/gateway/")

    url = (await live.edit()).json()["data"][0]["url"]

    assert url.startswith("https://images.example/gateway/assets/img_")


@in_one_loop
async def test_dry_run_spends_nothing(shared: Live):
    """The plan and price of every offer, and nobody is asked."""
    response = await shared.edit(size="12x12", seed=1, headers={"x-gateway-dry-run": "true"})
    as_query = await shared.client.post("/v1/images/edits?dry_run=true", files={"image": picture()}, data={"model": MODEL})

    (offer,) = response.json()["offers"]
    assert response.json()["dry_run"] is True
    assert (offer["provider"], offer["eligible"], offer["reasons"], offer["cost"]["usd"]) == ("local", True, [], "0")
    assert {entry["param"]: entry["mode"] for entry in offer["normalization"]} == {
        "image": "passthrough",
        "size": "converted",
        "seed": "unsupported",
    }
    assert as_query.json()["dry_run"] is True
    assert shared.backend.inputs == []
    assert shared.spooled == []


@in_one_loop
async def test_strictness_refuses_what_would_be_dropped(shared: Live):
    """Dropped and reported by default; with `error`, a 400 that names it."""
    dropped = await shared.edit(prompt="a fox")
    refused = await shared.edit(prompt="a fox", headers={"x-gateway-on-unsupported": "error"})

    assert dropped.json()["metadata"]["normalization"][-1]["mode"] == "unsupported"
    error = error_of(refused, 400)
    assert (error["code"], error["param"]) == ("unsupported_parameter", "prompt")


async def test_price_limit_is_kept(open_live: Open, sqlite_url: str):
    """An offer that costs more, or whose price nobody knows, is not tried under a limit; one that is free always is."""
    free = await open_live(sqlite_url)
    paid = await open_live(sqlite_url, local={**_local(free), "usd_per_second": "0.01"}, routing={"allow_unpriced": True})

    fine = await free.edit(headers={"x-gateway-max-cost-usd": "0"})
    over = await paid.edit(headers={"x-gateway-max-cost-usd": "0.000001"})
    priced = await paid.edit()

    assert fine.status_code == 200
    error = error_of(over, 402)
    assert over.headers["x-should-retry"] == "false"
    assert "required_usd" in error
    assert error["available_usd"] == "0.000001"
    assert priced.json()["metadata"]["cost"]["usd"] == "0.005"
    assert priced.headers["x-gateway-cost-usd"] == "0.005"


async def test_nothing_secret_is_logged_or_counted(live: Live):
    """No key, signature, prompt or caller's text in logs and metrics, after successes and failures of all sorts."""
    live.backend.fails("the model said something")
    failed = await live.edit(prompt="PROMPT-words", user="USER-words")
    good = await live.edit(prompt="PROMPT-words", user="USER-words", **{"UNKNOWN-name": "UNKNOWN-words"})
    link = good.json()["data"][0]["url"]
    await live.client.get(link)
    await live.edit(model="MODEL-words")
    await live.edit(size="SIZE-words")
    await live.client.get("/v1/ROUTE-words")
    await live.client.get("/v1/models", headers={"authorization": "Bearer WRONG-key"})

    metrics = (await live.client.get("/metrics")).text
    assert (failed.status_code, good.status_code) == (502, 200)
    assert "gateway_attempts_total" in metrics
    for place in (metrics, str(live.logged)):
        for secret in ("-words", "WRONG", live.key, link.rpartition("signature=")[2], "a secret of the tests", live.tenant_id):
            assert secret not in place


def _local(live: Live) -> dict[str, Any]:
    return live.parts.settings.local.model_dump(exclude={"usd_per_second"})


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _rgb(image: Image.Image, place: tuple[int, int]) -> tuple[int, int, int]:
    found = image.convert("RGB").getpixel(place)
    assert isinstance(found, tuple)
    return found[0], found[1], found[2]


def _half_clear() -> bytes:
    """Left clear, right solid green."""
    image = Image.new("RGBA", (12, 8), (0, 255, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 6, 8))
    return _saved(image, "PNG")


def _swapping_profile() -> bytes:
    """sRGB with the primaries of red and green exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.find(b"rXYZ", 128), profile.find(b"gXYZ", 128)
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)
