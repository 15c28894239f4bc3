"""What errors suggest: models that can be served as the gateway is set up, else what is missing for them."""

from datetime import date
from decimal import Decimal

import pytest

from gateway.errors import ModelNotFound, NoOffer
from gateway.images.routing import Unavailable, find_model, with_alternatives
from normalization.offer import Model, Offer, Price, PriceUnit
from normalization.request import RequestMode
from providers.catalog import Catalog
from tests.gateway.conftest import Live, error_of, in_one_loop


def model(name: str, provider: str, mode: RequestMode = RequestMode.EDIT) -> Model:
    offer = Offer(provider, name, {}, Price(PriceUnit.IMAGE, Decimal("0.01")), "here", date(2026, 11, 21))
    return Model(name, name, (mode,), (offer,), 0)


CATALOG = Catalog(
    [model("fox-edit", "fal"), model("fox-edits", "local"), model("fox-draw", "local", RequestMode.GENERATE), model("owl", "fal")]
)

NO_KEY: Unavailable = lambda offer: "fal: no key is set; see FAL_KEY" if offer.provider == "fal" else None  # noqa: E731 -- typed


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("fox-edt", "Did you mean fox-edits or fox-draw?"),
        ("owll", "Did you mean owl? It cannot be served now: fal: no key is set; see FAL_KEY."),
        ("zzzzzz", "GET /v1/models lists the ids."),
    ],
)
def test_models_that_can_be_served_are_suggested(asked: str, hint: str):
    """One that cannot is named only where nothing else comes near, with what it needs."""
    with pytest.raises(ModelNotFound) as caught:
        find_model(asked, CATALOG, unavailable=NO_KEY)

    assert caught.value.message.endswith(hint)


def test_alternatives_can_do_what_was_asked():
    """Of the same mode, and served now."""
    error = with_alternatives(NoOffer("No.", detail="why"), RequestMode.EDIT, CATALOG, NO_KEY)

    assert (error.message, error.detail) == ("No. Models that can be served now: fox-edits.", "why")


@in_one_loop
async def test_model_without_a_key_comes_with_the_next_step(shared: Live):
    """What the operator can set, and what can be had without."""
    error = error_of(await shared.edit(model="clarity-upscaler", prompt="a"), 503)

    assert "The operator can set FAL_KEY or REPLICATE_API_TOKEN" in error["message"]
    assert error["message"].endswith("Models that can be served now: detail-upscaler.")


@in_one_loop
async def test_guess_says_what_the_model_needs(shared: Live):
    """On every route that takes a model."""
    for response in (await shared.edit(model="nano-banan"), await shared.client.get("/v1/models/nano-banan")):
        assert "Did you mean nano-banana? It cannot be served now: fal: no key is set" in error_of(response, 404)["message"]
