"""A server of an operator's own: Cog's prediction API in a thread, with a model that sets several pictures side by side."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread

from PIL import Image

MODEL_FILE = """
id = "collage"
name = "Collage"
modes = ["edit"]
created = 1795219200

[[offers]]
provider = "local"
endpoint = "collage"
source = "tests/e2e/collage.py"
checked = 2026-11-21
price = { local = true, typical_s = "1" }

[offers.params]
prompt = "passthrough"
image = { rename = "images", max = 4, required = true }
output_format = { emulate = "encode" }
"""


class Collage(BaseHTTPRequestHandler):
    """Answers predictions in the request that made them. Source: replicate/cog, docs/http.md."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """`GET /health-check`."""
        self._answer({"status": "READY"})

    def do_PUT(self) -> None:
        """`PUT /predictions/{id}`: the pictures of `input.images`, left to right, as one PNG."""
        given = json.loads(self._body())["input"]
        joined = join([open_data_url(url) for url in given["images"]])
        output = base64.b64encode(joined).decode()
        self._answer({"status": "succeeded", "output": f"data:image/png;base64,{output}", "metrics": {"predict_time": 0.5}})

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        """The request's body, of known length or chunked."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        pieces: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _answer(self, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def open_data_url(url: str) -> Image.Image:
    """The picture in a data URL."""
    return Image.open(BytesIO(base64.b64decode(url.partition(",")[2])))


def join(images: list[Image.Image]) -> bytes:
    """Pictures side by side, as a PNG."""
    wide = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)))
    left = 0
    for image in images:
        wide.paste(image, (left, 0))
        left += image.width
    stream = BytesIO()
    wide.save(stream, "PNG", compress_level=1)  # not the very bytes that came in, even for a single picture
    return stream.getvalue()


@contextmanager
def collage_server() -> Iterator[str]:
    """The address of the server, while the block runs."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Collage) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def write_model_file(folder: Path) -> Path:
    """Put the model's file into a new folder, and give the folder."""
    folder.mkdir()
    (folder / "collage.toml").write_text(MODEL_FILE)
    return folder
