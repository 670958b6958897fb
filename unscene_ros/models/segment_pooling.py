"""Between the voxels of a batch and the segments of its scenes, in both directions.

Segments are numbered through all scenes of the batch. Every sum has a fixed order, so that results
are the same each time, on CUDA too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from unscene_ros.models.sparse_tensor import Level
from unscene_ros.scene import InputError


def in_row_order(values: Tensor, level: Level) -> Tensor:
    """Values of the points that a level was made from (P, ...) -> its rows (N, ...).

    Where points share a voxel the first one counts. Raises InputError unless there is one value for
    each point.
    """
    if len(values) != len(level.row_of_point):
        raise InputError(
            f"in_row_order: expected values of {len(level.row_of_point)} points, got {len(values)}"
        )
    points = torch.arange(len(level.row_of_point), device=values.device)
    first = points.new_full((len(level),), len(points))
    first = first.scatter_reduce(0, level.row_of_point, points, "amin")
    return values[first]


def number_across_scenes(
    level: Level, segment_of_voxel: Tensor, segment_counts: Sequence[int]
) -> Tensor:
    """(N,) int64: ids that start anew in each scene -> ids that run on through the batch.

    Raises InputError unless there is one id per voxel, from 0 to the count of its scene minus 1.
    """
    if segment_of_voxel.dtype not in (torch.int32, torch.int64):
        raise InputError(
            f"segment_of_voxel: expected int32 or int64 ids, got {segment_of_voxel.dtype}"
        )
    if min(segment_counts, default=0) < 0:
        raise InputError(f"segment_counts: expected 0 or more, got {list(segment_counts)}")
    if len(segment_counts) != level.scenes or segment_of_voxel.shape != (len(level),):
        raise InputError(
            f"segment_of_voxel: expected {len(level)} ids and segment counts for {level.scenes} "
            f"scenes, got {tuple(segment_of_voxel.shape)} and {len(segment_counts)} counts"
        )
    counts = torch.tensor(segment_counts, device=segment_of_voxel.device)
    scene = level.coordinates[:, 0].long()
    wrong = (segment_of_voxel < 0) | (segment_of_voxel >= counts[scene])
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise InputError(
            f"segment_of_voxel: expected ids 0..{int(counts[scene[row]]) - 1} in scene "
            f"{int(scene[row])}, got {int(segment_of_voxel[row])}"
        )
    return segment_of_voxel.long() + (counts.cumsum(0) - counts)[scene]


def segment_means(features: Tensor, segment_of_voxel: Tensor, segments: int) -> Tensor:
    """(S, C): the mean over the voxels (N, C) of each segment, 0 where it has none.

    In single precision at least.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    order = segment_of_voxel.argsort(stable=True)
    sizes = torch.bincount(segment_of_voxel, minlength=segments)
    return embedding_bag(order, features, sizes.cumsum(0) - sizes, mode="mean")


@dataclass(frozen=True, eq=False)
class SegmentShares:
    """How each voxel of a level divides among the segments: a sparse (N, S) matrix.

    Values of segments times this matrix are what mean pooling from the root level would give, step
    by step, if each root voxel had the value of its segment; but no root voxel is touched.
    rows, segments (E,) int64, ascending; shares (E,), those of a row sum to 1.
    """

    rows: Tensor
    segments: Tensor
    shares: Tensor
    level: Level
    count: int  # of segments, S

    @staticmethod
    def of_root(level: Level, segment_of_voxel: Tensor, count: int) -> SegmentShares:
        """Each voxel belongs to one segment."""
        rows = torch.arange(len(level), device=segment_of_voxel.device)
        shares = torch.ones(len(level), device=segment_of_voxel.device)
        return SegmentShares(rows, segment_of_voxel, shares, level, count)

    def coarser(self) -> SegmentShares:
        """The shares of the coarser level: means over the occupied voxels in each of its voxels."""
        level, kernel_map = self.level.coarser
        parents = kernel_map.opposite.rows.amax(1)[self.rows].long()
        children = (kernel_map.rows >= 0).sum(1)
        keys, order = (parents * self.count + self.segments).sort(stable=True)
        keys, lengths = torch.unique_consecutive(keys, return_counts=True)
        shares = (self.shares / children[parents])[order]
        # unsafe: torch's check of the lengths fails where there are none.
        shares = torch.segment_reduce(shares, "sum", lengths=lengths, unsafe=True)
        return SegmentShares(keys // self.count, keys % self.count, shares, level, self.count)

    def mix(self, values: Tensor) -> Tensor:
        """(N, C): for each voxel the values (S, C) of its segments by their shares; no gradient."""
        values = values.detach().to(self.shares.dtype)
        return embedding_bag(
            self.segments, values, self._starts, mode="sum", per_sample_weights=self.shares
        )

    @cached_property
    def _starts(self) -> Tensor:
        rows = torch.arange(len(self.level), device=self.rows.device)
        return torch.searchsorted(self.rows, rows)
