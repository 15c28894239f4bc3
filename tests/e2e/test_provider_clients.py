"""The providers' official clients for Node, unmodified, against the stand-ins that ship with the gateway: `providers.mjs`."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.pictures import SIZE, look, png

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cases(node: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every case of the script printed."""
    picture = tmp_path_factory.mktemp("node") / "picture.png"
    picture.write_bytes(png())
    with simulated("fal") as fal, simulated("replicate") as replicate:
        printed = node(
            "providers.mjs",
            FAL_PROXY=f"{fal['origin']}/proxy",
            REPLICATE_API=replicate["base_url"],
            PICTURE=str(picture),
        )
    return {entry["case"]: entry for entry in map(json.loads, printed.splitlines())}


@contextmanager
def simulated(provider: str) -> Iterator[dict[str, str]]:
    """Run a stand-in; gives its addresses."""
    command = [sys.executable, "-m", "gateway", "sim", provider, "--port", "0", "--speed", "50"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env=os.environ) as process:
        assert process.stdout
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("case", "factor"), [("fal_subscribe", 3), ("fal_queue", 2), ("replicate_run", 3), ("replicate_run_official", 2)]
)
def test_pictures_come_back_enlarged(cases: dict[str, Any], case: str, factor: int):
    """Uploaded or inline, blocking or polling: the picture has the size that was asked."""
    image = look(base64.b64decode(cases[case]["bytes"]))
    assert (cases[case]["status"], image.size) == (200, (factor * SIZE[0], factor * SIZE[1]))


def test_fal_tells_its_progress(cases: dict[str, Any]):
    """The client saw the queue, and got the request's id."""
    case = cases["fal_subscribe"]
    assert case["seen"][-1] == "COMPLETED"
    assert case["width"] == 3 * SIZE[0]
    assert case["requestId"]


def test_refusals_are_the_clients_own(cases: dict[str, Any]):
    """Each is the client's error class, with status 422 and the field."""
    fal, replicate = cases["fal_refused"], cases["replicate_refused"]
    assert (fal["error"], fal["status"]) == ("ValidationError", 422)
    assert fal["body"]["detail"][0]["loc"] == ["body", "creativity"]
    assert (replicate["error"], replicate["status"]) == ("ApiError", 422)
    assert "input.seed: Invalid type. Expected: integer, given: null" in replicate["message"]


def test_replicate_predictions_live(cases: dict[str, Any]):
    """From starting to succeeded, with the paid seconds; the newest of the list; a cancelled one says so at once."""
    case = cases["replicate_wait"]
    assert (case["begun"], case["ended"], case["newest"]) == ("starting", "succeeded", True)
    assert case["metrics"]["predict_time"] == 13
    assert cases["replicate_cancel"]["status"] == "canceled"


def test_replicate_files_live(cases: dict[str, Any]):
    """Stored with type and metadata, listed, deleted."""
    case = cases["replicate_files"]
    assert (case["metadata"], case["type"], case["listed"], case["deleted"]) == ({"of": "a test"}, "image/png", True, True)


def test_replicate_tells_its_webhook_secret(cases: dict[str, Any]):
    """As Standard Webhooks write it."""
    assert cases["replicate_secret"]["secret"].startswith("whsec_")
