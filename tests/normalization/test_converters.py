"""Every conversion, value by value."""

from dataclasses import replace

import pytest
from _pytest.mark import ParameterSet

from normalization.converters import ABOUT_A_MEGAPIXEL, CONVERTERS, Converted, Refused
from normalization.offer import Rule, ValueType
from normalization.pixels.formats import Format, ImageInfo, Size
from normalization.request import ImageRef, ImageRequest, Json, Ratio, Value
from tests.normalization.requests import request

LORA = "fine, <lora:more:0.5>"
TIMES = {"2": "2x", "4": "4x", "6": "6x"}
IMAGE = ImageRef("image")
MASK = ImageRef("mask")
SMALL_MASK = ImageInfo(Format.PNG, Size(64, 48), alpha=True)
MASKED = request(mask=ImageInfo(Format.PNG, Size(640, 480), alpha=True))


def sized(size: str, **others: Json) -> ImageRequest:
    """A request for a size of the 640x480 photograph."""
    return request({"size": size, **others})


def case(
    name: str,
    value: Value,
    rule: Rule,
    expected: Json | ImageRef | tuple[ImageRef, ...],
    what: str,
    *,
    asked: ImageRequest | None = None,
    exact: bool = True,
) -> ParameterSet:
    """A row of the table: converter, value, rule, what is sent and whether it suffices."""
    return pytest.param(name, value, rule, asked or request(), Converted(expected, exact), id=f"{name}: {what}")


ROWS = [
    case("table", "jpeg", Rule(table={"jpeg": "jpg"}), "jpg", "a word"),
    case("table", Format.JPEG, Rule(table={"jpeg": "jpg"}), "jpg", "a member of an enumeration"),
    case("table", 2, Rule(table=TIMES), "2x", "a number"),
    case("table", "low", Rule(table={"low": False}), False, "to a boolean"),
    case("image_list", (IMAGE,), Rule(), (IMAGE,), "one picture is a list too"),
    case("image_list", (IMAGE, MASK), Rule(), (IMAGE, MASK), "in order"),
    case("luminance_mask", MASK, Rule(), MASK.prepared("alpha_to_luminance"), "white is edited", asked=MASKED),
    case(
        "luminance_mask",
        MASK,
        Rule(),
        MASK.prepared("shrink-640x480", "alpha_to_luminance"),
        "as large as the picture",
        asked=request(mask=SMALL_MASK),
    ),
    case("keep_mask", MASK, Rule(), MASK.prepared("alpha_to_luminance", "luminance_inverse"), "white is kept", asked=MASKED),
    case("factor_to_reach", Size(1280, 960), Rule(min=1, max=4), 2, "whole factors are integers", asked=sized("1280x960")),
    case("factor_to_reach", Size(1000, 1000), Rule(min=1, max=4), 2.0834, "covers, rounded up", asked=sized("1000x1000")),
    case("factor_to_reach", Size(1000, 1000), Rule(min=1, max=4), 1.5625, "fits inside", asked=sized("1000x1000", fit="contain")),
    case("factor_to_reach", Size(6400, 4800), Rule(min=1, max=4), 4, "short of it", asked=sized("6400x4800"), exact=False),
    case("factor_to_reach", Size(320, 240), Rule(min=1, max=4), 1, "never below the least", asked=sized("320x240")),
    case("factor_to_reach", Size(1600, 1200), Rule(table=TIMES), "4x", "next of a table", asked=sized("1600x1200")),
    case("factor_to_reach", Size(6400, 4800), Rule(choices=(2, 4)), 4, "last choice", asked=sized("6400x4800"), exact=False),
    case("longest_edge", "2K", Rule(table={"1K": "1K", "2K": "two"}), "two", "named", asked=request({"resolution": "2K"})),
    case("longest_edge", Size(900, 90), Rule(table={"1K": "1K", "2K": "2K"}), "1K", "the least that does", asked=sized("900x90")),
    case(
        "longest_edge",
        "4K",
        Rule(table={"1K": "1K", "2K": "2K"}),
        "2K",
        "the last, where none does",
        asked=request({"resolution": "4K"}),
        exact=False,
    ),
    case("scaled", 0.5, Rule(min=0, max=10), 5, "onto 0 to 10"),
    case("scaled", 0, Rule(min=1, max=6, type=ValueType.INTEGER), 1, "least of 1 to 6"),
    case("scaled", 1, Rule(min=1, max=6, type=ValueType.INTEGER), 6, "most of 1 to 6"),
    case("scaled", 0.35, Rule(max=10), 3.5, "a decimal"),
    case("invert", True, Rule(), False, "enabled is not disabled"),
    case("nearest_ratio", Size(1920, 1080), Rule(choices=("1:1", "16:9")), "16:9", "the same shape"),
    case("nearest_ratio", Size(1000, 900), Rule(choices=("1:1", "16:9", "5:4")), "1:1", "the nearest"),
    case("nearest_ratio", Ratio(9, 16), Rule(choices=("9:16", "16:9")), "9:16", "a shape"),
    case("width_height", Size(1000, 700), Rule(), {"width": 1000, "height": 700}, "as it is", asked=sized("1000x700")),
    case("width_height", Size(1000, 700), Rule(multiple_of=16), {"width": 1008, "height": 704}, "up", asked=sized("1000x700")),
    case(
        "width_height",
        Size(9000, 700),
        Rule(max=2048),
        {"width": 2048, "height": 700},
        "short of it",
        asked=sized("9000x700"),
        exact=False,
    ),
    case("width_height", Ratio(16, 9), Rule(), {"width": 1312, "height": 736}, "shape", asked=request({"aspect_ratio": "16:9"})),
    case("width_height", "2K", Rule(), {"width": 2048, "height": 1536}, "a resolution", asked=request({"resolution": "2K"})),
    case("with_default", "a hat", Rule(default=LORA), "a hat, fine, <lora:more:0.5>", "kept behind the prompt"),
    case("with_default", "a hat <lora:x:1>", Rule(default=LORA), "a hat <lora:x:1>", "own tags stand alone"),
    case("with_default", "a hat <3", Rule(default="fine"), "a hat <3, fine", "a default without tags"),
]


@pytest.mark.parametrize(("name", "value", "rule", "asked", "expected"), ROWS)
def test_values_become_the_providers_form(name: str, value: Value, rule: Rule, asked: ImageRequest, expected: Converted):
    """Each conversion sends what its row says, and knows whether that alone is what was asked."""
    assert CONVERTERS[name](value, rule, asked) == expected


@pytest.mark.parametrize(
    ("name", "value", "rule", "reason"),
    [
        ("table", "avif", Rule(table={"jpeg": "jpg", "png": "png"}), "must be one of jpeg, png; asked avif"),
        ("table", True, Rule(table={"1": "a"}), "must be one of 1; asked something else"),
        ("image_list", "x", Rule(), "must be pictures"),
        ("luminance_mask", "x", Rule(), "must be a picture"),
        ("keep_mask", 1, Rule(), "must be a picture"),
        ("factor_to_reach", "x", Rule(max=4), "must be WIDTHxHEIGHT"),
        ("longest_edge", "x", Rule(table={"1K": "1K"}), "must be WIDTHxHEIGHT, 1K, 2K or 4K"),
        ("scaled", 3, Rule(max=10), "is between 0 and 1; asked 3"),
        ("scaled", True, Rule(max=10), "must be a number"),
        ("invert", "yes", Rule(), "must be true or false"),
        ("nearest_ratio", "x", Rule(choices=("1:1",)), "must be WIDTHxHEIGHT or WIDTH:HEIGHT"),
        ("nearest_ratio", Size(1, 1), Rule(), "has no shapes to choose from"),
        ("width_height", "x", Rule(), "must be WIDTHxHEIGHT or WIDTH:HEIGHT"),
        ("with_default", 1, Rule(default="fine"), "must be text"),
    ],
)
def test_values_without_a_form_are_refused_with_what_was_possible(name: str, value: Value, rule: Rule, reason: str):
    """A refusal completes the sentence that names the parameter."""
    assert CONVERTERS[name](value, rule, request()) == Refused(reason)


def test_a_size_of_results_that_stay_at_the_inputs_size_is_not_reached_by_a_factor():
    """Where results come at the picture's own size the factor is sent, and something else must do the rest."""
    asked = replace(sized("1280x960"), at_input_size=True)

    assert CONVERTERS["factor_to_reach"](Size(1280, 960), Rule(max=4), asked) == Converted(2, exact=False)


def test_a_mask_is_as_small_as_a_picture_that_is_shrunk():
    """Picture and mask have one size when they are sent."""
    asked = replace(MASKED, sent_size=Size(320, 240))

    assert CONVERTERS["luminance_mask"](MASK, Rule(), asked) == Converted(MASK.prepared("shrink-320x240", "alpha_to_luminance"))


@pytest.mark.parametrize("shape", [Ratio(1, 1), Ratio(16, 9), Ratio(21, 9), Ratio(2, 3)], ids=str)
def test_a_shape_alone_stays_under_the_next_whole_megapixel(shape: Ratio):
    """Nobody who names a shape only pays for two megapixels."""
    converted = CONVERTERS["width_height"](shape, Rule(), request({"size": str(shape)}))

    assert isinstance(converted, Converted)
    assert isinstance(converted.value, dict)
    width, height = converted.value.values()
    assert isinstance(width, int)
    assert isinstance(height, int)
    assert ABOUT_A_MEGAPIXEL <= width * height <= 1_000_000


def test_every_conversion_has_rows_here():
    """A conversion that is added is added to the table above."""
    assert {row.values[0] for row in ROWS} == set(CONVERTERS)
