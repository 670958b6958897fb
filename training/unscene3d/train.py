"""Scans with target masks -> a trained instance network: one round of training.

Self-training, fine-tuning and the supervised ceiling all train here; they differ in their targets.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.artifacts import Identity, file_hash
from training.distributed import is_first_process, wait_for_all
from training.learner import LearnerConfig, deciding_settings, learn
from training.run_folder import save_result
from training.unscene3d.losses import LossConfig, instance_loss, segment_projections
from training.unscene3d.recipe import UnScene3DConfig, recipe_hash
from training.unscene3d.samples import Batch, Sample, TrainingScene, join_samples, make_sample
from unscene_ros.models.checkpoint import load_checkpoint
from unscene_ros.models.instance_network import InstanceNetwork
from unscene_ros.models.sparse_unet import SparseUNet
from unscene_ros.scene import InputError
from unscene_ros.settings import to_dict

STEP = "train"
CHECKPOINT_FILE = "checkpoint.safetensors"
_SCENES_IN_MEMORY = 256
_MOST_TRIES = 20  # to draw a sample with targets


def training_identity(
    config: UnScene3DConfig,
    learner: LearnerConfig,
    targets: dict[str, str],
    initial: Path | None = None,
) -> Identity:
    """Of a training. targets: for each scan the hash of its surface, segments and masks."""
    settings = {
        "voxels": to_dict(config.voxels),
        "oversegmentation": to_dict(config.oversegmentation),
        "network": to_dict(config.network),
        "targets": to_dict(config.targets),
        "samples": to_dict(config.samples),
        "loss": to_dict(config.loss),
        "learner": deciding_settings(to_dict(learner)),
    }
    # One hash for all scans keeps run.json readable.
    inputs = {"targets": Identity("targets", {}, targets).hash}
    if initial:
        inputs["initial"] = file_hash(initial)
    return Identity(STEP, settings, inputs, config.seed)


def train(
    names: Sequence[str],
    load: Callable[[str], TrainingScene],
    config: UnScene3DConfig,
    learner: LearnerConfig,
    folder: Path,
    identity: Identity,
    initial: Path | None = None,
) -> Path:
    """The checkpoint of a network trained on the scans of these names; goes on where it ended.

    load: a scan with its targets, asked for by the loop's threads. initial: a checkpoint to start
    from, of the whole network or of a pretrained backbone. The seeds of recipe and learner both
    count. Under torchrun the first process writes, and all return when the checkpoint is there.
    Raises InputError when there is no scan and when the folder belongs to another training.
    """
    if not names:
        raise InputError("train: expected scans with masks to learn from, got none")
    learner = replace(learner, seed=config.seed + learner.seed)
    torch.manual_seed(learner.seed)
    network = InstanceNetwork(config.network)
    if initial:
        start_from(initial, network)
    about = json.loads(identity.to_json())
    del about["settings"]["learner"]  # `learn` adds it
    result = learn(
        network,
        _sampler(names, load, config),
        partial(_loss_of_samples, config=config.loss),
        learner,
        folder,
        sample_count=len(names),
        identity={"identity": identity.hash, **about},
    )
    path = folder / CHECKPOINT_FILE
    if is_first_process():
        origin = {
            "training": identity.hash,
            "scans": len(names),
            "steps": result.steps,
            "last_loss": result.loss,
            "training_seconds": round(result.seconds),
        }
        save_result(path, network, shared_settings(config), origin)
    wait_for_all()
    return path


def _sampler(
    names: Sequence[str], load: Callable[[str], TrainingScene], config: UnScene3DConfig
) -> Callable[[int, int], Sample]:
    """Samples by number of scan and visit; one without targets is replaced by another scan's."""
    cached = lru_cache(_SCENES_IN_MEMORY)(load)
    locks = [threading.Lock() for _ in names]  # so that no scan is read by two threads at once

    def sample(item: int, visit: int) -> Sample:
        seed = [config.seed, item, visit]
        others = np.random.default_rng(seed)
        for _ in range(_MOST_TRIES):
            with locks[item]:
                scene = cached(names[item])
            made = make_sample(scene, config.voxels, config.samples, seed)
            if len(made.targets):
                break
            item = int(others.integers(len(names)))
        return made

    return sample


def _loss_of_samples(
    model: nn.Module, samples: list[Sample], config: LossConfig
) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return batch_loss(model, join_samples(samples, device), config)


def batch_loss(network: nn.Module, batch: Batch, config: LossConfig) -> dict[str, Tensor]:
    """The loss of all layers' predictions and its parts."""
    counts = [len(sizes) for sizes in batch.segment_sizes]
    predictions = network(batch.tensor, batch.segment_of_voxel, counts)
    projections = None
    if config.kind == "projection":
        level = batch.tensor.level
        scenes = zip(
            level.coordinates[:, 1:].split(level.scene_sizes),
            batch.segment_of_voxel.split(level.scene_sizes),
            counts,
            strict=True,
        )
        projections = [
            segment_projections(cells, ids, count, config.projection_bin_voxels)
            for cells, ids, count in scenes
        ]
    return instance_loss(predictions, batch.targets, batch.segment_sizes, config, projections)


def start_from(path: Path, network: InstanceNetwork) -> None:
    """Loads the weights of the whole network, or of the backbone from a pretrained U-Net.

    Raises InputError for a checkpoint of another architecture.
    """
    checkpoint = load_checkpoint(path)
    part: nn.Module = network.backbone if isinstance(checkpoint.network, SparseUNet) else network
    weights = checkpoint.network.state_dict()
    weights = {name: value for name, value in weights.items() if not name.startswith("final.")}
    expected = {name: value.shape for name, value in part.state_dict().items()}
    if expected != {name: value.shape for name, value in weights.items()}:
        raise InputError(
            f"{path}: expected weights for {to_dict(network.config)}, got those of a "
            f"{type(checkpoint.network).__name__} with {to_dict(checkpoint.network.config)}"
        )
    part.load_state_dict(weights)


def shared_settings(config: UnScene3DConfig) -> dict[str, object]:
    """What the robot must do as training did, and from which settings the network came."""
    return {
        "voxels": to_dict(config.voxels),
        "oversegmentation": to_dict(config.oversegmentation),
        "recipe_hash": recipe_hash(config),
    }
