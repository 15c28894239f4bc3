"""Bracketed form names (`list[]`, `nested[a][b]`, `rows[][key]`) built back into lists and objects. Pure.

Source of the forms: what the OpenAI clients for Python and Node put on the wire for nested `extra_body` members.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from gateway.errors import BadRequest
from normalization.request import Json, Text

_MAX_DEPTH = 8
_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_STEP = re.compile(r"\[([^\[\]]*)\]")


def split_name(name: str) -> tuple[str, tuple[str, ...]]:
    """Take a form name apart: `a[b][]` is `a` and the steps `b` and `` (the next element of a list).

    Raises:
        BadRequest: If brackets do not match or are nested too deep.
    """
    match = _NAME.fullmatch(name)
    if match is None or not name.isprintable():
        raise BadRequest("a form field's name is empty or has unmatched brackets; write `name`, `name[]` or `name[key]`")
    steps = tuple(_STEP.findall(match[2]))
    if len(steps) > _MAX_DEPTH:
        raise BadRequest(f"`{match[1]}` is nested more than {_MAX_DEPTH} deep; send it as one JSON string", param=match[1])
    return match[1], steps


def build_fields(pairs: Iterable[tuple[str, Text]]) -> dict[str, Json]:
    """Build the values that text fields stand for, in the order in which their names first came.

    Raises:
        BadRequest: If a scalar comes twice, if a name is used in two shapes, or if rows of objects cannot be told apart.
    """
    roots: dict[str, list[_Entry]] = {}
    for name, value in pairs:
        root, steps = split_name(name)
        roots.setdefault(root, []).append(_Entry(steps, value))
    return {root: _build(root, entries) for root, entries in roots.items()}


@dataclass(frozen=True, slots=True)
class _Entry:
    steps: tuple[str, ...]
    """What is left of the name."""
    value: Text

    @property
    def key(self) -> str:
        return self.steps[0]

    @property
    def below(self) -> "_Entry":
        return _Entry(self.steps[1:], self.value)


@dataclass(slots=True)
class _Row:
    """One object of a list while it is being collected."""

    entries: list[_Entry] = field(default_factory=list["_Entry"])

    def has(self, entry: _Entry) -> bool:
        return any(mine.steps == entry.steps for mine in self.entries)


def _build(param: str, entries: Sequence[_Entry]) -> Json:
    if not entries[0].steps and len(entries) == 1:
        return entries[0].value
    if all(not entry.steps for entry in entries):
        raise BadRequest(
            f"Duplicate parameter: `{param}`. Send it once, or as a list with `{param}[]=<value>` for each element.",
            param=param,
            code="duplicate_parameter",
        )
    if any(not entry.steps for entry in entries):
        raise _mixed(param)
    if all(entry.key == "" for entry in entries):
        return _build_list(param, [entry.below for entry in entries])
    if any(entry.key == "" for entry in entries):
        raise _mixed(param)
    return _build_object(param, entries)


def _build_object(param: str, entries: Sequence[_Entry]) -> Json:
    groups: dict[str, list[_Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.key, []).append(entry.below)
    built: Mapping[str, Json] = {key: _build(f"{param}[{key}]", group) for key, group in groups.items()}
    if set(built) == {str(index) for index in range(len(built))}:
        return [built[str(index)] for index in range(len(built))]
    return built


def _build_list(param: str, entries: Sequence[_Entry]) -> Json:
    if all(not entry.steps for entry in entries):
        return [entry.value for entry in entries]
    if any(not entry.steps for entry in entries):
        raise _mixed(param)
    rows = _equal_rows(entries) or _rows_in_order(param, entries)
    return [_build(f"{param}[{index}]", row.entries) for index, row in enumerate(rows)]


def _equal_rows(entries: Sequence[_Entry]) -> list[_Row]:
    """Rows that all have the same keys, in whichever order those came; empty if the keys' counts differ."""
    columns: dict[tuple[str, ...], list[_Entry]] = {}
    for entry in entries:
        columns.setdefault(entry.steps, []).append(entry)
    if len({len(column) for column in columns.values()}) != 1 or any("" in steps for steps in columns):
        return []
    return [_Row(list(row)) for row in zip(*columns.values(), strict=True)]


def _rows_in_order(param: str, entries: Sequence[_Entry]) -> list[_Row]:
    """Rows one after the other: a key that the row has already begins the next one.

    Python's client sends all values of a key together. With a key missing in some row nobody can then say in which.
    """
    order = [entry.steps for entry in entries]
    changes = sum(1 for before, after in pairwise(order) if before != after)
    if len(set(order)) > 1 and changes == len(set(order)) - 1:
        raise BadRequest(
            f"the rows of `{param}` cannot be told apart, as some lack a key; send `{param}` as one JSON string",
            param=param,
            code="invalid_value",
        )
    rows = [_Row()]
    for entry in entries:
        if rows[-1].has(entry) and "" not in entry.steps:
            rows.append(_Row())
        rows[-1].entries.append(entry)
    return rows


def _mixed(param: str) -> BadRequest:
    return BadRequest(
        f"`{param}` is sent in two shapes at once; use only one of `{param}`, `{param}[]` and `{param}[key]`",
        param=param,
        code="invalid_type",
    )
