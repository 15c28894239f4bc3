"""An operator's own server and model file instead of the bundled backend, and a model that takes several pictures."""

import base64
import json
from collections.abc import Iterator
from decimal import Decimal

import openai
import pytest
from openai import OpenAI

from tests.e2e.collage import collage_server, write_model_file
from tests.e2e.live import LiveGateway, open_shell, serve
from tests.e2e.pictures import look, png


@pytest.fixture(scope="module")
def own_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """A gateway that knows one backend, not ours, and one more model."""
    folder = tmp_path_factory.mktemp("own")
    with collage_server() as url:
        shell = open_shell(
            folder / "gateway",
            GATEWAY_LOCAL__BACKENDS=json.dumps([{"name": "studio", "url": url, "models": ["collage"]}]),
            GATEWAY_CATALOG__FOLDER=str(write_model_file(folder / "models")),
            GATEWAY_LOCAL__USD_PER_SECOND="0.002",
        )
        with serve(shell) as live:
            yield live


@pytest.fixture
def client(own_gateway: LiveGateway) -> Iterator[OpenAI]:
    """The official client."""
    with OpenAI(base_url=own_gateway.api, api_key=own_gateway.key) as client:
        yield client


@pytest.mark.parametrize("widths", [[20], [20, 30], [10, 20, 30, 40]], ids=["one", "two", "four"])
def test_several_pictures_arrive_in_their_order(client: OpenAI, widths: list[int]):
    """A list of pictures reaches a model that takes lists, and one picture comes back."""
    pictures = [(f"{width}.png", png((width, 24)), "image/png") for width in widths]

    response = client.images.edit(model="collage", prompt="side by side", image=pictures, response_format="b64_json")

    assert response.data
    assert look(base64.b64decode(response.data[0].b64_json or "")).size == (sum(widths), 24)


def test_more_than_the_model_takes_is_refused(client: OpenAI):
    """Five pictures for a model that takes four name the parameter and the limit."""
    with pytest.raises(openai.BadRequestError, match="4") as refusal:
        client.images.edit(model="collage", prompt="", image=[("a.png", png(), "image/png")] * 5)

    assert refusal.value.param == "image"


def test_the_operators_rate_is_the_cost(client: OpenAI):
    """Half a second at two thousandths of a dollar is a thousandth, exactly."""
    response = client.images.edit(model="collage", prompt="", image=("a.png", png(), "image/png"))

    cost = (response.model_extra or {})["metadata"]["cost"]
    assert Decimal(cost["usd"]) == Decimal("0.001")


def test_both_models_are_listed(client: OpenAI):
    """The operator's model stands beside the packaged one."""
    assert {"collage", "detail-upscaler"} <= {model.id for model in client.models.list()}
