"""Finds the structure of a place (floor, ceiling, walls), which objects stand on and hang from.

Floor and ceiling are the outermost large level planes; a wall is a large upright plane with
nothing behind it. Cabinet fronts, doors of wardrobes and table tops are as flat and as large, but
there is surface of theirs behind or below them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unscene_ros.scene import InputError, Mesh

_LEVEL_BIN_M = 0.02
_WALL_BIN_M = 0.08
_WALL_DIRECTIONS = 90


@dataclass(frozen=True, slots=True)
class StructureConfig:
    """What counts as floor, ceiling and wall."""

    up: tuple[float, ...] = (0.0, 0.0, 1.0)  # against gravity, in the mesh's frame
    plane_tolerance_m: float = 0.05  # distance from a plane that still belongs to it
    level_share: float = 0.25  # floor, ceiling: of the largest level plane's area, at least
    min_wall_area_m2: float = 1.4
    min_wall_height_m: float = 1.2
    max_behind: float = 0.1  # surface behind a wall, as a share of its own area

    def __post_init__(self) -> None:
        if len(self.up) != 3 or not np.linalg.norm(self.up) > 0:
            raise InputError(f"structure.up: expected a direction of 3 numbers, got {self.up}")


def find_structure(mesh: Mesh, config: StructureConfig) -> np.ndarray:
    """(V,) bool, true on floor, ceiling and walls."""
    structure = np.zeros(len(mesh.vertices), bool)
    if not len(mesh.vertices):
        return structure
    up = np.array(config.up) / np.linalg.norm(config.up)
    areas = vertex_areas(mesh)
    for facing in (up, -up):
        structure |= _outermost_level_plane(mesh, areas, facing, config)
    for wall in _upright_planes(mesh, areas, ~structure, up, config):
        structure[wall] = True
    return structure


def vertex_areas(mesh: Mesh) -> np.ndarray:
    """(V,) float64 square metres: a third of each adjacent triangle; equal shares without faces."""
    count = len(mesh.vertices)
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
) -> np.ndarray:
    """(V,) bool of the large level plane that lies farthest back against its facing direction."""
    slope = mesh.normals @ facing
    height = mesh.vertices @ facing
    level = slope > 0.9
    if not level.any():
        return np.zeros(len(areas), bool)
    start = height[level].min()
    bins = ((height[level] - start) / _LEVEL_BIN_M).astype(np.int64)
    area_of_bin = np.bincount(bins, areas[level])
    area_around = np.convolve(area_of_bin, np.ones(7), "same")
    first = int(np.argmax(area_around >= config.level_share * area_around.max()))
    window = slice(max(first - 6, 0), first + 7)
    peak = window.start + int(np.argmax(area_of_bin[window]))
    plane_height = start + (peak + 0.5) * _LEVEL_BIN_M
    near = np.abs(height - plane_height) < config.plane_tolerance_m
    return near & (slope > np.cos(np.deg2rad(25)))


def _upright_planes(
    mesh: Mesh, areas: np.ndarray, free: np.ndarray, up: np.ndarray, config: StructureConfig
) -> list[np.ndarray]:
    """Vertex indices of each wall, largest plane first: seeds by voting over direction and offset,
    then a least-squares plane. Every plane found is taken off, whether it is a wall or not."""
    east = np.eye(3)[np.argmin(np.abs(up))]
    east = east - up * (up @ east)
    east /= np.linalg.norm(east)
    ground = np.stack([east, np.cross(up, east)], axis=1)
    places, facings = mesh.vertices @ ground, mesh.normals @ ground
    heights = mesh.vertices @ up

    angle = np.arctan2(facings[:, 1], facings[:, 0]) / (2 * np.pi)
    direction = np.round(angle * _WALL_DIRECTIONS).astype(np.int64) % _WALL_DIRECTIONS
    theta = direction * 2 * np.pi / _WALL_DIRECTIONS
    offset = places[:, 0] * np.cos(theta) + places[:, 1] * np.sin(theta)
    offset_bin = np.round(offset / _WALL_BIN_M).astype(np.int64)
    offset_bin -= offset_bin.min()
    shape = (_WALL_DIRECTIONS, int(offset_bin.max()) + 1)

    left = free & (np.abs(mesh.normals @ up) < 0.3)
    walls: list[np.ndarray] = []
    while True:
        rest = np.flatnonzero(left)
        ballots = direction[rest] * shape[1] + offset_bin[rest]
        areas_at = np.bincount(ballots, areas[rest], shape[0] * shape[1]).reshape(shape)
        votes = areas_at + np.roll(areas_at, 1, axis=0) + np.roll(areas_at, -1, axis=0)
        best, at = np.unravel_index(np.argmax(votes), shape)
        if votes[best, at] < config.min_wall_area_m2 / 4:
            return walls
        turn = (direction[rest] - best + _WALL_DIRECTIONS // 2) % _WALL_DIRECTIONS
        close = np.abs(turn - _WALL_DIRECTIONS // 2) <= 1
        seed = rest[close & (np.abs(offset_bin[rest] - at) <= 1)]
        members, distance = _fit_upright_plane(seed, places, facings, areas, left, config)
        left[seed] = False
        left[members] = False
        if _is_wall(members, distance, places, heights, areas, config):
            walls.append(members)


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
    """Whether a plane is large, tall, and has nothing behind it within an arm's length."""
    area = areas[members].sum()
    low, high = np.percentile(heights[members], [2, 98])
    if area < config.min_wall_area_m2 or high - low < config.min_wall_height_m:
        return False
    center = places[members].mean(axis=0)
    along = np.linalg.svd(places[members] - center, full_matrices=False)[2][0]
    position = (places - center) @ along
    left, right = np.percentile(position[members], [2, 98])
    inside = (position > left) & (position < right) & (heights > low) & (heights < high + 0.2)
    behind = inside & (distance < -0.12) & (distance > -0.8)
    return bool(areas[behind].sum() <= config.max_behind * area)
