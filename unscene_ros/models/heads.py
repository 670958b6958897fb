"""The last layers of a network: classes and offsets of voxels, projections to unit length."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import normalize

from unscene_ros.models.sparse_layers import BatchNormalization, Convolution
from unscene_ros.models.sparse_tensor import SparseTensor


class ClassesAndOffsets(NamedTuple):
    """For each voxel: class logits (N, K), and metres to the centre of its object (N, 3)."""

    class_logits: SparseTensor
    offsets_m: SparseTensor


class ClassAndOffsetHeads(nn.Module):
    """The two branches of TWIST (Chu et al., CVPR 2022) on the features of a U-Net.

    Parameters carry the names of the network that it builds on (Hou et al., "Exploring
    data-efficient 3D scene understanding with contrastive scene contexts", CVPR 2021).
    """

    def __init__(self, input_channels: int, classes: int) -> None:
        super().__init__()
        self.final = Convolution(input_channels, classes, 1, bias=True)
        self.offsets_pre = Convolution(input_channels, input_channels, 1, bias=True)
        self.bntr_offset = BatchNormalization(input_channels)
        self.offsets = Convolution(input_channels, 3, 1, bias=True)

    def forward(self, tensor: SparseTensor) -> ClassesAndOffsets:
        hidden = self.bntr_offset(self.offsets_pre(tensor))
        hidden = hidden.with_features(hidden.features.relu())
        return ClassesAndOffsets(self.final(tensor), self.offsets(hidden))


class ProjectionHead(nn.Module):
    """Features (N, C) of voxels, points or pixels -> (N, D) of unit length, to be compared.

    hidden_channels: of the layer between; 0: one linear map without bias, as in PointDC (Chen et
    al., ICCV 2023). A row of zeros has no direction: it stays zero.
    """

    def __init__(self, input_channels: int, output_channels: int, hidden_channels: int = 0) -> None:
        super().__init__()
        if hidden_channels:
            self.layers = nn.Sequential(
                nn.Linear(input_channels, hidden_channels),
                nn.ReLU(),
                nn.Linear(hidden_channels, output_channels),
            )
        else:
            self.layers = nn.Sequential(nn.Linear(input_channels, output_channels, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        return normalize(self.layers(features), dim=1)
