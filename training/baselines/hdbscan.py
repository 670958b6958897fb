"""HDBSCAN on position, normal and colour of thinned mesh vertices.

Campello, Moulavi and Sander, "Density-Based Clustering Based on Hierarchical Density Estimates"
(PAKDD 2013), as scikit-learn computes it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from sklearn.cluster import HDBSCAN

from training.baselines.clusters import instances_of_clusters, spread, thin
from training.baselines.command import run
from unscene_ros.oversegmentation import OversegmentationConfig, oversegment
from unscene_ros.scene import Instances, Mesh, Segments


@dataclass(frozen=True, slots=True)
class HdbscanConfig:
    """Settings, chosen for the best AP50 on procedural rooms 100 to 109 fused at 4 cm.

    Tried: normals 0 to 3 m, colour 0 to 8 m, clusters of 15 to 100, samples 1 to 5, both
    selections, thinning 5 and 7 cm. What helped was much weight on colour and a far reach.
    """

    thinning_m: float = 0.07  # one vertex of each cube of this size is clustered
    max_points: int = 16_000  # the cubes grow until this many are left: the work is quadratic
    normal_weight_m: float = 0.15  # metres that one unit of normal difference counts for
    color_weight_m: float = 4.0  # metres that the step from black to white counts for
    min_cluster_size: int = 60  # thinned vertices
    min_samples: int = 3  # neighbours that make a thinned vertex's density
    reach_m: float = 0.25  # vertices join the nearest clustered vertex within this distance
    selection: Literal["eom", "leaf"] = "eom"  # excess of mass, or the leaves of the tree
    oversegmentation: OversegmentationConfig = field(default_factory=OversegmentationConfig)


def hdbscan_instances(
    mesh: Mesh, config: HdbscanConfig | None = None
) -> tuple[Segments, Instances]:
    """Density clusters as instances on segments, all of one score.

    Ranking by the mean membership of their vertices was tried: it puts tiny clusters first.
    """
    config = config or HdbscanConfig()
    segments = oversegment(mesh, config.oversegmentation)
    chosen = thin(mesh.vertices, config.thinning_m, config.max_points)
    if len(chosen) <= config.min_cluster_size:
        return segments, Instances.empty(segments.count)
    features = np.concatenate(
        [
            mesh.vertices[chosen],
            config.normal_weight_m * mesh.normals[chosen],
            config.color_weight_m * (mesh.colors[chosen] / 255.0) / np.sqrt(3),
        ],
        axis=1,
    )
    found = HDBSCAN(
        min_cluster_size=config.min_cluster_size,
        min_samples=config.min_samples,
        cluster_selection_method=config.selection,
        copy=True,
    ).fit(features)
    members = found.labels_ >= 0
    count = int(found.labels_.max(initial=-1)) + 1
    cluster_of_vertex = spread(
        mesh.vertices, chosen[members], found.labels_[members], config.reach_m
    )
    return segments, instances_of_clusters(cluster_of_vertex, np.ones(count), segments)


if __name__ == "__main__":
    sys.exit(run("hdbscan", __doc__, HdbscanConfig, hdbscan_instances))
