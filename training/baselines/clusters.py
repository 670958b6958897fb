"""Clusters of mesh vertices or of thinned points as instances on segments."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from unscene_ros.scene import Instances, Segments


def thin(points: np.ndarray, spacing_m: float, most: int) -> np.ndarray:
    """Indices (n,) of one point of (P, 3) in each cube of `spacing_m`, in ascending order.

    The cubes grow until at most `most` points are left.
    """
    while True:
        cubes = np.floor(points / spacing_m).astype(np.int64)
        chosen = np.sort(np.unique(cubes, axis=0, return_index=True)[1])
        if len(chosen) <= most:
            return chosen
        spacing_m *= 1.02 * max(1.0, (len(chosen) / most) ** 0.5)  # points lie on surfaces


def spread(
    points: np.ndarray, chosen: np.ndarray, label_of_chosen: np.ndarray, reach_m: float
) -> np.ndarray:
    """(P,) label of the nearest chosen point within `reach_m` for each of the points, else -1."""
    if not len(chosen):
        return np.full(len(points), -1, np.int64)
    nearest = cKDTree(points[chosen]).query(points, distance_upper_bound=reach_m)[1]
    return np.append(label_of_chosen, -1)[nearest]


def instances_of_clusters(
    cluster_of_vertex: np.ndarray, scores: np.ndarray, segments: Segments
) -> Instances:
    """One instance per cluster: the segments most of whose vertices are in it.

    cluster_of_vertex (V,) int, -1 none; scores (clusters,). A cluster that wins no segment gives
    no instance.
    """
    votes = np.zeros((segments.count, len(scores) + 1), np.int64)
    np.add.at(votes, (segments.of_vertex, cluster_of_vertex), 1)  # -1 votes for the last column
    winner = np.argmax(votes, axis=1) if segments.count else np.zeros(0, np.int64)
    masks = winner[None, :] == np.arange(len(scores))[:, None]
    kept = masks.any(axis=1)
    count = int(kept.sum())
    return Instances(masks[kept], scores[kept].astype(np.float32), np.full(count, -1, np.int32))
