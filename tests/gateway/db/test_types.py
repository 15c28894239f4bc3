"""Column types: what goes in comes out, the same on both engines."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column, Connection, Integer, MetaData, Table, func, insert, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import StatementError

from gateway.db.types import FreeText, Json, Money, UtcDateTime, whole_nano_dollars

TRIAL = Table(
    "trial",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("at", UtcDateTime),
    Column("usd", Money),
    Column("json", Json),
    Column("text", FreeText),
)


def kept(**values):
    """A transaction that stores a row and reads it back."""

    def store(connection: Connection):
        TRIAL.create(connection, checkfirst=True)
        connection.execute(insert(TRIAL).values(values))
        return connection.execute(select(TRIAL).order_by(TRIAL.c.id.desc()).limit(1)).one()

    return store


@pytest.mark.parametrize("hours", [0, 9, -5])
async def test_an_instant_comes_back_in_utc(db, hours):
    """Whatever zone it was given in, it is the same instant, to the microsecond."""
    at = datetime(2026, 11, 21, 23, 59, 59, 123456, timezone(timedelta(hours=hours)))

    row = await db.write(kept(at=at))

    assert row.at == at
    assert row.at.tzinfo is UTC


async def test_a_time_without_zone_is_refused(db):
    """Nobody knows which instant it is."""
    with pytest.raises(StatementError, match="no time zone"):
        await db.write(kept(at=datetime(2026, 11, 21)))


@pytest.mark.parametrize("usd", ["0", "0.012675", "0.000000001", "-3.5", "1000", "9223372036.854775807", "12.340", "1E+3"], ids=str)
async def test_money_comes_back_exact(db, usd):
    """Amounts down to a nano-dollar are stored and read as the same Decimal."""
    row = await db.write(kept(usd=Decimal(usd)))

    assert row.usd == Decimal(usd)


async def test_money_adds_up_in_the_database(db):
    """A tenth three times is three tenths, on both engines."""
    for _ in range(3):
        await db.write(kept(usd=Decimal("0.1")))

    assert await db.read(lambda connection: connection.execute(select(func.sum(TRIAL.c.usd))).scalar_one()) == Decimal("0.3")


@pytest.mark.parametrize("usd", [0.1, 1, "0.1", Decimal("0.0000000001"), Decimal("NaN"), Decimal("1e10"), True], ids=repr)
async def test_money_that_would_not_come_back_is_refused(db, usd):
    """Floats, text, fractions of a nano-dollar and what is no amount never reach the database."""
    with pytest.raises(StatementError):
        await db.write(kept(usd=usd))


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_every_amount_a_column_holds_comes_back(nano):
    """Nano-dollars to dollars and back is the identity, without exponents for whole amounts."""
    money, dialect = Money(), sqlite.dialect()
    usd = money.process_result_value(nano, dialect)
    assert usd is not None
    assert money.process_bind_param(usd, dialect) == nano
    assert usd != usd.to_integral_value() or "E" not in str(usd)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=20))
def test_rounding_makes_any_amount_storable(usd):
    """`whole_nano_dollars` is off by at most half a nano-dollar."""
    rounded = whole_nano_dollars(usd)

    assert abs(rounded - usd) <= Decimal("5e-10")
    Money().process_bind_param(rounded, sqlite.dialect())


@pytest.mark.parametrize(
    "value", [{"a": [1, 2.5, None, True], "ü": "é 😀"}, [], "", 0, False, {"nul": "a\0b"}, {"lone": "\ud800"}], ids=repr
)
async def test_json_comes_back(db, value):
    """Any JSON a caller can send is stored, NUL and lone surrogates included."""
    assert (await db.write(kept(json=value))).json == value


async def test_no_json_is_null(db):
    """None is the absence of a value, not the value `null`."""
    await db.write(kept(json=None))

    absent = select(func.count()).select_from(TRIAL).where(TRIAL.c.json.is_(None))
    assert await db.read(lambda connection: connection.execute(absent).scalar_one()) == 1


@pytest.mark.parametrize(("given", "found"), [("plain ü 😀", "plain ü 😀"), ("a\0b", "a\ufffdb"), ("x\ud800y", "x\ufffdy")])
async def test_text_from_outside_is_always_storable(db, given, found):
    """What a database cannot keep is replaced, so that recording never fails."""
    assert (await db.write(kept(text=given))).text == found
