"""Whose fault it was: Replicate's statuses, problem documents and error texts as kinds of failure."""

import re
from typing import Any, NamedTuple, cast

from providers.failures import FailureKind, ProviderFailure
from providers.replicate.answers import Prediction, Said, member, usage


class _Telling(NamedTuple):
    """An error text that says whose fault it was."""

    text: re.Pattern[str]
    kind: FailureKind
    public: str
    param: str | None = None


_TELLING = (
    _Telling(
        re.compile(
            r"nsfw|flagged as sensitive|\(E005\)|safety (checker|filter|system)|sensitive content|content (policy|moderation)", re.I
        ),
        FailureKind.CONTENT,
        "the model's safety check refused the picture or the prompt",
    ),
    _Telling(
        re.compile(r"(client|server) error: .* for url|HTTPS?ConnectionPool|(could not|failed to) (fetch|download)", re.I),
        FailureKind.TRANSIENT,
        "the model could not fetch its picture",
    ),
    _Telling(
        re.compile(r"cannot (identify|decode) image file|image file is truncated|broken data stream", re.I),
        FailureKind.CALLER_FAULT,
        "the model cannot read the picture",
        "image",
    ),
    _Telling(re.compile(r"out of memory|\(E1001\)", re.I), FailureKind.TRANSIENT, "the model ran out of memory"),
    _Telling(
        re.compile(r"code: PA\b|^director:|\(E\d{4}\)|prediction interrupted", re.I),
        FailureKind.TRANSIENT,
        "replicate interrupted the work",
    ),
    _Telling(re.compile(r"input validation error:?\s*(?P<why>.*)", re.I), FailureKind.CALLER_FAULT, "the model refuses the input"),
)
"""The first that fits. What is not in here is a fault that another offer may not have; too little memory is one of those.

Source: replicate.com/docs/reference/error-codes, and errors of Pillow, PyTorch and Cog as they are raised.
"""

_ENVELOPE = frozenset({"version", "input", "webhook", "webhook_events_filter", "stream"})
"""Fields of the request around the model's own inputs."""

_LINE = re.compile(r"^- ([\w.\[\]]+): (.+)$", re.MULTILINE)
_RESETS = re.compile(r"~?(\d+(?:\.\d+)?)\s*s(?:ec|\b)", re.IGNORECASE)

_URL = re.compile(r"(https?://[^/\s'\"]+)/[^\s'\")]*", re.IGNORECASE)
_DATA_URI = re.compile(r"data:[\w.+-]+/[\w.+-]+[^,\s]{0,100},[\w+/=%-]*", re.IGNORECASE)
_MAX_DETAIL = 2000
_MAX_PUBLIC = 300


class Verdicts:
    """Makes failures whose words hold no secret."""

    def __init__(self, token: str | None) -> None:
        """Take what must not be said."""
        self._token = token

    def failure(self, kind: FailureKind, public: str, why: object, param: str | None = None) -> ProviderFailure:
        """A failure, with what the operator should know of it."""
        return ProviderFailure(kind, public, detail=f"{public}: {self.clean(str(why))}", param=param)

    def refused(self, said: Said) -> ProviderFailure:
        """What a status other than success means. The bodies are problem documents, or anything, from the edge."""
        match said.status:
            case 401 | 403:
                return self.failure(FailureKind.CREDENTIAL, "replicate does not accept the gateway's token", said)
            case 402:
                return self.failure(FailureKind.QUOTA, "the gateway's account at replicate is out of credit", said)
            case 404:
                return self.failure(FailureKind.MODEL_GONE, "replicate does not have the model", said)
            case 413:
                return self.failure(FailureKind.TRANSIENT, "the picture is too large for replicate", said)
            case 400 | 422:
                return self._invalid(said)
            case 429:
                failure = self.failure(FailureKind.RATE_LIMIT, "replicate is asked too often", said)
                failure.retry_after_s = retry_after_s(said)
                return failure
            case status:
                return self.failure(FailureKind.TRANSIENT, f"replicate answered with status {status}", said)

    def failed(self, prediction: Prediction) -> ProviderFailure:
        """What the error of a prediction that failed means."""
        error = str(prediction.error or "it gives no reason")
        detail = f"{error}; {ran(prediction)}"
        for telling in _TELLING:
            if found := telling.text.search(error):
                why = found.groupdict().get("why")
                public = f"{telling.public}: {_short(self.clean(why))}" if why else telling.public
                return self.failure(telling.kind, public, detail, telling.param)
        return self.failure(FailureKind.TRANSIENT, "the model failed", detail)

    def _invalid(self, said: Said) -> ProviderFailure:
        problems = [(name.removeprefix("input."), text) for name, text in _problems(said.document) if name not in _ENVELOPE]
        if problems:
            message = "; ".join(f"{name}: {text}" for name, text in problems)
            public = f"replicate refuses the input: {_short(self.clean(message))}"
            return self.failure(FailureKind.CALLER_FAULT, public, said, re.split(r"[.\[]", problems[0][0])[0])
        if re.search(r"\bversion\b|not permitted", said.text, re.IGNORECASE):
            return self.failure(FailureKind.MODEL_GONE, "replicate does not have this version of the model", said)
        return self.failure(FailureKind.TRANSIENT, "replicate does not take the request", said)

    def clean(self, text: str) -> str:
        """Without the token, pictures, and the parts of addresses that may be signed."""
        if self._token:
            text = text.replace(self._token, "…")
        return _URL.sub(r"\1/…", _DATA_URI.sub("data:…", text))[:_MAX_DETAIL]


def ran(prediction: Prediction) -> str:
    """How long it ran, in words: failed work may be charged all the same."""
    seconds = usage(prediction).seconds
    return f"prediction {prediction.id} ran {'not at all, or it does not say' if seconds is None else f'for {seconds} s'}"


def retry_after_s(said: Said) -> float | None:
    """From the body, where Replicate puts it, or else from the header or the words; None if nothing says."""
    told = member(said.document, "retry_after")
    if isinstance(told, int | float) and not isinstance(told, bool):
        return max(float(told), 0.0)
    if said.retry_after and re.fullmatch(r"\d+(\.\d+)?", said.retry_after.strip()):
        return float(said.retry_after)
    found = _RESETS.search(str(member(said.document, "detail") or ""))
    return float(found[1]) if found else None


def _problems(document: Any) -> list[tuple[str, str]]:
    """Field and complaint of each problem: from the list where there is one, else from the lines of the text."""
    listed = member(document, "invalid_fields")
    if isinstance(listed, list) and listed:
        return [(str(member(entry, "field") or "input"), _complaint(entry)) for entry in cast("list[Any]", listed)]
    return _LINE.findall(str(member(document, "detail") or ""))


def _complaint(entry: Any) -> str:
    return str(member(entry, "description") or member(entry, "type") or "is not valid")


def _short(text: str) -> str:
    """Enough for a person, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_PUBLIC else f"{line[: _MAX_PUBLIC - 1]}…"
