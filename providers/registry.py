"""The only list of providers: the name of each, and how it is built."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from providers import http
from providers.base import Provider
from providers.local.cog import CogProvider, LocalBackend
from providers.spool import Spool


@dataclass(frozen=True, slots=True)
class Ground:
    """What providers are built on."""

    spool: Spool
    own: http.AsyncClient
    """Connects to addresses that the operator configured, wherever they are: made without a guard."""
    backends: tuple[LocalBackend, ...] = ()
    """The operator's own machines."""


Build: TypeAlias = Callable[[Ground], Provider]


def _local(ground: Ground) -> CogProvider:
    return CogProvider(ground.backends, client=ground.own, spool=ground.spool)


PROVIDERS: Mapping[str, Build] = MappingProxyType({"local": _local})

PROVIDER_NAMES = ("fal", "replicate", *PROVIDERS)
"""All that the catalog may name; those that this release cannot build are never eligible, and say so."""
