"""Tiny things to learn, and runs of them as processes of their own: to be killed, or by torchrun.

`python test/tiny_learning.py dense FOLDER CHECKPOINT_EVERY` learns `dense_run`, slowly;
`sparse FOLDER` learns `SPARSE_RUNS` and writes the final weights of each process beside them.
"""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from training.learner import LearnerConfig, LearningResult, learn
from unscene_ros.models.sparse_layers import BatchNormalization, Convolution, convolve_normalized
from unscene_ros.models.sparse_tensor import SparseTensor, sparse_tensor
from unscene_ros.scene import InputError

ITEMS = 10
STEPS = 60
EMPTY_ITEM = 3  # of the sparse samples


def dense_network() -> nn.Module:
    """With buffers and random numbers of its own."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1)
    )


def dense_sample(item: int, visit: int) -> torch.Tensor:
    rng = np.random.default_rng((item, visit))
    return torch.from_numpy(rng.standard_normal(4, np.float32)) + item / ITEMS


def dense_loss(network: nn.Module, samples: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    inputs = torch.stack(samples)
    error = (network(inputs)[:, 0] - inputs.sum(1)).abs().mean()
    return {"total": 2 * error, "error": error}


def dense_config(**changes: object) -> LearnerConfig:
    defaults: dict = {
        "steps": STEPS, "batch_size": 4, "learning_rate": 0.03, "checkpoint_every": 7,
        "device": "cpu", "workers": 2, "ahead": 3, "threads": 1,
    }  # fmt: skip
    return LearnerConfig(**defaults | changes)


def dense_run(folder: Path, pause_s: float = 0.0, **changes: object) -> dict[str, np.ndarray]:
    """The weights after learning; pause_s: to have time to kill it in between."""

    def slow_loss(network, samples):
        time.sleep(pause_s)
        return dense_loss(network, samples)

    network = dense_network()
    learn(
        network, dense_sample, slow_loss, dense_config(**changes), folder,
        sample_count=ITEMS, identity={"data": "dense"},
    )  # fmt: skip
    return weights(network)


def weights(network: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}


class SparseNetwork(nn.Module):
    """Two outputs, the second of which goes through a normalisation of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv1, self.norm1 = Convolution(3, 8, 3), BatchNormalization(8)
        self.conv2, self.norm2 = Convolution(8, 8, 3), BatchNormalization(8)
        self.unused = nn.Linear(2, 2)

    def forward(self, tensor: SparseTensor) -> tuple[SparseTensor, SparseTensor]:
        hidden = convolve_normalized(tensor, self.conv1, self.norm1)
        return hidden, convolve_normalized(hidden, self.conv2, self.norm2)


def sparse_sample(item: int, visit: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (N, 3) and features (N, 3) of a scene; one has no voxels."""
    rng = np.random.default_rng((item, visit))
    count = 0 if item == EMPTY_ITEM else 40
    return rng.integers(-4, 4, (count, 3)), rng.standard_normal((count, 3))


def sparse_loss(
    network: nn.Module, samples: list[tuple[np.ndarray, np.ndarray]]
) -> dict[str, torch.Tensor]:
    """The mean over the scenes; of an empty one a constant, whose gradient nobody has."""
    coordinates = np.concatenate(
        [np.insert(cells, 0, scene, axis=1) for scene, (cells, _) in enumerate(samples)]
    )
    features = np.concatenate([features for _, features in samples])
    tensor = sparse_tensor(
        torch.from_numpy(coordinates), torch.from_numpy(features), len(samples), backend="torch"
    )
    hidden, output = network(tensor)
    of_scenes = [
        (first.mean() + (second - 1).square().mean()) if len(first) else torch.tensor(3.0)
        for first, second in zip(hidden.of_scenes(), output.of_scenes(), strict=True)
    ]
    return {"total": torch.stack([loss.double() for loss in of_scenes]).mean()}


SPARSE_RUNS = {
    "adamw": LearnerConfig(
        steps=12, batch_size=2, learning_rate=0.01, checkpoint_every=5, device="cpu", threads=1
    ),
    "sgd": LearnerConfig(
        steps=8, batch_size=4, optimizer="sgd", schedule="poly", learning_rate=0.1,
        max_gradient_norm=0.5, checkpoint_every=5, device="cpu", threads=1,
    ),
}  # fmt: skip


def sparse_run(folder: Path, config: LearnerConfig) -> tuple[nn.Module, LearningResult]:
    network = SparseNetwork().double()
    result = learn(
        network, sparse_sample, sparse_loss, config, folder, sample_count=ITEMS, identity={}
    )
    return network, result


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if kind == "dense":
        dense_run(folder, pause_s=0.01, checkpoint_every=int(sys.argv[3]))
        return
    rank = os.environ["RANK"]
    for name, config in SPARSE_RUNS.items():
        network, _ = sparse_run(folder / name, config)
        np.savez(folder / f"{name}-{rank}.npz", **weights(network))
    try:
        sparse_run(folder / "uneven", replace(SPARSE_RUNS["sgd"], batch_size=3))
    except InputError as error:
        (folder / f"uneven-{rank}.txt").write_text(str(error))


if __name__ == "__main__":
    main()
