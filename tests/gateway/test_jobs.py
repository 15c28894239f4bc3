"""`GET /v1/jobs/{id}`: the answer again, and what is said once its pictures are gone."""

from datetime import timedelta
from typing import Any

import pytest

from gateway.assets.retention import Retention
from gateway.times import now
from tests.gateway.conftest import Live, in_one_loop


@pytest.mark.parametrize("fields", [{}, {"fit": "pad", "size": "20x20"}, {"output_format": "jpeg"}, {"n": 2}], ids=str)
@in_one_loop
async def test_job_has_the_members_of_the_answer(shared: Live, fields: dict[str, Any]):
    """Size, background and format as they were, and as many pictures."""
    response = await shared.edit(**fields)
    answer = response.json()

    result = (await shared.client.get(f"/v1/jobs/{response.headers['x-request-id']}")).json()["result"]

    for member in ("created", "size", "background", "output_format"):
        assert result[member] == answer[member]
    assert len(result["data"]) == len(answer["data"])
    assert set(result) == set(answer)
    assert shared.spooled == []


async def test_job_whose_pictures_are_gone_says_so(live: Live):
    """After retention: `expired`, no links, and the account is still there."""
    request_id = (await live.edit()).headers["x-request-id"]
    parts = live.parts
    later = Retention(parts.db, parts.services.store, lambda: now() + timedelta(days=2), parts.services.log)
    await later.remove_expired()

    result = (await live.client.get(f"/v1/jobs/{request_id}")).json()["result"]

    assert (result["expired"], result["data"]) == (True, [])
    assert result["metadata"]["cost"]["usd"] == "0"
