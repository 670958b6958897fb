"""Scans and masks -> what one step of training takes: voxels, their segments and target masks.

A scan is read once and kept; each visit gives it another augmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from training.unscene3d.augmentation import AugmentationConfig, augment
from unscene_ros.models.segment_pooling import in_row_order
from unscene_ros.models.sparse_tensor import SparseTensor, batch_voxels
from unscene_ros.scene import InputError, Mesh, Segments, Voxels
from unscene_ros.voxels import VoxelsConfig, make_voxels, part_of_voxels, segment_of_voxel


@dataclass(frozen=True, slots=True)
class SamplesConfig:
    """How a scan becomes a sample."""

    max_voxels: int = 120_000  # larger scenes are cut to the part around a random vertex
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    def __post_init__(self) -> None:
        if self.max_voxels < 1:
            raise InputError(f"samples.max_voxels: expected 1 or more, got {self.max_voxels}")


@dataclass(frozen=True, slots=True, eq=False)
class TrainingScene:
    """A scan to learn from; targets (K, S) bool over its segments."""

    name: str
    mesh: Mesh
    segments: Segments
    targets: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What the network is shown of one scan: segment_of_voxel (M,), targets (K, S) bool."""

    voxels: Voxels
    segment_of_voxel: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Samples as tensors; segments are counted from 0 in each scene.

    segment_sizes: voxels of each segment (S,), and targets (K, S), of each scene.
    """

    tensor: SparseTensor
    segment_of_voxel: Tensor
    segment_sizes: list[Tensor]
    targets: list[Tensor]


def make_sample(
    scene: TrainingScene, voxels_config: VoxelsConfig, config: SamplesConfig, seed: Sequence[int]
) -> Sample:
    """One look at a scan; the same seed gives the same one."""
    rng = np.random.default_rng(seed)
    mesh = augment(scene.mesh, rng, config.augmentation)
    voxels = make_voxels(mesh, voxels_config)
    of_voxel = segment_of_voxel(voxels, scene.segments)
    if len(of_voxel) > config.max_voxels:
        rows = _rows_around_one(voxels, config.max_voxels, rng)
        # What they lose, the voxel of each vertex, is of no use to training.
        voxels, of_voxel = part_of_voxels(voxels, rows, voxels_config), of_voxel[rows]
    # Segments without a voxel, lost in a crop or between others, are no longer there.
    there, of_voxel = np.unique(of_voxel, return_inverse=True)
    targets = scene.targets[:, there]
    return Sample(voxels, of_voxel.astype(np.int32), targets[targets.any(axis=1)])


def _rows_around_one(voxels: Voxels, count: int, rng: np.random.Generator) -> np.ndarray:
    """The `count` voxels nearest to a random one, seen from above; ascending."""
    places = voxels.coordinates[:, :2].astype(np.float64)
    distances = np.abs(places - places[rng.integers(len(places))]).max(axis=1)
    return np.sort(np.argpartition(distances, count)[:count])


def join_samples(samples: Sequence[Sample], device: torch.device) -> Batch:
    """One batch on the device."""
    tensor = batch_voxels([sample.voxels for sample in samples], device)
    ids = torch.from_numpy(np.concatenate([sample.segment_of_voxel for sample in samples]))
    counts = [sample.targets.shape[1] for sample in samples]
    sizes = [
        torch.from_numpy(np.bincount(sample.segment_of_voxel, minlength=count)).to(device)
        for sample, count in zip(samples, counts, strict=True)
    ]
    targets = [torch.from_numpy(sample.targets).to(device) for sample in samples]
    return Batch(tensor, in_row_order(ids.to(device), tensor.level), sizes, targets)
