"""Res16UNet34C in the layers of other libraries: the peers of our own network.

`PeerUNet` has the structure and the parameter names of unscene_ros.models.sparse_unet, so one state
dict serves all; a library says how its layers are made and how the parameters enter them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from unscene_ros.models.sparse_unet import ARCHITECTURES, DOWN, STEM_CHANNELS, UP, SparseUNetConfig


class Library(Protocol):
    """Another library of sparse convolutions; its tensors are opaque to the network.

    Levels count strides: 0 for stride 1, 1 for stride 2, and so on.
    """

    def tensor(self, coordinates: Tensor, features: Tensor) -> Any:
        """One scene; the coordinate maps are made anew."""

    def features(self, tensor: Any) -> Tensor:
        """The features in the order in which the voxels came."""

    def convolution(
        self, inputs: int, outputs: int, size: int, level: int, bias: bool = False
    ) -> nn.Module: ...

    def down(self, channels: int, level: int) -> nn.Module:
        """Size 2³ and stride 2, from this level to the coarser one."""

    def up(self, inputs: int, outputs: int, level: int) -> nn.Module:
        """Its transposed one, to this level from the coarser one."""

    def normalization(self, channels: int) -> nn.Module: ...

    def relu(self, tensor: Any) -> Any: ...

    def add(self, first: Any, second: Any) -> Any: ...

    def concatenate(self, first: Any, second: Any) -> Any: ...

    def state(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Parameters in MinkowskiEngine's layout -> the library's own."""


class PeerUNet(nn.Module):
    """forward(coordinates (N, 4), features (N, C)) -> logits (N, classes)."""

    def __init__(self, library: Library, config: SparseUNetConfig) -> None:
        super().__init__()
        self.library = library
        channels, blocks = ARCHITECTURES[config.architecture]
        stem, inputs = config.stem_kernel_size, STEM_CHANNELS
        self.conv0p1s1 = library.convolution(config.input_channels, inputs, stem, level=0)
        self.bn0 = library.normalization(inputs)
        for step, name in enumerate(DOWN):
            self.add_module(name, library.down(inputs, level=step))
            self.add_module(f"bn{step + 1}", library.normalization(inputs))
            self._add_blocks(step, inputs, channels[step], blocks[step], level=step + 1)
            inputs = channels[step]
        for step, name in enumerate(UP, start=4):
            level, outputs = 7 - step, channels[step]
            self.add_module(name, library.up(inputs, outputs, level))
            self.add_module(f"bntr{step}", library.normalization(outputs))
            skipped = (STEM_CHANNELS, *channels)[level]
            self._add_blocks(step, outputs + skipped, outputs, blocks[step], level)
            inputs = outputs
        self.final = library.convolution(inputs, config.output_channels, 1, level=0, bias=True)

    def _add_blocks(self, step: int, inputs: int, outputs: int, count: int, level: int) -> None:
        blocks = [
            PeerBlock(self.library, inputs if first else outputs, outputs, level)
            for first in [True] + [False] * (count - 1)
        ]
        self.add_module(f"block{step + 1}", nn.Sequential(*blocks))

    def forward(self, coordinates: Tensor, features: Tensor) -> Tensor:
        library = self.library
        tensor = library.tensor(coordinates, features)
        tensor = library.relu(self.bn0(self.conv0p1s1(tensor)))
        skipped = []
        for step, name in enumerate(DOWN):
            skipped.append(tensor)
            tensor = library.relu(getattr(self, f"bn{step + 1}")(getattr(self, name)(tensor)))
            tensor = getattr(self, f"block{step + 1}")(tensor)
        for step, name in enumerate(UP, start=4):
            tensor = library.relu(getattr(self, f"bntr{step}")(getattr(self, name)(tensor)))
            tensor = library.concatenate(tensor, skipped.pop())
            tensor = getattr(self, f"block{step + 1}")(tensor)
        return library.features(self.final(tensor))


class PeerBlock(nn.Module):
    """Two 3³ convolutions beside a shortcut."""

    def __init__(self, library: Library, inputs: int, outputs: int, level: int) -> None:
        super().__init__()
        self.library = library
        self.conv1 = library.convolution(inputs, outputs, 3, level)
        self.norm1 = library.normalization(outputs)
        self.conv2 = library.convolution(outputs, outputs, 3, level)
        self.norm2 = library.normalization(outputs)
        self.downsample = None
        if inputs != outputs:
            shortcut = library.convolution(inputs, outputs, 1, level)
            self.downsample = nn.Sequential(shortcut, library.normalization(outputs))

    def forward(self, tensor: Any) -> Any:
        residual = tensor if self.downsample is None else self.downsample(tensor)
        tensor = self.library.relu(self.norm1(self.conv1(tensor)))
        tensor = self.norm2(self.conv2(tensor))
        return self.library.relu(self.library.add(tensor, residual))


class Minkowski:
    """MinkowskiEngine; it keeps the order of voxels that are unique."""

    def __init__(self) -> None:
        self.engine: Any = importlib.import_module("MinkowskiEngine")
        self._relu = self.engine.MinkowskiReLU(inplace=True)

    def tensor(self, coordinates: Tensor, features: Tensor) -> Any:
        return self.engine.SparseTensor(features, coordinates)

    def features(self, tensor: Any) -> Tensor:
        return tensor.F

    def convolution(
        self, inputs: int, outputs: int, size: int, level: int, bias: bool = False
    ) -> nn.Module:
        return self.engine.MinkowskiConvolution(inputs, outputs, size, bias=bias, dimension=3)

    def down(self, channels: int, level: int) -> nn.Module:
        return self.engine.MinkowskiConvolution(channels, channels, 2, stride=2, dimension=3)

    def up(self, inputs: int, outputs: int, level: int) -> nn.Module:
        transposed = self.engine.MinkowskiConvolutionTranspose
        return transposed(inputs, outputs, 2, stride=2, dimension=3)

    def normalization(self, channels: int) -> nn.Module:
        return self.engine.MinkowskiBatchNorm(channels, momentum=0.02)

    def relu(self, tensor: Any) -> Any:
        return self._relu(tensor)

    def add(self, first: Any, second: Any) -> Any:
        return first + second

    def concatenate(self, first: Any, second: Any) -> Any:
        return self.engine.cat(first, second)

    def state(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return state


class Spconv:
    """spconv 2 and what offers the same interface."""

    COARSEST = 16  # voxels of level 0 along one of level 4: boxes of whole ones lose no voxel

    def __init__(self, module: str) -> None:
        self.spconv: ModuleType = importlib.import_module(module)

    def tensor(self, coordinates: Tensor, features: Tensor) -> Any:
        low, high = (bound // self.COARSEST for bound in torch.aminmax(coordinates[:, 1:], dim=0))
        indices = coordinates.clone(memory_format=torch.contiguous_format)
        indices[:, 1:] -= low * self.COARSEST
        box = ((high - low + 1) * self.COARSEST).tolist()
        return self.spconv.SparseConvTensor(features, indices, box, batch_size=1)

    def features(self, tensor: Any) -> Tensor:
        return tensor.features

    def convolution(
        self, inputs: int, outputs: int, size: int, level: int, bias: bool = False
    ) -> nn.Module:
        key = f"level{level}_size{size}"
        return self.spconv.SubMConv3d(
            inputs, outputs, size, padding=size // 2, bias=bias, indice_key=key
        )

    def down(self, channels: int, level: int) -> nn.Module:
        return self.spconv.SparseConv3d(
            channels, channels, 2, stride=2, bias=False, indice_key=f"down{level}"
        )

    def up(self, inputs: int, outputs: int, level: int) -> nn.Module:
        return self.spconv.SparseInverseConv3d(
            inputs, outputs, 2, bias=False, indice_key=f"down{level}"
        )

    def normalization(self, channels: int) -> nn.Module:
        return _Normalization(channels)

    def relu(self, tensor: Any) -> Any:
        return tensor.replace_feature(tensor.features.relu_())

    def add(self, first: Any, second: Any) -> Any:
        return first.replace_feature(first.features + second.features)

    def concatenate(self, first: Any, second: Any) -> Any:
        return first.replace_feature(torch.cat([first.features, second.features], 1))

    def state(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Kernels (K³, C, D), x fastest -> (D, K, K, K, C), x first.

        Those of size 1³ (C, D) keep their order in memory: spconv reads a weight (D, 1, 1, 1, C) as
        (C, D) without transposing it.
        """
        converted = {}
        for name, value in state.items():
            if name.endswith(".kernel"):
                inputs, outputs = value.shape[-2:]
                if value.ndim == 2:
                    weight = value.reshape(outputs, 1, 1, 1, inputs)
                else:
                    size = round(len(value) ** (1 / 3))
                    kernel = value.reshape(size, size, size, inputs, outputs)
                    weight = kernel.permute(4, 2, 1, 0, 3)
                converted[name.removesuffix("kernel") + "weight"] = weight
            else:
                converted[name] = value.flatten() if name.endswith("final.bias") else value
        return converted


class _Normalization(nn.Module):
    """Batch normalisation of the features of a tensor of spconv."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels, momentum=0.02)

    def forward(self, tensor: Any) -> Any:
        return tensor.replace_feature(self.bn(tensor.features))
