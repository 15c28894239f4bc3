"""What a fal endpoint accepts, as far as the catalog knows, and fal's own words for what it does not.

Unknown fields are dropped in silence, numbers in text are taken, as the real models' pydantic schemas do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from normalization.offer import Offer, Rule, ValueType
from normalization.request import PARAMETERS

PRESETS: Mapping[str, tuple[int, int]] = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
"""Sizes with a name. Source: generated types of `@fal-ai/client` 1.10.1."""

_ERRORS = "https://docs.fal.ai/errors#"


class Kind(StrEnum):
    """What a field holds."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    PICTURE = "picture"
    PICTURES = "pictures"
    SIZE = "size"
    """A preset's name, or an object of width and height."""
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Field:
    """One input of an endpoint."""

    name: str
    kind: Kind
    required: bool = False
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    default: Any = None


class InputRefused(Exception):
    """The model does not take the input."""

    def __init__(self, detail: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(detail[0]["type"])
        self.detail = tuple(detail)
        """What stands under `detail` in the answer with status 422."""


def fields_of(offer: Offer) -> Mapping[str, Field]:
    """The inputs of an offer's endpoint; where several parameters set one, the first that tells its type counts."""
    found: dict[str, Field] = {}
    for name, rule in sorted(offer.params.items(), key=lambda item: item[1].converter == "table"):
        if rule.verb is not None and (rule.to or name) not in found:
            found[rule.to or name] = _field(rule.to or name, name, rule)
    return found


def parse_input(raw: Any, fields: Mapping[str, Field]) -> Mapping[str, Any]:
    """The input with its defaults, unknown fields left out. Raises `InputRefused` with everything that is wrong."""
    if not isinstance(raw, dict):
        raise InputRefused([_plain("model_attributes_type", ["body"], "Input should be a valid dictionary or object", raw)])
    given: dict[str, Any] = raw  # pyright: ignore[reportUnknownVariableType] -- JSON objects have text keys
    parsed: dict[str, Any] = {}
    wrong: list[Mapping[str, Any]] = []
    for field in fields.values():
        value = given.get(field.name)
        if value is None:
            parsed[field.name] = field.default
            if field.required:
                wrong.append(_plain("missing", ["body", field.name], "Field required", given))
            continue
        try:
            parsed[field.name] = _parsed(value, field)
        except _Wrong as error:
            wrong.append(error.entry)
    if wrong:
        raise InputRefused(wrong)
    return parsed


def model_error(
    kind: str, field: str | None, message: str, value: Any = None, ctx: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One entry of a `detail` list, in the documented form. Source: https://docs.fal.ai/errors."""
    entry: dict[str, Any] = {"loc": ["body", *([field] if field else [])], "msg": message, "type": kind, "url": _ERRORS + kind}
    return entry | ({"ctx": dict(ctx)} if ctx else {}) | {"input": value}


def json_refused(position: int, reason: str) -> InputRefused:
    """For a body that is not JSON."""
    entry = _plain("json_invalid", ["body", position], "JSON decode error", {})
    return InputRefused([entry | {"ctx": {"error": reason}}])


class _Wrong(Exception):
    def __init__(self, entry: Mapping[str, Any]) -> None:
        super().__init__(entry["type"])
        self.entry = entry


def _field(field: str, name: str, rule: Rule) -> Field:
    kind = _kind(name, rule)
    choices = () if kind in (Kind.BOOLEAN, Kind.SIZE) else tuple(rule.table.values()) or rule.choices
    if choices and rule.default is not None and rule.default not in choices:
        choices = (*choices, rule.default)
    low = 1 if name == "n" else rule.min
    return Field(field, kind, rule.required, choices, low, rule.max, rule.default)


def _kind(name: str, rule: Rule) -> Kind:
    if name in ("image", "mask"):
        return Kind.PICTURES if rule.converter == "image_list" else Kind.PICTURE
    if rule.type is not None:
        return Kind.ANY if rule.type is ValueType.JSON else Kind(rule.type.value)
    match rule.converter:
        case "factor_to_reach" | "scaled":
            return Kind.NUMBER
        case "nearest_ratio" | "with_default" | "longest_edge":
            return Kind.TEXT
        case "width_height":
            return Kind.SIZE
        case "table":
            return Kind.BOOLEAN if all(isinstance(value, bool) for value in rule.table.values()) else Kind.TEXT
        case _:
            declared = PARAMETERS[name].schema.get("type") if name in PARAMETERS else None
            return Kind.TEXT if declared == "string" else Kind(str(declared)) if declared else Kind.ANY


def _parsed(value: Any, field: Field) -> Any:
    match field.kind:
        case Kind.NUMBER:
            return _bounded(_number(value, field), field)
        case Kind.INTEGER:
            return _bounded(_integer(value, field), field)
        case Kind.BOOLEAN:
            return _boolean(value, field)
        case Kind.TEXT | Kind.PICTURE:
            return _text(value, field)
        case Kind.PICTURES:
            return _pictures(value, field)
        case Kind.SIZE:
            return _size(value, field)
        case Kind.ANY:
            return value


def _number(value: Any, field: Field) -> float:
    if isinstance(value, int | float):
        return value
    if not isinstance(value, str):
        raise _wrong("float_type", field, "Input should be a valid number", value)
    try:
        return float(value)
    except ValueError:
        message = "Input should be a valid number, unable to parse string as a number"
        raise _wrong("float_parsing", field, message, value) from None


def _integer(value: Any, field: Field) -> int:
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            message = "Input should be a valid integer, unable to parse string as an integer"
            raise _wrong("int_parsing", field, message, value) from None
    if not isinstance(value, int | float):
        raise _wrong("int_type", field, "Input should be a valid integer", value)
    if value != int(value):
        message = "Input should be a valid integer, got a number with a fractional part"
        raise _wrong("int_from_float", field, message, value)
    return int(value)


def _bounded(value: float, field: Field) -> float:
    if field.choices:
        return _chosen(value, field)
    if field.low is not None and value < field.low:
        low = _short(field.low)
        raise _limit("greater_than_equal", field, f"Input should be greater than or equal to {low}", value, {"ge": low})
    if field.high is not None and value > field.high:
        high = _short(field.high)
        raise _limit("less_than_equal", field, f"Input should be less than or equal to {high}", value, {"le": high})
    return value


def _boolean(value: Any, field: Field) -> bool:
    known = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False, "on": True, "off": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str | int) and str(value).lower() in known:
        return known[str(value).lower()]
    raise _wrong("bool_parsing", field, "Input should be a valid boolean, unable to interpret input", value)


def _text(value: Any, field: Field) -> str:
    if not isinstance(value, str):
        raise _wrong("string_type", field, "Input should be a valid string", value)
    if field.choices:
        return _chosen(value, field)
    if field.kind is Kind.TEXT and field.high is not None and len(value) > field.high:
        longest = int(field.high)
        message = f"String should have at most {longest} characters"
        raise _limit("string_too_long", field, message, value, {"max_length": longest})
    return value


def _pictures(value: Any, field: Field) -> Sequence[str]:
    if not isinstance(value, list):
        raise _wrong("list_type", field, "Input should be a valid list", value)
    pictures: list[Any] = value  # pyright: ignore[reportUnknownVariableType] -- JSON
    if not pictures:
        message = "List should have at least 1 item after validation, not 0"
        raise _limit("sequence_too_short", field, message, [], {"min_length": 1})
    if field.high is not None and len(pictures) > field.high:
        most = int(field.high)
        message = f"List should have at most {most} items after validation, not {len(pictures)}"
        raise _limit("sequence_too_long", field, message, None, {"max_length": most})
    for at, picture in enumerate(pictures):
        if not isinstance(picture, str):
            raise _Wrong(_plain("string_type", ["body", field.name, at], "Input should be a valid string", picture))
    return pictures


def _size(value: Any, field: Field) -> tuple[int, int]:
    if isinstance(value, str):
        if value not in PRESETS:
            raise _limit("one_of", field, f"Input should be one of {', '.join(PRESETS)}", value, {"expected": list(PRESETS)})
        return PRESETS[value]
    if not isinstance(value, dict):
        raise _wrong("model_attributes_type", field, "Input should be a valid dictionary or object", value)
    edges: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType] -- JSON
    width, height = (_edge(edges.get(edge, 512), edge, field) for edge in ("width", "height"))
    return width, height


def _edge(value: Any, edge: str, field: Field) -> int:
    limits = Field(edge, Kind.INTEGER, low=1, high=14142)
    try:
        return int(_bounded(_integer(value, limits), limits))
    except _Wrong as error:
        raise _Wrong({**error.entry, "loc": ["body", field.name, "ImageSize", edge]}) from None


def _chosen(value: Any, field: Field) -> Any:
    if value not in field.choices:
        expected = list(field.choices)
        message = f"Input should be one of {', '.join(repr(choice) for choice in expected)}"
        raise _limit("one_of", field, message, value, {"expected": expected})
    return value


def _wrong(kind: str, field: Field, message: str, value: Any) -> _Wrong:
    return _Wrong(_plain(kind, ["body", field.name], message, value))


def _limit(kind: str, field: Field, message: str, value: Any, ctx: Mapping[str, Any]) -> _Wrong:
    return _Wrong(model_error(kind, field.name, message, value, ctx))


def _plain(kind: str, loc: Sequence[str | int], message: str, value: Any) -> dict[str, Any]:
    """An entry as pydantic itself writes it, without fal's `url`."""
    return {"type": kind, "loc": list(loc), "msg": message, "input": value}


def _short(number: float) -> float:
    return int(number) if float(number).is_integer() else number


def picture_fields(fields: Mapping[str, Field]) -> Iterator[Field]:
    """Those that hold addresses of pictures."""
    return (field for field in fields.values() if field.kind in (Kind.PICTURE, Kind.PICTURES))
