"""The only list of providers: the name of each, and its class."""

from collections.abc import Mapping
from types import MappingProxyType

from providers.base import Provider
from providers.fal import FalProvider
from providers.local.cog import CogProvider
from providers.replicate import ReplicateProvider

PROVIDERS: Mapping[str, type[Provider]] = MappingProxyType(
    {"fal": FalProvider, "replicate": ReplicateProvider, "local": CogProvider}
)

PROVIDER_NAMES = tuple(PROVIDERS)
"""All that the catalog may name."""
