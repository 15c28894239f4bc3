"""The asset store: one suite for files, memory and S3."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from gateway.assets import store as store_module
from gateway.assets.store import BLOCK_BYTES, AssetMissing, AssetStore, StorageFailed, open_store
from gateway.errors import Overloaded

Keep = Callable[[str, bytes], Awaitable[int]]


class Bucket:
    """As much of S3 as the store uses: put, get with a range, head and delete, one folder, no signatures checked."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    async def put(self, request: web.Request) -> web.Response:
        self.objects[request.path] = await request.read()
        return web.Response(headers={"ETag": '"x"'})

    async def get(self, request: web.Request) -> web.Response:
        if request.path not in self.objects:
            return web.Response(status=404, text="<Error><Code>NoSuchKey</Code></Error>")
        content = self.objects[request.path]
        headers = {"ETag": '"x"', "Last-Modified": "Wed, 21 Oct 2026 07:28:00 GMT"}
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(len(content))})
        wanted = request.http_range
        if wanted.start is None and wanted.stop is None:
            return web.Response(body=content, headers=headers)
        start, stop = wanted.start or 0, min(wanted.stop or len(content), len(content))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return web.Response(status=206, body=content[start:stop], headers=headers)

    async def delete(self, request: web.Request) -> web.Response:
        """DeleteObjects: keys in, keys out, whether they were there or not."""
        keys = re.findall("<Key>(.*?)</Key>", await request.text())
        for key in keys:
            self.objects.pop(f"{request.path.rstrip('/')}/{key}", None)
        deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        return web.Response(text=f"<DeleteResult>{deleted}</DeleteResult>", content_type="application/xml")


@pytest.fixture
async def bucket_url() -> AsyncIterator[str]:
    bucket = Bucket()
    app = web.Application(client_max_size=2**26)
    app.router.add_put("/{key:.*}", bucket.put)
    app.router.add_get("/{key:.*}", bucket.get)
    app.router.add_post("/{key:.*}", bucket.delete)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture(params=["file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> AssetStore:
    if request.param == "file":
        return open_store((tmp_path / "as sets").as_uri())
    if request.param == "memory":
        return open_store("memory:///")
    endpoint = request.getfixturevalue("bucket_url")
    return open_store(
        "s3://bucket/pre/fix",
        s3={"endpoint": endpoint, "region": "us-east-1", "access_key_id": "a", "secret_access_key": "b"},
    )


@pytest.fixture
def keep(store: AssetStore, tmp_path: Path) -> Keep:
    async def keep(key: str, content: bytes) -> int:
        path = tmp_path / "made"
        path.write_bytes(content)
        kept = await store.put_file(path, key)
        path.unlink()
        return kept.size_bytes

    return keep


async def read(store: AssetStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([block async for block in store.read(key, start, end)])


@pytest.mark.parametrize("size", [0, 10, BLOCK_BYTES, 6 * BLOCK_BYTES + 5])
async def test_what_is_stored_is_read_back(store: AssetStore, keep: Keep, size: int) -> None:
    """A file of any length comes back as it was, in blocks of bounded size, also when its source is gone."""
    content = (b"0123456789" * (size // 10 + 1))[:size]

    assert await keep("asset_1.png", content) == size

    assert await store.size("asset_1.png") == size
    blocks = [block async for block in store.read("asset_1.png")]
    assert b"".join(blocks) == content
    assert all(len(block) <= BLOCK_BYTES for block in blocks)


@pytest.mark.parametrize(("start", "end"), [(0, 3), (5, 9), (100, None), (0, 0), (999, 1000), (10, 900_001)])
async def test_parts_are_read(store: AssetStore, keep: Keep, start: int, end: int | None) -> None:
    """Any part, also one over several blocks, is exactly that part."""
    content = bytes(index % 251 for index in range(1_000_000))
    await keep("asset_1.png", content)

    assert await read(store, "asset_1.png", start, end) == content[start:end]


async def test_a_file_shorter_than_promised_is_a_failure(store: AssetStore, keep: Keep) -> None:
    """Reading past the end fails instead of giving less."""
    await keep("asset_1.png", b"abc")

    with pytest.raises(StorageFailed):
        await read(store, "asset_1.png", 0, 4)


async def test_what_is_not_there_is_missing(store: AssetStore) -> None:
    """Reading and measuring an unknown key is a 404; removing one is nothing."""
    with pytest.raises(AssetMissing):
        await read(store, "asset_1.png")
    with pytest.raises(AssetMissing):
        await store.size("asset_1.png")
    await store.delete("asset_1.png")


async def test_what_is_deleted_is_gone(store: AssetStore, keep: Keep) -> None:
    """After a delete the key is unknown."""
    await keep("folder/asset_1.png", b"abc")
    await store.delete("folder/asset_1.png")

    with pytest.raises(AssetMissing):
        await store.size("folder/asset_1.png")


async def test_storing_again_replaces(store: AssetStore, keep: Keep) -> None:
    """A step that is repeated after a crash may store its result once more."""
    await keep("asset_1.png", b"first")
    await keep("asset_1.png", b"second")

    assert await read(store, "asset_1.png") == b"second"


@pytest.mark.parametrize("key", ["../secret", "/etc/passwd", "a/../b", "", "a//b", ".hidden", "a\0b", "a b"])
async def test_keys_do_not_lead_elsewhere(store: AssetStore, key: str) -> None:
    """A key that is not of our making is unknown, whatever it looks like."""
    with pytest.raises(AssetMissing):
        await read(store, key)
    with pytest.raises(AssetMissing):
        await store.delete(key)


async def test_a_store_that_works_answers_the_ping(store: AssetStore) -> None:
    """A ping returns if the store is there."""
    await store.ping()


async def test_a_store_that_is_gone_fails_the_ping(tmp_path: Path) -> None:
    """Without its folder, a local store is not ready."""
    store = open_store((tmp_path / "assets").as_uri())
    (tmp_path / "assets").rmdir()

    with pytest.raises(StorageFailed):
        await store.ping()


async def test_local_files_are_linked(tmp_path: Path) -> None:
    """On one file system nothing is copied."""
    store = open_store((tmp_path / "assets").as_uri())
    (tmp_path / "made").write_bytes(b"abc")

    await store.put_file(tmp_path / "made", "asset_1.png")

    assert (tmp_path / "made").samefile(tmp_path / "assets/asset_1.png")


async def test_where_links_are_impossible_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another file system the bytes are copied."""

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(store_module.os, "link", refuse)
    store = open_store((tmp_path / "assets").as_uri())
    (tmp_path / "made").write_bytes(b"abc")

    await store.put_file(tmp_path / "made", "asset_1.png")

    assert (tmp_path / "assets/asset_1.png").read_bytes() == b"abc"


async def test_a_full_disk_is_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store without room is 503 with a time to try again."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "link", refuse)
    store = open_store((tmp_path / "assets").as_uri())
    (tmp_path / "made").write_bytes(b"abc")

    with pytest.raises(Overloaded) as caught:
        await store.put_file(tmp_path / "made", "asset_1.png")

    assert caught.value.retry_after_s


@pytest.mark.parametrize("url", ["", "http://a/b", "file://elsewhere/a", "s3://", "gs://a", "/tmp/a"])
def test_other_addresses_are_refused(url: str) -> None:
    """Only folders, buckets and memory are storage."""
    with pytest.raises(ValueError, match="storage address"):
        open_store(url)
