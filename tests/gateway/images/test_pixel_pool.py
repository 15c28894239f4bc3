"""Worker processes: what they do, what kills them, and who waits for whom."""

import asyncio
import contextlib
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from gateway.errors import Overloaded
from gateway.images.pixel_pool import PixelPool, PixelWorkFailed, WorkFailure
from gateway.images.pixel_work import UnreadablePicture, check_file, finish_file, prepare_file
from normalization.pixels.formats import Format, Size
from normalization.pixels.probe import InvalidImage
from normalization.plan import Composite, Encode, Fit
from normalization.request import FitMode, ImageRef


@pytest.fixture
async def pool():
    made = PixelPool(workers=2, max_queue=2, max_pixels_in_flight=100, deadline_s=30)
    yield made
    await made.close()


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    block = Image.Exif()
    block[0x0112] = 6
    Image.effect_noise((40, 20), 90).convert("RGB").save(path, exif=block)
    return path


def environment():
    return dict(os.environ)


def hungry():
    return len(bytearray(8 * 1024**3))


class Awkward(Exception):
    """Cannot be rebuilt from its arguments."""

    def __init__(self, one, two):
        super().__init__(one)


def awkward():
    raise Awkward("one", "two")


async def wait_until(true):
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - what is awaited happens in another process
            await asyncio.sleep(0.005)


def blocked(tmp_path, name):
    """A call that holds its worker until somebody opens the other end of a pipe in the file system, and the way to end it."""
    fifo = tmp_path / name
    os.mkfifo(fifo)
    return (Path.read_bytes, fifo), lambda: fifo.write_bytes(b"")


async def test_pictures_are_prepared_and_finished(pool, photo, tmp_path):
    """A turned photograph comes back upright, cut to size, in another format."""
    prepared, finished = tmp_path / "prepared", tmp_path / "finished"

    one = await pool.run(prepare_file, photo, ("clean",), prepared, pixels=10)
    steps = (Fit(Size(16, 16), FitMode.COVER), Encode(Format.WEBP))
    two = await pool.run(finish_file, prepared, steps, {}, finished, pixels=10)

    assert (one.format, one.size, one.orientation, one.metadata) == (Format.PNG, (20, 40), 1, False)
    assert (two.format, two.size) == (Format.WEBP, (16, 16))
    assert finished.exists()


async def test_companions_are_paths(pool, photo, tmp_path):
    """The caller's own pictures reach a step by their handles, cleaned like the result."""
    mask, result, target = tmp_path / "mask", tmp_path / "result", tmp_path / "target"
    Image.new("RGBA", (20, 40), (0, 0, 0, 255)).save(mask, "PNG")
    Image.new("RGB", (20, 40), "red").save(result, "PNG")
    step = Composite(ImageRef("image"), ImageRef("mask"))

    await pool.run(finish_file, result, (step, Encode(Format.PNG)), {step.image: photo, step.mask: mask}, target, pixels=1)

    prepare_file(photo, ("clean",), tmp_path / "upright")
    with Image.open(target) as got, Image.open(tmp_path / "upright") as kept:
        assert got.tobytes() == kept.tobytes()


async def test_damaged_pictures_raise_plainly_and_leave_nothing(pool, photo, tmp_path):
    """What cannot be decoded is one exception, through the process border, and no target stays."""
    whole = BytesIO()
    Image.effect_noise((40, 20), 90).save(whole, "PNG")
    content = whole.getvalue()
    start = content.index(b"IDAT")
    pixels = b"IDAT" + bytes(len(content) - start - 20)  # not zlib's, with the right checksum
    photo.write_bytes(content[:start] + pixels + zlib.crc32(pixels).to_bytes(4, "big") + content[-12:])

    with pytest.raises(UnreadablePicture) as failure:
        await pool.run(prepare_file, photo, ("clean",), tmp_path / "target", pixels=1)

    assert failure.value.detail
    assert "Traceback" in failure.value.__notes__[0]
    assert not (tmp_path / "target").exists()


async def test_refusals_keep_their_code(pool, photo):
    """What the header already gives away is refused as by the probe, whole across the border."""
    photo.write_bytes(photo.read_bytes()[:-2])

    with pytest.raises(InvalidImage, match="truncated") as refusal:
        await pool.run(check_file, photo, pixels=1)
    assert refusal.value.code == "invalid_image_file"


def test_picture_of_two_frames_in_a_jpeg_is_its_first(tmp_path):
    """What some cameras write (MPO) is a JPEG with another one behind it."""
    Image.new("RGB", (8, 6), "red").save(tmp_path / "two", "MPO", save_all=True, append_images=[Image.new("RGB", (8, 6), "blue")])

    info = prepare_file(tmp_path / "two", ("clean",), tmp_path / "target")

    with Image.open(tmp_path / "target") as image:
        assert (info.size, image.getpixel((4, 3))[2] < 10) == ((8, 6), True)


def test_decoder_that_sees_more_than_the_header_is_not_followed(tmp_path):
    """A file that tells two readers two sizes is refused before the larger one is decoded."""
    frame = BytesIO()
    Image.new("RGB", (64, 64)).save(frame, "WEBP")
    content = frame.getvalue()[12:]
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (7).to_bytes(3, "little") + (7).to_bytes(3, "little")
    body = b"WEBP" + extended + content
    (tmp_path / "lie").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)

    with pytest.raises(UnreadablePicture):
        check_file(tmp_path / "lie")


def test_half_written_target_is_removed(photo, tmp_path):
    """When an encoder fails there is no target."""
    with pytest.raises(ValueError, match="encode"):
        finish_file(photo, (), {}, tmp_path / "target")
    assert not (tmp_path / "target").exists()


async def test_workers_are_light_and_know_no_secrets(pool, monkeypatch):
    """Neither the server nor the database is imported, and no key is in the environment."""
    monkeypatch.setenv("FAL_KEY", "secret")

    known = await pool.run(environment, pixels=1)

    heavy = {"litestar", "sqlalchemy", "pydantic", "httpx", "aiohttp", "asyncio", "numpy", "gateway.settings", "pillow_heif"}
    assert heavy.isdisjoint({*_imported_by_the_worker()})
    assert "FAL_KEY" not in known


def _imported_by_the_worker():
    """What the worker's own modules pull in, without the test module that the other calls bring along."""
    script = "import sys, gateway.images.pixel_worker, gateway.images.pixel_work; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()


async def test_crash_fails_one_call_only(pool):
    """A worker that dies takes its own call with it; the next one has another worker."""
    before = await pool.run(os.getpid, pixels=1)

    with pytest.raises(PixelWorkFailed, match="-6") as failure:
        await pool.run(os.abort, pixels=1)

    assert failure.value.failure is WorkFailure.CRASHED
    assert await pool.run(os.getpid, pixels=1) not in (before, os.getpid())
    assert (pool.running, pool.waiting) == (0, 0)


async def test_death_of_an_idle_worker_is_not_noticed_by_the_next_call(pool):
    """A worker killed between two calls is replaced."""
    victim = await pool.run(os.getpid, pixels=1)
    os.kill(victim, signal.SIGKILL)
    await wait_until(lambda: not pool._idle[0].alive)

    assert await pool.run(os.getpid, pixels=1) != victim


async def test_memory_is_bounded(pool):
    """A picture that wants more than the limit fails with the reason; the machine is left alone."""
    with pytest.raises(PixelWorkFailed) as failure:
        await pool.run(hungry, pixels=1)
    assert failure.value.failure is WorkFailure.MEMORY
    assert await pool.run(len, "abc", pixels=1) == 3


async def test_deadline_kills_the_worker(tmp_path):
    """A call that takes too long fails, and nothing goes on behind its back."""
    pool = PixelPool(workers=1, max_queue=1, max_pixels_in_flight=1, deadline_s=20)
    victim = await pool.run(os.getpid, pixels=1)
    call, _ = blocked(tmp_path, "never")
    pool._deadline_s = 0.05

    with pytest.raises(PixelWorkFailed) as failure:
        await pool.run(*call, pixels=1)

    assert failure.value.failure is WorkFailure.DEADLINE
    assert not _exists(victim)
    await pool.close()


async def test_cancelled_call_gives_its_place_back(pool, tmp_path):
    """A caller that leaves ends the work, and its place is free again."""
    call, _ = blocked(tmp_path, "left")
    task = asyncio.create_task(pool.run(*call, pixels=100))
    await wait_until(lambda: pool.running == 1)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (pool.running, pool.waiting) == (0, 0)
    assert await pool.run(len, "abc", pixels=100) == 3


async def test_queue_is_bounded(tmp_path):
    """Beyond the queue a call is refused at once, with a time to come back."""
    pool = PixelPool(workers=1, max_queue=1, max_pixels_in_flight=1, deadline_s=20)
    call, end = blocked(tmp_path, "gate")
    running = asyncio.create_task(pool.run(*call, pixels=1))
    await wait_until(lambda: pool.running == 1)
    waiting = asyncio.create_task(pool.run(len, "abc", pixels=1))
    await wait_until(lambda: pool.waiting == 1)

    with pytest.raises(Overloaded) as refusal:
        await pool.run(len, "abc", pixels=1)

    assert refusal.value.retry_after_s >= 1
    assert (pool.running, pool.waiting) == (1, 1)
    await asyncio.to_thread(end)
    assert (await running, await waiting) == (b"", 3)
    await pool.close()


async def test_pixels_in_flight_are_bounded_and_nobody_starves(pool, tmp_path):
    """A picture beyond the whole budget runs alone; small ones behind it wait, so that its turn comes."""
    call, end = blocked(tmp_path, "gate")
    small = asyncio.create_task(pool.run(*call, pixels=60))
    await wait_until(lambda: pool.running == 1)
    order = []

    async def report(name, pixels):
        await pool.run(len, name, pixels=pixels)
        order.append((name, pool.running))

    huge = asyncio.create_task(report("huge", 1000))
    await wait_until(lambda: pool.waiting == 1)
    last = asyncio.create_task(report("last", 1))
    await wait_until(lambda: pool.waiting == 2)

    assert pool.running == 1
    await asyncio.to_thread(end)
    await asyncio.gather(small, huge, last)
    assert [name for name, _ in order] == ["huge", "last"]


async def test_waiting_call_that_is_cancelled_lets_the_next_one_pass(pool, tmp_path):
    """A large picture that gives up no longer holds back the small ones."""
    call, end = blocked(tmp_path, "gate")
    first = asyncio.create_task(pool.run(*call, pixels=60))
    await wait_until(lambda: pool.running == 1)
    huge = asyncio.create_task(pool.run(len, "huge", pixels=1000))
    small = asyncio.create_task(pool.run(len, "small", pixels=1))
    await wait_until(lambda: pool.waiting == 2)

    huge.cancel()

    assert await small == 5
    await asyncio.to_thread(end)
    await first


async def test_strange_exceptions_come_back_as_words(pool):
    """An exception that cannot be copied does not break the worker."""
    with pytest.raises(RuntimeError, match="Awkward: one"):
        await pool.run(awkward, pixels=1)
    assert await pool.run(len, "abc", pixels=1) == 3


async def test_close_ends_everything(tmp_path):
    """Workers are gone after closing, busy or not; later calls are refused."""
    pool = PixelPool(workers=2, max_queue=5, max_pixels_in_flight=9, deadline_s=20)
    await pool.warm()
    pids = [worker._process.pid for worker in pool._workers]
    calls = [blocked(tmp_path, name)[0] for name in "abc"]
    tasks = [asyncio.create_task(pool.run(*call, pixels=1)) for call in calls]
    await wait_until(lambda: (pool.running, pool.waiting) == (2, 1))

    await pool.close()
    ends = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(end) for end in ends] == [PixelWorkFailed, PixelWorkFailed, Overloaded]
    assert len(pids) == 2
    assert not any(map(_exists, pids))
    with pytest.raises(Overloaded, match="shutting down"):
        await pool.run(len, "abc", pixels=1)


PARENT = """
import asyncio, sys
from pathlib import Path
from gateway.images.pixel_pool import PixelPool
async def main():
    pool = PixelPool(2, 2, 9, 60)
    await pool.warm()
    print(*(worker._process.pid for worker in pool._workers), flush=True)
    await pool.run(Path.read_bytes, Path(sys.argv[1]), pixels=1)
if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.run(main())
asyncio.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_workers_die_with_the_gateway(tmp_path, loop):
    """After SIGKILL of the gateway neither the idle nor the busy worker is left; signals to the group do not reach them."""
    call, _ = blocked(tmp_path, "never")
    command = [sys.executable, "-c", PARENT, str(call[1]), loop]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        for pid in pids:
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        assert len(pids) == 2
        assert all(map(_exists, pids))
        parent.kill()
    deadline = time.monotonic() + 20
    while any(map(_exists, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(_exists, pids))


def _exists(pid):
    """Whether a process lives; one that nobody has buried does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False
