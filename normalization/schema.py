"""The parameters of an offer as JSON Schema: what a caller may send, and how it travels."""

from collections.abc import Mapping

from normalization.offer import Offer, Rule, ValueType, Verb
from normalization.plan import Mode
from normalization.request import MAX_IMAGES, PARAMETERS, Json

_MODES = {Verb.PASSTHROUGH: Mode.PASSTHROUGH, Verb.RENAME: Mode.RENAMED, Verb.CONVERT: Mode.CONVERTED}

_TYPES: Mapping[ValueType, Mapping[str, Json]] = {
    ValueType.TEXT: {"type": "string"},
    ValueType.INTEGER: {"type": "integer"},
    ValueType.NUMBER: {"type": "number"},
    ValueType.BOOLEAN: {"type": "boolean"},
    ValueType.JSON: {},
}


def parameter_schema(offer: Offer) -> dict[str, Json]:
    """The JSON Schema (draft 2020-12) of what an offer takes.

    Each property says under `x-gateway` which native way it goes, the provider's field, the range that goes natively, and what
    emulation serves values beyond it. Blocked parameters are left out; names that no entry knows go to the provider as they are.
    """
    own = {name: _property(name, rule) for name, rule in offer.params.items() if rule.blocked is None}
    served = {
        name: {**row.schema, "x-gateway": {"mode": Mode.EMULATED.value, "emulation": row.served}}
        for name, row in PARAMETERS.items()
        if row.served is not None
    }
    required: list[Json] = [name for name, rule in offer.params.items() if rule.required]
    return {"type": "object", "properties": {**own, **served}, "required": required}


def _property(name: str, rule: Rule) -> dict[str, Json]:
    schema: dict[str, Json] = {**_value(name, rule)}
    if rule.default is not None and rule.verb is not Verb.CONVERT:
        schema["default"] = rule.default
    how: dict[str, Json] = {"mode": (_MODES[rule.verb] if rule.verb else Mode.EMULATED).value}
    details: dict[str, Json] = {
        "field": (rule.to or name) if rule.verb else None,
        "converter": rule.converter,
        # In the provider's words, which may be no value of ours.
        "default": rule.default if rule.verb is Verb.CONVERT else None,
        "minimum": rule.min,
        "maximum": rule.max,
        "choices": list(rule.choices) or None,
        "formats": list(rule.formats) or None,
        "max_pixels": rule.max_pixels,
        "max_edge": rule.max_edge,
        "emulation": rule.emulate,
        "uncertain": rule.uncertain,
    }
    return {**schema, "x-gateway": how | {key: value for key, value in details.items() if value is not None}}


def _value(name: str, rule: Rule) -> Mapping[str, Json]:
    """What a caller may send, emulations included: the universal value, else the provider's own type and range."""
    if name == "image":
        return {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": min(int(rule.max or 1), MAX_IMAGES)}
    if name == "mask":
        return {"type": "string", "format": "binary"}
    known = PARAMETERS.get(name)
    schema = dict(known.schema) if known is not None else dict(_TYPES[rule.type or ValueType.JSON])
    if rule.emulate is None and rule.verb in (Verb.PASSTHROUGH, Verb.RENAME):
        narrow = {"minimum": rule.min, "maximum": rule.max, "multipleOf": rule.multiple_of, "enum": list(rule.choices) or None}
        schema |= {key: value for key, value in narrow.items() if value is not None}
    return schema
