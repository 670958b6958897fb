"""Furniture that stands on the floor, each piece a seeded mixture of sizes, shapes and textures.

Every `make_*` takes a random generator and gives a Model: its class, its parts, and the flat tops
on which smaller things may stand. Models stand on their origin, z up, front along +y, metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    Texture,
    anything,
    cloth,
    make_texture,
    metal,
    random_color,
    wood,
)


@dataclass(frozen=True, slots=True)
class Top:
    """A level rectangle (x, y centre and size) at height z with free room above it, metres."""

    center: tuple[float, float]
    size: tuple[float, float]
    z: float
    clearance: float = 0.6


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One object: its semantic class, its parts and the tops that carry smaller things."""

    kind: str
    parts: tuple[Part, ...]
    tops: tuple[Top, ...] = ()

    def bounds(self) -> np.ndarray:
        """(2, 3) lowest and highest coordinates."""
        bounds = np.array([part.bounds() for part in self.parts])
        return np.stack([bounds[:, 0].min(axis=0), bounds[:, 1].max(axis=0)])


def _legs(
    rng: np.random.Generator,
    width: float,
    depth: float,
    height: float,
    texture: Texture,
    inset: float = 0.03,
) -> list[Part]:
    """Four legs, square or round, under a rectangle."""
    thick = rng.uniform(0.025, 0.07)
    x, y = width / 2 - thick / 2 - inset, depth / 2 - thick / 2 - inset
    spots = [(sx * x, sy * y, 0) for sx in (-1, 1) for sy in (-1, 1)]
    if rng.random() < 0.5:
        return [box((thick, thick, height), texture, at) for at in spots]
    foot = thick * rng.uniform(0.3, 0.5)
    return [lathe([(foot, 0), (thick / 2, height)], texture, at, sides=10) for at in spots]


def make_table(
    rng: np.random.Generator, kind: str = "table", height: tuple[float, float] = (0.7, 0.78)
) -> Model:
    """A rectangular or round table on legs, a pedestal or side panels."""
    top_texture, frame = wood(rng), wood(rng) if rng.random() < 0.6 else metal(rng)
    z, slab = rng.uniform(*height), rng.uniform(0.02, 0.05)
    if rng.random() < 0.25:
        radius = rng.uniform(0.35, 0.65)
        parts = [
            cylinder(radius, slab, top_texture, (0, 0, z - slab)),
            cylinder(rng.uniform(0.03, 0.07), z - slab - 0.03, frame, (0, 0, 0.03)),
            cylinder(radius * rng.uniform(0.4, 0.65), 0.03, frame),
        ]
        return Model(kind, tuple(parts), (Top((0, 0), (radius * 1.3, radius * 1.3), z),))
    width, depth = rng.uniform(0.8, 2.0), rng.uniform(0.6, 1.0)
    parts = [box((width, depth, slab), top_texture, (0, 0, z - slab))]
    if rng.random() < 0.2:
        x = width / 2 - 0.08
        parts += [box((0.04, depth * 0.85, z - slab), frame, (s * x, 0, 0)) for s in (-1, 1)]
    else:
        parts += _legs(rng, width, depth, z - slab, frame)
    return Model(kind, tuple(parts), (Top((0, 0), (width, depth), z),))


def make_coffee_table(rng: np.random.Generator) -> Model:
    """A low table for a lounge."""
    return make_table(rng, height=(0.35, 0.5))


def make_desk(rng: np.random.Generator) -> Model:
    """A desk: a top on legs and a drawer block, or on panels; sometimes L-shaped."""
    width, depth, z = rng.uniform(1.1, 1.8), rng.uniform(0.6, 0.8), rng.uniform(0.7, 0.76)
    top_texture, frame, slab = wood(rng), wood(rng), 0.03
    parts = [box((width, depth, slab), top_texture, (0, 0, z - slab))]
    tops = [Top((0, 0), (width, depth), z)]
    under = z - slab
    if rng.random() < 0.5:
        block = rng.uniform(0.35, 0.45)
        x = (width - block) / 2 - 0.02
        parts.append(box((block, depth - 0.06, under), frame, (x, 0, 0)))
        parts += _fronts(rng, (x, depth / 2 - 0.03, 0.02), (block, under - 0.04), 1, 3, frame)
        parts.append(box((0.03, depth - 0.06, under), frame, (-width / 2 + 0.03, 0, 0)))
    else:
        parts += _legs(rng, width, depth, under, metal(rng))
    if rng.random() < 0.25:
        wing, x = rng.uniform(0.5, 0.9), -(width - 0.6) / 2
        parts.append(box((0.6, wing, slab), top_texture, (x, (depth + wing) / 2, z - slab)))
        parts.append(box((0.56, 0.03, under), frame, (x, depth / 2 + wing - 0.03, 0)))
        tops.append(Top((x, (depth + wing) / 2), (0.6, wing), z))
    return Model("desk", tuple(parts), tuple(tops))


def make_chair(rng: np.random.Generator) -> Model:
    """A four-legged chair with a solid, slatted or round-cornered back, with or without arms."""
    width, depth = rng.uniform(0.38, 0.5), rng.uniform(0.38, 0.48)
    seat, back = rng.uniform(0.42, 0.48), rng.uniform(0.36, 0.55)
    frame = wood(rng) if rng.random() < 0.6 else metal(rng)
    cover = cloth(rng) if rng.random() < 0.5 else frame
    thick, lean = rng.uniform(0.025, 0.07), (rng.uniform(0.05, 0.2), 0, 0)
    parts = _legs(rng, width, depth, seat - thick, frame, inset=0.01)
    parts.append(rounded_box((width, depth, thick), 0.02, cover, (0, 0, seat - thick)))
    rear = -depth / 2 + 0.02
    style = rng.integers(3)
    if style == 0:
        parts.append(box((width * 0.95, 0.025, back), cover, (0, rear, seat), lean))
    elif style == 1:
        size = (width * 0.9, rng.uniform(0.03, 0.06), back)
        parts.append(rounded_box(size, 0.025, cover, (0, rear, seat), lean))
    else:
        for x in np.linspace(-width / 2 + 0.02, width / 2 - 0.02, rng.integers(3, 6)):
            parts.append(box((0.035, 0.02, back - 0.06), frame, (x, rear, seat), lean))
        rail = (0, rear - np.sin(lean[0]) * (back - 0.06), seat + np.cos(lean[0]) * (back - 0.06))
        parts.append(box((width, 0.03, 0.08), frame, rail, lean))
    if rng.random() < 0.2:
        for x in (-width / 2 - 0.015, width / 2 + 0.015):
            parts.append(box((0.03, depth * 0.8, 0.03), frame, (x, 0, seat + 0.2)))
            parts.append(box((0.03, 0.03, 0.22), frame, (x, depth * 0.38, seat - 0.01)))
    return Model("chair", tuple(parts), (Top((0, 0.03), (width, depth - 0.1), seat, 0.5),))


def make_office_chair(rng: np.random.Generator) -> Model:
    """A swivel chair on a five-armed star."""
    cover, frame = cloth(rng), metal(rng)
    seat, width = rng.uniform(0.44, 0.52), rng.uniform(0.44, 0.52)
    turn = rng.uniform(0, 1)
    parts = []
    for arm in range(5):
        angle = turn + arm * 2 * np.pi / 5
        spot = 0.14 * np.cos(angle), 0.14 * np.sin(angle), 0.05
        parts.append(box((0.28, 0.04, 0.04), frame, spot, (0, 0, angle)))
        wheel = 0.26 * np.cos(angle), 0.26 * np.sin(angle), 0.0
        parts.append(rounded_box((0.06, 0.06, 0.06), 0.03, frame, wheel))
    parts.append(cylinder(0.03, seat - 0.15, frame, (0, 0, 0.06)))
    parts.append(rounded_box((width, width, 0.09), 0.04, cover, (0, 0, seat - 0.09)))
    lean, back = (rng.uniform(0.05, 0.2), 0, 0), rng.uniform(0.45, 0.7)
    parts.append(box((0.06, 0.02, 0.2), frame, (0, -width / 2 - 0.02, seat - 0.06)))
    parts.append(
        rounded_box((width * 0.95, 0.07, back), 0.035, cover, (0, -width / 2, seat + 0.06), lean)
    )
    if rng.random() < 0.6:
        for x in (-width / 2 - 0.03, width / 2 + 0.03):
            parts.append(box((0.03, 0.04, 0.24), frame, (x, -0.02, seat - 0.05)))
            parts.append(rounded_box((0.06, 0.26, 0.03), 0.014, frame, (x, 0, seat + 0.19)))
    return Model("chair", tuple(parts))


def make_stool(rng: np.random.Generator) -> Model:
    """A stool or an upholstered pouf."""
    if rng.random() < 0.4:
        size = rng.uniform(0.4, 0.7), rng.uniform(0.4, 0.6), rng.uniform(0.35, 0.45)
        return Model("stool", (rounded_box(size, rng.uniform(0.03, 0.15), cloth(rng)),))
    height, radius = rng.uniform(0.42, 0.7), rng.uniform(0.15, 0.2)
    seat = lathe(
        [(radius, 0), (radius, 0.02), (radius * 0.9, 0.04)], wood(rng), (0, 0, height - 0.04)
    )
    reach = radius * 1.1
    return Model("stool", (seat, *_legs(rng, 2 * reach, 2 * reach, height - 0.04, wood(rng), 0.06)))


def make_sofa(rng: np.random.Generator, seats: int | None = None) -> Model:
    """A sofa of one to four seats with back, arms and seat cushions; large ones may be L-shaped."""
    seats = int(rng.integers(2, 5)) if seats is None else seats
    cover, arm, back = cloth(rng), rng.uniform(0.1, 0.22), rng.uniform(0.15, 0.25)
    cushion = cover if rng.random() < 0.7 else cloth(rng)
    per_seat, depth = rng.uniform(0.55, 0.7), rng.uniform(0.8, 0.95)
    width, foot = seats * per_seat + 2 * arm, rng.choice((0.0, 0.05, 0.12))
    seat, top = rng.uniform(0.4, 0.46), rng.uniform(0.7, 0.95)
    soft = rng.uniform(0.02, 0.06)
    under = seat - 0.14
    parts = [box((width, depth - 0.02, under - foot), cover, (0, 0, foot))]
    if foot:
        parts += _legs(rng, width, depth, foot, wood(rng))
    parts.append(
        rounded_box((width, back, top - under), soft, cover, (0, (back - depth) / 2, under))
    )
    arm_height = rng.uniform(0.1, 0.25) + 0.14
    for s in (-1, 1):
        size = (arm, depth - back, arm_height)
        parts.append(rounded_box(size, soft, cover, (s * (width - arm) / 2, back / 2, under)))
    for x in (np.arange(seats) - (seats - 1) / 2) * per_seat:
        size = (per_seat - 0.005, depth - back, 0.14)
        parts.append(rounded_box(size, 0.04, cushion, (x, back / 2, under)))
    if seats >= 3 and rng.random() < 0.4:
        long, x = rng.uniform(0.6, 0.9), rng.choice((-1, 1)) * (width - arm - per_seat) / 2
        parts.append(
            box((per_seat + arm, long, under - foot), cover, (x, (depth + long) / 2, foot))
        )
        size = (per_seat + arm, long, 0.14)
        parts.append(rounded_box(size, 0.04, cushion, (x, (depth + long) / 2, under)))
    tops = (Top((0, back / 2), (seats * per_seat - 0.1, depth - back - 0.1), seat, 0.5),)
    return Model("sofa", tuple(parts), tops)


def make_armchair(rng: np.random.Generator) -> Model:
    """A one-seat sofa."""
    return make_sofa(rng, seats=1)


def make_bed(rng: np.random.Generator) -> Model:
    """A bed with frame, mattress, blanket, headboard and one or two pillows."""
    width, length = rng.choice((0.9, 1.2, 1.4, 1.6, 1.8)), rng.uniform(1.95, 2.1)
    frame, sheet, blanket = wood(rng), cloth(rng), cloth(rng)
    base, mattress = rng.uniform(0.2, 0.35), rng.uniform(0.14, 0.25)
    z = base + mattress
    parts = [
        box((width + 0.06, length + 0.04, base - 0.08), frame, (0, 0, 0.08)),
        rounded_box((width, length, mattress), 0.05, sheet, (0, 0, base)),
        *_legs(rng, width, length, 0.08, frame),
    ]
    cover = rng.uniform(0.5, 0.75) * length
    size = (width + 0.05, cover, mattress * 0.9)
    parts.append(
        rounded_box(size, 0.05, blanket, (0, (length - cover) / 2 + 0.02, z - size[2] + 0.04))
    )
    if rng.random() < 0.8:
        board = (width + 0.08, rng.uniform(0.04, 0.12), rng.uniform(0.7, 1.1))
        back = cloth(rng) if rng.random() < 0.4 else frame
        parts.append(box(board, back, (0, -length / 2 - board[1] / 2 - 0.02, 0)))
    pillows = 2 if width > 1.3 else 1
    for side in range(pillows):
        x = (side - (pillows - 1) / 2) * width / 2
        spot = x, -length / 2 + 0.25, z - 0.02
        parts.append(
            rounded_box((0.55, 0.36, 0.14), 0.06, sheet, spot, (0, 0, rng.normal(0, 0.08)))
        )
    return Model(
        "bed", tuple(parts), (Top((0, length / 4), (width - 0.2, length / 2.5), z + 0.04),)
    )


def make_shelf(rng: np.random.Generator) -> Model:
    """An open shelf: sides, boards, usually a back, sometimes an upright in the middle."""
    width, depth = rng.uniform(0.5, 1.3), rng.uniform(0.25, 0.42)
    height, board = rng.uniform(0.8, 2.1), rng.uniform(0.018, 0.035)
    texture = wood(rng)
    gaps = max(2, round(height / rng.uniform(0.28, 0.42)))
    levels = np.linspace(rng.choice((0.0, 0.06)), height - board, gaps + 1)
    parts = [box((width - 2 * board, depth, board), texture, (0, 0, z)) for z in levels]
    parts += [
        box((board, depth, height), texture, (s * (width - board) / 2, 0, 0)) for s in (-1, 1)
    ]
    if rng.random() < 0.7:
        rear = (0, -depth / 2 + 0.006, levels[0])
        parts.append(box((width - 2 * board, 0.012, height - levels[0]), texture, rear))
    middle = width > 0.9 and rng.random() < 0.6
    if middle:
        parts.append(box((board, depth - 0.02, height - board), texture, (0, 0.01, 0)))
    columns = ((-width / 4, width / 2), (width / 4, width / 2)) if middle else ((0.0, width),)
    clearance = levels[1] - levels[0] - board - 0.01
    tops = [
        Top((x, 0.01), (span - 3 * board, depth - 0.03), z + board, clearance)
        for z in levels[:-1]
        for x, span in columns
    ]
    tops.append(Top((0, 0), (width, depth), height, 0.35))
    return Model("shelf", tuple(parts), tuple(tops))


def _fronts(
    rng: np.random.Generator,
    at: Sequence[float],
    size: tuple[float, float],
    columns: int,
    rows: int,
    texture: Texture,
) -> list[Part]:
    """A grid of doors or drawer fronts with handles, facing +y; `at` is its bottom centre."""
    x0, y, z0 = at
    width, height = size[0] / columns, size[1] / rows
    handle, style = metal(rng), rng.integers(3)
    parts = []
    for column in range(columns):
        for row in range(rows):
            x, z = x0 + (column - (columns - 1) / 2) * width, z0 + row * height
            parts.append(box((width - 0.006, 0.018, height - 0.006), texture, (x, y + 0.009, z)))
            if style == 0:
                grip = (min(0.14, width / 2), 0.02, 0.015)
                parts.append(box(grip, handle, (x, y + 0.028, z + height * 0.75)))
            elif style == 1:
                inner = x + width * (0.38 if column % 2 == 0 else -0.38)
                parts.append(
                    rounded_box(
                        (0.03, 0.03, 0.03), 0.015, handle, (inner, y + 0.032, z + height / 2)
                    )
                )
    return parts


def make_cabinet(rng: np.random.Generator, size: tuple[float, float, float] | None = None) -> Model:
    """A closed cabinet with doors or drawers: from bedside size to a wardrobe."""
    if size is None:
        kind = rng.choice(("drawers", "sideboard", "wardrobe"), p=(0.35, 0.4, 0.25))
        size = {
            "drawers": (rng.uniform(0.4, 1.0), rng.uniform(0.38, 0.5), rng.uniform(0.6, 1.2)),
            "sideboard": (rng.uniform(1.0, 2.0), rng.uniform(0.38, 0.5), rng.uniform(0.45, 0.95)),
            "wardrobe": (rng.uniform(0.8, 2.2), rng.uniform(0.5, 0.62), rng.uniform(1.75, 2.15)),
        }[kind]
    width, depth, height = size
    body, plinth = wood(rng), rng.uniform(0.03, 0.1)
    front = body if rng.random() < 0.6 else wood(rng)
    columns = max(1, round(width / rng.uniform(0.4, 0.6)))
    rows = 1 if height > 1.3 else int(rng.integers(1, 1 + max(1, round(height / 0.22))))
    inset = 0.018
    parts = [
        box((width, depth - inset, height - plinth), body, (0, -inset / 2, plinth)),
        box((width - 0.02, depth - 0.08, plinth), body, (0, -0.03, 0)),
    ]
    at = (0, depth / 2 - inset, plinth + 0.01)
    parts += _fronts(rng, at, (width - 0.02, height - plinth - 0.03), columns, rows, front)
    return Model("cabinet", tuple(parts), (Top((0, 0), (width, depth), height, 0.5),))


def make_nightstand(rng: np.random.Generator) -> Model:
    """A bedside cabinet."""
    width = rng.uniform(0.38, 0.55)
    return make_cabinet(rng, (width, rng.uniform(0.35, 0.42), rng.uniform(0.42, 0.6)))


def make_kitchen_counter(rng: np.random.Generator) -> Model:
    """A row of base cabinets under one worktop."""
    width, depth, height = rng.uniform(1.2, 2.8), rng.uniform(0.58, 0.65), rng.uniform(0.82, 0.88)
    base = make_cabinet(rng, (width, depth, height))
    slab_texture = make_texture(rng, "marble", random_color(rng), 0.08, 0.3)
    slab = box((width + 0.01, depth + 0.03, 0.035), slab_texture, (0, 0.01, height))
    return Model("cabinet", (*base.parts, slab), (Top((0, 0), (width, depth), height + 0.035),))


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


def make_radiator(rng: np.random.Generator) -> Model:
    """A ribbed radiator, to hang low on a wall."""
    width, height = rng.uniform(0.6, 1.4), rng.uniform(0.4, 0.6)
    texture = make_texture(rng, "plain", random_color(rng, "light"), 0.3, 0.05)
    ribs = np.arange(-width / 2 + 0.03, width / 2, 0.06)
    parts = [box((width, 0.03, height), texture, (0, -0.02, 0.12))]
    parts += [box((0.035, 0.05, height - 0.04), texture, (x, 0.01, 0.14)) for x in ribs]
    return Model("radiator", tuple(parts))


def make_curtain(rng: np.random.Generator, width: float, height: float) -> Model:
    """A hanging curtain with folds, `height` high from its base."""
    x = np.linspace(-width / 2, width / 2, max(8, round(width / 0.025)))
    path = np.stack([x, 0.035 * np.sin(x * 2 * np.pi / rng.uniform(0.1, 0.16)), 0 * x], axis=-1)
    half = np.full(len(x), height / 2)
    sheet = ribbon(path, half, cloth(rng), (0, 0, height / 2), side=(0.0, 0.0, 1.0))
    return Model("curtain", (sheet,))
