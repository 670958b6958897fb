"""Sparse convolutions of every backend against dense ones in double precision."""

import pytest
import torch
from sparse_voxels import at_voxels, dense, dense_kernel, random_voxels

from unscene_ros.models.backends import Epilogue
from unscene_ros.models.sparse_convolution import (
    convolve,
    convolve_down,
    convolve_up,
    pool_down,
    pool_scenes,
    unpool,
)
from unscene_ros.models.sparse_tensor import SparseTensor, sparse_tensor
from unscene_ros.scene import InputError

BACKENDS = ["torch", "native"]
OPERATIONS = {"3x3x3": 27, "5x5x5": 125, "down": 8, "up": 8}

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_operation = pytest.mark.parametrize("operation", OPERATIONS)


def operands(operation, backend, dtype=torch.float64, inputs=5, outputs=7, **voxels):
    """(tensor, weight, finer level) for an operation."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(
        OPERATIONS[operation], inputs, outputs, dtype=dtype, generator=generator
    ).requires_grad_()
    tensor = random_voxels(inputs, backend=backend, dtype=dtype, **voxels)
    level = tensor.level
    if operation == "up":
        coarser, _ = level.coarser
        features = torch.randn(len(coarser), inputs, dtype=dtype, generator=generator)
        tensor = SparseTensor(features, coarser)
    tensor.features.requires_grad_()
    return tensor, weight, level


def sparse(operation, tensor, weight, level, epilogue=None):
    if operation == "up":
        return convolve_up(tensor, weight, level, epilogue)
    return (convolve_down if operation == "down" else convolve)(tensor, weight, epilogue)


def dense_result(operation, tensor, weight, level):
    grid, kernel = dense(tensor), dense_kernel(weight)
    if operation == "up":
        return torch.nn.functional.conv_transpose3d(grid, kernel.transpose(0, 1), stride=2)
    if operation == "down":
        return torch.nn.functional.conv3d(grid, kernel, stride=2)
    return torch.nn.functional.conv3d(grid, kernel, padding="same")


@every_backend
@every_operation
def test_values_and_gradients_equal_a_dense_convolution(backend, operation):
    tensor, weight, level = operands(operation, backend)
    output = sparse(operation, tensor, weight, level)
    expected = at_voxels(dense_result(operation, tensor, weight, level), output)
    torch.testing.assert_close(output.features, expected, rtol=1e-12, atol=1e-12)

    direction = torch.randn_like(expected)
    ours = torch.autograd.grad(output.features, [tensor.features, weight], direction)
    theirs = torch.autograd.grad(expected, [tensor.features, weight], direction)
    for gradient, expected_gradient in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@every_operation
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 32), (96, 33), (61, 1), (128, 96)])
def test_backends_equal_torch_on_a_room(backend, operation, inputs, outputs):
    results = {}
    for name in ("torch", backend):
        tensor, weight, level = operands(
            operation, name, torch.float32, inputs, outputs, count=1700, scenes=3
        )
        output = sparse(operation, tensor, weight, level)
        direction = torch.randn(output.features.shape, generator=torch.Generator().manual_seed(3))
        gradients = torch.autograd.grad(output.features, [tensor.features, weight], direction)
        results[name] = output.features, *gradients
    for ours, expected in zip(results[backend], results["torch"], strict=True):
        assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_backends_equal_torch_beyond_all_their_blocks(backend):
    """More rows than any block of either holds: a rough surface of 20,000 voxels."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.cartesian_prod(torch.arange(200), torch.arange(100)).T
    z = torch.randint(-1, 2, x.shape, generator=generator)
    coordinates = torch.stack([torch.zeros_like(x), x, y, z], 1)
    features = torch.randn(len(x), 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(27, 8, 9, generator=generator, dtype=torch.float64)
    results = {}
    for name in ("torch", backend):
        tensor = sparse_tensor(coordinates, features.clone().requires_grad_(), backend=name)
        cells = weight.clone().requires_grad_()
        output = convolve(tensor, cells).features
        gradients = torch.autograd.grad(output.square().sum(), [tensor.features, cells])
        rows = [tensor.level.neighbors(size).rows.double() for size in (3, 5)]
        results[name] = output, *gradients, *rows
    for ours, expected in zip(results[backend], results["torch"], strict=True):
        assert (ours - expected).abs().max() <= 1e-11 * expected.abs().max()


@every_backend
@every_operation
def test_a_fused_epilogue_equals_its_parts(backend, operation):
    tensor, weight, level = operands(operation, backend)
    with torch.no_grad():
        plain = sparse(operation, tensor, weight, level).features
        scale, shift = torch.randn(2, plain.shape[1], dtype=plain.dtype)
        residual = torch.randn_like(plain)
        for epilogue, expected in [
            (Epilogue(scale, shift, residual, True), (plain * scale + shift + residual).relu()),
            (Epilogue(scale, shift), plain * scale + shift),
            (Epilogue(residual=residual), plain + residual),
            (Epilogue(relu=True), plain.relu()),
        ]:
            fused = sparse(operation, tensor, weight, level, epilogue).features
            torch.testing.assert_close(fused, expected)


def test_a_fused_epilogue_follows_a_multiplication_too():
    tensor, weight = random_voxels(), torch.randn(5, 7, dtype=torch.float64)
    scale, shift = torch.randn(2, 7, dtype=torch.float64)
    residual = torch.randn(len(tensor.level), 7, dtype=torch.float64)
    fused = convolve(tensor, weight, Epilogue(scale, shift, residual, True)).features
    expected = (tensor.features @ weight * scale + shift + residual).relu()
    torch.testing.assert_close(fused, expected)


@every_backend
@every_operation
def test_the_same_input_gives_the_same_bits(backend, operation):
    tensor, weight, level = operands(operation, backend, torch.float32, count=1500)
    first = sparse(operation, tensor, weight, level).features
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        again = sparse(operation, tensor, weight, level).features
        torch.set_num_threads(before)
        if backend == "native":  # torch's products depend on the number of threads
            assert torch.equal(first, again)
    assert torch.equal(first, sparse(operation, tensor, weight, level).features)


@every_backend
def test_permuting_the_points_permutes_the_result(backend):
    voxels = random_voxels(count=400)
    weight = torch.randn(27, 5, 7, dtype=torch.float64)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(2))
    results = [
        convolve(
            sparse_tensor(voxels.level.coordinates[rows], voxels.features[rows], backend=backend),
            weight,
        ).at_points()
        for rows in (torch.arange(400), order)
    ]
    assert torch.equal(results[0][order], results[1])


@every_backend
@every_operation
@pytest.mark.parametrize("count", [0, 1])
def test_no_voxel_and_one_voxel_are_normal(backend, operation, count):
    tensor, weight, level = operands(operation, backend, count=count)
    output = sparse(operation, tensor, weight, level)
    assert output.features.shape == (count, 7)
    output.features.sum().backward()
    assert tensor.features.grad.shape == tensor.features.shape
    assert (weight.grad.abs().sum() > 0) == (count == 1)


@every_backend
def test_weights_may_be_views(backend):
    tensor, weight, _ = operands("3x3x3", backend, inputs=5, outputs=5)
    with torch.no_grad():
        view = weight.transpose(1, 2)
        expected = convolve(tensor, view.contiguous()).features
        torch.testing.assert_close(convolve(tensor, view).features, expected)


@every_backend
def test_features_may_be_views(backend):
    wide = random_voxels(10, backend=backend)
    weight = torch.randn(27, 5, 7, dtype=torch.float64)
    sliced = wide.with_features(wide.features[:, ::2])
    packed = wide.with_features(wide.features[:, ::2].contiguous())
    assert torch.equal(convolve(sliced, weight).features, convolve(packed, weight).features)


@pytest.mark.parametrize("shape", [(27, 4, 7), (8, 5, 7), (4, 7)])
def test_a_wrong_channel_or_cell_count_is_an_error(shape):
    operation = convolve_down if shape[0] == 27 else convolve
    with pytest.raises((InputError, RuntimeError), match=r"expected .*(channels|odd kernel)"):
        operation(random_voxels(), torch.randn(shape, dtype=torch.float64))


@every_backend
def test_what_is_not_a_number_stays_so(backend):
    tensor, weight, _level = operands("3x3x3", backend, torch.float32)
    with torch.no_grad():
        weight[13] = torch.nan
        assert convolve(tensor, weight, Epilogue(relu=True)).features.isnan().all()


@every_backend
@pytest.mark.parametrize("kernel", [(27, 5, 7), (5, 7)], ids=str)
def test_a_network_elsewhere_or_of_another_type_is_an_error(backend, kernel):
    tensor = random_voxels(backend=backend, dtype=torch.float32)
    with pytest.raises(InputError, match=r"torch.float32 on cpu, got torch.float32 on meta"):
        convolve(tensor, torch.empty(kernel, device="meta"))
    with pytest.raises(InputError, match=r"torch.float32 on cpu, got torch.float64 on cpu"):
        convolve(tensor, torch.empty(kernel, dtype=torch.float64))


@every_backend
@pytest.mark.parametrize("kernel", [(27, 5, 7), (5, 7)], ids=str)
@pytest.mark.parametrize(
    "epilogue",
    [
        Epilogue(scale=torch.ones(1)),
        Epilogue(shift=torch.ones(7, 1)),
        Epilogue(residual=torch.ones(3, 7)),
        Epilogue(scale=torch.ones(7, device="meta")),
    ],
)
def test_an_epilogue_that_does_not_fit_is_an_error(backend, kernel, epilogue):
    tensor = random_voxels(backend=backend, dtype=torch.float32)
    with pytest.raises(InputError, match=r"expected (a|the) (scale|shift|residual)"):
        convolve(tensor, torch.ones(kernel), epilogue)


def test_a_transposed_convolution_leads_to_the_level_it_came_from():
    one, other = random_voxels(seed=1), random_voxels(seed=2)
    coarse = pool_down(one, "mean")
    with pytest.raises(InputError, match="expected a tensor of the level"):
        convolve_up(coarse, torch.randn(8, 5, 7, dtype=torch.float64), other.level)


def test_pooling_equals_a_loop_over_the_children():
    tensor = random_voxels()
    for mode, pool in [("mean", lambda f: f.mean(0)), ("max", lambda f: f.amax(0))]:
        pooled = pool_down(tensor, mode)
        for row, (batch, *corner) in enumerate(pooled.level.coordinates.tolist()):
            xyz = tensor.level.coordinates[:, 1:] - torch.tensor(corner)
            inside = ((xyz >= 0) & (xyz < 2)).all(1) & (tensor.level.coordinates[:, 0] == batch)
            torch.testing.assert_close(pooled.features[row], pool(tensor.features[inside]))
        back = unpool(pooled, tensor.level)
        parents = torch.div(tensor.level.coordinates[:, 1:], 2, rounding_mode="floor") * 2
        for row in range(0, len(tensor.level), 17):
            where = torch.cat([tensor.level.coordinates[row, :1], parents[row]])
            parent = (pooled.level.coordinates == where).all(1).nonzero()[0, 0]
            assert torch.equal(back.features[row], pooled.features[parent])


def test_pooling_passes_gradients():
    tensor = random_voxels(count=60)
    features = tensor.features.requires_grad_()

    def pooled(features, mode):
        return pool_down(tensor.with_features(features), mode).features

    assert torch.autograd.gradcheck(lambda f: pooled(f, "mean"), features)
    assert torch.autograd.gradcheck(lambda f: pooled(f, "max"), features)


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_pooled_scenes_have_one_row_each_and_empty_scenes_zeros(mode):
    coordinates = torch.tensor([[2, 0, 0, 0], [0, 1, 1, 1], [2, 5, 5, 5]])
    features = torch.tensor([[-2.0, 4.0], [-1.0, 1.0], [-4.0, 2.0]])
    pooled = pool_scenes(sparse_tensor(coordinates, features, scenes=4), mode)
    last = [-3.0, 3.0] if mode == "mean" else [-2.0, 4.0]
    assert pooled.tolist() == [[-1, 1], [0, 0], last, [0, 0]]


def test_half_precision_is_pooled_in_single():
    tensor = sparse_tensor(torch.zeros(5000, 4).int(), torch.ones(5000, 1, dtype=torch.bfloat16))
    assert tensor.features.tolist() == [[1]]
    column = torch.arange(3000)[:, None] * torch.tensor([0, 1, 0, 0])
    ones = sparse_tensor(column, torch.ones(3000, 1, dtype=torch.float16))
    assert pool_scenes(ones, "mean").tolist() == [[1]]


def test_autocast_computes_in_half_precision():
    tensor, weight, _ = operands("3x3x3", "torch", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = convolve(tensor, weight).features
    assert output.dtype == torch.bfloat16
    expected = convolve(tensor, weight).features
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.3)
    output.sum().backward()
    assert weight.grad.dtype == torch.float32
