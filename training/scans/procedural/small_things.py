"""Things that stand about on tables, shelves, beds and the floor; conventions as in furniture."""

from __future__ import annotations

import numpy as np

from training.scans.procedural.furniture import Model, Top
from training.scans.procedural.shapes import (
    Part,
    box,
    cylinder,
    lathe,
    ribbon,
    rounded_box,
    vessel,
)
from training.scans.procedural.textures import (
    anything,
    cloth,
    make_texture,
    metal,
    random_color,
    shade_of,
    wood,
)


def make_box(rng: np.random.Generator, scale: float = 1.0) -> Model:
    """A packet or carton, printed or plain; another box may stand on it."""
    size = scale * rng.uniform((0.08, 0.06, 0.05), (0.35, 0.28, 0.3))
    if rng.random() < 0.4:
        texture = make_texture(rng, "plain", random_color(rng, "wood"), 0.1, 0.12)
    else:
        texture = anything(rng)
    return Model("box", (box(size, texture),), (Top((0, 0), (size[0], size[1]), size[2], 0.4),))


def make_carton(rng: np.random.Generator) -> Model:
    """A moving box or a storage box for the floor."""
    return make_box(rng, scale=rng.uniform(1.3, 2.0))


def make_bottle(rng: np.random.Generator) -> Model:
    """A bottle with a neck, a can or a jar."""
    radius, height = rng.uniform(0.03, 0.05), rng.uniform(0.12, 0.32)
    shoulder, neck = rng.uniform(0.55, 0.8) * height, radius * rng.uniform(0.3, 0.9)
    outline = [(radius, 0), (radius, shoulder), (neck, shoulder + 0.04), (neck, height)]
    return Model("bottle", (lathe(outline, anything(rng), sides=14),))


def make_bowl(rng: np.random.Generator) -> Model:
    """An open bowl or a deep plate."""
    radius, height = rng.uniform(0.08, 0.17), rng.uniform(0.04, 0.11)
    rise = np.linspace(0, 1, 5)
    outline = [(0.0, 0.0), *zip(radius * (0.45 + 0.55 * np.sqrt(rise)), height * rise, strict=True)]
    return Model("bowl", (vessel(outline, 0.008, anything(rng)),))


def make_mug(rng: np.random.Generator) -> Model:
    """A mug with a handle."""
    radius, height, texture = rng.uniform(0.035, 0.05), rng.uniform(0.08, 0.12), anything(rng)
    cup = vessel([(0.0, 0.0), (radius, 0), (radius, height)], 0.005, texture)
    handle = box((0.03, 0.012, height * 0.6), texture, (radius + 0.012, 0, height * 0.2))
    return Model("mug", (cup, handle))


def make_books(rng: np.random.Generator) -> Model:
    """A standing row of books or a lying stack."""
    parts: list[Part] = []
    if rng.random() < 0.7:
        x, depth = 0.0, rng.uniform(0.14, 0.2)
        for _ in range(int(rng.integers(4, 16))):
            thick, height = rng.uniform(0.015, 0.05), rng.uniform(0.17, 0.26)
            parts.append(box((thick, depth, height), _cover(rng), (x + thick / 2, 0, 0)))
            x += thick + 0.001
        return Model("books", tuple(part.moved((-x / 2, 0, 0)) for part in parts))
    z = 0.0
    for _ in range(int(rng.integers(1, 6))):
        thick = rng.uniform(0.015, 0.05)
        size = (rng.uniform(0.14, 0.2), rng.uniform(0.2, 0.28), thick)
        parts.append(box(size, _cover(rng), (0, 0, z), (0, 0, rng.normal(0, 0.15))))
        z += thick
    return Model("books", tuple(parts))


def _cover(rng: np.random.Generator):
    return make_texture(rng, "patches", random_color(rng), rng.uniform(0.03, 0.1))


def make_monitor(rng: np.random.Generator) -> Model:
    """A screen on a stand, showing something or dark."""
    width = rng.uniform(0.45, 0.75)
    height, lift, frame = width * rng.uniform(0.52, 0.65), rng.uniform(0.08, 0.18), metal(rng)
    dark = make_texture(rng, "plain", (0.06, 0.06, 0.07), 0.2, 0.1)
    shown = make_texture(rng, "patches", random_color(rng), rng.uniform(0.04, 0.1), 0.5)
    lit = rng.random() < 0.4
    parts = (
        box((width * 0.4, 0.18, 0.015), frame),
        box((0.06, 0.03, lift + height / 2), frame, (0, -0.035, 0.01)),
        box((width, 0.03, height), frame, (0, 0, lift)),
        box((width - 0.03, 0.004, height - 0.03), shown if lit else dark, (0, 0.017, lift + 0.015)),
    )
    return Model("monitor", parts)


def make_laptop(rng: np.random.Generator) -> Model:
    """An open laptop."""
    width, depth, body = rng.uniform(0.3, 0.38), rng.uniform(0.21, 0.26), metal(rng)
    tilt = (rng.uniform(0.1, 0.5), 0, 0)
    screen = make_texture(rng, "patches", random_color(rng), 0.06, 0.4)
    spot = np.array((0.0, -depth / 2, 0.018))
    lid = box((width, 0.008, depth), body, spot, tilt)
    face = box((width - 0.02, 0.003, depth - 0.02), screen, spot + np.array((0, 0.006, 0.01)), tilt)
    return Model("laptop", (box((width, depth, 0.018), body), lid, face))


def make_keyboard(rng: np.random.Generator) -> Model:
    """A keyboard."""
    color = random_color(rng, "metal")
    keys = make_texture(rng, "checks", shade_of(color, rng), 0.018, 0.15)
    return Model("keyboard", (box((rng.uniform(0.3, 0.45), 0.14, 0.022), keys),))


def make_table_lamp(rng: np.random.Generator) -> Model:
    """A small lamp with a shade."""
    height, wide = rng.uniform(0.3, 0.5), rng.uniform(0.09, 0.16)
    frame, shade = metal(rng), rng.uniform(0.4, 0.55) * height
    parts = (
        lathe([(0.07, 0), (0.06, 0.02), (0.012, 0.03)], frame),
        cylinder(0.012, height - shade, frame, (0, 0, 0.02)),
        lathe([(wide, 0), (wide * rng.uniform(0.5, 1), shade)], cloth(rng), (0, 0, height - shade)),
    )
    return Model("lamp", parts)


def make_cushion(rng: np.random.Generator) -> Model:
    """A loose cushion, lying or leaning back."""
    side, thick = rng.uniform(0.35, 0.5), rng.uniform(0.1, 0.16)
    if rng.random() < 0.3:
        return Model("cushion", (rounded_box((side, side, thick), thick / 2.2, cloth(rng)),))
    lean = (rng.uniform(0.2, 0.45), 0, 0)
    upright = rounded_box((side, thick, side), thick / 2.2, cloth(rng), (0, 0.05, 0), lean)
    return Model("cushion", (upright,))


def make_bag(rng: np.random.Generator) -> Model:
    """A suitcase or a soft bag with a handle."""
    size, texture = rng.uniform((0.3, 0.16, 0.3), (0.5, 0.28, 0.65)), cloth(rng)
    grip, frame = size[0] * 0.4, metal(rng)
    parts = [rounded_box(size, rng.uniform(0.02, 0.08), texture)]
    parts += [box((0.02, 0.02, 0.1), frame, (s * grip / 2, 0, size[2] - 0.01)) for s in (-1, 1)]
    parts.append(box((grip + 0.02, 0.025, 0.02), frame, (0, 0, size[2] + 0.08)))
    return Model("bag", tuple(parts))


def make_ball(rng: np.random.Generator) -> Model:
    """A ball."""
    size = rng.uniform(0.12, 0.3)
    return Model("ball", (rounded_box((size, size, size), size / 2, anything(rng)),))


def make_pot_plant(rng: np.random.Generator) -> Model:
    """A plant for a table or a shelf."""
    return make_plant(rng, scale=rng.uniform(0.35, 0.55))


def make_floor_lamp(rng: np.random.Generator) -> Model:
    """A standing lamp: base, pole and shade."""
    height, frame = rng.uniform(1.3, 1.8), metal(rng)
    wide, shade = rng.uniform(0.14, 0.25), rng.uniform(0.2, 0.35)
    narrow = wide * rng.uniform(0.5, 1.0)
    outline = [(wide, 0), (narrow, shade)]
    parts = (
        cylinder(rng.uniform(0.11, 0.16), 0.03, frame),
        cylinder(0.014, height - shade, frame, (0, 0, 0.03)),
        lathe(outline, cloth(rng), (0, 0, height - shade)),
    )
    return Model("lamp", parts)


def make_plant(rng: np.random.Generator, scale: float = 1.0) -> Model:
    """A pot with a bush, or with long bent leaves."""
    radius, tall = rng.uniform(0.11, 0.2) * scale, rng.uniform(0.18, 0.35) * scale
    pot = lathe([(radius * rng.uniform(0.6, 1.0), 0), (radius, tall)], anything(rng))
    leaf = make_texture(rng, "marble", random_color(rng, "leaf"), 0.05 * scale, 0.4)
    parts = [pot]
    if rng.random() < 0.4:
        stem, crown = rng.uniform(0.15, 0.6) * scale, rng.uniform(0.3, 0.6) * scale
        parts.append(cylinder(0.02 * scale, stem, wood(rng), (0, 0, tall)))
        for _ in range(4):
            size = crown * rng.uniform(0.5, 0.8, 3)
            x, y = rng.normal(0, crown * 0.18, 2)
            z = tall + stem - 0.05 + rng.uniform(0, crown / 3)
            parts.append(rounded_box(size, 0.3 * crown, leaf, (x, y, z)))
        return Model("plant", tuple(parts))
    for blade in range(int(rng.integers(9, 16))):
        reach, rise = rng.uniform(0.15, 0.4) * scale, rng.uniform(0.3, 0.9) * scale
        s = np.linspace(0, 1, 7)
        path = np.stack([0 * s, reach * s**1.6, rise * s * (1.25 - 0.35 * s)], axis=-1)
        widths = rng.uniform(0.02, 0.05) * scale * np.sin(np.pi * (0.15 + 0.85 * s)) + 0.002
        parts.append(ribbon(path, widths, leaf, (0, 0, tall - 0.02), (0, 0, blade * 2.4)))
    return Model("plant", tuple(parts))


def make_bin(rng: np.random.Generator) -> Model:
    """A waste bin or basket, open at the top."""
    radius, height = rng.uniform(0.1, 0.2), rng.uniform(0.25, 0.5)
    outline = [(0.0, 0.0), (radius * rng.uniform(0.7, 1.0), 0), (radius, height)]
    return Model("bin", (vessel(outline, 0.012, anything(rng)),))
