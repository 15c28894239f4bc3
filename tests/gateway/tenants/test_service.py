"""Tenants and keys, on both databases."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import Connection

from gateway.db.scope import across_tenants
from gateway.db.tables import api_key
from gateway.errors import BadRequest, NotFound
from gateway.tenants import service
from gateway.tenants.keys import new_secret
from gateway.tenants.service import Caller, Tenants


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 21, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tenants(db, clock) -> Tenants:
    return Tenants(db, b"pepper", clock)


@pytest.fixture
def reads(db, monkeypatch) -> list[object]:
    """What is read from the database from now on."""
    seen: list[object] = []
    read = db.read

    async def counted(fn):
        seen.append(fn)
        return await read(fn)

    monkeypatch.setattr(db, "read", counted)
    return seen


def stored_keys(connection: Connection):
    return connection.execute(across_tenants(api_key, reason="a test looks")).all()


async def test_a_new_key_tells_who_is_asking(tenants):
    """The secret leads to its tenant and key, and to nobody else's."""
    mine = await tenants.create_key("acme", "laptop", Decimal("12.5"))
    other = await tenants.create_key("rival")

    assert await tenants.authenticate(mine.secret) == Caller(mine.tenant_id, "acme", mine.key_id)
    assert (await tenants.authenticate(other.secret)).tenant_id != mine.tenant_id


async def test_only_the_keyed_hash_is_stored(tenants, db):
    """No column of the row holds the secret, nor does the printed value."""
    made = await tenants.create_key("acme")

    (row,) = await db.read(stored_keys)
    assert all(made.secret not in str(value) for value in row)
    assert made.secret not in repr(made)
    assert await Tenants(db, b"other pepper", tenants._clock).authenticate(made.secret) is None


async def test_a_tenant_is_made_once(tenants):
    """Further keys of the same name belong to the same tenant, even when made at the same time."""
    made = await asyncio.gather(*(tenants.create_key("acme", f"k{i}") for i in range(8)))

    assert len({key.tenant_id for key in made}) == 1
    assert len({key.secret for key in made}) == 8


@pytest.mark.parametrize("secret", ["", "igw_nonsense", "sk-123", new_secret(bytes(25)), "igw_" + "\ud800" * 40], ids=repr)
async def test_an_unknown_key_is_nobody(tenants, secret):
    """Nonsense and well-formed strangers alike."""
    assert await tenants.authenticate(secret) is None


async def test_a_revoked_key_dies_at_once_here_and_soon_elsewhere(tenants, db, clock):
    """In the same process immediately, in another one when what it remembers is five seconds old."""
    made = await tenants.create_key("acme")
    elsewhere = Tenants(db, b"pepper", clock)
    assert await tenants.authenticate(made.secret) == await elsewhere.authenticate(made.secret) is not None

    await tenants.revoke_key(made.key_id)

    assert await tenants.authenticate(made.secret) is None
    assert await elsewhere.authenticate(made.secret) is not None
    clock.pass_(5)
    assert await elsewhere.authenticate(made.secret) is None


async def test_a_key_revoked_while_it_is_being_read_is_not_remembered(tenants, db, monkeypatch):
    """The answer that was on its way is thrown away."""
    made = await tenants.create_key("acme")
    read = db.read

    async def late(fn):
        found = await read(fn)
        monkeypatch.setattr(db, "read", read)
        await tenants.revoke_key(made.key_id)
        return found

    monkeypatch.setattr(db, "read", late)

    assert await tenants.authenticate(made.secret) is None


async def test_a_known_key_costs_no_reading_for_five_seconds(tenants, clock, reads):
    """A burst of requests reads once."""
    made = await tenants.create_key("acme")

    for _ in range(10):
        await tenants.authenticate(made.secret)
    assert len(reads) == 1
    clock.pass_(5)
    await tenants.authenticate(made.secret)
    assert len(reads) == 2


async def test_what_is_remembered_is_bounded(tenants, monkeypatch):
    """Many keys do not fill the memory; the longest unread is forgotten."""
    monkeypatch.setattr(service, "_REMEMBERED", 3)
    made = [await tenants.create_key("acme", f"k{i}") for i in range(5)]
    for key in made:
        await tenants.authenticate(key.secret)

    assert len(tenants._known) == 3


async def test_a_key_ends_when_it_expires(tenants, clock):
    """To the second, although it is remembered."""
    made = await tenants.create_key("acme", expires_at=clock() + timedelta(seconds=2))
    assert await tenants.authenticate(made.secret) is not None

    clock.pass_(2)
    assert await tenants.authenticate(made.secret) is None


async def test_last_use_is_noted_once_a_minute(tenants, clock, db):
    """The first use, and then the first of another minute."""
    made = await tenants.create_key("acme")
    noted = []
    for seconds in (0, 30, 29, 1, 5):
        clock.pass_(seconds)
        await tenants.authenticate(made.secret)
        noted.append((await tenants.list_keys("acme"))[0].last_used_at)

    start = noted[0]
    assert [(at - start).seconds for at in noted] == [0, 0, 0, 60, 60]


async def test_keys_are_listed_without_secrets(tenants, clock):
    """All tenants' or one's, oldest first, with what people need to tell them apart."""
    first = await tenants.create_key("acme", "one", Decimal("1.25"))
    clock.pass_(1)
    await tenants.create_key("rival", "two")
    await tenants.revoke_key(first.key_id)

    assert [key.name for key in await tenants.list_keys()] == ["one", "two"]
    (facts,) = await tenants.list_keys("acme")
    assert (facts.prefix, facts.budget_usd, facts.revoked_at) == (first.secret[:8], Decimal("1.25"), clock())


async def test_unknown_names_and_ids_are_not_found(tenants):
    """The operator is told that there is no such thing."""
    with pytest.raises(NotFound, match="nobody"):
        await tenants.list_keys("nobody")
    with pytest.raises(NotFound, match="key_none"):
        await tenants.revoke_key("key_none")


async def test_revoking_twice_keeps_the_first_time(tenants, clock):
    """When it ended does not move."""
    made = await tenants.create_key("acme")
    await tenants.revoke_key(made.key_id)
    ended = clock()
    clock.pass_(10)
    await tenants.revoke_key(made.key_id)

    assert (await tenants.list_keys("acme"))[0].revoked_at == ended


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, "a\nb", "a\0b"], ids=repr)
async def test_a_name_is_something_to_read(tenants, name):
    """Empty, endless and unprintable names are refused."""
    with pytest.raises(BadRequest):
        await tenants.create_key(name)


@pytest.mark.parametrize("budget", ["-1", "NaN", "Infinity", "1e10", "0.0000000001"])
async def test_a_budget_is_an_amount_of_money(tenants, budget):
    """Not negative, not endless, not finer than what is counted."""
    with pytest.raises(BadRequest, match="budget"):
        await tenants.create_key("acme", budget_usd=Decimal(budget))
