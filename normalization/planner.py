"""The planner: a request and an offer become a plan. It is total: what cannot be done is a decision, never an exception.

Every parameter is decided once: by the native way if the offer has one and the value is within its limits, else by the emulation
that the offer names, else it is `unsupported`, with the reason. What concerns the file is decided last, because any step on the
pixels takes it over.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

from normalization.converters import CONVERTERS, Converted, Refused, is_number
from normalization.emulations import (
    EMULATIONS,
    ENCODE,
    Emulated,
    encode_step,
    encoded,
    factor_from_sent,
    nearest_factor,
    scaled_size,
)
from normalization.offer import Offer, Rule, ValueType, Verb
from normalization.own import own_decision
from normalization.pixels.formats import Format, Size, needs_cleaning
from normalization.plan import Call, Composite, Decision, Encode, Fit, Mode, Plan, Step
from normalization.request import (
    PARAMETERS,
    RESOLUTIONS,
    FitMode,
    ImageRef,
    ImageRequest,
    Json,
    Ratio,
    Text,
    Value,
    as_boolean,
    as_integer,
    as_number,
)

Payload: TypeAlias = dict[str, Json | ImageRef | tuple[ImageRef, ...]]

FILE_PARAMS = ("background", "output_format", "output_compression", "metadata")
"""What concerns the file; decided last and together."""

OWN_RULES: Mapping[str, Rule] = MappingProxyType({"metadata": Rule(emulate=ENCODE)})
"""Parameters that the gateway alone serves, with every offer alike."""

STEP_ORDER: tuple[type[Step], ...] = (Composite, Fit, Encode)

_MODES = {Verb.PASSTHROUGH: Mode.PASSTHROUGH, Verb.RENAME: Mode.RENAMED, Verb.CONVERT: Mode.CONVERTED}


@dataclass(frozen=True, slots=True)
class _Outcome:
    """One decision, and what it adds to the plan."""

    decision: Decision
    payload: Mapping[str, Json | ImageRef | tuple[ImageRef, ...]]
    emulated: Emulated | None = None


def plan_request(request: ImageRequest, offer: Offer, known: frozenset[str] = frozenset()) -> Plan:
    """Decide every parameter of a request for one offer.

    Args:
        request: What was asked.
        offer: Who would serve it.
        known: All parameter names of the catalog; a name outside it goes to the provider as it is.
    """
    request = replace(
        request,
        own_format=_own_format(offer),
        sent_size=_sent_size(request, offer),
        at_input_size=_at_input_size(request, offer),
    )
    claimed = _claimed_fields(request, offer)
    outcomes = {
        name: _decide(name, value, request, offer, claimed, known)
        for name, value in request.asked.items()
        if name not in FILE_PARAMS and not _by_gateway(name, value)
    }
    outcomes |= _restored(request, offer, claimed, outcomes)
    steps = [step for outcome in outcomes.values() if outcome.emulated for step in outcome.emulated.steps]
    file_outcomes, encode = _decide_file(request, offer, touched=bool(steps))
    outcomes |= file_outcomes
    steps = sorted(dict.fromkeys((*steps, *encode)), key=_place)
    outcomes |= {
        name: _Outcome(own_decision(name, shown(value, request), request, offer.output, steps), {})
        for name, value in request.asked.items()
        if _by_gateway(name, value)
    }
    payload: Payload = dict(offer.fixed)
    for outcome in outcomes.values():
        payload |= outcome.payload
    payload |= offer.master if encode else {}
    calls, seeds = _calls(request, offer, payload, outcomes)
    return Plan(
        offer=offer,
        calls=calls,
        steps=tuple(steps),
        decisions=tuple(_with_seeds(outcomes[name].decision, seeds) for name in request.asked),
        copies=emulated.copies if "n" in outcomes and (emulated := outcomes["n"].emulated) else 1,
        missing=tuple(name for name, rule in offer.params.items() if rule.required and not request.asked.get(name)),
    )


def _decide(
    name: str, value: Value, request: ImageRequest, offer: Offer, claimed: frozenset[str], known: frozenset[str]
) -> _Outcome:
    asked = shown(value, request)
    rule = offer.params.get(name) or OWN_RULES.get(name) or _rule_by_field(name, request, offer)
    if value in ("auto", "") and (name in PARAMETERS or name in known) and not (rule is not None and value in rule.choices):
        return _Outcome(Decision(name, Mode.PASSTHROUGH, asked, emulation="left to the model"), {})
    if rule is None:
        return _without_rule(name, value, asked, offer, known)
    if rule.blocked is not None:
        return _unsupported(name, asked, Refused(rule.blocked), offer)
    ruled = _ruled_by_size(name, value, request)
    if ruled is not None:
        return _unsupported(name, asked, ruled, offer) if isinstance(ruled, Refused) else _Outcome(ruled, {})
    native = _native(name, value, rule, request, claimed)
    emulation = EMULATIONS.get(rule.emulate or "")
    emulated = emulation(value, native, rule, request) if emulation else None
    if isinstance(native, Refused) and emulated is None:
        return _unsupported(name, asked, native, offer)
    if isinstance(emulated, Refused):
        return _unsupported(name, asked, emulated, offer)
    return _served(name, asked, rule, native, emulated, request)


def _ruled_by_size(name: str, value: Value, request: ImageRequest) -> Decision | Refused | None:
    """What an exact size leaves of a shape or resolution asked beside it: nothing to do where they agree, a report where not."""
    size = request.asked.get("size")
    if (
        name not in ("aspect_ratio", "resolution")
        or not isinstance(size, Size | Ratio)
        or (name == "resolution" and isinstance(size, Ratio))
    ):
        return None
    if isinstance(value, Ratio):
        agrees = size.width * value.height == size.height * value.width
    else:
        agrees = max(size) == RESOLUTIONS.get(str(value))
    if agrees:
        return Decision(name, Mode.EMULATED, shown(value, request), emulation=f"given by size {size}")
    return Refused(f"{value} contradicts size {size}, which wins", droppable=True)


def _served(
    name: str, asked: Json, rule: Rule, native: Converted | Refused, emulated: Emulated | None, request: ImageRequest
) -> _Outcome:
    """The parameter reaches the result: natively, by the gateway, or by both."""
    whole = isinstance(native, Converted) and native.exact and not (emulated and emulated.decisive)
    mode = _MODES[rule.verb] if rule.verb and whole else Mode.EMULATED
    by_hand = emulated.sent if emulated and (emulated.decisive or isinstance(native, Refused)) else None
    sent = by_hand if by_hand is not None or isinstance(native, Refused) else native.value
    payload: Payload = {} if sent is None else {rule.to or name: sent}
    if emulated and emulated.calls and rule.verb:
        shown_sent: Mapping[str, Json] = {rule.to or name: list(emulated.calls)}
    else:
        shown_sent = {key: shown(item, request) for key, item in payload.items()}
    words = emulated.words if emulated else _preparation(native, rule)
    return _Outcome(Decision(name, mode, asked, shown_sent, emulation=words), payload, emulated)


def _unsupported(name: str, asked: Json, refused: Refused, offer: Offer) -> _Outcome:
    reason = f"{offer.provider}: {name} {refused.reason}"
    return _Outcome(Decision(name, Mode.UNSUPPORTED, asked, reason=reason, refused=not refused.droppable), {})


def _without_rule(name: str, value: Value, asked: Json, offer: Offer, known: frozenset[str]) -> _Outcome:
    """Unknown to everyone: sent as it is. Known elsewhere: unsupported here."""
    if name == "n":
        return _without_number(value, asked, offer)
    if isinstance(value, ImageRef) or (isinstance(value, tuple) and not isinstance(value, Size | Ratio)):
        # Leaving out a picture or a mask would change what is done, not how: never dropped.
        return _unsupported(name, asked, Refused("is not taken"), offer)
    if name in PARAMETERS or name in known:
        return _unsupported(name, asked, Refused("is not known to this model", droppable=True), offer)
    guessed = guess(value)
    return _Outcome(Decision(name, Mode.PASSTHROUGH, asked, {name: guessed}, known=False), {name: guessed})


def _without_number(value: Value, asked: Json, offer: Offer) -> _Outcome:
    """`n` for an offer that has no number: one picture is what it gives."""
    if value == 1:
        return _Outcome(Decision("n", Mode.PASSTHROUGH, asked, emulation="one picture is what this model gives"), {})
    return _unsupported("n", asked, Refused("is not known to this model, which gives one picture", droppable=True), offer)


def _claimed_fields(request: ImageRequest, offer: Offer) -> frozenset[str]:
    """Provider fields that an asked parameter sets directly: a conversion of another parameter stays away from them."""
    rules = ((name, offer.params.get(name) or _rule_by_field(name, request, offer)) for name in request.asked)
    direct = (Verb.PASSTHROUGH, Verb.RENAME)
    return frozenset(rule.to or name for name, rule in rules if rule is not None and rule.verb in direct)


def _rule_by_field(field: str, request: ImageRequest, offer: Offer) -> Rule | None:
    """The rule for a provider's own name of a parameter: sent as it is, within the limits that rule has for it.

    Pictures and their number are the gateway's business, so they have one name only; and nothing is asked for twice.
    """
    owners = {name: rule for name, rule in offer.params.items() if rule.to == field}
    for name, rule in owners.items():
        if name in ("image", "mask", "n"):
            return Rule(blocked=f"is the provider's name for `{name}`; send it as that")
        if rule.verb is Verb.RENAME and name in request.asked:
            return Rule(blocked=f"is the provider's name for `{name}`, which was asked for too; send one of them")
        if rule.verb is Verb.RENAME:
            return replace(rule, verb=Verb.PASSTHROUGH, emulate=None, type=rule.type or _declared(name))
    return next((_as_provider_has_it(field, rule) for rule in owners.values()), None)


def _declared(name: str) -> ValueType:
    """The type that the gateway's own vocabulary gives a parameter."""
    known = PARAMETERS.get(name)
    return _DECLARED.get(str(known.schema.get("type")), ValueType.JSON) if known is not None else ValueType.JSON


_DECLARED = {
    "string": ValueType.TEXT,
    "integer": ValueType.INTEGER,
    "number": ValueType.NUMBER,
    "boolean": ValueType.BOOLEAN,
}


def _as_provider_has_it(field: str, rule: Rule) -> Rule:
    """The limits of a field that conversions write, for whoever names the field itself."""
    if rule.table:
        return Rule(Verb.PASSTHROUGH, field, type=ValueType.JSON, choices=tuple(rule.table.values()))
    match rule.converter:
        case "invert":
            return Rule(Verb.PASSTHROUGH, field, type=ValueType.BOOLEAN)
        case "nearest_ratio":
            return Rule(Verb.PASSTHROUGH, field, type=ValueType.TEXT, choices=rule.choices)
        case "factor_to_reach" | "scaled":
            kind = rule.type or ValueType.NUMBER
            return Rule(Verb.PASSTHROUGH, field, type=kind, choices=rule.choices, min=rule.min, max=rule.max)
        case _:
            return Rule(Verb.PASSTHROUGH, field, type=ValueType.JSON)


def _native(name: str, value: Value, rule: Rule, request: ImageRequest, claimed: frozenset[str]) -> Converted | Refused:
    """The value in the provider's own form, or why it has none."""
    if rule.verb is None:
        return Refused("has no form there")
    if rule.verb is Verb.CONVERT and rule.to in claimed:
        return Refused(f"sets {rule.to}, which was asked for by name", droppable=True)
    if isinstance(value, tuple) and not isinstance(value, Size | Ratio):
        return _pictures(value, rule, request)
    if rule.verb is Verb.CONVERT:
        return CONVERTERS[rule.converter or ""](value, rule, request)
    typed = coerce(value, rule.type) if rule.type is not None else value
    if typed is None:
        return Refused(f"must be of type {rule.type}")
    return _within_limits(typed, rule)


def _sent_size(request: ImageRequest, offer: Offer) -> Size | None:
    """The size to which the first picture is shrunk because the offer takes none larger; None if it goes as it is."""
    rule = offer.params.get("image")
    if rule is None or not request.images:
        return None
    smaller = _shrunk(request.images[0].size, rule)
    return None if smaller == request.images[0].size else smaller


def _own_format(offer: Offer) -> Format | None:
    """The format in which the offer gives its results when none is named; None where nobody knows."""
    rule = offer.params.get("output_format")
    default = offer.output.format or (rule.default if rule is not None else None)
    named = _OWN_NAMES.get(str(default), str(default))
    return Format(named) if named in set(Format) else None


_OWN_NAMES = {"jpg": "jpeg"}


def _restored(
    request: ImageRequest, offer: Offer, claimed: frozenset[str], outcomes: Mapping[str, _Outcome]
) -> dict[str, _Outcome]:
    """What an upscaler does when nothing is asked of it, promised for the picture as it came: for one that had to be shrunk.

    The outcome of `image`, completed by the factor that makes up for it and by a fit; empty where nothing is to be made up for.
    """
    rule, image = offer.params.get("scale_factor"), outcomes.get("image")
    if rule is None or image is None or request.sent_size is None or request.target is not None or "scale_factor" in outcomes:
        return {}
    field = rule.to or "scale_factor"
    default = 1 if request.at_input_size else rule.default
    wanted = scaled_size(request, default) if is_number(default) else None
    if not is_number(default) or wanted is None or field in claimed or image.decision.refused:
        return {}
    nearest = None if request.at_input_size else nearest_factor(factor_from_sent(request, default), rule)
    own: Payload = {} if nearest is None else {field: nearest}
    model = "" if nearest is None else f"the model works at {nearest:g}, and the result is "
    emulation = f"{image.decision.emulation}; {model}fitted to {wanted}, {default:g} times the picture that came"
    # Shown with the picture, since the factor was not asked for.
    decision = replace(image.decision, sent={**image.decision.sent, **own}, emulation=emulation)
    return {"image": _Outcome(decision, {**image.payload, **own}, Emulated("", (Fit(wanted, request.fit),)))}


def _at_input_size(request: ImageRequest, offer: Offer) -> bool:
    """Whether something asked makes the results come back at the first picture's own size."""
    return any(name in request.asked and rule.at_input_size for name, rule in offer.params.items())


def _by_gateway(name: str, value: Value) -> bool:
    """Whether a parameter never concerns a provider: what it comes to is read off the plan's steps."""
    parameter = PARAMETERS.get(name)
    return (parameter is not None and parameter.served is not None) or (name, value) == ("metadata", "strip")


def _place(step: Step) -> tuple[int, bool]:
    """Where a step comes in a plan: a size before a shape, which is cut out of it."""
    return STEP_ORDER.index(type(step)), isinstance(step, Fit) and isinstance(step.size, Ratio)


def _shrunk(size: Size, rule: Rule) -> Size:
    """The largest size of the same shape within the rule's limits."""
    by_pixels = math.sqrt(rule.max_pixels / size.pixels) if rule.max_pixels else 1.0
    by_edge = rule.max_edge / max(size) if rule.max_edge else 1.0
    scale = min(1.0, by_pixels, by_edge)
    return size if scale >= 1.0 else Size(max(1, int(size.width * scale)), max(1, int(size.height * scale)))


def _preparation(native: Converted | Refused, rule: Rule) -> str | None:
    """What is done to pictures before they are sent, and what that entails, in words."""
    sent = native.value if isinstance(native, Converted) else None
    refs = (sent,) if isinstance(sent, ImageRef) else sent if isinstance(sent, tuple) else ()
    words = {words for ref in refs if isinstance(ref, ImageRef) for words in (_in_words(ref, one) for one in ref.prepare)}
    entailed = ("results come back at the picture's own size",) if rule.at_input_size else ()
    return "; ".join((*sorted(words), *entailed)) or None


def _in_words(ref: ImageRef, preparation: str) -> str:
    if preparation.startswith("shrink-"):
        why = "the size of the picture" if ref.name == "mask" else "the largest that is taken"
        return f"brought to {preparation.removeprefix('shrink-')}, {why}"
    return {"clean": "sent as an upright sRGB png without metadata"}.get(preparation, "sent as a gray mask")


def _pictures(value: Sequence[Value], rule: Rule, request: ImageRequest) -> Converted | Refused:
    accepted = tuple(Format(name) for name in rule.formats) or tuple(Format)
    refs = tuple(_ready(ref, accepted, rule, request) for ref in value if isinstance(ref, ImageRef))
    most = int(rule.max or 1)
    if len(refs) > most:
        return Refused(f"takes {most} picture{'s' if most > 1 else ''}, got {len(refs)}")
    if rule.verb is Verb.CONVERT:
        return CONVERTERS[rule.converter or ""](refs, rule, request)
    return Converted(refs if most > 1 else refs[0])


def _ready(ref: ImageRef, accepted: Sequence[Format], rule: Rule, request: ImageRequest) -> ImageRef:
    """The picture as it is sent: cleaned and shrunk where it must be."""
    info = request.info(ref)
    smaller = _shrunk(info.size, rule)
    if smaller != info.size:
        return ref.prepared("clean", f"shrink-{smaller}")
    return ref.prepared("clean") if needs_cleaning(info, accepted) else ref


def _within_limits(value: Value, rule: Rule) -> Converted | Refused:
    if isinstance(value, ImageRef):
        return Converted(value)
    if isinstance(value, Size | Ratio | Format | FitMode):
        value = str(value)
    if rule.choices and value not in rule.choices:
        return Refused(f"must be one of {', '.join(map(_worded, rule.choices))}; asked {_worded(value)}")
    if isinstance(value, str) and rule.max is not None and len(value) > rule.max:
        return Refused(f"has at most {rule.max:g} characters; got {len(value)}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if rule.min is not None and value < rule.min:
            return Refused(f"is at least {rule.min:g}; asked {value:g}")
        if rule.max is not None and value > rule.max:
            return Refused(f"is at most {rule.max:g}; asked {value:g}")
        if rule.multiple_of is not None and value % rule.multiple_of:
            return Refused(f"is a multiple of {rule.multiple_of:g}; asked {value:g}")
    return Converted(value)


def _worded(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _decide_file(request: ImageRequest, offer: Offer, *, touched: bool) -> tuple[dict[str, _Outcome], tuple[Encode, ...]]:
    """Decide what concerns the file: natively if the provider can do all of it and no pixel is touched, else in one encode."""
    asked = {name: value for name, value in request.asked.items() if name in FILE_PARAMS and not _by_gateway(name, value)}
    by_hand = replace(
        offer, params={name: replace(rule, emulate=None) for name, rule in offer.params.items() if name in FILE_PARAMS}
    )
    native = {name: _decide(name, value, request, by_hand, frozenset(), frozenset()) for name, value in asked.items()}
    by_encode = {name: _encoded(name, value, request, offer, native[name]) for name, value in asked.items()}
    lacking = {name for name, outcome in native.items() if outcome.decision.mode is Mode.UNSUPPORTED or _idle(name, by_encode)}
    if touched or any(by_encode[name].decision.mode is Mode.EMULATED for name in lacking):
        return by_encode, (encode_step(request),)
    return {name: by_encode[name] if name in lacking else outcome for name, outcome in native.items()}, ()


def _idle(name: str, by_encode: Mapping[str, _Outcome]) -> bool:
    """Whether a file parameter has no meaning in the format asked for, so that sending it would do nothing."""
    return name == "output_compression" and by_encode[name].decision.mode is Mode.UNSUPPORTED


def _encodes(name: str, offer: Offer) -> bool:
    """Whether the gateway's own encode serves the parameter with this offer."""
    rule = offer.params.get(name) or OWN_RULES.get(name)
    return rule is not None and rule.emulate == ENCODE


def _encoded(name: str, value: Value, request: ImageRequest, offer: Offer, native: _Outcome) -> _Outcome:
    if value == "auto" or not _encodes(name, offer):
        return native
    result = encoded(name, value, request, offer.output)
    if isinstance(result, Refused):
        return _unsupported(name, shown(value, request), result, offer)
    return _Outcome(Decision(name, Mode.EMULATED, shown(value, request), emulation=result.words), {}, result)


def _calls(
    request: ImageRequest, offer: Offer, payload: Payload, outcomes: Mapping[str, _Outcome]
) -> tuple[tuple[Call, ...], tuple[int, ...]]:
    """Split the work into calls; where there are several, each gets its own seed if the model has one to vary."""
    emulated = outcomes["n"].emulated if "n" in outcomes else None
    counted = "n" in outcomes and outcomes["n"].decision.mode is not Mode.UNSUPPORTED
    once = not counted or (emulated is not None and emulated.copies > 1)
    counts = emulated.calls if emulated and emulated.calls else (1 if once else request.n,)
    count_rule, seed_rule = offer.params.get("n"), offer.params.get("seed")
    count_field = count_rule.to or "n" if count_rule is not None and count_rule.verb else None
    seed_field = seed_rule.to or "seed" if seed_rule is not None and seed_rule.verb else None
    first = payload.get(seed_field, seed_rule.default if seed_rule else None) if seed_field else None
    vary = seed_field is not None and isinstance(first, int) and len(counts) > 1
    calls: list[Call] = []
    seeds: list[int] = []
    for count in counts:
        own: Payload = {} if count_field is None or (count_field not in payload and len(counts) == 1) else {count_field: count}
        if vary and seed_field is not None and isinstance(first, int):
            seeds.append(first + sum(call.images for call in calls))
            own[seed_field] = seeds[-1]
        calls.append(Call(offer.endpoint, payload | own, count))
    return tuple(calls), tuple(seeds)


def _with_seeds(decision: Decision, seeds: tuple[int, ...]) -> Decision:
    if decision.param != "n" or not seeds:
        return decision
    return replace(decision, emulation=f"{decision.emulation}, seeds {', '.join(map(str, seeds))}")


def coerce(value: Value, kind: ValueType) -> Json:
    """The value as the provider's schema declares it; None if it cannot be that."""
    if isinstance(value, Size | Ratio | Format | FitMode):
        value = str(value)
    if isinstance(value, ImageRef) or value is None:
        return None
    match kind:
        case ValueType.TEXT:
            return str(value) if isinstance(value, str) or is_number(value) else None
        case ValueType.INTEGER:
            return as_integer(_read(value))
        case ValueType.NUMBER:
            return as_number(_read(value))
        case ValueType.BOOLEAN:
            return as_boolean(_read(value))
        case ValueType.JSON:
            return guess(value)


def guess(value: Value) -> Json:
    """The value of a parameter whose type nobody declares: text that reads as a number, a boolean or JSON becomes that."""
    if isinstance(value, list):
        return [guess(item) for item in value]
    if isinstance(value, dict):
        return {key: guess(item) for key, item in value.items()}
    if not isinstance(value, Text):
        return _plain(value)
    for reading in (as_boolean if value.strip().lower() in ("true", "false") else as_number, _structure):
        found = reading(value)
        if found is not None:
            return found
    return str(value)


def _structure(text: Text) -> Json:
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read(value: Value) -> Json:
    """The value, ready to be read as a number or a boolean: text in JSON may stand for one as well as text in a form."""
    return Text(value) if isinstance(value, str) else _plain(value)


def _plain(value: Value) -> Json:
    return str(value) if isinstance(value, ImageRef | Size | Ratio) else value  # pyright: ignore[reportReturnType] -- tuples of handles do not come here


def shown(value: Value | Iterable[ImageRef], request: ImageRequest) -> Json:
    """A value as the receipt shows it: pictures by what is known of them, sizes as text."""
    if isinstance(value, ImageRef):
        prepared = f" ({', '.join(value.prepare)})" if value.prepare else ""
        return f"{request.info(value)}{prepared}"
    if isinstance(value, Size | Ratio | Format | FitMode):
        return str(value)
    if isinstance(value, tuple):
        several = [shown(item, request) for item in value if isinstance(item, ImageRef)]
        return several[0] if len(several) == 1 else several
    return _without_marks(value)  # pyright: ignore[reportArgumentType] -- only JSON is left


def _without_marks(value: Json) -> Json:
    """JSON whose texts are plain: that one came from a form is of no interest to who reads it."""
    if isinstance(value, Text):
        return str(value)
    if isinstance(value, list):
        return [_without_marks(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_marks(item) for key, item in value.items()}
    return value
