"""The planner decides every parameter once, natively where it can."""

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normalization.converters import CONVERTERS
from normalization.emulations import EMULATIONS
from normalization.offer import Offer, Output, Rule, ValueType, Verb
from normalization.pixels.formats import OUTPUT_FORMATS, Format, ImageInfo, Size
from normalization.plan import Composite, Decision, Encode, Fit, Mode, Plan, fitted_size
from normalization.planner import guess, plan_request
from normalization.pricing import quote
from normalization.request import PARAMETERS, FitMode, ImageRef, ImageRequest, InvalidParameter, Json, Ratio, Text
from providers.catalog import load_catalog
from tests.normalization.requests import CUTOUT, PHOTO, offer, request

IMAGE = Rule(Verb.RENAME, "image_url", max=1)
NATIVE = {
    "image": IMAGE,
    "prompt": Rule(Verb.PASSTHROUGH),
    "n": Rule(Verb.RENAME, "num_images", max=4, emulate="fan_out"),
    "size": Rule(Verb.CONVERT, "aspect_ratio", "nearest_ratio", choices=("16:9", "4:3", "1:1", "3:4", "9:16"), emulate="fit"),
    "output_format": Rule(Verb.PASSTHROUGH, choices=("png", "jpeg"), emulate="encode"),
    "output_compression": Rule(emulate="encode"),
    "background": Rule(emulate="encode"),
    "seed": Rule(Verb.PASSTHROUGH),
    "steps": Rule(Verb.PASSTHROUGH, type=ValueType.INTEGER, min=1, max=50),
    "creativity": Rule(Verb.RENAME, "strength", min=0, max=1),
    "tolerance": Rule(Verb.PASSTHROUGH, type=ValueType.TEXT, choices=("1", "2")),
    "note": Rule(Verb.PASSTHROUGH, type=ValueType.TEXT, max=5),
    "weights_url": Rule(blocked="would make the model load whatever stands there"),
}
UPSCALER = {
    "image": IMAGE,
    "mask": Rule(emulate="composite_mask"),
    "scale_factor": Rule(Verb.RENAME, "upscale_factor", min=1, max=4, default=2, emulate="resample"),
    "size": Rule(Verb.CONVERT, "upscale_factor", "factor_to_reach", min=1, max=4, emulate="fit"),
    "n": Rule(emulate="copies"),
    "output_format": Rule(emulate="encode"),
}


def decided(plan: Plan, param: str) -> Decision:
    """The one decision for a parameter."""
    (decision,) = [decision for decision in plan.decisions if decision.param == param]
    return decision


@pytest.mark.parametrize(
    ("fields", "param", "mode", "sent"),
    [
        pytest.param({"prompt": "a hat"}, "prompt", Mode.PASSTHROUGH, {"prompt": "a hat"}, id="passthrough"),
        pytest.param({"n": 2}, "n", Mode.RENAMED, {"num_images": 2}, id="renamed"),
        pytest.param({"n": 6}, "n", Mode.EMULATED, {"num_images": [4, 2]}, id="beyond the native maximum"),
        pytest.param({"size": "1920x1080"}, "size", Mode.CONVERTED, {"aspect_ratio": "16:9"}, id="converted"),
        pytest.param({"size": "3:4"}, "size", Mode.CONVERTED, {"aspect_ratio": "3:4"}, id="a shape without a size"),
        pytest.param({"size": "auto"}, "size", Mode.PASSTHROUGH, {}, id="auto is left to the model"),
        pytest.param({"output_format": "jpeg"}, "output_format", Mode.PASSTHROUGH, {"output_format": "jpeg"}, id="native format"),
        pytest.param({"output_format": "webp"}, "output_format", Mode.EMULATED, {}, id="format by encoding"),
        pytest.param({"steps": Text("12")}, "steps", Mode.PASSTHROUGH, {"steps": 12}, id="form text typed by the schema"),
        pytest.param({"steps": Text("many")}, "steps", Mode.UNSUPPORTED, {}, id="form text of the wrong type"),
        pytest.param({"steps": 51}, "steps", Mode.UNSUPPORTED, {}, id="out of range"),
        pytest.param({"style": "vivid"}, "style", Mode.UNSUPPORTED, {}, id="known elsewhere"),
        pytest.param({"user": "u1"}, "user", Mode.EMULATED, {}, id="never a provider's business"),
        pytest.param({"zoom": Text("1.5")}, "zoom", Mode.PASSTHROUGH, {"zoom": 1.5}, id="unknown to everybody"),
        pytest.param({"strength": 0.5}, "strength", Mode.PASSTHROUGH, {"strength": 0.5}, id="the provider's own name"),
        pytest.param(
            {"num_images": 3}, "num_images", Mode.UNSUPPORTED, {}, id="the provider's own name of what the gateway counts"
        ),
        pytest.param({"image_url": "https://x"}, "image_url", Mode.UNSUPPORTED, {}, id="the provider's own name of a picture"),
        pytest.param({"strength": 0.5, "creativity": 0.4}, "strength", Mode.UNSUPPORTED, {}, id="both names of one thing"),
        pytest.param({"weights_url": "https://x"}, "weights_url", Mode.UNSUPPORTED, {}, id="blocked"),
        pytest.param({"note": "short"}, "note", Mode.PASSTHROUGH, {"note": "short"}, id="a text as long as may be"),
        pytest.param({"note": "longer"}, "note", Mode.UNSUPPORTED, {}, id="a text that is too long"),
        pytest.param({"steps": "12"}, "steps", Mode.PASSTHROUGH, {"steps": 12}, id="JSON text typed by the schema"),
        pytest.param({"tolerance": 2}, "tolerance", Mode.PASSTHROUGH, {"tolerance": "2"}, id="a number where text is declared"),
    ],
)
def test_each_value_gets_its_mode(fields: dict[str, Json], param: str, mode: Mode, sent: dict[str, Json]):
    """The mode is decided for the value asked, and the receipt shows what is sent."""
    decision = decided(plan_request(request(fields), offer(**NATIVE), frozenset(PARAMETERS)), param)

    assert (decision.mode, dict(decision.sent)) == (mode, sent)


def test_a_parameter_nobody_knows_is_marked():
    """What no entry knows goes upstream, and the receipt says that it is not known."""
    plan = plan_request(request({"zoom": Text("true")}), offer(**NATIVE))

    assert decided(plan, "zoom").known is False
    assert plan.calls[0].payload["zoom"] is True


def test_calls_of_a_fan_out_sum_to_n_and_vary_the_seed():
    """n=6 at four a call is a call of 4 and one of 2, each with a seed of its own."""
    plan = plan_request(request({"n": 6, "seed": 10}), offer(**NATIVE))

    assert [(call.images, call.payload["num_images"], call.payload["seed"]) for call in plan.calls] == [(4, 4, 10), (2, 2, 14)]
    assert "seeds 10, 14" in (decided(plan, "n").emulation or "")


def test_touching_pixels_asks_for_the_master_and_ends_with_one_encode():
    """A fitted size takes over the format, so that nothing is compressed twice."""
    plan = plan_request(request({"size": "1000x700", "output_format": "jpeg"}), offer({"output_format": "png"}, **NATIVE))

    assert plan.calls[0].payload["output_format"] == "png"
    assert [type(step) for step in plan.steps] == [Fit, Encode]
    assert decided(plan, "output_format").mode is Mode.EMULATED


@pytest.mark.parametrize(
    ("size", "mode", "factor"),
    [
        ("1280x960", Mode.CONVERTED, 2),
        ("1000x1000", Mode.CONVERTED, 2.0834),
        ("320x240", Mode.CONVERTED, 1),
        ("6400x4800", Mode.EMULATED, 4),
    ],
)
def test_a_size_becomes_the_factor_that_reaches_it(size: str, mode: Mode, factor: float):
    """An upscaler gets the factor from the input's own size, clamped to its range; the rest is fitted."""
    plan = plan_request(request({"size": size}), offer(**UPSCALER))

    assert (decided(plan, "size").mode, plan.calls[0].payload["upscale_factor"]) == (mode, factor)
    assert isinstance(plan.steps[0], Fit)
    assert str(plan.steps[0].size) == size


def test_a_factor_asked_by_name_wins_over_the_one_a_size_would_give():
    """Both are served: the model works at the factor asked for, and the result is fitted to the size."""
    plan = plan_request(request({"size": "1000x1000", "scale_factor": 4}), offer(**UPSCALER))

    assert plan.calls[0].payload["upscale_factor"] == 4
    assert decided(plan, "scale_factor").mode is Mode.RENAMED
    assert decided(plan, "size").mode is Mode.EMULATED


def test_a_factor_beyond_the_range_is_resampled_to_the_promised_size():
    """Never a smaller picture without a word."""
    plan = plan_request(request({"scale_factor": 8}), offer(**UPSCALER))

    assert plan.calls[0].payload["upscale_factor"] == 4
    assert plan.steps[0] == Fit(Size(5120, 3840), plan.steps[0].how)  # pyright: ignore
    assert decided(plan, "scale_factor").mode is Mode.EMULATED


def test_equal_calls_are_made_once():
    """A model that always gives the same picture is paid once for n pictures."""
    plan = plan_request(request({"n": 3}), offer(**UPSCALER))

    assert (len(plan.calls), plan.copies) == (1, 3)


def test_a_mask_is_laid_over_where_the_model_has_none_and_never_dropped():
    """Leaving a mask out would edit what was to be kept."""
    emulated = plan_request(request(mask=CUTOUT), offer(**UPSCALER))
    refused = plan_request(request(mask=CUTOUT), offer(image=IMAGE))

    assert emulated.steps[0] == Composite(ImageRef("image"), ImageRef("mask"))
    assert refused.refusals


def test_two_pictures_for_a_model_of_one_are_refused():
    """The reason says how many it takes."""
    plan = plan_request(request(images=(PHOTO, PHOTO)), offer(**NATIVE))

    assert plan.refusals == ("acme: image takes 1 picture, got 2",)


@pytest.mark.parametrize(
    "info",
    [
        ImageInfo(Format.JPEG, Size(10, 10), orientation=6),
        ImageInfo(Format.PNG, Size(10, 10), profile=True),
        ImageInfo(Format.JPEG, Size(10, 10), metadata=True),
        ImageInfo(Format.PNG, Size(10, 10), bits=16),
        ImageInfo(Format.JPEG, Size(10, 10), colors="cmyk"),
        ImageInfo(Format.GIF, Size(10, 10)),
    ],
    ids=["turned", "profile", "metadata", "16 bit", "cmyk", "another format"],
)
def test_pictures_that_a_provider_might_misread_are_cleaned_first(info: ImageInfo):
    """Orientation, colour and privacy are settled before anything leaves the gateway."""
    rule = Rule(Verb.PASSTHROUGH, formats=("png", "jpeg"))

    (call,) = plan_request(request(images=(info,)), offer(image=rule)).calls

    assert call.payload["image"] == ImageRef("image", 0, ("clean",))


def test_transparency_in_a_format_without_it_is_refused_and_named():
    """`background=transparent` with jpeg cannot be; the reason lists formats that can."""
    plan = plan_request(request({"background": "transparent", "output_format": "jpeg"}, images=(CUTOUT,)), offer(**NATIVE))

    (reason,) = plan.refusals
    assert "cannot be stored in jpeg" in reason


def test_a_format_without_alpha_is_laid_on_white_unless_told_otherwise():
    """Never black by accident."""
    white = plan_request(request({"output_format": "jpeg"}, images=(CUTOUT,)), offer(**UPSCALER)).steps[-1]
    red = plan_request(request({"output_format": "jpeg", "background_color": "#FF0000"}), offer(**UPSCALER)).steps[-1]

    assert isinstance(white, Encode)
    assert isinstance(red, Encode)
    assert (white.background, red.background) == ("#ffffff", "#ff0000")


def test_compression_of_a_lossless_format_is_reported_not_refused():
    """png has nothing to compress further; the picture still comes."""
    plan = plan_request(request({"output_compression": 50, "output_format": "png"}), offer(**NATIVE))

    assert decided(plan, "output_compression").mode is Mode.UNSUPPORTED
    assert not plan.refusals


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1.5", 1.5),
        ("true", True),
        ("False", False),
        ("[1, 2]", [1, 2]),
        ('{"a": 1}', {"a": 1}),
        ("{oops", "{oops"),
        ("1e999", "1e999"),
        ("a", "a"),
    ],
)
def test_text_of_unknown_parameters_is_typed_by_its_look(text: str, value: Json):
    """Numbers, booleans and JSON go upstream as such, everything else as text."""
    assert guess(Text(text)) == value


# --- what was shrunk, and what decides ----------------------------------------------------------------------------------------

SMALL = {**UPSCALER, "image": Rule(Verb.RENAME, "image_url", max=1, max_edge=320)}
"""Takes the 640x480 photograph at half its size only."""


@pytest.mark.parametrize(
    ("factor", "sent", "size", "words"),
    [
        pytest.param(2, 4, Size(1280, 960), "the model works at 4, from the 320x240 that is sent", id="twice as much"),
        pytest.param(3, 4, Size(1920, 1440), "the model works at 4, from the 320x240 that is sent", id="as far as it goes"),
        pytest.param(0.5, 1, Size(320, 240), "the model works at 1, from the 320x240 that is sent", id="not at all"),
    ],
)
def test_a_factor_is_that_of_the_picture_as_it_came(factor: float, sent: float, size: Size, words: str):
    """A picture sent at half its size is enlarged by twice the factor, as far as the model goes, and the receipt says so."""
    plan = plan_request(request({"scale_factor": factor}), offer(**SMALL))
    decision = decided(plan, "scale_factor")

    assert plan.calls[0].payload["upscale_factor"] == sent
    assert (decision.mode, dict(decision.sent)) == (Mode.EMULATED, {"upscale_factor": sent})
    assert decision.emulation == f"{words}, fitted to {size}"
    assert plan.steps[0] == Fit(size, FitMode.COVER)


def test_a_shrunk_picture_is_enlarged_as_much_as_an_unshrunk_one_without_a_word():
    """The model's own factor, 2, holds for the picture as it came: 4 of the half, and the size is made sure of."""
    plan = plan_request(request(), offer(**SMALL))
    decision = decided(plan, "image")

    assert plan.calls[0].payload["upscale_factor"] == 4
    assert [type(step) for step in plan.steps] == [Fit, Encode]
    assert plan.steps[0] == Fit(Size(1280, 960), FitMode.COVER)
    assert decision.sent["upscale_factor"] == 4
    assert "fitted to 1280x960, 2 times the picture that came" in (decision.emulation or "")


def test_a_shrunk_picture_whose_results_keep_its_size_is_brought_back():
    """Where something asked makes results come at the picture's own size, that is the size of what came, not of what was sent."""
    masked = Rule(Verb.CONVERT, "mask", "keep_mask", at_input_size=True)
    plan = plan_request(request(mask=CUTOUT), offer(**{**SMALL, "mask": masked}))

    assert "upscale_factor" not in plan.calls[0].payload
    assert plan.steps[0] == Fit(Size(640, 480), FitMode.COVER)


def test_a_shrunk_picture_with_a_size_is_reached_by_the_size():
    """Where a size is asked for, nothing else decides."""
    plan = plan_request(request({"size": "960x720"}), offer(**SMALL))

    assert plan.calls[0].payload["upscale_factor"] == 3
    assert [step.size for step in plan.steps if isinstance(step, Fit)] == [Size(960, 720)]


@pytest.mark.parametrize("ruler", [{"size": "2048x1536"}, {"resolution": "2K"}], ids=["size", "resolution"])
@pytest.mark.parametrize(("factor", "works"), [(3, 3), (8, 4)])
def test_a_factor_says_that_a_size_decides(ruler: dict[str, Json], factor: float, works: float):
    """Where the size delivered is not the one that the factor means, the factor's decision says which parameter wins."""
    params = {**UPSCALER, "resolution": UPSCALER["size"]}
    plan = plan_request(request({"scale_factor": factor, **ruler}), offer(**params))
    (name, value), *_ = ruler.items()

    assert decided(plan, "scale_factor").emulation == f"the model works at {works}; {name} {value} decides what is delivered"
    assert plan.calls[0].payload["upscale_factor"] == works


def test_a_factor_that_agrees_with_the_size_needs_no_word():
    """2 times 640x480 is 1280x960."""
    decision = decided(plan_request(request({"scale_factor": 2, "size": "1280x960"}), offer(**UPSCALER)), "scale_factor")

    assert (decision.mode, decision.emulation) == (Mode.RENAMED, None)


def test_a_factor_for_a_model_without_one_gives_way_to_a_size():
    """Nobody would do anything with it: that is said, and it can be dropped."""
    params = {"image": IMAGE, "scale_factor": Rule(emulate="resample"), "size": Rule(emulate="fit")}
    plan = plan_request(request({"scale_factor": 8, "size": "3000x3000"}), offer(**params))

    assert decided(plan, "scale_factor").reason == "acme: scale_factor 8 contradicts size 3000x3000, which wins"
    assert not plan.refusals


# --- claims of work -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("param", "fields", "mask", "works"),
    [
        pytest.param("partial_images", {"partial_images": 2}, None, False, id="no partial images"),
        pytest.param("mask_feather", {"mask_feather": 4}, None, False, id="nothing to soften"),
        pytest.param("mask_feather", {"mask_feather": 4}, CUTOUT, True, id="a mask to soften"),
        pytest.param("background_color", {"background_color": "#ff0000"}, None, False, id="nothing to lie under"),
        pytest.param("background_color", {"background_color": "#ff0000", "size": "9x5", "fit": "pad"}, None, True, id="bars"),
        pytest.param("background_color", {"background_color": "#ff0000", "background": "opaque"}, None, True, id="flattened"),
        pytest.param("fit", {"fit": "pad"}, None, False, id="no size to reach"),
        pytest.param("fit", {"fit": "pad", "scale_factor": 8}, None, False, id="a fit to its own shape"),
        pytest.param("fit", {"fit": "pad", "size": "9x5"}, None, True, id="a size to reach"),
        pytest.param("fit", {"fit": "contain", "size": "1:1", "scale_factor": 8}, None, False, id="a shape left as it comes"),
        pytest.param("metadata", {"metadata": "strip"}, None, False, id="none to leave out"),
        pytest.param("metadata", {"metadata": "strip", "size": "9x5"}, None, True, id="left out of what is made"),
        pytest.param("user", {"user": "u1"}, None, True, id="always recorded"),
    ],
)
def test_receipts_claim_only_work_that_is_done(param: str, fields: dict[str, Json], mask: ImageInfo | None, works: bool):
    """`emulated` where the plan has the gateway do something for the parameter; else `passthrough`, nothing sent, and why."""
    params = {**UPSCALER, "background": Rule(emulate="encode")}
    decision = decided(plan_request(request(fields, mask=mask), offer(**params), frozenset(PARAMETERS)), param)

    assert (decision.mode, dict(decision.sent)) == (Mode.EMULATED if works else Mode.PASSTHROUGH, {})
    assert (decision.emulation or "").startswith("nothing to ") or works or param == "partial_images"


def test_a_shape_with_contain_is_not_said_to_be_fitted():
    """Contain neither cuts nor pads, so that a shape alone is as near as the model comes; nobody near is `unsupported`."""
    near = plan_request(request({"size": "1:2", "fit": "contain"}), offer(**NATIVE))
    nobody = plan_request(request({"size": "1:2", "fit": "contain"}), offer(image=IMAGE, size=Rule(emulate="fit")))

    assert decided(near, "size").emulation == "as near as the model comes: contain neither cuts nor pads"
    assert (near.steps, nobody.steps) == ((), ())
    assert decided(nobody, "size").mode is Mode.UNSUPPORTED
    assert not nobody.refusals


def test_compression_is_judged_by_the_format_that_comes():
    """An offer that gives jpeg where nothing is named has something to compress; the gateway writes jpeg then, not png."""
    given = replace(offer({"output_format": "png"}, **NATIVE), output=Output(format="jpeg"))
    plan = plan_request(request({"output_compression": 50}), given)

    assert decided(plan, "output_compression").mode is Mode.EMULATED
    assert plan.steps == (Encode(Format.JPEG, 50, "#ffffff"),)


def test_compression_of_an_unknown_format_is_not_said_to_be_one_of_png():
    """Where nobody knows what comes, the reason says that the format is to be named."""
    decision = decided(plan_request(request({"output_compression": 50}), offer(**NATIVE)), "output_compression")

    assert "needs an output_format beside it" in (decision.reason or "")
    assert "png" not in (decision.reason or "")


def test_an_offer_without_a_number_gives_one_picture():
    """More is reported, can be dropped, and is neither asked for nor priced."""
    asked = request({"n": 4})
    plan = plan_request(asked, offer(image=IMAGE), frozenset(PARAMETERS))

    assert decided(plan, "n").mode is Mode.UNSUPPORTED
    assert not plan.refusals
    assert [call.images for call in plan.calls] == [1]
    assert quote(plan, asked).usd == Decimal("0.04")
    assert decided(plan_request(request({"n": 1}), offer(image=IMAGE)), "n").mode is Mode.PASSTHROUGH


@pytest.mark.parametrize("shape", ["1:21", "1000:1", "9999:1"])
@pytest.mark.parametrize("param", ["size", "aspect_ratio"])
def test_shapes_that_nobody_means_are_refused(param: str, shape: str):
    """A shape lies between 1:20 and 20:1."""
    with pytest.raises(InvalidParameter, match="between 1:20 and 20:1") as error:
        request({param: shape})

    assert (error.value.param, error.value.code) == (param, "invalid_value")
    assert request({param: "1:20"}).shape == (1, 20)


@pytest.mark.parametrize(
    ("step", "size"),
    [
        (Fit(Ratio(1, 1), FitMode.COVER), Size(480, 480)),
        (Fit(Ratio(1, 1), FitMode.PAD), Size(640, 640)),
        (Fit(Ratio(1, 1), FitMode.CONTAIN), Size(640, 480)),
        (Fit(Size(100, 100), FitMode.CONTAIN), Size(100, 75)),
        (Fit(Size(100, 100), FitMode.PAD), Size(100, 100)),
    ],
)
def test_the_size_of_a_fit_is_known_before(step: Fit, size: Size):
    """From the size that comes, without a pixel."""
    assert fitted_size(step, Size(640, 480)) == size


# --- promises -----------------------------------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.booleans(), st.integers(-5, 60), st.floats(0.1, 12), st.text(max_size=8), st.sampled_from(["auto", "12", "3:2"])
)
RULES = st.builds(
    Rule,
    verb=st.sampled_from([Verb.PASSTHROUGH, Verb.RENAME]),
    to=st.sampled_from([None, "a", "b"]),
    type=st.sampled_from([None, *ValueType]),
    min=st.sampled_from([None, 1.0]),
    max=st.sampled_from([None, 10.0]),
    emulate=st.sampled_from([None, "resample"]),
)
CONVERSIONS = st.builds(
    Rule, verb=st.just(Verb.CONVERT), to=st.sampled_from(["a", "c"]), converter=st.sampled_from(sorted(CONVERTERS)),
    choices=st.sampled_from([(), ("1:1", "3:2"), (2, 4)]), emulate=st.sampled_from([None, *EMULATIONS]),
)  # fmt: skip
EMULATED = st.builds(Rule, emulate=st.sampled_from([*EMULATIONS, "encode"]))
NAMES = st.sampled_from(
    ["seed", "creativity", "scale_factor", "size", "n", "output_format", "output_compression", "background", "x", "y"]
)
UNIVERSAL: dict[str, st.SearchStrategy[Json]] = {
    "n": st.integers(1, 10),
    "size": st.sampled_from(["auto", "64x64", "2048x100", "3:2"]),
    "scale_factor": st.floats(0.1, 20),
    "output_format": st.sampled_from(list(map(str, OUTPUT_FORMATS))),
    "output_compression": st.integers(0, 100),
    "background": st.sampled_from(["auto", "opaque", "transparent"]),
    "seed": st.integers(0, 9),
    "creativity": st.floats(0, 1),
    "prompt": st.text(max_size=9),
    "response_format": st.sampled_from(["url", "b64_json"]),
}
FIELDS = st.fixed_dictionaries({}, optional={**UNIVERSAL, "x": VALUES, "y": VALUES})
REQUESTS = st.builds(request, FIELDS, images=st.sampled_from([(), (PHOTO,), (CUTOUT, PHOTO)]), mask=st.sampled_from([None, CUTOUT]))
OFFERS = st.builds(
    lambda params, image: offer({"a": "png"}, image=image, **params),
    st.dictionaries(NAMES, RULES | CONVERSIONS | EMULATED, max_size=8),
    st.sampled_from([IMAGE, Rule(Verb.CONVERT, "image_urls", "image_list", max=3), Rule(Verb.PASSTHROUGH, max=5)]),
) | st.sampled_from([one for model in load_catalog().models.values() for one in model.offers])


@given(REQUESTS, OFFERS)
def test_plans_keep_their_promises(asked: ImageRequest, sold: Offer):
    """One decision each; images over calls sum to n, or to one without it; only declared or unknown fields; encode comes last."""
    plan = plan_request(asked, sold, frozenset(PARAMETERS))

    assert [decision.param for decision in plan.decisions] == list(asked.asked)
    counted = all(decision.param != "n" for decision in plan.unsupported)
    assert sum(call.images for call in plan.calls) * plan.copies == (asked.n if counted else 1)
    declared = {rule.to or name for name, rule in sold.params.items()} | set(sold.master) | set(sold.fixed)
    unknown = {decision.param for decision in plan.decisions if not decision.known}
    assert all(set(call.payload) <= declared | unknown for call in plan.calls)
    assert not plan.steps or isinstance(plan.steps[-1], Encode)
    assert sum(isinstance(step, Encode) for step in plan.steps) <= 1
    assert plan == plan_request(asked, sold, frozenset(PARAMETERS))
