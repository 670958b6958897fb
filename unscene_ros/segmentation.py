"""Mesh + segments -> instances: nodes and replay call `load_segmenter(name).segment(...)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unscene_ros.consensus import ConsensusConfig, agree
from unscene_ros.inference import InferenceConfig, infer
from unscene_ros.oversegmentation import OversegmentationConfig
from unscene_ros.scene import Frame, InputError, Instances, Mesh, Segments
from unscene_ros.settings import from_dict
from unscene_ros.training_free import TrainingFreeConfig, TrainingFreeSegmenter
from unscene_ros.voxels import VoxelsConfig

TRAINING_FREE = "training-free"
SHIPPED = "default"  # the checkpoint that comes with the package
CONSENSUS = "consensus:"  # before the file of a checkpoint
SHIPPED_CHECKPOINT = Path(__file__).parent / "checkpoints" / "unscene3d_rooms.safetensors"


class Segmenter(Protocol):
    """What the pipeline needs of anything that finds instances; as a text it says what it is."""

    oversegmentation: OversegmentationConfig

    def segment(self, mesh: Mesh, segments: Segments, keyframes: Sequence[Frame] = ()) -> Instances:
        """Instances as masks over the segments."""
        ...


@dataclass(frozen=True, slots=True)
class SegmentationConfig:
    """Settings of all segmenters; what a network was trained with is in its file.

    Together, network and training-free segmenter hand over all that they find: their own min_score
    is for each of them alone.
    """

    training_free: TrainingFreeConfig = field(default_factory=TrainingFreeConfig)
    network: InferenceConfig = field(default_factory=InferenceConfig)
    consensus: ConsensusConfig = field(default_factory=ConsensusConfig)


@dataclass(frozen=True, slots=True)
class SharedConfig:
    """What training and the robot must do alike; it travels in the settings of a checkpoint."""

    voxels: VoxelsConfig = field(default_factory=VoxelsConfig)
    oversegmentation: OversegmentationConfig = field(default_factory=OversegmentationConfig)


def load_segmenter(name: str | Path, config: SegmentationConfig | None = None) -> Segmenter:
    """The segmenter of this name.

    training-free; default, the network in the package together with the training-free one; the path
    of a checkpoint, for that network alone; consensus:PATH, for it and the training-free one.
    Raises InputError for a name or file that does not exist, and for a file that does not hold a
    network for instances with the settings of its training.
    """
    config = config or SegmentationConfig()
    if str(name) == TRAINING_FREE:
        return TrainingFreeSegmenter(config.training_free)
    if str(name) == SHIPPED:
        if not SHIPPED_CHECKPOINT.exists():
            raise InputError(
                f"segmenter {SHIPPED}: {SHIPPED_CHECKPOINT} is not there: train it with the recipe "
                f"training/recipes/unscene3d_rooms.sh, or use {TRAINING_FREE}"
            )
        return ConsensusSegmenter(SHIPPED_CHECKPOINT, config)
    path = Path(str(name).removeprefix(CONSENSUS))
    if not path.exists():
        raise InputError(
            f"segmenter: expected {TRAINING_FREE}, {SHIPPED}, the file of a checkpoint or "
            f"{CONSENSUS}FILE, got '{name}', which is not there"
        )
    if str(name).startswith(CONSENSUS):
        return ConsensusSegmenter(path, config)
    return NetworkSegmenter(path, config.network)


class NetworkSegmenter:
    """Finds objects by a trained network; voxels and segments are those of its training.

    Raises InputError for a file that cannot be used, and without PyTorch.
    """

    def __init__(self, checkpoint_path: Path, config: InferenceConfig | None = None) -> None:
        try:
            import torch

            from unscene_ros.models.backends import choose_backend
            from unscene_ros.models.checkpoint import load_checkpoint
            from unscene_ros.models.device import choose_torch_device
            from unscene_ros.models.instance_network import InstanceNetwork
        except ImportError as error:
            raise InputError(
                f"segmenter {checkpoint_path}: networks need PyTorch: run `pip install torch "
                f"safetensors`, or use {TRAINING_FREE} ({error})"
            ) from error
        self.config = config or InferenceConfig()
        checkpoint = load_checkpoint(checkpoint_path, InstanceNetwork)
        shared = _shared_config(checkpoint_path, checkpoint.settings)
        self.voxels, self.oversegmentation = shared.voxels, shared.oversegmentation
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        device = choose_torch_device(self.config.device)
        self._network: Any = checkpoint.network.to(device)
        backend = choose_backend("auto", device).name
        self._text = f"network {checkpoint_path} on {device} with the {backend} backend"

    def __str__(self) -> str:
        return self._text

    def segment(self, mesh: Mesh, segments: Segments, keyframes: Sequence[Frame] = ()) -> Instances:
        """Instances by falling score; the network sees the mesh alone, not the keyframes."""
        return self.segment_scaled(mesh, segments, 1.0)

    def segment_scaled(self, mesh: Mesh, segments: Segments, scale: float) -> Instances:
        """What it finds when the scene is as many times as large; the settings stay in true metres.

        The pieces that a large map is looked at in are of the network's metres, as their size is
        what it was trained on.
        """
        config = self.config
        if scale != 1:
            mesh = replace(mesh, vertices=mesh.vertices * np.float32(scale))
            config = replace(
                config,
                min_area_m2=config.min_area_m2 * scale**2,
                part_gap_m=config.part_gap_m * scale,
            )
        return infer(self._network, self.voxels, mesh, segments, config)


class ConsensusSegmenter:
    """A network and the training-free segmenter, each of which knows what the other does not.

    Raises InputError as NetworkSegmenter does.
    """

    def __init__(self, checkpoint_path: Path, config: SegmentationConfig | None = None) -> None:
        config = config or SegmentationConfig()
        self.config = config.consensus
        self._network = NetworkSegmenter(checkpoint_path, replace(config.network, min_score=0.0))
        self._training_free = TrainingFreeSegmenter(replace(config.training_free, min_score=0.0))
        self.oversegmentation = self._network.oversegmentation

    def __str__(self) -> str:
        return f"{self._network}, with the {self._training_free} segmenter"

    def segment(self, mesh: Mesh, segments: Segments, keyframes: Sequence[Frame] = ()) -> Instances:
        """Instances by falling score; only the training-free segmenter looks at the keyframes."""
        config = self.config
        scales, share = config.network_scales, config.training_free_share
        return agree(
            [
                *(self._network.segment_scaled(mesh, segments, scale) for scale in scales),
                self._training_free.segment(mesh, segments, keyframes),
            ],
            [*[(1 - share) / len(scales)] * len(scales), share],
            np.bincount(segments.of_vertex, minlength=segments.count),
            config.max_overlap,
            config.min_score,
            config.max_instances,
        )


def _shared_config(path: Path, settings: dict[str, Any]) -> SharedConfig:
    sections = [section.name for section in fields(SharedConfig)]
    if not settings.keys() >= set(sections):
        raise InputError(
            f"{path}: expected the settings {' and '.join(sections)} of its training, got "
            f"{', '.join(settings) or 'none'}: take one that training.unscene3d wrote, or import "
            "the weights anew with --share"
        )
    try:
        return from_dict(SharedConfig, {section: settings[section] for section in sections})
    except InputError as error:
        raise InputError(f"{path}: {error}; was it written by another version?") from error
