"""Scans -> features of their segments, from the pictures (2D) and from the geometry (3D).

2D: a provider's feature maps on every n-th frame, lifted to the mesh where the depth agrees. 3D: a
feature map of a pretrained sparse U-Net on the voxels of the mesh. Both are averaged over each
segment and kept as results of the scan. Rozenberszki et al., "UnScene3D", CVPR 2024 (section 3.1).
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.sparse import csr_array

from training.artifacts import Identity, file_hash, is_made, load_artifact, save_artifact
from training.command import exit_code, over_scans, step_parser
from training.scans.library import Scan
from unscene_ros.image_features import (
    ImageFeaturesConfig,
    lift_maps,
    load_image_features,
    segment_features,
)
from unscene_ros.models.checkpoint import Checkpoint, load_checkpoint
from unscene_ros.models.device import choose_torch_device
from unscene_ros.models.sparse_tensor import batch_voxels
from unscene_ros.models.sparse_unet import SparseUNet
from unscene_ros.oversegmentation import OversegmentationConfig
from unscene_ros.scene import InputError, Mesh, Segments
from unscene_ros.settings import from_dict, to_dict
from unscene_ros.voxels import VoxelsConfig, make_voxels

KIND = "features"  # of results of a scan


@dataclass(frozen=True, slots=True)
class SceneImageFeaturesConfig:
    """Features from the pictures of a scan."""

    frame_step: int = 20  # each that many-th frame is looked at
    features: ImageFeaturesConfig = field(default_factory=ImageFeaturesConfig)

    def __post_init__(self) -> None:
        if self.frame_step < 1:
            raise InputError(f"images.frame_step: expected 1 or more, got {self.frame_step}")


@dataclass(frozen=True, slots=True)
class GeometryFeaturesConfig:
    """Features from the voxels of a scan."""

    stride: Literal[1, 2, 4, 8, 16] = 2  # of the feature map on the way up; 2: UnScene3D's
    unit_length: bool = False  # features of each voxel are scaled to length 1 before the mean
    # Of the voxels, for checkpoints that do not name theirs, such as imported ones.
    voxels: VoxelsConfig = field(default_factory=VoxelsConfig)
    device: Literal["auto", "cuda", "cpu"] = "auto"


@dataclass(frozen=True, slots=True)
class FeaturesConfig:
    """Features of the segments of scans."""

    oversegmentation: OversegmentationConfig = field(default_factory=OversegmentationConfig)
    images: SceneImageFeaturesConfig = field(default_factory=SceneImageFeaturesConfig)
    geometry: GeometryFeaturesConfig = field(default_factory=GeometryFeaturesConfig)


@dataclass(frozen=True, slots=True, eq=False)
class SegmentFeatures:
    """values (S, C) float16; valid (S,) bool, whether they are the segment's own or were filled in
    from its neighbours; view_counts (S,) int32, views of all its vertices.
    """

    values: np.ndarray
    valid: np.ndarray
    view_counts: np.ndarray


def image_features_of(
    scan: Scan, oversegmentation: OversegmentationConfig, config: SceneImageFeaturesConfig
) -> SegmentFeatures:
    """The 2D features of a scan's segments, computed once.

    Raises InputError for a scan without a mesh or without a usable frame, and when no frame sees
    the mesh.
    """
    identity = image_identity(scan, oversegmentation, config)
    path = scan.result_path(KIND, identity, "image")
    if is_made(path, identity):
        return SegmentFeatures(**load_artifact(path))
    mesh = scan.mesh()
    segments = scan.segments(oversegmentation, mesh)
    # Both in step, so that one frame at a time is in memory.
    frames, shown = itertools.tee(scan.frames(config.frame_step))
    provider = _provider(config.features)
    maps = (provider(frame.color) for frame in shown)
    lifted = lift_maps(mesh, frames, maps, config.features)
    values, valid = segment_features(lifted, segments)
    if not valid.any():
        raise InputError(
            f"scan {scan.name}: no frame sees the mesh: expected poses in the world of the mesh"
        )
    views = np.bincount(segments.of_vertex, lifted.view_counts, minlength=segments.count)
    features = SegmentFeatures(_half(scan, values), valid, views.astype(np.int32))
    return _saved(path, identity, features)


def image_identity(
    scan: Scan, oversegmentation: OversegmentationConfig, config: SceneImageFeaturesConfig
) -> Identity:
    """Of what `image_features_of` keeps; where it is computed does not matter."""
    settings = to_dict(config)
    del settings["features"]["device"]
    inputs = _inputs(scan, oversegmentation) | {"frames": scan.frames_hash}
    if config.features.provider == "dino":
        inputs["model"] = model_hash(config.features.model)
    return Identity("image_features", settings, inputs)


def geometry_features_of(
    scan: Scan,
    oversegmentation: OversegmentationConfig,
    checkpoint: Path,
    config: GeometryFeaturesConfig,
) -> SegmentFeatures:
    """The 3D features of a scan's segments by the SparseUNet in `checkpoint`, computed once.

    Raises InputError for a scan without a mesh, for one without colours where the network reads
    them, and for a checkpoint of another network.
    """
    identity = geometry_identity(scan, oversegmentation, checkpoint, config)
    path = scan.result_path(KIND, identity, "geometry")
    if is_made(path, identity):
        return SegmentFeatures(**load_artifact(path))
    mesh = scan.mesh()
    segments = scan.segments(oversegmentation, mesh)
    loaded = _load(checkpoint)[0]
    voxels = _voxels_config(loaded, config)
    if "color" in voxels.channels and not (mesh.colors != mesh.colors[:1]).any():
        raise InputError(
            f"scan {scan.name}: its mesh has no colours, and the network in {checkpoint} reads "
            "them: pretrain one with voxels.channels=[normal]"
        )
    network: SparseUNet = loaded.network  # type: ignore[assignment]  # `_load` has checked it
    values = geometry_features(mesh, segments, network, voxels, config)
    seen = np.ones(segments.count, bool)
    features = SegmentFeatures(_half(scan, values), seen, seen.astype(np.int32))
    return _saved(path, identity, features)


def geometry_identity(
    scan: Scan,
    oversegmentation: OversegmentationConfig,
    checkpoint: Path,
    config: GeometryFeaturesConfig,
) -> Identity:
    """Of what `geometry_features_of` keeps; where it is computed does not matter."""
    loaded, checkpoint_hash = _load(checkpoint)
    settings = to_dict(config) | {"voxels": to_dict(_voxels_config(loaded, config))}
    del settings["device"]
    inputs = _inputs(scan, oversegmentation) | {"checkpoint": checkpoint_hash}
    return Identity("geometry_features", settings, inputs)


@torch.inference_mode()
def geometry_features(
    mesh: Mesh,
    segments: Segments,
    network: SparseUNet,
    voxels_config: VoxelsConfig,
    config: GeometryFeaturesConfig,
) -> np.ndarray:
    """(S, C) float32: the mean over each segment's vertices of the network's features there."""
    device = choose_torch_device(config.device)
    voxels = make_voxels(mesh, voxels_config)
    feature_map = network.to(device).feature_maps(batch_voxels([voxels], device))[config.stride]
    features = feature_map.features.float().cpu()
    if config.unit_length:
        features = torch.nn.functional.normalize(features, dim=1)
    # The row of each vertex, through its voxel; coarse rows are spread to all voxels below them.
    rows = feature_map.level.row_of_point.cpu().numpy()[voxels.of_vertex]
    shares = 1 / np.bincount(segments.of_vertex, minlength=segments.count)[segments.of_vertex]
    means = csr_array(
        (shares.astype(np.float32), (segments.of_vertex, rows)),
        shape=(segments.count, len(features)),
    )
    return means @ features.numpy()


def _inputs(scan: Scan, oversegmentation: OversegmentationConfig) -> dict[str, str]:
    segments = scan.segments_identity(oversegmentation)
    return {"mesh": scan.mesh_hash, "segments": segments.hash}


def _half(scan: Scan, values: np.ndarray) -> np.ndarray:
    """As float16; raises InputError for what does not fit."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise InputError(
            f"scan {scan.name}: expected features below 65504, got larger ones or NaN: the "
            "network has diverged or was made for other voxels"
        )
    return half


def _saved(path: Path, identity: Identity, features: SegmentFeatures) -> SegmentFeatures:
    save_artifact(
        path,
        identity,
        values=features.values,
        valid=features.valid,
        view_counts=features.view_counts,
    )
    return features


# Scans come one after the other, and all of them use the same provider and checkpoint.
_provider = lru_cache(maxsize=1)(load_image_features)


@lru_cache(maxsize=1)
def model_hash(model: str) -> str:
    """Of a model for image features: of the files of a local model; a hub id stands for itself."""
    files = sorted(path for path in Path(model).glob("*") if path.is_file())
    return Identity("model", {"id": model}, {path.name: file_hash(path) for path in files}).hash


def _load(path: Path) -> tuple[Checkpoint, str]:
    """The checkpoint and its hash; raises InputError unless it holds a SparseUNet."""
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return _load_unchanged(path, changed)


@lru_cache(maxsize=1)
def _load_unchanged(path: Path, _changed_ns: int) -> tuple[Checkpoint, str]:
    return load_checkpoint(path, SparseUNet), file_hash(path)


def _voxels_config(checkpoint: Checkpoint, config: GeometryFeaturesConfig) -> VoxelsConfig:
    """The voxels that the network was trained on."""
    if "voxels" in checkpoint.settings:
        return from_dict(VoxelsConfig, checkpoint.settings["voxels"], "voxels")
    return config.voxels


def make_features(
    scan: Scan, config: FeaturesConfig, images: bool, checkpoint: Path | None
) -> None:
    """Both kinds of features of one scan, as far as they are wanted and not there yet."""
    if images:
        image_features_of(scan, config.oversegmentation, config.images)
    if checkpoint is not None:
        geometry_features_of(scan, config.oversegmentation, checkpoint, config.geometry)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 when a scan failed, 2 for a wrong argument."""
    from training.unscene3d.recipe import add_recipe_options, chosen_recipe  # it imports this file

    parser = step_parser(
        "training.unscene3d.features", "Features of the segments of a library's scans."
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE",
        help="3D features too, by the SparseUNet in it (made by pretrain or import-weights)",
    )  # fmt: skip
    parser.add_argument("--no-images", action="store_true", help="no 2D features")
    add_recipe_options(parser)
    options = parser.parse_args(arguments)

    def run() -> int:
        config = chosen_recipe(options).features
        if options.checkpoint is not None:
            _load(options.checkpoint)  # a wrong one is said once, not for every scan
        work = partial(
            make_features,
            config=config,
            images=not options.no_images,
            checkpoint=options.checkpoint,
        )
        return over_scans(options, work, "features")

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
