"""The shell of a room: floor, walls with doors and windows, ceiling, carpet, what hangs on walls.

All in the room frame (metres, z up, floor at 0). Walls are 12 cm thick and outside the room.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from training.scans.procedural.furniture import Model, make_curtain, make_radiator
from training.scans.procedural.layout import Layout, Wall, upright_box
from training.scans.procedural.shapes import Part, box
from training.scans.procedural.textures import (
    Texture,
    anything,
    cloth,
    make_texture,
    metal,
    random_color,
    wood,
)

WALL_THICKNESS_M = 0.12


@dataclass(frozen=True, slots=True, eq=False)
class Shell:
    """A bare room: walls, lamp (3,), and surfaces (semantic class, part) in the room frame."""

    walls: list[Wall]
    lamp: np.ndarray
    surfaces: list[tuple[str, Part]]


@dataclass(frozen=True, slots=True)
class _Opening:
    """A hole in a wall: from `left` to `right` along it, from `bottom` to `top`."""

    kind: str
    left: float
    right: float
    bottom: float
    top: float


def build_shell(rng: np.random.Generator) -> tuple[Shell, Layout]:
    """A rectangular or L-shaped room with its openings, and a layout ready to be furnished."""
    width, depth, height = rng.uniform(3.2, 7.0), rng.uniform(3.0, 6.0), rng.uniform(2.3, 3.0)
    corners = [(0, 0), (width, 0), (width, depth), (0, depth)]
    rectangles = [(0.0, 0.0, width, depth)]
    blocked = [
        upright_box((-1, -1, 0), (0, depth + 1, height)),
        upright_box((width, -1, 0), (width + 1, depth + 1, height)),
        upright_box((-1, -1, 0), (width + 1, 0, height)),
        upright_box((-1, depth, 0), (width + 1, depth + 1, height)),
    ]
    if width * depth > 16 and rng.random() < 0.45:
        x, y = width * rng.uniform(0.45, 0.7), depth * rng.uniform(0.45, 0.7)
        corners = [(0, 0), (width, 0), (width, y), (x, y), (x, depth), (0, depth)]
        rectangles = [(0.0, 0.0, width, y), (0.0, y, x, depth)]
        blocked.append(upright_box((x, y, 0), (width + 1, depth + 1, height)))
    walls = [_wall(*pair) for pair in zip(corners, corners[1:] + corners[:1], strict=True)]
    area = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in rectangles)
    layout = Layout(rng, walls, area, np.concatenate(blocked))

    surfaces: list[tuple[str, Part]] = []
    ground = _floor_texture(rng)
    for x0, y0, x1, y1 in rectangles:
        under_walls = x0 - 0.1, y0 - 0.1, x1 + 0.1, y1 + 0.1  # no gap shows below a door
        surfaces.append(("floor", _slab(under_walls, -0.1, 0.0, ground)))
    if rng.random() < 0.5:
        white = make_texture(rng, "plain", random_color(rng, "light"), 0.5, 0.05)
        for bounds in rectangles:
            surfaces.append(("ceiling", _slab(bounds, height, height + 0.1, white)))
    surfaces += _dressed_walls(rng, layout, height)
    if rng.random() < 0.55:
        surfaces.append(("carpet", _carpet(rng, rectangles[0])))
    x0, y0, x1, y1 = rectangles[0]
    middle = np.array(((x0 + x1) / 2, (y0 + y1) / 2, height - rng.uniform(0.05, 0.4)))
    lamp = middle + rng.uniform((-0.6, -0.6, 0.0), (0.6, 0.6, 0.0))
    return Shell(walls, lamp, surfaces), layout


def _wall(start: tuple[float, float], end: tuple[float, float]) -> Wall:
    step = np.subtract(end, start)
    length = float(np.linalg.norm(step))
    return Wall(np.array(start, float), step / length, length)


def _slab(bounds: tuple[float, ...], bottom: float, top: float, texture: Texture) -> Part:
    """A level slab whose texture is fixed to the room, so that neighbouring slabs match."""
    x0, y0, x1, y1 = bounds
    slab = box((x1 - x0, y1 - y0, top - bottom), texture)
    center = np.array(((x0 + x1) / 2, (y0 + y1) / 2, bottom))
    return replace(slab, vertices=slab.vertices + center)


def _floor_texture(rng: np.random.Generator) -> Texture:
    pattern = rng.choice(("planks", "tiles", "fabric", "marble", "plain", "checks"),
                         p=(0.38, 0.2, 0.15, 0.1, 0.1, 0.07))  # fmt: skip
    if pattern == "planks":
        return make_texture(rng, "planks", random_color(rng, "wood"), rng.uniform(0.08, 0.18))
    if pattern in ("tiles", "checks"):
        return make_texture(rng, pattern, random_color(rng), rng.uniform(0.2, 0.5), 0.3)
    return make_texture(rng, pattern, random_color(rng), rng.uniform(0.05, 0.2))


def _wall_texture(rng: np.random.Generator) -> Texture:
    mood = "light" if rng.random() < 0.65 else "any"
    color = random_color(rng, mood)
    pattern = str(rng.choice(("plain", "marble", "stripes", "bricks", "patches", "planks"),
                             p=(0.6, 0.12, 0.1, 0.08, 0.05, 0.05)))  # fmt: skip
    scale_m = {"plain": 0.6, "marble": 0.3, "bricks": 0.24}.get(pattern, rng.uniform(0.08, 0.2))
    return make_texture(rng, pattern, color, scale_m, 0.12)


def _dressed_walls(
    rng: np.random.Generator, layout: Layout, height: float
) -> list[tuple[str, Part]]:
    """All walls with their doors, windows and pictures; keeps the space before them free."""
    common, accent = _wall_texture(rng), _wall_texture(rng)
    skirting = wood(rng) if rng.random() < 0.6 else None
    surfaces: list[tuple[str, Part]] = []
    for number, wall in enumerate(layout.walls):
        texture = accent if number == 0 and rng.random() < 0.5 else common
        openings = _openings(rng, wall, height, with_door=number == 0)
        frame = wall.room_from_wall()
        for x0, x1, z0, z1 in _panels(openings, wall.length, height):
            surfaces.append(("wall", _panel(frame, x0, x1, z0, z1, texture)))
        doors = [opening for opening in openings if opening.kind == "door"]
        if skirting:
            for x0, x1, z0, z1 in _panels(doors, wall.length, 0.08):
                strip = _panel(frame, x0, x1, z0, z1, skirting, -0.012, 0.0)
                surfaces.append(("wall", strip))
        for opening in openings:
            surfaces += _fill_opening(rng, layout, wall, opening)
        surfaces += _pictures(rng, wall, openings)
    if rng.random() < 0.25:
        surfaces.append(("wall", _pillar(rng, layout, height, common)))
    return surfaces


def _openings(
    rng: np.random.Generator, wall: Wall, height: float, with_door: bool
) -> list[_Opening]:
    """A door, a window or two, or nothing; side by side without touching."""
    openings, left = [], rng.uniform(0.1, 0.5)
    if with_door or rng.random() < 0.12:
        wide = rng.uniform(0.8, 0.95)
        if left + wide + 0.1 < wall.length:
            openings.append(_Opening("door", left, left + wide, 0.0, rng.uniform(1.98, 2.1)))
            left += wide + 0.3
    windows = int(rng.choice((0, 1, 2), p=(0.5, 0.35, 0.15)))
    bottom, top = rng.uniform(0.75, 1.1), min(rng.uniform(1.8, 2.2), height - 0.15)
    for _ in range(windows):
        left += rng.uniform(0.2, 0.8)
        wide = rng.uniform(0.7, 1.5)
        if left + wide + 0.2 > wall.length:
            break
        openings.append(_Opening("window", left, left + wide, bottom, top))
        left += wide
    return openings


def _panels(
    openings: list[_Opening], length: float, height: float
) -> list[tuple[float, float, float, float]]:
    """Rectangles (x0, x1, z0, z1) that fill a wall around its openings."""
    panels, x = [], 0.0
    for opening in openings:
        panels.append((x, opening.left, 0.0, height))
        if opening.bottom > 0:
            panels.append((opening.left, opening.right, 0.0, opening.bottom))
        if opening.top < height:
            panels.append((opening.left, opening.right, opening.top, height))
        x = opening.right
    panels.append((x, length, 0.0, height))
    return panels


def _panel(
    frame: np.ndarray,
    x0: float,
    x1: float,
    z0: float,
    z1: float,
    texture: Texture,
    back: float = 0.0,
    front: float = WALL_THICKNESS_M,
) -> Part:
    """A box in a wall's frame from `back` to `front` metres behind the wall's surface."""
    panel = box((x1 - x0, front - back, z1 - z0), texture)
    center = np.array(((x0 + x1) / 2, -(back + front) / 2, z0))
    return replace(panel, vertices=panel.vertices + center, object_from_part=frame)


def _fill_opening(
    rng: np.random.Generator, layout: Layout, wall: Wall, opening: _Opening
) -> list[tuple[str, Part]]:
    """Frame, leaf or glazing bars, and what belongs beside them: radiator, curtains."""
    frame, texture = wall.room_from_wall(), wood(rng)
    x0, x1, z0, z1 = opening.left, opening.right, opening.bottom, opening.top
    bar = rng.uniform(0.04, 0.08)
    parts = [
        _panel(frame, x0, x0 + bar, z0, z1, texture, -0.015, 0.08),
        _panel(frame, x1 - bar, x1, z0, z1, texture, -0.015, 0.08),
        _panel(frame, x0, x1, z1 - bar, z1, texture, -0.015, 0.08),
    ]
    middle = (x0 + x1) / 2
    if opening.kind == "door":
        leaf = wood(rng)
        parts.append(_panel(frame, x0 + bar, x1 - bar, 0.0, z1 - bar, leaf, 0.02, 0.06))
        handle = _panel(
            frame, x1 - bar - 0.18, x1 - bar - 0.05, 1.02, 1.04, metal(rng), -0.04, 0.02
        )
        _keep_free(layout, wall, x0, x1, 0.8, 0.0, 2.0)
        return [("door", part) for part in [*parts, handle]]
    parts.append(_panel(frame, x0, x1, z0, z0 + bar, texture, -0.03, 0.08))
    if x1 - x0 > 0.9:
        parts.append(_panel(frame, middle - bar / 2, middle + bar / 2, z0, z1, texture, 0.0, 0.06))
    if rng.random() < 0.5:
        _stand_before(layout, wall, make_radiator(rng), middle, 0.0)
    if rng.random() < 0.35:
        for x in (x0 - 0.1, x1 + 0.1):
            bottom = rng.choice((0.05, z0 - 0.2))
            curtain = make_curtain(rng, rng.uniform(0.3, 0.5), z1 + 0.1 - bottom)
            _stand_before(layout, wall, curtain, x, bottom)
    _keep_free(layout, wall, x0, x1, 0.1, z0, z1)
    return [("window", part) for part in parts]


def _stand_before(layout: Layout, wall: Wall, model: Model, along: float, bottom: float) -> None:
    """Hangs a model on a wall where it fits."""
    low, high = model.bounds()
    along = np.clip(along, -low[0] + 0.01, wall.length - high[0] - 0.01)
    x, y = wall.start + along * wall.direction + (0.03 - low[1]) * wall.inward
    layout.place(model, x, y, bottom, wall.yaw)


def _keep_free(
    layout: Layout, wall: Wall, x0: float, x1: float, reach: float, z0: float, z1: float
) -> None:
    """Blocks the space before an opening for furniture."""
    center = wall.start + (x0 + x1) / 2 * wall.direction + reach / 2 * wall.inward
    row = [*center, np.cos(wall.yaw), np.sin(wall.yaw), (x1 - x0) / 2, reach / 2, z0, z1]
    layout.blocked = np.concatenate([layout.blocked, np.array([row])])


def _pictures(
    rng: np.random.Generator, wall: Wall, openings: list[_Opening]
) -> list[tuple[str, Part]]:
    """Framed pictures on free stretches of a wall."""
    pictures = []
    for _ in range(int(rng.integers(0, 3))):
        width, height = rng.uniform(0.2, 0.9), rng.uniform(0.25, 0.7)
        if wall.length < width + 0.4:
            continue
        x, z = rng.uniform(0.2, wall.length - width - 0.2), rng.uniform(1.2, 1.5)
        free = all(x > hole.right + 0.1 or x + width < hole.left - 0.1 for hole in openings)
        if free and not pictures:
            frame = wall.room_from_wall()
            print_ = replace(anything(rng), pattern="patches", scale_m=rng.uniform(0.05, 0.3))
            pictures.append(_panel(frame, x, x + width, z, z + height, wood(rng), -0.02, 0.0))
            inner = x + 0.03, x + width - 0.03, z + 0.03, z + height - 0.03
            pictures.append(_panel(frame, *inner, print_, -0.023, -0.02))
    return [("picture", part) for part in pictures]


def _pillar(rng: np.random.Generator, layout: Layout, height: float, texture: Texture) -> Part:
    """A pilaster or chimney breast that stands out from a wall."""
    wall = layout.walls[-1]
    width, reach = rng.uniform(0.25, 0.8), rng.uniform(0.1, 0.4)
    x0 = rng.uniform(0.0, 0.2) * wall.length
    _keep_free(layout, wall, x0, x0 + width, reach, 0.0, height)
    return _panel(wall.room_from_wall(), x0, x0 + width, 0.0, height, texture, -reach, 0.0)


def _carpet(rng: np.random.Generator, bounds: tuple[float, ...]) -> Part:
    """A rug on the floor, a few millimetres thick."""
    x0, y0, x1, y1 = bounds
    size = np.minimum(
        (rng.uniform(1.2, 3.2), rng.uniform(1.0, 2.2)), (x1 - x0 - 0.7, y1 - y0 - 0.7)
    )
    x = rng.uniform(x0 + 0.3 + size[0] / 2, x1 - 0.3 - size[0] / 2)
    y = rng.uniform(y0 + 0.3 + size[1] / 2, y1 - 0.3 - size[1] / 2)
    texture = replace(cloth(rng), scale_m=rng.uniform(0.08, 0.3))
    rug = box((*size, 0.008), texture)
    return rug.moved((x, y, 0.0), (0, 0, rng.normal(0, 0.1)))
