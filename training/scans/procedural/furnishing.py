"""What stands in a room: groups of furniture by the use of the room, then small things on top.

The groups make objects meet as they do in homes and offices: chairs under tables, cabinets in a
row against a wall, books in shelves, cushions on sofas.
"""

from __future__ import annotations

import numpy as np

from training.scans.procedural import furniture, seating, small_things
from training.scans.procedural.layout import Layout, Maker, Placed

TABLE_THINGS = (
    small_things.make_box,
    small_things.make_bottle,
    small_things.make_bowl,
    small_things.make_mug,
    small_things.make_books,
    small_things.make_laptop,
    small_things.make_table_lamp,
    small_things.make_pot_plant,
    small_things.make_ball,
)
SHELF_THINGS = (
    small_things.make_books,
    small_things.make_books,
    small_things.make_books,
    small_things.make_box,
    small_things.make_box,
    small_things.make_bottle,
    small_things.make_bowl,
    small_things.make_pot_plant,
    small_things.make_ball,
)
SEAT_THINGS = (
    small_things.make_cushion,
    small_things.make_cushion,
    small_things.make_books,
    small_things.make_box,
    small_things.make_bag,
)
FLOOR_THINGS = (
    small_things.make_bin,
    seating.make_stool,
    small_things.make_plant,
    small_things.make_floor_lamp,
    small_things.make_carton,
    small_things.make_carton,
    small_things.make_bag,
    small_things.make_ball,
)


def furnish(layout: Layout) -> None:
    """Fills a room with the furniture of one or two uses, then with clutter."""
    rng, uses = layout.rng, list(_USES.values())
    rng.shuffle(uses)
    for use in uses[: 1 if layout.area_m2 < 14 else 2]:
        use(layout)
    for _ in range(int(rng.integers(1, 5))):
        make = rng.choice((furniture.make_cabinet, furniture.make_shelf, seating.make_armchair))
        _row(layout, make, longest=2)
    for _ in range(int(rng.integers(2, 7))):
        make = rng.choice(FLOOR_THINGS)
        if rng.random() < 0.5:
            layout.against_wall(make, (0.0, 0.15))
        else:
            layout.anywhere(make, aligned=False)
    _clutter(layout)


def _row(layout: Layout, make: Maker, longest: int = 3) -> None:
    """Up to `longest` pieces of a kind side by side against a wall, all alike or mixed."""
    rng, piece = layout.rng, layout.against_wall(make)
    if piece is None:
        return
    alike, first = rng.random() < 0.5, piece.model
    for _ in range(int(rng.integers(0, longest))):
        neighbor = layout.beside(piece, (lambda _: first) if alike else make, (0.0, 0.02))
        if neighbor is None:
            return
        piece = neighbor


def _dining(layout: Layout) -> None:
    """A table or two with chairs around."""
    rng = layout.rng
    for _ in range(1 if layout.area_m2 < 18 else int(rng.integers(1, 3))):
        table = layout.anywhere(furniture.make_table)
        if table is not None:
            _chairs_around(layout, table)
    if rng.random() < 0.6:
        _row(layout, furniture.make_kitchen_counter, longest=1)


def _chairs_around(layout: Layout, table: Placed) -> None:
    """Chairs along the long sides and at the heads of a table, here and there one missing."""
    rng, chair = layout.rng, seating.make_chair(layout.rng)
    mixed = rng.random() < 0.25
    low, high = table.model.bounds()
    places = max(1, int((high[0] - low[0] - 0.2) / 0.58))
    along = (np.arange(places) - (places - 1) / 2) * (high[0] - low[0] - 0.2) / places
    spots = [(x, low[1], np.pi / 2) for x in along] + [(x, high[1], -np.pi / 2) for x in along]
    spots += [(low[0], 0.0, 0.0), (high[0], 0.0, np.pi)]
    spots = [spot for spot in spots if rng.random() < 0.8]
    layout.around(table, seating.make_chair if mixed else lambda _: chair, spots, 0.35)


def _office(layout: Layout) -> None:
    """Work places: desk, swivel chair, screen, keyboard; shelves in a row."""
    rng = layout.rng
    for _ in range(max(1, int(layout.area_m2 / 8))):
        if rng.random() < 0.75:
            desk = layout.against_wall(furniture.make_desk, (0.0, 0.06))
        else:
            desk = layout.anywhere(furniture.make_desk)
        if desk is None:
            continue
        make = seating.make_office_chair if rng.random() < 0.8 else seating.make_chair
        front = desk.model.tops[0].size[1] / 2
        layout.around(desk, make, [(rng.uniform(-0.2, 0.2), front, -np.pi / 2)], 0.5)
        for _ in range(int(rng.integers(1, 3))):
            layout.on_top(desk, desk.model.tops[0], small_things.make_monitor, 0.1)
        layout.on_top(desk, desk.model.tops[0], small_things.make_keyboard, 0.1)
    _row(layout, furniture.make_shelf)


def _lounge(layout: Layout) -> None:
    """A sofa, armchairs and a coffee table; a sideboard with a screen."""
    rng = layout.rng
    if rng.random() < 0.2:
        sofa = layout.anywhere(seating.make_sofa)
    else:
        sofa = layout.against_wall(seating.make_sofa, (0.0, 0.1))
    if sofa is not None:
        front = sofa.model.bounds()[1, 1]
        spot = [(rng.uniform(-0.3, 0.3), front + 0.75, -np.pi / 2)]
        layout.around(sofa, furniture.make_coffee_table, spot, 0.0)
        for _ in range(int(rng.integers(0, 4))):
            layout.on_top(sofa, sofa.model.tops[0], small_things.make_cushion)
    for _ in range(int(rng.integers(0, 3))):
        layout.anywhere(seating.make_armchair, aligned=rng.random() < 0.5)
    sideboard = layout.against_wall(furniture.make_cabinet)
    if sideboard is not None and sideboard.model.bounds()[1, 2] < 1.0:
        layout.on_top(sideboard, sideboard.model.tops[0], small_things.make_monitor, 0.05)
    layout.against_wall(small_things.make_floor_lamp, (0.05, 0.2))


def _bedroom(layout: Layout) -> None:
    """A bed with nightstands, wardrobes in a row."""
    rng = layout.rng
    bed = layout.against_wall(seating.make_bed, (0.0, 0.05))
    if bed is not None:
        for _ in range(int(rng.integers(0, 3))):
            stand = layout.beside(bed, furniture.make_nightstand, (0.0, 0.15))
            if stand is not None and rng.random() < 0.6:
                layout.on_top(stand, stand.model.tops[0], small_things.make_table_lamp)
        if rng.random() < 0.4:
            layout.on_top(bed, bed.model.tops[0], small_things.make_cushion)
    _row(layout, furniture.make_cabinet)


def _storage(layout: Layout) -> None:
    """Shelves, cabinets and cartons, some of them stacked."""
    rng = layout.rng
    _row(layout, furniture.make_shelf)
    _row(layout, furniture.make_cabinet)
    for _ in range(int(rng.integers(2, 7))):
        carton = layout.against_wall(small_things.make_carton, (0.0, 0.2))
        while carton is not None and rng.random() < 0.5:
            carton = layout.on_top(carton, carton.model.tops[0], small_things.make_box)


_USES = {
    "dining": _dining, "office": _office, "lounge": _lounge, "bedroom": _bedroom,
    "storage": _storage,
}  # fmt: skip


def _clutter(layout: Layout) -> None:
    """Small things on the tops of all that was placed: what, and how many on a square metre."""
    rng, tidiness = layout.rng, layout.rng.uniform(0.3, 1.2)
    usual = TABLE_THINGS, 3.5
    by_kind = {
        "shelf": (SHELF_THINGS, 5.0),
        "sofa": (SEAT_THINGS, 0.6),
        "bed": (SEAT_THINGS, 0.5),
        "chair": (SEAT_THINGS, 0.6),
        "box": (TABLE_THINGS, 2.0),
    }
    for placed in list(layout.placed):
        things, density_m2 = by_kind.get(placed.model.kind, usual)
        for top in placed.model.tops:
            expected = density_m2 * top.size[0] * top.size[1] * tidiness
            for _ in range(min(int(rng.poisson(expected)), 7)):
                layout.on_top(placed, top, rng.choice(things))
