"""`GET /v1/models/{id}?schema=true`: each offer's price as it is, and mistakes in words that callers know."""

from tests.gateway.conftest import Live, error_of, in_one_loop


@in_one_loop
async def test_wrong_schema_is_named_as_it_was_sent(shared: Live):
    """Not by a name of the inside."""
    error = error_of(await shared.client.get("/v1/models/topaz-upscale?schema=banana"), 400)

    assert error["param"] == "schema"


@in_one_loop
async def test_price_by_size_has_every_step(shared: Live):
    """Up to so many megapixels, so many dollars."""
    offers = (await shared.client.get("/v1/models/topaz-upscale?schema=true")).json()["offers"]

    price = offers[0]["price"]
    assert (price["per"], price["usd"], price["unknown"]) == ("tier", None, None)
    assert price["tiers"][:2] == [{"up_to_megapixels": "24", "usd": "0.08"}, {"up_to_megapixels": "48", "usd": "0.16"}]


@in_one_loop
async def test_doubt_of_a_price_is_said(shared: Live):
    """What the catalog is not certain of, callers are not either."""
    offers = (await shared.client.get("/v1/models/birefnet-background-removal?schema=true")).json()["offers"]

    doubts = [offer["price"]["uncertain"] for offer in offers]
    assert "how long a run takes is a guess" in doubts
