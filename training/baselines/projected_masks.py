"""Masks found in single pictures, projected to the mesh and merged over the pictures.

The masks are those that CutLER learns from (Wang et al., "Cut and Learn", CVPR 2023). Two masks of
different pictures are one instance when they share much of the surface.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from training.baselines.clusters import instances_of_clusters
from training.baselines.command import run_on_frames
from training.unscene3d.frame_masks import FrameMasksConfig, frame_masks
from training.unscene3d.video_boxes import merge_over_frames
from unscene_ros.image_features import (
    FeatureProvider,
    ImageFeaturesConfig,
    lift_maps,
    load_image_features,
)
from unscene_ros.oversegmentation import OversegmentationConfig, oversegment
from unscene_ros.scene import Frame, Instances, Mesh, Segments


@dataclass(frozen=True, slots=True)
class ProjectedMasksConfig:
    """Settings, chosen for the best AP50 on eight procedural training rooms fused at 4 cm.

    Tried, on hand-made features: similarities 0.15 to 0.8, 3 to 20 cuts, shares 0.3 to 0.9, 1 to 5
    pictures, coarse and fine segments.
    """

    frame_masks: FrameMasksConfig = field(
        default_factory=lambda: FrameMasksConfig(max_cuts=10, min_similarity=0.6)
    )
    image_features: ImageFeaturesConfig = field(
        default_factory=lambda: ImageFeaturesConfig(image_width=160)
    )
    oversegmentation: OversegmentationConfig = field(default_factory=OversegmentationConfig)
    min_shared: float = 0.7  # of the smaller one's vertices make two masks one instance
    min_frames: int = 2  # an instance is seen in at least so many pictures


def projected_mask_instances(
    mesh: Mesh, frames: Sequence[Frame], config: ProjectedMasksConfig | None = None
) -> tuple[Segments, Instances]:
    """Merged masks as instances on segments, all of one score; frames: pictures of the mesh.

    A vertex belongs to the instance whose masks hold it most often.
    """
    config = config or ProjectedMasksConfig()
    segments = oversegment(mesh, config.oversegmentation)
    sets, frame_of_set = vertices_of_masks(
        mesh, frames, load_image_features(config.image_features), config
    )
    label_of_set = merge_over_frames(sets, frame_of_set, np.arange(len(sets)), config.min_shared)
    cluster_of_vertex = np.full(len(mesh.vertices), -1)
    most_votes: np.ndarray = np.zeros(len(mesh.vertices), np.int64)
    count = 0
    for label in np.unique(label_of_set):
        members = np.flatnonzero(label_of_set == label)
        if len(np.unique(frame_of_set[members])) < config.min_frames:
            continue
        voted = np.concatenate([sets[member] for member in members])
        votes = np.bincount(voted, minlength=len(mesh.vertices))
        cluster_of_vertex[votes > most_votes] = count
        most_votes = np.maximum(most_votes, votes)
        count += 1
    return segments, instances_of_clusters(cluster_of_vertex, np.ones(count), segments)


def vertices_of_masks(
    mesh: Mesh, frames: Sequence[Frame], provider: FeatureProvider, config: ProjectedMasksConfig
) -> tuple[list[np.ndarray], np.ndarray]:
    """(the vertices that each mask of each frame shows, the number of its frame).

    A vertex is shown where the depth of the frame agrees with it.
    """
    sets, frame_of_set = [], []
    for number, frame in enumerate(frames):
        masks = frame_masks(provider(frame.color), config.frame_masks).masks
        layers = np.moveaxis(masks, 0, -1).astype(np.float32)
        shown = lift_maps(mesh, [frame], [layers], config.image_features)
        for share in shown.values.T:
            if (share > 0.5).any():
                sets.append(np.flatnonzero(share > 0.5))
                frame_of_set.append(number)
    return sets, np.array(frame_of_set, np.int64)


if __name__ == "__main__":
    sys.exit(
        run_on_frames("projected_masks", __doc__, ProjectedMasksConfig, projected_mask_instances)
    )
