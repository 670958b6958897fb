"""Where things stand: places models in a room so that no two solids overlap.

All positions are in the room frame: metres, z up, floor at 0, one corner of the room at the origin.
Each part of an object blocks the upright box around it, so that a chair fits under a table and a
book into a shelf, but nothing passes through anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from training.scans.procedural.furniture import Model, Top
from training.scans.procedural.shapes import pose

Maker = Callable[[np.random.Generator], Model]
SLACK_M = 0.002  # solids may touch
TRIES = 25


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A model standing at (x, y, z), turned by `yaw` about z."""

    model: Model
    x: float
    y: float
    z: float
    yaw: float

    def room_from_object(self) -> np.ndarray:
        """(4, 4) pose."""
        return pose((self.x, self.y, self.z), (0, 0, self.yaw))

    def point(self, x: float, y: float) -> np.ndarray:
        """(2,) room position of a point of the object's frame."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([self.x + cos * x - sin * y, self.y + sin * x + cos * y])

    def boxes(self) -> np.ndarray:
        """(parts, 8) upright boxes: centre x, y, cos, sin of yaw, half size x, y, bottom, top."""
        bounds = np.array([part.bounds() for part in self.model.parts])
        middle, half = bounds.mean(axis=1), (bounds[:, 1] - bounds[:, 0]) / 2
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        boxes = np.empty((len(bounds), 8))
        boxes[:, 0] = self.x + cos * middle[:, 0] - sin * middle[:, 1]
        boxes[:, 1] = self.y + sin * middle[:, 0] + cos * middle[:, 1]
        boxes[:, 2:4] = cos, sin
        boxes[:, 4:6] = half[:, :2]
        boxes[:, 6:8] = self.z + bounds[:, :, 2]
        return boxes


def upright_box(low: tuple[float, float, float], high: tuple[float, float, float]) -> np.ndarray:
    """(1, 8) box in the form of `Placed.boxes`, parallel to the room's axes."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    return np.array([[(x0 + x1) / 2, (y0 + y1) / 2, 1, 0, (x1 - x0) / 2, (y1 - y0) / 2, z0, z1]])


def boxes_overlap(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether any box of (n, 8) cuts any of (m, 8) by more than the slack: separating axes."""
    a, b = first[:, None], second[None]
    apart = (a[..., 6] + SLACK_M > b[..., 7]) | (b[..., 6] + SLACK_M > a[..., 7])
    shift = b[..., :2] - a[..., :2]
    cos = a[..., 2] * b[..., 2] + a[..., 3] * b[..., 3]
    sin = a[..., 2] * b[..., 3] - a[..., 3] * b[..., 2]
    for one, other in ((a, b), (b, a)):
        along = np.abs(shift[..., 0] * one[..., 2] + shift[..., 1] * one[..., 3])
        across = np.abs(-shift[..., 0] * one[..., 3] + shift[..., 1] * one[..., 2])
        reach_x = np.abs(cos) * other[..., 4] + np.abs(sin) * other[..., 5]
        reach_y = np.abs(sin) * other[..., 4] + np.abs(cos) * other[..., 5]
        apart |= along + SLACK_M > one[..., 4] + reach_x
        apart |= across + SLACK_M > one[..., 5] + reach_y
    return not apart.all()


@dataclass(frozen=True, slots=True, eq=False)
class Wall:
    """One straight wall: start (2,), unit direction (2,), length; the room lies on its left."""

    start: np.ndarray
    direction: np.ndarray
    length: float

    @property
    def inward(self) -> np.ndarray:
        """(2,) unit normal into the room."""
        return np.array([-self.direction[1], self.direction[0]])

    @property
    def yaw(self) -> float:
        """Turn of an object that has its back to this wall."""
        return float(np.arctan2(self.direction[1], self.direction[0]))

    def room_from_wall(self) -> np.ndarray:
        """(4, 4) pose of the wall's frame: x along it, y into the room, z up."""
        return pose((*self.start, 0), (0, 0, self.yaw))


@dataclass(slots=True)
class Layout:
    """A room being furnished: its walls, what already blocks space, and what was placed."""

    rng: np.random.Generator
    walls: list[Wall]
    area_m2: float
    blocked: np.ndarray  # (n, 8) boxes that nothing may enter
    placed: list[Placed] = field(default_factory=list)
    footprint_m2: float = 0.0

    def place(self, model: Model, x: float, y: float, z: float, yaw: float) -> Placed | None:
        """Puts the model there unless it would cut something; None when it does."""
        candidate = Placed(model, x, y, z, yaw)
        boxes = candidate.boxes()
        reach = np.linalg.norm(boxes[:, :2] - (x, y), axis=1) + np.hypot(boxes[:, 4], boxes[:, 5])
        far = np.linalg.norm(self.blocked[:, :2] - (x, y), axis=1)
        near = far < reach.max() + np.hypot(self.blocked[:, 4], self.blocked[:, 5])
        if boxes_overlap(boxes, self.blocked[near]):
            return None
        self.blocked = np.concatenate([self.blocked, boxes])
        self.placed.append(candidate)
        return candidate

    def against_wall(self, make: Maker, gap: tuple[float, float] = (0.0, 0.03)) -> Placed | None:
        """Stands a new model with its back to some wall."""
        model = make(self.rng)
        (x0, y0, _), (x1, _, _) = model.bounds()
        weights = np.array([max(wall.length - (x1 - x0), 0) for wall in self.walls])
        if not weights.any() or self._is_full(model):
            return None
        for _ in range(TRIES):
            wall = self.walls[self.rng.choice(len(self.walls), p=weights / weights.sum())]
            along = self.rng.uniform(-x0, wall.length - x1)
            if self.rng.random() < 0.3:  # pushed into the corner
                along = self.rng.choice((-x0 + 0.01, wall.length - x1 - 0.01))
            distance = self.rng.uniform(*gap) - y0 + SLACK_M
            x, y = wall.start + along * wall.direction + distance * wall.inward
            if placed := self.place(model, x, y, 0.0, wall.yaw):
                return self._counted(placed)
        return None

    def anywhere(self, make: Maker, aligned: bool = True) -> Placed | None:
        """Stands a new model somewhere on the floor, mostly parallel to the walls."""
        model = make(self.rng)
        if self._is_full(model):
            return None
        corners = np.array([wall.start for wall in self.walls])
        for _ in range(TRIES):
            x, y = self.rng.uniform(corners.min(axis=0), corners.max(axis=0))
            yaw = self.rng.integers(4) * np.pi / 2 + self.rng.normal(0, 0.06)
            if not aligned:
                yaw = self.rng.uniform(0, 2 * np.pi)
            if placed := self.place(model, x, y, 0.0, yaw):
                return self._counted(placed)
        return None

    def beside(self, placed: Placed, make: Maker, gap: tuple[float, float]) -> Placed | None:
        """Stands a new model right or left of a placed one, backs aligned."""
        model = make(self.rng)
        (x0, y0, _), (x1, _, _) = model.bounds()
        (other_x0, other_y0, _), (other_x1, _, _) = placed.model.bounds()
        distance = self.rng.uniform(*gap) + SLACK_M
        sides = [other_x1 - x0 + distance, other_x0 - x1 - distance]
        for x in self.rng.permutation(sides):
            spot = placed.point(x, other_y0 - y0)
            if beside := self.place(model, *spot, placed.z, placed.yaw):
                return self._counted(beside)
        return None

    def around(
        self, placed: Placed, make: Maker, spots: list[tuple[float, float, float]], pulled_m: float
    ) -> None:
        """Stands new models before spots (x, y, facing) of a placed one's frame, pulled out a bit.

        They face along `facing` (radians) and touch the spot with their front when not pulled out.
        """
        for x, y, facing in spots:
            model = make(self.rng)
            for _ in range(6):
                back = self.rng.uniform(-0.22, pulled_m) + model.bounds()[1, 1]
                slip = self.rng.normal(0, 0.04)
                turn = facing - np.pi / 2
                ox = x - back * np.cos(facing) - slip * np.sin(facing)
                oy = y - back * np.sin(facing) + slip * np.cos(facing)
                yaw = placed.yaw + turn + self.rng.normal(0, 0.12)
                if self.place(model, *placed.point(ox, oy), placed.z, yaw):
                    break

    def on_top(
        self, placed: Placed, top: Top, make: Maker, turn_spread: float = 0.3
    ) -> Placed | None:
        """Stands a new model on a top of a placed one, facing roughly the same way."""
        model = make(self.rng)
        low, high = model.bounds()
        if high[2] > top.clearance:
            return None
        reach = np.maximum(-low[:2], high[:2])
        room = np.array(top.size) / 2 - reach
        if (room < -0.01).any():
            return None
        room = np.maximum(room, 0)
        for _ in range(8):
            x, y = np.array(top.center) + self.rng.uniform(-room, room)
            yaw = placed.yaw + self.rng.normal(0, turn_spread)
            if stood := self.place(model, *placed.point(x, y), placed.z + top.z, yaw):
                return stood
        return None

    def _is_full(self, model: Model) -> bool:
        """Whether the model would leave too little floor to walk on."""
        return self.footprint_m2 + _footprint(model) > 0.42 * self.area_m2

    def _counted(self, placed: Placed) -> Placed:
        self.footprint_m2 += _footprint(placed.model)
        return placed


def _footprint(model: Model) -> float:
    size = np.diff(model.bounds(), axis=0)[0]
    return float(size[0] * size[1])
