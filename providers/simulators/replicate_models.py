"""The models that the Replicate stand-in sells: made from the catalog's entries, with schemas and complaints as Replicate has them.

Sources: https://replicate.com/docs/reference/http; bodies of refusals as users of the API have quoted them.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from normalization.offer import Offer, Price, Rule, ValueType
from normalization.request import PARAMETERS, Json, RequestMode
from providers.catalog import Catalog

_LISTS = frozenset({"philz1337x/clarity-upscaler", "black-forest-labs/flux-schnell"})
"""Who answers with a list of addresses; all others answer with one. Source: each model's page at replicate.com, "API"."""

_VERSION = re.compile(r"[0-9a-f]{64}")
_PICTURES = ("image", "mask")
_SCHEMA_TYPES: Mapping[ValueType, str | None] = MappingProxyType(
    {
        ValueType.TEXT: "string",
        ValueType.INTEGER: "integer",
        ValueType.NUMBER: "number",
        ValueType.BOOLEAN: "boolean",
        ValueType.JSON: None,
    }
)


class Work(StrEnum):
    """What a model does with a picture."""

    UPSCALE = "upscale"
    CUT_OUT = "cut_out"
    EDIT = "edit"
    """Also: draw, where no picture comes."""


@dataclass(frozen=True, slots=True)
class SoldModel:
    """A model as Replicate knows it."""

    owner: str
    name: str
    version: str
    """64 hexadecimal digits."""
    is_official: bool
    """Whether it may be asked for by its name alone."""
    inputs: Mapping[str, Any]
    """JSON Schema of the input."""
    gives_list: bool
    price: Price
    endpoint: str
    """As the catalog has it."""
    work: Work
    format: str | None
    """Of the result where no input says so."""

    @property
    def id(self) -> str:
        """`owner/name`."""
        return f"{self.owner}/{self.name}"

    @property
    def shown_version(self) -> str:
        """What predictions call the version: official models do not tell it."""
        return "hidden" if self.is_official else self.version

    def openapi_schema(self) -> dict[str, Any]:
        """The part of Cog's OpenAPI document that clients read."""
        address = {"type": "string", "format": "uri"}
        output = {"type": "array", "items": address, "title": "Output"} if self.gives_list else {**address, "title": "Output"}
        return {
            "openapi": "3.0.2",
            "info": {"title": "Cog", "version": "0.1.0"},
            "paths": {},
            "components": {"schemas": {"Input": dict(self.inputs), "Output": output}},
        }


class Storefront:
    """All models, found as callers name them."""

    def __init__(self, models: Iterable[SoldModel]) -> None:
        self.models: Mapping[str, SoldModel] = MappingProxyType({model.id: model for model in models})

    def named(self, owner: str, name: str) -> SoldModel | None:
        """The model of that name."""
        return self.models.get(f"{owner}/{name}")

    def versioned(self, text: str) -> SoldModel | None:
        """What `version` of a create stands for: 64 hex digits, `owner/name:64 hex`, or `owner/name` of an official model."""
        name, _, version = text.rpartition(":") if ":" in text else (text, "", "")
        if not version and _VERSION.fullmatch(text):
            return next((model for model in self.models.values() if model.version == text), None)
        model = self.models.get(name)
        if model is None:
            return None
        known = version == model.version if version else model.is_official
        return model if known else None


def open_storefront(catalog: Catalog) -> Storefront:
    """What the catalog says that Replicate sells."""
    return Storefront(
        _sold(offer, model.modes) for model in catalog.models.values() for offer in model.offers if offer.provider == "replicate"
    )


def _sold(offer: Offer, modes: Collection[RequestMode]) -> SoldModel:
    endpoint, _, version = offer.endpoint.partition(":")
    by_version = _VERSION.fullmatch(endpoint) is not None
    # An entry that is asked for by its version alone says in its source whose it is.
    owner, name = (offer.source.rstrip("/").split("/")[3:5] if by_version else endpoint.split("/"))[:2]
    official = not by_version and not version
    return SoldModel(
        owner=owner,
        name=name,
        version=endpoint if by_version else version or hashlib.sha256(endpoint.encode()).hexdigest(),
        is_official=official,
        inputs=input_schema(offer),
        gives_list=f"{owner}/{name}" in _LISTS,
        price=offer.price,
        endpoint=offer.endpoint,
        work=_work(modes),
        format=offer.output.format,
    )


def _work(modes: Collection[RequestMode]) -> Work:
    if RequestMode.UPSCALE in modes:
        return Work.UPSCALE
    return Work.CUT_OUT if RequestMode.REMOVE_BACKGROUND in modes else Work.EDIT


def input_schema(offer: Offer) -> dict[str, Any]:
    """JSON Schema of what the provider takes, as far as the offer's rules tell."""
    properties: dict[str, dict[str, Any]] = {}
    required: list[str] = []
    # A parameter that goes as it is knows its field better than one that is converted into it.
    direct_first = sorted(offer.params.items(), key=lambda item: item[1].converter is not None)
    for name, rule in direct_first:
        if rule.verb is None:
            continue
        field = rule.to or name
        declared = _declared(name, rule)
        known = properties.setdefault(field, declared)
        if known is not declared and "enum" in known and "enum" in declared:
            known["enum"] = [*known["enum"], *(choice for choice in declared["enum"] if choice not in known["enum"])]
        if rule.required and field not in required:
            required.append(field)
    for field, value in offer.fixed.items():
        properties.setdefault(field, {"type": _type_of(value)})
    numbered = {
        field: {"title": field.replace("_", " ").title(), "x-order": at, **properties[field]} for at, field in enumerate(properties)
    }
    return {"type": "object", "title": "Input", "required": required, "properties": numbered}


def _declared(name: str, rule: Rule) -> dict[str, Any]:
    """The schema of one field."""
    if name in _PICTURES:
        address = {"type": "string", "format": "uri"}
        return {"type": "array", "items": address} if rule.converter == "image_list" else address
    match rule.converter:
        case "table" | "factor_to_reach" | "longest_edge" if rule.table:
            return _with_default({"type": "string", "enum": list(dict.fromkeys(rule.table.values()))}, rule)
        case "factor_to_reach":
            return _bounded("number", rule)
        case "scaled":
            return _bounded("number", rule)
        case "nearest_ratio":
            return _with_default({"type": "string", "enum": list(rule.choices)}, rule)
        case "invert":
            return _with_default({"type": "boolean"}, rule)
        case "with_default":
            return _with_default({"type": "string"}, rule)
        case "width_height":
            return {"type": "object"}
        case _:
            return _bounded(_SCHEMA_TYPES[rule.type] if rule.type else _own_type(name), rule)


def _own_type(name: str) -> str | None:
    """The type of a parameter of the gateway's own."""
    declared = PARAMETERS[name].schema.get("type") if name in PARAMETERS else None
    return declared if isinstance(declared, str) else None


def _bounded(type_: str | None, rule: Rule) -> dict[str, Any]:
    if rule.choices:
        return _with_default({"enum": list(rule.choices), **({"type": type_} if type_ else {})}, rule)
    facts: Mapping[str, Any] = {"type": type_, "minimum": rule.min, "maximum": rule.max, "multipleOf": rule.multiple_of}
    # A bound that the catalog is not certain of is its own prudence, not the provider's.
    if type_ not in ("integer", "number") or rule.uncertain is not None:
        facts = {"type": type_}
    return _with_default({key: _plain(value) for key, value in facts.items() if value is not None}, rule)


def _with_default(schema: dict[str, Any], rule: Rule) -> dict[str, Any]:
    if rule.default is None:
        return schema
    if "enum" in schema and rule.default not in schema["enum"]:
        schema["enum"] = [rule.default, *schema["enum"]]
    return {**schema, "default": rule.default}


def _plain(value: Any) -> Any:
    """2 rather than 2.0, as the provider writes it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True, slots=True)
class Complaint:
    """Something wrong with a body, in the words of Replicate's validator."""

    type: str
    field: str
    """`input` for what is missing, `input.name` otherwise; empty for the body itself."""
    description: str

    @property
    def line(self) -> str:
        """Its line in the answer's `detail`."""
        return f"- {self.field}: {self.description}\n" if self.field else f"- {self.description}\n"


def complaints(inputs: Mapping[str, Any], given: Mapping[str, Json]) -> list[Complaint]:
    """What is wrong with an input. Keys that the schema lacks are nobody's concern: the model drops them."""
    found = [Complaint("required", "input", f"{name} is required") for name in inputs.get("required", ()) if name not in given]
    for name, value in given.items():
        schema = inputs["properties"].get(name)
        if schema is not None:
            found += _wrong(name, f"input.{name}", schema, value)
    return found


def dropped_unknown(inputs: Mapping[str, Any], given: Mapping[str, Json]) -> dict[str, Json]:
    """The input as the model sees it."""
    return {name: value for name, value in given.items() if name in inputs["properties"]}


def _wrong(name: str, field: str, schema: Mapping[str, Any], value: Json) -> list[Complaint]:
    expected, given = schema.get("type"), _type_of(value)
    if value is None or (expected is not None and not _is_a(value, expected)):
        expected = expected or "string"
        return [Complaint("invalid_type", field, f"Invalid type. Expected: {expected}, given: {given}")]
    if "enum" in schema and value not in schema["enum"]:
        allowed = ", ".join(json.dumps(choice) for choice in schema["enum"])
        return [Complaint("enum", field, f"{name} must be one of the following: {allowed}")]
    if isinstance(value, list | tuple):
        items: Mapping[str, Any] = schema.get("items", {})
        return [wrong for at, item in enumerate(value) for wrong in _wrong(str(at), f"{field}.{at}", items, item)]
    if isinstance(value, str):
        is_address = schema.get("format") != "uri" or re.match(r"(https?://|data:).", value) is not None
        return [] if is_address else [Complaint("format", field, "Does not match format 'uri'")]
    return _out_of_bounds(field, schema, value) if isinstance(value, int | float) else []


def _out_of_bounds(field: str, schema: Mapping[str, Any], number: float) -> list[Complaint]:
    low, high, step = schema.get("minimum"), schema.get("maximum"), schema.get("multipleOf")
    if low is not None and number < low:
        return [Complaint("number_gte", field, f"Must be greater than or equal to {low}")]
    if high is not None and number > high:
        return [Complaint("number_lte", field, f"Must be less than or equal to {high}")]
    if step is not None and number % step:
        return [Complaint("multiple_of", field, f"Must be a multiple of {step}")]
    return []


def _is_a(value: Json, expected: str) -> bool:
    given = _type_of(value)
    whole = isinstance(value, float) and value.is_integer()
    return given == expected or (expected == "number" and given == "integer") or (expected == "integer" and whole)


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list() | tuple():
            return "array"
        case _:
            return "object"
