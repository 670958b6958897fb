"""Time of a training step of the recipe `small`, which made the network in the package.

A step is forward, loss, backward and AdamW on a batch of fused rooms of training seeds, whose
masks are found without training; it is measured where learning would run, on a GPU if there is one.
Samples are made in threads meanwhile, so their time is a row of its own. There is no peer here:
those of the sparse convolutions, where the time goes, are in bench_sparse_convolution.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks import row, seconds
from benchmarks.bench_quality import fused
from training.distributed import Processes, choose_device
from training.optimization import Training
from training.scans.rooms import RoomConfig, make_room
from training.unscene3d.recipe import SMALL
from training.unscene3d.samples import Sample, TrainingScene, join_samples, make_sample
from training.unscene3d.train import batch_loss
from unscene_ros.models.instance_network import InstanceNetwork
from unscene_ros.pipeline import segment_mesh
from unscene_ros.training_free import TrainingFreeConfig, TrainingFreeSegmenter

SEEDS = (0, 5, 12, 7)  # rooms of different size and fullness
STEPS = 5


def make_scene(seed: int, config: RoomConfig) -> TrainingScene:
    """A room with the masks that the robot would find without a network."""
    room = make_room(seed, config)
    mesh, keyframes = fused(room.frames())
    segmenter = TrainingFreeSegmenter(TrainingFreeConfig(oversegmentation=SMALL.oversegmentation))
    segments, instances = segment_mesh(mesh, segmenter, keyframes)
    return TrainingScene(room.name, mesh, segments, instances.masks)


def loss(network: nn.Module, samples: list[Sample]) -> dict[str, Tensor]:
    """As in training."""
    device = next(network.parameters()).device
    return batch_loss(network, join_samples(samples, device), SMALL.loss)


def rows(steps: int = STEPS, config: RoomConfig | None = None) -> Iterator[dict]:
    """Medians over steps and samples, after one step that compiles."""
    scenes = [make_scene(seed, config or RoomConfig()) for seed in SEEDS]
    visits = iter(range(1_000_000))

    def sample() -> Sample:
        visit = next(visits)
        scene = scenes[visit % len(scenes)]
        return make_sample(scene, SMALL.voxels, SMALL.samples, (0, visit))

    sample()
    yield row("unscene3d", "training_sample_s", seconds(sample, steps), "s", steps)
    device = choose_device(SMALL.first_round.device)
    torch.manual_seed(0)
    network = InstanceNetwork(SMALL.network).to(device).train()
    training = Training(network, SMALL.first_round, Processes(0, 1, device))
    batches = [[sample() for _ in range(SMALL.first_round.batch_size)] for _ in range(steps + 1)]

    def step() -> None:
        training.advance(batches.pop(), loss)  # waits for the device: it returns the loss

    step()
    yield row("unscene3d", "training_step_s", seconds(step, steps), "s", steps)
