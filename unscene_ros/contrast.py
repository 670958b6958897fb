"""How strongly two touching segments look like two different things.

Three cues, none learned: the crease between them (objects meet their support and each other in
concave creases: Stein et al., CVPR 2014), their colours, and the directions they face; and the
image features of keyframes where there are any. 1 is the contrast at which objects part.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import scipy.sparse
from scipy.spatial import cKDTree

from unscene_ros.oversegmentation import pool_over_segments
from unscene_ros.scene import Mesh, Segments
from unscene_ros.settings import check_ranges, within


@dataclass(frozen=True, slots=True)
class ContrastConfig:
    """The difference in each cue that alone makes a contrast of 1; chosen on rooms 100 to 107."""

    # Curvature of the crease; a convex one counts negative.
    concavity_per_m: float = within(20.0, 0.001)
    color_difference: float = within(36.0, 0.001)  # CIELAB distance of the mean colours
    normal_difference: float = within(1.9, 0.001)  # 1 - cos of the angle between the mean normals
    image_difference: float = within(2.0, 0.001)  # 1 - cos of the angle between the image features

    def __post_init__(self) -> None:
        check_ranges(self, "contrast")


@dataclass(frozen=True, slots=True, eq=False)
class Contrasts:
    """pairs (E, 2) int32 of touching segments; values (E,); contacts (E,) metres.

    A contact is the summed length of the edges that cross the border, some 2.4 times its own length
    on a mesh of triangles.
    """

    pairs: np.ndarray
    values: np.ndarray
    contacts: np.ndarray


def measure_contrasts(
    mesh: Mesh,
    segments: Segments,
    config: ContrastConfig,
    image_features: np.ndarray | None = None,
) -> Contrasts:
    """The contrast of every pair of touching segments; image_features (S, C) or None."""
    edges = mesh_edges(mesh, segments)
    sides = np.sort(segments.of_vertex[edges], axis=1)
    crossing = sides[:, 0] != sides[:, 1]
    keys = sides[crossing, 0].astype(np.int64) * segments.count + sides[crossing, 1]
    keys, pair_of_edge, contacts = np.unique(keys, return_inverse=True, return_counts=True)
    first, second = np.divmod(keys, max(segments.count, 1))

    curvature = smooth_curvature(mesh, edges)
    at_edge = curvature[edges[crossing]].mean(axis=1)
    values = -np.bincount(pair_of_edge, at_edge, minlength=len(keys)) / np.maximum(contacts, 1)
    values /= config.concavity_per_m

    colors = pool_over_segments(cielab(mesh.colors), segments)
    values += np.linalg.norm(colors[first] - colors[second], axis=1) / config.color_difference
    normals = _unit(pool_over_segments(mesh.normals, segments))
    values += _angle_term(normals, first, second) / config.normal_difference
    if image_features is not None and image_features.shape[1]:
        features = _unit(image_features)
        values += _angle_term(features, first, second) / config.image_difference
    pairs = np.stack([first, second], axis=1).astype(np.int32)
    return Contrasts(pairs, values, contacts * _mean_length(mesh, edges))


def mesh_edges(mesh: Mesh, segments: Segments) -> np.ndarray:
    """(n, 2) vertex pairs: each edge of the mesh once; for a cloud, pairs across segments."""
    if not len(mesh.faces):
        return _cloud_contacts(mesh, segments)
    edges = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    edges = np.sort(edges, axis=1).astype(np.int64)
    keys = np.unique(edges[:, 0] * len(mesh.vertices) + edges[:, 1])
    return np.stack(np.divmod(keys, len(mesh.vertices)), axis=1)


def _cloud_contacts(mesh: Mesh, segments: Segments) -> np.ndarray:
    """(n, 2) pairs of near points: each with its nearest eight, across touching segments only."""
    count = len(mesh.vertices)
    if count < 2:
        return np.zeros((0, 2), np.int64)
    neighbors = cKDTree(mesh.vertices).query(mesh.vertices, k=min(9, count))[1][:, 1:]
    edges = np.stack([np.repeat(np.arange(count), neighbors.shape[1]), neighbors.ravel()], axis=1)
    edges = np.unique(np.sort(edges, axis=1), axis=0)
    sides = np.sort(segments.of_vertex[edges], axis=1).astype(np.int64)
    touching = segments.neighbors.astype(np.int64) @ (segments.count, 1)
    known = np.isin(sides @ np.array((segments.count, 1)), touching)
    return edges[known | (sides[:, 0] == sides[:, 1])]


def _mean_length(mesh: Mesh, edges: np.ndarray) -> float:
    """Metres; the border between two segments is about this long for each edge that crosses it."""
    if not len(edges):
        return 0.0
    steps = mesh.vertices[edges[:, 1]] - mesh.vertices[edges[:, 0]]
    return float(np.linalg.norm(steps, axis=1).mean())


def smooth_curvature(mesh: Mesh, edges: np.ndarray) -> np.ndarray:
    """(V,) 1/m: how normals turn along the mesh edges, positive where convex.

    Normals and the result are averaged over two rings: a fused crease is rounded over that width.
    """
    count = len(mesh.vertices)
    ones = np.ones(2 * len(edges))
    rows, columns = np.concatenate([edges, edges[:, ::-1]]).T
    ring = scipy.sparse.coo_array((ones, (rows, columns)), shape=(count, count)).tocsr()
    ring = ring + scipy.sparse.eye_array(count, format="csr")
    ring = scipy.sparse.diags_array(1 / ring.sum(axis=1)) @ ring
    normals = _unit(ring @ (ring @ mesh.normals.astype(np.float64)))
    start, end = edges.T
    step = (mesh.vertices[end] - mesh.vertices[start]).astype(np.float64)
    turn = ((normals[end] - normals[start]) * step).sum(axis=1)
    bend = turn / np.maximum((step**2).sum(axis=1), 1e-8)
    degree = np.maximum(np.bincount(edges.ravel(), minlength=count), 1)
    curvature = np.bincount(edges.ravel(), np.repeat(bend, 2), minlength=count) / degree
    return ring @ (ring @ curvature)


def cielab(colors: np.ndarray) -> np.ndarray:
    """(V, 3) uint8 RGB as (V, 3) float32 CIELAB, L in 0..100."""
    if not len(colors):
        return np.zeros((0, 3), np.float32)
    return cv2.cvtColor(colors[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def _angle_term(vectors: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return 1 - (vectors[first] * vectors[second]).sum(axis=1)
