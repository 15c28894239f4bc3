"""The fault matrix: what each fault of fal and of Replicate comes to for the caller, in attempts, in charges and in the journal.

Each row is tried with the other provider ready to take over. Work is never handed to a provider twice.
"""

import io
import random
from dataclasses import dataclass

import pytest
from PIL import Image

from gateway.db.tables import JobState
from tests.gateway.conftest import delivered, error_of, in_one_loop
from tests.gateway.providers.conftest import FAL_KEY, MODEL, REPLICATE_TOKEN, World, told

FAL, REPLICATE = "fal", "replicate"
OTHER = {FAL: REPLICATE, REPLICATE: FAL}


@dataclass(frozen=True, slots=True)
class Row:
    """A fault, and what it comes to at the provider that has it."""

    provider: str
    fault: str
    outcome: str
    """`ok` or a kind of failure."""
    charged: bool
    """Whether the provider bills the work."""
    known: bool = True
    """Whether the journal can say what was billed; else it says that it cannot."""
    submits: int = 1
    """How often the provider was handed work."""

    @property
    def status(self) -> int:
        """What the caller gets: `content` and `unknown` are not shopped around."""
        return {"content": 400, "unknown": 502}.get(self.outcome, 200)

    @property
    def attempts(self) -> list[str]:
        """Who was tried, and how it ended."""
        first = f"{self.provider}: {self.outcome}"
        return [first] if self.outcome == "ok" or self.status != 200 else [first, f"{OTHER[self.provider]}: ok"]

    def __str__(self) -> str:
        return f"{self.provider} {self.fault.partition('=')[0]}"


ROWS = [
    # Refused before anything is made.
    Row(FAL, "bad_key", "credential", charged=False),
    Row(FAL, "no_credit", "quota", charged=False),
    Row(FAL, "rate_limit=7", "rate_limit", charged=False),
    Row(FAL, "rate_limit_no_header", "rate_limit", charged=False),
    Row(FAL, "submit_500", "transient", charged=False),
    Row(FAL, "html_error", "transient", charged=False),
    Row(REPLICATE, "bad_key", "credential", charged=False, submits=0),  # turned away before it is looked at
    Row(REPLICATE, "no_credit", "quota", charged=False),
    Row(REPLICATE, "rate_limit=7", "rate_limit", charged=False),
    Row(REPLICATE, "rate_limit_no_header", "rate_limit", charged=False),
    Row(REPLICATE, "submit_500", "transient", charged=False),
    Row(REPLICATE, "html_error", "transient", charged=False),
    # The answer is lost: fal cannot be asked what it took, Replicate can.
    Row(FAL, "submit_lost", "unknown", charged=True, known=False),
    Row(REPLICATE, "submit_lost", "ok", charged=True),
    # While it waits or runs.
    Row(FAL, "stalled_queue", "timeout", charged=False, known=False),
    Row(REPLICATE, "stalled_queue", "timeout", charged=False, known=False),
    Row(FAL, "status_500_every_second", "ok", charged=True),
    Row(REPLICATE, "status_500_every_second", "ok", charged=True),
    Row(FAL, "runner_lost", "transient", charged=False),
    Row(REPLICATE, "interrupted_pa", "transient", charged=False),
    Row(FAL, "cuda_oom", "transient", charged=False),
    Row(REPLICATE, "cuda_oom", "transient", charged=True),  # seconds are charged however it ends
    Row(FAL, "content_policy", "content", charged=False),
    Row(FAL, "nsfw", "content", charged=True),
    Row(REPLICATE, "nsfw", "content", charged=True),
    # The result.
    Row(FAL, "still_in_progress", "ok", charged=True),
    Row(FAL, "result_404", "timeout", charged=True, known=False),  # it is fal's own answer that is gone, and the bill with it
    Row(FAL, "result_500", "transient", charged=False),
    Row(REPLICATE, "empty_output", "transient", charged=True),
    Row(REPLICATE, "result_404", "transient", charged=True),
    Row(FAL, "expired_result", "transient", charged=True),
    Row(REPLICATE, "expired_result", "transient", charged=True),
    Row(FAL, "cut_download_twice", "ok", charged=True),
    Row(REPLICATE, "cut_download_twice", "ok", charged=True),
    Row(FAL, "slow_download=0.2", "ok", charged=True),
    Row(REPLICATE, "slow_download=0.2", "ok", charged=True),
    Row(FAL, "truncated_download", "transient", charged=True),
    Row(REPLICATE, "truncated_download", "transient", charged=True),
    Row(FAL, "corrupt", "transient", charged=True),
    Row(REPLICATE, "corrupt", "transient", charged=True),
    Row(FAL, "black", "content", charged=True),
    Row(REPLICATE, "black", "content", charged=True),
    Row(FAL, "wrong_size=input", "transient", charged=True),
]


@in_one_loop
@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_a_fault_ends_in_a_picture_or_one_clear_error(world: World, row: Row):
    """Outcome, attempts, submits, charges and journal, as the row says."""
    world.kits[row.provider].faults.switch([row.fault])

    response = await world.upscale(row.provider, OTHER[row.provider], size="48x32")

    job = await world.job(response)
    assert response.status_code == row.status, response.text
    assert told(response) == row.attempts
    assert [f"{attempt.provider}: {attempt.outcome}" for attempt in job.attempts] == row.attempts
    assert world.submits(row.provider) == row.submits
    assert world.submits(OTHER[row.provider]) == len(row.attempts) - 1
    assert (world.bill(row.provider) > 0) is row.charged
    assert job.attempts[0].cost_usd == (world.bill(row.provider) if row.known else None)
    assert job.cost_usd == (world.bill() if row.known else None)
    assert world.live.spooled == []
    if row.status == 200:
        assert job.state is JobState.COMPLETED
        assert [image.size for image in await delivered(world.live, response)] == [(48, 32)]
    else:
        error = error_of(response, row.status)
        assert job.state is JobState.FAILED
        assert error["billed_usd"] == "0"
        assert error["retry_safe"] is not row.charged
    assert not any(secret in f"{response.text} {job} {world.live.logged}" for secret in ("fal-secret", REPLICATE_TOKEN))


@in_one_loop
@pytest.mark.parametrize("provider", [FAL, REPLICATE])
async def test_the_operator_is_told_of_a_bad_key_and_the_caller_is_not(world: World, provider: str):
    """The offer rests, an error is logged, and what the provider said is in no answer."""
    world.kits[provider].faults.switch(["bad_key"])

    first = await world.upscale(provider, OTHER[provider])
    second = await world.upscale(provider, OTHER[provider])

    assert told(first) == [f"{provider}: credential", f"{OTHER[provider]}: ok"]
    assert told(second) == [f"{OTHER[provider]}: ok"]
    assert [entry["kind"] for entry in world.live.logged if entry["event"] == "offer.resting"] == ["credential"]
    assert "authentication token" not in first.text + second.text
    assert "No user found" not in first.text + second.text


@in_one_loop
@pytest.mark.parametrize("provider", [FAL, REPLICATE])
async def test_retry_after_reaches_the_caller_where_nobody_else_can_serve(world: World, provider: str):
    """Pinned to a provider that is asked too often: 502, one attempt, and when to come back."""
    world.kits[provider].faults.switch(["rate_limit=7"])

    response = await world.upscale(model=f"{provider}/{MODEL}")

    error = error_of(response, 502)
    assert told(response) == [f"{provider}: rate_limit"]
    assert response.headers["retry-after"] == "7"
    assert error["retry_safe"] is True


STRANGERS = [(provider, fault) for fault in ("foreign_urls", "foreign_result", "redirect") for provider in (FAL, REPLICATE)]


@in_one_loop
@pytest.mark.parametrize(("provider", "fault"), STRANGERS)
async def test_no_key_goes_to_a_stranger(world: World, provider: str, fault: str):
    """Addresses of another host in an answer, a result there, a redirect to it: the key stays, and the caller has a picture."""
    world.kits[provider].faults.switch([f"{fault}={world.stranger.origin}"])

    response = await world.upscale(provider, OTHER[provider], size="48x32")

    assert [image.size for image in await delivered(world.live, response)] == [(48, 32)]
    assert len(world.stranger.heads) == (fault == "foreign_result")
    assert not any("authorization" in head.lower() for head in world.stranger.heads)
    assert not any(secret in head for head in world.stranger.heads for secret in (FAL_KEY, "fal-secret", REPLICATE_TOKEN))
    assert world.counted("with a") == 0, "results and uploads of the providers' own need no key either"


@in_one_loop
@pytest.mark.parametrize("provider", [FAL, REPLICATE])
async def test_no_key_goes_where_files_are(world: World, provider: str):
    """A picture that is uploaded first, and a result that is fetched: nobody there sees the key."""
    noise = _noise(1200, 900)

    response = await world.upscale(model=f"{provider}/{MODEL}", picture=noise, scale_factor=1)

    assert response.status_code == 200, response.text
    assert world.counted("upload" if provider == FAL else "file post") > 0
    assert world.counted("with a") == 0


def _noise(width: int, height: int) -> bytes:
    """A picture that cannot be made small: about 3 bytes a pixel."""
    out = io.BytesIO()
    Image.frombytes("RGB", (width, height), random.Random(0).randbytes(width * height * 3)).save(out, "PNG", compress_level=1)
    return out.getvalue()
