"""Tenants and their API keys: making, listing, revoking, and finding out who is asking."""

import secrets
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Row, Select, insert, or_, select, update

from gateway.db.connect import ConstraintBroken
from gateway.db.engine import Database
from gateway.db.scope import across_tenants, of_tenant
from gateway.db.tables import api_key, tenant
from gateway.db.types import whole_nano_dollars
from gateway.errors import BadRequest, NotFound, Overloaded
from gateway.tenants.keys import RANDOM_BYTES, digest, is_well_formed, new_secret, visible_prefix

_REMEMBERED_FOR = timedelta(seconds=5)
"""How long a key that another process has revoked may still be good here."""

_REMEMBERED = 10_000
"""Keys remembered at most: about 3 MB."""

_USE_NOTED_EVERY = timedelta(minutes=1)

_LONGEST_NAME = 200

_LARGEST_BUDGET_USD = 10**9


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking."""

    tenant_id: str
    tenant_name: str
    key_id: str


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A new key, with the secret, which is shown this once and kept nowhere."""

    secret: str = field(repr=False)
    key_id: str
    tenant_id: str
    tenant_name: str
    name: str
    budget_usd: Decimal | None
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """What may be told of a key."""

    key_id: str
    tenant_id: str
    tenant_name: str
    name: str
    prefix: str
    budget_usd: Decimal | None
    """None: no limit of its own."""
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """To the minute."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A caller as remembered."""

    caller: Caller
    expires_at: datetime | None
    read_at: datetime
    use_noted_at: datetime | None


class Tenants:
    """Who may use the gateway."""

    def __init__(
        self,
        db: Database,
        pepper: bytes,
        clock: Callable[[], datetime],
        randomness: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Keep what is needed; nothing is read yet.

        Args:
            db: A migrated database.
            pepper: The server's secret that keys the stored hashes; with another one, no stored key is known.
            clock: Now, aware.
            randomness: n to n random bytes.
        """
        self._db = db
        self._pepper = pepper
        self._clock = clock
        self._randomness = randomness
        self._known: OrderedDict[str, _Known] = OrderedDict()  # by digest, the longest unused first
        self._revocations = 0

    async def create_key(
        self, tenant_name: str, name: str = "default", budget_usd: Decimal | None = None, expires_at: datetime | None = None
    ) -> CreatedKey:
        """Make a key, and the tenant if there is none of that name.

        Raises:
            BadRequest: If a name is empty or too long, or the budget is negative, endless or finer than a nano-dollar.
        """
        tenant_name, name = _checked_name("tenant", tenant_name), _checked_name("name", name)
        _check_budget(budget_usd)
        secret = new_secret(self._randomness(RANDOM_BYTES))
        made_at = self._clock()

        def create(connection: Connection) -> CreatedKey:
            tenant_id = self._tenant_of(connection, tenant_name, made_at)
            made = CreatedKey(secret, self._new_id("key"), tenant_id, tenant_name, name, budget_usd, made_at, expires_at)
            connection.execute(insert(api_key).values(_row_of(made, digest(secret, self._pepper))))
            return made

        try:
            return await self._db.write(create)
        except ConstraintBroken:  # somebody else has just made that tenant
            return await self._db.write(create)

    async def tenant_id(self, tenant_name: str) -> str:
        """The id of the tenant of that name, which is made if it is new."""
        name, now = _checked_name("tenant", tenant_name), self._clock()
        return await self._db.write(lambda connection: self._tenant_of(connection, name, now))

    async def list_keys(self, tenant_name: str | None = None) -> list[KeyFacts]:
        """The keys of one tenant, or all, oldest first.

        Raises:
            NotFound: If there is no tenant of that name.
        """

        def read(connection: Connection) -> list[KeyFacts]:
            if tenant_name is None:
                keys = across_tenants(api_key, reason="the operator lists all keys")
            else:
                found = connection.execute(select(tenant.c.id).where(tenant.c.name == tenant_name)).scalar_one_or_none()
                if found is None:
                    raise NotFound(f"there is no tenant {tenant_name!r}", param="tenant")
                keys = of_tenant(api_key, found)
            return [_facts(row) for row in connection.execute(_with_tenant(keys).order_by(api_key.c.created_at, api_key.c.id))]

        return await self._db.read(read)

    async def revoke_key(self, key_id: str) -> None:
        """End a key: here at once, in other processes within five seconds. Revoking it again changes nothing.

        Raises:
            NotFound: If there is no such key.
        """
        now = self._clock()

        def revoke(connection: Connection) -> None:
            mine = api_key.c.id == key_id
            ended = connection.execute(update(api_key).where(mine, api_key.c.revoked_at.is_(None)).values(revoked_at=now))
            if ended.rowcount == 0:
                found = across_tenants(api_key, api_key.c.id, reason="the operator revokes by the key's id").where(mine)
                if connection.execute(found).first() is None:
                    raise NotFound(f"there is no key {key_id!r}")

        await self._db.write(revoke)
        self._revocations += 1
        for known in [hashed for hashed, entry in self._known.items() if entry.caller.key_id == key_id]:
            del self._known[known]

    async def authenticate(self, secret: str) -> Caller | None:
        """Say who shows this key; None if it is unknown, revoked or expired.

        A known key costs no reading for five seconds. An unknown one is looked up each time.
        """
        if not is_well_formed(secret):
            return None
        hashed, now = digest(secret, self._pepper), self._clock()
        known = self._known.get(hashed)
        if known is None or now - known.read_at >= _REMEMBERED_FOR:
            known = await self._read(hashed, now)
        if known is None or (known.expires_at is not None and known.expires_at <= now):
            return None
        if known.use_noted_at is None or now - known.use_noted_at >= _USE_NOTED_EVERY:
            await self._note_use(hashed, known, now)
        return known.caller

    async def _read(self, hashed: str, now: datetime) -> _Known | None:
        """Read a key and remember it, unless keys were revoked meanwhile: what was read may be older than that."""
        revocations = self._revocations
        row = await self._db.read(lambda connection: connection.execute(_good_key(hashed)).one_or_none())
        if revocations != self._revocations:
            return await self._read(hashed, now)
        if row is None:
            self._known.pop(hashed, None)
            return None
        caller = Caller(row.tenant_id, row.tenant_name, row.id)
        known = self._known[hashed] = _Known(caller, row.expires_at, now, row.last_used_at)
        self._known.move_to_end(hashed)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return known

    async def _note_use(self, hashed: str, known: _Known, now: datetime) -> None:
        """Write that the key is used. Remembered first, so that requests at the same time do not all write it."""
        if hashed in self._known:
            self._known[hashed] = replace(known, use_noted_at=now)
        stale = or_(api_key.c.last_used_at.is_(None), api_key.c.last_used_at <= now - _USE_NOTED_EVERY)
        note = update(api_key).where(api_key.c.id == known.caller.key_id, stale).values(last_used_at=now)
        with suppress(Overloaded):  # a good key stays good, even if this cannot be noted
            await self._db.write(lambda connection: connection.execute(note).rowcount)

    def _tenant_of(self, connection: Connection, name: str, now: datetime) -> str:
        found = connection.execute(select(tenant.c.id).where(tenant.c.name == name)).scalar_one_or_none()
        if found is not None:
            return found
        tenant_id = self._new_id("ten")
        connection.execute(insert(tenant).values(id=tenant_id, name=name, created_at=now))
        return tenant_id

    def _new_id(self, kind: str) -> str:
        return f"{kind}_{self._randomness(12).hex()}"


def _checked_name(param: str, name: str) -> str:
    name = name.strip()
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise BadRequest(f"{param} needs 1 to {_LONGEST_NAME} printable characters", param=param)
    return name


def _check_budget(budget_usd: Decimal | None) -> None:
    if budget_usd is None:
        return
    if not budget_usd.is_finite() or not 0 <= budget_usd <= _LARGEST_BUDGET_USD or budget_usd != whole_nano_dollars(budget_usd):
        raise BadRequest(
            f"a budget is 0 to {_LARGEST_BUDGET_USD} US dollars with at most nine decimals, not {budget_usd}", param="budget_usd"
        )


def _row_of(made: CreatedKey, hashed: str) -> dict[str, Any]:
    return {
        "id": made.key_id,
        "tenant_id": made.tenant_id,
        "name": made.name,
        "digest": hashed,
        "prefix": visible_prefix(made.secret),
        "budget_usd": made.budget_usd,
        "created_at": made.created_at,
        "expires_at": made.expires_at,
    }


def _with_tenant(keys: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    return keys.join(tenant, tenant.c.id == api_key.c.tenant_id).add_columns(tenant.c.name.label("tenant_name"))


def _good_key(hashed: str) -> Select[*tuple[Any, ...]]:
    keys = across_tenants(api_key, reason="the key is what tells the tenant")
    return _with_tenant(keys).where(api_key.c.digest == hashed, api_key.c.revoked_at.is_(None))


def _facts(row: Row[Any]) -> KeyFacts:
    return KeyFacts(
        key_id=row.id,
        tenant_id=row.tenant_id,
        tenant_name=row.tenant_name,
        name=row.name,
        prefix=row.prefix,
        budget_usd=row.budget_usd,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
