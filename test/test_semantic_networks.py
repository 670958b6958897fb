"""Networks with heads for each voxel: what they join, and any number of voxels."""

import pytest
import torch
from sparse_voxels import random_voxels

from unscene_ros.models.semantic_networks import (
    ClassAndOffsetConfig,
    ClassAndOffsetNetwork,
    DistilledConfig,
    DistilledNetwork,
)
from unscene_ros.models.sparse_fpn import SparseFPNConfig
from unscene_ros.models.sparse_unet import SparseUNetConfig
from unscene_ros.scene import InputError


def class_and_offset_network() -> ClassAndOffsetNetwork:
    config = ClassAndOffsetConfig(SparseUNetConfig("Res16UNet14A"), classes=4)
    return ClassAndOffsetNetwork(config).eval()


def distilled_network() -> DistilledNetwork:
    config = DistilledConfig(SparseFPNConfig(input_channels=3), teacher_channels=7)
    return DistilledNetwork(config).eval()


@pytest.mark.parametrize("count", [0, 1, 50])
def test_classes_and_offsets_come_from_the_features_of_the_backbone(count):
    network, voxels = class_and_offset_network(), random_voxels(3, count, dtype=torch.float32)
    with torch.no_grad():
        logits, offsets = network(voxels)
        expected = network.heads(network.backbone(voxels))
    assert logits.features.shape == (count, 4) and offsets.features.shape == (count, 3)
    assert torch.equal(logits.features, expected.class_logits.features)
    assert torch.equal(offsets.features, expected.offsets_m.features)
    assert logits.level is offsets.level is voxels.level


@pytest.mark.parametrize("count", [0, 1, 50])
def test_distilled_features_are_those_of_the_backbone_projected(count):
    network, voxels = distilled_network(), random_voxels(3, count, dtype=torch.float32)
    with torch.no_grad():
        projected = network(voxels)
        features = network.backbone(voxels).features @ network.head.layers[0].weight.T
    assert projected.level is voxels.level
    lengths = features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(projected.features, features / lengths)


def test_a_backbone_with_a_final_layer_is_refused():
    config = ClassAndOffsetConfig(SparseUNetConfig("Res16UNet14A", output_channels=20))
    with pytest.raises(InputError, match=r"backbone.output_channels: expected 0, got 20"):
        ClassAndOffsetNetwork(config)
