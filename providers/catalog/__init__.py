"""The catalog: every model, who sells it and by which rules, read from TOML files and checked before anything is served."""

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from normalization.converters import CONVERTERS
from normalization.emulations import EMULATIONS, ENCODE
from normalization.offer import Model, Offer, Output, Price, PriceUnit, Rule, Transparency, ValueType, Verb
from normalization.pixels.formats import Format
from normalization.request import PARAMETERS, RequestMode
from providers.registry import PROVIDER_NAMES


class CatalogError(Exception):
    """A catalog file that cannot be used: names the file, the line where it can be told, and the reason."""


class Catalog:
    """The models that can be asked for."""

    def __init__(self, models: Iterable[Model]) -> None:
        self.models: Mapping[str, Model] = MappingProxyType({model.id: model for model in models})
        self.parameters = frozenset(PARAMETERS) | {
            known
            for model in self.models.values()
            for offer in model.offers
            for name, rule in offer.params.items()
            for known in (name, rule.to or name)
        }
        """Every parameter name that some entry knows, providers' own names included."""

    def find(self, name: str) -> tuple[Model, tuple[Offer, ...]] | None:
        """The model a caller names and the offers that may serve it; `provider/model` pins one provider."""
        model = self.models.get(name)
        if model is not None:
            return model, model.offers
        provider, _, rest = name.partition("/")
        pinned = self.models.get(rest)
        offers = tuple(offer for offer in pinned.offers if offer.provider == provider) if pinned else ()
        return (pinned, offers) if pinned and offers else None

    def taking(self, pictures: int) -> tuple[str, ...]:
        """The models of which some offer takes so many pictures at once."""
        rules = ((name, offer.params.get("image")) for name, model in self.models.items() for offer in model.offers)
        return tuple(dict.fromkeys(name for name, rule in rules if rule is not None and (rule.max or 1) >= pictures))

    def similar(self, name: str) -> list[str]:
        """Ids that a caller may have meant, nearest first."""
        return difflib.get_close_matches(name.rpartition("/")[2], self.models, n=3, cutoff=0.5)


class Shelf:
    """The catalog as it is now. A reload replaces it whole, or, if a file cannot be used, not at all."""

    def __init__(self, load: Callable[[], Catalog]) -> None:
        """Load it for the first time. Raises `CatalogError`."""
        self._load = load
        self.catalog = load()

    def reload(self) -> Catalog:
        """Load it again. Raises `CatalogError`; what was there before stays then."""
        self.catalog = self._load()
        return self.catalog


def load_catalog(folder: Path | None = None, local_usd_per_second: Decimal = Decimal(0)) -> Catalog:
    """Read the packaged models, and an operator's own from `folder`, which may override them by id.

    Raises:
        CatalogError: For the first file that cannot be used.
    """
    packaged = Path(str(files("providers.catalog") / "models"))
    models: dict[str, Model] = {}
    for place in (packaged, folder):
        if place is None:
            continue
        if not place.is_dir():
            raise CatalogError(f"{place}: no such folder; see GATEWAY_CATALOG__FOLDER")
        own = [read_model(path) for path in sorted(place.glob("*.toml"))]
        _refuse_twins(place, own)
        models |= {model.id: _with_local_rate(model, local_usd_per_second) for model in own}
    return Catalog(models.values())


def read_model(path: Path) -> Model:
    """Read one model file.

    Raises:
        CatalogError: With file, line and reason.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path}: cannot be read: {error}") from error
    try:
        return _ModelFile.model_validate(tomllib.loads(text)).model()
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"{path}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        wrong = first.get("ctx", {}).get("error")
        place = (*first["loc"], "params", wrong.param) if isinstance(wrong, _WrongRule) else first["loc"]
        where = ".".join(str(part) for part in place)
        raise CatalogError(f"{path}:{_line_of(text, place)}: {where}: {first['msg'].removeprefix('Value error, ')}") from error


def _refuse_twins(folder: Path, models: list[Model]) -> None:
    ids = [model.id for model in models]
    twins = sorted({name for name in ids if ids.count(name) > 1})
    if twins:
        raise CatalogError(f"{folder}: two files define {', '.join(twins)}")


def _with_local_rate(model: Model, usd: Decimal) -> Model:
    offers = (
        replace(offer, price=replace(offer.price, usd=usd)) if offer.price.unit is PriceUnit.LOCAL_SECOND else offer
        for offer in model.offers
    )
    return replace(model, offers=tuple(offers))


def _line_of(text: str, location: tuple[int | str, ...]) -> int:
    """The line that a validation error points at, as near as the keys tell: the last key found after the ones before it."""
    lines = text.splitlines()
    at = 0
    for part in location:
        if isinstance(part, int):
            tables = [number for number, line in enumerate(lines) if line.strip() == "[[offers]]"]
            at = tables[part] if part < len(tables) else at
            continue
        at = next((number for number in range(at, len(lines)) if _key_of(lines[number]) == part), at)
    return at + 1


def _key_of(line: str) -> str:
    """What a line defines: its key, or the last part of a table's name."""
    return line.split("=")[0].strip().strip("[]").rpartition(".")[2].strip('"')


class _WrongRule(ValueError):
    """A rule that is well formed, but not for this parameter."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class _File(BaseModel):
    """A table of a model file; unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _spelled_out(rule: Any) -> Any:
    """`"passthrough"` stands for `{ passthrough = true }`."""
    return {"passthrough": True} if rule == "passthrough" else rule


_NEEDED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "table": ("table",),
        "nearest_ratio": ("choices",),
        "longest_edge": ("table",),
        "factor_to_reach": ("max", "choices", "table"),
        "scaled": ("max",),
        "with_default": ("default",),
    }
)
"""What a conversion cannot do without: one of these keys."""

_EMULATED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "fan_out": ("n",),
        "copies": ("n",),
        "fit": ("size", "aspect_ratio", "resolution"),
        "resample": ("scale_factor",),
        "composite_mask": ("mask",),
        ENCODE: ("output_format", "output_compression", "background"),
    }
)
"""The parameters that an emulation is for."""

_PICTURES = ("image", "mask")


class _RuleTable(_File):
    passthrough: Literal[True] | None = None
    rename: str | None = None
    convert: str | None = None
    to: str | None = None
    type: ValueType | None = None
    choices: tuple[Any, ...] = ()
    table: dict[str, Any] = {}
    min: float | None = None
    max: float | None = None
    multiple_of: float | None = None
    default: Any = None
    required: bool = False
    formats: tuple[Format, ...] = ()
    max_pixels: int | None = Field(default=None, gt=0)
    max_edge: int | None = Field(None, gt=0)
    uncertain: str | None = None
    emulate: str | None = None
    blocked: str | None = Field(None, min_length=1)
    at_input_size: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> "_RuleTable":
        ways = [way for way in (self.passthrough, self.rename, self.convert) if way is not None]
        if len(ways) > 1:
            raise ValueError("one native way: passthrough, rename or convert")
        if self.blocked is not None and (ways or self.emulate is not None or self.required):
            raise ValueError("a blocked parameter has no native way, no emulation, and is not required")
        if not ways and self.emulate is None and self.blocked is None:
            raise ValueError("no native way and no emulation: leave the parameter out if the offer lacks it")
        if self.convert is not None and (self.convert not in CONVERTERS or self.to is None):
            raise ValueError(f"convert names one of {', '.join(CONVERTERS)}, with `to`")
        if self.convert is None and self.to is not None:
            raise ValueError("`to` belongs to `convert`; use rename")
        if self.emulate is not None and self.emulate not in (*EMULATIONS, ENCODE):
            raise ValueError(f"emulate names one of {', '.join((*EMULATIONS, ENCODE))}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is above max")
        needed = _NEEDED.get(self.convert or "", ())
        if needed and not self.model_fields_set.intersection(needed):
            raise ValueError(f"{self.convert} needs {' or '.join(f'`{name}`' for name in needed)}")
        if self.convert is None and self.default is not None and not self._allows(self.default):
            raise ValueError("default is a value that the rule does not allow")
        return self

    def _allows(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    def rule(self) -> Rule:
        verb = Verb.PASSTHROUGH if self.passthrough else Verb.RENAME if self.rename else Verb.CONVERT if self.convert else None
        return Rule(
            verb=verb,
            to=self.rename or self.to,
            converter=self.convert,
            type=self.type,
            choices=self.choices,
            table=self.table,
            min=self.min,
            max=self.max,
            multiple_of=self.multiple_of,
            default=self.default,
            required=self.required,
            formats=tuple(str(format_) for format_ in self.formats),
            max_pixels=self.max_pixels,
            max_edge=self.max_edge,
            uncertain=self.uncertain,
            emulate=self.emulate,
            blocked=self.blocked,
            at_input_size=self.at_input_size,
        )


class _PriceTable(_File):
    per_image: Decimal | None = Field(None, ge=0)
    per_second: Decimal | None = Field(None, ge=0)
    per_output_megapixel: Decimal | None = Field(None, ge=0)
    tiers: tuple[tuple[Decimal, Decimal], ...] | None = None
    local: Literal[True] | None = None
    unknown: str | None = None
    typical_s: Decimal | None = Field(None, gt=0)
    round_up: bool = False
    uncertain: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _money_is_text(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and any(isinstance(value, float) for value in raw.values()):  # pyright: ignore[reportUnknownVariableType] -- TOML is untyped here
            raise ValueError('amounts are text, so that they are exact: per_image = "0.04"')
        return raw  # pyright: ignore[reportUnknownVariableType] -- the same untyped table

    @model_validator(mode="after")
    def _one_unit(self) -> "_PriceTable":
        units = (self.per_image, self.per_second, self.per_output_megapixel, self.tiers, self.local, self.unknown)
        if sum(unit is not None for unit in units) != 1:
            raise ValueError('one of per_image, per_second, per_output_megapixel, tiers, local = true, or unknown = "why"')
        if self.tiers is not None and list(self.tiers) != sorted(self.tiers):
            raise ValueError('tiers ascend: [["24", "0.08"], ["48", "0.16"]], megapixels and dollars')
        return self

    def price(self) -> Price:
        priced = {
            PriceUnit.IMAGE: self.per_image,
            PriceUnit.SECOND: self.per_second,
            PriceUnit.OUTPUT_MEGAPIXEL: self.per_output_megapixel,
            PriceUnit.LOCAL_SECOND: Decimal(0) if self.local else None,
        }
        for unit, usd in priced.items():
            if usd is not None:
                return Price(unit, usd, typical_s=self.typical_s, round_up=self.round_up, uncertain=self.uncertain)
        if self.tiers is not None:
            return Price(PriceUnit.TIER, tiers=self.tiers, uncertain=self.uncertain)
        return Price(PriceUnit.UNKNOWN, why=self.unknown, uncertain=self.uncertain)


class _OutputTable(_File):
    field: str = "images"
    format: Format | None = None
    pixels: int | None = Field(default=None, gt=0)
    alpha: Transparency | None = None

    def output(self) -> Output:
        return Output(field=self.field, format=self.format, pixels=self.pixels, alpha=self.alpha)


class _OfferTable(_File):
    provider: str
    endpoint: str = Field(min_length=1)
    source: str = Field(min_length=1)
    checked: date
    price: _PriceTable
    params: dict[str, Annotated[_RuleTable, BeforeValidator(_spelled_out)]]
    output: _OutputTable = _OutputTable()
    master: dict[str, Any] = {}
    fixed: dict[str, Any] = {}
    uncertain: str | None = None

    @model_validator(mode="after")
    def _provider_exists(self) -> "_OfferTable":
        if self.provider not in PROVIDER_NAMES:
            raise ValueError(f"provider is one of {', '.join(PROVIDER_NAMES)}")
        return self

    @model_validator(mode="after")
    def _rules_fit_their_parameters(self) -> "_OfferTable":
        for name, rule in self.params.items():
            if rule.emulate is not None and name not in _EMULATED[rule.emulate]:
                raise _WrongRule(name, f"{rule.emulate} emulates {', '.join(_EMULATED[rule.emulate])}")
            if name not in (*PARAMETERS, *_PICTURES) and rule.type is None and rule.blocked is None:
                raise _WrongRule(name, "a provider's own parameter needs a type: text, integer, number, boolean or json")
            if name not in _PICTURES and (rule.formats or rule.max_pixels or rule.max_edge):
                raise _WrongRule(name, "formats, max_pixels and max_edge are for pictures")
        return self

    @model_validator(mode="after")
    def _fields_are_set_once(self) -> "_OfferTable":
        direct = {name: rule.rename or name for name, rule in self.params.items() if rule.rename or rule.passthrough}
        for name, field in direct.items():
            if list(direct.values()).count(field) > 1:
                raise _WrongRule(name, f"another parameter sets {field} as well")
            if field in self.fixed:
                raise _WrongRule(name, f"{field} is fixed")
        declared = {rule.rename or rule.to or name for name, rule in self.params.items()}
        for field in self.master:
            if field not in declared:
                raise ValueError(f"master asks for {field}, which no parameter sets")
        return self

    def offer(self) -> Offer:
        return Offer(
            provider=self.provider,
            endpoint=self.endpoint,
            params=MappingProxyType({name: rule.rule() for name, rule in self.params.items()}),
            price=self.price.price(),
            output=self.output.output(),
            source=self.source,
            checked=self.checked,
            master=self.master,
            fixed=self.fixed,
            uncertain=self.uncertain,
        )


class _ModelFile(_File):
    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    name: str = Field(min_length=1)
    description: str = ""
    modes: tuple[RequestMode, ...] = Field(min_length=1)
    created: int
    offers: tuple[_OfferTable, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _no_twin_offers(self) -> "_ModelFile":
        places = [(offer.provider, offer.endpoint) for offer in self.offers]
        if len(set(places)) < len(places):
            raise ValueError("two offers with the same provider and endpoint")
        return self

    def model(self) -> Model:
        offers = tuple(offer.offer() for offer in self.offers)
        return Model(self.id, self.name, self.modes, offers, self.created, self.description)


@dataclass(frozen=True, slots=True)
class CatalogSummary:
    """What `catalog check` found."""

    models: int
    offers: int


def check_catalog(folder: Path | None = None) -> CatalogSummary:
    """Read everything as the server would.

    Raises:
        CatalogError: For the first file that cannot be used.
    """
    catalog = load_catalog(folder)
    return CatalogSummary(len(catalog.models), sum(len(model.offers) for model in catalog.models.values()))
