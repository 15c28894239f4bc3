"""The planner decides every parameter once, natively where it can."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normalization.converters import CONVERTERS
from normalization.emulations import EMULATIONS
from normalization.offer import Offer, Rule, ValueType, Verb
from normalization.pixels.formats import OUTPUT_FORMATS, Format, ImageInfo, Size
from normalization.plan import Composite, Decision, Encode, Fit, Mode, Plan
from normalization.planner import guess, plan_request
from normalization.request import PARAMETERS, ImageRef, ImageRequest, Json, Text
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
    plan = plan_request(request({"output_compression": 50}), offer(**NATIVE))

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
    """One decision for each parameter; images over calls sum to n; only declared or unknown fields are sent; encode comes last."""
    plan = plan_request(asked, sold, frozenset(PARAMETERS))

    assert [decision.param for decision in plan.decisions] == list(asked.asked)
    assert sum(call.images for call in plan.calls) * plan.copies == asked.n
    declared = {rule.to or name for name, rule in sold.params.items()} | set(sold.master) | set(sold.fixed)
    unknown = {decision.param for decision in plan.decisions if not decision.known}
    assert all(set(call.payload) <= declared | unknown for call in plan.calls)
    assert not plan.steps or isinstance(plan.steps[-1], Encode)
    assert sum(isinstance(step, Encode) for step in plan.steps) <= 1
    assert plan == plan_request(asked, sold, frozenset(PARAMETERS))
