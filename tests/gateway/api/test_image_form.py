"""The body of an image request: both forms, their pictures in the spool, and every way in which they can be wrong."""

import asyncio
import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.api.body import ClientGone
from gateway.api.image_form import ImageForm, read_image_form
from gateway.api.multipart import FormLimits
from gateway.api.uploads import UnreadableImage
from gateway.errors import BadRequest, Overloaded, TooLarge
from normalization.pixels.formats import Format, Size
from normalization.pixels.probe import ProbeLimits
from normalization.request import Text
from providers.spool import Spool
from providers.transfer import TransferFailed, TransferFault

MakePicture = Callable[..., bytes]


class Web:
    """Answers fetches from memory."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes | Exception] = {}

    async def __call__(self, url: str, target: Path, max_bytes: int) -> None:
        page = self.pages[url]
        if isinstance(page, Exception):
            raise page
        target.write_bytes(page)  # noqa: ASYNC240 - a few bytes


class Reading:
    """Reads a body as `read_image_form` gets it from a server."""

    def __init__(self, spool: Spool, web: Web) -> None:
        self.spool = spool
        self.web = web
        self.limits = FormLimits()
        self.probe_limits = ProbeLimits()

    async def __call__(
        self, body: bytes, content_type: str | None, *, cut: int = 65536, gone: bool = False, headers: dict[str, str] | None = None
    ) -> ImageForm:
        messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": body[start : start + cut], "more_body": True} for start in range(0, len(body), cut)
        ]
        messages.append({"type": "http.disconnect"} if gone else {"type": "http.request", "body": b"", "more_body": False})

        async def receive() -> Any:
            return messages.pop(0)

        sent = {**({"content-type": content_type} if content_type else {}), **(headers or {})}
        scope: Any = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in sent.items()]}
        return await read_image_form(
            scope, receive, spool=self.spool, limits=self.limits, probe_limits=self.probe_limits, fetch=self.web
        )

    async def form(self, files: Sequence[tuple[str, Any]] = (), data: dict[str, str] | None = None, **options: Any) -> ImageForm:
        request = httpx.Request("POST", "http://x", files=list(files), data=data or {})
        return await self(request.read(), request.headers["content-type"], **options)

    async def json(self, body: object, **options: Any) -> ImageForm:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self(raw, "application/json", **options)


@pytest.fixture
def web() -> Web:
    return Web()


@pytest.fixture
def read(spool: Spool, web: Web) -> Reading:
    return Reading(spool, web)


def data_url(content: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


# The multipart form


async def test_a_form_gives_pictures_and_fields(
    read: Reading, make_picture: MakePicture, left_in_spool: Callable[[], list[Path]]
) -> None:
    """Pictures are probed and wait in the spool; texts are `Text`, the empty one too; closing removes the files."""
    png, jpeg = make_picture(4, 3), make_picture(5, 6, "JPEG")

    form = await read.form(
        [("image", ("upload", png, "application/octet-stream")), ("image[]", ("b", jpeg)), ("mask", ("m.png", make_picture(4, 3)))],
        {"prompt": "", "n": "2", "loras[][path]": "x"},
    )

    assert form.fields == {"prompt": "", "n": "2", "loras": [{"path": "x"}]}
    assert isinstance(form.fields["n"], Text)
    assert [(upload.info.format, upload.info.size) for upload in form.images] == [
        (Format.PNG, Size(4, 3)),
        (Format.JPEG, Size(5, 6)),
    ]
    assert form.images[0].path.read_bytes() == png
    assert form.mask is not None
    assert len(left_in_spool()) == 3
    async with form:
        pass
    await form.close()
    assert left_in_spool() == []


async def test_indexed_pictures_stand_in_the_order_of_their_indices(read: Reading, make_picture: MakePicture) -> None:
    """`image[1]` before `image[0]` on the wire is still the second picture."""
    form = await read.form([("image[1]", ("b", make_picture(2, 2))), ("image[0]", ("a", make_picture(1, 1)))])

    assert [upload.info.size for upload in form.images] == [Size(1, 1), Size(2, 2)]


async def test_a_form_without_pictures_is_a_form(read: Reading) -> None:
    """What needs a picture is not decided here."""
    form = await read.form([("prompt", (None, "x"))])

    assert (form.fields, form.images, form.mask) == ({"prompt": "x"}, (), None)


async def test_the_picture_at_fault_is_named(
    read: Reading, make_picture: MakePicture, left_in_spool: Callable[[], list[Path]]
) -> None:
    """What is no picture is OpenAI's `invalid_image_file`, with the name and place of the file; nothing is left."""
    with pytest.raises(UnreadableImage) as alone:
        await read.form([("image", ("upload", b"Example data"))])
    with pytest.raises(UnreadableImage) as second:
        await read.form([("image[]", ("a", make_picture())), ("image[]", ("b", make_picture()[:40]))])
    with pytest.raises(UnreadableImage) as empty:
        await read.form([("image", ("a", b""))])
    with pytest.raises(UnreadableImage) as mask:
        await read.form([("image", ("a", make_picture())), ("mask", ("b", b"x"))])

    named = [(caught.value.param, caught.value.code, caught.value.type) for caught in (alone, second, empty, mask)]
    assert named == [
        (param, "invalid_image_file", "image_generation_user_error") for param in ("image", "image[1]", "image", "mask")
    ]
    assert left_in_spool() == []


async def test_too_many_pixels_are_refused_before_decoding(read: Reading, make_picture: MakePicture) -> None:
    """A picture beyond the pixel limit is a 400 that names the limit."""
    read.probe_limits = ProbeLimits(max_pixels=100)

    with pytest.raises(BadRequest, match="at most") as caught:
        await read.form([("image", ("a", make_picture(11, 10)))])

    assert (caught.value.status, caught.value.param, caught.value.type) == (400, "image", "invalid_request_error")


async def test_a_mask_has_the_size_of_the_first_image(
    read: Reading, make_picture: MakePicture, left_in_spool: Callable[[], list[Path]]
) -> None:
    """A mask of another size is a 400 with both sizes; a mask alone lacks its image."""
    with pytest.raises(BadRequest, match=r"4x4.*4x3") as other:
        await read.form([("image", ("a", make_picture(4, 3))), ("mask", ("m", make_picture(4, 4)))])
    with pytest.raises(BadRequest) as alone:
        await read.form([("mask", ("m", make_picture()))])

    assert other.value.param == "mask"
    assert (alone.value.param, alone.value.code) == ("image", "missing_required_parameter")
    assert left_in_spool() == []


async def test_one_file_over_the_limit_is_413(read: Reading, make_picture: MakePicture) -> None:
    """A file over `max_file_bytes` is 413 for `image`, in both forms."""
    read.limits = FormLimits(max_file_bytes=60)

    with pytest.raises(TooLarge) as form:
        await read.form([("image", ("a", make_picture()))])
    with pytest.raises(TooLarge) as as_json:
        await read.json({"images": [{"image_url": data_url(make_picture())}]})

    assert (form.value.param, as_json.value.param) == ("image", "images")


@pytest.mark.parametrize("cut", [1, 100])
async def test_a_client_that_leaves_half_way_leaves_no_file(
    read: Reading, make_picture: MakePicture, left_in_spool: Callable[[], list[Path]], cut: int
) -> None:
    """A disconnect in the middle of either form ends in `ClientGone`, files removed."""
    request = httpx.Request("POST", "http://x", files={"image": ("a", make_picture())})
    body = request.read()
    with pytest.raises(ClientGone):
        await read(body[:-20], request.headers["content-type"], gone=True, cut=cut)
    with pytest.raises(ClientGone):
        await read.json(json.dumps({"image": data_url(make_picture())}).encode()[:-4], gone=True, cut=cut)

    assert left_in_spool() == []


# The JSON form


@pytest.mark.parametrize("cut", [1, 3, 64, 65536])
async def test_data_urls_are_decoded_as_they_pass(
    read: Reading, make_picture: MakePicture, left_in_spool: Callable[[], list[Path]], cut: int
) -> None:
    """OpenAI's `images` and `mask` with data URLs give the same pictures, however the body is cut; null is not given."""
    png = make_picture(4, 3)
    body = {
        "images": [{"image_url": data_url(png)}, {"image_url": data_url(make_picture(7, 7, "WEBP"), "image/webp")}],
        "mask": {"image_url": data_url(make_picture(4, 3))},
        "prompt": 'a "hat"\\',
        "n": None,
        "scale_factor": 2,
        "loras": [{"path": "x", "on": True}],
    }

    form = await read.json(body, cut=cut)

    assert form.fields == {"prompt": 'a "hat"\\', "scale_factor": 2, "loras": [{"path": "x", "on": True}]}
    assert [upload.info.size for upload in form.images] == [Size(4, 3), Size(7, 7)]
    assert form.images[0].path.read_bytes() == png
    assert form.images[0].size_bytes == len(png)
    assert form.mask is not None
    await form.close()
    assert left_in_spool() == []


async def test_escaped_slashes_in_data_urls_are_understood(read: Reading, make_picture: MakePicture) -> None:
    """Encoders that write `\\/` for a slash, or `\\u002B` for a plus, are understood."""
    body = json.dumps({"image": data_url(make_picture(64, 64, "JPEG"), "image/jpeg")})

    form = await read.json(body.replace("/", "\\/").replace("+", "\\u002B").encode(), cut=7)

    assert form.images[0].info.size == Size(64, 64)


@pytest.mark.parametrize("reference", ["url", "object", "list"])
async def test_addresses_are_fetched(read: Reading, web: Web, make_picture: MakePicture, reference: str) -> None:
    """A picture may be named by address: as text, as an object, or in a list."""
    web.pages["https://pictures.example/a.png"] = make_picture(3, 2)
    given: Any = {"url": "https://pictures.example/a.png", "object": {"image_url": "https://pictures.example/a.png"}}.get(reference)

    form = await read.json({"image": given if given else [{"image_url": "https://pictures.example/a.png"}]})

    assert form.images[0].info.size == Size(3, 2)
    assert len(form.images[0].sha256) == 64


@pytest.mark.parametrize(
    ("fault", "error", "status"),
    [(TransferFault.ADDRESS, BadRequest, 400), (TransferFault.TIMEOUT, BadRequest, 400), (TransferFault.TOO_LARGE, TooLarge, 413)],
)
async def test_an_address_that_does_not_deliver_is_the_callers(
    read: Reading,
    web: Web,
    make_picture: MakePicture,
    left_in_spool: Callable[[], list[Path]],
    fault: TransferFault,
    error: type[BadRequest | TooLarge],
    status: int,
) -> None:
    """Whatever keeps an address from delivering is a 4xx that names the reference; the other files are gone."""
    web.pages["http://a.example/x"] = TransferFailed(fault, "a.example does not deliver")

    with pytest.raises(error, match=r"a\.example") as caught:
        await read.json({"images": [{"image_url": data_url(make_picture())}, {"image_url": "http://a.example/x"}]})

    assert (caught.value.status, caught.value.param) == (status, "images[1]")
    assert left_in_spool() == []


async def test_short_data_urls_elsewhere_stay_text(read: Reading) -> None:
    """A provider's own parameter may be a data URL: it goes on as it came, if it is short."""
    url = data_url(b"abc", "text/plain")
    read.limits = FormLimits(max_field_bytes=100)

    form = await read.json({"control_image": [url], "note": "data: none,of it"})

    assert form.fields == {"control_image": [url], "note": "data: none,of it"}
    with pytest.raises(TooLarge, match="control_image"):
        await read.json({"control_image": data_url(bytes(101))})


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b'{"a": "\xff"}', "invalid_json", None),
        (b'{"a": "x', "invalid_json", None),
        (b"[]", "invalid_json", None),
        (b'{"a": 1e999}', "invalid_json", None),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "invalid_json", None),
        (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "invalid_value", "a"),
        ({str(index): 1 for index in range(600)}, "invalid_value", None),
        ({"prompt": "a\0b"}, "invalid_value", "prompt"),
        ({"images": [{"file_id": "file-1"}]}, "invalid_value", "images[0]"),
        ({"images": [{"image_url": "http://a/b", "file_id": "file-1"}]}, "invalid_type", "images[0]"),
        ({"images": [{}]}, "invalid_type", "images[0]"),
        ({"images": [{"image_url": 1}]}, "invalid_type", "images[0]"),
        ({"images": [1]}, "invalid_type", "images[0]"),
        ({"images": {"image_url": "http://a/b"}}, "invalid_type", "images"),
        ({"images": [{"image_url": "x"}] * 17}, "array_above_max_length", "images"),
        ({"images": [{"image_url": "x"}], "image": "y"}, "duplicate_parameter", "image"),
        ({"image": "ftp://a/b"}, "invalid_value", "image"),
        ({"image": "http://[a/b"}, "invalid_value", "image"),
        ({"image": "file:///etc/passwd"}, "invalid_value", "image"),
        ({"image": "data:image/png,abc"}, "invalid_value", "image"),
        ({"image": "data:image/png;base64,a*c="}, "invalid_value", "images"),
        ({"image": "data:image/png;base64,YWJj"}, "invalid_image_file", "image"),
        ({"image": "data:image/png;base64,"}, "invalid_image_file", "image"),
        ({"mask": 1, "image": "data:image/png;base64,YWJj"}, "invalid_type", "mask"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_malformed_json_is_a_bad_request(
    read: Reading, left_in_spool: Callable[[], list[Path]], body: object, code: str, param: str | None
) -> None:
    """Whatever is wrong with the JSON form is a 400 that names the member, and leaves no file."""
    with pytest.raises(BadRequest) as caught:
        await read.json(body)

    assert (caught.value.code, caught.value.param) == (code, param)
    assert left_in_spool() == []


async def test_large_json_is_413(read: Reading) -> None:
    """JSON that is long without pictures, and a body over the limit, are 413."""
    read.limits = FormLimits(max_text_bytes=1000, max_body_bytes=3000)

    with pytest.raises(TooLarge):
        await read.json({"prompt": "x" * 1001})
    with pytest.raises(TooLarge):
        await read.json({"image": data_url(bytes(3000))})


async def test_json_of_too_many_values_is_a_bad_request(read: Reading) -> None:
    """Nobody asks for a picture with a hundred thousand values, and reading them would keep others waiting."""
    with pytest.raises(BadRequest, match="more than 20000 values"):
        await read.json({"prompt": "x", "loras": [""] * 100_000})
    form = await read.json({"prompt": "x", "loras": ["y"] * 15_000})
    assert form.fields["loras"] == ["y"] * 15_000


async def test_a_full_disk_is_503_for_json_too(read: Reading, web: Web, left_in_spool: Callable[[], list[Path]]) -> None:
    """A full disk while a picture is fetched is 503."""
    web.pages["http://a.example/x"] = OSError(28, "No space left on device")

    with pytest.raises(Overloaded):
        await read.json({"image": "http://a.example/x"})

    assert left_in_spool() == []


# Neither


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
async def test_other_bodies_are_refused_with_the_two_that_are_taken(read: Reading, content_type: str | None) -> None:
    """Another Content-Type, or none, is a 400 that names both forms."""
    with pytest.raises(BadRequest, match=r"multipart/form-data.*application/json") as caught:
        await read(b"x", content_type)

    assert caught.value.code == "unsupported_content_type"


async def test_what_need_not_be_read_is_refused_by_its_header(read: Reading) -> None:
    """A Content-Length over the limit is 413, and a packed body 400, before a byte is read."""
    read.limits = FormLimits(max_body_bytes=100)

    with pytest.raises(TooLarge):
        await read(b"", "application/json", headers={"content-length": "101"})
    with pytest.raises(BadRequest, match="compressed"):
        await read(b"", "application/json", headers={"content-encoding": "gzip"})


async def test_cancelling_while_fetching_leaves_nothing(
    read: Reading, make_picture: MakePicture, left_in_spool: Callable[[], list[Path]]
) -> None:
    """A request that is cancelled while it waits for an address leaves no file."""
    asked = asyncio.Event()

    async def fetch(url: str, target: Path, max_bytes: int) -> None:
        target.write_bytes(b"half")  # noqa: ASYNC240 - a few bytes
        asked.set()
        await asyncio.Event().wait()

    read.web = fetch
    reading = asyncio.create_task(
        read.json({"images": [{"image_url": data_url(make_picture())}, {"image_url": "http://a.example/x"}]})
    )
    await asked.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    assert left_in_spool() == []
