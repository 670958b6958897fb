"""What robots have long done: remove the large planes, then group what is near each other.

Planes by RANSAC on oriented points (Schnabel, Wahl and Klein, "Efficient RANSAC for Point-Cloud
Shape Detection", 2007); Euclidean cluster extraction after Rusu, "Semantic 3D Object Maps" (2009).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from training.baselines.clusters import instances_of_clusters, spread, thin
from training.baselines.command import run
from unscene_ros.oversegmentation import OversegmentationConfig, oversegment
from unscene_ros.scene import Instances, Mesh, Segments
from unscene_ros.structure import vertex_areas


@dataclass(frozen=True, slots=True)
class EuclideanClustersConfig:
    """Settings, chosen for the best AP50 on procedural rooms 100 to 109 fused at 4 cm.

    Tried: planes from 1 to 4 m², 3 to 7 cm, 25° to 70°; tolerances 4.5 to 8 cm; areas 0.01 to
    0.08 m². The tolerance has to be above the longest common edge of the mesh.
    """

    plane_distance_m: float = 0.04  # vertices this near a plane may belong to it
    plane_normal_deg: float = 55.0  # if their normals differ by at most this angle
    min_plane_area_m2: float = 2.0  # planes down to this area are removed
    plane_trials: int = 300  # random planes tried for each one removed
    tolerance_m: float = 0.045  # points nearer than this belong to one cluster
    min_area_m2: float = 0.02  # smaller clusters are no objects
    max_points: int = 60_000  # larger meshes are thinned to this many
    seed: int = 0  # of the random planes
    oversegmentation: OversegmentationConfig = field(default_factory=OversegmentationConfig)


def euclidean_cluster_instances(
    mesh: Mesh, config: EuclideanClustersConfig | None = None
) -> tuple[Segments, Instances]:
    """Clusters of what is left without the large planes, as instances on segments."""
    config = config or EuclideanClustersConfig()
    segments = oversegment(mesh, config.oversegmentation)
    areas_m2 = vertex_areas(mesh)
    rest = np.flatnonzero(~large_planes(mesh, areas_m2, config))
    chosen = rest[thin(mesh.vertices[rest], config.tolerance_m / 3, config.max_points)]
    cluster_of_vertex = np.full(len(mesh.vertices), -1, np.int64)
    cluster_of_vertex[rest] = spread(
        mesh.vertices[rest],
        np.searchsorted(rest, chosen),
        _clusters(mesh.vertices[chosen], config.tolerance_m),
        config.tolerance_m,
    )
    cluster_of_vertex, count = _keep_large(cluster_of_vertex, areas_m2, config.min_area_m2)
    return segments, instances_of_clusters(cluster_of_vertex, np.ones(count), segments)


def large_planes(mesh: Mesh, areas_m2: np.ndarray, config: EuclideanClustersConfig) -> np.ndarray:
    """(V,) bool vertices on planes of at least the smallest area, found one after the other."""
    rng = np.random.default_rng(config.seed)
    on_plane = np.zeros(len(mesh.vertices), bool)
    least_cosine = np.cos(np.deg2rad(config.plane_normal_deg))
    while not on_plane.all():
        rest = np.flatnonzero(~on_plane)
        sample = rest[rng.integers(len(rest), size=min(len(rest), 4000))]
        tried = rng.choice(rest, config.plane_trials)
        share = areas_m2[rest].sum() / max(areas_m2[sample].sum(), 1e-12)
        support = _support(mesh, sample, tried, config.plane_distance_m, least_cosine)
        found = support @ areas_m2[sample] * share
        best = int(np.argmax(found))
        normal, point = _refined(mesh, sample[support[best]], mesh.normals[tried[best]])
        inlier = np.abs((mesh.vertices[rest] - point) @ normal) < config.plane_distance_m
        inlier &= np.abs(mesh.normals[rest] @ normal) > least_cosine
        if areas_m2[rest[inlier]].sum() < config.min_plane_area_m2:
            break
        on_plane[rest[inlier]] = True
    return on_plane


def _support(
    mesh: Mesh, sample: np.ndarray, tried: np.ndarray, distance_m: float, least_cosine: float
) -> np.ndarray:
    """(tried, sample) bool: which sampled vertices lie on the plane through each tried vertex."""
    normals = mesh.normals[tried]
    offsets = np.einsum("ij,ij->i", normals, mesh.vertices[tried])
    near = np.abs(normals @ mesh.vertices[sample].T - offsets[:, None]) < distance_m
    return near & (np.abs(normals @ mesh.normals[sample].T) > least_cosine)


def _refined(mesh: Mesh, inliers: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normal and point of the least-squares plane through the inliers."""
    points = mesh.vertices[inliers].astype(np.float64)
    if len(points) < 3:
        return normal, mesh.vertices[inliers].mean(axis=0)
    center = points.mean(axis=0)
    return np.linalg.svd(points - center, full_matrices=False)[2][2], center


def _clusters(points: np.ndarray, tolerance_m: float) -> np.ndarray:
    """(n,) number of the connected group of each point, points within the tolerance joined."""
    pairs = cKDTree(points).query_pairs(tolerance_m, output_type="ndarray")
    links = coo_matrix((np.ones(len(pairs), bool), pairs.T), (len(points), len(points)))
    return connected_components(links, directed=False)[1]


def _keep_large(
    cluster_of_vertex: np.ndarray, areas_m2: np.ndarray, least_m2: float
) -> tuple[np.ndarray, int]:
    """Clusters of at least this area, numbered anew from 0, and how many they are."""
    member = cluster_of_vertex >= 0
    count = int(cluster_of_vertex.max(initial=-1)) + 1
    areas = np.bincount(cluster_of_vertex[member], areas_m2[member], count)
    new = np.where(areas >= least_m2, np.cumsum(areas >= least_m2) - 1, -1)
    return np.append(new, -1)[cluster_of_vertex], int((areas >= least_m2).sum())


if __name__ == "__main__":
    sys.exit(
        run("euclidean_clusters", __doc__, EuclideanClustersConfig, euclidean_cluster_instances)
    )
