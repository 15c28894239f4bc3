"""The OpenAPI document: what litestar cannot know of routes whose bodies are read as streams, from the gateway's own vocabulary."""

from dataclasses import dataclass
from typing import Any

from litestar import Request, get
from litestar.datastructures import State
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import ScalarRenderPlugin
from litestar.openapi.spec import Components, OpenAPIMediaType, Operation, RequestBody, Schema, SecurityScheme
from litestar.openapi.spec.enums import OpenAPIType

from gateway import __version__
from normalization.request import PARAMETERS

_PICTURE = {"type": "string", "format": "binary"}
_REFERENCE = {
    "type": "object",
    "properties": {"image_url": {"type": "string", "description": "http(s) or data URL"}},
    "required": ["image_url"],
}


def openapi_config() -> OpenAPIConfig:
    """What litestar writes the document from."""
    return OpenAPIConfig(
        title="Image Gateway",
        version=__version__,
        description="OpenAI's images API in front of fal, Replicate and your own machine.",
        path="/docs",
        render_plugins=[ScalarRenderPlugin(path="/")],
        components=Components(security_schemes={"key": SecurityScheme(type="http", scheme="bearer")}),
        security=[{"key": []}],
        use_handler_docstrings=True,
    )


@get("/openapi.json", include_in_schema=False, media_type="application/vnd.oai.openapi+json")
async def openapi_document(request: Request[Any, Any, State]) -> dict[str, Any]:
    """The document itself."""
    return request.app.openapi_schema.to_schema()


@dataclass
class EditOperation(Operation):
    """The operation with the two bodies that an edit can have; litestar knows none, because the handler reads the stream."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody(content=_edit_bodies(), required=True)


def _edit_bodies() -> dict[str, OpenAPIMediaType]:
    shared = {"model": {"type": "string"}, **{name: dict(row.schema) for name, row in PARAMETERS.items()}}
    form = {"image": {"type": "array", "items": _PICTURE, "maxItems": 16}, "mask": _PICTURE, **shared}
    document = {"images": {"type": "array", "items": _REFERENCE, "maxItems": 16}, "mask": _REFERENCE, **shared}
    return {
        "multipart/form-data": OpenAPIMediaType(schema=_object(form, "image")),
        "application/json": OpenAPIMediaType(schema=_object(document, "images")),
    }


def _object(properties: dict[str, Any], required: str) -> Schema:
    """An object schema; further members are a model's own parameters."""
    return Schema(
        type=OpenAPIType.OBJECT, properties={name: _schema(facts) for name, facts in properties.items()}, required=[required]
    )


def _schema(facts: dict[str, Any]) -> Schema:
    names = {"maxLength": "max_length", "maxItems": "max_items", "exclusiveMinimum": "exclusive_minimum"}
    told = {names.get(name, name): value for name, value in facts.items()}
    if "items" in told:
        told["items"] = _schema(told["items"])
    if "properties" in told:
        told["properties"] = {name: _schema(value) for name, value in told["properties"].items()}
    return Schema(**told)
