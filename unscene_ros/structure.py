"""Finds the structure of a place (floor, ceiling, walls), which objects stand on and hang from.

Floor and ceiling are the outermost large level planes; a wall is a large upright plane with
nothing behind it. The fronts of cabinets and wardrobes are as flat and as large, but their sides
lie behind them. Where two of these planes meet, the fused surface is rounded and belongs to both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unscene_ros.scene import InputError, Mesh
from unscene_ros.settings import check_ranges, within

_LEVEL_BIN_M = 0.02
_WALL_BIN_M = 0.08
_WALL_DIRECTIONS = 90
_CELL_M = 0.25
_BEHIND_M = (0.12, 0.8)  # nearer is noise of the wall itself, farther is another room


@dataclass(frozen=True, slots=True)
class StructureConfig:
    """What counts as floor, ceiling and wall."""

    up: tuple[float, ...] = (0.0, 0.0, 1.0)  # against gravity, in the mesh's frame
    plane_tolerance_m: float = within(0.05, 0)  # distance from a plane that still belongs to it
    # Floor, ceiling: of the largest level plane's area, at least.
    level_share: float = within(0.25, 0, 1)
    min_wall_area_m2: float = within(0.5, 0.001)
    min_wall_height_m: float = within(1.2, 0)
    # Share of a wall, in cells, that may have surface behind it.
    max_behind: float = within(0.16, 0, 1)
    corner_m: float = within(0.08, 0)  # nearer than this to two planes is their rounded corner

    def __post_init__(self) -> None:
        if len(self.up) != 3 or not 0 < np.linalg.norm(self.up) < np.inf:
            raise InputError(f"structure.up: expected a direction of 3 numbers, got {self.up}")
        check_ranges(self, "structure")


def find_structure(mesh: Mesh, config: StructureConfig) -> np.ndarray:
    """(V,) bool, true on floor, ceiling and walls."""
    structure = np.zeros(len(mesh.vertices), bool)
    if not len(mesh.vertices):
        return structure
    up = np.array(config.up) / np.linalg.norm(config.up)
    areas = vertex_areas(mesh)
    planes_near = np.zeros(len(mesh.vertices), np.int64)
    planes = [_outermost_level_plane(mesh, areas, facing, config) for facing in (up, -up)]
    level = np.logical_or(*(plane.members for plane in planes))
    planes += _walls(mesh, areas, ~level, up, config)
    for plane in planes:
        structure |= plane.members
        planes_near += np.abs(plane.distance) < config.corner_m
    return structure | (planes_near >= 2)


@dataclass(frozen=True, slots=True, eq=False)
class _Plane:
    """members (V,) bool, the vertices on it; distance (V,) metres of each vertex before it."""

    members: np.ndarray
    distance: np.ndarray


def vertex_areas(mesh: Mesh) -> np.ndarray:
    """(V,) float64 square metres: a third of each adjacent triangle; equal shares without faces."""
    count = len(mesh.vertices)
    if not count:
        return np.zeros(0)
    if not len(mesh.faces):
        # A cloud has no area of its own: what matters is what the points are to each other.
        return np.full(count, _cloud_spacing(mesh.vertices) ** 2)
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    thirds = np.linalg.norm(normals, axis=1) / 6
    return np.bincount(mesh.faces.ravel(), np.repeat(thirds, 3), minlength=count)


def _cloud_spacing(vertices: np.ndarray) -> float:
    """Typical distance between neighbouring points, from the cells of a 10 cm grid they fill."""
    cells = np.floor(vertices / 0.1).astype(np.int64)
    counts = np.unique(cells, axis=0, return_counts=True)[1]
    return 0.1 / float(np.sqrt(np.median(counts)))


def _outermost_level_plane(
    mesh: Mesh, areas: np.ndarray, facing: np.ndarray, config: StructureConfig
) -> _Plane:
    """The large level plane that lies farthest back against its facing direction."""
    slope = mesh.normals @ facing
    height = mesh.vertices @ facing
    level = slope > 0.9
    if not level.any():
        return _Plane(level, np.full(len(areas), np.inf))
    start = height[level].min()
    bins = ((height[level] - start) / _LEVEL_BIN_M).astype(np.int64)
    area_of_bin = np.bincount(bins, areas[level])
    area_around = np.convolve(area_of_bin, np.ones(7), "same")
    first = int(np.argmax(area_around >= config.level_share * area_around.max()))
    window = slice(max(first - 6, 0), first + 7)
    peak = window.start + int(np.argmax(area_of_bin[window]))
    plane_height = start + (peak + 0.5) * _LEVEL_BIN_M
    distance = height - plane_height
    members = (np.abs(distance) < config.plane_tolerance_m) & (slope > np.cos(np.deg2rad(25)))
    places = mesh.vertices @ _ground_axes(facing)
    # The underside of a table looks down like a ceiling, but its top lies behind it.
    behind = (distance < -0.01) & (distance > -_BEHIND_M[1]) & (slope < -0.5)
    if not members.any() or _share_behind(members, behind, *places.T) > config.max_behind:
        return _Plane(np.zeros(len(areas), bool), np.full(len(areas), np.inf))
    return _Plane(members, distance)


def _ground_axes(up: np.ndarray) -> np.ndarray:
    """(3, 2) two unit vectors at right angles to up and to each other."""
    east = np.eye(3)[np.argmin(np.abs(up))]
    east = east - up * (up @ east)
    east /= np.linalg.norm(east)
    return np.stack([east, np.cross(up, east)], axis=1)


def _walls(
    mesh: Mesh, areas: np.ndarray, free: np.ndarray, up: np.ndarray, config: StructureConfig
) -> list[_Plane]:
    """The walls, largest first: seeds by voting over direction and offset, then least squares.

    Every plane found is taken off, whether it is a wall or not. free (V,) bool: may be in a wall.
    """
    ground = _ground_axes(up)
    # Around the middle, so that the vote does not grow with the distance from the world's origin.
    places, facings = (mesh.vertices - mesh.vertices.mean(axis=0)) @ ground, mesh.normals @ ground
    heights = mesh.vertices @ up

    angle = np.arctan2(facings[:, 1], facings[:, 0]) / (2 * np.pi)
    direction = np.round(angle * _WALL_DIRECTIONS).astype(np.int64) % _WALL_DIRECTIONS
    theta = direction * 2 * np.pi / _WALL_DIRECTIONS
    offset = places[:, 0] * np.cos(theta) + places[:, 1] * np.sin(theta)
    offset_bin = np.round(offset / _WALL_BIN_M).astype(np.int64)
    offset_bin -= offset_bin.min()
    shape = (_WALL_DIRECTIONS, int(offset_bin.max()) + 1)

    left = free & (np.abs(mesh.normals @ up) < 0.3)
    walls: list[_Plane] = []
    while True:
        rest = np.flatnonzero(left)
        ballots = direction[rest] * shape[1] + offset_bin[rest]
        areas_at = np.bincount(ballots, areas[rest], shape[0] * shape[1]).reshape(shape)
        votes = areas_at + np.roll(areas_at, 1, axis=0) + np.roll(areas_at, -1, axis=0)
        best, at = np.unravel_index(np.argmax(votes), shape)
        if votes[best, at] < config.min_wall_area_m2 / 2:
            return walls
        turn = (direction[rest] - best + _WALL_DIRECTIONS // 2) % _WALL_DIRECTIONS
        close = np.abs(turn - _WALL_DIRECTIONS // 2) <= 1
        seed = rest[close & (np.abs(offset_bin[rest] - at) <= 1)]
        members, distance = _fit_upright_plane(seed, places, facings, areas, left, config)
        left[seed] = False
        left[members] = False
        if _is_wall(members, distance, places, heights, areas, config):
            on_wall = np.zeros(len(areas), bool)
            on_wall[members] = True
            walls.append(_Plane(on_wall, distance))


def _fit_upright_plane(seed, places, facings, areas, left, config):
    """(vertex indices on the plane, signed distance (V,) of every vertex in front of it)."""
    members = seed
    for _ in range(3):
        center = np.average(places[members], axis=0, weights=areas[members] + 1e-9)
        offsets = places[members] - center
        spread = (offsets * areas[members, None]).T @ offsets
        normal = np.linalg.eigh(spread)[1][:, 0]
        normal = normal * np.sign(normal @ (facings[members] * areas[members, None]).sum(axis=0))
        distance = (places - center) @ normal
        on_plane = (np.abs(distance) < config.plane_tolerance_m) & left
        on_plane &= facings @ normal > np.cos(np.deg2rad(30))
        if on_plane.sum() < 3:
            return members, distance
        members = np.flatnonzero(on_plane)
    return members, distance


def _is_wall(members, distance, places, heights, areas, config) -> bool:
    """Whether a plane is large, tall, and has nothing behind it within an arm's length.

    What lies behind is looked for cell by cell: the rectangle around a wall may reach past the
    corner of an L-shaped room.
    """
    low, high = np.percentile(heights[members], [2, 98])
    if areas[members].sum() < config.min_wall_area_m2 or high - low < config.min_wall_height_m:
        return False
    center = places[members].mean(axis=0)
    along = np.linalg.svd(places[members] - center, full_matrices=False)[2][0]
    position = (places - center) @ along
    behind = (distance < -_BEHIND_M[0]) & (distance > -_BEHIND_M[1])
    return _share_behind(members, behind, position, heights) <= config.max_behind


def _share_behind(members, behind, first, second) -> float:
    """Share of a plane's cells that have surface behind them.

    members: vertices on the plane, as indices or (V,) bool; behind (V,) bool; first, second (V,)
    metres along the plane.
    """
    column, line = (np.floor(along / _CELL_M).astype(np.int64) for along in (first, second))
    cell = (column << 32) + line
    return float(np.isin(np.unique(cell[members]), cell[behind]).mean())
