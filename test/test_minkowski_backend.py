"""The backend that asks MinkowskiEngine, against the torch backend; skipped without it."""

import gc
import sys

import pytest
import torch
from sparse_voxels import random_voxels

from unscene_ros.models.backends import Epilogue
from unscene_ros.models.backends.minkowski_backend import MinkowskiBackend
from unscene_ros.models.backends.torch_backend import TorchBackend
from unscene_ros.models.sparse_convolution import convolve, convolve_down, convolve_up
from unscene_ros.models.sparse_tensor import sparse_tensor
from unscene_ros.scene import InputError

EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}
MAPS = ["3³", "5³", "down", "up"]


@pytest.fixture
def backend():
    pytest.importorskip("MinkowskiEngine", reason="MinkowskiEngine is not installed")
    return MinkowskiBackend("cpu")


def kernel_map(name, tensor):
    if name in ("down", "up"):
        _, down = tensor.level.coarser
        return down if name == "down" else down.opposite
    return tensor.level.neighbors(int(name[0]))


def example(name, dtype):
    """(features, weight, gradient, kernel map) of two scenes around the origin."""
    chosen = kernel_map(name, random_voxels())
    generator = torch.Generator().manual_seed(1)
    features, weight, gradient = (
        torch.randn(*shape, generator=generator, dtype=dtype)
        for shape in (
            (len(chosen.source), 5),
            (chosen.rows.shape[1], 5, 7),
            (len(chosen.target), 7),
        )
    )
    return features, weight, gradient, chosen


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_results_are_those_of_the_torch_backend(backend, name, dtype):
    features, weight, gradient, chosen = example(name, dtype)
    close = {"rtol": EXACT[dtype], "atol": EXACT[dtype]}
    torch.testing.assert_close(
        backend.convolve(features, weight, chosen),
        TorchBackend().convolve(features, weight, chosen),
        **close,
    )
    torch.testing.assert_close(
        backend.weight_gradient(features, gradient, chosen),
        TorchBackend().weight_gradient(features, gradient, chosen),
        **close,
    )


@pytest.mark.parametrize("name", MAPS)
def test_epilogue_follows_the_convolution(backend, name):
    features, weight, gradient, chosen = example(name, torch.float64)
    scale, shift = torch.rand(2, 7, dtype=torch.float64)
    for epilogue in (
        Epilogue(scale, shift, gradient, relu=True),
        Epilogue(shift=shift),
        Epilogue(residual=gradient, relu=True),
    ):
        torch.testing.assert_close(
            backend.convolve(features, weight, chosen, epilogue),
            TorchBackend().convolve(features, weight, chosen, epilogue),
        )


def test_gradients_pass_through_a_small_network(backend):
    results = []
    for name in ("torch", "minkowski"):
        generator = torch.Generator().manual_seed(2)
        fine = random_voxels(backend=name)
        weights = [
            torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
            for shape in ((27, 5, 6), (8, 6, 4), (8, 4, 3))
        ]
        fine.features.requires_grad_()
        tensor = convolve_up(
            convolve_down(convolve(fine, weights[0]), weights[1]), weights[2], fine.level
        )
        gradients = torch.autograd.grad(tensor.features.square().sum(), [fine.features, *weights])
        results.append((tensor.features, *gradients))
    torch.testing.assert_close(*results)


def test_rows_in_another_order_there_are_put_back(backend):
    """As on CUDA, where MinkowskiEngine keeps its own order."""
    features, weight, gradient, chosen = example("down", torch.float64)
    levels = backend._levels_of(chosen.source)
    generator = torch.Generator().manual_seed(3)
    for cells in (chosen.source, chosen.target):
        level = levels.of(cells)
        order = torch.randperm(len(cells), generator=generator)
        key, _ = levels.manager.insert_and_map(cells.coordinates[order], [cells.stride] * 3)
        levels._levels[cells] = level._replace(key=key, rows_here=order, rows_there=order.argsort())
    expected = TorchBackend()
    torch.testing.assert_close(
        backend.convolve(features, weight, chosen), expected.convolve(features, weight, chosen)
    )
    torch.testing.assert_close(
        backend.weight_gradient(features, gradient, chosen),
        expected.weight_gradient(features, gradient, chosen),
    )


@pytest.mark.parametrize("voxels", [0, 1])
def test_empty_scenes_and_single_voxels(backend, voxels):
    coordinates = torch.full((voxels, 4), -3, dtype=torch.int32)
    coordinates[:, 0] = 0
    fine = sparse_tensor(coordinates, torch.ones(voxels, 2), scenes=1, backend="minkowski")
    fine.features.requires_grad_()
    weight = torch.ones(27, 2, 3, requires_grad=True)
    down, up = torch.ones(8, 3, 4), torch.ones(8, 4, 1)
    output = convolve_up(convolve_down(convolve(fine, weight), down), up, fine.level)
    assert output.features.tolist() == [[24.0]] * voxels  # 2 · 3 · 4 ones
    output.features.sum().backward()
    assert weight.grad.sum() == voxels * 2 * 3 * 4
    assert fine.features.grad.shape == (voxels, 2)


def test_levels_are_forgotten_with_their_tensor(backend):
    features, weight, _, chosen = example("down", torch.float64)
    backend.convolve(features, weight, chosen)
    assert len(backend._levels) == 1
    del chosen
    gc.collect()
    assert len(backend._levels) == 0


def test_half_precision_is_refused(backend):
    features, weight, _, chosen = example("3³", torch.float64)
    with pytest.raises(InputError, match=r"expected float32 or float64, got torch\.float16"):
        backend.convolve(features.half(), weight.half(), chosen)


def test_device_without_a_build_is_refused(backend):
    with pytest.raises(InputError, match="expected a device that MinkowskiEngine was built for"):
        MinkowskiBackend("mps")


def test_missing_engine_is_told_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "MinkowskiEngine", None)
    with pytest.raises(InputError) as raised:
        MinkowskiBackend("cpu")
    assert "expected MinkowskiEngine" in str(raised.value)
    assert "\n" not in str(raised.value)
