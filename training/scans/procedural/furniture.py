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
)
from training.scans.procedural.textures import (
    Texture,
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


def legs(
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
        parts += legs(rng, width, depth, z - slab, frame)
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
        parts += legs(rng, width, depth, under, metal(rng))
    if rng.random() < 0.25:
        wing, x = rng.uniform(0.5, 0.9), -(width - 0.6) / 2
        parts.append(box((0.6, wing, slab), top_texture, (x, (depth + wing) / 2, z - slab)))
        parts.append(box((0.56, 0.03, under), frame, (x, depth / 2 + wing - 0.03, 0)))
        tops.append(Top((x, (depth + wing) / 2), (0.6, wing), z))
    return Model("desk", tuple(parts), tuple(tops))


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
