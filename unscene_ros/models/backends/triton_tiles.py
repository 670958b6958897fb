"""Kernel maps cut into the work of GPU programs.

A tile holds target rows with similar neighbourhoods, so that the cells of the kernel that none of
them has are left out: the sorted bitmasks of implicit GEMM (Tang et al., "TorchSparse++", MICRO
2023). A chunk is a run of pairs of one cell, for the gradient of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Tiles(NamedTuple):
    """Target rows in T tiles of equal size, the longest tiles first.

    A step of a tile is a cell of the kernel that at least one of its rows has; S steps in all.
    """

    target_count: int
    targets: Tensor  # (T, rows) int32, -1 pads the last tile
    first_step: Tensor  # (T + 1,) int32: tile t has the steps first_step[t] : first_step[t + 1]
    cells: Tensor  # (S,) int32, ascending within a tile
    sources: Tensor  # (S, rows) int32: what each target row sees through the cell, or -1


class Pairs(NamedTuple):
    """The pairs of a kernel map, cell by cell: targets (P,) and sources (P,) int32."""

    targets: Tensor
    sources: Tensor
    of_cell: list[int]  # how many pairs each cell has


class Chunks(NamedTuple):
    """The pairs in runs of about equal length that do not cross from cell to cell."""

    targets: Tensor
    sources: Tensor
    bounds: Tensor  # (chunks, 2) int64: first and last + 1 pair
    of_cell: Tensor  # (K,) int64: how many chunks each cell has


def cut_tiles(rows: Tensor, size: int) -> Tiles:
    """rows (M, K) of a kernel map -> tiles of `size` rows."""
    count, kernel_cells = rows.shape
    tile_count = -(-count // size)
    order = torch.argsort(_directions_seen(rows), stable=True)
    sorted_rows = rows.new_full((tile_count * size, kernel_cells), -1)
    sorted_rows[:count] = rows[order]
    sorted_rows = sorted_rows.view(tile_count, size, kernel_cells)
    targets = rows.new_full((tile_count * size,), -1)
    targets[:count] = order.int()

    active = (sorted_rows >= 0).any(1)
    # Long tiles first: the short ones then fill the processors that would idle at the end.
    tiles = torch.argsort(active.sum(1), descending=True, stable=True)
    active = active[tiles]
    positions, cells = active.nonzero(as_tuple=True)
    first_step = rows.new_zeros(tile_count + 1)
    first_step[1:] = active.sum(1).cumsum(0)
    return Tiles(
        target_count=count,
        targets=targets.view(tile_count, size)[tiles],
        first_step=first_step,
        cells=cells.int(),
        sources=sorted_rows[tiles[positions], :, cells],
    )


def list_pairs(rows: Tensor) -> Pairs:
    """rows (M, K) of a kernel map -> its pairs."""
    cells, targets = (rows.T >= 0).nonzero(as_tuple=True)
    of_cell = torch.bincount(cells, minlength=rows.shape[1])
    return Pairs(targets.int(), rows[targets, cells], of_cell.tolist())


def cut_chunks(pairs: Pairs, count: int) -> Chunks:
    """About `count` chunks, at most one more per cell."""
    size = max(1, -(-sum(pairs.of_cell) // count))
    bounds = [
        (first, min(first + size, end))
        for end, length in zip(accumulate(pairs.of_cell), pairs.of_cell, strict=True)
        for first in range(end - length, end, size)
    ]
    of_cell = [-(-length // size) for length in pairs.of_cell]
    device = pairs.targets.device
    return Chunks(
        pairs.targets,
        pairs.sources,
        torch.tensor(bounds, dtype=torch.int64).reshape(-1, 2).to(device),
        torch.tensor(of_cell).to(device),
    )


def _directions_seen(rows: Tensor) -> Tensor:
    """(M,) int32: a bit for each of the 27 directions in which a row has a neighbour.

    For 3³ and 2³ cells these are the cells themselves. The 125 cells of 5³ would make nearly every
    row unlike any other; directions sort them into tiles with a third fewer steps.
    """
    directions = torch.tensor(_direction_of_cell(rows.shape[1]), device=rows.device)
    in_direction = torch.nn.functional.one_hot(directions, 27).float()
    seen = (rows >= 0).float() @ in_direction > 0
    return (seen << torch.arange(27, dtype=torch.int32, device=rows.device)).sum(
        1, dtype=torch.int32
    )


def _direction_of_cell(cells: int) -> Sequence[int]:
    """The signs of the offset of each cell as one number below 27."""
    size = round(cells ** (1 / 3))
    signs = [(index > size // 2) - (index < size // 2) + 1 for index in range(size)]
    return [x + 3 * y + 9 * z for z in signs for y in signs for x in signs]
