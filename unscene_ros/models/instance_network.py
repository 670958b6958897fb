"""Voxels and their segments -> instance masks over the segments: the network of UnScene3D.

A sparse U-Net makes feature maps, and a mask transformer reads masks from them (Schult et al.,
"Mask3D", ICRA 2023; Rozenberszki et al., "UnScene3D", CVPR 2024). The defaults are those of
UnScene3D's weights; Mask3D's have `backbone.stem_kernel_size` 5 and other classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unscene_ros.models.mask_transformer import (
    MaskPrediction,
    MaskTransformer,
    MaskTransformerConfig,
)
from unscene_ros.models.sparse_tensor import SparseTensor
from unscene_ros.models.sparse_unet import SparseUNetConfig, unet_backbone


@dataclass(frozen=True, slots=True)
class InstanceNetworkConfig:
    """The U-Net, without a final layer, and the decoder."""

    backbone: SparseUNetConfig = field(default_factory=SparseUNetConfig)
    decoder: MaskTransformerConfig = field(default_factory=MaskTransformerConfig)


class InstanceNetwork(nn.Module):
    """Raises InputError for settings that do not fit together."""

    def __init__(self, config: InstanceNetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or InstanceNetworkConfig()
        self.backbone = unet_backbone(config.backbone)
        self.decoder = MaskTransformer([*self.backbone.map_channels.values()], config.decoder)

    def forward(
        self,
        tensor: SparseTensor,
        segment_of_voxel: Tensor,
        segment_counts: Sequence[int],
        generator: torch.Generator | None = None,
    ) -> list[MaskPrediction]:
        """The predictions of all layers of the decoder; the last one is the result.

        segment_of_voxel (N,) in the order of the tensor's rows (see `in_row_order`), counted from 0
        in each scene. segment_counts: of each scene. generator: of the random choices in training,
        on the device of the tensor. Raises InputError for another number of channels and for
        segments that do not fit the voxels.
        """
        maps = [*self.backbone.feature_maps(tensor).values()]
        return self.decoder(maps, segment_of_voxel, segment_counts, generator)
