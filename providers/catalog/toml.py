"""TOML, written: values, keys and comments of one line each, whatever texts they hold. Reading is `tomllib`'s."""

import re
from collections.abc import Mapping
from types import MappingProxyType

from normalization.request import Json


def toml_value(value: Json) -> str:
    """A value as TOML writes it, on one line.

    Raises:
        ValueError: For null, which TOML has not.

    Source: https://toml.io/en/v1.0.0
    """
    match value:
        case None:
            raise ValueError("TOML has no null")
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return '"' + "".join(map(_escaped, value)) + '"'
        case Mapping():
            pairs = ", ".join(f"{toml_key(key)} = {toml_value(item)}" for key, item in value.items())
            return f"{{ {pairs} }}" if pairs else "{}"
        case _:
            return f"[{', '.join(map(toml_value, value))}]"


def toml_key(name: str) -> str:
    """A key as TOML writes it: bare where it can be."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)


def toml_comment(text: str) -> str:
    """A comment of one line, whatever the text: a document's own words must not become keys."""
    return "# " + "".join(character if character.isprintable() else " " for character in text)


_ESCAPES: Mapping[str, str] = MappingProxyType({'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"})


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if "\ud800" <= character <= "\udfff":
        # Half of a surrogate pair, which JSON can write and no encoding can.
        return "\ufffd"
    return character if character >= " " and character != "\x7f" else f"\\u{ord(character):04x}"
