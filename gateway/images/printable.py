"""Requests, plans, receipts and usage as the journal stores them: JSON, long values cut, prompts only in the request. Pure."""

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from normalization.pixels.formats import Size
from normalization.plan import Call, Decision, Plan, Step
from normalization.planner import shown
from normalization.request import ImageRef, ImageRequest, Json
from providers.base import Usage

WITHHELD = "(kept with the request)"
"""Stands in plans and receipts for a prompt, which is kept with the job's request and nowhere else."""

_LONGEST_VALUE = 500
"""Characters of one text in what is stored; prompts in the request excepted."""

_LARGEST_VALUE = 4_096
"""Bytes of one list or object in what is stored, as JSON."""

_LONGEST_PROMPT = 32_000
"""Characters of a prompt: as many as `prompt` may have."""

_PROMPTS = ("prompt", "negative_prompt")
"""The prompts of the gateway's own vocabulary, whose length is bounded where they are parsed."""

_LARGEST_REQUEST = 64 * 1024
"""Bytes of a stored request as JSON, besides its prompts."""


def printable_request(request: ImageRequest) -> dict[str, Json]:
    """What was asked, as the journal keeps it: prompts whole, other long values cut, and of too many the first."""
    kept: dict[str, Json] = {}
    room, left_out = _LARGEST_REQUEST, 0
    for name, value in request.asked.items():
        entry = _kept(name, shown(value, request))
        room -= 0 if name in _PROMPTS else len(msgspec.json.encode({name: entry}))
        if room >= 0 or name in _PROMPTS:
            kept[name] = entry
        else:
            left_out += 1
    return kept | ({"…": f"{left_out} further parameters are not kept"} if left_out else {})


def _kept(name: str, value: Json) -> Json:
    return _cut(value, _LONGEST_PROMPT) if _is_prompt(name) and isinstance(value, str) else _printable(value)


def printable_plan(plan: Plan) -> dict[str, Any]:
    """A plan as JSON: handles for pictures, prompts withheld, long values cut."""
    prompts = {field for decision in plan.decisions if _is_prompt(decision.param) for field in decision.sent}
    return {
        "calls": [_printable_call(call, prompts) for call in plan.calls],
        "steps": [_printable_step(step) for step in plan.steps],
        "decisions": [_printable_decision(decision) for decision in plan.decisions],
        "copies": plan.copies,
    }


def printable_usage(usage: Usage) -> dict[str, Any]:
    """What a provider said it used; figures as text, so that they stay exact."""
    figures = {"seconds": usage.seconds, "units": usage.units}
    return {name: str(value) for name, value in figures.items() if value is not None} | {"reported": dict(usage.reported)}


def withheld(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a receipt, long values cut, and without the prompt if it is about one."""
    if not _is_prompt(entry["param"]):
        return {name: _printable(value) for name, value in entry.items()}
    return _with_prompt(entry, WITHHELD)


def restored(entry: Mapping[str, Any], request: Mapping[str, Any]) -> Mapping[str, Any]:
    """A line of a receipt as it was before `withheld`, by what the job's request says."""
    if not _is_prompt(entry["param"]):
        return entry
    return _with_prompt(entry, request.get(entry["param"], WITHHELD))


def _printable_call(call: Call, prompts: set[str]) -> dict[str, Any]:
    payload = {
        field: WITHHELD if field in prompts or _is_prompt(field) else _printable(value) for field, value in call.payload.items()
    }
    return {"endpoint": call.endpoint, "images": call.images, "payload": payload}


def _printable_step(step: Step) -> dict[str, Any]:
    values = {name: _printable(getattr(step, name)) for name in step.__slots__}
    return {"step": type(step).__name__.lower(), **values}


def _printable_decision(decision: Decision) -> dict[str, Any]:
    entry = {
        name: _printable(getattr(decision, name)) for name in ("param", "mode", "asked", "sent", "emulation", "reason", "known")
    }
    return withheld(entry)


def _printable(value: object) -> Any:
    match value:
        case ImageRef() | Size():
            return str(value)
        case str():
            return _cut(value, _LONGEST_VALUE)
        case Mapping():
            inside = cast("Mapping[object, object]", value)  # pattern matching forgets what it knew
            return _unless_large({str(key): _printable(inner) for key, inner in inside.items()})
        case list() | tuple():
            return _unless_large([_printable(inner) for inner in cast("list[object] | tuple[object, ...]", value)])  # as above
        case _:
            return value


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text)} characters)"


def _unless_large(value: Json) -> Json:
    size_bytes = len(msgspec.json.encode(value))
    return value if size_bytes <= _LARGEST_VALUE else f"({size_bytes:,} bytes of JSON or more, not kept)"


def _is_prompt(param: str) -> bool:
    return "prompt" in param.lower()


def _with_prompt(entry: Mapping[str, Any], prompt: Json) -> dict[str, Any]:
    # A prompt reaches a provider word for word, if at all, so one text fits both places.
    sent = dict.fromkeys(entry.get("sent") or {}, prompt)
    return {**entry, "asked": prompt, "sent": sent} | ({"delivered": prompt} if entry.get("delivered") else {})
