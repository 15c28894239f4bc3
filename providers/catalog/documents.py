"""Schema documents as fal and Replicate publish them, read into one shape: what a model takes, and where its pictures come.

Both are OpenAPI documents with JSON Schema inside. An input may be a reference, a merge of several schemas, or a choice between
some of which one is null; here it is flat.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from normalization.offer import ValueType
from normalization.request import Json

Schema: TypeAlias = Mapping[str, Json]


class DocumentUnusable(Exception):
    """A document that no model file can be drafted from: says what is missing, or what to choose from."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a model."""

    name: str
    type: ValueType
    required: bool = False
    choices: tuple[Json, ...] = ()
    min: float | None = None
    max: float | None = None
    """Bounds of numbers, themselves allowed; for lists, the longest."""
    open: bool = False
    """Whether a bound itself is excluded, which a catalog rule cannot say of decimals."""
    multiple_of: float | None = None
    default: Json = None
    items: "Input | None" = None
    """What a list holds."""
    edge: "Input | None" = None
    """The width of an object that has a width and a height."""
    address: bool = False
    """Whether the document declares it the address of a file."""
    secret: bool = False
    """Whether the document declares it a secret."""


@dataclass(frozen=True, slots=True)
class ModelDocument:
    """What a provider's document says of one model."""

    endpoint: str
    """As the provider is to be asked for it."""
    name: str
    """The same without a version: `owner/name…`."""
    inputs: tuple[Input, ...]
    """In the order in which the provider shows them."""
    pictures: str | None
    """The answer's field with the pictures; empty where the answer is the picture or the list itself; None where none was found."""
    description: str = ""
    category: str = ""
    doubt: str | None = None
    """What of `endpoint` the document does not say."""


def parse_document(raw: bytes) -> Json:
    """What a JSON file holds.

    Raises:
        DocumentUnusable: If it is not JSON.
    """
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DocumentUnusable(f"not JSON: {error}") from error


def read_document(provider: str, document: Json, endpoint: str | None = None) -> ModelDocument:
    """Read a provider's schema document.

    Args:
        provider: `fal`: the OpenAPI document of an endpoint's queue. `replicate`: a model or a version as its API gives them, or
            the version's `openapi_schema` alone.
        document: What the JSON file holds.
        endpoint: Which one, where the document has several, or the name where it does not say: `owner/name[/…]`.

    Raises:
        DocumentUnusable: If no input schema is found, or if it is not clear of which endpoint.

    Sources: https://fal.ai/api/openapi/queue/openapi.json?endpoint_id=fal-ai/clarity-upscaler;
        https://replicate.com/docs/reference/http, "Get a model".
    """
    if not isinstance(document, dict):
        raise DocumentUnusable("a schema document is a JSON object")
    return READERS[provider](document, endpoint)


def _read_fal(document: Schema, endpoint: str | None) -> ModelDocument:
    metadata = _table(_table(document.get("info")).get("x-fal-metadata"))
    bodies = {name: body for name, body in _fal_bodies(document) if body.get("properties") is not None}
    if not bodies:
        raise DocumentUnusable("no input schema found: fal's document has a path with a POST whose body refers to one")
    path = _chosen(bodies, endpoint, metadata.get("endpointId"))
    name = str(metadata.get("endpointId") or path) if len(bodies) == 1 else path
    answer = _fal_answer(document, path)
    return ModelDocument(
        endpoint=name,
        name=name,
        inputs=_inputs(bodies[path], document),
        pictures=_picture_field(answer, document),
        category=_text(metadata.get("category")),
    )


def _fal_bodies(document: Schema) -> Iterable[tuple[str, Schema]]:
    """The endpoints of the document and the schema that each one's POST takes."""
    for path, item in _table(document.get("paths")).items():
        post = _table(_table(item).get("post"))
        if post and "/requests/" not in path:
            yield path.strip("/"), _resolved(_content(_resolved(post.get("requestBody"), document)), document)


def _chosen(bodies: Mapping[str, Schema], endpoint: str | None, declared: Json) -> str:
    paths = list(bodies)
    wanted = endpoint.strip("/") if endpoint is not None else None
    if len(paths) == 1 and wanted in (None, declared, paths[0]):
        return paths[0]
    if wanted is not None and wanted in bodies:
        return wanted
    several = f"{len(paths)} endpoints; choose with --endpoint" if len(paths) > 1 else "one endpoint"
    asked = f"no endpoint {wanted} here; " if wanted is not None else ""
    raise DocumentUnusable(f"{asked}the document has {several}: {', '.join(paths)}")


def _fal_answer(document: Schema, path: str) -> Schema:
    """What the result of a queued request looks like; an app's own document has it in the POST's answer."""
    found = {name.strip("/"): _table(item) for name, item in _table(document.get("paths")).items()}
    results = [item for name, item in found.items() if name.startswith(f"{path}/requests/") and name.endswith("}")]
    for method, item in (*(("get", item) for item in results), ("post", found[path])):
        answers = _table(_table(item.get(method)).get("responses"))
        answer = _resolved(_content(_resolved(answers.get("200"), document)), document)
        if answer and "queue_position" not in _table(answer.get("properties")):
            return answer
    return {}


def _content(body: Schema) -> Json:
    """The schema of a body or an answer."""
    content = _table(body.get("content"))
    return _table(content.get("application/json") or next(iter(content.values()), None)).get("schema")


def _read_replicate(document: Schema, endpoint: str | None) -> ModelDocument:
    version = _table(document.get("latest_version")) or document
    openapi = _table(version.get("openapi_schema")) or version
    schemas = _table(_table(openapi.get("components")).get("schemas"))
    inputs = _resolved(schemas.get("Input"), openapi)
    if inputs.get("properties") is None:
        raise DocumentUnusable(
            "no input schema found: Replicate's document has components.schemas.Input, perhaps in openapi_schema"
        )
    name, asked_version = _replicate_name(document, endpoint)
    known = asked_version or (_text(version.get("id")) if openapi is not version else "")
    official = document.get("is_official") is True and not asked_version
    return ModelDocument(
        endpoint=name if official or not known else known,
        name=name,
        inputs=_inputs(inputs, openapi),
        pictures=_picture_field(_resolved(schemas.get("Output"), openapi), openapi),
        description=_text(document.get("description")),
        doubt=None
        if official or known
        else "only official models are asked for without a version; others by their version: --endpoint owner/name:version",
    )


def _replicate_name(document: Schema, endpoint: str | None) -> tuple[str, str]:
    """`owner/name`, and the version if the caller gave one."""
    owner, short = _text(document.get("owner")), _text(document.get("name"))
    said = f"{owner}/{short}" if owner and short else None
    name, _, version = (endpoint or said or "").partition(":")
    if name.count("/") != 1 or not all(name.split("/")):
        raise DocumentUnusable("the document does not say which model it is of; give --endpoint owner/name[:version]")
    if said is not None and name != said:
        raise DocumentUnusable(f"the document is of {said}, not of {name}")
    return name, version


READERS: Mapping[str, Callable[[Schema, str | None], ModelDocument]] = MappingProxyType(
    {"fal": _read_fal, "replicate": _read_replicate}
)
"""Whose documents are understood."""


def _inputs(schema: Schema, root: Schema) -> tuple[Input, ...]:
    """The inputs in the order that the provider shows: fal lists the names, Cog numbers the inputs."""
    required = _list(schema.get("required"))
    shown = _list(schema.get("x-fal-order-properties"))
    resolved = {name: _resolved(item, root) for name, item in _table(schema.get("properties")).items()}

    def place(name: str) -> float:
        listed = shown.index(name) if name in shown else None
        numbered = _number(resolved[name].get("x-order"))
        return listed if listed is not None else numbered if numbered is not None else len(resolved)

    return tuple(_input(name, resolved[name], root, required=name in required) for name in sorted(resolved, key=place))


def _input(name: str, schema: Schema, root: Schema, *, required: bool = False) -> Input:
    branches = [branch for branch in map(_table, _list(schema.get("anyOf"))) if branch] or [schema]
    choices = _choices(branches)
    kind = _value_type(branches, choices)
    low, low_open = _bound(branches, "minimum", "exclusiveMinimum", kind, 1)
    high, high_open = _bound(branches, "maximum", "exclusiveMaximum", kind, -1)
    if low is not None and high is not None and low > high:
        low = high = None  # no value would do: the document has them wrong
    items = _resolved(schema.get("items"), root)
    sized = (_table(branch.get("properties")) for branch in branches)
    width = next((_resolved(sides["width"], root) for sides in sized if {"width", "height"} <= set(sides)), None)
    return Input(
        name=name,
        type=kind,
        required=required,
        choices=choices,
        min=low,
        max=_number(schema.get("maxItems")) if items else high,
        open=low_open or high_open,
        multiple_of=_number(schema.get("multipleOf")),
        default=schema.get("default"),
        items=_input(name, items, root) if items else None,
        edge=_input("width", width, root) if width is not None else None,
        address=any(branch.get("format") in ("uri", "url", "binary") for branch in branches),
        secret=schema.get("format") == "password" or schema.get("x-cog-secret") is True,
    )


_TYPES: Mapping[frozenset[str], ValueType] = MappingProxyType(
    {
        frozenset({"string"}): ValueType.TEXT,
        frozenset({"integer"}): ValueType.INTEGER,
        frozenset({"number"}): ValueType.NUMBER,
        frozenset({"integer", "number"}): ValueType.NUMBER,
        frozenset({"boolean"}): ValueType.BOOLEAN,
    }
)


def _value_type(branches: Sequence[Schema], choices: Sequence[Json]) -> ValueType:
    named = {name for branch in branches for name in _type_names(branch)}
    return _TYPES.get(frozenset(named or {_type_of(choice) for choice in choices}), ValueType.JSON)


def _type_names(schema: Schema) -> list[str]:
    """The types a schema allows, null apart: `type` is one name or, since OpenAPI 3.1, several."""
    named = schema.get("type")
    names = [named] if isinstance(named, str) else _list(named)
    return [name for name in names if isinstance(name, str) and name != "null"]


def _type_of(value: Json) -> str:
    match value:
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case _:
            return "object"


def _choices(branches: Sequence[Schema]) -> tuple[Json, ...]:
    """What may be sent, if every branch says so: a branch that takes anything makes a list of no use."""
    listed = [_list(branch.get("enum")) or ([branch["const"]] if "const" in branch else []) for branch in branches]
    if not all(listed):
        return ()
    return tuple(choice for choices in listed for choice in choices if choice is not None)


def _bound(branches: Sequence[Schema], name: str, exclusive: str, kind: ValueType, inwards: int) -> tuple[float | None, bool]:
    """A bound and whether it is itself excluded; of integers, the next one inside.

    `exclusiveMinimum` is a number in JSON Schema and a flag beside `minimum` in OpenAPI 3.0.
    """
    if len(branches) != 1 or kind not in (ValueType.INTEGER, ValueType.NUMBER):
        return None, False
    plain, strict = _number(branches[0].get(name)), branches[0].get(exclusive)
    excluded = plain if strict is True else _number(strict)
    if excluded is None:
        return plain, False
    if kind is ValueType.INTEGER:
        return int(excluded) + inwards, False
    return excluded, True


def _picture_field(answer: Schema, root: Schema) -> str | None:
    """Where the pictures stand in an answer: `images` before `image` before whatever else has an address."""
    if {"string", "array"} & set(_type_names(answer)):
        return ""
    fields = _table(answer.get("properties"))
    names = sorted(fields, key=lambda name: ("images", "image").index(name) if name in ("images", "image") else 2)
    return next((name for name in names if _is_file(_resolved(fields[name], root), root)), None)


def _is_file(schema: Schema, root: Schema) -> bool:
    inner = _resolved(schema.get("items"), root) or schema
    return "url" in _table(inner.get("properties")) or inner.get("format") == "uri"


def _resolved(schema: Json, root: Schema, seen: frozenset[str] = frozenset()) -> Schema:
    """The schema with references followed, parts merged and null left out; what stands beside a reference wins over it."""
    own = _table(schema)
    merged: Schema = {}
    reference = own.get("$ref")
    if isinstance(reference, str) and reference not in seen:
        seen |= {reference}
        merged = _resolved(_pointed(reference, root), root, seen)
    for part in _list(own.get("allOf")):
        merged = _merged(merged, _resolved(part, root, seen))
    either = [_resolved(branch, root, seen) for key in ("anyOf", "oneOf") for branch in _list(own.get(key))]
    branches = [branch for branch in either if not _is_null(branch)]
    rest = {key: value for key, value in own.items() if key not in ("$ref", "allOf", "anyOf", "oneOf")}
    if len(branches) == 1:
        return _merged(_merged(merged, branches[0]), rest)
    return _merged(merged, {**rest, "anyOf": branches} if branches else rest)


def _merged(base: Schema, over: Schema) -> Schema:
    """Both schemas at once: inputs of both, otherwise the second's word."""
    both: dict[str, Json] = {**base, **over}
    if "properties" in base and "properties" in over:
        both["properties"] = {**_table(base["properties"]), **_table(over["properties"])}
    if "required" in base and "required" in over:
        both["required"] = [*_list(base["required"]), *_list(over["required"])]
    return both


def _is_null(schema: Schema) -> bool:
    return schema.get("type") == "null" or ("const" in schema and schema["const"] is None) or schema.get("enum") == [None]


def _pointed(reference: str, root: Schema) -> Json:
    """What `#/components/schemas/…` stands for; nothing if it leads outside the document."""
    found: Json = root
    for part in reference.removeprefix("#/").split("/"):
        found = _table(found).get(part.replace("~1", "/").replace("~0", "~"))
    return found


def _table(value: Json) -> Schema:
    return value if isinstance(value, dict) else {}


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _number(value: Json) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Json) -> str:
    return value if isinstance(value, str) else ""
