"""Sparse U-Nets and the feature pyramid: sizes, batches, empty scenes, training, inference."""

import itertools

import pytest
import torch

from unscene_ros.models.sparse_fpn import SparseFPN, SparseFPNConfig, interpolate
from unscene_ros.models.sparse_tensor import SparseTensor, sparse_tensor
from unscene_ros.models.sparse_unet import ARCHITECTURES, SparseUNet, SparseUNetConfig
from unscene_ros.scene import InputError

BACKENDS = ["torch", "native"]


def unet(architecture="Res16UNet14A", **settings) -> SparseUNet:
    return with_statistics(SparseUNet(SparseUNetConfig(architecture, **settings)))


def fpn() -> SparseFPN:
    return with_statistics(SparseFPN(SparseFPNConfig(input_channels=3, stem_kernel_size=3)))


def with_statistics(network):
    """Batch norms as after training, so that evaluation differs from doing nothing."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return network


def shell(radius, scene=0, seed=0, channels=3):
    """Coordinates and features of a hollow ball around the origin: as thin as real surfaces."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(int(30 * radius**2), 3, generator=generator)
    points = radius * directions / directions.norm(dim=1, keepdim=True)
    cells = torch.unique(points.floor().int(), dim=0)
    coordinates = torch.nn.functional.pad(cells, (1, 0), value=scene)
    return coordinates, torch.randn(len(cells), channels, generator=generator)


def batch(*scenes, backend="torch", size=None) -> SparseTensor:
    coordinates, features = (torch.cat(parts) for parts in zip(*scenes, strict=True))
    return sparse_tensor(coordinates, features, scenes=size, backend=backend)


@pytest.mark.parametrize(
    ("architecture", "channels", "millions"),
    [
        ("Res16UNet14A", 96, 8.02),
        ("Res16UNet14S", 48, 6.71),
        ("Res16UNet18A", 96, 15.49),
        ("Res16UNet34C", 96, 37.85),
        ("MinkUNet18C", 128, 22.37),
    ],
)
def test_each_architecture_has_its_published_size_and_channels(architecture, channels, millions):
    with torch.device("meta"):
        network = SparseUNet(SparseUNetConfig(architecture, stem_kernel_size=5))
    assert network.output_channels == channels
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6, 2) == millions


def test_res16unet34c_for_twenty_classes_has_37_86_million_parameters():
    with torch.device("meta"):
        network = SparseUNet(SparseUNetConfig("Res16UNet34C", 3, 20, stem_kernel_size=5))
    assert sum(parameter.numel() for parameter in network.parameters()) == 37_856_052


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_outputs_and_feature_maps_lie_on_the_levels_they_name(architecture):
    network = unet(architecture, output_channels=5, stem_kernel_size=3).eval()
    tensor = batch(shell(3))
    with torch.no_grad():
        output = network(tensor)
        maps = network.feature_maps(tensor)
    assert output.level is tensor.level
    assert output.features.shape == (len(tensor.level), 5)
    assert list(maps) == [16, 8, 4, 2, 1]
    for stride, features in maps.items():
        assert features.level.stride == stride
        assert features.features.shape[1] == network.map_channels[stride]
    torch.testing.assert_close(network.final(maps[1]).features, output.features)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make_network", [unet, fpn])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("voxels", [0, 1, 2])
def test_few_voxels_and_none_give_finite_features_and_gradients(
    make_network, train, voxels, backend
):
    network = make_network().train(train)
    coordinates, features = torch.tensor([[1, -3, 0, 7], [1, 40, 0, 7]]), torch.ones(2, 3)
    tensor = batch((coordinates[:voxels], features[:voxels]), backend=backend, size=3)
    output = network(tensor).features
    assert output.shape == (voxels, network.output_channels)
    assert output.isfinite().all()
    output.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    with torch.no_grad():
        assert network(tensor).features.shape == output.shape


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make_network", [unet, fpn])
def test_a_scene_gives_the_same_alone_and_beside_others(make_network, backend):
    network = make_network().eval()
    large, small = shell(9), shell(3, seed=1)
    lone_voxel = torch.tensor([[3, 100, -7, 5]]), torch.ones(1, 3)
    together = batch(
        large, (small[0] + torch.tensor([2, 0, 0, 0]), small[1]), lone_voxel, backend=backend
    )
    with torch.no_grad():
        first, empty, second, third = network(together).of_scenes()
        assert len(empty) == 0
        for features, scene in (first, large), (second, small), (third, lone_voxel):
            alone = network(batch(scene, backend=backend)).features
            torch.testing.assert_close(features, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make_network", [unet, fpn])
def test_fused_inference_equals_evaluation_with_gradients(make_network, backend):
    network = make_network().eval()
    tensor = batch(shell(6), backend=backend)
    expected = network(tensor).features
    assert expected.requires_grad
    expected = expected.detach()
    with torch.inference_mode():
        fused = network(tensor).features
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make_network", [lambda: unet(output_channels=2), fpn])
def test_training_steps_reduce_the_loss_and_reach_every_parameter(make_network, backend):
    torch.manual_seed(0)
    network = make_network().train()
    coordinates, features = shell(5)
    tensor = batch((coordinates, features), backend=backend)
    classes = (tensor.level.coordinates[:, 3] > 0).long()  # which half of the ball
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        loss = torch.nn.functional.cross_entropy(network(tensor).features, classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())


def test_moving_a_scene_by_whole_coarse_voxels_changes_nothing():
    network = unet().eval()
    coordinates, features = shell(6)
    with torch.no_grad():
        here = network(batch((coordinates, features))).features
        there = network(batch((coordinates + torch.tensor([0, 32, -48, 160]), features))).features
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make_network", [unet, fpn])
def test_another_number_of_channels_is_refused(make_network):
    with pytest.raises(InputError, match="expected 3 channels per voxel, got 6"):
        make_network()(batch(shell(3, channels=6)))


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"expected one of Res16UNet14A.*got 'Res16UNet50'"):
        SparseUNet(SparseUNetConfig("Res16UNet50"))


def naive_interpolation(coarse: SparseTensor, fine: SparseTensor) -> torch.Tensor:
    """The sum over all coarse voxels nearer than one coarse voxel along every axis."""
    stride = coarse.level.stride
    values = []
    for scene, *place in fine.level.coordinates.tolist():
        total = torch.zeros(coarse.features.shape[1], dtype=coarse.features.dtype)
        for (other, *corner), features in zip(
            coarse.level.coordinates.tolist(), coarse.features, strict=True
        ):
            if other == scene:
                for a, b in zip(place, corner, strict=True):
                    features = features * max(0.0, 1 - abs(a - b) / stride)
                total = total + features
        values.append(total)
    return torch.stack(values)


@pytest.mark.parametrize("steps", [1, 3])
def test_interpolation_and_its_gradient_equal_the_sum_over_near_corners(steps):
    coordinates, _ = shell(3)
    coordinates = torch.cat([coordinates, coordinates + torch.tensor([1, 2, 0, 0])])
    fine = batch((coordinates, torch.zeros(len(coordinates), 1, dtype=torch.float64)))
    level = fine.level
    for _ in range(steps):
        level, _ = level.coarser
    features = torch.randn(len(level), 4, dtype=torch.float64, requires_grad=True)
    coarse = SparseTensor(features, level)
    ours, naive = interpolate(coarse, fine.level).features, naive_interpolation(coarse, fine)
    torch.testing.assert_close(ours, naive)
    direction = torch.randn_like(ours)
    gradients = [torch.autograd.grad(out, features, direction)[0] for out in (ours, naive)]
    torch.testing.assert_close(*gradients)


def test_interpolation_inside_a_full_block_is_linear():
    corners = torch.tensor(list(itertools.product([0], range(8), range(8), range(8))))
    fine = batch((corners, torch.zeros(512, 1)))
    coarse, _ = fine.level.coarser
    linear = SparseTensor(
        coarse.coordinates[:, 1:].float() @ torch.tensor([[1.0], [2], [4]]), coarse
    )
    inside = (fine.level.coordinates[:, 1:] < 7).all(1)
    expected = fine.level.coordinates[:, 1:].float() @ torch.tensor([[1.0], [2], [4]])
    torch.testing.assert_close(interpolate(linear, fine.level).features[inside], expected[inside])


def test_interpolation_between_unrelated_levels_is_refused():
    first, second = batch(shell(3)), batch(shell(4))
    coarse, _ = first.level.coarser
    with pytest.raises(InputError, match="interpolate: expected a level below"):
        interpolate(SparseTensor(torch.zeros(len(coarse), 2), coarse), second.level)


@pytest.mark.parametrize("setting", [{"output_channels": -1}, {"input_channels": 0}])
def test_channels_that_cannot_be_are_an_error(setting):
    with pytest.raises(InputError, match="at least 1 channel"):
        SparseUNet(SparseUNetConfig("Res16UNet14A", **setting))
