"""Model files: what is read from them, what is wrong with them, and what the packaged ones promise."""

from datetime import date
from pathlib import Path

import pytest

from gateway.images.routing import Controls, choose_route, weigh
from normalization.converters import CONVERTERS
from normalization.emulations import EMULATIONS, ENCODE
from normalization.offer import Offer, Rule, Verb
from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.plan import Decision, Encode, Fit, Mode, Plan
from normalization.planner import plan_request
from normalization.request import PARAMETERS, ImageRequest, Json, RequestMode
from providers.catalog import Catalog, CatalogError, check_catalog, load_catalog, read_model
from tests.normalization.requests import CUTOUT, PHOTO, request

CATALOG = load_catalog()
OFFERS = {f"{model.id}, {offer.provider}": offer for model in CATALOG.models.values() for offer in model.offers}
RULES = {f"{where}: {name}": (name, rule) for where, offer in OFFERS.items() for name, rule in offer.params.items()}

MADE_UP = """\
id = "dream-upscaler"
name = "Dream upscaler"
modes = ["upscale", "edit"]
created = 1795219200

[[offers]]
provider = "replicate"
endpoint = "acme/dream"
source = "https://example.com/dream"
checked = 2026-11-21
price = { per_image = "0.02" }
output = { field = "", format = "png" }

[offers.params]
image = { rename = "picture", max = 1, required = true }
scale_factor = { rename = "zoom", min = 1, max = 2, default = 2, emulate = "resample" }
size = { convert = "factor_to_reach", to = "zoom", min = 1, max = 2, emulate = "fit" }
n = { emulate = "fan_out" }
seed = { passthrough = true, default = 42 }
dreaminess = { passthrough = true, type = "number", min = 0, max = 1 }
lora = { blocked = "is not passed on" }
output_format = { emulate = "encode" }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An operator's own folder, with one model."""
    (tmp_path / "dream.toml").write_text(MADE_UP, encoding="utf-8")
    return tmp_path


def packaged(model: str, provider: str) -> Offer:
    """A packaged offer."""
    return OFFERS[f"{model}, {provider}"]


def planned(offer: Offer, fields: dict[str, Json], catalog: Catalog = CATALOG) -> Plan:
    """The plan for an edit of the 640x480 photograph."""
    return plan_request(request(fields), offer, catalog.parameters)


def decided(plan: Plan, param: str) -> Decision:
    """The one decision for a parameter."""
    (decision,) = [decision for decision in plan.decisions if decision.param == param]
    return decision


# --- the documented four behaviours -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["fal", "replicate"])
def test_passthrough_creativity(provider: str):
    """`creativity` goes as it is."""
    plan = planned(packaged("clarity-upscaler", provider), {"creativity": 0.4})

    assert decided(plan, "creativity").mode is Mode.PASSTHROUGH
    assert plan.calls[0].payload["creativity"] == 0.4


@pytest.mark.parametrize(
    ("provider", "param", "value", "field"),
    [
        ("fal", "image", None, "image_url"),
        ("fal", "scale_factor", 3, "upscale_factor"),
        ("replicate", "guidance_scale", 7, "dynamic"),
    ],
)
def test_renamed(provider: str, param: str, value: Json, field: str):
    """The same value goes under the provider's name, and no longer under ours."""
    plan = planned(packaged("clarity-upscaler", provider), {} if value is None else {param: value})

    assert decided(plan, param).mode is Mode.RENAMED
    assert list(decided(plan, param).sent) == [field]
    assert param not in plan.calls[0].payload


@pytest.mark.parametrize(("provider", "field"), [("fal", "upscale_factor"), ("replicate", "scale_factor")])
def test_converted_size(provider: str, field: str):
    """`size` becomes the factor that reaches it, and the result is made exactly that size."""
    plan = planned(packaged("clarity-upscaler", provider), {"size": "1280x960"})

    assert decided(plan, "size").mode is Mode.CONVERTED
    assert plan.calls[0].payload[field] == 2
    assert "size" not in plan.calls[0].payload
    assert plan.steps[0] == Fit(Size(1280, 960), request({}).fit)


@pytest.mark.parametrize(("provider", "seeds"), [("fal", [None, None]), ("replicate", [1337, 1338])])
def test_emulated_n(provider: str, seeds: list[int | None]):
    """`n` becomes calls; where the model's seed is fixed, each call gets its own."""
    plan = planned(packaged("clarity-upscaler", provider), {"n": 2})

    assert decided(plan, "n").mode is Mode.EMULATED
    assert [call.payload.get("seed") for call in plan.calls] == seeds


@pytest.mark.parametrize("provider", ["fal", "replicate"])
def test_emulated_response_format(provider: str):
    """`response_format` is the gateway's own business and never sent."""
    plan = planned(packaged("clarity-upscaler", provider), {"response_format": "b64_json"})

    assert decided(plan, "response_format").mode is Mode.EMULATED
    assert "response_format" not in plan.calls[0].payload


# --- rules that are easy to get wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("provider", "mode"), [("fal", Mode.UNSUPPORTED), ("replicate", Mode.PASSTHROUGH)])
def test_resemblance_has_another_range_at_each_provider(provider: str, mode: Mode):
    """What Replicate takes up to 3, fal takes up to 1."""
    assert decided(planned(packaged("clarity-upscaler", provider), {"resemblance": 2}), "resemblance").mode is mode


@pytest.mark.parametrize("provider", ["replicate", "local"])
def test_addresses_of_weights_are_refused(provider: str):
    """A caller cannot make the model load what stands at an address."""
    for name in ("lora_links", "custom_sd_model"):
        plan = planned(packaged("clarity-upscaler", provider), {name: "https://example.com/weights"})

        assert name not in plan.calls[0].payload
        assert plan.refusals == (
            f"{provider}: {name} is not passed on: it makes the model download and load whatever stands at an address",
        )


def test_replicate_says_jpg():
    """OpenAI's `jpeg` is `jpg` there, and avif is written by the gateway from a lossless master."""
    offer = packaged("clarity-upscaler", "replicate")

    assert planned(offer, {"output_format": "jpeg"}).calls[0].payload["output_format"] == "jpg"
    avif = planned(offer, {"output_format": "avif"})
    assert avif.calls[0].payload["output_format"] == "png"
    assert avif.steps == (Encode(Format.AVIF),)


def test_a_prompt_keeps_the_models_own_words():
    """On Replicate a prompt would replace the default: its words follow the caller's."""
    prompt = planned(packaged("clarity-upscaler", "replicate"), {"prompt": "a hat"}).calls[0].payload["prompt"]

    assert str(prompt).startswith("a hat, masterpiece, best quality, highres, <lora:more_details:0.5>")


def test_masks_have_the_polarity_of_the_provider():
    """flux-fill paints what is white; clarity on Replicate keeps what is white and answers at the picture's own size."""
    fill = plan_request(request({"prompt": "a hat"}, mask=CUTOUT), packaged("flux-fill", "fal"), CATALOG.parameters)
    clarity = plan_request(request({"scale_factor": 2}, mask=CUTOUT), packaged("clarity-upscaler", "replicate"), CATALOG.parameters)

    assert str(fill.calls[0].payload["mask_url"]) == "mask[0]+alpha_to_luminance"
    assert str(clarity.calls[0].payload["mask"]) == "mask[0]+alpha_to_luminance+luminance_inverse"
    assert decided(clarity, "scale_factor").mode is Mode.EMULATED
    assert clarity.steps[0] == Fit(Size(1280, 960), request({}).fit)


@pytest.mark.parametrize(("provider", "field"), [("fal", "image_urls"), ("replicate", "image_input")])
def test_several_pictures_go_in_order(provider: str, field: str):
    """nano-banana takes a list, also of one."""
    offer = packaged("nano-banana", provider)
    two = plan_request(request({"prompt": "a hat"}, images=(PHOTO, CUTOUT)), offer, CATALOG.parameters)
    one = plan_request(request({"prompt": "a hat"}), offer, CATALOG.parameters)

    assert [str(ref) for ref in _handles(two, field)] == ["image[0]", "image[1]"]
    assert [str(ref) for ref in _handles(one, field)] == ["image[0]"]


def _handles(plan: Plan, field: str) -> tuple[object, ...]:
    value = plan.calls[0].payload[field]
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize(
    ("factor", "sent", "mode"),
    [(2, "2x", Mode.CONVERTED), (3, "4x", Mode.EMULATED), (6, "6x", Mode.CONVERTED), (8, "6x", Mode.EMULATED)],
)
def test_topaz_on_replicate_counts_in_words(factor: int, sent: str, mode: Mode):
    """Its factors are 2x, 4x and 6x; others are reached from the next."""
    plan = planned(packaged("topaz-upscale", "replicate"), {"scale_factor": factor})

    assert (plan.calls[0].payload["upscale_factor"], decided(plan, "scale_factor").mode) == (sent, mode)


@pytest.mark.parametrize(("model", "provider"), [("crystal-upscaler", "replicate"), ("topaz-upscale", "fal")])
def test_creativity_is_between_0_and_1_everywhere(model: str, provider: str):
    """0.5 is the middle of the provider's own scale, whatever that is."""
    offer = packaged(model, provider)
    rule = offer.params["creativity"]

    sent = planned(offer, {"creativity": 1}).calls[0].payload["creativity"]

    assert sent == rule.max


@pytest.mark.parametrize("model", ["bria-background-removal", "birefnet-background-removal"])
def test_only_models_that_cut_out_give_transparency(model: str):
    """`background=transparent` is what they are for; an upscaler that gives opaque pictures refuses it."""
    assert not planned(packaged(model, "fal"), {"background": "transparent"}).refusals
    assert planned(packaged("clarity-upscaler", "fal"), {"background": "transparent"}).refusals


@pytest.mark.parametrize(("flag", "sent"), [(False, True), (True, False)])
def test_schnell_on_replicate_disables_where_others_enable(flag: bool, sent: bool):
    """`enable_safety_checker` is turned round."""
    plan = plan_request(_painting({"enable_safety_checker": flag}), packaged("flux-schnell", "replicate"), CATALOG.parameters)

    assert plan.calls[0].payload["disable_safety_checker"] is sent


def test_compression_goes_natively_where_the_format_can_be_compressed():
    """Replicate's schnell has a quality of its own; for png it would do nothing, which is said."""
    offer = packaged("flux-schnell", "replicate")

    webp = plan_request(_painting({"output_format": "webp", "output_compression": 80}), offer, CATALOG.parameters)
    png = plan_request(_painting({"output_format": "png", "output_compression": 80}), offer, CATALOG.parameters)

    assert webp.calls[0].payload["output_quality"] == 80
    assert not webp.steps
    assert "output_quality" not in png.calls[0].payload
    assert decided(png, "output_compression").mode is Mode.UNSUPPORTED
    assert decided(png, "output_format").mode is Mode.CONVERTED


@pytest.mark.parametrize(
    ("fields", "provider"),
    [({"sharpen": 2}, "replicate"), ({"dynamic": 7}, "replicate"), ({"upscale_factor": 3}, "fal"), ({}, "replicate")],
    ids=["a parameter of one", "the name at one", "the name at the other", "the cheaper"],
)
def test_the_offer_that_knows_a_parameter_is_preferred(fields: dict[str, Json], provider: str):
    """What only one provider's offer knows makes that offer the first to be tried, and the others say that they lack it."""
    _, offers = CATALOG.find("clarity-upscaler") or (None, ())
    paid = [offer for offer in offers if offer.provider != "local"]

    candidates = weigh(request(fields), paid, CATALOG.parameters, lambda _: None, allow_unpriced=False)
    route = choose_route(candidates, Controls())

    assert route.chosen[0].plan.offer.provider == provider


def _painting(fields: dict[str, Json]) -> ImageRequest:
    return ImageRequest(RequestMode.GENERATE, "m", {"prompt": "a hat", **request(fields, images=()).asked})


# --- the packaged files -------------------------------------------------------------------------------------------------------


def test_packaged_models_are_whole():
    """The catalog that is shipped can be read, and has the models that are promised."""
    assert set(CATALOG.models) >= {
        "aura-sr", "birefnet-background-removal", "bria-background-removal", "ccsr", "clarity-upscaler", "creative-upscaler",
        "crystal-upscaler", "detail-upscaler", "flux-dev", "flux-dev-image-to-image", "flux-fill", "flux-kontext-max",
        "flux-kontext-pro", "flux-schnell", "nano-banana", "qwen-image-edit", "real-esrgan", "recraft-crisp-upscale",
        "seedvr-upscale", "topaz-upscale",
    }  # fmt: skip
    assert check_catalog().models == len(CATALOG.models)


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_every_offer_says_where_it_was_read(offer: Offer):
    """A public address and a day; or, for the bundled model, its source."""
    assert offer.source.startswith("https://") or offer.provider == "local"
    assert offer.checked >= date(2026, 1, 1)


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_every_offer_decides_what_the_gateway_does_itself(offer: Offer):
    """Number, size, shape, resolution and file are served by every offer."""
    assert {"n", "size", "aspect_ratio", "resolution", "output_format", "output_compression", "background"} <= set(offer.params)
    assert all(offer.params[name].emulate for name in ("n", "size", "aspect_ratio", "resolution", "output_format"))


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_a_selectable_format_has_a_lossless_master(offer: Offer):
    """Where the format can be asked for, png is, whenever the gateway touches the pixels."""
    assert bool(offer.params["output_format"].verb) == (offer.master == {"output_format": "png"})


@pytest.mark.parametrize(("name", "rule"), RULES.values(), ids=RULES)
def test_every_rule_is_consistent(name: str, rule: Rule):
    """One way or none; a field where the way has one; names that exist; and its limits allow its default."""
    assert (rule.verb is Verb.CONVERT) == (rule.converter is not None)
    assert (rule.to is not None) == (rule.verb in (Verb.RENAME, Verb.CONVERT))
    assert rule.converter is None or rule.converter in CONVERTERS
    assert rule.emulate is None or rule.emulate in (*EMULATIONS, ENCODE)
    assert rule.verb or rule.emulate or rule.blocked
    assert name in PARAMETERS or name in ("image", "mask") or rule.type or rule.blocked


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_conversions_of_one_offer_into_one_field_agree(offer: Offer):
    """A factor by name, by size and by resolution has the same bounds."""
    fields: dict[tuple[str, str], set[object]] = {}
    for rule in offer.params.values():
        if rule.converter in ("factor_to_reach", "nearest_ratio", "width_height") and rule.to:
            fields.setdefault((rule.to, rule.converter), set()).add((rule.min, rule.max, rule.choices, tuple(rule.table.items())))

    assert all(len(bounds) == 1 for bounds in fields.values())


# --- an operator's own --------------------------------------------------------------------------------------------------------


def test_a_made_up_model_needs_one_file_and_nothing_else(folder: Path):
    """One TOML file in a folder: its parameters are renamed, converted, emulated, refused and priced like any other's."""
    catalog = load_catalog(folder)
    (offer,) = catalog.models["dream-upscaler"].offers

    plan = planned(offer, {"scale_factor": 3, "n": 2, "dreaminess": 0.5, "output_format": "webp"}, catalog)

    assert [dict(call.payload) for call in plan.calls] == [
        {"picture": plan.calls[0].payload["picture"], "zoom": 2, "dreaminess": 0.5, "seed": seed} for seed in (42, 43)
    ]
    assert plan.steps == (Fit(Size(1920, 1440), request({}).fit), Encode(Format.WEBP))
    assert decided(planned(offer, {"scale_factor": 1.5}, catalog), "scale_factor").mode is Mode.RENAMED
    assert planned(offer, {"lora": "x"}, catalog).refusals == ("replicate: lora is not passed on",)
    assert "clarity-upscaler" in catalog.models


def test_an_operators_file_overrides_the_packaged_one(folder: Path):
    """A file with the id of a packaged model takes its place."""
    (folder / "dream.toml").write_text(MADE_UP.replace("dream-upscaler", "aura-sr"), encoding="utf-8")

    assert load_catalog(folder).models["aura-sr"].offers[0].endpoint == "acme/dream"


def test_what_a_file_names_is_known_everywhere(folder: Path):
    """A parameter of the made-up model, or the provider's name for one, is no longer unknown to other offers."""
    catalog = load_catalog(folder)

    assert {"dreaminess", "zoom", "lora"} <= catalog.parameters
    assert decided(planned(packaged("aura-sr", "fal"), {"zoom": 2}, catalog), "zoom").mode is Mode.UNSUPPORTED


BROKEN: dict[str, tuple[str, str, int, str]] = {
    "not TOML": ('"dream-upscaler"', "dream", 1, "Invalid"),
    "an unknown key": ("required = true", "needed = true", 15, "image.needed: Extra inputs"),
    "an unknown provider": ('"replicate"', '"acme"', 6, "provider is one of"),
    "an unknown conversion": ("factor_to_reach", "magic", 17, "convert names one of"),
    "an unknown emulation": ("resample", "magic", 16, "emulate names one of"),
    "an emulation of something else": ('"fan_out"', '"fit"', 18, "fit emulates size"),
    "two ways": ('rename = "zoom"', 'rename = "zoom", passthrough = true', 16, "one native way"),
    "no way": ('{ emulate = "fan_out" }', "{ max = 4 }", 18, "no native way and no emulation"),
    "blocked and sent": ("{ blocked", "{ passthrough = true, blocked", 21, "a blocked parameter"),
    "bounds the wrong way round": ("min = 1, max = 2, default", "min = 3, max = 2, default", 16, "min is above"),
    "a default out of range": ("default = 2", "default = 3", 16, "default is a value"),
    "no bounds for a factor": ('"zoom", min = 1, max = 2, emulate', '"zoom", emulate', 17, "needs `max`"),
    "no type": ('type = "number", ', "", 20, "needs a type"),
    "formats of a number": ("default = 42", 'formats = ["png"]', 19, "are for pictures"),
    "one field twice": (
        'lora = { blocked = "is not passed on" }',
        'zoom = { passthrough = true, type = "number" }',
        16,
        "another parameter sets zoom",
    ),
    "a float for money": ('"0.02"', "0.02", 11, "amounts are text"),
    "two prices": ('"0.02"', '"0.02", local = true', 11, "one of per_image"),
    "a master nobody sets": ("output = {", 'master = { quality = "best" }\noutput = {', 6, "master asks for quality"),
    "a fixed field that is a parameter": ("output = {", "fixed = { zoom = 2 }\noutput = {", 17, "zoom is fixed"),
    "no source": ('source = "https://example.com/dream"\n', "", 6, "source: Field required"),
}
"""What is written instead of what, the line that is told, and the reason."""


@pytest.mark.parametrize(("right", "wrong", "line", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_mistake_is_told_with_file_line_and_reason(tmp_path: Path, right: str, wrong: str, line: int, reason: str):
    """Whoever made the mistake can go to the line."""
    path = tmp_path / "dream.toml"
    path.write_text(MADE_UP.replace(right, wrong), encoding="utf-8")

    with pytest.raises(CatalogError) as error:
        read_model(path)

    message = str(error.value)
    assert message.startswith(str(path))
    assert f"{path}:{line}: " in message or f"line {line}," in message
    assert reason in message


def test_two_files_of_one_model_are_a_mistake(folder: Path):
    """Which of the two would count is nobody's guess."""
    (folder / "again.toml").write_text(MADE_UP, encoding="utf-8")

    with pytest.raises(CatalogError, match="two files define dream-upscaler"):
        load_catalog(folder)


def test_a_folder_that_is_not_there_is_a_mistake(tmp_path: Path):
    """A misspelled setting does not go unnoticed."""
    with pytest.raises(CatalogError, match="no such folder"):
        load_catalog(tmp_path / "nowhere")


@pytest.mark.parametrize("provider", ["fal", "replicate"])
def test_pictures_beyond_what_recraft_takes_are_shrunk_and_the_factor_still_holds(provider: str):
    """Recraft takes edges of 4096 and 16 megapixels; twice the picture is twice what came, not what was sent."""
    large = ImageInfo(Format.PNG, Size(5472, 3648))

    plan = plan_request(
        request({"scale_factor": 2}, images=(large,)), packaged("recraft-crisp-upscale", provider), CATALOG.parameters
    )

    assert "brought to 4096x2730, the largest that is taken" in (decided(plan, "image").emulation or "")
    assert plan.steps[0] == Fit(Size(10944, 7296), request({}).fit)


def test_large_pictures_are_known_by_their_header_only():
    """A plan needs nothing but sizes: a picture of 20 megapixels plans like a small one."""
    large = ImageInfo(Format.JPEG, Size(5472, 3648))

    plan = plan_request(request({"scale_factor": 2}, images=(large,)), packaged("clarity-upscaler", "fal"), CATALOG.parameters)

    assert plan.calls[0].payload["upscale_factor"] == 2
