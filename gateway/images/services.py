"""What the request path works with: built once in `gateway/app.py`, handed down, never looked up."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from structlog.typing import FilteringBoundLogger

from gateway.assets.store import AssetStore
from gateway.images.health import Health
from gateway.images.journal import Journal
from gateway.images.pixel_pool import PixelPool
from gateway.observe.metrics import Metrics
from gateway.settings import Settings
from normalization.offer import Offer
from normalization.pixels.heic import is_installed
from normalization.pixels.probe import ProbeLimits
from providers import http
from providers.base import Provider
from providers.catalog import Catalog, Shelf
from providers.drive import Nudges
from providers.spool import Spool


@dataclass(frozen=True, slots=True)
class Services:
    """The gateway's parts, as the request path sees them."""

    settings: Settings
    shelf: Shelf
    providers: Mapping[str, Provider]
    journal: Journal
    pixels: PixelPool
    store: AssetStore
    spool: Spool
    client: http.AsyncClient
    """Guarded: for addresses that callers and providers name."""
    unavailable: Callable[[Offer], str | None]
    """Why an offer cannot take work at all: no key, no backend. None if it can."""
    health: Health
    """How offers have done lately, and which rest."""
    nudges: Nudges
    webhooked: frozenset[str]
    """Providers that tell by webhook when work is over."""
    metrics: Metrics
    log: FilteringBoundLogger
    clock: Callable[[], datetime]
    """Now, in UTC."""

    @property
    def catalog(self) -> Catalog:
        """The models as they are now; take it once for each request."""
        return self.shelf.catalog

    @property
    def probe_limits(self) -> ProbeLimits:
        """What a caller's picture may have at most."""
        limits = self.settings.limits
        return ProbeLimits(max_pixels=limits.max_image_pixels, max_frames=limits.max_frames, heic=is_installed())
