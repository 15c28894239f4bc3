"""Settings: one frozen tree, read once from a TOML file and the environment over it.

Names are `GATEWAY_` plus the path with `__` between, as `docs/operating.md` lists them.
"""

import os
import secrets
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

VAR = Path("var")
"""Where a gateway without settings keeps its database, pictures and secret, under the folder it is started in."""


class SettingsError(Exception):
    """A setting that cannot be used: names it and says what is possible."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Backend(_Section):
    """One local server that makes pictures."""

    name: str = Field(min_length=1, pattern=r"^[^@\s]+$")
    url: str = Field(pattern=r"^https?://")
    models: tuple[str, ...] = Field(min_length=1)
    """Which models it serves: the `endpoint` of offers of the provider `local`."""
    kind: Literal["cog"] = "cog"
    """What it speaks."""
    slots: PositiveInt = 1
    """How many predictions it takes at once."""


class Local(_Section):
    """The operator's own machines."""

    backends: tuple[Backend, ...] | None = None
    """None: the bundled one, started by `serve`. Empty: none."""
    usd_per_second: Annotated[Decimal, Field(ge=0)] = Decimal(0)
    """What a second of one's own machine costs."""


class Fal(_Section):
    """fal's addresses; full, scheme and path included."""

    queue_url: str = Field(default="https://queue.fal.run", pattern=r"^https?://")
    run_url: str = Field(default="https://fal.run", pattern=r"^https?://")
    rest_url: str = Field(default="https://rest.fal.ai", pattern=r"^https?://")
    cdn_url: str = Field(default="https://v3.fal.media", pattern=r"^https?://")
    api_url: str = Field(default="https://api.fal.ai/v1", pattern=r"^https?://")
    store_io: bool = False
    """Whether fal keeps inputs and outputs in its history."""
    object_lifetime_s: PositiveInt = 3_600
    """How long fal keeps uploads and results."""


class Replicate(_Section):
    """Replicate's address."""

    base_url: str = Field(default="https://api.replicate.com/v1", pattern=r"^https?://")


class Limits(_Section):
    """What one request may be."""

    max_image_bytes: PositiveInt = 50 * 2**20
    max_image_pixels: PositiveInt = 64_000_000
    max_frames: PositiveInt = 500
    request_deadline_s: PositiveFloat = 240.0
    """After this a waiting caller gets 504 and the job's id, and the work goes on. Below the 300 s of Node's fetch."""
    job_deadline_s: PositiveFloat = 3600.0
    """After this the work itself is given up."""
    drain_s: PositiveFloat = 30.0
    """How long running work may go on after SIGTERM."""


class Pixels(_Section):
    """The pool that decodes and encodes pictures."""

    workers: PositiveInt = max(1, min(8, os.cpu_count() or 1))
    queue: PositiveInt = 64
    """Conversions that may wait; one more is answered with 503."""
    megapixels_in_flight: PositiveInt = 256
    deadline_s: PositiveFloat = 120.0


class Storage(_Section):
    """How long finished pictures are kept."""

    retention_s: PositiveInt = 86_400
    link_s: PositiveInt = 3_600


class S3(_Section):
    """S3-compatible stores other than AWS."""

    endpoint_url: str | None = None


class Fetch(_Section):
    """Fetching pictures that callers name by address."""

    allow_hosts: tuple[str, ...] = ()
    """`host` or `host:port` exempt from the private-network guard."""
    deadline_s: PositiveFloat = 30.0
    """For a picture that a caller names."""
    result_deadline_s: PositiveFloat = 120.0
    """For a result that a provider names."""


class CatalogSettings(_Section):
    """Where models come from."""

    folder: Path | None = None


OfferName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*(/\S+)?$")]
"""`provider`, for all its offers, or `provider/endpoint`."""


class Weight(_Section):
    """How much of the work some offers get."""

    offer: OfferName
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """In proportion to the others'; 1 for offers that are not listed. 0: only when the others fail."""


class Canary(_Section):
    """An offer that a share of the requests tries first, and no other."""

    offer: OfferName
    share: Annotated[float, Field(ge=0, le=1)]
    """0..1"""


Policy = Literal["balanced", "price", "latency", "native_first"]
"""What is weighed first; `gateway/images/routing.py` says how."""


class TenantPolicy(_Section):
    """A policy for one tenant's requests that name none."""

    tenant: str = Field(min_length=1)
    """Its name."""
    policy: Policy


class Routing(_Section):
    """How offers are chosen."""

    allow_unpriced: bool = False
    default_model: str = "detail-upscaler"
    """For requests that name none."""
    policy: Policy = "balanced"
    """For requests that name none."""
    tenant_policies: tuple[TenantPolicy, ...] = ()
    weights: tuple[Weight, ...] = ()
    canaries: tuple[Canary, ...] = ()
    breaker_failures: PositiveInt = 5
    """So many failures of an offer in a row make it rest."""
    breaker_rest_s: PositiveFloat = 15.0
    """The first rest; each that follows without a delivery between is twice as long."""
    breaker_longest_rest_s: PositiveFloat = 900.0
    """Also the rest after a wrong key, spent credit or a missing model, and the longest `Retry-After` that is believed."""
    health_window_s: PositiveFloat = 300.0
    """Over which success rates are taken."""
    healthy_rate: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Offers with a lower success rate come after those with a higher one."""


class Log(_Section):
    """Logs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] | None = None
    """None: `console` on a terminal, else `json`."""


def _postgres(url: Any) -> Any:
    return f"postgresql://{url.removeprefix('postgres://')}" if isinstance(url, str) and url.startswith("postgres://") else url


class Settings(BaseSettings):
    """All settings of one process."""

    model_config = SettingsConfigDict(
        env_prefix="GATEWAY_", env_nested_delimiter="__", frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True
    )

    database_url: Annotated[str, BeforeValidator(_postgres), Field(pattern=r"^(sqlite:///|postgresql://)")] = (
        f"sqlite:///{VAR / 'gateway.db'}"
    )
    storage_url: Annotated[str, Field(pattern=r"^(file://|s3://|memory://)")] | None = None
    """None: files under `var/pictures`."""
    redis_url: str | None = None
    public_url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    secret_key: SecretStr | None = None
    fal_key: Annotated[SecretStr | None, Field(validation_alias="FAL_KEY")] = None
    fal: Fal = Fal()
    replicate_api_token: Annotated[SecretStr | None, Field(validation_alias="REPLICATE_API_TOKEN")] = None
    replicate: Replicate = Replicate()
    local: Local = Local()
    limits: Limits = Limits()
    pixels: Pixels = Pixels()
    storage: Storage = Storage()
    s3: S3 = S3()
    fetch: Fetch = Fetch()
    catalog: CatalogSettings = CatalogSettings()
    routing: Routing = Routing()
    log: Log = Log()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over the environment over the file that `read_settings` names."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def pictures_url(self) -> str:
        """Where finished pictures lie."""
        return self.storage_url or f"file://{(VAR / 'pictures').absolute()}"


def read_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """Read the settings once.

    Args:
        config: The TOML file; None takes `gateway.toml` if there is one.
        overrides: Values that win over file and environment.

    Raises:
        SettingsError: With the setting's name and what is wrong with it.
    """
    if config is not None and not config.is_file():
        raise SettingsError(f"{config}: no such file")
    path = config or Path("gateway.toml")

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=path)

    try:
        return FromFile(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        name = "GATEWAY_" + "__".join(str(part).upper() for part in first["loc"])
        raise SettingsError(f"{name}: {first['msg']}") from error
    except ValueError as error:
        raise SettingsError(f"{path} or the environment: {error}") from error


def secret_key(settings: Settings) -> bytes:
    """The key that signs links and hashes API keys: the one set, else one made once and kept under `var/` for its owner only."""
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value().encode()
    path = VAR / "secret-key"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        # Written whole before it has its name, so that nobody reads half a key; whoever is second keeps the first one's.
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.touch(mode=0o600)
        fresh.write_text(secrets.token_hex(32), encoding="ascii")
        with suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
    return path.read_text(encoding="ascii").encode()
