"""The bundled backend as a process: Cog's API over HTTP, its own additions, and how it ends."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]
LONG = 12.0
"""Seconds within which anything here must happen, on a busy machine too."""


class Backend:
    """A running backend and a client of it."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, temporary: Path, errors: Path) -> None:
        self.process = process
        self.http = httpx.Client(base_url=url, timeout=60)
        self.port = int(url.rpartition(":")[2])
        self.temporary = temporary
        self.errors = errors

    def put(self, id_: str, *, prefer: str | None = None, **inputs: object) -> httpx.Response:
        return self.http.put(f"/predictions/{id_}", json={"input": inputs}, headers={"prefer": prefer} if prefer else {})

    def state(self, id_: str) -> dict[str, Any]:
        return self.http.get(f"/predictions/{id_}").json()

    def files(self) -> list[Path]:
        return [path for path in self.temporary.rglob("*") if path.is_file()]

    def workers(self) -> list[int]:
        # /proc/…/children is only exact while nothing forks (proc(5)), so every process is asked for its parent.
        running = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return sorted(pid for pid in running if _parent(pid) == self.process.pid)


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


@contextmanager
def backend(folder: Path, *options: str) -> Iterator[Backend]:
    """Start one with a temporary folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    errors = folder / "stderr"
    temporary = folder / "tmp"
    temporary.mkdir()
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "providers.local.server", "--workers", "1", *options],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(temporary)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdin
    assert process.stdout
    try:
        line = process.stdout.readline()
        assert line, errors.read_text()
        running = Backend(process, json.loads(line)["url"], temporary, errors)
        with running.http:
            until(lambda: running.http.get("/health-check").json()["status"] == "READY")
            yield running
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def until(true: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def png(width: int = 12, height: int = 8, mode: str = "RGB") -> str:
    file = io.BytesIO()
    Image.radial_gradient("L").resize((width, height)).convert(mode).save(file, "PNG")
    return data_uri(file.getvalue())


def opened(output: str) -> Image.Image:
    head, _, payload = output.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(payload, validate=True)))


SLOW: dict[str, object] = {"image": png(1200, 1200), "scale_factor": 8}
"""Work for some ten seconds, in tiles of some tenths of one."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """One for all tests that leave it as it was. Nothing that they do makes it complain."""
    with backend(tmp_path_factory.mktemp("backend")) as running:
        yield running
        assert running.errors.read_text() == ""


@pytest.fixture
def running_slowly(shared: Backend, request: pytest.FixtureRequest) -> Iterator[str]:
    """The id of a prediction that is under way."""
    id_ = f"slow-{request.node.name}"
    assert shared.put(id_, prefer="respond-async", **SLOW).json() == {"id": id_, "status": "starting"}
    until(lambda: shared.state(id_)["status"] == "processing")
    yield id_
    shared.http.post(f"/predictions/{id_}/cancel")


def test_put_answers_with_the_picture(shared: Backend):
    """A sync PUT is answered with Cog's object, the picture in it, and the time of the run."""
    answer = shared.put("sync", image=png(12, 8), scale_factor=2.5)
    body = answer.json()
    assert (answer.status_code, body["id"], body["status"], body["progress"]) == (200, "sync", "succeeded", 1.0)
    assert opened(body["output"]).size == (30, 20)
    assert 0 < body["metrics"]["predict_time"] < LONG


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_mode_is_kept(mode: str, shared: Backend):
    """Gray comes back gray, transparency comes back."""
    assert opened(shared.put(f"mode-{mode}", image=png(mode=mode)).json()["output"]).mode == mode


def test_post_makes_an_id(shared: Backend):
    """A POST without an id gets one, and the prediction can be looked up by it."""
    body = shared.http.post("/predictions", json={"input": {"image": png()}}).json()
    assert shared.state(body["id"])["output"] == body["output"]


def test_repeated_put_is_answered_and_not_run(shared: Backend):
    """The same id again gives the finished prediction, to the microsecond, whatever the body says."""
    first = shared.put("again", image=png(), scale_factor=2).json()
    second = shared.put("again", image=png(), scale_factor=3)
    assert (second.status_code, second.json()) == (200, first)


def test_async_is_accepted_then_polled(shared: Backend):
    """`Prefer: respond-async` is answered with 202; GET tells the progress, and in the end the result."""
    answer = shared.put("async", prefer="respond-async", image=png())
    assert (answer.status_code, answer.json()) == (202, {"id": "async", "status": "starting"})
    until(lambda: shared.state("async")["status"] == "succeeded")
    assert opened(shared.state("async")["output"]).size == (24, 16)


def test_progress_rises_while_running(shared: Backend, running_slowly: str):
    """Progress is told between 0 and 1, and never falls."""
    seen = [0.0]
    deadline = time.monotonic() + LONG
    while len(set(seen)) < 4 and time.monotonic() < deadline:
        seen.append(shared.state(running_slowly)["progress"])
    assert seen == sorted(seen)
    assert 0 < seen[-1] < 1


def test_running_id_is_not_started_again(shared: Backend, running_slowly: str):
    """A PUT of an id under way is answered with 202 and the present state, as Cog does."""
    answer = shared.put(running_slowly, **SLOW)
    assert (answer.status_code, answer.json()["status"]) == (202, "processing")


def test_health_says_busy(shared: Backend, running_slowly: str):
    """While all workers work, the state is BUSY; the model and its version are named."""
    health = shared.http.get("/health-check").json()
    assert (health["status"], health["queue"], health["model"]) == ("BUSY", 0, "detail-upscaler")
    assert health["setup"]["status"] == "succeeded"
    assert health["version"]["coglet"]


def test_cancel_stops_the_work(shared: Backend, running_slowly: str):
    """A cancelled prediction stops within a tile, keeps its worker, and leaves no file."""
    workers = shared.workers()
    before = time.monotonic()
    answer = shared.http.post(f"/predictions/{running_slowly}/cancel")
    assert (answer.status_code, answer.json()) == (200, {})
    assert time.monotonic() - before < 3
    assert shared.state(running_slowly)["status"] == "canceled"
    assert shared.http.get("/health-check").json()["status"] == "READY"
    assert shared.workers() == workers


def test_cancelled_put_is_answered(shared: Backend):
    """A sync PUT that somebody cancels is answered with 200 and `canceled`, as Cog does."""
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(shared.put("to-cancel", **SLOW)))
    waiting.start()
    until(lambda: shared.state("to-cancel").get("status") == "processing")
    shared.http.post("/predictions/to-cancel/cancel")
    waiting.join(LONG)
    assert [(answer.status_code, answer.json()["status"]) for answer in answers] == [(200, "canceled")]


def test_unknown_ids_are_not_found(shared: Backend):
    """Neither looking up nor cancelling finds what never was."""
    assert shared.http.get("/predictions/never").status_code == 404
    answer = shared.http.post("/predictions/never/cancel")
    assert (answer.status_code, answer.json()) == (404, {})


def test_crash_costs_one_prediction(shared: Backend, running_slowly: str):
    """A worker that dies fails its own prediction; the next one gets another worker."""
    [worker] = shared.workers()
    os.kill(worker, signal.SIGKILL)
    until(lambda: shared.state(running_slowly)["status"] == "failed")
    assert "SIGKILL" in shared.state(running_slowly)["error"]
    assert shared.put("after-crash", image=png()).json()["status"] == "succeeded"


@pytest.mark.parametrize(
    ("content", "error"),
    [(b"not a picture", "cannot identify image file"), (b"\x89PNG\r\n\x1a\n" + bytes(60), "cannot identify image file")],
    ids=["text", "broken"],
)
def test_unreadable_picture_fails(content: bytes, error: str, shared: Backend):
    """What is no picture fails in the words of real containers, with status 200."""
    answer = shared.http.post("/predictions", json={"input": {"image": data_uri(content)}})
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert error in answer.json()["error"]


def test_too_large_a_result_is_refused_before_work(shared: Backend):
    """More pixels than are ever made are refused at once, with the numbers."""
    body = shared.put("huge", image=png(3000, 2500, "L"), scale_factor=8).json()
    assert body["status"] == "failed"
    assert "24000x20000" in body["error"]


@pytest.mark.parametrize(
    ("inputs", "place"),
    [
        ({}, "image"),
        ({"image": "https://example.com/a.png"}, "image"),
        ({"image": png(), "scale_factor": 9}, "scale_factor"),
        ({"image": png(), "scale_factor": "2"}, "scale_factor"),
    ],
)
def test_wrong_input_is_refused(inputs: dict[str, object], place: str, shared: Backend):
    """A refusal has Cog's shape and names the input."""
    answer = shared.http.post("/predictions", json={"input": inputs})
    assert answer.status_code == 422
    assert [problem["loc"] for problem in answer.json()["detail"]] == [["body", "input", place]]
    assert all(problem.keys() == {"loc", "msg", "type"} for problem in answer.json()["detail"])


def test_unknown_input_is_ignored_but_not_in_silence(shared: Backend):
    """As with Cog, an input that the model does not have changes nothing; here the logs say so."""
    answer = shared.http.post("/predictions", json={"input": {"image": png(), "creativity": 0.3, "zoom": 1}})
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.json()["logs"] == "ignored, because this model has no such input: creativity, zoom\n"


def test_ids_must_agree(shared: Backend):
    """An id in the body that is not the one in the address is refused, in Cog's words."""
    answer = shared.http.put("/predictions/one", json={"id": "two", "input": {"image": png()}})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["msg"] == "prediction ID must match the ID supplied in the URL"


def test_malformed_body_is_refused(shared: Backend):
    """What is no JSON is a 400."""
    assert shared.http.post("/predictions", content=b"{bad").status_code == 400


def test_body_over_the_limit_is_refused(shared: Backend):
    """A body above the limit is answered with 413, and the client gets to read it."""
    piece = b" " * (1 << 20)
    answer = shared.http.post("/predictions", content=(piece for _ in range(101)))
    assert answer.status_code == 413


def test_web_pages_are_not_served(shared: Backend):
    """A page in a browser on the same machine cannot use the backend, nor shut it down."""
    assert shared.http.post("/shutdown", headers={"origin": "https://example.com"}).status_code == 403


def test_schema_has_ranges_and_defaults(shared: Backend):
    """The OpenAPI document tells what the model takes, as a built Cog container's does."""
    schemas = shared.http.get("/openapi.json").json()["components"]["schemas"]
    facts = schemas["Input"]["properties"]["scale_factor"]
    assert (facts["type"], facts["default"], facts["minimum"], facts["maximum"]) == ("number", 2.0, 1, 8)
    assert schemas["Input"]["required"] == ["image"]
    assert schemas["Output"] == {"title": "Output", "type": "string", "format": "uri"}


def test_root_names_the_routes(shared: Backend):
    """The root lists where everything is, as Cog's does."""
    assert shared.http.get("/").json()["predictions_url"] == "/predictions"


def raw_put(port: int, id_: str, inputs: dict[str, object]) -> socket.socket:
    """Send a PUT and do not wait for its answer."""
    body = json.dumps({"input": inputs}).encode()
    connection = socket.create_connection(("127.0.0.1", port))
    head = f"PUT /predictions/{id_} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_work_stops_when_its_only_caller_leaves(shared: Backend):
    """A sync caller that hangs up cancels the run, as with Cog, and the worker is free."""
    connection = raw_put(shared.port, "left", SLOW)
    until(lambda: shared.http.get("/health-check").json()["status"] == "BUSY")
    connection.close()
    until(lambda: shared.http.get("/health-check").json()["status"] == "READY")
    assert shared.state("left")["status"] == "canceled"


def test_work_goes_on_when_somebody_else_has_asked(shared: Backend):
    """A run that was looked up in the meantime is not cancelled when its first caller hangs up."""
    connection = raw_put(shared.port, "asked", {**SLOW, "scale_factor": 2})
    until(lambda: shared.state("asked").get("status") == "processing")
    connection.close()
    until(lambda: shared.state("asked")["status"] != "processing")
    assert shared.state("asked")["status"] == "succeeded"


def test_broken_upload_leaves_nothing(shared: Backend):
    """A caller that leaves half way through its body leaves no prediction and no file."""
    files = shared.files()
    connection = socket.create_connection(("127.0.0.1", shared.port))
    connection.sendall(b"PUT /predictions/half HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{")
    connection.close()
    assert shared.put("whole", image=png()).status_code == 200
    assert shared.http.get("/predictions/half").status_code == 404
    assert len(shared.files()) == len(files) + 1


def test_full_queue_is_refused(tmp_path: Path):
    """With one worker and one place in the queue, the third is refused in Cog's words, and a cancelled one makes room."""
    with backend(tmp_path, "--queue", "1") as own:
        own.put("first", prefer="respond-async", **SLOW)
        own.put("second", prefer="respond-async", **SLOW)
        assert own.http.get("/health-check").json()["queue"] == 1
        refused = own.put("third", image=png())
        assert refused.status_code == 409
        assert refused.json() == {"error": "At capacity - all prediction slots busy", "status": "failed"}
        own.http.post("/predictions/second/cancel")
        assert own.state("second")["status"] == "canceled"
        assert own.put("third", prefer="respond-async", image=png()).status_code == 202
        own.http.post("/predictions/first/cancel")
        until(lambda: own.state("third")["status"] == "succeeded")


def test_sigterm_lets_running_work_end(tmp_path: Path):
    """On SIGTERM the running PUT is answered, then the process ends with 0 and leaves no file and no worker."""
    with backend(tmp_path) as own:
        answers: list[httpx.Response] = []
        waiting = threading.Thread(target=lambda: answers.append(own.put("last", image=png(500, 500), scale_factor=4)))
        waiting.start()
        until(lambda: own.state("last").get("status") == "processing")
        workers = own.workers()
        own.process.terminate()
        waiting.join(LONG)
        assert own.process.wait(LONG) == 0
        assert [opened(answer.json()["output"]).size for answer in answers] == [(2000, 2000)]
        assert own.files() == []
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
        assert own.errors.read_text() == ""


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_end_of_stdin_ends_it(busy: bool, tmp_path: Path):
    """When the parent is gone, the process ends at once, with all its files and workers."""
    with backend(tmp_path, "--exit-with-parent") as own:
        if busy:
            own.put("abandoned", prefer="respond-async", **SLOW)
            until(lambda: own.state("abandoned")["status"] == "processing")
        workers = own.workers()
        assert own.process.stdin
        own.process.stdin.close()
        assert own.process.wait(LONG) == 0
        assert own.files() == []
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_workers_outlive_no_killed_server(tmp_path: Path):
    """When the server itself is killed, its busy worker notices and ends."""
    with backend(tmp_path) as own:
        own.put("abandoned", prefer="respond-async", **SLOW)
        until(lambda: own.state("abandoned")["progress"] > 0)
        workers = own.workers()
        own.process.kill()
        own.process.wait()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
        assert own.errors.read_text() == ""


def test_shutdown_ends_it(tmp_path: Path):
    """`POST /shutdown` is answered, and then the process ends."""
    with backend(tmp_path) as own:
        assert own.http.post("/shutdown").json() == {}
        assert own.process.wait(LONG) == 0
