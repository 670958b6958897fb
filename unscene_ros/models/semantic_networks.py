"""Voxels -> classes and offsets (TWIST), or the features of a teacher (PointDC), for each voxel.

Each network is a backbone with the heads that it is trained with.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from unscene_ros.models.heads import ClassAndOffsetHeads, ClassesAndOffsets, ProjectionHead
from unscene_ros.models.sparse_fpn import SparseFPN, SparseFPNConfig
from unscene_ros.models.sparse_tensor import SparseTensor
from unscene_ros.models.sparse_unet import SparseUNetConfig, unet_backbone


@dataclass(frozen=True, slots=True)
class ClassAndOffsetConfig:
    """The U-Net, without a final layer, and how many classes it tells apart."""

    backbone: SparseUNetConfig = field(default_factory=SparseUNetConfig)
    classes: int = 20


class ClassAndOffsetNetwork(nn.Module):
    """The network that TWIST trains (Chu et al., CVPR 2022)."""

    def __init__(self, config: ClassAndOffsetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ClassAndOffsetConfig()
        self.backbone = unet_backbone(config.backbone)
        self.heads = ClassAndOffsetHeads(self.backbone.output_channels, config.classes)

    def forward(self, tensor: SparseTensor) -> ClassesAndOffsets:
        return self.heads(self.backbone(tensor))


@dataclass(frozen=True, slots=True)
class DistilledConfig:
    """The feature pyramid, and the features of its teacher."""

    backbone: SparseFPNConfig = field(default_factory=SparseFPNConfig)
    teacher_channels: int = 70


class DistilledNetwork(nn.Module):
    """The network that learns image features in PointDC (Chen et al., ICCV 2023)."""

    def __init__(self, config: DistilledConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DistilledConfig()
        self.backbone = SparseFPN(config.backbone)
        self.head = ProjectionHead(self.backbone.output_channels, config.teacher_channels)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """Features (N, teacher_channels) of unit length."""
        return tensor.with_features(self.head(self.backbone(tensor).features))
