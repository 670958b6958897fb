"""Which voxels a sparse convolution joins: the kernel map between two levels.

Kernel cells count x fastest, k = ix + K·iy + K²·iz, and even kernels are not centred: the parameter
layout of MinkowskiEngine (Choy et al., "4D spatio-temporal ConvNets", CVPR 2019).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

ROWS_OF_BLOCK = 8192


@dataclass(frozen=True, eq=False)
class Cells:
    """Occupied voxels: coordinates (N, 4) int32 of batch, x, y, z, multiples of `stride`."""

    coordinates: Tensor
    stride: int

    def __len__(self) -> int:
        return len(self.coordinates)


class Block(NamedTuple):
    """Consecutive target rows, and for each cell the targets and sources that meet there.

    targets (P,) int64, with which index_add_ is several times faster, counted from the first row of
    the block; sources (P,) int32.
    """

    targets: slice
    pairs: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class KernelMap:
    """The source row that each target row sees through each cell of a kernel.

    rows (M, K) int32: rows of the source, -1 where the cell is empty. opposite_rows (N, K) int32:
    the same pairs seen from the source; None where source and target are one level, because there
    the cell opposite to k is K-1-k.
    """

    rows: Tensor
    opposite_rows: Tensor | None
    source: Cells
    target: Cells
    _turned: bool = False  # made by `opposite`
    # Shared by both directions: the blocks of each.
    _blocks: dict[bool, list[Block]] = field(default_factory=dict)

    @property
    def opposite(self) -> KernelMap:
        """From target to source: the way of gradients and of transposed convolutions."""
        if self.opposite_rows is None:
            return self
        turned = not self._turned
        return KernelMap(
            self.opposite_rows, self.rows, self.target, self.source, turned, self._blocks
        )

    @property
    def blocks(self) -> list[Block]:
        """The pairs, block by block of target rows; on the processor a block stays in its cache."""
        if self._turned not in self._blocks:
            size = ROWS_OF_BLOCK if self.rows.device.type == "cpu" else max(len(self.rows), 1)
            self._blocks[self._turned] = [
                Block(slice(first, first + size), _pairs(rows))
                for first, rows in zip(count(0, size), self.rows.split(size))
            ]
        return self._blocks[self._turned]


def _pairs(rows: Tensor) -> list[tuple[Tensor, Tensor]]:
    cells, targets = (rows.T >= 0).nonzero(as_tuple=True)
    sources = rows[targets, cells]
    sizes = torch.bincount(cells, minlength=rows.shape[1]).tolist()
    return list(zip(targets.split(sizes), sources.split(sizes), strict=True))
