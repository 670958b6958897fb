"""Sparse convolution in plain PyTorch: gather, multiply, add, one cell of the kernel at a time.

Runs wherever PyTorch runs, in any floating point type, and specifies the other backends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unscene_ros.models.backends import Epilogue

if TYPE_CHECKING:
    from unscene_ros.models.kernel_map import KernelMap


class TorchBackend:
    """See `Backend`."""

    name = "torch"

    def neighbor_rows(self, keys: Tensor, extent: tuple[int, int, int], kernel_size: int) -> Tensor:
        return neighbor_rows(keys, extent, kernel_size)

    def convolve(
        self,
        features: Tensor,
        weight: Tensor,
        kernel_map: KernelMap,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        scale, shift, residual, relu = epilogue or Epilogue()
        output = features.new_zeros(len(kernel_map.target), weight.shape[2])
        if shift is not None:
            output += shift
        if residual is not None:
            output += residual
        if scale is not None:
            weight = (weight * scale).to(features.dtype)
        for block in kernel_map.blocks:
            part = output[block.targets]
            for (targets, sources), cell_weight in zip(block.pairs, weight, strict=True):
                # A row occurs at most once in each cell: adding is deterministic, on CUDA too.
                part.index_add_(0, targets, features.index_select(0, sources) @ cell_weight)
        return output.relu_() if relu else output

    def weight_gradient(self, features: Tensor, gradient: Tensor, kernel_map: KernelMap) -> Tensor:
        shape = kernel_map.rows.shape[1], features.shape[1], gradient.shape[1]
        sums = features.new_zeros(shape)
        for block in kernel_map.blocks:
            part = gradient[block.targets]
            for (targets, sources), cell_sums in zip(block.pairs, sums, strict=True):
                seen = features.index_select(0, sources)
                cell_sums.addmm_(seen.T, part.index_select(0, targets))
        return sums


def neighbor_rows(keys: Tensor, extent: tuple[int, int, int], kernel_size: int) -> Tensor:
    """The neighbours of sorted keys, see `Backend.neighbor_rows`.

    The cells of one kernel column have consecutive keys, hence are consecutive rows: one search
    serves the whole column. A neighbour at one cell has its partner at the opposite cell, so half
    of the columns suffice.
    """
    radius = kernel_size // 2
    count, last_cell = len(keys), kernel_size**3 - 1
    own_rows = torch.arange(count, dtype=torch.int32, device=keys.device)
    rows = own_rows.new_full((count, kernel_size**3), -1)
    rows[:, last_cell // 2] = own_rows
    columns = [(dx, dy) for dx in range(-radius, radius + 1) for dy in range(-radius, radius + 1)]
    for dx, dy in columns[len(columns) // 2 :] if count else []:
        lowest_dz = 1 if dx == dy == 0 else -radius
        lowest = keys + (dx * extent[1] + dy) * extent[2] + lowest_dz
        first = torch.searchsorted(keys, lowest)
        for step in range(radius + 1 - lowest_dz):
            candidates = (first + step).clamp_(max=count - 1)
            above = keys[candidates] - lowest
            (here,) = ((above >= 0) & (above <= radius - lowest_dz)).nonzero(as_tuple=True)
            there = candidates[here]
            iz = above[here] + lowest_dz + radius
            cell = (dx + radius) + kernel_size * (dy + radius) + kernel_size**2 * iz
            rows[here, cell] = there.int()
            rows[there, last_cell - cell] = here.int()
    return rows
