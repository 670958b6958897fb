"""Heads at the end of a network: what they compute, on any number of voxels."""

import pytest
import torch
from published_weights import class_and_offset_shapes
from sparse_voxels import random_voxels

from unscene_ros.models.heads import ClassAndOffsetHeads, ProjectionHead


def heads(training=False) -> ClassAndOffsetHeads:
    torch.manual_seed(0)
    network = ClassAndOffsetHeads(5, classes=4).double().train(training)
    torch.nn.init.normal_(network.bntr_offset.bn.running_mean)
    torch.nn.init.uniform_(network.bntr_offset.bn.running_var, 0.5, 2)
    torch.nn.init.normal_(network.offsets_pre.bias)
    return network


def test_parameters_have_the_published_names_and_shapes():
    shapes = {name: tuple(tensor.shape) for name, tensor in heads().state_dict().items()}
    assert shapes == class_and_offset_shapes(channels=5, classes=4)


def test_classes_are_linear_and_offsets_pass_a_normalised_hidden_layer():
    voxels, network = random_voxels(5), heads()
    x = voxels.features
    logits, offsets = network(voxels)
    torch.testing.assert_close(logits.features, x @ network.final.kernel + network.final.bias)
    bn = network.bntr_offset.bn
    hidden = x @ network.offsets_pre.kernel + network.offsets_pre.bias
    hidden = (hidden - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias
    expected = hidden.relu() @ network.offsets.kernel + network.offsets.bias
    torch.testing.assert_close(offsets.features, expected)
    with torch.no_grad():
        torch.testing.assert_close(network(voxels).offsets_m.features, expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_any_number_of_voxels_gets_classes_and_offsets(training, count):
    voxels = random_voxels(5, count)
    logits, offsets = heads(training)(voxels)
    assert logits.features.shape == (count, 4)
    assert offsets.features.shape == (count, 3)
    assert offsets.features.isfinite().all()
    assert offsets.level is voxels.level


@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_every_parameter(training):
    network = heads(training)
    logits, offsets = network(random_voxels(5))
    (logits.features.sin().sum() + offsets.features.sin().sum()).backward()
    gradients = {name: p.grad.abs().max() for name, p in network.named_parameters()}
    # Batch normalisation subtracts whatever constant comes before it.
    hidden_bias = gradients.pop("offsets_pre.bias")
    assert (hidden_bias < 1e-9) == training
    assert min(gradients.values()) > 1e-6


def test_a_linear_projection_has_unit_length_and_no_bias():
    head = ProjectionHead(2, 3)
    head.layers[0].weight.data = torch.tensor([[1.0, 0], [0, 2], [2, 0]])
    projected = head(torch.tensor([[1.0, 1], [0, -5], [0, 0]]))
    expected = [[1 / 3, 2 / 3, 2 / 3], [0, -1, 0], [0, 0, 0]]
    torch.testing.assert_close(projected, torch.tensor(expected))
    assert [name for name, _ in head.named_parameters()] == ["layers.0.weight"]


def test_a_projection_with_a_hidden_layer():
    torch.manual_seed(0)
    head, features = ProjectionHead(4, 3, hidden_channels=8), torch.randn(6, 4)
    first, _, last = head.layers
    hidden = (features @ first.weight.T + first.bias).clamp(min=0)
    projected = hidden @ last.weight.T + last.bias
    expected = projected / projected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head(features), expected)
    assert head(features[:0]).shape == (0, 3)


def test_gradients_of_a_projection_stay_finite_for_a_row_of_zeros():
    head, features = ProjectionHead(4, 3), torch.zeros(2, 4, requires_grad=True)
    head(features).sum().backward()
    assert features.grad.isfinite().all()
