"""Chairs, stools, sofas and beds; conventions as in furniture."""

from __future__ import annotations

import numpy as np

from training.scans.procedural.furniture import Model, Top, legs
from training.scans.procedural.shapes import box, cylinder, lathe, rounded_box
from training.scans.procedural.textures import cloth, metal, wood


def make_chair(rng: np.random.Generator) -> Model:
    """A four-legged chair with a solid, slatted or round-cornered back, with or without arms."""
    width, depth = rng.uniform(0.38, 0.5), rng.uniform(0.38, 0.48)
    seat, back = rng.uniform(0.42, 0.48), rng.uniform(0.36, 0.55)
    frame = wood(rng) if rng.random() < 0.6 else metal(rng)
    cover = cloth(rng) if rng.random() < 0.5 else frame
    thick, lean = rng.uniform(0.025, 0.07), (rng.uniform(0.05, 0.2), 0, 0)
    parts = legs(rng, width, depth, seat - thick, frame, inset=0.01)
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
    return Model("stool", (seat, *legs(rng, 2 * reach, 2 * reach, height - 0.04, wood(rng), 0.06)))


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
        parts += legs(rng, width, depth, foot, wood(rng))
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
        *legs(rng, width, length, 0.08, frame),
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
