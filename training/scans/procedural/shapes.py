"""Solid parts that objects are built of: boxes, rounded boxes, lathed shapes and ribbons.

Every shape stands on the origin of its own frame, z up, in metres; `at` and `turn` place it in the
object's frame, whose origin is the centre of the object's base and whose front looks along +y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from training.scans.procedural.textures import Texture

Vector = Sequence[float]
ORIGIN = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One textured solid of an object.

    vertices (n, 3) float64 in the part's own frame, where its texture is fixed; faces (m, 3) int32;
    object_from_part (4, 4) float64.
    """

    vertices: np.ndarray
    faces: np.ndarray
    texture: Texture
    object_from_part: np.ndarray

    def bounds(self) -> np.ndarray:
        """(2, 3) lowest and highest coordinates in the object's frame."""
        placed = transformed(self.object_from_part, self.vertices)
        return np.stack([placed.min(axis=0), placed.max(axis=0)])

    def moved(self, at: Vector = ORIGIN, turn: Vector = ORIGIN) -> Part:
        """The part turned by `turn` (radians about x, then y, then z), then shifted by `at`."""
        return replace(self, object_from_part=pose(at, turn) @ self.object_from_part)


def pose(at: Vector, turn: Vector = ORIGIN) -> np.ndarray:
    """(4, 4) rotation about the fixed axes x, y, z by `turn` radians, then translation by `at`."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn).as_matrix()
    matrix[:3, 3] = at
    return matrix


def transformed(b_from_a: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (n, 3) of frame a in frame b."""
    return points @ b_from_a[:3, :3].T + b_from_a[:3, 3]


def box(size: Vector, texture: Texture, at: Vector = ORIGIN, turn: Vector = ORIGIN) -> Part:
    """A box of `size` (x, y, z) standing on `at`."""
    corners = np.array([(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)], float)
    vertices = (corners - (0.5, 0.5, 0.0)) * size
    quads = np.array(
        [(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)]
    )
    return Part(vertices, _triangles(quads), texture, pose(at, turn))


def rounded_box(
    size: Vector, radius: float, texture: Texture, at: Vector = ORIGIN, turn: Vector = ORIGIN
) -> Part:
    """A box with edges and corners rounded by `radius`, for cushions and upholstery.

    It is a sphere of that radius whose octants are pulled apart to the box's corners.
    """
    half = np.asarray(size, float) / 2
    radius = min(radius, *half)
    steps = np.linspace(0, np.pi / 2, 5)
    # Each octant keeps its own end angles, so that the flat faces appear between the octants.
    longitudes = np.concatenate([steps + quarter * np.pi / 2 for quarter in range(4)])
    quadrants = np.repeat(np.arange(4), len(steps))
    latitudes = np.concatenate([steps - np.pi / 2, steps])
    upper = np.repeat((-1.0, 1.0), len(steps))

    directions = np.stack(
        [
            np.cos(latitudes)[:, None] * np.cos(longitudes),
            np.cos(latitudes)[:, None] * np.sin(longitudes),
            np.broadcast_to(np.sin(latitudes)[:, None], (len(latitudes), len(longitudes))),
        ],
        axis=-1,
    )
    signs = np.empty_like(directions)
    signs[..., 0] = np.array((1, -1, -1, 1))[quadrants]
    signs[..., 1] = np.array((1, 1, -1, -1))[quadrants]
    signs[..., 2] = upper[:, None]
    rings = directions * radius + signs * (half - radius) + (0, 0, half[2])
    return Part(*_joined_rings(rings), texture, pose(at, turn))


def lathe(
    profile: Sequence[tuple[float, float]],
    texture: Texture,
    at: Vector = ORIGIN,
    turn: Vector = ORIGIN,
    sides: int = 24,
) -> Part:
    """A solid of revolution about z: `profile` lists (radius, height) along its outline."""
    outline = np.asarray(profile, float)
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    rings = np.empty((len(outline), sides, 3))
    rings[..., :2] = outline[:, None, :1] * circle
    rings[..., 2] = outline[:, 1:]
    return Part(*_joined_rings(rings), texture, pose(at, turn))


def cylinder(
    radius: float, height: float, texture: Texture, at: Vector = ORIGIN, turn: Vector = ORIGIN
) -> Part:
    """A cylinder standing on `at`."""
    sides = 36 if radius > 0.2 else 14
    return lathe([(radius, 0), (radius, height)], texture, at, turn, sides)


def vessel(
    profile: Sequence[tuple[float, float]], wall: float, texture: Texture, at: Vector = ORIGIN
) -> Part:
    """An open container: the outline of its outside, bottom to rim, hollowed to `wall` metres."""
    inside = [(max(r - wall, 0.0), max(z, wall)) for r, z in reversed(profile)]
    return lathe([*profile, *inside], texture, at)


def ribbon(
    path: np.ndarray,
    half_widths: np.ndarray,
    texture: Texture,
    at: Vector = ORIGIN,
    turn: Vector = ORIGIN,
    side: Vector = (1.0, 0.0, 0.0),
) -> Part:
    """A thin sheet (leaf, curtain) along `path` (n, 3), `half_widths` (n,) to either side."""
    reach = np.asarray(half_widths)[:, None] * np.asarray(side, float)
    vertices = np.concatenate([path - reach, path + reach])
    start, count = np.arange(len(path) - 1), len(path)
    quads = np.stack([start, start + 1, start + 1 + count, start + count], axis=-1)
    return Part(vertices, _triangles(quads), texture, pose(at, turn))


def _joined_rings(rings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Closed rings (k, n, 3) of vertices, bottom to top, joined by faces, capped at both ends."""
    count, sides = rings.shape[:2]
    low, side = np.meshgrid(np.arange(count - 1), np.arange(sides), indexing="ij")
    first, second = low * sides + side, low * sides + (side + 1) % sides
    walls = _triangles(np.stack([first, second, second + sides, first + sides], -1).reshape(-1, 4))
    fan = np.stack([np.zeros(sides - 2, int), np.arange(1, sides - 1), np.arange(2, sides)], -1)
    top = fan + (count - 1) * sides
    vertices = rings.reshape(-1, 3)
    faces = np.concatenate([walls, fan[:, ::-1], top]).astype(np.int32)
    corners = vertices[faces]
    area = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    )
    return vertices, faces[area > 1e-10]


def _triangles(quads: np.ndarray) -> np.ndarray:
    """Quads (n, 4) of vertex indices as (2n, 3) int32 triangles."""
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32)
