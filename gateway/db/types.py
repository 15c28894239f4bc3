"""Column types that mean the same on SQLite and PostgreSQL: instants, dollars, JSON and text from outside."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any

from sqlalchemy import BigInteger, DateTime, Dialect, Text
from sqlalchemy.types import TypeDecorator

NANO_PER_USD = 10**9


class UtcDateTime(TypeDecorator[datetime]):
    """An aware instant, in UTC on both ways. A naive one is refused, since nobody can say which instant it is."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC; SQLite keeps it as text without a zone, which sorts as the instants do."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value.isoformat()} has no time zone")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From whatever zone the session has, to UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Money(TypeDecorator[Decimal]):
    """Exact US dollars: `Decimal` in Python, whole nano-dollars in the database, where they add up without loss."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> int | None:
        """Dollars to nano-dollars, refusing what would not come back the same."""
        return None if value is None else _nano_dollars(value)

    def process_result_value(self, value: int | Decimal | None, dialect: Dialect) -> Decimal | None:
        """Nano-dollars to dollars, without trailing zeros. A sum comes as `Decimal` from PostgreSQL."""
        return None if value is None else _dollars(int(value))


def whole_nano_dollars(usd: Decimal) -> Decimal:
    """Round to what `Money` can store, for amounts that come from a division or a product.

    The error is at most half a billionth of a dollar.
    """
    with localcontext() as context:
        context.prec = 60
        return usd.quantize(Decimal("1e-9"), rounding=ROUND_HALF_EVEN)


def _nano_dollars(value: object) -> int:
    if not isinstance(value, Decimal):
        raise TypeError(f"money is a Decimal, not {type(value).__name__}")
    if not value.is_finite():
        raise ValueError(f"{value} is not an amount of money")
    top, bottom = value.as_integer_ratio()
    nano, rest = divmod(top * NANO_PER_USD, bottom)
    if rest:
        raise ValueError(f"{value} USD is not a whole number of nano-dollars")
    if abs(nano) >= 2**63:
        raise ValueError(f"{value} USD is more than a column holds")
    return nano


def _dollars(nano: int) -> Decimal:
    usd = Decimal(nano).scaleb(-9).normalize()
    return usd.quantize(Decimal(1)) if usd == usd.to_integral_value() else usd


class Json(TypeDecorator[Any]):
    """A JSON value, kept as ASCII text.

    Not the databases' own types: PostgreSQL's refuses NUL and lone surrogates, which a caller can well send.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Any mapping, list, tuple or scalar of JSON, and a Decimal as text; None is NULL."""
        return None if value is None else json.dumps(value, default=_plain, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """What was put in, with dicts for mappings and lists for tuples."""
        return None if value is None else json.loads(value)


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return dict(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] -- json checks what is in it
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


class FreeText(TypeDecorator[str]):
    """Text from outside. What a database cannot store (NUL, lone surrogates) becomes U+FFFD, so that recording never fails."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Replace what cannot be stored."""
        if value is None:
            return None
        return value.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
