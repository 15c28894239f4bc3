"""What every provider is: three verbs over a ticket that can be stored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Protocol, TypeAlias

from normalization.plan import Call
from normalization.request import ImageRef


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture that waits in a spool file, ready to be sent."""

    path: Path
    mime: str
    size_bytes: int


ImageParts: TypeAlias = Mapping[ImageRef, ImagePart]
"""The pictures a call's payload names, preparations done."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A receipt from `submit`: plain text, storable, enough to resume after a crash."""

    provider: str
    endpoint: str
    id: str
    submitted_at: datetime
    """UTC."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the provider says it used. None means that it did not say."""

    seconds: Decimal | None = None
    units: Decimal | None = None
    """Billable units, where the provider reports them."""
    reported: Mapping[str, str] = field(default_factory=dict[str, str])
    """Whatever else it said of cost or use, as text, for the journal."""


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """A result: either still at an address, or already received into a spool file."""

    url: str | None = None
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """Not done yet."""

    progress: float | None = None
    """0..1, where the provider tells."""


@dataclass(frozen=True, slots=True)
class Done:
    """Done, with at least no failure; outputs may still turn out to be unusable."""

    outputs: tuple[RemoteImage, ...]
    usage: Usage = Usage()


class Provider(Protocol):
    """One way to have pictures made. Adapters translate every failure into `ProviderFailure` at their own border."""

    name: str

    def refusal(self, endpoint: str) -> str | None:
        """Why it cannot take work for an endpoint at all (no key, no backend); None if it can. Asks nobody."""
        ...

    async def submit(self, call: Call, images: ImageParts, *, alone: bool = False) -> Ticket:
        """Hand the call over.

        Args:
            call: What to ask for.
            images: The pictures that it names.
            alone: Whether no other offer could take over, so that the provider's own retries are worth waiting for.

        Raises:
            ProviderFailure: Kind `unknown` if it may have been taken all the same.
        """
        ...

    async def poll(self, ticket: Ticket) -> Running | Done:
        """Say how far it is. May wait a moment (at most 2 s) for news. Raises `ProviderFailure` once it has failed."""
        ...

    async def cancel(self, ticket: Ticket) -> None:
        """Ask that it stop. Not an error if it has ended already."""
        ...
