"""The only list of providers: the name of each, and its class."""

from collections.abc import Mapping
from types import MappingProxyType

from providers.base import Provider
from providers.local.cog import CogProvider

PROVIDERS: Mapping[str, type[Provider]] = MappingProxyType({"local": CogProvider})

PROVIDER_NAMES = ("fal", "replicate", *PROVIDERS)
"""All that the catalog may name; those that this release cannot build are never eligible, and say so."""
