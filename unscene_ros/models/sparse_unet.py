"""Residual U-Nets on sparse voxels: Res16UNet14A, 14S, 18A and 34C, and MinkUNet18C.

In: voxels with a few channels, colours for instance. Out: features or class scores on the same
voxels. Four steps of stride 2 lead down and four back up, where each level joins what it had on the
way down. Choy et al., "4D spatio-temporal ConvNets: Minkowski convolutional neural networks", CVPR
2019. Parameters carry the names of the published weights (see minkowski.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from torch import nn

from unscene_ros.models.sparse_layers import (
    BatchNormalization,
    Convolution,
    TransposedConvolution,
    convolve_normalized,
)
from unscene_ros.models.sparse_tensor import SparseTensor, concatenate
from unscene_ros.scene import InputError

SparseUNetName = Literal[
    "Res16UNet14A", "Res16UNet18A", "Res16UNet34C", "MinkUNet18C", "Res16UNet14S"
]

STEM_CHANNELS = 32
DOWN = ("conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2")
UP = ("convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2")


class Stages(NamedTuple):
    """Channels and residual blocks of the stages 1 to 8: four on the way down, four up."""

    channels: tuple[int, ...]
    blocks: tuple[int, ...]


ENCODER_CHANNELS = (32, 64, 128, 256)
ARCHITECTURES: dict[SparseUNetName, Stages] = {
    "Res16UNet14A": Stages((*ENCODER_CHANNELS, 128, 128, 96, 96), (1, 1, 1, 1, 1, 1, 1, 1)),
    "Res16UNet18A": Stages((*ENCODER_CHANNELS, 128, 128, 96, 96), (2, 2, 2, 2, 2, 2, 2, 2)),
    "Res16UNet34C": Stages((*ENCODER_CHANNELS, 256, 128, 96, 96), (2, 3, 4, 6, 2, 2, 2, 2)),
    "MinkUNet18C": Stages((*ENCODER_CHANNELS, 192, 192, 128, 128), (2, 2, 2, 2, 2, 2, 2, 2)),
    # Ours, for processors: narrow where there are many voxels.
    "Res16UNet14S": Stages((*ENCODER_CHANNELS, 128, 96, 64, 48), (1, 1, 1, 1, 1, 1, 1, 1)),
}


@dataclass(frozen=True, slots=True)
class SparseUNetConfig:
    """Which U-Net."""

    architecture: SparseUNetName = "Res16UNet34C"
    input_channels: int = 3
    output_channels: int = 0  # of the final linear layer; 0: none, the last features come out
    stem_kernel_size: Literal[3, 5] = 3  # of the first convolution, in voxels; 5 in Mask3D


class ResidualBlock(nn.Module):
    """Two 3³ convolutions beside a shortcut (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = Convolution(inputs, outputs, 3)
        self.norm1 = BatchNormalization(outputs)
        self.conv2 = Convolution(outputs, outputs, 3)
        self.norm2 = BatchNormalization(outputs)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(
                Convolution(inputs, outputs, 1), BatchNormalization(outputs)
            )

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        residual = tensor
        if self.downsample is not None:
            residual = convolve_normalized(tensor, *self.downsample, relu=False)  # type: ignore[misc]
        tensor = convolve_normalized(tensor, self.conv1, self.norm1)
        return convolve_normalized(tensor, self.conv2, self.norm2, residual=residual)


class ResidualEncoder(nn.Module):
    """The way down, which U-Nets and feature pyramids share."""

    def __init__(self, input_channels: int, stem_kernel_size: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.input_channels = input_channels
        self.conv0p1s1 = Convolution(input_channels, STEM_CHANNELS, stem_kernel_size)
        self.bn0 = BatchNormalization(STEM_CHANNELS)
        inputs = STEM_CHANNELS
        for step, name in enumerate(DOWN):
            self.add_module(name, Convolution(inputs, inputs, 2, stride=2))
            self.add_module(f"bn{step + 1}", BatchNormalization(inputs))
            outputs = ENCODER_CHANNELS[step]
            self.add_module(f"block{step + 1}", residual_blocks(inputs, outputs, blocks[step]))
            inputs = outputs

    def encode(self, tensor: SparseTensor) -> list[SparseTensor]:
        """The features at strides 1, 2, 4, 8 and 16."""
        channels = tensor.features.shape[1]
        if channels != self.input_channels:
            raise InputError(
                f"{type(self).__name__}: expected {self.input_channels} channels per voxel, "
                f"got {channels}"
            )
        encoded = [convolve_normalized(tensor, self.conv0p1s1, self.bn0)]
        for number, name in enumerate(DOWN, start=1):
            down = convolve_normalized(
                encoded[-1], getattr(self, name), getattr(self, f"bn{number}")
            )
            encoded.append(getattr(self, f"block{number}")(down))
        return encoded


class SparseUNet(ResidualEncoder):
    """A U-Net of `ARCHITECTURES`."""

    def __init__(self, config: SparseUNetConfig) -> None:
        if config.architecture not in ARCHITECTURES:
            raise InputError(
                f"architecture: expected one of {', '.join(get_args(SparseUNetName))}, "
                f"got {config.architecture!r}"
            )
        channels, blocks = ARCHITECTURES[config.architecture]
        super().__init__(config.input_channels, config.stem_kernel_size, blocks[:4])
        self.config = config
        inputs = channels[3]
        for step, name in enumerate(UP, start=4):
            outputs, skipped = channels[step], (STEM_CHANNELS, *channels)[7 - step]
            self.add_module(name, TransposedConvolution(inputs, outputs))
            self.add_module(f"bntr{step}", BatchNormalization(outputs))
            stage = residual_blocks(outputs + skipped, outputs, blocks[step])
            self.add_module(f"block{step + 1}", stage)
            inputs = outputs
        self.final = None
        if config.output_channels:
            self.final = Convolution(inputs, config.output_channels, 1, bias=True)

    @property
    def map_channels(self) -> dict[int, int]:
        """The channels of each of `feature_maps`, by stride."""
        channels = ARCHITECTURES[self.config.architecture].channels
        return dict(zip((16, 8, 4, 2, 1), channels[3:], strict=True))

    @property
    def output_channels(self) -> int:
        """The channels that come out."""
        return self.config.output_channels or self.map_channels[1]

    def feature_maps(self, tensor: SparseTensor) -> dict[int, SparseTensor]:
        """The features of the way up by stride: 16, 8, 4, 2 and 1, before the final layer."""
        *skipped, features = self.encode(tensor)
        maps = {16: features}
        for step, name in enumerate(UP, start=4):
            skip = skipped.pop()
            up = convolve_normalized(
                features, getattr(self, name), getattr(self, f"bntr{step}"), level=skip.level
            )
            features = getattr(self, f"block{step + 1}")(concatenate(up, skip))
            maps[2 ** (7 - step)] = features
        return maps

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        features = self.feature_maps(tensor)[1]
        return features if self.final is None else self.final(features)


def unet_backbone(config: SparseUNetConfig) -> SparseUNet:
    """A U-Net whose features other layers use; raises InputError if it has a final layer."""
    if config.output_channels:
        raise InputError(
            f"backbone.output_channels: expected 0, got {config.output_channels}: what follows "
            "reads the last features, not those of a final layer"
        )
    return SparseUNet(config)


def residual_blocks(inputs: int, outputs: int, count: int) -> nn.Sequential:
    """Residual blocks in a row; the first one changes the number of channels."""
    following = (ResidualBlock(outputs, outputs) for _ in range(count - 1))
    return nn.Sequential(ResidualBlock(inputs, outputs), *following)
