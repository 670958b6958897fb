"""The graph network: its neighbours and edges against loops, and scenes of all sizes."""

import pytest
import torch
from sparse_voxels import random_voxels

from unscene_ros.models import dgcnn
from unscene_ros.models.dgcnn import (
    Dgcnn,
    DgcnnConfig,
    EdgeConvolution,
    nearest_points,
    neighbor_rows,
)
from unscene_ros.models.sparse_tensor import SparseTensor, sparse_tensor
from unscene_ros.scene import InputError


def network(training=False, **changes) -> Dgcnn:
    torch.manual_seed(0)
    config = DgcnnConfig(**{"input_channels": 4, "output_channels": 5, "neighbors": 6} | changes)
    return Dgcnn(config).double().train(training)


def points(count, channels=5, seed=0):
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(seed)).double()


def alone(tensor: SparseTensor, scene: int) -> SparseTensor:
    rows = tensor.level.coordinates[:, 0] == scene
    coordinates = tensor.level.coordinates[rows].clone()
    coordinates[:, 0] = 0
    return sparse_tensor(coordinates, tensor.features[rows], scenes=1, backend="torch")


@pytest.mark.parametrize("at_once", [1, 100, 2**24])
def test_nearest_points_equal_those_of_a_loop(monkeypatch, at_once):
    monkeypatch.setattr(dgcnn, "DISTANCES_AT_ONCE", at_once)
    cloud = points(40)
    nearest = nearest_points(cloud, 7)
    for row, point in enumerate(cloud):
        by_distance = sorted(range(40), key=lambda other: (cloud[other] - point).norm().item())
        assert nearest[row].tolist() == by_distance[:7]
        assert nearest[row, 0] == row


def test_distances_are_exact_enough_far_from_the_origin():
    line = torch.arange(60.0)[:, None] + torch.tensor([[0.0, 1e5, -1e5]])
    nearest = nearest_points(line, 3).sort(1).values
    assert nearest[1:-1].tolist() == [[row - 1, row, row + 1] for row in range(1, 59)]


def test_neighbors_stay_in_their_scene_and_few_points_repeat_themselves():
    cloud = torch.cat([points(2), points(0), points(30), points(1)])
    rows = neighbor_rows(cloud, [2, 0, 30, 1], 4)
    assert rows[0].tolist() == [0, 1, 0, 0]
    assert rows[1].tolist() == [1, 0, 1, 1]
    assert torch.equal(rows[2:32] - 2, nearest_points(points(30), 4))
    assert rows[32].tolist() == [32] * 4


def test_edges_equal_those_of_a_loop():
    torch.manual_seed(0)
    layer = EdgeConvolution(5, (4, 3)).double().eval()
    features, neighbors = points(12), torch.randint(0, 12, (12, 4))
    output = layer(features, neighbors)
    for row in range(12):
        edges = [
            layer.difference(features[other] - features[row]) + layer.point(features[row])
            for other in neighbors[row]
        ]
        expected = layer.following(layer.normalization(torch.stack(edges))).max(0).values
        torch.testing.assert_close(output[row], expected)


def test_a_batch_gives_what_each_scene_gives_alone():
    voxels, model = random_voxels(4, 90, scenes=3), network()
    together = model(voxels)
    for scene, features in enumerate(together.of_scenes()):
        torch.testing.assert_close(features, model(alone(voxels, scene)).features)
    assert together.level is voxels.level


def test_the_order_of_the_points_does_not_matter():
    voxels, model = random_voxels(4, 60), network()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    coordinates = voxels.level.coordinates
    shuffled = sparse_tensor(coordinates[order], voxels.features[order], backend="torch")
    torch.testing.assert_close(model(shuffled).features, model(voxels).features)


def test_features_depend_on_the_whole_scene():
    voxels, model = random_voxels(4, 60, scenes=1), network()
    changed = voxels.features.clone()
    changed[0] += 50
    before, after = model(voxels).features, model(voxels.with_features(changed)).features
    assert (before != after).any(1).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_any_number_of_voxels_gets_features(training, count):
    voxels, model = random_voxels(4, count), network(training)
    output = model(voxels)
    assert output.features.shape == (count, 5)
    assert output.features.isfinite().all()
    output.features.sum().backward()


@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_every_parameter(training):
    voxels, model = random_voxels(4, 60), network(training)
    voxels.features.requires_grad_()
    model(voxels).features.sin().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert not [name for name, gradient in gradients.items() if not gradient.any()]
    assert voxels.features.grad.any()


def test_evaluation_does_not_change_the_network():
    voxels, model = random_voxels(4, 40), network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert torch.equal(model(voxels).features, model(voxels).features)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_graph_without_neighbors_is_refused():
    with pytest.raises(InputError, match="at least 1 of neighbors, got 0"):
        network(neighbors=0)


def test_another_number_of_channels_is_refused():
    with pytest.raises(InputError, match="Dgcnn: expected 4 channels per voxel, got 3"):
        network()(random_voxels(3, 10))
