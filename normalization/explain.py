"""A plan for people and programs: the receipt of an answer, the header line, and a table for terminals."""

from collections.abc import Mapping, Sequence

from normalization.pixels.formats import ImageInfo
from normalization.plan import Decision, Plan
from normalization.request import ImageRequest, Json


def receipt(plan: Plan, request: ImageRequest, results: Sequence[ImageInfo] = ()) -> list[dict[str, Json]]:
    """One entry for each parameter: asked, sent, delivered.

    Args:
        plan: What was planned.
        request: What was asked.
        results: The delivered pictures as measured; empty before the work.
    """
    return [_entry(decision, request, results) for decision in plan.decisions]


def header(plan: Plan) -> str:
    """The receipt in one line: `size=converted, n=emulated`. Only names that are safe in a header."""
    return ", ".join(f"{_header_name(decision.param)}={decision.mode}" for decision in plan.decisions)


def table(plan: Plan) -> str:
    """The decisions of a plan in aligned columns."""
    rows = [(decision.param, decision.mode, _brief(decision.asked), _account(decision)) for decision in plan.decisions]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    return "\n".join(
        "  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3])).rstrip() for row in rows
    )


def _entry(decision: Decision, request: ImageRequest, results: Sequence[ImageInfo]) -> dict[str, Json]:
    entry: dict[str, Json] = {
        "param": decision.param,
        "mode": decision.mode.value,
        "asked": decision.asked,
        "sent": dict(decision.sent),
    }
    if results:
        delivered = _delivered(decision.param, request, results)
        entry |= {} if delivered is None else {"delivered": delivered}
    entry |= {} if decision.emulation is None else {"emulation": decision.emulation}
    entry |= {} if decision.reason is None else {"reason": decision.reason}
    entry |= {} if decision.known else {"known": False}
    return entry


def _delivered(param: str, request: ImageRequest, results: Sequence[ImageInfo]) -> Json:
    """What came of a parameter, where that can be measured."""
    first = results[0]
    match param:
        case "n":
            return len(results)
        case "size" | "aspect_ratio" | "resolution":
            return str(first.size)
        case "output_format":
            return str(first.format)
        case "scale_factor" if request.images:
            return round(first.size.width / request.images[0].size.width, 4)
        case "background":
            return "transparent" if first.alpha else "opaque"
        case "response_format":
            return request.response_format
        case _:
            return None


def _account(decision: Decision) -> str:
    sent = ", ".join(f"{field}={_brief(value)}" for field, value in decision.sent.items())
    return "; ".join(part for part in (sent, decision.emulation, decision.reason) if part)


def _brief(value: Json | Mapping[str, Json]) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) <= 40 else f"{text[:39]}…"


def _header_name(name: str) -> str:
    return (
        "".join(character for character in name if character.isascii() and (character.isalnum() or character in "-_.[]"))[:64]
        or "_"
    )
