"""Paints the pictures of this folder from nothing but numbers, so that they belong to nobody else.

    python examples/make_pictures.py [FOLDER]

`harbour.jpg` is a small photograph-like scene with lettering, rigging, bricks and foliage, where an upscaler shows what it does;
`portrait.jpg` is a part of it, stored lying on its side with an EXIF orientation; `leaf.png` has soft transparency.
Everything is painted three times larger than it is saved and scaled down, as a camera would blur it.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

Pixels = NDArray[np.float32]
"""H x W or H x W x 3, values 0..1."""

OVER = 3
WIDTH, HEIGHT = 512 * OVER, 384 * OVER
HORIZON = int(HEIGHT * 0.55)
SUN = (int(WIDTH * 0.535), HORIZON - 50 * OVER)
ORIENTATION_TAG = 0x0112
ROTATE_CLOCKWISE = 6
"""EXIF orientation: turn the stored picture a quarter clockwise to see it upright. Source: JEITA CP-3451, tag 0x0112."""


def main() -> None:
    """Write all three pictures into the folder named on the command line, or beside this file."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    scene = paint_harbour()
    scene.save(folder / "harbour.jpg", quality=90, subsampling=0)
    save_sideways(scene.crop((148, 0, 436, 384)), folder / "portrait.jpg")
    paint_leaf().save(folder / "leaf.png", optimize=True)


def save_sideways(upright: Image.Image, path: Path) -> None:
    """Store a picture turned a quarter to the left, with the EXIF orientation that turns it back."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = ROTATE_CLOCKWISE
    upright.transpose(Image.Transpose.ROTATE_90).save(path, quality=90, exif=exif)


def paint_harbour() -> Image.Image:
    """A harbour at dusk, 512 x 384: sky, hills, a street of houses, a boat, their reflections, a wall and a branch."""
    land = add_hills(paint_sky())
    land = over(land, paint_houses())
    land = over(land, paint_lighthouse())
    water = reflect(land, HORIZON)
    boat, waterline = paint_boat()
    scene = over(water, ripple(mirror(boat, waterline), strength=7, fade=0.62))
    scene = add_glints(scene)
    scene = over(scene, boat)
    scene = over(scene, paint_wall())
    scene = over(scene, paint_branch())
    return develop(scene)


# --- sky and land -------------------------------------------------------------------------------------------------------------


def paint_sky() -> Pixels:
    """Dusk from deep blue to orange, with clouds lit from below and the sun's glow."""
    stops = np.array([0.0, 0.30, 0.62, 0.86, 1.0])
    colours = np.array([[32, 46, 92], [82, 84, 138], [190, 124, 138], [244, 172, 112], [253, 208, 138]]) / 255
    depth = np.clip(np.arange(HEIGHT) / HORIZON, 0, 1)
    column = np.stack([np.interp(depth, stops, colours[:, c]) for c in range(3)], axis=1)
    sky = np.repeat(column[:, None, :], WIDTH, axis=1)
    return add_clouds(add_glow(sky.astype(np.float32)))


def add_glow(sky: Pixels) -> Pixels:
    """The sun, going down behind the hill, and the light around it."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    distance = np.hypot(columns - SUN[0], (rows - SUN[1]) * 1.15) / OVER
    disc = np.clip((13 - distance) / 1.5, 0, 1)[..., None]
    halo = (0.55 * np.exp(-distance / 26) + 0.30 * np.exp(-distance / 95))[..., None]
    lit = sky + halo * np.array([1.0, 0.72, 0.42])
    return np.clip(lit * (1 - disc) + disc * np.array([1.0, 0.95, 0.80]), 0, 1).astype(np.float32)


def add_clouds(sky: Pixels) -> Pixels:
    """Long bars of cloud, mauve above and bright below, thinner towards the zenith."""
    cover = clouds_at(0)
    below = clouds_at(10 * OVER)
    density = np.clip((cover - 0.47) * 5, 0, 1) * np.clip(np.arange(HEIGHT) / HORIZON * 1.5, 0.25, 0.9)[:, None]
    underside = np.clip((cover - below) * 3.2 + 0.25, 0, 1)[..., None]
    colour = np.array([0.42, 0.34, 0.48]) * (1 - underside) + np.array([1.0, 0.66, 0.50]) * underside
    return blend(sky, colour, density)


def clouds_at(shift: int) -> Pixels:
    """The clouds' thickness, looked at `shift` pixels lower."""
    return np.roll(noise((HEIGHT, WIDTH), cells=(3, 13), octaves=5, seed=5), -shift, axis=0)


def add_hills(sky: Pixels) -> Pixels:
    """Two ridges, the farther one paler, with woods on the nearer."""
    far = ridge(height=62 * OVER, roughness=3, seed=11)
    near = ridge(height=34 * OVER, roughness=5, seed=12)
    woods = noise((HEIGHT, WIDTH), cells=(160, 120), octaves=3, seed=13)[..., None]
    land = blend(sky, np.array([0.50, 0.38, 0.47]), far)
    return blend(land, np.array([0.20, 0.19, 0.28]) * (0.65 + 0.7 * woods), near)


def ridge(height: int, roughness: int, seed: int) -> Pixels:
    """1 where a hill is, 0 above it; its crest is `height` pixels over the horizon at most."""
    rise = np.clip(noise((1, WIDTH), cells=(roughness, 1), octaves=6, seed=seed)[0] * 2.4 - 0.7, 0, 1)
    crest = HORIZON - height * (0.25 + 0.75 * rise)
    rows = np.arange(HEIGHT)[:, None]
    return ((rows > crest[None, :]) & (rows <= HORIZON)).astype(np.float32)


# --- houses -------------------------------------------------------------------------------------------------------------------

WALLS = ((168, 84, 66), (214, 178, 132), (118, 132, 140), (196, 120, 86), (226, 208, 176), (150, 76, 64), (132, 146, 120))
GLASS_LIT, GLASS_DARK = (255, 214, 130), (58, 62, 84)


def paint_houses() -> Image.Image:
    """A street of gabled houses on the left bank, smaller with distance, some windows lit."""
    layer = Image.new("RGBA", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(layer)
    chance = np.random.default_rng(21)
    left = -10 * OVER
    for number, wall in enumerate(WALLS):
        shrink = 0.86**number
        width, height = int(50 * OVER * shrink), int((92 + chance.integers(-12, 13)) * OVER * shrink)
        paint_house(draw, (left, HORIZON - height, left + width, HORIZON), wall, chance)
        left += width
    draw.rectangle((0, HORIZON - 3 * OVER, left + 26 * OVER, HORIZON), fill=(74, 68, 76, 255))
    return weather(layer)


def paint_house(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], wall: tuple[int, int, int], chance: np.random.Generator
) -> None:
    """One front: courses of brick, a stepped roof, three rows of windows and a chimney."""
    left, top, right, bottom = box
    width = right - left
    eaves = top + int(width * 0.55)
    draw.rectangle((right - width // 4, top - 2 * OVER, right - width // 8, eaves), fill=(86, 58, 58, 255))
    draw.polygon([(left - OVER, eaves), (left + width // 2, top), (right + OVER, eaves)], fill=(98, 66, 68, 255))
    draw.rectangle((left, eaves, right - 1, bottom), fill=(*shade(wall, 0.74), 255))
    lay_bricks(draw, (left, eaves, right - 1, bottom), course=max(3, width // 22), colour=shade(wall, 0.62), chance=chance)
    paint_windows(draw, (left, eaves, right, bottom), chance)


def paint_windows(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], chance: np.random.Generator) -> None:
    """Three by three panes with white frames and a cross bar; every third or so has a light behind it."""
    left, top, right, bottom = box
    across, down = (right - left) / 3, (bottom - top) / 3.2
    for row in range(3):
        for column in range(3):
            x, y = left + across * (column + 0.24), top + down * (row + 0.25)
            w, h = across * 0.52, down * 0.58
            glass = GLASS_LIT if chance.random() < 0.38 else GLASS_DARK
            draw.rectangle((x - OVER * 0.7, y - OVER * 0.7, x + w + OVER * 0.7, y + h + OVER * 0.7), fill=(206, 196, 190, 255))
            draw.rectangle((x, y, x + w, y + h), fill=(*glass, 255))
            draw.line((x + w / 2, y, x + w / 2, y + h), fill=(206, 196, 190, 255), width=max(1, int(w / 9)))
            draw.line((x, y + h * 0.4, x + w, y + h * 0.4), fill=(206, 196, 190, 255), width=max(1, int(w / 9)))


def lay_bricks(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    course: int,
    colour: tuple[int, int, int],
    chance: np.random.Generator,
) -> None:
    """Bricks of `course` pixels' height in running bond, each of its own shade, over the mortar that is there."""
    left, top, right, bottom = box
    length = course * 3
    for row, y in enumerate(range(top, bottom, course)):
        for x in range(left - (row % 2) * length // 2, right, length):
            fired = shade(colour, 0.86 + 0.34 * chance.random())
            edges = (max(x, left), y, min(x + length - max(1, course // 6), right), min(y + course - max(1, course // 6), bottom))
            if edges[0] < edges[2] and edges[1] < edges[3]:
                draw.rectangle(edges, fill=(*fired, 255))


def paint_lighthouse() -> Image.Image:
    """A red and white tower on a mole at the right, its lamp lit."""
    layer = Image.new("RGBA", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(layer)
    middle, top = 446 * OVER, HORIZON - 74 * OVER
    for band in range(5):
        upper, lower = (5.0 + 0.7 * band) * OVER, (5.7 + 0.7 * band) * OVER
        y, colour = top + 13 * band * OVER, (178, 58, 50) if band % 2 else (226, 214, 202)
        draw.polygon(
            [(middle - upper, y), (middle + upper, y), (middle + lower, y + 13 * OVER), (middle - lower, y + 13 * OVER)],
            fill=(*colour, 255),
        )
    draw.rectangle(
        (middle - 4 * OVER, top - 9 * OVER, middle + 4 * OVER, top),
        fill=(255, 226, 150, 255),
        outline=(60, 48, 54, 255),
        width=OVER,
    )
    draw.polygon(
        [(middle - 5 * OVER, top - 9 * OVER), (middle, top - 15 * OVER), (middle + 5 * OVER, top - 9 * OVER)],
        fill=(120, 44, 42, 255),
    )
    draw.line((middle - 8 * OVER, top, middle + 8 * OVER, top), fill=(52, 46, 54, 255), width=2 * OVER)
    draw.polygon(
        [(middle - 34 * OVER, HORIZON), (middle - 22 * OVER, HORIZON - 9 * OVER), (WIDTH, HORIZON - 11 * OVER), (WIDTH, HORIZON)],
        fill=(72, 64, 74, 255),
    )
    return weather(layer)


# --- boat ---------------------------------------------------------------------------------------------------------------------


def paint_boat() -> tuple[Image.Image, int]:
    """A fishing boat with her name on the bow, and the row of her waterline."""
    layer = Image.new("RGBA", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(layer)
    left, right, waterline = 205 * OVER, 398 * OVER, 292 * OVER
    deck = waterline - 34 * OVER
    paint_cabin(draw, left + 24 * OVER, deck)
    paint_rig(draw, left, right, deck)
    paint_hull(draw, left, right, deck, waterline)
    letter(layer, "MARIGOLD", (right - 84 * OVER, deck + 5 * OVER), size=13 * OVER)
    letter(layer, "K 217", (left + 16 * OVER, deck + 8 * OVER), size=9 * OVER)
    return weather(layer), waterline


def paint_hull(draw: ImageDraw.ImageDraw, left: int, right: int, deck: int, waterline: int) -> None:
    """Green planks with a raked bow, a white rubbing strake and a red bottom."""
    steps = np.linspace(0, 1, 60)
    sheer = [(left + (right - left) * t, deck + 7 * OVER * np.sin(np.pi * t) - 17 * OVER * t**3) for t in steps]
    keel = [(right - 22 * OVER, waterline), (left + 7 * OVER, waterline)]
    draw.polygon([*sheer, *keel], fill=(38, 88, 92, 255))
    for plank in range(1, 6):
        drop = plank * 5.2 * OVER
        seam = [(x - (x > right - 26 * OVER) * plank * OVER, min(y + drop, waterline)) for x, y in sheer[1:-1]]
        draw.line(seam, fill=(24, 62, 68, 255), width=OVER // 2 + 1)
    draw.polygon(
        [(left + 5 * OVER, waterline - 6 * OVER), (right - 18 * OVER, waterline - 6 * OVER), *keel], fill=(142, 50, 44, 255)
    )
    draw.line(sheer, fill=(236, 226, 208, 255), width=3 * OVER)


def paint_cabin(draw: ImageDraw.ImageDraw, left: int, deck: int) -> None:
    """A white wheelhouse with lit panes and a varnished roof."""
    width, height = 52 * OVER, 40 * OVER
    draw.rectangle((left, deck - height, left + width, deck + 12 * OVER), fill=(222, 212, 198, 255))
    draw.rectangle((left, deck - height, left + 9 * OVER, deck + 12 * OVER), fill=(168, 156, 156, 255))
    draw.rectangle((left - 4 * OVER, deck - height - 4 * OVER, left + width + 5 * OVER, deck - height), fill=(140, 84, 52, 255))
    for pane in range(3):
        x = left + (13 + 13 * pane) * OVER
        draw.rectangle(
            (x, deck - 33 * OVER, x + 9 * OVER, deck - 20 * OVER), fill=(255, 206, 122, 255), outline=(96, 62, 44, 255), width=OVER
        )


def paint_rig(draw: ImageDraw.ImageDraw, left: int, right: int, deck: int) -> None:
    """Two masts, a boom with a furled sail, stays and ratlines thinner than a pixel of the saved picture."""
    fore, aft, top = right - 62 * OVER, left + 12 * OVER, deck - 150 * OVER
    wood, rope = (92, 60, 44, 255), (54, 46, 52, 255)
    draw.line((fore, deck + 8 * OVER, fore, top), fill=wood, width=3 * OVER)
    draw.line((aft, deck + 8 * OVER, aft, deck - 88 * OVER), fill=wood, width=2 * OVER + 1)
    for end in ((right - 4 * OVER, deck - 10 * OVER), (left + 10 * OVER, deck), (aft, deck - 86 * OVER)):
        draw.line((fore, top + 3 * OVER, *end), fill=rope, width=OVER // 2 + 1)
    for side in (-17, 17):
        draw.line((fore, top + 26 * OVER, fore + side * OVER, deck + 4 * OVER), fill=rope, width=OVER // 2 + 1)
    for rung in range(11):
        half = 17 * OVER * (rung + 1.5) / 13
        y = top + 26 * OVER + (deck - top - 22 * OVER) * (rung + 1.5) / 13
        draw.line((fore - half, y, fore + half, y), fill=rope, width=1)
    draw.line((fore, deck - 22 * OVER, fore - 62 * OVER, deck - 54 * OVER), fill=(196, 110, 70, 255), width=6 * OVER)
    draw.polygon([(fore, top), (fore + 20 * OVER, top + 5 * OVER), (fore, top + 11 * OVER)], fill=(198, 62, 50, 255))


def letter(layer: Image.Image, text: str, corner: tuple[int, int], size: int) -> None:
    """Sign-writer's lettering with a dark edge."""
    font = ImageFont.load_default(size)
    ImageDraw.Draw(layer).text(
        corner, text, font=font, fill=(246, 232, 196, 255), stroke_width=OVER // 2, stroke_fill=(20, 40, 44, 255)
    )


# --- water --------------------------------------------------------------------------------------------------------------------


def reflect(land: Pixels, horizon: int) -> Pixels:
    """The land above its own reflection in moving water, which is darker and bluer towards the viewer."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    depth = np.clip((rows - horizon) / (HEIGHT - horizon), 0, 1)
    wave = waves() - 0.5
    source_row = np.clip(2 * horizon - rows + wave * depth * 190 * OVER, 0, horizon - 1).astype(int)
    source_column = np.clip(columns + wave * (4 + 26 * depth) * OVER, 0, WIDTH - 1).astype(int)
    mirrored = land[source_row, source_column]
    deep = np.array([0.07, 0.13, 0.20])
    water = blend(mirrored, deep, 0.14 + 0.52 * depth + 0.55 * np.clip(-wave, 0, 1) * (0.3 + depth))
    return np.where((rows < horizon)[..., None], land, water).astype(np.float32)


def waves() -> Pixels:
    """Ripples whose length and height grow towards the viewer, 0..1."""
    rows = np.arange(HEIGHT)
    near = np.clip(rows - HORIZON, 0, None) / (HEIGHT - HORIZON)
    flat = noise((1024, WIDTH), cells=(26, 90), octaves=5, seed=31)
    return flat[(1023 * np.sqrt(near)).astype(int)]


def add_glints(scene: Pixels) -> Pixels:
    """The sun's path on the water, broken into sparks."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    depth = np.clip((rows - HORIZON) / (HEIGHT - HORIZON), 0, 1)
    path = np.exp(-(((columns - SUN[0]) / ((10 + 46 * depth) * OVER)) ** 2)) * (rows > HORIZON)
    spark = np.clip((waves() - 0.56) * 9, 0, 1) * path * (0.95 - 0.55 * depth)
    return blend(scene, np.array([1.0, 0.84, 0.60]), spark)


def mirror(layer: Image.Image, waterline: int) -> Image.Image:
    """A layer upside down below its waterline, and nothing above it."""
    turned = ImageChops.offset(layer.transpose(Image.Transpose.FLIP_TOP_BOTTOM), 0, 2 * waterline - HEIGHT)
    turned.paste((0, 0, 0, 0), (0, 0, WIDTH, waterline))
    return turned


def ripple(layer: Image.Image, strength: float, fade: float) -> Image.Image:
    """A reflected layer broken by the waves, at `fade` of its opacity; `strength` in saved pixels."""
    pixels = np.asarray(layer)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    wave = (waves() - 0.5) * strength * OVER * 2
    moved = pixels[np.clip(rows + wave * 1.6, 0, HEIGHT - 1).astype(int), np.clip(columns + wave, 0, WIDTH - 1).astype(int)]
    return Image.fromarray((moved * np.array([0.62, 0.68, 0.74, fade])).astype(np.uint8), "RGBA")


# --- foreground ---------------------------------------------------------------------------------------------------------------


def paint_wall() -> Image.Image:
    """The quay at the viewer's feet: big wet bricks, a coping of stone and an iron ring."""
    layer = Image.new("RGBA", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(layer)
    top, right = 338 * OVER, 226 * OVER
    draw.rectangle((0, top, right, HEIGHT), fill=(64, 52, 52, 255))
    lay_bricks(draw, (0, top, right, HEIGHT), course=8 * OVER, colour=(118, 66, 54), chance=np.random.default_rng(41))
    for x in range(0, right, 45 * OVER):
        draw.rectangle((x, top - 9 * OVER, min(x + 44 * OVER, right + 4 * OVER), top), fill=(156, 138, 128, 255))
    draw.ellipse((174 * OVER, top + 10 * OVER, 196 * OVER, top + 32 * OVER), outline=(34, 30, 34, 255), width=3 * OVER)
    return weather(layer, strength=0.55)


LEAVES = 900


def paint_branch() -> Image.Image:
    """Leaves hanging into the picture at the upper right, each turned its own way, those behind darker."""
    layer = Image.new("RGBA", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(layer)
    chance = np.random.default_rng(51)
    draw.line(
        [(x * OVER, y * OVER) for x, y in ((512, 22), (470, 36), (424, 42), (372, 66))], fill=(44, 34, 34, 255), width=3 * OVER
    )
    for number in range(LEAVES):
        along = chance.random() ** 0.75
        x = (530 - 168 * along + chance.normal(0, 10)) * OVER
        y = (14 + 50 * along + chance.normal(4, 24.0) * (1.12 - along)) * OVER
        green = shade((92, 104, 54), 0.25 + 0.65 * number / LEAVES + 0.3 * chance.random())
        draw.polygon(leaf_outline(x, y, length=(7 + 5 * chance.random()) * OVER, angle=chance.normal(1.9, 0.9)), fill=(*green, 255))
    return layer


def leaf_outline(x: float, y: float, length: float, angle: float) -> list[tuple[float, float]]:
    """A pointed oval from (x, y) towards `angle` in radians, clockwise from the right."""
    along = np.concatenate([np.linspace(0, 1, 9), np.linspace(1, 0, 9)])
    across = 0.26 * np.sin(np.pi * along**0.85) * np.repeat([1, -1], 9)
    cos, sin = np.cos(angle), np.sin(angle)
    return [(x + length * (a * cos - b * sin), y + length * (a * sin + b * cos)) for a, b in zip(along, across, strict=True)]


def develop(scene: Pixels) -> Image.Image:
    """Scale to the saved size, darken the corners a little and add the grain of a small sensor."""
    small = Image.fromarray((np.clip(scene, 0, 1) * 255).astype(np.uint8), "RGB").resize((512, 384), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.float32)
    rows, columns = np.mgrid[-1:1:384j, -1:1:512j]
    vignette = (1 - 0.16 * (rows**2 + columns**2) / 2)[..., None]
    grain = np.random.default_rng(61).normal(0, 1.6, (384, 512, 1))
    return Image.fromarray(np.clip(pixels * vignette + grain, 0, 255).astype(np.uint8), "RGB")


# --- leaf ---------------------------------------------------------------------------------------------------------------------


def paint_leaf() -> Image.Image:
    """An autumn leaf over nothing, 320 x 320 RGBA: hard edges, a hole, and a soft shadow of partial alpha."""
    side = 320 * OVER
    blade = leaf_blade(side)
    colour = leaf_colour(side)
    shadow = (
        ImageChops.offset(blade, 7 * OVER, 9 * OVER)
        .filter(ImageFilter.GaussianBlur(7 * OVER))
        .point([value * 90 // 255 for value in range(256)])
    )
    picture = Image.merge("RGBA", (*Image.new("RGB", (side, side), (24, 20, 28)).split(), shadow))
    picture.alpha_composite(Image.merge("RGBA", (*colour.split(), blade)))
    return picture.resize((320, 320), Image.Resampling.BOX)


def leaf_blade(side: int) -> Image.Image:
    """Where the leaf is: a toothed oval with a stalk and a hole where something ate."""
    blade = Image.new("L", (side, side))
    draw = ImageDraw.Draw(blade)
    along = np.linspace(0, 1, 400)
    tooth = 1 + 0.07 * np.abs(((along * 26) % 1) - 0.5)
    half = 0.30 * np.sin(np.pi * along**0.8) ** 0.9 * tooth
    edge = [(0.5 + h, 0.86 - 0.78 * a) for a, h in zip(along, half, strict=True)]
    back = [(1 - x, y) for x, y in reversed(edge)]
    draw.polygon([(x * side, y * side) for x, y in [*edge, *back]], fill=255)
    draw.line((0.5 * side, 0.85 * side, 0.475 * side, 0.955 * side), fill=255, width=side // 55)
    draw.ellipse((0.57 * side, 0.40 * side, 0.64 * side, 0.46 * side), fill=0)
    return blade


def leaf_colour(side: int) -> Image.Image:
    """Green at the rib, red at the rim, with veins and spots."""
    columns = np.linspace(0, 1, side)[None, :]
    turned = np.clip(np.abs(columns - 0.5) * 3.2 + (noise((side, side), cells=(6, 6), octaves=5, seed=71) - 0.5) * 1.1, 0, 1)
    pixels = blend(np.full((side, side, 3), (0.48, 0.56, 0.20), np.float32), np.array([0.80, 0.30, 0.12]), turned)
    pixels = blend(
        pixels, np.array([0.30, 0.12, 0.08]), np.clip((noise((side, side), cells=(40, 40), octaves=2, seed=72) - 0.74) * 6, 0, 1)
    )
    leaf = Image.fromarray((pixels * 255).astype(np.uint8), "RGB")
    draw_veins(ImageDraw.Draw(leaf), side)
    return leaf


def draw_veins(draw: ImageDraw.ImageDraw, side: int) -> None:
    """A rib and nine veins a side, thinner towards the tip."""
    pale = (232, 206, 132)
    draw.line((0.5 * side, 0.98 * side, 0.5 * side, 0.10 * side), fill=pale, width=side // 90)
    for number in range(9):
        root = 0.82 - 0.076 * number
        for sign in (-1, 1):
            tip = (0.5 + sign * 0.27, root - 0.17)
            draw.line((0.5 * side, root * side, tip[0] * side, tip[1] * side), fill=pale, width=max(2, side // (170 + 14 * number)))


# --- paint and light ----------------------------------------------------------------------------------------------------------


def noise(shape: tuple[int, int], cells: tuple[int, int], octaves: int, seed: int) -> Pixels:
    """Cloud-like noise, 0..1: random grids of `cells` (across, down), each octave twice as fine and half as strong."""
    chance = np.random.default_rng(seed)
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        grid = chance.random((cells[1] * 2**octave + 1, cells[0] * 2**octave + 1), dtype=np.float32)
        layer = Image.fromarray(grid).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
        total += np.asarray(layer) / 2**octave
    return np.clip(total / (2 - 2.0 ** (1 - octaves)), 0, 1)


def weather(layer: Image.Image, strength: float = 0.35) -> Image.Image:
    """Uneven paint: the layer's colours made lighter and darker by fine and coarse noise."""
    fine = noise((HEIGHT, WIDTH), cells=(256, 192), octaves=3, seed=81)
    coarse = noise((HEIGHT, WIDTH), cells=(14, 10), octaves=4, seed=82)
    light = 1 + strength * (fine + coarse - 1)
    pixels = np.asarray(layer, dtype=np.float32)
    pixels = np.concatenate([pixels[..., :3] * light[..., None], pixels[..., 3:]], axis=2)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGBA")


def over(below: Pixels, layer: Image.Image) -> Pixels:
    """A picture with an RGBA layer painted over it."""
    pixels = np.asarray(layer, dtype=np.float32) / 255
    return blend(below, pixels[..., :3], pixels[..., 3])


def blend(below: Pixels, colour: NDArray[np.floating], amount: NDArray[np.floating]) -> Pixels:
    """`below` turned towards `colour` by `amount`, H x W, 0..1."""
    weight = amount[..., None]
    return (below * (1 - weight) + colour * weight).astype(np.float32)


def shade(colour: tuple[int, int, int], light: float) -> tuple[int, int, int]:
    """A colour made darker (below 1) or lighter."""
    red, green, blue = (min(255, int(value * light)) for value in colour)
    return red, green, blue


if __name__ == "__main__":
    main()
