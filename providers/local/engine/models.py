"""The models that `--model` can name."""

from collections.abc import Callable
from types import MappingProxyType

from providers.local.engine.detail_upscaler import DetailUpscaler
from providers.local.engine.model import BackendModel

MODELS: MappingProxyType[str, Callable[[], BackendModel]] = MappingProxyType({"detail-upscaler": DetailUpscaler})
