"""Clusters of what is left without floor and walls, each refined by a graph cut on its features.

After Nunes et al., "Unsupervised Class-Agnostic Instance Segmentation of 3D LiDAR Data for
Autonomous Vehicles" (RA-L 2022): ground removal, HDBSCAN on positions, and a cut around each
cluster between what looks like its seed and what does not. Indoors the walls have to go, too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from sklearn.cluster import HDBSCAN

from training.baselines.clusters import spread, thin
from training.baselines.command import run_on_frames
from training.graph_cut import min_cut
from unscene_ros.contrast import ContrastConfig, Contrasts, measure_contrasts
from unscene_ros.image_features import (
    ImageFeaturesConfig,
    lift_to_mesh,
    load_image_features,
    segment_features,
)
from unscene_ros.oversegmentation import OversegmentationConfig, oversegment
from unscene_ros.scene import Frame, Instances, Mesh, Segments
from unscene_ros.structure import StructureConfig, find_structure, vertex_areas


@dataclass(frozen=True, slots=True)
class NunesConfig:
    """Settings, chosen for the best AP50 on eight procedural training rooms fused at 4 cm.

    Tried: clusters of 10 to 60, samples 1 to 15, both selections, thinning 4 to 7 cm, likeness -0.3
    to 0.9, membership 0.25 to 5, smoothness 0 to 20 cm, reach 5 to 30 cm, coarse and fine segments.
    Clusters decide; settings of the cut moved AP50 by at most 4 points, on hand-made features.
    """

    structure: StructureConfig = field(default_factory=StructureConfig)
    image_features: ImageFeaturesConfig = field(default_factory=ImageFeaturesConfig)
    oversegmentation: OversegmentationConfig = field(default_factory=OversegmentationConfig)
    thinning_m: float = 0.05  # one vertex of each cube of this size is clustered
    max_points: int = 16_000  # the cubes grow until this many are left: the work is quadratic
    min_cluster_size: int = 30  # thinned vertices
    min_samples: int = 5  # neighbours that make a thinned vertex's density
    selection: Literal["eom", "leaf"] = "eom"  # excess of mass, or the leaves of the tree
    reach_m: float = 0.15  # how far around a cluster its cut may reach
    min_likeness: float = 0.6  # cosine with the seed's feature that belongs to the cluster
    membership: float = 1.0  # how much of a cosine it counts for to be in the cluster
    smoothness_m: float = 0.05  # square metres that a metre of border costs between equals
    min_area_m2: float = 0.04  # smaller clusters are no objects


def nunes_instances(
    mesh: Mesh, frames: Sequence[Frame], config: NunesConfig | None = None
) -> tuple[Segments, Instances]:
    """Refined clusters as instances on segments, all of one score; frames: pictures of the mesh."""
    config = config or NunesConfig()
    segments = oversegment(mesh, config.oversegmentation)
    free = ~find_structure(mesh, config.structure)
    cluster_of_vertex = cluster(mesh, free, config)
    provider = load_image_features(config.image_features)
    lifted = lift_to_mesh(mesh, frames, provider, config.image_features)
    features = segment_features(lifted, segments)[0]
    masks = cut_clusters(mesh, segments, free, cluster_of_vertex, features, config)
    areas = np.bincount(segments.of_vertex, vertex_areas(mesh), segments.count)
    masks = masks[masks @ areas >= config.min_area_m2]
    scores, classes = np.ones(len(masks), np.float32), np.full(len(masks), -1, np.int32)
    return segments, Instances(masks, scores, classes)


def cluster(mesh: Mesh, free: np.ndarray, config: NunesConfig) -> np.ndarray:
    """(V,) density cluster of each free vertex (V,) bool by position, -1 for none."""
    rest = np.flatnonzero(free)
    cluster_of_vertex = np.full(len(free), -1, np.int64)
    chosen = thin(mesh.vertices[rest], config.thinning_m, config.max_points)
    if len(chosen) <= config.min_cluster_size:
        return cluster_of_vertex
    labels = (
        HDBSCAN(
            config.min_cluster_size,
            config.min_samples,
            cluster_selection_method=config.selection,
            copy=True,
        )
        .fit(mesh.vertices[rest[chosen]])
        .labels_
    )
    members = labels >= 0
    cluster_of_vertex[rest] = spread(
        mesh.vertices[rest], chosen[members], labels[members], 2 * config.thinning_m
    )
    return cluster_of_vertex


def cut_clusters(
    mesh: Mesh,
    segments: Segments,
    free: np.ndarray,
    cluster_of_vertex: np.ndarray,
    features: np.ndarray,
    config: NunesConfig,
) -> np.ndarray:
    """(K, S) bool the segments of each cluster after its cut, those that end up empty left out.

    free (V,) bool: may be in a cluster; cluster_of_vertex (V,), -1 none; features (S, C) of any
    kind. The energy is in square metres: area by likeness, and length of border by smoothness.
    """
    sizes = np.maximum(np.bincount(segments.of_vertex, minlength=segments.count), 1)
    usable = np.bincount(segments.of_vertex, free, segments.count) / sizes > 0.5
    areas = np.bincount(segments.of_vertex, vertex_areas(mesh), segments.count)
    centers = np.stack(
        [np.bincount(segments.of_vertex, axis, segments.count) / sizes for axis in mesh.vertices.T],
        axis=1,
    )
    vectors = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    borders = measure_contrasts(mesh, segments, ContrastConfig())
    masks = [np.zeros((0, segments.count), bool)]
    for number in range(int(cluster_of_vertex.max(initial=-1)) + 1):
        inside = cluster_of_vertex == number
        share = np.bincount(segments.of_vertex, inside, segments.count) / sizes
        low, high = mesh.vertices[inside].min(axis=0), mesh.vertices[inside].max(axis=0)
        around = ((centers >= low - config.reach_m) & (centers <= high + config.reach_m)).all(
            axis=1
        )
        nodes = np.flatnonzero(usable & (around | (share > 0.5)))
        kept = _cut(nodes, share, areas, vectors, borders, config)
        if len(kept):
            mask = np.zeros((1, segments.count), bool)
            mask[0, kept] = True
            masks.append(mask)
    return np.unique(np.concatenate(masks), axis=0)


def _cut(
    nodes: np.ndarray,
    share: np.ndarray,
    areas: np.ndarray,
    vectors: np.ndarray,
    borders: Contrasts,
    config: NunesConfig,
) -> np.ndarray:
    """Those of the nodes (n,), segments around a cluster, that are it; share (S,) are in it."""
    members = nodes[share[nodes] > 0.5]
    if not len(members):
        return members
    mean = areas[members] @ vectors[members]
    seed = members[np.argmax(vectors[members] @ mean)]
    likeness = vectors[nodes] @ vectors[seed] - config.min_likeness
    likeness += config.membership * (2 * share[nodes] - 1)
    gain = areas[nodes] * likeness
    number = np.full(len(areas), -1)
    number[nodes] = np.arange(len(nodes))
    inside = (number[borders.pairs] >= 0).all(axis=1)
    pairs = borders.pairs[inside]
    alike = np.maximum((vectors[pairs[:, 0]] * vectors[pairs[:, 1]]).sum(axis=1), 0)
    weights = config.smoothness_m * borders.contacts[inside] * alike
    return nodes[min_cut(np.maximum(gain, 0), np.maximum(-gain, 0), number[pairs], weights)]


if __name__ == "__main__":
    sys.exit(run_on_frames("nunes", __doc__, NunesConfig, nunes_instances))
