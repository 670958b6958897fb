"""Mesh -> Voxels for the networks, and from voxels back to vertices and segments.

The coordinates of a voxel are those of its points divided by its edge length, rounded down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from unscene_ros.scene import InputError, Mesh, Segments, Voxels

Channel = Literal["color", "normal", "position"]


@dataclass(frozen=True, slots=True)
class VoxelsConfig:
    """The size of voxels, and their features: three numbers for each of the channels.

    color     mean over the vertices of (rgb / 255 - color_mean) / color_spread; 0 where the mesh
              does not know its colours
    normal    mean over the vertices, of unit length
    position  coordinates, counted from the mean of all voxels
    """

    voxel_size_m: float = 0.02
    channels: tuple[Channel, ...] = ("color",)  # in this order
    color_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # red, green and blue in 0..1
    color_spread: tuple[float, float, float] = (1.0, 1.0, 1.0)


def make_voxels(mesh: Mesh, config: VoxelsConfig | None = None) -> Voxels:
    """The voxels that hold vertices, in ascending order of x, y, z.

    Raises InputError for settings without meaning and for a mesh too large for its voxels.
    """
    config = config or VoxelsConfig()
    _check(config)
    cells = np.floor(mesh.vertices.astype(np.float64) / config.voxel_size_m)
    coordinates, of_vertex = _unique_cells(cells, config.voxel_size_m)
    features = [_features(name, mesh, coordinates, of_vertex, config) for name in config.channels]
    return Voxels(coordinates, np.concatenate(features, axis=1, dtype=np.float32), of_vertex)


def part_of_voxels(voxels: Voxels, rows: np.ndarray, config: VoxelsConfig) -> Voxels:
    """Some of the voxels, of no vertices, as if there were no others; config made them."""
    features = voxels.features[rows]
    for index, channel in enumerate(config.channels):
        if channel == "position":
            features[:, 3 * index : 3 * index + 3] -= features[:, 3 * index : 3 * index + 3].mean(0)
    return Voxels(voxels.coordinates[rows], features, np.zeros(0, np.int32))


def to_vertices(values_of_voxel: np.ndarray, voxels: Voxels) -> np.ndarray:
    """(M, ...) values of the voxels -> (V, ...): each vertex takes those of its voxel."""
    if len(values_of_voxel) != len(voxels.coordinates):
        raise InputError(
            f"to_vertices: expected values of {len(voxels.coordinates)} voxels, "
            f"got {len(values_of_voxel)}"
        )
    return values_of_voxel[voxels.of_vertex]


def segment_of_voxel(voxels: Voxels, segments: Segments) -> np.ndarray:
    """(M,) int32: the segment of most of the vertices in each voxel, the smaller id of equals."""
    if len(voxels.of_vertex) != len(segments.of_vertex):
        raise InputError(
            f"segment_of_voxel: expected segments of {len(voxels.of_vertex)} vertices, "
            f"got {len(segments.of_vertex)}"
        )
    pairs = voxels.of_vertex.astype(np.int64) * segments.count + segments.of_vertex
    pairs, vertices = np.unique(pairs, return_counts=True)
    voxel, segment = pairs // max(segments.count, 1), pairs % max(segments.count, 1)
    most_first = np.lexsort((segment, -vertices, voxel))
    _, first = np.unique(voxel[most_first], return_index=True)
    return segment[most_first][first].astype(np.int32)


def _unique_cells(cells: np.ndarray, voxel_size_m: float) -> tuple[np.ndarray, np.ndarray]:
    """((M, 3) int32 distinct cells, (V,) int32 which one each of the cells (V, 3) is)."""
    if not len(cells):
        return np.zeros((0, 3), np.int32), np.zeros(0, np.int32)
    low, high = cells.min(axis=0), cells.max(axis=0)
    extent = high - low + 1
    if max(-low.min(), high.max()) >= 2**31 or extent.prod() >= 2**63:
        size_m = (extent * voxel_size_m).max()
        raise InputError(
            f"voxels: expected a mesh of about ±2^31 voxels of {voxel_size_m} m, got one that is "
            f"{size_m:.3g} m long: remove far outliers, or increase voxel_size_m"
        )
    box = tuple(int(edge) for edge in extent)
    keys = np.ravel_multi_index(tuple((cells - low).astype(np.int64).T), box)
    keys, of_vertex = np.unique(keys, return_inverse=True)
    distinct = np.stack(np.unravel_index(keys, box), axis=1) + low
    return distinct.astype(np.int32), of_vertex.astype(np.int32)


def _features(
    channel: Channel,
    mesh: Mesh,
    coordinates: np.ndarray,
    of_vertex: np.ndarray,
    config: VoxelsConfig,
) -> np.ndarray:
    """(M, 3)"""
    count = len(coordinates)
    if channel == "color":
        if not (mesh.colors != mesh.colors[:1]).any():
            return np.zeros((count, 3))
        means = _means(mesh.colors / 255, of_vertex, count)
        return (means - config.color_mean) / config.color_spread
    if channel == "normal":
        means = _means(mesh.normals, of_vertex, count)
        return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-6)
    return coordinates - coordinates.mean(axis=0) if count else np.zeros((0, 3))


def _means(values: np.ndarray, of_vertex: np.ndarray, count: int) -> np.ndarray:
    sums = np.stack([np.bincount(of_vertex, axis, count) for axis in values.T], axis=1)
    return sums / np.bincount(of_vertex, minlength=count)[:, None]


def _check(config: VoxelsConfig) -> None:
    if not 0 < config.voxel_size_m < np.inf:
        raise InputError(
            f"voxels.voxel_size_m: expected a positive size, got {config.voxel_size_m}"
        )
    if not config.channels:
        raise InputError("voxels.channels: expected color, normal or position, got none")
    if min(config.color_spread) <= 0:
        raise InputError(f"voxels.color_spread: expected positive, got {config.color_spread}")
