"""The instance network: from a mesh to instances, in training, and with input that does not fit."""

import dataclasses

import numpy as np
import pytest
import torch
from box_world import Box, as_cloud, surface_of, walled_room
from sparse_voxels import random_voxels

from unscene_ros.models.instance_network import InstanceNetwork, InstanceNetworkConfig
from unscene_ros.models.mask_transformer import MaskTransformerConfig, to_instances
from unscene_ros.models.segment_pooling import in_row_order
from unscene_ros.models.sparse_tensor import SparseTensor, batch_voxels
from unscene_ros.models.sparse_unet import SparseUNetConfig
from unscene_ros.oversegmentation import oversegment
from unscene_ros.scene import InputError, Instances, Mesh, Segments
from unscene_ros.voxels import VoxelsConfig, make_voxels, segment_of_voxel

QUERIES = 12
CONFIG = InstanceNetworkConfig(
    SparseUNetConfig("Res16UNet14A"),
    MaskTransformerConfig(
        classes=1, queries=QUERIES, width=16, heads=2, feedforward_width=20, rounds=1
    ),
)


@pytest.fixture(scope="module")
def network() -> InstanceNetwork:
    torch.manual_seed(0)
    return InstanceNetwork(CONFIG).eval()


@pytest.fixture(scope="module")
def room() -> tuple[Mesh, Segments]:
    box = Box((0.2, 0.2, 0.0), (0.6, 0.6, 0.4), (200, 40, 40))
    mesh, _ = surface_of(walled_room(box, size=(1.2, 1.0, 0.8)))
    return mesh, oversegment(mesh)


def find_instances(network: InstanceNetwork, mesh: Mesh, segments: Segments) -> Instances:
    voxels = make_voxels(mesh, VoxelsConfig(0.05))
    tensor = batch_voxels([voxels])
    ids = in_row_order(torch.from_numpy(segment_of_voxel(voxels, segments)), tensor.level)
    with torch.no_grad():
        prediction = network(tensor, ids, [segments.count])[-1]
    voxels_of_segment = torch.bincount(ids, minlength=segments.count)
    return to_instances(prediction.class_logits[0], prediction.mask_logits[0], voxels_of_segment)


def voxels_and_segments(channels=3) -> tuple[SparseTensor, torch.Tensor, list[int]]:
    """Two scenes; each octant around the origin is a segment."""
    tensor = random_voxels(channels, dtype=torch.float32)
    x, y, z = (tensor.level.coordinates[:, 1:] >= 0).long().T
    return tensor, x + 2 * y + 4 * z, [8, 8]


def test_a_room_becomes_instances_over_its_segments(network, room):
    mesh, segments = room
    instances = find_instances(network, mesh, segments)
    assert 0 < len(instances.masks) <= QUERIES
    assert instances.masks.shape[1] == segments.count
    assert instances.masks.any(axis=1).all()
    assert (np.diff(instances.scores) <= 0).all()
    assert (instances.scores > 0).all() and (instances.scores <= 1).all()
    assert (instances.class_ids == 0).all()


def test_the_order_of_the_vertices_does_not_matter(network, room):
    mesh, segments = room
    order = np.random.default_rng(0).permutation(len(mesh.vertices))
    shuffled = Mesh(
        mesh.vertices[order],
        np.argsort(order).astype(np.int32)[mesh.faces],
        mesh.colors[order],
        mesh.normals[order],
    )
    same_segments = dataclasses.replace(segments, of_vertex=segments.of_vertex[order])
    one = find_instances(network, mesh, segments)
    other = find_instances(network, shuffled, same_segments)
    np.testing.assert_array_equal(other.masks, one.masks)
    np.testing.assert_allclose(other.scores, one.scores, rtol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_mesh_of_few_voxels_has_at_most_as_many_instances(network, room, count):
    mesh = as_cloud(room[0])
    points = Mesh(mesh.vertices[:count], mesh.faces, mesh.colors[:count], mesh.normals[:count])
    segments = oversegment(points)
    instances = find_instances(network, points, segments)
    assert len(instances.masks) <= count
    assert instances.masks.shape[1] == segments.count


def test_training_reaches_every_parameter():
    torch.manual_seed(0)
    network = InstanceNetwork(CONFIG).train()
    predictions = network(*voxels_and_segments(), torch.Generator().manual_seed(0))
    assert len(predictions) == 1 + 4
    loss = sum(logits.sin().sum() for p in predictions for logits in p.class_logits + p.mask_logits)
    loss.backward()
    untouched = [
        name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()
    ]
    assert not untouched
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_voxels_and_segments_that_do_not_fit_are_refused(network):
    tensor, ids, counts = voxels_and_segments()
    with pytest.raises(InputError, match="expected 3 channels per voxel, got 6"):
        network(*voxels_and_segments(channels=6))
    with pytest.raises(
        InputError, match=r"260 ids and segment counts for 2 scenes, got .* 1 counts"
    ):
        network(tensor, ids, [8])
    with pytest.raises(InputError, match=r"expected 260 ids .* got \(259,\)"):
        network(tensor, ids[1:], counts)
    with pytest.raises(InputError, match=r"ids 0\.\.4 in scene 1, got [567]"):
        network(tensor, ids, [8, 5])
    with pytest.raises(InputError, match="expected int32 or int64 ids"):
        network(tensor, ids.float(), counts)


def test_a_backbone_with_a_final_layer_is_refused():
    config = InstanceNetworkConfig(SparseUNetConfig("Res16UNet14A", output_channels=20))
    with pytest.raises(InputError, match=r"backbone.output_channels: expected 0, got 20"):
        InstanceNetwork(config)
