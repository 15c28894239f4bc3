"""Signed links: who may fetch what, whole, in part, or not again."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
import pytest
import structlog
from litestar import Litestar
from structlog.testing import LogCapture

from gateway.api.assets import asset_route
from gateway.api.rendering import RequestId, error_handlers
from gateway.assets.links import sign_link
from gateway.assets.store import AssetStore, open_store

SECRET = b"0123456789abcdef"
NOW = 1_760_000_000.0
CONTENT = bytes(range(256)) * 40


class Site:
    """The route, and a client without a key."""

    def __init__(self, store: AssetStore) -> None:
        self.now = NOW
        log = structlog.wrap_logger(None, processors=[LogCapture()])
        route = asset_route(store, SECRET, lambda: self.now)
        self.app: Any = RequestId(Litestar([route], exception_handlers=error_handlers(log), logging_config=None), log=log)

    async def ask(self, link: str, method: str = "GET", **headers: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://x") as client:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.request(method, link, headers=sent)


@pytest.fixture
async def site(tmp_path: Path) -> Site:
    store = open_store((tmp_path / "assets").as_uri())
    for name in ("asset_1.png", "asset_1.jpg", "asset_1.exe"):
        (tmp_path / "made").write_bytes(CONTENT)
        await store.put_file(tmp_path / "made", name)
        (tmp_path / "made").unlink()
    return Site(store)


@pytest.fixture
def link() -> str:
    return sign_link("asset_1", "png", int(NOW) + 3600, SECRET)


async def test_a_link_gives_the_picture(site: Site, link: str) -> None:
    """The whole file, with its type, length and tag, cacheable until the link ends, and never guessed at by a browser."""
    got = await site.ask(link)

    assert (got.status_code, got.content) == (200, CONTENT)
    assert got.headers["content-type"] == "image/png"
    assert got.headers["content-length"] == str(len(CONTENT))
    assert got.headers["etag"] == '"asset_1.png"'
    assert got.headers["cache-control"] == "private, max-age=3600, immutable"
    assert got.headers["content-disposition"] == 'inline; filename="asset_1.png"'
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["accept-ranges"] == "bytes"


async def test_head_gives_the_same_fields_and_no_body(site: Site, link: str) -> None:
    """HEAD answers as GET does, without the file, and ignores ranges."""
    got = await site.ask(link, "HEAD", range="bytes=0-1")

    assert (got.status_code, got.content) == (200, b"")
    assert (got.headers["content-length"], got.headers["content-type"]) == (str(len(CONTENT)), "image/png")


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=10-", 10, len(CONTENT)),
        ("bytes=-5", len(CONTENT) - 5, len(CONTENT)),
        ("bytes=0-999999", 0, len(CONTENT)),
        ("bytes=-999999", 0, len(CONTENT)),
        ("bytes=3-3", 3, 4),
    ],
)
async def test_a_range_gives_a_part(site: Site, link: str, asked: str, start: int, end: int) -> None:
    """One range, in any of its forms, is answered with 206 and exactly those bytes."""
    got = await site.ask(link, range=asked)

    assert (got.status_code, got.content) == (206, CONTENT[start:end])
    assert got.headers["content-range"] == f"bytes {start}-{end - 1}/{len(CONTENT)}"
    assert got.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("asked", ["bytes=99999-", "bytes=-0", f"bytes={len(CONTENT)}-{len(CONTENT)}"])
async def test_a_range_behind_the_end_is_416(site: Site, link: str, asked: str) -> None:
    """A range that holds no byte is 416 with the file's length, in OpenAI's shape."""
    got = await site.ask(link, range=asked)

    assert got.status_code == 416
    assert got.headers["content-range"] == f"bytes */{len(CONTENT)}"
    assert got.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("asked", ["bytes=0-1,4-5", "bytes=5-2", "lines=1-2", "bytes=x-", "bytes=-"])
async def test_ranges_that_are_not_understood_are_ignored(site: Site, link: str, asked: str) -> None:
    """Several ranges, other units and nonsense give the whole file."""
    got = await site.ask(link, range=asked)

    assert (got.status_code, got.content) == (200, CONTENT)


async def test_what_a_client_has_is_not_sent_again(site: Site, link: str) -> None:
    """With the tag in If-None-Match the answer is 304, without a body but with the tag."""
    for tag in ('"asset_1.png"', 'W/"asset_1.png"', '"x", "asset_1.png"', "*"):
        got = await site.ask(link, if_none_match=tag)
        assert (got.status_code, got.content, got.headers["etag"]) == (304, b"", '"asset_1.png"')

    assert (await site.ask(link, if_none_match='"other"')).status_code == 200


async def test_if_range_needs_the_same_tag(site: Site, link: str) -> None:
    """A part is given only of the version that the client knows; else the whole."""
    same = await site.ask(link, range="bytes=0-1", if_range='"asset_1.png"')
    other = await site.ask(link, range="bytes=0-1", if_range='"other"')

    assert (same.status_code, other.status_code) == (206, 200)


async def test_an_expired_link_says_so(site: Site, link: str) -> None:
    """A link of ours whose time is over is 403, which clients do not repeat, and says what happened."""
    site.now += 3600

    got = await site.ask(link)

    assert (got.status_code, got.json()["error"]["code"]) == (403, "link_expired")


def changed(link: str, **query: str) -> str:
    parts = urlsplit(link)
    return f"{parts.path}?{urlencode({**dict(parse_qsl(parts.query)), **query})}"


@pytest.mark.parametrize(
    "forge",
    [
        lambda link: changed(link, signature="x"),
        lambda link: changed(link, signature="ü"),
        lambda link: changed(link, expires="9999999999"),
        lambda link: changed(link, expires="1e9"),
        lambda link: link.replace(".png", ".jpg"),
        lambda link: link.partition("?")[0],
        lambda _: sign_link("asset_1", "png", int(NOW) + 3600, b"another secret"),
        lambda _: sign_link("asset_2", "png", int(NOW) + 3600, SECRET),
        lambda _: sign_link("asset_1", "exe", int(NOW) + 3600, SECRET),
    ],
    ids=["signature", "letters", "longer", "not a number", "other file", "bare", "other secret", "unknown asset", "no picture"],
)
async def test_a_forged_link_is_like_an_unknown_one(site: Site, link: str, forge: Callable[[str], str]) -> None:
    """Nobody learns from a wrong link whether the picture exists: 404 in OpenAI's shape, always the same."""
    got = await site.ask(forge(link))

    assert got.status_code == 404
    assert got.json()["error"]["message"] == "no such file; results are kept for a limited time"


async def test_large_pictures_are_streamed_in_parts(serve: Callable[[Any], Awaitable[int]], tmp_path: Path) -> None:
    """Through a real server a large file arrives whole, and a range in its middle too."""
    store = open_store((tmp_path / "assets").as_uri())
    content = bytes(range(256)) * 8000
    (tmp_path / "big").write_bytes(content)
    await store.put_file(tmp_path / "big", "big.webp")
    port = await serve(Site(store).app)
    link = f"http://127.0.0.1:{port}{sign_link('big', 'webp', int(NOW) + 10, SECRET)}"

    async with httpx.AsyncClient() as client:
        whole = await client.get(link)
        part = await client.get(link, headers={"range": "bytes=1000000-1999999"})
        head = await client.head(link)

    assert whole.content == content
    assert part.content == content[1_000_000:2_000_000]
    assert head.headers["content-length"] == str(len(content))


def test_the_route_can_be_documented() -> None:
    """The OpenAPI document has both methods of the route."""
    app = Litestar([asset_route(open_store("memory:///"), SECRET, lambda: NOW)], logging_config=None)

    paths = app.openapi_schema.to_schema()["paths"]

    assert {"get", "head"} <= set(paths["/assets/{name}"])
