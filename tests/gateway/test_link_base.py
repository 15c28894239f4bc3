"""What links begin with: the address that the request came to, found good before any work is done."""

import httpx
import pytest

from gateway.db.tables import JobState
from tests.gateway.conftest import Live, error_of, in_one_loop
from tests.gateway.test_bad_input import jobs_in


@pytest.mark.parametrize("host", ["a:b:c", "a:99999999", "a:0", "user:pw@evil", "[", "a/b", "a b", "a?b", "é"])
@in_one_loop
async def test_host_that_cannot_stand_in_a_link_is_refused_before_the_job(shared: Live, host: str):
    """A 400 that names the header, does not repeat its value, and leaves nothing behind; some are the framework's own."""
    before = await jobs_in(shared)

    error = error_of(await shared.edit(headers={"host": host.encode()}), 400)  # pyright: ignore[reportArgumentType] -- bytes as they go out

    assert (error["code"], await jobs_in(shared)) == ("invalid_value", before)
    assert "host" in error["message"].lower()
    assert "pw" not in error["message"]


@pytest.mark.parametrize("host", ["gateway", "images.example.com:8443", "127.0.0.1:80", "[::1]:8000", "my_service"])
@in_one_loop
async def test_links_begin_with_the_host_that_was_asked(shared: Live, host: str):
    """Names, addresses of both kinds, with a port and without."""
    response = await shared.edit(headers={"host": host})

    assert response.status_code == 200, response.text
    assert response.json()["data"][0]["url"].startswith(f"http://{host}/assets/")


@pytest.mark.parametrize(("said", "scheme"), [("https", "https"), ("wss", "https"), ("ws", "http"), ("http", "http")])
@in_one_loop
async def test_links_are_http_or_https_whatever_a_proxy_says(shared: Live, said: str, scheme: str):
    """Nobody can follow a link to a web socket."""
    response = await shared.edit(headers={"x-forwarded-proto": said})

    assert httpx.URL(response.json()["data"][0]["url"]).scheme == scheme


@in_one_loop
async def test_job_is_not_looked_up_for_a_host_that_cannot_stand_in_a_link(shared: Live):
    """The same 400 as for an edit; with a good host the job is there."""
    request_id = (await shared.edit()).headers["x-request-id"]

    error_of(await shared.client.get(f"/v1/jobs/{request_id}", headers={"host": "a:b:c"}), 400)

    assert (await shared.job(request_id)).state is JobState.COMPLETED
