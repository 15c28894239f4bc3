"""OpenAI's shapes, as they stand on the wire: for answers, and for the OpenAPI document.

Source: openai/openai-openapi, schemas `ImagesResponse`, `Image`, `Model`, `ListModelsResponse`, `Error`. Members that are absent
there when unknown are absent here too, never null.
"""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType, field


class Image(Struct, frozen=True, omit_defaults=True):
    """One picture of an answer: `url` or `b64_json`."""

    url: str | UnsetType = UNSET
    """Absolute, good for a limited time, fetched without a key."""
    b64_json: str | UnsetType = UNSET
    """Bare base64 of the file."""
    revised_prompt: str | UnsetType = UNSET


class ImagesResponse(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The answer of the image routes. `gateway/api/answer.py` writes it as a stream; this is its shape."""

    created: int
    """Unix seconds."""
    data: list[Image]
    background: Literal["transparent", "opaque"] | UnsetType = UNSET
    output_format: Literal["png", "jpeg", "webp", "gif"] | UnsetType = UNSET
    size: str | UnsetType = UNSET
    """`WxH`, as delivered."""
    quality: Literal["low", "medium", "high", "xhigh", "max"] | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    """The gateway's receipt."""


class ErrorDetail(Struct, frozen=True, kw_only=True):
    """What went wrong. The first four are OpenAI's and always there."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    request_id: str | None = None
    billed_usd: str | None = None
    """What the tenant was charged for this request; null if that is not known yet."""
    retry_safe: bool = True
    """Whether repeating the request cannot pay twice."""


class ErrorBody(Struct, frozen=True):
    """The body of every error."""

    error: ErrorDetail


class Model(Struct, frozen=True, kw_only=True):
    """A model that can be asked for."""

    id: str
    created: int
    """Unix seconds."""
    owned_by: str
    object: Literal["model"] = "model"


class ModelList(Struct, frozen=True, kw_only=True):
    """`GET /v1/models`."""

    data: list[Model] = field(default_factory=list[Model])
    object: Literal["list"] = "list"
