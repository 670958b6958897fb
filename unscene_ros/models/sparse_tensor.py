"""Sparse voxels inside a network: features on levels, and the kernel maps that join the levels.

A level is the set of occupied voxels at one stride, sorted by one int64 key per voxel. It finds its
neighbours and its coarser level once, whoever asks: forward, backward and transposed convolutions
of all layers share these maps. The same code serves CPU and CUDA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unscene_ros.models.backends import Backend, BackendName, choose_backend
from unscene_ros.models.kernel_map import Cells, KernelMap
from unscene_ros.scene import InputError, Voxels

# Cells kept free around the voxels of a scene, so that no kernel reaches into another column.
HALO = 3
WIDEST_KERNEL = 2 * HALO + 1
MOST_SCENES = 2**16  # of a batch


@dataclass(frozen=True)
class KeyLayout:
    """How the voxels of a level become int64 keys: ((batch·X + x)·Y + y)·Z + z, with a halo."""

    minimum: tuple[int, int, int]  # smallest x, y, z in cells of the level
    maximum: tuple[int, int, int]
    scenes: int

    def __post_init__(self) -> None:
        x, y, z = self.extent
        if self.scenes * x * y * z >= 2**63:
            raise InputError(
                f"sparse_tensor: expected a scene whose box has fewer than 2^63 voxels, got "
                f"{self.scenes} x {x} x {y} x {z}: remove far outliers or use larger voxels"
            )

    @property
    def extent(self) -> tuple[int, int, int]:
        """Cells along x, y and z, the halo included."""
        sizes = (b - a + 1 + 2 * HALO for a, b in zip(self.minimum, self.maximum, strict=True))
        x, y, z = sizes
        return x, y, z

    def coarser(self) -> KeyLayout:
        """The layout of the level with twice the stride."""
        ax, ay, az = (value // 2 for value in self.minimum)
        bx, by, bz = (value // 2 for value in self.maximum)
        return KeyLayout((ax, ay, az), (bx, by, bz), self.scenes)

    def keys(self, batch: Tensor, cells: Tensor) -> Tensor:
        """(N,) int64 for batch (N,) and cells (N, 3) int64 counted in strides of the level."""
        _, y_extent, z_extent = self.extent
        x, y, z = (cells[:, axis] - (self.minimum[axis] - HALO) for axis in range(3))
        return ((batch * self.extent[0] + x) * y_extent + y) * z_extent + z


class Level:
    """The occupied voxels of one stride in the order of their keys, with the maps between them.

    cells: their coordinates. keys (N,) int64, ascending. row_of_point (P,) int64: the row of each
    point that the root level was made from.
    """

    def __init__(
        self,
        cells: Cells,
        keys: Tensor,
        layout: KeyLayout,
        row_of_point: Tensor,
        backend: Backend,
    ) -> None:
        self.cells = cells
        self.keys = keys
        self.layout = layout
        self.row_of_point = row_of_point
        self.backend = backend
        self._neighbors: dict[int, KernelMap] = {}

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def coordinates(self) -> Tensor:
        """(N, 4) int32: batch, x, y, z."""
        return self.cells.coordinates

    @property
    def stride(self) -> int:
        """Voxels of the root level along one edge of a voxel of this level."""
        return self.cells.stride

    @property
    def scenes(self) -> int:
        """How many scenes the batch holds; some may be empty."""
        return self.layout.scenes

    @cached_property
    def scene_sizes(self) -> list[int]:
        """Rows of each scene; the rows of a scene are consecutive."""
        return torch.bincount(self.coordinates[:, 0], minlength=self.scenes).tolist()

    def neighbors(self, kernel_size: int) -> KernelMap:
        """The map of a submanifold convolution with an odd kernel size up to 7."""
        if kernel_size not in self._neighbors:
            if kernel_size % 2 == 0 or not 1 <= kernel_size <= WIDEST_KERNEL:
                raise InputError(
                    f"neighbors: expected an odd kernel size up to {WIDEST_KERNEL}, "
                    f"got {kernel_size}"
                )
            rows = self.backend.neighbor_rows(self.keys, self.layout.extent, kernel_size)
            self._neighbors[kernel_size] = KernelMap(rows, None, self.cells, self.cells)
        return self._neighbors[kernel_size]

    @cached_property
    def coarser(self) -> tuple[Level, KernelMap]:
        """The level with twice the stride, and the map of the 2³ convolution that leads there."""
        stride = 2 * self.stride
        batch, xyz = self.coordinates[:, 0], self.coordinates[:, 1:]
        layout = self.layout.coarser()
        cells = torch.div(xyz, stride, rounding_mode="floor").long()
        keys, parents = torch.unique(layout.keys(batch.long(), cells), return_inverse=True)

        coordinates = self.coordinates.new_empty(len(keys), 4)
        coordinates[parents] = torch.cat([batch[:, None], (cells * stride).int()], 1)
        target = Cells(coordinates, stride)

        x, y, z = (torch.div(xyz, self.stride, rounding_mode="floor").long() & 1).T
        octants = x + 2 * y + 4 * z
        own_rows = torch.arange(len(self), device=keys.device)
        rows = coordinates.new_full((len(keys), 8), -1)
        rows[parents, octants] = own_rows.int()
        opposite_rows = coordinates.new_full((len(self), 8), -1)
        opposite_rows[own_rows, octants] = parents.int()

        level = Level(target, keys, layout, parents[self.row_of_point], self.backend)
        return level, KernelMap(rows, opposite_rows, self.cells, target)


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """features (N, C), one row per voxel of `level`."""

    features: Tensor
    level: Level

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or len(self.features) != len(self.level):
            raise InputError(
                f"SparseTensor.features: expected ({len(self.level)}, channels) for the voxels of "
                f"its level, got {tuple(self.features.shape)}"
            )

    def with_features(self, features: Tensor) -> SparseTensor:
        """Other features on the same voxels."""
        return SparseTensor(features, self.level)

    def at_points(self) -> Tensor:
        """(P, C): for each point that the root level was made from, the features of its voxel."""
        return self.features[self.level.row_of_point]

    def of_scenes(self) -> tuple[Tensor, ...]:
        """The features of each scene, (N_b, C) each."""
        return self.features.split(self.level.scene_sizes)


def sparse_tensor(
    coordinates: Tensor,
    features: Tensor,
    scenes: int | None = None,
    backend: BackendName = "auto",
) -> SparseTensor:
    """Points or voxels in any order -> the root level; points in one voxel share their mean.

    coordinates (P, 4) int32 or int64: batch, x, y, z in voxels, negative ones too. features (P, C)
    floating. scenes: the size of the batch, for batches that end with empty scenes. Raises
    InputError for other shapes and types, numbers that are not finite and scenes too large.
    """
    _check_points(coordinates, features)
    if not len(coordinates):
        coordinates = coordinates.reshape(0, 4)
        low = high = [0, 0, 0, 0]
    else:
        low, high = (bound.tolist() for bound in torch.aminmax(coordinates, dim=0))
    most = MOST_SCENES if scenes is None else min(max(scenes, 1), MOST_SCENES)
    if low[0] < 0 or high[0] >= most:
        raise InputError(
            f"sparse_tensor.coordinates: expected batch numbers from 0 to {most - 1}, got "
            f"{low[0]} to {high[0]}"
        )
    if min(low[1:]) < -(2**31) + 2**16 or max(high[1:]) >= 2**31 - 2**16:
        raise InputError(
            "sparse_tensor.coordinates: expected voxel coordinates of about ±2^31 at most, got "
            f"{min(low[1:])} to {max(high[1:])}: move the origin or use larger voxels"
        )
    scenes = high[0] + 1 if scenes is None else scenes
    layout = KeyLayout((low[1], low[2], low[3]), (high[1], high[2], high[3]), scenes)
    wide = coordinates.long()
    # Stable, so that the points of a voxel are summed in their order, whatever the threads.
    point_keys, order = layout.keys(wide[:, 0], wide[:, 1:]).sort(stable=True)
    keys, rows, counts = torch.unique_consecutive(
        point_keys, return_inverse=True, return_counts=True
    )
    row_of_point = torch.empty_like(order)
    row_of_point[order] = rows
    cells = coordinates.new_empty(len(keys), 4, dtype=torch.int32)
    cells[row_of_point] = coordinates.int()

    features = features[order]
    if len(keys) < len(order):
        features = reduce_runs(features, "mean", counts)
    chosen = choose_backend(backend, features.device)
    return SparseTensor(features, Level(Cells(cells, 1), keys, layout, row_of_point, chosen))


def reduce_runs(rows: Tensor, mode: Literal["mean", "max"], lengths: Tensor) -> Tensor:
    """(R, C) for runs of consecutive rows (N, C); the sums of half precision are kept in single."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return torch.segment_reduce(wide, mode, lengths=lengths, axis=0).to(rows.dtype)


def batch_voxels(
    batch: Sequence[Voxels], device: torch.device | str = "cpu", backend: BackendName = "auto"
) -> SparseTensor:
    """The voxels of several meshes as one sparse tensor; `at_points` returns them in this order.

    Raises InputError for an empty batch and for other numbers of channels within it.
    """
    channels = sorted({voxels.features.shape[1] for voxels in batch})
    if len(channels) != 1:
        raise InputError(
            f"batch_voxels: expected at least one scene and one number of channels, got "
            f"{len(batch)} scenes with {channels} channels"
        )
    coordinates = [
        np.pad(voxels.coordinates, ((0, 0), (1, 0)), constant_values=scene)
        for scene, voxels in enumerate(batch)
    ]
    return sparse_tensor(
        torch.from_numpy(np.concatenate(coordinates)).to(device),
        torch.from_numpy(np.concatenate([voxels.features for voxels in batch])).to(device),
        scenes=len(batch),
        backend=backend,
    )


def concatenate(first: SparseTensor, second: SparseTensor) -> SparseTensor:
    """The channels of both, which must lie on one level."""
    if first.level is not second.level:
        raise InputError(
            f"concatenate: expected tensors of one level, got strides {first.level.stride} and "
            f"{second.level.stride}"
        )
    return first.with_features(torch.cat([first.features, second.features], 1))


def _check_points(coordinates: Tensor, features: Tensor) -> None:
    name = "sparse_tensor"
    if coordinates.dtype not in (torch.int32, torch.int64):
        raise InputError(
            f"{name}.coordinates: expected int32 or int64, got {coordinates.dtype}: "
            "divide by the voxel size and round down first"
        )
    if coordinates.ndim != 2 or coordinates.shape[1] != 4:
        raise InputError(
            f"{name}.coordinates: expected (points, 4) for batch, x, y and z, "
            f"got {tuple(coordinates.shape)}"
        )
    if features.ndim != 2 or len(features) != len(coordinates):
        raise InputError(
            f"{name}.features: expected ({len(coordinates)}, channels), got {tuple(features.shape)}"
        )
    if not features.is_floating_point():
        raise InputError(f"{name}.features: expected floating point, got {features.dtype}")
    if features.device != coordinates.device:
        raise InputError(
            f"{name}: expected coordinates and features on one device, got "
            f"{coordinates.device} and {features.device}"
        )
    if not features.isfinite().all():
        row = int((~features.isfinite()).any(1).nonzero()[0])
        raise InputError(
            f"{name}.features: expected finite numbers, got {features[row].tolist()} in row {row}"
        )
