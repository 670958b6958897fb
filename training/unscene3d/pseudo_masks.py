"""Features of the segments -> the first pseudo masks of each scan, before any training.

Four methods: masked normalised cuts (the paper's, or strengthened), FreeMask (its alternative),
layered merging with boxes from the video (Part2Object), and the robot's training-free segmenter.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from training.artifacts import Identity, is_made, pack_masks, save_artifact
from training.command import exit_code, over_scans, step_parser
from training.learner import deciding_settings
from training.scans.library import Scan
from training.unscene3d.features import (
    SegmentFeatures,
    geometry_features_of,
    geometry_identity,
    image_features_of,
    image_identity,
    model_hash,
)
from training.unscene3d.freemask import FreeMaskConfig, freemask_masks
from training.unscene3d.layers import LayersConfig, boxes_of_segments, layer_masks
from training.unscene3d.masked_cuts import MaskedCutsConfig, masked_cut_masks
from training.unscene3d.segment_graph import segment_graph
from training.unscene3d.video_boxes import VideoBoxesConfig, video_boxes
from unscene_ros.image_features import ImageFeaturesConfig, load_image_features
from unscene_ros.keyframes import KeyframeConfig
from unscene_ros.scene import InputError, Mesh, Segments
from unscene_ros.settings import to_dict
from unscene_ros.training_free import TrainingFreeConfig, TrainingFreeSegmenter

if TYPE_CHECKING:
    from training.unscene3d.recipe import UnScene3DConfig

KIND, STEP = "masks", "pseudo_masks"
Masks = tuple[np.ndarray, np.ndarray]  # (K, S) bool and their scores (K,)


@dataclass(frozen=True, slots=True)
class PseudoMasksConfig:
    """Which method makes the masks; of the others nothing counts."""

    method: Literal["cuts", "freemask", "layers", "training_free"] = "cuts"
    cuts: MaskedCutsConfig = field(default_factory=MaskedCutsConfig)
    freemask: FreeMaskConfig = field(default_factory=FreeMaskConfig)
    layers: LayersConfig = field(default_factory=LayersConfig)
    video_boxes: VideoBoxesConfig = field(default_factory=VideoBoxesConfig)  # of the layers
    training_free: TrainingFreeConfig = field(default_factory=TrainingFreeConfig)


def find_pseudo_masks(scan: Scan, config: UnScene3DConfig) -> Identity:
    """The identity of a scan's pseudo masks; raises InputError when they have not been made."""
    identity = pseudo_masks_identity(scan, config)
    if not is_made(scan.result_path(KIND, identity, STEP), identity):
        raise InputError(
            f"scan {scan.name}: no pseudo masks of these settings: make them with python -m "
            f"training.unscene3d.pseudo_masks {scan.library} and the same options"
        )
    return identity


def pseudo_masks_identity(scan: Scan, config: UnScene3DConfig) -> Identity:
    """Of a scan's pseudo masks; raises InputError when what they are made from is not there."""
    chosen = config.pseudo_masks
    settings: dict[str, Any] = {chosen.method: to_dict(getattr(chosen, chosen.method))}
    inputs = {"mesh": scan.mesh_hash}
    modalities = _modalities(chosen)
    if "2d" in modalities:
        images = image_identity(scan, config.features.oversegmentation, config.features.images)
        inputs["2d"] = images.hash
    if "3d" in modalities:
        inputs["3d"] = geometry_identity(
            scan,
            config.features.oversegmentation,
            geometry_checkpoint(scan, config),
            config.features.geometry,
        ).hash
    looks_at: ImageFeaturesConfig | None = None
    if chosen.method == "layers":
        looks_at = config.features.images.features
        settings["video_boxes"] = to_dict(chosen.video_boxes)
        settings["image_features"] = to_dict(looks_at)
    if chosen.method == "training_free":
        looks_at = chosen.training_free.image_features
        settings["keyframes"] = to_dict(KeyframeConfig())
    if looks_at:
        settings["frame_step"] = config.features.images.frame_step
        inputs["frames"] = scan.frames_hash
        if looks_at.provider == "dino":
            inputs["model"] = model_hash(looks_at.model)
    return Identity(STEP, deciding_settings(settings), inputs)


def make_pseudo_masks(scan: Scan, config: UnScene3DConfig) -> None:
    """Writes the masks of a scan unless they are there; raises InputError when they cannot be made.

    Features that are missing are computed.
    """
    identity = pseudo_masks_identity(scan, config)
    path = scan.result_path(KIND, identity, STEP)
    if is_made(path, identity):
        return
    mesh = scan.mesh()
    method = config.pseudo_masks.method
    if method == "training_free":
        segments = scan.segments(config.pseudo_masks.training_free.oversegmentation, mesh)
        masks, scores = _training_free_masks(scan, mesh, segments, config)
    else:
        segments = scan.segments(config.features.oversegmentation, mesh)
        masks, scores = _masks_from_features(scan, mesh, segments, config)
    save_artifact(
        path,
        identity,
        masks=pack_masks(masks[:, segments.of_vertex]),
        scores=scores.astype(np.float32),
        sources=np.full(len(masks), method),
    )


def _masks_from_features(
    scan: Scan, mesh: Mesh, segments: Segments, config: UnScene3DConfig
) -> Masks:
    chosen = config.pseudo_masks
    features = segment_features_of(scan, config, _modalities(chosen))
    if chosen.method == "cuts":
        graph = segment_graph(mesh, segments, chosen.cuts.graph)
        return masked_cut_masks(features, graph, chosen.cuts)
    if chosen.method == "freemask":
        graph = segment_graph(mesh, segments, chosen.freemask.graph)
        return freemask_masks(features, graph, chosen.freemask)
    graph = segment_graph(mesh, segments, chosen.layers.graph)
    images = config.features.images
    provider = load_image_features(images.features)
    boxes = video_boxes(scan.frames(images.frame_step), provider, chosen.video_boxes)
    return layer_masks(features, graph, boxes_of_segments(mesh, segments), boxes, chosen.layers)


def _training_free_masks(
    scan: Scan, mesh: Mesh, segments: Segments, config: UnScene3DConfig
) -> Masks:
    """What the robot would show without any training."""
    segmenter = TrainingFreeSegmenter(config.pseudo_masks.training_free)
    keyframes = scan.keyframes(config.features.images.frame_step)
    instances = segmenter.segment(mesh, segments, keyframes)
    return instances.masks, instances.scores


def segment_features_of(
    scan: Scan, config: UnScene3DConfig, modalities: frozenset[str]
) -> dict[str, SegmentFeatures]:
    """The features of the modalities "2d" and "3d" of a scan's segments."""
    chosen, features = config.features, {}
    if "2d" in modalities:
        features["2d"] = image_features_of(scan, chosen.oversegmentation, chosen.images)
    if "3d" in modalities:
        checkpoint = geometry_checkpoint(scan, config)
        features["3d"] = geometry_features_of(
            scan, chosen.oversegmentation, checkpoint, chosen.geometry
        )
    return features


def geometry_checkpoint(scan: Scan, config: UnScene3DConfig) -> Path:
    """The network of the 3D features; raises InputError when it is not there."""
    path = scan.library / config.geometry_checkpoint
    if not path.exists():
        raise InputError(
            f"{path}: no network for 3D features: make it with python -m "
            f"training.unscene3d.pretrain {scan.library}, or name another with "
            "--set geometry_checkpoint=FILE"
        )
    return path


def _modalities(chosen: PseudoMasksConfig) -> frozenset[str]:
    if chosen.method == "training_free":
        return frozenset()
    affinity = getattr(chosen, chosen.method).affinity
    return frozenset(affinity.weights())


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 when a scan failed, 2 for a wrong argument."""
    from training.unscene3d.recipe import add_recipe_options, chosen_recipe  # it imports this file

    parser = step_parser(
        "training.unscene3d.pseudo_masks",
        "Find the first pseudo masks of a library's scans, and the features they need.",
    )
    add_recipe_options(parser)
    options = parser.parse_args(arguments)

    def run() -> int:
        work = partial(make_pseudo_masks, config=chosen_recipe(options))
        return over_scans(options, work, "pseudo masks")

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
