"""The road of a request, once it is understood: plan every offer, try them in order, finish, price, record."""

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from gateway.errors import BadRequest, GatewayError, InternalError
from gateway.images.execution import Delivered, Work, execute
from gateway.images.finishing import StoredImage
from gateway.images.journal import NewAsset, persistent
from gateway.images.routing import Controls, Route, Steering, choose_route, find_model, is_served, order, weigh
from gateway.images.services import Services
from normalization.explain import header, receipt
from normalization.pricing import money
from normalization.request import ImageRequest, Json, RequestMode


@dataclass(frozen=True, slots=True)
class ImageResult:
    """A finished request: the pictures, and the account of what was done."""

    work: Work
    delivered: Delivered

    @property
    def images(self) -> tuple[StoredImage, ...]:
        """The pictures of the answer, as many as were wanted; equal ones may stand in it more than once."""
        return (self.delivered.images * self.delivered.candidate.plan.copies)[: self.work.request.n]

    @property
    def billed_usd(self) -> Decimal:
        """What the tenant is charged: the delivered pictures; where their cost is unknown, their part of the quote."""
        made, candidate = self.delivered.tried[-1].made, self.delivered.candidate
        if made.billed.usd is not None:
            return made.billed.usd
        wanted = sum(call.images for call in candidate.plan.calls)
        quoted = candidate.cost.usd or Decimal(0)
        return (quoted * len(made.images) / wanted).quantize(Decimal("1e-9"))

    @property
    def receipt(self) -> list[dict[str, Json]]:
        """One entry for each parameter: asked, sent, delivered."""
        return receipt(self.delivered.candidate.plan, self.work.request, [image.info for image in self.images])

    @property
    def headers(self) -> dict[str, str]:
        """The account in brief."""
        cost = money(self.delivered.cost.usd)
        return {
            "x-gateway-provider": self.delivered.candidate.plan.offer.provider,
            "x-gateway-normalization": _shortened(header(self.delivered.candidate.plan)),
            **({"x-gateway-cost-usd": cost} if cost is not None else {}),
        }

    def metadata(self) -> dict[str, Json]:
        """The account as it stands in the answer."""
        offer, cost = self.delivered.candidate.plan.offer, self.delivered.cost
        return {
            "request_id": self.work.job.id,
            "model": self.work.request.model,
            "provider": offer.provider,
            "endpoint": offer.endpoint,
            "cost": {
                "usd": money(cost.usd),
                "basis": cost.basis,
                "certainty": cost.certainty.value,
                "billed_usd": money(self.billed_usd),
            },
            "attempts": [tried.told() for tried in self.delivered.tried],
            "offers": [*self.delivered.offers],
            "normalization": self.receipt,
        }


_LONGEST_HEADER = 4096
"""Characters. Clients end at 8 KiB for one line (aiohttp) or 16 KiB for all (Node); the receipt in the body has everything."""


def _shortened(line: str) -> str:
    """A header's list, cut between two members if it is too long, with the count of those left out."""
    if len(line) <= _LONGEST_HEADER:
        return line
    kept = line[:_LONGEST_HEADER].rpartition(", ")[0]
    return f"{kept}, more={line.count(', ') - kept.count(', ')}"


def plan_route(
    request: ImageRequest, controls: Controls, by: Services, *, request_id: str | None = None, tenant: str | None = None
) -> Route:
    """Plan every offer of the model and put them in order.

    Args:
        request: What is asked.
        controls: How it is to be served.
        by: The gateway.
        request_id: What weights and canaries are drawn by; None draws nothing.
        tenant: The name of who asks, for a default policy of its own.

    Raises:
        ModelNotFound: No such model.
        BadRequest, OverBudget, Overloaded: See `choose_route`; a dry run only lists the reasons.
    """
    model, offers = find_model(request.model, by.catalog)
    if request.mode is RequestMode.EDIT and model.modes == (RequestMode.GENERATE,):
        raise BadRequest(f"The model `{model.id}` makes pictures from text; it does not edit.", param="model")
    routing, known, look = by.settings.routing, by.catalog.parameters, by.health.look
    candidates = weigh(request, offers, known, by.unavailable, allow_unpriced=routing.allow_unpriced, look=look)
    steering = Steering.of(routing, request_id, tenant)
    if controls.dry_run:
        return order(candidates, controls, steering)
    try:
        return choose_route(candidates, controls, steering)
    except BadRequest as error:
        taking = by.catalog.taking(len(request.images))
        able = [name for name in taking if is_served(by.catalog.models[name], by.unavailable)]
        if error.param == "image" and len(request.images) > 1 and able:
            raise BadRequest(f"{error.message}. Models that take as many: {', '.join(able)}.", param="image") from error
        raise


async def run_request(work: Work, by: Services) -> ImageResult:
    """Carry a request out and write down how it ended. Runs to its end, whoever still listens.

    Raises:
        GatewayError: Why it failed; the journal says the same.
    """
    try:
        result = ImageResult(work, await execute(work, by))
        await _record(result, by)
    except Exception as error:
        failure = _ours(error)
        if failure is not error:
            by.log.exception("job.crashed", job=work.job.id)  # perhaps nobody waits for the answer
        await persistent(lambda: by.journal.fail_job(work.job, failure))
        raise failure from error
    return result


def _ours(error: Exception) -> GatewayError:
    if isinstance(error, GatewayError):
        return error
    return InternalError("the gateway failed in a way that it should not; the request id leads to the details")


async def _record(result: ImageResult, by: Services) -> None:
    """Write the delivery down: the job, its pictures and what is charged, in one transaction."""
    offer = result.delivered.candidate.plan.offer
    expires_at = by.clock() + timedelta(seconds=by.settings.storage.retention_s)
    assets = [
        NewAsset(image.id, image.asset.key, image.info.format, image.info.size, image.asset.size_bytes, None, expires_at)
        for image in result.delivered.images
    ]
    await persistent(
        lambda: by.journal.finish_job(
            result.work.job,
            provider=offer.provider,
            endpoint=offer.endpoint,
            cost=result.delivered.cost,
            billed_usd=result.billed_usd,
            normalization=result.receipt,
            assets=assets,
            images_delivered=len(result.images),
        )
    )
    _count(result, by)


def _count(result: ImageResult, by: Services) -> None:
    found = by.catalog.find(result.work.request.model)
    model, provider = found[0].id if found else "unknown", result.delivered.candidate.plan.offer.provider
    for image in result.images:
        by.metrics.images.labels(model, provider, image.info.format.value).inc()
    for decision in result.delivered.candidate.plan.decisions:
        by.metrics.decisions.labels(provider, decision.mode.value).inc()
