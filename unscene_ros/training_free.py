"""Mesh + segments -> instances by geometry and colour: no truth, no learned weights.

Floor, ceiling and walls are taken away; what is left is merged by growing contrast and cut by
normalised cuts, which gives many overlapping hypotheses; these are scored and thinned out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from unscene_ros.contrast import ContrastConfig, measure_contrasts
from unscene_ros.hypotheses import (
    best_instances,
    borders_with_others,
    cut_hypotheses,
    merge_hypotheses,
    segment_moments,
)
from unscene_ros.image_features import (
    FeatureProvider,
    ImageFeaturesConfig,
    lift_maps,
    load_image_features,
    segment_features,
)
from unscene_ros.merging import merge_segments
from unscene_ros.normalized_cut import NormalizedCutConfig
from unscene_ros.oversegmentation import OversegmentationConfig
from unscene_ros.scene import Frame, Instances, Mesh, Segments
from unscene_ros.settings import check_ranges, within
from unscene_ros.structure import StructureConfig, find_structure, vertex_areas


@dataclass(frozen=True, slots=True)
class TrainingFreeConfig:
    """Settings of the training-free segmenter, chosen on procedural rooms of training seeds."""

    oversegmentation: OversegmentationConfig = field(
        # Finer than the default: a mask can be no better than the segments it is made of.
        default_factory=lambda: OversegmentationConfig(k=0.03, min_vertices=10)
    )
    structure: StructureConfig = field(default_factory=StructureConfig)
    image_features: ImageFeaturesConfig = field(default_factory=ImageFeaturesConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    cut: NormalizedCutConfig = field(default_factory=lambda: NormalizedCutConfig(max_cost=0.1))
    cut_sharpness: float = within(6.0, 0)  # affinity = exp(-sharpness * contrast)
    min_area_m2: float = within(0.04, 0)  # an object shows at least this much surface
    max_length_m: float = within(4.0, 0)  # and is no longer than this
    max_overlap: float = within(0.5, 0, 1)  # intersection over union of two instances, at most
    min_score: float = within(0.5, 0, 1)  # below it are only alternatives to better instances
    max_instances: int = within(200, 0)

    def __post_init__(self) -> None:
        check_ranges(self, "segmentation.training_free")


class TrainingFreeSegmenter:
    """Finds objects by geometry and colour alone; works from the first frame on."""

    def __init__(self, config: TrainingFreeConfig | None = None) -> None:
        self.config = config or TrainingFreeConfig()
        self.oversegmentation = self.config.oversegmentation
        self._features: FeatureProvider = load_image_features(self.config.image_features)
        self._map_of_keyframe: dict[Frame, np.ndarray] = {}  # a Frame is itself only

    def __str__(self) -> str:
        return "training-free"

    def segment(self, mesh: Mesh, segments: Segments, keyframes: Sequence[Frame] = ()) -> Instances:
        """Instances by falling score; above 0.5 they do not overlap.

        keyframes: pictures of this mesh; without them its own colours have to do.
        """
        if not segments.count:
            return Instances.empty(0)
        config = self.config
        structure = find_structure(mesh, config.structure)
        movable = _share(structure, segments) <= 0.5
        image_features = self._image_features(mesh, segments, keyframes)
        contrasts = measure_contrasts(mesh, segments, config.contrast, image_features)
        moments = segment_moments(mesh, segments, vertex_areas(mesh))
        tree = merge_segments(contrasts, movable)
        merged = merge_hypotheses(tree, movable, moments, config.min_area_m2)
        hypotheses = merged
        if config.min_score < 0.5:  # cuts are alternatives only
            areas = moments[:, 0]
            cut = cut_hypotheses(contrasts, movable, areas, config.cut_sharpness, config.cut)
            hypotheses = merged.joined(cut)
        return best_instances(
            hypotheses,
            moments,
            borders_with_others(hypotheses.masks, contrasts, movable),
            config.min_area_m2,
            config.max_length_m,
            config.max_overlap,
            config.min_score,
            config.max_instances,
        )

    def _image_features(self, mesh, segments, keyframes: Sequence[Frame]) -> np.ndarray | None:
        """(S, C) mean image feature of each segment; the maps of known keyframes are reused."""
        if not len(keyframes):
            return None
        known = self._map_of_keyframe
        maps = [known[f] if f in known else self._features(f.color) for f in keyframes]
        self._map_of_keyframe = dict(zip(keyframes, maps, strict=True))
        lifted = lift_maps(mesh, keyframes, maps, self.config.image_features)
        features, seen = segment_features(lifted, segments)
        return features if seen.any() else None


def _share(of_vertices: np.ndarray, segments: Segments) -> np.ndarray:
    """(S,) share of each segment's vertices that are marked."""
    marked = np.bincount(segments.of_vertex, of_vertices, minlength=segments.count)
    return marked / np.bincount(segments.of_vertex, minlength=segments.count)
