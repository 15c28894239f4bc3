"""Who may ask: a good key on every route but the public ones, and what strangers hear."""

import httpx
import pytest

from tests.gateway.conftest import Live, error_of, in_one_loop, picture

CLOSED = ["GET /v1/models", "GET /v1/models/detail-upscaler", "POST /v1/images/edits", "GET /v1/jobs/req_1"]
OPEN = ["/health/live", "/health/ready", "/metrics", "/openapi.json", "/docs"]


@in_one_loop
@pytest.mark.parametrize("route", CLOSED)
@pytest.mark.parametrize("key", [None, "", "Bearer", "Basic abc", "Bearer igw_unknown", "Bearer \u00e9", "Bearer " + "k" * 5000])
async def test_closed_routes_want_a_good_key(shared: Live, route: str, key: str | None):
    """401 in OpenAI's shape, whatever stands in the place of a key; it is never shown whole."""
    headers = {} if key is None else {"authorization": key.encode()}
    async with httpx.AsyncClient(base_url=shared.url, trust_env=False) as stranger:
        response = await stranger.request(*route.split(), headers=headers)

    error = error_of(response, 401)
    assert error["type"] == "invalid_request_error"
    assert error["code"] in (None, "invalid_api_key")
    assert "igw_unknown" not in response.text


@in_one_loop
@pytest.mark.parametrize("path", OPEN)
async def test_open_routes_want_none(shared: Live, path: str):
    """Health, counters and documents are for anybody."""
    async with httpx.AsyncClient(base_url=shared.url, trust_env=False) as stranger:
        response = await stranger.get(path)

    assert response.status_code == 200
    assert response.headers["x-request-id"].startswith("req_")


async def test_revoked_key_is_refused_at_once(on_both: Live):
    """In the process that revoked it, the next request already fails."""
    made = await on_both.parts.tenants.create_key("acme", "second")
    headers = {"authorization": f"Bearer {made.secret}"}
    before = await on_both.client.get("/v1/models", headers=headers)

    await on_both.parts.tenants.revoke_key(made.key_id)

    assert before.status_code == 200
    assert error_of(await on_both.client.get("/v1/models", headers=headers), 401)["code"] == "invalid_api_key"


async def test_another_tenants_job_does_not_exist(on_both: Live):
    """One tenant's request id is worth nothing to another."""
    request_id = (await on_both.edit()).headers["x-request-id"]
    other = await on_both.parts.tenants.create_key("other", "key")

    theirs = await on_both.client.get(f"/v1/jobs/{request_id}", headers={"authorization": f"Bearer {other.secret}"})
    ours = await on_both.client.get(f"/v1/jobs/{request_id}")

    error_of(theirs, 404)
    assert ours.json()["result"]["data"][0]["url"].startswith(on_both.url)


async def test_keys_are_stored_as_hashes_only(live: Live, tmp_path):
    """The database file does not hold the secret."""
    await live.edit(picture())

    stored = b"".join(path.read_bytes() for path in tmp_path.glob("gateway.db*"))
    assert live.key.encode() not in stored
