"""Serves stored pictures to whoever has a signed link: no key, whole or in part, cacheable until the link ends."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from litestar import HttpMethod, Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler, route
from litestar.params import PathParameter, QueryParameter
from litestar.response import Stream

from gateway.assets.links import LinkState, check_link
from gateway.assets.store import AssetMissing, AssetStore
from gateway.errors import Forbidden
from normalization.pixels.formats import FORMATS

_MIMES = {facts.suffix: facts.mime for facts in FORMATS.values()}
_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")
"""One range. Several in one request may be answered with the whole file. Source: RFC 9110, section 14.2."""


class RangeNotSatisfiable(HTTPException):
    """The range begins behind the end of the file."""

    status_code = 416


@dataclass(frozen=True, slots=True)
class _Part:
    """Which bytes of a file are answered; `end` is exclusive."""

    start: int
    end: int


def asset_route(store: AssetStore, secret: bytes, clock: Callable[[], float]) -> HTTPRouteHandler:
    """Make the handler of `GET` and `HEAD` `/assets/{id}.{suffix}`.

    The key in the store is the last part of the path, as it was signed. A forged or unknown link is 404 like any unknown
    path; one of ours that has ended is 403, and says so.

    Args:
        store: Where the pictures are.
        secret: What links are signed with.
        clock: Unix seconds.
    """

    @route(
        "/assets/{name:str}",
        http_method=[HttpMethod.GET, HttpMethod.HEAD],
        summary="A picture",
        media_type="application/octet-stream",
    )
    async def get_asset(
        request: Request[Any, Any, State],
        name: Annotated[str, PathParameter(description="`{id}.{suffix}`, from the link.")],
        expires: Annotated[str, QueryParameter(description="From the link.")] = "",
        signature: Annotated[str, QueryParameter(description="From the link.")] = "",
    ) -> Response[Any]:
        """Serve the picture that a signed link points to."""
        now = clock()
        _check(name, check_link(name, expires, signature, secret, now))
        size_bytes = await store.size(name)
        headers = _headers(name, max_age_s=int(int(expires) - now))
        if _has_it(request.headers.get("if-none-match", ""), headers["etag"]):
            return Response(b"", status_code=304, headers=headers)
        part = None if request.method == HttpMethod.HEAD else _part(request.headers, headers["etag"], size_bytes)
        return _answer(store, name, part, size_bytes, headers, empty=request.method == HttpMethod.HEAD)

    return get_asset


def _check(name: str, link: LinkState) -> None:
    match link:
        case LinkState.GOOD if name.rpartition(".")[2] in _MIMES:
            return
        case LinkState.EXPIRED:
            raise Forbidden(
                "this link has expired; links are good for a limited time, ask for the result again", code="link_expired"
            )
        case _:
            raise AssetMissing


def _headers(name: str, max_age_s: int) -> dict[str, str]:
    return {
        "content-type": _MIMES[name.rpartition(".")[2]],
        # what is stored under a name never changes, so the name tells versions apart
        "etag": f'"{name}"',
        "cache-control": f"private, max-age={max_age_s}, immutable",
        "accept-ranges": "bytes",
        "content-disposition": f'inline; filename="{name}"',
        "x-content-type-options": "nosniff",
    }


def _has_it(if_none_match: str, etag: str) -> bool:
    """Whether the client has the picture already. Weak comparison, as RFC 9110 section 13.1.2 asks."""
    return any(tag.strip().removeprefix("W/") in {etag, "*"} for tag in if_none_match.split(","))


def _part(headers: Mapping[str, str], etag: str, size_bytes: int) -> _Part | None:
    """The part that is asked for; None for the whole. A range that makes no sense is ignored, as RFC 9110 section 14.2 asks."""
    match = _RANGE.fullmatch(headers.get("range", "").replace(" ", ""))
    if match is None or headers.get("if-range", etag) != etag:
        return None
    first, last, suffix = match.groups()
    if suffix:
        start, end = max(0, size_bytes - int(suffix)), size_bytes if int(suffix) else 0
    else:
        start, end = int(first), min(int(last) + 1, size_bytes) if last else size_bytes
        if last and int(last) < start:
            return None
    if start >= end:
        raise RangeNotSatisfiable(
            f"the range lies outside of the file, which has {size_bytes} bytes", headers={"content-range": f"bytes */{size_bytes}"}
        )
    return _Part(start, end)


def _answer(
    store: AssetStore, name: str, part: _Part | None, size_bytes: int, headers: Mapping[str, str], *, empty: bool
) -> Response[Any]:
    start, end = (part.start, part.end) if part else (0, size_bytes)
    headers = {**headers, "content-length": str(end - start)}
    if part:
        headers["content-range"] = f"bytes {start}-{end - 1}/{size_bytes}"
    if empty:
        return Response(b"", status_code=200, headers=headers)
    return Stream(
        store.read(name, start, end), status_code=206 if part else 200, headers=headers, media_type=headers["content-type"]
    )
