"""The success answer: OpenAI's members, base64 streamed from the store, and never a false answer."""

import asyncio
import base64
import json
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import Litestar, Response, get

from gateway.api.answer import Delivered, EmbeddedPicture, LinkedPicture, image_answer
from gateway.api.body import DrainedBody
from gateway.assets.store import BLOCK_BYTES, AssetMissing, AssetStore, StorageFailed, StoredAsset, open_store
from normalization.pixels.formats import Size

Serve = Callable[[Any], Awaitable[int]]
METADATA = {"request_id": "req_1", "cost": {"usd": "0.01"}}


@pytest.fixture
def store(tmp_path: Path) -> AssetStore:
    return open_store((tmp_path / "assets").as_uri())


@pytest.fixture
def keep(store: AssetStore, tmp_path: Path) -> Callable[[str, bytes], Awaitable[StoredAsset]]:
    async def keep(key: str, content: bytes) -> StoredAsset:
        path = tmp_path / key
        path.write_bytes(content)
        return await store.put_file(path, key)

    return keep


async def answer(
    store: AssetStore, pictures: Sequence[LinkedPicture | EmbeddedPicture], delivered: Delivered | None = None
) -> Response[Any]:
    return await image_answer(
        pictures,
        created=1760000000,
        metadata=METADATA,
        delivered=delivered or Delivered(),
        store=store,
        headers={"x-gateway-provider": "local"},
    )


def application(store: AssetStore, pictures: Sequence[LinkedPicture | EmbeddedPicture], delivered: Delivered | None = None) -> Any:
    @get("/")
    async def handler() -> Response[Any]:
        return await answer(store, pictures, delivered)

    return Litestar([handler], logging_config=None)


async def ask(app: Any) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        return await client.get("/")


async def test_links_are_answered_whole(store: AssetStore) -> None:
    """Links stand in `data`, what is known beside them, the receipt behind; nothing is null."""
    pictures = [LinkedPicture("http://x/a"), LinkedPicture("http://x/b", revised_prompt="b")]
    delivered = Delivered(background="opaque", output_format="png", size=Size(4, 3), quality="high")

    got = await ask(application(store, pictures, delivered))

    assert (got.status_code, got.headers["content-type"], got.headers["x-gateway-provider"]) == (200, "application/json", "local")
    assert got.json() == {
        "created": 1760000000,
        "data": [{"url": "http://x/a"}, {"url": "http://x/b", "revised_prompt": "b"}],
        "background": "opaque",
        "output_format": "png",
        "size": "4x3",
        "quality": "high",
        "metadata": METADATA,
    }


async def test_a_long_receipt_with_links_is_answered_whole(store: AssetStore) -> None:
    """Without an embedded picture there is nothing to stream, however long the receipt is."""
    receipt = {"normalization": [{"param": "x", "asked": "x" * 300_000}]}

    response = await image_answer(
        [LinkedPicture("http://x/a")], created=1, metadata=receipt, delivered=Delivered(), store=store, headers={}
    )

    assert json.loads(response.content)["metadata"] == receipt


@pytest.mark.parametrize(
    "delivered",
    [
        Delivered(),
        Delivered(background="auto", output_format="avif", quality="auto"),
        Delivered(quality="standard", output_format="jpg"),
    ],
)
async def test_values_that_openai_does_not_have_are_left_out(store: AssetStore, delivered: Delivered) -> None:
    """What a strict client would not take is absent."""
    got = await ask(application(store, [LinkedPicture("http://x/a")], delivered))

    assert set(got.json()) == {"created", "data", "metadata"}


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 2])
async def test_base64_is_the_files(store: AssetStore, keep: Callable[[str, bytes], Awaitable[StoredAsset]], size: int) -> None:
    """Whatever a file's length, its base64 is right, without line breaks, and the Content-Length is exact."""
    content = bytes(index * 7 % 251 for index in range(size))
    pictures = [EmbeddedPicture(await keep("a.png", content)), EmbeddedPicture(await keep("b.png", b"xy"), revised_prompt='"hat"')]

    got = await ask(application(store, pictures))

    assert int(got.headers["content-length"]) == len(got.content)
    data = got.json()["data"]
    assert base64.b64decode(data[0]["b64_json"], validate=True) == content
    assert data[1] == {"b64_json": base64.b64encode(b"xy").decode(), "revised_prompt": '"hat"'}
    assert got.json()["metadata"] == METADATA


async def test_blocks_of_a_remote_store_are_joined_right(tmp_path: Path) -> None:
    """Blocks whose length is no multiple of three make no padding in the middle."""

    class Uneven(AssetStore):
        async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
            for piece in (b"a", b"bc", b"defgh", b"", b"i" * 300_000, b"j"):
                yield piece

    store = Uneven(open_store("memory:///")._objects)
    got = await ask(application(store, [EmbeddedPicture(StoredAsset("a.png", 300_009))]))

    assert base64.b64decode(got.json()["data"][0]["b64_json"]) == b"abcdefgh" + b"i" * 300_000 + b"j"


async def test_a_large_answer_is_never_held_in_memory(
    store: AssetStore, keep: Callable[[str, bytes], Awaitable[StoredAsset]]
) -> None:
    """While 24 MiB are answered as base64, the answer has less than 3 MiB in memory."""
    app = application(store, [EmbeddedPicture(await keep("a.png", bytes(24 * 2**20)))])
    sent = 0
    enough = asyncio.Event()

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        nonlocal sent
        sent += len(message.get("body", b""))
        if sent > 32 * 2**20:
            enough.set()

    tracemalloc.start()
    try:
        scope: Any = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []}
        serving = asyncio.create_task(app(scope, receive, send))
        await enough.wait()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        serving.cancel()
        await asyncio.wait([serving])

    assert peak < 3 * 2**20


async def test_a_missing_picture_is_an_error_before_anything_is_sent(store: AssetStore) -> None:
    """A store without the first picture is found out in time for a proper error, for small pictures and large ones."""
    for size in (10, 10_000_000):
        with pytest.raises(AssetMissing):
            await answer(store, [EmbeddedPicture(StoredAsset("gone.png", size))])


async def test_a_picture_that_fails_half_way_breaks_the_connection(
    serve: Serve, store: AssetStore, keep: Callable[[str, bytes], Awaitable[StoredAsset]]
) -> None:
    """A file that ends too early cuts the answer off; no client takes it for whole."""
    asset = await keep("a.png", bytes(3_000_000))
    port = await serve(DrainedBody(application(store, [EmbeddedPicture(StoredAsset(asset.key, 4_000_000))])))

    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"http://127.0.0.1:{port}/")


async def test_a_short_picture_in_a_small_answer_is_an_error(
    store: AssetStore, keep: Callable[[str, bytes], Awaitable[StoredAsset]]
) -> None:
    """A small answer is made before it is sent, so a wrong length is found out."""
    asset = await keep("a.png", bytes(100))

    with pytest.raises(StorageFailed):
        await answer(store, [EmbeddedPicture(StoredAsset(asset.key, 101))])


async def test_the_answer_is_json_to_its_last_byte_over_a_connection(
    serve: Serve, store: AssetStore, keep: Callable[[str, bytes], Awaitable[StoredAsset]]
) -> None:
    """Through a real server a streamed answer comes with its length, unchunked."""
    port = await serve(DrainedBody(application(store, [EmbeddedPicture(await keep("a.png", bytes(1_000_000)))])))

    async with httpx.AsyncClient() as client:
        got = await client.get(f"http://127.0.0.1:{port}/")

    assert "transfer-encoding" not in got.headers
    assert len(json.loads(got.content)["data"][0]["b64_json"]) == 1_333_336
