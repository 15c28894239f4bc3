"""What a provider gives is looked at before it is believed."""

import io
from typing import Any

from PIL import Image

from tests.gateway.conftest import Live, delivered, error_of, in_one_loop, picture


def solid(size: tuple[int, int], color: tuple[int, int, int]) -> bytes:
    """A PNG of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return out.getvalue()


@in_one_loop
async def test_black_result_of_a_bright_input_is_a_refusal(shared: Live):
    """It is said so, nothing is billed, and it is not shopped around."""
    shared.backend.picture = lambda _: solid((800, 600), (0, 0, 1))

    error = error_of(await shared.edit(solid((400, 300), (200, 10, 10)), scale_factor=2), 400)

    assert (error["code"], error["billed_usd"]) == ("moderation_blocked", "0")
    assert [attempt["outcome"] for attempt in error["attempts"]] == ["content"]


@in_one_loop
async def test_black_result_of_a_black_input_is_delivered(shared: Live):
    """A picture of the night stays one."""
    shared.backend.picture = lambda _: solid((800, 600), (0, 0, 0))

    (image,) = await delivered(shared, await shared.edit(solid((400, 300), (0, 0, 0)), scale_factor=2))

    assert image.size == (800, 600)


@in_one_loop
async def test_input_given_back_where_more_was_asked_is_a_failure(shared: Live):
    """An upscaler that does not upscale has not delivered."""

    def unchanged(given: dict[str, Any]) -> bytes:
        return solid((400, 300), (9, 99, 9))

    shared.backend.picture = unchanged

    error = error_of(await shared.edit(solid((400, 300), (9, 99, 9)), scale_factor=2), 502)

    assert [attempt["outcome"] for attempt in error["attempts"]] == ["transient"]


@in_one_loop
async def test_factor_of_one_may_give_the_same_size(shared: Live):
    """Nothing more was asked for."""
    shared.backend.picture = lambda _: picture(40, 30)

    (image,) = await delivered(shared, await shared.edit(picture(40, 30), scale_factor=1))

    assert image.size == (40, 30)


@in_one_loop
async def test_result_smaller_than_planned_is_a_failure(shared: Live):
    """Two thirds of the edges that were paid for are not a delivery, though larger than the input."""
    shared.backend.picture = lambda _: solid((533, 400), (9, 99, 9))

    error = error_of(await shared.edit(solid((400, 300), (9, 99, 9)), scale_factor=2), 502)

    assert [attempt["outcome"] for attempt in error["attempts"]] == ["transient"]
