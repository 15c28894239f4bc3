"""A model's declared inputs as an OpenAPI document, and as a check of what a caller sends."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from providers.local.engine.model import BackendModel, InputField, InputType, Value

_SCHEMA_TYPES = MappingProxyType(
    {
        InputType.FILE: "string",
        InputType.NUMBER: "number",
        InputType.INTEGER: "integer",
        InputType.BOOLEAN: "boolean",
        InputType.TEXT: "string",
    }
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a request body, in the words of pydantic, which Cog uses as well."""

    loc: tuple[str, ...]
    msg: str
    type: str


def problem_with(name: str, msg: str, type_: str) -> Problem:
    """A problem with the input `name`."""
    return Problem(("body", "input", name), msg, type_)


def check_value(field: InputField, value: object) -> Problem | None:
    """Say what is wrong with a plain (not a file) value, if anything. Nothing is coerced: "2" is not a number."""
    if not _has_type(field.type, value):
        return problem_with(field.name, f"Input should be a valid {_SCHEMA_TYPES[field.type]}", f"{_SCHEMA_TYPES[field.type]}_type")
    if field.choices and value not in field.choices:
        return problem_with(field.name, f"Input should be one of {', '.join(map(str, field.choices))}", "enum")
    if isinstance(value, int | float):
        if field.min is not None and value < field.min:
            return problem_with(field.name, f"Input should be greater than or equal to {field.min:g}", "greater_than_equal")
        if field.max is not None and value > field.max:
            return problem_with(field.name, f"Input should be less than or equal to {field.max:g}", "less_than_equal")
    return None


def missing(fields: tuple[InputField, ...], given: Mapping[str, object]) -> list[Problem]:
    """Inputs that are required but not given."""
    return [problem_with(field.name, "Field required", "missing") for field in fields if field.required and field.name not in given]


def with_defaults(fields: tuple[InputField, ...], given: Mapping[str, Value]) -> dict[str, Value]:
    """A value for every declared input."""
    return {field.name: given.get(field.name, field.default) for field in fields}


def openapi_document(model: BackendModel, version: str) -> dict[str, Any]:
    """The model's interface, with `components.schemas.Input` and `Output` where Cog has them.

    Source: replicate/cog, `architecture/02-schema.md`.
    """
    answer = {
        "description": "The prediction",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/PredictionResponse"}}},
    }
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/PredictionRequest"}}}}
    by_id = {"name": "prediction_id", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "openapi": "3.0.2",
        "info": {"title": model.name, "description": model.description, "version": version},
        "paths": {
            "/health-check": {"get": {"summary": "Health", "responses": {"200": {"description": "Health"}}}},
            "/predictions": {"post": {"summary": "Predict", "requestBody": body, "responses": {"200": answer, "202": answer}}},
            "/predictions/{prediction_id}": {
                "parameters": [by_id],
                "put": {"summary": "Predict, once per id", "requestBody": body, "responses": {"200": answer, "202": answer}},
                "get": {"summary": "How far it is", "responses": {"200": answer}},
            },
            "/predictions/{prediction_id}/cancel": {
                "parameters": [by_id],
                "post": {"summary": "Cancel", "responses": {"200": {"description": "Cancelled, or ended already"}}},
            },
        },
        "components": {"schemas": _schemas(model)},
    }


def _schemas(model: BackendModel) -> dict[str, Any]:
    status = {"type": "string", "enum": ["starting", "processing", "succeeded", "failed", "canceled"]}
    return {
        "Input": {
            "title": "Input",
            "type": "object",
            "properties": {field.name: _property(field, order) for order, field in enumerate(model.inputs)},
            "required": [field.name for field in model.inputs if field.required],
        },
        "Output": {"title": "Output", "type": "string", "format": "uri"},
        "PredictionRequest": {
            "type": "object",
            "properties": {"id": {"type": "string"}, "input": {"$ref": "#/components/schemas/Input"}},
            "required": ["input"],
        },
        "PredictionResponse": {
            "type": "object",
            "properties": {
                "id": {"type": "string"},
                "status": status,
                "progress": {"type": "number", "minimum": 0, "maximum": 1},
                "output": {"$ref": "#/components/schemas/Output"},
                "error": {"type": "string"},
                "logs": {"type": "string"},
                "metrics": {"type": "object", "properties": {"predict_time": {"type": "number"}}},
            },
        },
    }


def _property(field: InputField, order: int) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "title": field.name.replace("_", " ").capitalize(),
        "type": _SCHEMA_TYPES[field.type],
        "description": field.description,
        "x-order": order,
    }
    optional = {
        "format": "uri" if field.type is InputType.FILE else None,
        "default": field.default,
        "minimum": field.min,
        "maximum": field.max,
        "enum": list(field.choices) or None,
    }
    return facts | {key: value for key, value in optional.items() if value is not None}


def _has_type(type_: InputType, value: object) -> bool:
    match type_:
        case InputType.NUMBER:
            return _has_type(InputType.INTEGER, value) or (isinstance(value, float) and math.isfinite(value))
        case InputType.INTEGER:
            return isinstance(value, int) and not isinstance(value, bool)
        case InputType.BOOLEAN:
            return isinstance(value, bool)
        case InputType.TEXT | InputType.FILE:
            return isinstance(value, str)
