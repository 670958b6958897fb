"""Res16FPN18, a feature pyramid on sparse voxels: an encoder whose levels are summed.

In: voxels with colours and positions. Out: 128 features on the same voxels, the sum of what each of
the strides 2 to 16 says at the place of the voxel. Zhang et al., "GrowSP", CVPR 2023; Chen et al.,
"PointDC", ICCV 2023. Parameters carry the names of the published weights (see minkowski.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from unscene_ros.models.sparse_tensor import Level, SparseTensor
from unscene_ros.models.sparse_unet import ENCODER_CHANNELS, ResidualEncoder
from unscene_ros.scene import InputError

FEATURES = 128


@dataclass(frozen=True, slots=True)
class SparseFPNConfig:
    """What goes in, and how wide the first convolution is."""

    input_channels: int = 6
    stem_kernel_size: Literal[3, 5] = 5  # in voxels


class PointwiseLinear(nn.Module):
    """A linear layer on each voxel by itself, without a bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        return tensor.with_features(self.linear(tensor.features))


class SparseFPN(ResidualEncoder):
    """Res16FPN18."""

    output_channels = FEATURES

    def __init__(self, config: SparseFPNConfig) -> None:
        super().__init__(config.input_channels, config.stem_kernel_size, blocks=(2, 2, 2, 2))
        self.config = config
        for number, channels in enumerate(reversed(ENCODER_CHANNELS), start=1):
            self.add_module(f"delayer{number}", PointwiseLinear(channels, FEATURES))

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        _, *coarse = self.encode(tensor)
        features = tensor.features.new_zeros(())
        for number, level_features in enumerate(reversed(coarse), start=1):
            reduced = getattr(self, f"delayer{number}")(level_features)
            features = features + interpolate(reduced, tensor.level).features
        return tensor.with_features(features)


def interpolate(tensor: SparseTensor, level: Level) -> SparseTensor:
    """Trilinear interpolation of coarse features at the voxels of the finer `level`.

    A coarse voxel counts at its lowest corner; where a corner is empty, it has zeros, as
    MinkowskiEngine's interpolation does.
    """
    ancestors, current = torch.arange(len(level), device=tensor.features.device), level
    while current is not tensor.level:
        if current.stride >= tensor.level.stride:
            raise InputError(
                f"interpolate: expected a level below that of stride {tensor.level.stride}, got "
                f"one of stride {level.stride} that does not lead there"
            )
        current, kernel_map = current.coarser
        ancestors = kernel_map.opposite.rows.amax(1)[ancestors]

    corners = [13 + x + 3 * y + 9 * z for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    rows = current.neighbors(3).rows[:, corners][ancestors]
    offsets = (level.coordinates - current.coordinates[ancestors])[:, 1:] / current.stride
    x, y, z = torch.stack([1 - offsets, offsets]).to(tensor.features.dtype).unbind(2)
    weights = (x[:, None, None] * y[None, :, None] * z[None, None, :]).reshape(8, -1).T
    features = nn.functional.embedding_bag(
        rows.clamp(min=0),
        tensor.features,
        per_sample_weights=weights.masked_fill(rows < 0, 0),
        mode="sum",
    )
    return SparseTensor(features, level)
