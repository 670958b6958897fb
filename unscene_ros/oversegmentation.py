"""Mesh -> Segments: graph-based over-segmentation of a surface into small smooth patches.

Felzenszwalb and Huttenlocher, "Efficient graph-based image segmentation", IJCV 2004, on the edges
of the mesh, or on nearest-neighbour edges when there are no faces. Also here: means over segments
and which segments lie near each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numba import njit
from scipy.spatial import cKDTree

from unscene_ros.scene import InputError, Mesh, Segments
from unscene_ros.settings import check_ranges, within

SAME_PAINT_L1 = 0.05  # rule unscene3d: only edges below this RGB difference count as convex


@dataclass(frozen=True, slots=True)
class OversegmentationConfig:
    """How vertices are merged into segments.

    The rule weighs an edge between two vertices. `bend` is 1 - cos of the angle between their
    normals, squared where the surface is convex; `paint` is the L1 distance of RGB in 0..1:
      normal_color  bend + color_weight * paint; bend alone when the whole mesh has one colour
      scannet       bend, as in ScanNet's published segments (k 0.01 and 20 vertices)
      unscene3d     bend * paint, as in UnScene3D's first stage (k 0.005 and 50 vertices); patches
                    of exactly one colour never split
    The two published rules compute normals from the faces as those programs do, and keep small
    separate pieces as segments; normal_color takes the normals of the mesh.
    """

    rule: Literal["normal_color", "scannet", "unscene3d"] = "normal_color"
    # A segment of n vertices grows over edges up to its own weight + k / n.
    k: float = within(0.1, 1e-6)
    # Smaller segments join the neighbour across their lightest edge.
    min_vertices: int = within(20, 1)
    color_weight: float = within(0.3, 0)  # normal_color only: of paint beside bend
    # normal_color only: how near a separate piece below min_vertices must be to join a segment.
    attach_within_m: float = within(0.1, 0)
    cloud_neighbors: int = within(12, 1)  # without faces: edges go to this many nearest vertices
    # Without faces: longest edge, in median nearest-vertex distances.
    cloud_reach: float = within(4.0, 0.001)

    def __post_init__(self) -> None:
        check_ranges(self, "oversegmentation")


def oversegment(mesh: Mesh, config: OversegmentationConfig | None = None) -> Segments:
    """Partitions the vertices into segments numbered by their smallest vertex; deterministic.

    A mesh without faces is a point cloud. Every vertex gets a segment; only a small piece with
    nothing near it stays below `min_vertices`.
    """
    config = config or OversegmentationConfig()
    edges = _face_edges(mesh.faces) if len(mesh.faces) else _nearest_edges(mesh.vertices, config)
    weights = _edge_weights(mesh, edges, config)
    order = _ascending(weights)
    group_of_vertex = _merge(
        edges.take(order, axis=0),  # several times faster than edges[order]
        weights.take(order),
        len(mesh.vertices),
        np.float32(config.k),
        config.min_vertices,
    )
    of_vertex, count = _number_by_smallest_vertex(group_of_vertex)
    if config.rule == "normal_color":
        of_vertex, count = _attach_small_pieces(mesh.vertices, of_vertex, count, config)
    return Segments(of_vertex, _unique_pairs(of_vertex.take(edges), count), count)


def pool_over_segments(
    values: np.ndarray, segments: Segments, weights: np.ndarray | None = None
) -> np.ndarray:
    """Weighted mean of per-vertex values over each segment.

    values (V, C); weights (V,), at least 0, all 1 when None. Returns (S, C) float32; a segment
    whose weights are all 0 gets 0. Raises InputError when the lengths differ.
    """
    count = len(segments.of_vertex)
    if weights is None:
        weights = np.ones(count)
    for name, array, dimensions in (("values", values, 2), ("weights", weights, 1)):
        if array.ndim != dimensions or len(array) != count:
            raise InputError(
                f"pool_over_segments: expected {name} for {count} vertices, got {array.shape}"
            )
    return _weighted_means(
        values.astype(np.float32, copy=False),
        segments.of_vertex,
        segments.count,
        weights.astype(np.float32, copy=False),
    )


@njit(cache=True)
def _weighted_means(values, of_vertex, count, weights):
    sums = np.zeros((count, values.shape[1]))
    totals = np.zeros(count)
    for vertex in range(len(values)):
        segment, weight = of_vertex[vertex], weights[vertex]
        if weight > 0:
            totals[segment] += weight
            for channel in range(values.shape[1]):
                sums[segment, channel] += weight * values[vertex, channel]
    for segment in range(count):
        if totals[segment] > 0:
            sums[segment] /= totals[segment]
    return sums.astype(np.float32)


def segment_neighbors_within(mesh: Mesh, segments: Segments, distance_m: float) -> np.ndarray:
    """(E, 2) int32: pairs of segments that touch or have vertices at most `distance_m` apart.

    Each pair once, smaller id first, in ascending order.
    """
    # Cells a little larger than the distance, so that rounding cannot part near vertices.
    keys = _cell_keys(mesh.vertices, 1.001 * max(distance_m, 1e-6))
    order = np.argsort(keys, kind="stable")
    near = _near_pairs(
        keys[order], mesh.vertices[order], segments.of_vertex[order], np.float32(distance_m)
    )
    return _unique_pairs(np.concatenate((segments.neighbors, near)), segments.count)


def _cell_keys(points: np.ndarray, cell_m: float) -> np.ndarray:
    """(V,) int64 one number for each point's cubic cell: x, y, z with 21 bits each."""
    cells = (points - points.min(axis=0, initial=np.inf)) / cell_m
    x, y, z = np.minimum(cells, 2**21 - 1).astype(np.int64).T
    return x << 42 | y << 21 | z


@njit(cache=True)
def _near_pairs(keys, points, segment, distance):
    """(P, 2) int32 segments of close points, with few repeats; all in ascending key order.

    Cells that are neighbours in z follow each other, so the surroundings of a cell are a few
    ranges of points; they only move forward while the cells are visited in order.
    """
    rows = np.array([0, 1 << 21, (1 << 42) - (1 << 21), 1 << 42, (1 << 42) + (1 << 21)])
    starts, ends = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    latest = np.full(len(keys), -1)  # the partner found last for each segment
    first, second = [], []
    for i in range(len(keys)):
        for row in range(len(rows)):
            while starts[row] < len(keys) and keys[starts[row]] < keys[i] + rows[row] - 1:
                starts[row] += 1
            while ends[row] < len(keys) and keys[ends[row]] <= keys[i] + rows[row] + 1:
                ends[row] += 1
            for j in range(max(starts[row], i + 1), ends[row]):
                if segment[j] == segment[i] or segment[j] == latest[segment[i]]:
                    continue
                x, y, z = points[j] - points[i]
                if x * x + y * y + z * z <= distance * distance:
                    latest[segment[i]] = segment[j]
                    first.append(segment[i])
                    second.append(segment[j])
    return np.column_stack((np.array(first, np.int32), np.array(second, np.int32)))


def _face_edges(faces: np.ndarray) -> np.ndarray:
    """(3F, 2) int32: the edges of every face, in the order and direction of ScanNet's program.

    An edge is convex as seen from its first end, so directions belong to the rule.
    """
    return faces[:, [0, 1, 0, 2, 2, 1]].reshape(-1, 2)


def _nearest_edges(points: np.ndarray, config: OversegmentationConfig) -> np.ndarray:
    """(E, 2) int32: every point to its nearest points, without the edges that bridge gaps."""
    count = min(config.cloud_neighbors, len(points) - 1)
    if count < 1:
        return np.zeros((0, 2), np.int32)
    distances, nearest = cKDTree(points).query(points, count + 1, workers=-1)
    apart = distances[:, 1][distances[:, 1] > 0]  # coincident vertices say nothing of the spacing
    near = distances <= config.cloud_reach * (np.median(apart) if len(apart) else 0)
    near &= nearest != np.arange(len(points))[:, None]
    ends = np.argwhere(near)
    return np.column_stack((ends[:, 0], nearest[near])).astype(np.int32)


@njit(cache=True)
def _mean_face_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) float32: plain mean of the unit normals of a vertex's faces, not rescaled."""
    normals = np.zeros(vertices.shape, np.float32)
    face_counts = np.zeros(len(vertices), np.float32)
    for face in range(len(faces)):
        a, b, c = faces[face]
        ux, uy, uz = vertices[b] - vertices[a]
        vx, vy, vz = vertices[c] - vertices[a]
        x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        length = np.sqrt(x * x + y * y + z * z)
        if length > 0:
            for corner in (a, b, c):
                face_counts[corner] += 1
                normals[corner, 0] += x / length
                normals[corner, 1] += y / length
                normals[corner, 2] += z / length
    for vertex in range(len(vertices)):
        normals[vertex] /= max(face_counts[vertex], np.float32(1))
    return normals


def _edge_weights(mesh: Mesh, edges: np.ndarray, config: OversegmentationConfig) -> np.ndarray:
    """(E,) float32, at least 0: how different the two ends of each edge are."""
    published = config.rule != "normal_color"
    normals, color_weight = mesh.normals, config.color_weight
    if published and len(mesh.faces):
        normals = _mean_face_normals(mesh.vertices, mesh.faces)
    if published or not (mesh.colors != mesh.colors[:1]).any():
        color_weight = 0.0
    return _weights_by_rule(
        mesh.vertices,
        normals,
        mesh.colors,
        edges,
        config.rule == "unscene3d",
        np.float32(color_weight),
    )


@njit(cache=True)
def _weights_by_rule(vertices, normals, colors, edges, is_product, color_weight):
    weights = np.empty(len(edges), np.float32)
    for edge in range(len(edges)):
        a, b = edges[edge]
        cosine = rise = paint = np.float32(0)
        for axis in range(3):
            cosine += normals[a, axis] * normals[b, axis]
            rise += normals[b, axis] * (vertices[b, axis] - vertices[a, axis])
            paint += np.float32(abs(np.int32(colors[a, axis]) - np.int32(colors[b, axis])))
        paint /= np.float32(255)
        weight = max(np.float32(1) - cosine, np.float32(0))
        if is_product:
            weight *= paint
        if rise > 0 and not (is_product and paint >= SAME_PAINT_L1):
            weight *= weight
        if not is_product:
            weight += color_weight * paint
        weights[edge] = weight
    return weights


def _ascending(weights: np.ndarray) -> np.ndarray:
    """(E,) int32 the stable ascending order of float32 values that are not negative.

    Their bit patterns sort like the values. With the index in the lower half, one sort of plain
    integers, which numpy does several times faster than argsort, orders them and keeps ties.
    """
    keys = weights.view(np.uint32).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    return keys.astype(np.uint32).view(np.int32)  # the lower half


@njit(cache=True)
def _merge(edges, weights, vertex_count, k, min_vertices):
    """(V,) int32 one vertex that stands for each vertex's segment; edges in ascending order."""
    parent = np.arange(vertex_count, dtype=np.int32)
    size = np.ones(vertex_count, np.int32)
    limit = np.full(vertex_count, k, np.float32)
    refused = np.empty(len(edges), np.int32)
    refused_count = 0
    for edge in range(len(edges)):
        a, b = _root(parent, edges[edge, 0]), _root(parent, edges[edge, 1])
        if a != b:
            if weights[edge] <= min(limit[a], limit[b]):
                joined = _join(parent, size, a, b)
                limit[joined] = weights[edge] + k / size[joined]
            else:
                refused[refused_count] = edge
                refused_count += 1
    for edge in refused[:refused_count]:
        a, b = _root(parent, edges[edge, 0]), _root(parent, edges[edge, 1])
        if a != b and min(size[a], size[b]) < min_vertices:
            _join(parent, size, a, b)
    for vertex in range(vertex_count):
        parent[vertex] = _root(parent, vertex)
    return parent


@njit(cache=True)
def _root(parent, vertex):
    while parent[vertex] != vertex:
        parent[vertex] = parent[parent[vertex]]
        vertex = parent[vertex]
    return vertex


@njit(cache=True)
def _join(parent, size, a, b):
    """Hangs the smaller root under the larger and returns the larger."""
    if size[a] < size[b]:
        a, b = b, a
    parent[b] = a
    size[a] += size[b]
    return a


@njit(cache=True)
def _number_by_smallest_vertex(group_of_vertex):
    """((V,) int32 segment of each vertex, number of segments) from any group numbers below V."""
    segment_of_group = np.full(len(group_of_vertex), -1, np.int32)
    of_vertex = np.empty(len(group_of_vertex), np.int32)
    count = 0
    for vertex in range(len(group_of_vertex)):
        group = group_of_vertex[vertex]
        if segment_of_group[group] < 0:
            segment_of_group[group] = count
            count += 1
        of_vertex[vertex] = segment_of_group[group]
    return of_vertex, count


def _attach_small_pieces(
    vertices: np.ndarray, of_vertex: np.ndarray, count: int, config: OversegmentationConfig
) -> tuple[np.ndarray, int]:
    """Renumbered segments in which small ones have joined the nearest large one within reach."""
    small = (np.bincount(of_vertex, minlength=count) < config.min_vertices)[of_vertex]
    if not small.any() or small.all():
        return of_vertex, count
    # Unbalanced: built several times faster, and only a few vertices ask.
    large = cKDTree(vertices[~small], balanced_tree=False, compact_nodes=False)
    distance, nearest = large.query(
        vertices[small], distance_upper_bound=config.attach_within_m, workers=-1
    )
    closest_last = np.argsort(-distance, kind="stable")
    closest_last = closest_last[np.isfinite(distance[closest_last])]
    target = np.arange(count, dtype=np.int32)
    target[of_vertex[small][closest_last]] = of_vertex[~small][nearest[closest_last]]
    return _number_by_smallest_vertex(target[of_vertex])


def _unique_pairs(pairs: np.ndarray, count: int) -> np.ndarray:
    """(E, 2) int32: each pair of two different ids below `count` once, smaller id first."""
    first, second = pairs[pairs[:, 0] != pairs[:, 1]].astype(np.int64).T
    keys = np.unique(np.minimum(first, second) * count + np.maximum(first, second))
    return np.column_stack((keys // max(count, 1), keys % max(count, 1))).astype(np.int32)
