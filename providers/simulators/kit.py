"""What every simulator keeps: the faults it was told to have, the bill of its paid jobs, and how often it was asked for what.

`GET` and `POST /_sim/faults`, `GET /_sim/bill`, `GET /_sim/counters` and `POST /_sim/reset` read and change them at run time.
"""

import random
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from providers.simulators.serving import Answer, Request, json_answer


class FaultUnknown(ValueError):
    """A fault that the simulator does not have, or one that is not written `NAME[=ARG][@N]`."""


@dataclass(slots=True)
class Fault:
    """One way to misbehave, and how often."""

    name: str
    arg: str | None = None
    """What the fault's own description says; None for its default."""
    times: int | None = None
    """How often it still strikes; None: always."""
    percent: float | None = None
    """Of the occasions on which it strikes, by chance; None: on all."""
    struck: int = 0
    """How often it has."""

    def number(self, default: float) -> float:
        """The argument as a number."""
        return default if self.arg is None else float(self.arg)

    def __str__(self) -> str:
        arg = "" if self.arg is None else f"={self.arg}"
        often = f"@{self.percent:g}%" if self.percent is not None else "" if self.times is None else f"@{self.times}"
        return f"{self.name}{arg}{often}"


_WRITTEN = re.compile(r"(?P<name>[a-z0-9_]+)(=(?P<arg>.*?))?(@(?P<often>\d+(\.\d+)?%|\d+))?")


class Faults:
    """The faults that are switched on.

    Written `NAME[=ARG][@N]`: `rate_limit` always, `rate_limit@2` the first two times, `rate_limit@20%` one time in five by
    chance, which is the same chance in every run.
    """

    def __init__(self, known: Collection[str], specs: Iterable[str] = ()) -> None:
        """Take what the simulator can do and what is switched on. Raises `FaultUnknown`."""
        self._known = tuple(known)
        self._active: dict[str, Fault] = {}
        self._chance = random.Random(0)  # noqa: S311 - nothing secret, and equal in every run
        self.switch(specs)

    def switch(self, specs: Iterable[str]) -> None:
        """Have these faults and no others. Raises `FaultUnknown`; nothing is changed then."""
        self._active = {fault.name: fault for fault in map(self._parse, specs)}
        self._chance.seed(0)

    def strike(self, name: str) -> Fault | None:
        """The fault, if it strikes on this occasion; that counts as one of its times."""
        if name not in self._known:
            raise FaultUnknown(name)
        fault = self._active.get(name)
        if fault is None or fault.times == 0:
            return None
        if fault.percent is not None and self._chance.random() * 100 >= fault.percent:
            return None
        if fault.times is not None:
            fault.times -= 1
        fault.struck += 1
        return fault

    def find(self, name: str) -> Fault | None:
        """The fault, if it is on; this is no occasion for it to strike."""
        return self._active.get(name)

    def as_json(self) -> dict[str, Any]:
        """What is on, with how often it has struck, and what there is."""
        return {"active": {str(fault): fault.struck for fault in self._active.values()}, "known": list(self._known)}

    def _parse(self, spec: str) -> Fault:
        written = _WRITTEN.fullmatch(spec.strip())
        if written is None or written["name"] not in self._known:
            raise FaultUnknown(f"no fault {spec!r}; written NAME[=ARG][@N or @N%], known are {', '.join(self._known)}")
        often = written["often"] or ""
        return Fault(
            name=written["name"],
            arg=written["arg"],
            times=int(often) if often and not often.endswith("%") else None,
            percent=float(often[:-1]) if often.endswith("%") else None,
        )


@dataclass(frozen=True, slots=True)
class Charge:
    """A paid job."""

    id: str
    endpoint: str
    units: Decimal | None
    """In the endpoint's own unit, where the provider counts so."""
    seconds: Decimal | None
    """Of the provider's machine."""
    usd: Decimal | None
    """At the catalog's price; None where it has none."""
    answered: bool
    """False when the submit's answer was lost, so that the customer may not know of the job."""


@dataclass(slots=True)
class Bill:
    """What the provider would charge for: every job once, in the order in which they ended."""

    charges: list[Charge] = field(default_factory=list[Charge])

    def charge(
        self,
        job: str,
        endpoint: str,
        *,
        units: Decimal | None = None,
        seconds: Decimal | None = None,
        usd: Decimal | None = None,
        answered: bool = True,
    ) -> None:
        """Put a job on it."""
        self.charges.append(Charge(job, endpoint, units, seconds, usd, answered))

    def as_json(self) -> dict[str, Any]:
        """The rows, numbers as exact text; the sum; the ids of the jobs whose submit was not answered."""
        rows = [
            {
                "id": row.id,
                "endpoint": row.endpoint,
                "units": _text(row.units),
                "seconds": _text(row.seconds),
                "usd": _text(row.usd),
                "answered": row.answered,
            }
            for row in self.charges
        ]
        total = sum((row.usd for row in self.charges if row.usd is not None), Decimal(0))
        return {"jobs": rows, "usd": _text(total), "unanswered": [row.id for row in self.charges if not row.answered]}


class Counters:
    """How often each route was asked for, per endpoint; the endpoint is empty where a route belongs to none."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}

    def count(self, endpoint: str, route: str) -> int:
        """Count one more. Returns how many there were, this one included."""
        routes = self._counts.setdefault(endpoint, Counter())
        routes[route] += 1
        return routes[route]

    def of(self, endpoint: str, route: str) -> int:
        """How many there were."""
        return self._counts.get(endpoint, Counter[str]())[route]

    def clear(self) -> None:
        """Begin again."""
        self._counts.clear()

    def as_json(self) -> dict[str, Any]:
        """Endpoint to route to number."""
        return {endpoint: dict(routes) for endpoint, routes in self._counts.items()}


@dataclass(frozen=True, slots=True)
class Kit:
    """The three together."""

    faults: Faults
    bill: Bill = field(default_factory=Bill)
    counters: Counters = field(default_factory=Counters)

    def answer(self, request: Request) -> Answer | None:
        """The answer to `/_sim/…`; None for any other path.

        `POST /_sim/faults` takes `{"faults": ["rate_limit@1", …]}` and switches all others off.
        """
        match request.method, request.path:
            case "GET", "/_sim/faults":
                return json_answer(200, self.faults.as_json())
            case "POST", "/_sim/faults":
                return self._switch(request)
            case "GET", "/_sim/bill":
                return json_answer(200, self.bill.as_json())
            case "GET", "/_sim/counters":
                return json_answer(200, self.counters.as_json())
            case "POST", "/_sim/reset":
                self.faults.switch(())
                self.bill.charges.clear()
                self.counters.clear()
                return json_answer(200, {})
            case _:
                return None

    def _switch(self, request: Request) -> Answer:
        try:
            self.faults.switch(str(spec) for spec in request.json()["faults"])
        except (FaultUnknown, ValueError, TypeError, KeyError) as error:
            return json_answer(400, {"error": str(error)})
        return json_answer(200, self.faults.as_json())


def _text(number: Decimal | None) -> str | None:
    if number is None:
        return None
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
