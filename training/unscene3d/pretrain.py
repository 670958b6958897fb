"""Unlabelled RGB-D scans -> a sparse U-Net whose features tell things apart, by contrast.

Two overlapping frames are turned, stretched and recoloured, each in its own way. The network learns
to give a point the same features in both, and other points others (Hou et al., CVPR 2021). The
result serves as 3D features for pseudo masks and as the first weights of a network.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.command import chosen_scans, exit_code, step_parser
from training.distributed import is_first_process
from training.fan_out import failures_at_end
from training.learner import LearnerConfig, LearningResult, learn
from training.run_folder import save_result
from training.scans.library import Scan
from training.unscene3d.augmentation import AugmentationConfig, augment
from training.unscene3d.frame_pairs import (
    KIND,
    FramePairsConfig,
    find_all_pairs,
    find_matches,
    frame_surface,
    has_pairs,
    pairs_identity,
)
from training.unscene3d.scene_contexts import SceneContextsConfig, scene_contexts_loss
from unscene_ros.models.sparse_tensor import SparseTensor, batch_voxels
from unscene_ros.models.sparse_unet import SparseUNetConfig, unet_backbone
from unscene_ros.recordings.scan_folder import ScanFolder
from unscene_ros.scene import InputError, Mesh, Voxels
from unscene_ros.settings import to_dict
from unscene_ros.storage import prepare_output_folder
from unscene_ros.voxels import VoxelsConfig, make_voxels

STEP = "pretrain"
CANDIDATES = 4  # points looked up for each match wanted: some have no partner, some share voxels


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """The settings of the published training, but for the slower decay of its learning rate."""

    voxels: VoxelsConfig = field(default_factory=lambda: VoxelsConfig(voxel_size_m=0.025))
    network: SparseUNetConfig = field(default_factory=SparseUNetConfig)
    feature_channels: int = 32  # that are compared; a linear layer behind the network makes them
    pairs: FramePairsConfig = field(default_factory=FramePairsConfig)
    match_distance_m: float = 0.0375  # between one point's places in two frames
    matches: int = 4096  # compared in each pair of frames, at most
    augmentation: AugmentationConfig = field(
        default_factory=lambda: AugmentationConfig(
            mirror_probability=0.0,
            elastic_probability=0.0,
            scale_change=0.0,
            tilt_rad=math.pi / 64,
            color_probability=0.0,
        )
    )
    contexts: SceneContextsConfig = field(default_factory=SceneContextsConfig)
    learner: LearnerConfig = field(
        default_factory=lambda: LearnerConfig(
            steps=100_000,
            batch_size=32,
            optimizer="sgd",
            learning_rate=0.1,
            weight_decay=1e-4,
            schedule="poly",
        )
    )

    def __post_init__(self) -> None:
        for name in ("feature_channels", "match_distance_m", "matches"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: expected more than 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, eq=False)
class ViewPair:
    """Two views and the voxels in which they show the same.

    voxel_of_match (K, 2) int64, in the first and the second view; positions (K, 3) float32, world.
    """

    views: tuple[Voxels, Voxels]
    voxel_of_match: np.ndarray
    positions: np.ndarray


class ContrastiveNetwork(nn.Module):
    """A U-Net, and the linear layer that makes the features to compare, used in training only."""

    def __init__(self, config: SparseUNetConfig, feature_channels: int) -> None:
        super().__init__()
        self.backbone = unet_backbone(config)
        self.head = nn.Linear(self.backbone.output_channels, feature_channels)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        features = self.backbone(tensor)
        return features.with_features(self.head(features.features))


class PairSampler:
    """Pairs of overlapping frames of scans, by number, as views."""

    def __init__(self, scans: Sequence[Scan], config: PretrainConfig) -> None:
        """Raises InputError when there are no scans or when their pairs have not been found."""
        if not scans:
            raise InputError("pretrain: expected scans with overlapping frames, got none")
        self._config = config
        self._scans = list(scans)
        identities = [pairs_identity(scan, config.pairs) for scan in scans]
        self.inputs = {s.name: identity.hash for s, identity in zip(scans, identities, strict=True)}
        pairs = [
            scan.result(KIND, identity)["pairs"]
            for scan, identity in zip(scans, identities, strict=True)
        ]
        self._scan_of_pair = np.repeat(np.arange(len(pairs)), [len(of_scan) for of_scan in pairs])
        self._pairs = np.concatenate(pairs)
        self._folders: dict[int, ScanFolder] = {}

    def __len__(self) -> int:
        return len(self._pairs)

    def __call__(self, item: int, visit: int) -> ViewPair:
        """The same views for the same numbers; each visit draws others of the pair.

        Raises InputError for a picture that cannot be read any more.
        """
        rng = np.random.default_rng((self._config.learner.seed, item, visit))
        folder = self._folder(self._scan_of_pair[item])
        first, second = (
            frame_surface(folder.frame(int(number)), self._config.pairs)
            for number in rng.permutation(self._pairs[item])
        )
        views = (self._view(first, rng), self._view(second, rng))
        count = CANDIDATES * self._config.matches
        points, partners = find_matches(
            first.vertices, second.vertices, self._config.match_distance_m, count, rng
        )
        voxels = np.stack((views[0].of_vertex[points], views[1].of_vertex[partners]), axis=1)
        # Each voxel once, so that no point has a second self among the others.
        for view in (0, 1):
            once = np.sort(np.unique(voxels[:, view], return_index=True)[1])
            voxels, points = voxels[once], points[once]
        voxels, points = voxels[: self._config.matches], points[: self._config.matches]
        return ViewPair(views, voxels.astype(np.int64), first.vertices[points])

    def _folder(self, scan: int) -> ScanFolder:
        if scan not in self._folders:
            self._folders[scan] = ScanFolder(self._scans[scan].folder)
        return self._folders[scan]

    def _view(self, surface: Mesh, rng: np.random.Generator) -> Voxels:
        return make_voxels(augment(surface, rng, self._config.augmentation), self._config.voxels)


def contrastive_loss(
    network: nn.Module, batch: Sequence[ViewPair], config: SceneContextsConfig
) -> dict[str, Tensor]:
    """The mean loss of the pairs."""
    device = next(network.parameters()).device
    views = [view for pair in batch for view in pair.views]
    features = network(batch_voxels(views, device)).at_points()
    of_view = features.split([len(view.coordinates) for view in views])
    losses = []
    for pair, first, second in zip(batch, of_view[::2], of_view[1::2], strict=True):
        rows = torch.from_numpy(pair.voxel_of_match).to(device)
        positions = torch.from_numpy(pair.positions).to(device)
        losses.append(scene_contexts_loss(first[rows[:, 0]], second[rows[:, 1]], positions, config))
    return {"total": torch.stack(losses).mean()}


def pretrain(scans: Sequence[Scan], config: PretrainConfig, path: Path) -> LearningResult:
    """Trains a network on the scans' pairs, which must be there, and writes its checkpoint.

    The run, with its state and log, is kept beside the checkpoint, in a folder named after it: the
    same call goes on where an earlier one was stopped. Raises InputError as `learn` does.
    """
    sampler = PairSampler(scans, config)
    settings = to_dict(config)
    data = {name: section for name, section in settings.items() if name != "learner"}
    torch.manual_seed(config.learner.seed)
    network = ContrastiveNetwork(config.network, config.feature_channels)
    result = learn(
        network,
        sampler,
        partial(contrastive_loss, config=config.contexts),
        config.learner,
        path.with_name(f"{path.stem}-run"),
        sample_count=len(sampler),
        identity={"step": STEP, "settings": data, "inputs": sampler.inputs},
    )
    if is_first_process():
        origin = {"step": STEP, "training": settings, "scans": len(scans), "loss": result.loss}
        save_result(path, network.backbone, {"voxels": to_dict(config.voxels)}, origin)
    return result


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 when a scan failed, 2 for a wrong argument."""
    from training.unscene3d.recipe import add_recipe_options, chosen_recipe  # it imports this file

    parser = step_parser(
        "training.unscene3d.pretrain",
        "Learn 3D features from the overlapping frames of a library's scans. Under torchrun, find "
        "the pairs first: python -m training.unscene3d.frame_pairs.",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help="the checkpoint; default LIBRARY/pretrained.safetensors, where the recipe looks",
    )  # fmt: skip
    add_recipe_options(parser)
    options = parser.parse_args(arguments)

    def run() -> int:
        recipe = chosen_recipe(options)
        output = options.output or options.library / recipe.geometry_checkpoint
        scans, failures = chosen_scans(options), []
        prepare_output_folder(output.parent)
        pairs = recipe.pretrain.pairs
        if "WORLD_SIZE" not in os.environ:  # torchrun's processes would find them all at once
            failures = find_all_pairs(scans, pairs, options.workers, options.ray)
        usable = [scan for scan in scans if has_pairs(scan, pairs)]
        if usable or not failures:
            pretrain(usable, recipe.pretrain, output)
        return failures_at_end(failures)

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
