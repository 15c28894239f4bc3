"""What the command line does with pictures and models: explain, edit, describe. No server is needed for any of it."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import structlog
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.app import Gateway, open_gateway, open_pictures
from gateway.backend import MODELS
from gateway.errors import BadRequest, InternalError, NoOffer
from gateway.images.execution import Work
from gateway.images.finishing import Picture
from gateway.images.journal import NewJob
from gateway.images.pipeline import ImageResult, plan_route, run_request
from gateway.images.printable import printable_request
from gateway.images.routing import Controls, Route, Unavailable, find_model, weigh, with_alternatives
from gateway.images.services import Services
from gateway.observe.log import configure_logging
from gateway.observe.metrics import Metrics
from gateway.settings import Settings, secret_key
from gateway.times import now
from normalization.explain import table
from normalization.offer import Offer, Price, Rule, Verb
from normalization.pixels import heic
from normalization.pixels.formats import FORMATS, ImageInfo
from normalization.pixels.probe import InvalidImage, ProbeLimits, probe
from normalization.pricing import money
from normalization.request import ImageRef, ImageRequest, RequestMode, Text, parse_request
from providers.catalog import load_catalog


def refusals(settings: Settings) -> Unavailable:
    """Why an offer cannot take work, in the words of the server's providers, by the settings alone: nothing is started."""
    backends = settings.local.backends
    served = MODELS if backends is None else tuple(model for backend in backends for model in backend.models)

    def refusal(offer: Offer) -> str | None:
        match offer.provider:
            case "fal":
                return None if _is_set(settings.fal_key) else "fal: no key is set; see FAL_KEY"
            case "replicate":
                return None if _is_set(settings.replicate_api_token) else "replicate: no token is set; see REPLICATE_API_TOKEN"
            case _:
                missing = f"local: no backend serves {offer.endpoint}; see GATEWAY_LOCAL__BACKENDS"
                return None if offer.endpoint in served else missing

    return refusal


def _is_set(secret: SecretStr | None) -> bool:
    return secret is not None and bool(secret.get_secret_value().strip())


def describe_model(settings: Settings, name: str) -> str:
    """A model's offers, and how each parameter reaches them."""
    catalog = load_catalog(settings.catalog.folder, settings.local.usd_per_second)
    model, offers = find_model(name, catalog, unavailable=refusals(settings))
    lines = [f"{model.id}: {model.name}", model.description, f"modes: {', '.join(model.modes)}"]
    for offer in offers:
        lines += ["", f"{offer.provider}: {offer.endpoint}", *_aligned(_facts(offer))]
        lines += ["", *_aligned([(parameter, _rule(rule)) for parameter, rule in offer.params.items()])]
    return "\n".join(lines)


def _facts(offer: Offer) -> list[tuple[str, str]]:
    price = _price(offer.price) + (f" (uncertain: {offer.price.uncertain})" if offer.price.uncertain else "")
    facts = [("price", price), ("source", f"{offer.source} ({offer.checked})")]
    return [*facts, ("uncertain", offer.uncertain)] if offer.uncertain else facts


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    """Rows in two columns, the second as far in as the longest name needs."""
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:<{width}}  {words}" for name, words in rows]


def explain_request(settings: Settings, picture: Path | None, model: str, fields: dict[str, str]) -> str:
    """The plan for every offer, and its price. Nobody is asked: whether an offer can take work is told from the settings."""
    catalog = load_catalog(settings.catalog.folder, settings.local.usd_per_second)
    asked = _ask(settings, picture, model, fields)
    away = refusals(settings)
    _, offers = find_model(model, catalog, unavailable=away)
    parts: list[str] = []
    for candidate in weigh(asked, offers, catalog.parameters, away, allow_unpriced=settings.routing.allow_unpriced):
        offer, cost = candidate.plan.offer, candidate.cost
        verdict = "eligible" if candidate.eligible else f"not eligible: {'; '.join(candidate.reasons)}"
        price = f"{money(cost.usd)} USD" if cost.usd is not None else "unknown"
        parts.append(f"{offer.provider}: {offer.endpoint} ({verdict})\n  price: {price} ({cost.basis})")
        parts.append("\n".join(f"  {line}" for line in table(candidate.plan).splitlines()))
    return "\n".join(part for part in parts if part)


async def edit_picture(
    settings: Settings, picture: Path, output: Path, model: str, fields: dict[str, str], mask: Path | None = None
) -> None:
    """Edit one picture with progress on standard error, write the result, and print the receipt.

    Args:
        settings: Read before.
        picture: What to edit.
        output: Where to. Its suffix says the format; without one that is png, unless `fields` name another.
        model: Which.
        fields: Further parameters.
        mask: Transparent where the picture may change.

    Raises:
        GatewayError: As a server would answer, and where the output cannot be written; that is found out before the work.
    """
    configure_logging("error", settings.log.format)
    fields = _with_format(fields, output)
    _check_place(output)
    asked = await asyncio.to_thread(_ask, settings, picture, model, fields, mask)
    log, metrics = structlog.get_logger(), Metrics(CollectorRegistry())
    progress = Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=Console(stderr=True))
    async with open_gateway(settings, open_pictures(settings), secret_key(settings), log, metrics) as gateway:
        with progress:
            bar = progress.add_task(model, total=1.0)
            result = await _run(gateway, asked, picture, mask, lambda done: progress.update(bar, completed=done))
            progress.update(bar, completed=1.0)
        paths = [await _write(gateway, result, index, output) for index in range(len(result.images))]
    _print_receipt(result, paths)


def _with_format(fields: dict[str, str], output: Path) -> dict[str, str]:
    """The parameters, with the format that the output's suffix names; a format that was asked for comes before it."""
    suffix = output.suffix.lower().removeprefix(".")
    formats = {suffix: name.value for name, facts in FORMATS.items() if facts.writes for suffix in (facts.suffix, name.value)}
    if suffix and suffix not in formats:
        raise BadRequest(f"{output}: no format has the suffix .{suffix}; there are {', '.join(f'.{name}' for name in formats)}")
    if "output_format" not in fields and not suffix:
        Console(stderr=True).print(f"{output} has no suffix: it will be a png", highlight=False, markup=False, soft_wrap=True)
    return {"output_format": formats.get(suffix, "png"), **fields}


def _check_place(output: Path) -> None:
    """Make sure that the output can be written, as far as that can be told."""
    folder = output.parent
    if not folder.is_dir():
        raise BadRequest(f"{folder}: no such folder")
    if not os.access(folder, os.W_OK):
        raise BadRequest(f"{folder}: nothing can be written there")


async def _run(
    gateway: Gateway, asked: ImageRequest, picture: Path, mask: Path | None, on_progress: Callable[[float], None]
) -> ImageResult:
    by = gateway.services
    route = _plan(asked, by)
    job = await by.journal.open_job(
        NewJob(
            id=f"req_{uuid4().hex}",
            tenant_id=await gateway.tenants.tenant_id("shell"),
            api_key_id=None,
            route="shell.edit",
            model=asked.model,
            mode=asked.mode,
            request=printable_request(asked),
            controls={},
        )
    )
    originals = {ImageRef("image", 0): Picture(picture, asked.images[0])}
    if mask is not None and asked.mask is not None:
        originals[ImageRef("mask")] = Picture(mask, asked.mask)
    return await run_request(Work(job, asked, route, originals, now(), on_progress), by)


def _plan(asked: ImageRequest, by: Services) -> Route:
    find_model(asked.model, by.catalog, unavailable=by.unavailable)  # its guess names what can be served now
    try:
        return plan_route(asked, Controls(), by)
    except NoOffer as error:
        raise with_alternatives(error, asked.mode, by.catalog, by.unavailable) from error


def _ask(settings: Settings, picture: Path | None, model: str, fields: dict[str, str], mask: Path | None = None) -> ImageRequest:
    images = () if picture is None else (_look_at(picture, settings),)
    over = None if mask is None else _look_at(mask, settings, "mask")
    texts = {"model": model, **{name: Text(value) for name, value in fields.items()}}
    return parse_request(RequestMode.EDIT, texts, images, over)


def _look_at(picture: Path, settings: Settings, param: str = "image") -> ImageInfo:
    limits = ProbeLimits(settings.limits.max_image_pixels, settings.limits.max_frames, heic=heic.is_installed())
    try:
        with picture.open("rb") as stream:
            return probe(stream, limits)
    except InvalidImage as error:
        raise BadRequest(f"{picture}: {error.message}", param=param, code=error.code) from error
    except OSError as error:
        raise BadRequest(f"{picture}: {error.strerror}", param=param) from error


async def _write(gateway: Gateway, result: ImageResult, index: int, output: Path) -> Path:
    """Copy a stored picture to where it was wanted; several get a number before the suffix."""
    path = output if len(result.images) == 1 else output.with_stem(f"{output.stem}-{index + 1}")
    try:
        with path.open("wb") as file:
            async for block in gateway.services.store.read(result.images[index].asset.key):
                await asyncio.to_thread(file.write, block)
    except OSError as error:
        kept = f"the picture is kept as {result.images[index].asset.key}, job {result.work.job.id}"
        raise InternalError(f"{path}: {error.strerror}; {kept}") from error
    return path


def _print_receipt(result: ImageResult, paths: list[Path]) -> None:
    console = Console()
    for image, path in zip(result.images, paths, strict=True):
        console.print(f"{path}: {image.info}, {image.asset.size_bytes:,} bytes", highlight=False)
    cost = result.delivered.cost
    price = f"{money(cost.usd)} USD" if cost.usd is not None else "unknown"
    offer = result.delivered.candidate.plan.offer
    console.print(f"by {offer.provider} ({offer.endpoint}), cost {price} ({cost.basis})", highlight=False)
    console.print(table(result.delivered.candidate.plan), highlight=False, markup=False)


def _price(price: Price) -> str:
    if price.tiers:
        return ", ".join(f"{money(usd)} USD per image up to {money(most)} megapixels" for most, usd in price.tiers)
    if price.usd is None:
        return f"unknown: {price.why}" if price.why else "unknown"
    return f"{money(price.usd)} USD per {price.unit.replace('_', ' ')}"


def _rule(rule: Rule) -> str:
    """One rule in words: its native way, its limits, its emulation, what is not certain; or why it is never sent."""
    if rule.blocked is not None:
        return f"blocked: {rule.blocked}"
    native = {None: "", Verb.PASSTHROUGH: "as it is", Verb.RENAME: f"as {rule.to}", Verb.CONVERT: f"{rule.converter} as {rule.to}"}
    low, high = rule.min, rule.max
    bounds = f"{low:g}..{high:g}" if low is not None and high is not None else f"to {high:g}" if high is not None else ""
    choices = ", ".join(map(str, rule.choices))
    default = "" if rule.default is None else f"default {rule.default}"
    emulated = f"else {rule.emulate}" if rule.verb else rule.emulate
    required = "required" if rule.required else ""
    uncertain = f"uncertain: {rule.uncertain}" if rule.uncertain else ""
    parts = (native[rule.verb], bounds, choices, default, required, (emulated or "") if rule.emulate else "", uncertain)
    return "; ".join(part for part in parts if part)
