"""The control headers of a request: how it is served, never what is sent to a provider."""

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import TypeVar

from gateway.errors import BadRequest
from gateway.images.routing import Controls, OnUnsupported, Policy
from providers.registry import PROVIDER_NAMES

_Choice = TypeVar("_Choice", bound=StrEnum)


def read_controls(headers: Mapping[str, str], query: Mapping[str, str]) -> Controls:
    """Read the control headers, and `dry_run` of the query.

    Raises:
        BadRequest: For a value that is not one of the possible ones, which are listed.
    """
    return Controls(
        on_unsupported=_choice(headers, "x-gateway-on-unsupported", OnUnsupported) or OnUnsupported.DROP,
        policy=_choice(headers, "x-gateway-route", Policy),
        order=_order(headers.get("x-gateway-provider-order", "")),
        max_cost_usd=_dollars(headers, "x-gateway-max-cost-usd"),
        dry_run=_flag(headers.get("x-gateway-dry-run"), "x-gateway-dry-run") or _flag(query.get("dry_run"), "dry_run"),
    )


def _choice(headers: Mapping[str, str], name: str, kind: type[_Choice]) -> _Choice | None:
    text = headers.get(name, "").strip().lower()
    if not text:
        return None
    try:
        return kind(text)
    except ValueError as error:
        raise BadRequest(f"{name} is one of {', '.join(kind)}.", param=name) from error


def _order(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in PROVIDER_NAMES]
    if unknown:
        raise BadRequest(
            f"x-gateway-provider-order lists providers among {', '.join(PROVIDER_NAMES)}.", param="x-gateway-provider-order"
        )
    return names


def _dollars(headers: Mapping[str, str], name: str) -> Decimal | None:
    text = headers.get(name, "").strip()
    if not text:
        return None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise BadRequest(f"{name} is an amount in US dollars such as 0.05.", param=name)
    return amount


def _flag(text: str | None, name: str) -> bool:
    known = {None: False, "": False, "false": False, "0": False, "true": True, "1": True}
    value = known.get(text if text is None else text.strip().lower())
    if value is None:
        raise BadRequest(f"{name} is true or false.", param=name)
    return value
