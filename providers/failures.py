"""What can go wrong at a provider, by kind; the kind decides what happens next. One table, for all providers."""

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from providers.base import Usage


class FailureKind(StrEnum):
    """Why a provider did not deliver."""

    CALLER_FAULT = "caller_fault"
    """The input is wrong, whoever serves it."""
    CONTENT = "content"
    """The provider's safety system refused."""
    CREDENTIAL = "credential"
    """Our key is wrong."""
    QUOTA = "quota"
    """Our account is out of credit."""
    MODEL_GONE = "model_gone"
    """The endpoint or version does not exist (any more)."""
    RATE_LIMIT = "rate_limit"
    TRANSIENT = "transient"
    """A fault of the provider's that another try may not meet."""
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    """Cancelled because we asked for it."""
    UNKNOWN = "unknown"
    """Nobody can say what happened: money may have been spent."""


@dataclass(frozen=True, slots=True)
class Consequence:
    """What follows from a kind of failure."""

    try_next: bool
    """Whether the next offer is tried."""
    retry_safe: bool
    """Whether the caller may repeat the request without risk of paying twice."""


CONSEQUENCES = MappingProxyType(
    {
        FailureKind.CALLER_FAULT: Consequence(try_next=False, retry_safe=True),
        FailureKind.CONTENT: Consequence(try_next=False, retry_safe=True),
        FailureKind.CREDENTIAL: Consequence(try_next=True, retry_safe=True),
        FailureKind.QUOTA: Consequence(try_next=True, retry_safe=True),
        FailureKind.MODEL_GONE: Consequence(try_next=True, retry_safe=True),
        FailureKind.RATE_LIMIT: Consequence(try_next=True, retry_safe=True),
        FailureKind.TRANSIENT: Consequence(try_next=True, retry_safe=True),
        FailureKind.TIMEOUT: Consequence(try_next=True, retry_safe=False),
        FailureKind.CANCELLED: Consequence(try_next=False, retry_safe=True),
        FailureKind.UNKNOWN: Consequence(try_next=False, retry_safe=False),
    }
)


class ProviderFailure(Exception):
    """A provider did not deliver.

    `public` may be shown to the caller; `detail` is for the operator's log and may quote the provider, never a key.
    """

    def __init__(
        self,
        kind: FailureKind,
        public: str,
        *,
        detail: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        usage: Usage | None = None,
    ) -> None:
        super().__init__(detail or public)
        self.kind = kind
        self.public = public
        self.detail = detail or public
        self.param = param
        """Which of the caller's parameters is at fault, if the provider says."""
        self.retry_after_s = retry_after_s
        self.usage = usage
        """What the provider says it used, and so charges, all the same."""
