"""`GET /v1/models`: what can be asked for, in OpenAI's shape, and each model's parameters for every offer."""

from typing import Annotated, Any
from urllib.parse import unquote

import msgspec
from litestar import Router, get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from gateway.api.wire import Model, ModelList
from gateway.images.routing import find_model
from gateway.images.services import Services
from normalization.offer import Model as CatalogModel
from normalization.offer import Offer, Price
from normalization.pricing import money
from normalization.schema import parameter_schema
from providers.catalog import Catalog


@get("/models", summary="List the models", operation_id="list_models")
async def list_models(catalog: NamedDependency[Catalog]) -> ModelList:
    """Every model of the catalog, by id."""
    return ModelList(data=[_on_the_wire(model) for _, model in sorted(catalog.models.items())])


@get("/models/{model_id:path}", summary="Show one model", operation_id="retrieve_model")
async def show_model(
    model_id: FromPath[str],
    catalog: NamedDependency[Catalog],
    services: NamedDependency[Services],
    schema: Annotated[bool, QueryParameter(description="Add each offer's parameters, typed.")] = False,
) -> dict[str, Any]:
    """One model. Ids with a slash are taken as they are and percent-encoded."""
    name = unquote(model_id.lstrip("/"))
    model, offers = find_model(name, catalog, param="model", unavailable=services.unavailable)
    shown = msgspec.to_builtins(_on_the_wire(model, name))
    return shown | _described(model, offers) if schema else shown


def _described(model: CatalogModel, offers: tuple[Offer, ...]) -> dict[str, Any]:
    return {
        "name": model.name,
        "description": model.description,
        "modes": [mode.value for mode in model.modes],
        "offers": [
            {
                "provider": offer.provider,
                "endpoint": offer.endpoint,
                "price": _price(offer.price),
                "source": offer.source,
                "checked": offer.checked.isoformat(),
                "uncertain": offer.uncertain,
                "parameters": parameter_schema(offer),
            }
            for offer in offers
        ],
    }


def _price(price: Price) -> dict[str, Any]:
    return {
        "per": price.unit.value,
        "usd": money(price.usd),
        "tiers": [{"up_to_megapixels": money(most), "usd": money(usd)} for most, usd in price.tiers] or None,
        "unknown": price.why,
        "uncertain": price.uncertain,
    }


def _on_the_wire(model: CatalogModel, name: str | None = None) -> Model:
    return Model(id=name or model.id, created=model.created, owned_by=", ".join(dict.fromkeys(o.provider for o in model.offers)))


models_router = Router("/v1", route_handlers=[list_models, show_model], tags=["models"])
