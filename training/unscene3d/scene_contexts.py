"""Two views of the same points -> the contrastive loss of Contrastive Scene Contexts.

A point should look like itself in the other view, and unlike the others. The others are compared in
groups by where they lie as seen from the point, its scene contexts, so that a far wall does not
outweigh the near object beside it. Hou et al., "Exploring data-efficient 3D scene understanding
with contrastive scene contexts", CVPR 2021 (sections 3.2 and 3.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from unscene_ros.scene import InputError


@dataclass(frozen=True, slots=True)
class SceneContextsConfig:
    """The groups around each point: two shells of distance, each cut into sectors.

    Radii are those of the published training: 2 and 20 voxels of 2.5 cm.
    """

    temperature: float = 0.4  # of the similarities
    inner_radius_m: float = 0.05  # nearer points belong to no group: they may well look alike
    shell_radius_m: float = 0.5  # between the near shell and the far one
    azimuth_sectors: int = 2  # around the vertical
    elevation_sectors: int = 2  # from straight below to straight above

    def __post_init__(self) -> None:
        for name in ("azimuth_sectors", "elevation_sectors"):
            if getattr(self, name) < 1:
                raise InputError(f"contexts.{name}: expected 1 or more, got {getattr(self, name)}")
        if not 0.05 <= self.temperature < math.inf:  # exp(2 / 0.05) still fits a float32
            raise InputError(f"contexts.temperature: expected 0.05 or more, got {self.temperature}")
        if not 0 <= self.inner_radius_m <= self.shell_radius_m:
            raise InputError(
                f"contexts: expected 0 <= inner_radius_m <= shell_radius_m, got "
                f"{self.inner_radius_m} and {self.shell_radius_m}"
            )

    @property
    def count(self) -> int:
        """How many groups there are around a point."""
        return 2 * self.azimuth_sectors * self.elevation_sectors


def scene_contexts(positions: Tensor, config: SceneContextsConfig) -> Tensor:
    """(P, P) int64: in which group of point i the point j lies, `config.count` for none.

    positions (P, 3) float, metres, z up.
    """
    offsets = positions[None] - positions[:, None]
    distance = offsets.norm(dim=2)
    azimuth = torch.atan2(offsets[..., 1], offsets[..., 0]) / (2 * math.pi) + 0.5
    elevation = torch.atan2(offsets[..., 2], offsets[..., :2].norm(dim=2)) / math.pi + 0.5
    groups = (distance >= config.shell_radius_m).long()
    for share, sectors in (
        (azimuth, config.azimuth_sectors),
        (elevation, config.elevation_sectors),
    ):
        groups = groups * sectors + (share * sectors).long().clamp_(0, sectors - 1)
    groups[distance < config.inner_radius_m] = config.count
    return groups.fill_diagonal_(config.count)


def scene_contexts_loss(
    first: Tensor, second: Tensor, positions: Tensor, config: SceneContextsConfig
) -> Tensor:
    """The mean over points and groups of the cross-entropy that a point finds itself in its group.

    first, second (P, C): features of the same points in two views, of any length. positions (P, 3):
    of the points in the world, metres. A group without points costs nothing. No points give 0.
    """
    first, second = (functional.normalize(view.float(), dim=1) for view in (first, second))
    own = (first * second).sum(1, keepdim=True)
    # exp of how much more another point looks like the point than the point itself does.
    confusion = torch.exp((first @ second.T - own) / config.temperature)
    # One column more than groups for the pairs that belong to none.
    sums = confusion.new_zeros(len(first), config.count + 1)
    sums = sums.scatter_add(1, scene_contexts(positions, config), confusion)
    return torch.log1p(sums[:, :-1]).sum() / max(len(first) * config.count, 1)
