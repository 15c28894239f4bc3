"""Every error a caller can meet, as one tree, in OpenAI's words.

    GatewayError
    ├── BadRequest 400
    │   └── ContentRefused        the provider's safety system said no
    ├── Unauthenticated 401
    ├── OverBudget 402
    ├── Forbidden 403
    ├── NotFound 404              ModelNotFound
    ├── MethodNotAllowed 405
    ├── Conflict 409
    ├── TooLarge 413
    ├── RateLimited 429
    ├── InternalError 500
    ├── AllOffersFailed 502
    ├── Overloaded 503
    │   └── NoOffer               nobody could take the work, and waiting will not help
    └── TimedOut 504

Only `gateway/api/rendering.py` turns them into answers.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class GatewayError(Exception):
    """Something that is answered with an OpenAI error body.

    `message` is public and says what was asked, what was possible and what to do. `detail` is for the operator's log.
    Neither ever holds a key, a prompt or a signed address.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None
    should_retry: bool | None = None
    """Value of `x-should-retry`; None leaves it to the client's own rule for the status."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        detail: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.detail = detail
        self.retry_after_s = retry_after_s
        if should_retry is not None:
            self.should_retry = should_retry
        self.extra = extra or {}
        """Further members of the error body, such as `attempts` or `billed_usd`."""


class BadRequest(GatewayError):
    """A value that cannot be served, by anyone or at all."""

    status = 400
    type = "invalid_request_error"
    default_code = "invalid_value"


class ContentRefused(BadRequest):
    """The provider's safety system refused the input or the result."""

    type = "image_generation_user_error"
    default_code = "moderation_blocked"


class Unauthenticated(GatewayError):
    """No key, or one that is not known, revoked or expired."""

    status = 401
    type = "invalid_request_error"


class OverBudget(GatewayError):
    """The request may cost more than is left or allowed."""

    status = 402
    type = "insufficient_quota"
    default_code = "insufficient_quota"
    should_retry = False


class Forbidden(GatewayError):
    """The key is good, but not for this."""

    status = 403
    type = "invalid_request_error"


class NotFound(GatewayError):
    """No such thing, or not this tenant's."""

    status = 404
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    """No model of that id."""

    default_code = "model_not_found"


class MethodNotAllowed(GatewayError):
    """The path exists, but not with this method."""

    status = 405
    type = "invalid_request_error"
    default_code = "method_not_supported"


class Conflict(GatewayError):
    """The request contradicts an earlier one."""

    status = 409
    type = "invalid_request_error"
    should_retry = False


class TooLarge(GatewayError):
    """More bytes or pixels than the limits allow."""

    status = 413
    type = "invalid_request_error"
    default_code = "request_too_large"


class RateLimited(GatewayError):
    """Too many at once or in a time."""

    status = 429
    type = "requests"
    default_code = "rate_limit_exceeded"


class InternalError(GatewayError):
    """A fault of ours."""

    default_code = "internal_error"


class AllOffersFailed(GatewayError):
    """Every offer was tried and none delivered; `extra["attempts"]` has a line for each."""

    status = 502
    default_code = "all_offers_failed"


class Overloaded(GatewayError):
    """No room at the moment: queue or disk full, or shutting down."""

    status = 503
    default_code = "overloaded"


class NoOffer(Overloaded):
    """No offer of the model can be used as the gateway is set up: no backend, no key, no price."""

    default_code = "no_offer_available"
    should_retry = False


class TimedOut(GatewayError):
    """The deadline passed while the work goes on; the job can be looked at later."""

    status = 504
    default_code = "deadline_exceeded"
    should_retry = False
