"""`GET /v1/models`: what can be asked for, in OpenAI's shape, and each model's parameters for every offer."""

from urllib.parse import unquote

from litestar import Router, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from gateway.api.wire import Model, ModelList
from gateway.images.routing import find_model
from normalization.offer import Model as CatalogModel
from providers.catalog import Catalog


@get("/models", summary="List the models", operation_id="list_models")
async def list_models(catalog: NamedDependency[Catalog]) -> ModelList:
    """Every model of the catalog, by id."""
    return ModelList(data=[_on_the_wire(model) for _, model in sorted(catalog.models.items())])


@get("/models/{model_id:path}", summary="Show one model", operation_id="retrieve_model")
async def show_model(model_id: FromPath[str], catalog: NamedDependency[Catalog]) -> Model:
    """One model. Ids with a slash are taken as they are and percent-encoded."""
    name = unquote(model_id.lstrip("/"))
    model, _ = find_model(name, catalog, param="model")
    return _on_the_wire(model, name)


def _on_the_wire(model: CatalogModel, name: str | None = None) -> Model:
    return Model(id=name or model.id, created=model.created, owned_by=", ".join(dict.fromkeys(o.provider for o in model.offers)))


models_router = Router("/v1", route_handlers=[list_models, show_model], tags=["models"])
