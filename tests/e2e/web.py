"""Plain HTTP, as something that is not an OpenAI client speaks it."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    def json(self) -> Any:
        """The body's meaning."""
        return json.loads(self.body)


def fetch(url: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes | None = None) -> Answer:
    """Send one request and read its answer; redirects are not followed and no status raises."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    try:
        connection.request(method, parts._replace(scheme="", netloc="").geturl(), body=body, headers=dict(headers or {}))
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()
