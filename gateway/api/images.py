"""`POST /v1/images/edits`: a picture and words in, pictures out. One handler shape for every image route."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from litestar import Request, Response, Router, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec

from gateway.api.answer import Delivered, EmbeddedPicture, LinkedPicture, image_answer
from gateway.api.auth import caller_of
from gateway.api.body import ClientGone
from gateway.api.controls import read_controls
from gateway.api.image_form import ImageForm, read_image_form
from gateway.api.multipart import MIB, FormLimits
from gateway.api.openapi import EditOperation
from gateway.api.rendering import request_id_of
from gateway.api.wire import ImagesResponse
from gateway.assets.links import sign_link
from gateway.errors import BadRequest, NoOffer
from gateway.images.execution import Work
from gateway.images.finishing import Originals, Picture, StoredImage
from gateway.images.journal import NewJob
from gateway.images.pipeline import ImageResult, plan_route, run_request
from gateway.images.printable import printable_request
from gateway.images.routing import Controls, Route, dry_run, find_model, with_alternatives
from gateway.images.services import Services
from gateway.jobs.service import Job, Jobs, interrupted
from gateway.tenants.service import Caller
from normalization.pixels.formats import FORMATS, Format
from normalization.request import MAX_IMAGES, ImageRef, ImageRequest, RequestMode, parse_request
from providers.transfer import download

AnyRequest = Request[Any, Any, State]


@dataclass(frozen=True, slots=True)
class Links:
    """How pictures are linked to."""

    secret: bytes
    public_url: str | None
    """None: the address that the request came to."""
    good_for_s: int
    now: Callable[[], float]
    """Unix seconds."""

    def base(self, request: AnyRequest) -> str:
        """What links in the answer to a request begin with. To be asked for before any work is done.

        Raises:
            BadRequest: If the address that the request came to cannot stand in a link.
        """
        return (self.public_url or _address_of(request)).rstrip("/")

    def to(self, asset_id: str, kind: Format, base: str) -> str:
        """An absolute, signed address of a stored picture, good for a while.

        Args:
            asset_id: Which picture.
            kind: Its format.
            base: From `base`.
        """
        expires = int(self.now()) + self.good_for_s
        return base + sign_link(asset_id, FORMATS[kind].suffix, expires, self.secret)


_HOST = re.compile(r"(?P<name>[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?")
"""A host and perhaps a port, without what no client sends here: user information, percent signs. Source: RFC 9110, 7.2."""


def _address_of(request: AnyRequest) -> str:
    """The address that a request came to, by its `Host`; without one, by the socket it came through."""
    # A proxy may say wss of what is an ordinary request to it.
    scheme = "https" if request.scope["scheme"] in ("https", "wss") else "http"
    host = request.headers.get("host") or _listening(request)
    matched = _HOST.fullmatch(host)
    if matched is None or int(matched["port"] or 1) not in range(1, 65_536):
        raise BadRequest(
            "The header `Host` cannot stand in a link: send HOST or HOST:PORT, with a port of 1 to 65535.", param="host"
        )
    return f"{scheme}://{host}{request.scope['root_path']}"


def _listening(request: AnyRequest) -> str:
    name, port = request.scope["server"] or ("", None)
    name = f"[{name}]" if ":" in name else name
    return name if port is None else f"{name}:{port}"


@post(
    "/v1/images/edits",
    status_code=200,
    summary="Edit or upscale pictures",
    operation_id="create_image_edit",
    operation_class=EditOperation,
    responses={200: ResponseSpec(ImagesResponse, description="The pictures and the receipt.")},
    tags=["images"],
)
async def edit_images(
    request: AnyRequest, services: NamedDependency[Services], jobs: NamedDependency[Jobs], links: NamedDependency[Links]
) -> Response[Any]:
    """Serve one edit: receive, understand, plan, run, answer."""
    jobs.check_open()
    controls, base = read_controls(request.headers, request.query_params), links.base(request)
    async with AsyncExitStack() as stack:
        form = await stack.enter_async_context(await _receive(request, services))
        asked = _understand(form, services)
        route = _plan(asked, controls, request, services)
        if controls.dry_run:
            return Response(msgspec.json.encode(dry_run(asked, route)), media_type="application/json")
        services.pixels.check_room()
        jobs.check_open()  # receiving may have taken long
        work = await _open(asked, route, controls, form, request, services)
        job = jobs.start(work.job.id, _run_and_close(work, form, services))
        stack.pop_all()  # the job has the files now, whoever goes on listening
    result = await _wait(job, work, request, services, jobs)
    return await _answer(result, services, lambda image: links.to(image.id, image.info.format, base))


async def _receive(request: AnyRequest, by: Services) -> ImageForm:
    limits = by.settings.limits

    def fetch(url: str, target: Path, max_bytes: int) -> Awaitable[object]:
        return download(by.client, url, target, max_bytes=max_bytes, deadline_s=by.settings.fetch.deadline_s)

    return await read_image_form(
        request.scope,
        request.receive,
        spool=by.spool,
        limits=FormLimits(limits.max_image_bytes, max_body_bytes=(MAX_IMAGES + 1) * limits.max_image_bytes + 8 * MIB),
        probe_limits=by.probe_limits,
        fetch=fetch,
    )


def _understand(form: ImageForm, by: Services) -> ImageRequest:
    mask = form.mask.info if form.mask else None
    images = tuple(upload.info for upload in form.images)
    asked = parse_request(RequestMode.EDIT, form.fields, images, mask, default_model=by.settings.routing.default_model)
    if not images:
        raise BadRequest("`image` is missing: send one as a file.", param="image", code="missing_required_parameter")
    if asked.asked.get("stream") is True:
        raise BadRequest("`stream` is not served; leave it out, and the answer comes in one piece.", param="stream")
    return asked


def _plan(asked: ImageRequest, controls: Controls, request: AnyRequest, by: Services) -> Route:
    find_model(asked.model, by.catalog, unavailable=by.unavailable)  # its guess names what can be served now
    request_id, tenant = request_id_of(request.scope), caller_of(request).tenant_name
    try:
        return plan_route(asked, controls, by, request_id=request_id, tenant=tenant)
    except NoOffer as error:
        raise with_alternatives(error, asked.mode, by.catalog, by.unavailable) from error


async def _open(asked: ImageRequest, route: Route, controls: Controls, form: ImageForm, request: AnyRequest, by: Services) -> Work:
    """Write the job down before anything is spent on it."""
    caller: Caller = caller_of(request)
    job = await by.journal.open_job(
        NewJob(
            id=request_id_of(request.scope) or "",
            tenant_id=caller.tenant_id,
            api_key_id=caller.key_id,
            route="images.edits",
            model=asked.model,
            mode=asked.mode,
            request=printable_request(asked),
            controls={"route": route.policy, "on_unsupported": controls.on_unsupported, "order": list(controls.order)},
        )
    )
    return Work(job, asked, route, originals_of(form), by.clock(), on_progress=lambda _: None)


def originals_of(form: ImageForm) -> Originals:
    """The caller's pictures by their handles."""
    originals = {ImageRef("image", index): Picture(upload.path, upload.info) for index, upload in enumerate(form.images)}
    return originals | ({ImageRef("mask"): Picture(form.mask.path, form.mask.info)} if form.mask else {})


async def _run_and_close(work: Work, form: ImageForm, by: Services) -> ImageResult:
    async with form:
        return await run_request(work, by)


async def _wait(job: Job, work: Work, request: AnyRequest, by: Services, jobs: Jobs) -> ImageResult:
    """Wait for the job, or for the caller to leave; the job goes on either way."""
    gone = asyncio.ensure_future(_until_gone(request))
    waiting = asyncio.ensure_future(jobs.wait(job, by.settings.limits.request_deadline_s))
    try:
        await asyncio.wait([gone, waiting], return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        await by.journal.mark_client_gone(work.job)
        raise ClientGone
    except asyncio.CancelledError:
        # Only the server does that, when its own end can wait no longer: a bare 500 would make clients try again.
        raise interrupted(job) from None
    finally:
        gone.cancel()
        waiting.cancel()


async def _until_gone(request: AnyRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _answer(result: ImageResult, by: Services, link: Callable[[StoredImage], str]) -> Response[Any]:
    embedded = result.work.request.response_format == "b64_json"
    first = result.images[0].info
    return await image_answer(
        [EmbeddedPicture(image.asset) if embedded else LinkedPicture(link(image)) for image in result.images],
        created=int(result.work.created_at.timestamp()),
        metadata=result.metadata(),
        delivered=Delivered("transparent" if first.alpha else "opaque", first.format, first.size),
        store=by.store,
        headers=result.headers,
    )


images_router = Router("/", route_handlers=[edit_images])
