"""Sparse convolutions of every backend against dense ones in double precision."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unscene_ros.models.backends import Epilogue, choose_backend
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

SIZE = 12  # edge of the dense grids; their voxel 0 lies at -SIZE / 2
BACKENDS = ["torch"]


def random_voxels(
    channels=5, seed=0, count=260, scenes=2, backend="torch", dtype=torch.float64
) -> SparseTensor:
    """Voxels around the origin, so that half of the coordinates are negative."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(scenes * SIZE**3, generator=generator)[:count]
    coordinates = torch.stack(
        [cells // SIZE**3, *(cells // SIZE**k % SIZE - SIZE // 2 for k in range(3))], 1
    )
    features = torch.randn(count, channels, generator=generator, dtype=dtype)
    return sparse_tensor(coordinates, features, scenes=scenes, backend=backend)


def dense(tensor: SparseTensor) -> torch.Tensor:
    """(B, C, X, Y, Z), zero where no voxel is."""
    batch, x, y, z = _dense_index(tensor)
    grid = tensor.features.new_zeros(
        tensor.level.scenes, *[SIZE // tensor.level.stride] * 3, tensor.features.shape[1]
    )
    return grid.index_put((batch, x, y, z), tensor.features).permute(0, 4, 1, 2, 3)


def at_voxels(grid: torch.Tensor, tensor: SparseTensor) -> torch.Tensor:
    return grid.permute(0, 2, 3, 4, 1)[_dense_index(tensor)]


def _dense_index(tensor):
    batch, *xyz = tensor.level.coordinates.long().T
    return batch, *((axis + SIZE // 2) // tensor.level.stride for axis in xyz)


def dense_kernel(weight: torch.Tensor) -> torch.Tensor:
    """(K³, C, D), x fastest -> the (D, C, X, Y, Z) of conv3d."""
    size = round(len(weight) ** (1 / 3))
    return weight.reshape(size, size, size, *weight.shape[1:]).permute(4, 3, 2, 1, 0)


def same(tensor, weight, level):
    return convolve(tensor, weight), torch.nn.functional.conv3d(
        dense(tensor), dense_kernel(weight), padding="same"
    )


def down(tensor, weight, level):
    return convolve_down(tensor, weight), torch.nn.functional.conv3d(
        dense(tensor), dense_kernel(weight), stride=2
    )


def up(tensor, weight, level):
    kernel = dense_kernel(weight).transpose(0, 1)
    return convolve_up(tensor, weight, level), torch.nn.functional.conv_transpose3d(
        dense(tensor), kernel, stride=2
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("operation", "cells"), [(same, 27), (same, 125), (down, 8), (up, 8)], ids=str
)
def test_values_and_gradients_equal_a_dense_convolution(backend, operation, cells):
    fine = random_voxels(backend=backend)
    tensor = fine
    if operation is up:
        tensor = random_voxels(backend=backend)
        coarser, _ = fine.level.coarser
        tensor = SparseTensor(torch.randn(len(coarser), 5, dtype=torch.float64), coarser)
    tensor.features.requires_grad_()
    weight = torch.randn(cells, 5, 7, dtype=torch.float64, requires_grad=True)

    output, grid = operation(tensor, weight, fine.level)
    expected = at_voxels(grid, output)
    torch.testing.assert_close(output.features, expected, rtol=1e-12, atol=1e-12)

    direction = torch.randn_like(expected)
    ours = torch.autograd.grad(output.features, [tensor.features, weight], direction)
    dense_ones = torch.autograd.grad(expected, [tensor.features, weight], direction)
    for gradient, expected_gradient in zip(ours, dense_ones, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-11, atol=1e-11)
