"""Voxels in blocks of 8x8x8, found by block coordinates, in host or GPU memory.

A layer over Open3D's VoxelBlockGrid (Dong et al., "ASH", 2021) that closes what it leaves open: a
block that is added is empty (Open3D hands out erased memory as it was), weights have caps, growing
is fast, and values pass as numpy arrays without its slow tensor indexing.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import open3d as o3d
from numba import njit

from unscene_ros.scene import Camera, InputError

BLOCK = 8  # voxels along the edge of a block; a power of two, because cells are numbered in bits
CELL_BITS = 9
CELLS = BLOCK**3

# A block's id holds 18 bits for each axis: +-10 km at 1 cm. With the cell that makes 63 bits.
AXIS_BITS = 18
AXIS_OFFSET = 1 << (AXIS_BITS - 1)

# From a block to the eight blocks with its cells' corners (itself and the next ones), x fastest.
CORNER_STEPS = np.array([(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)], np.int64)
CORNER_ID_STEPS = CORNER_STEPS @ np.array([1, 1 << AXIS_BITS, 1 << 2 * AXIS_BITS], np.int64)

# Open3D's type stubs reject arrays and tuples that its functions take.
core: Any = o3d.core
geometry: Any = o3d.t.geometry

# Open3D's defaults, blocks of 16 and 8 voxels, take twice the memory for the same surface.
TRUNCATION_VOXELS = 4.0

# A voxel is seen to be free when what is measured lies this share of the truncation distance behind
# it, and as far behind the surface that it knew. More would leave edges of things near walls, less
# would smooth noisy surfaces worse.
SEEN_FREE_BY = 0.75

# All in 32-bit floats: Open3D's smaller layout keeps colours as integers and rounds their running
# mean down each time, which darkens a surface by a quarter level (of 255) per observation.
CHANNELS: dict[str, tuple[int, ...]] = {"tsdf": (), "weight": (), "color": (3,)}
BLOCK_BYTES = 4 * BLOCK**3 * 5

CHUNK = 1024  # blocks integrated at once; Open3D wants room for as many blocks again
DEPTH_SCALE = 1.0  # depth comes in metres,
DEPTH_MAX_M = np.inf  # and without the readings that are too far
TOUCH_STRIDE = 4  # Open3D looks at every fourth pixel when it searches the blocks at a surface


def choose_device(device: Literal["auto", "cuda", "cpu"]) -> Any:
    """The Open3D device; InputError when CUDA is asked for and missing."""
    has_cuda = core.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise InputError(
            "device: expected a GPU for 'cuda', got none that Open3D can use: "
            "set it to cpu, or install the open3d package that is built with CUDA"
        )
    return core.Device("CUDA:0" if has_cuda and device != "cpu" else "CPU:0")


class VoxelBlocks:
    """Blocks of truncated signed distance, weight and colour.

    A block has a key, its coordinates (x, y, z), and a row in the value buffers, which holds until
    blocks are added. `last_seen` (frame number) and `changed` are aligned to the rows. Voxel
    (x, y, z) of block (i, j, k) lies at (8 i + x, 8 j + y, 8 k + z) * voxel_size_m.
    """

    def __init__(self, voxel_size_m: float, most: int, device: Any, capacity: int = 0) -> None:
        """An empty map that expects no more than `most` blocks, but does not refuse them."""
        capacity = capacity or min(4096, most)
        self.voxel_size_m = voxel_size_m
        self.most = most
        self.last_seen = np.zeros(capacity, np.int64)
        self.changed = np.zeros(capacity, bool)
        self._device = device
        self._in_host_memory = device.get_type() == core.Device.DeviceType.CPU
        self._grid = geometry.VoxelBlockGrid(
            tuple(CHANNELS),
            (core.float32,) * len(CHANNELS),
            tuple(CHANNELS.values()),
            voxel_size_m,
            BLOCK,
            capacity,
            device,
        )

    def __len__(self) -> int:
        return self._grid.hashmap().size()

    @property
    def capacity(self) -> int:
        """Rows there is memory for."""
        return len(self.last_seen)

    def active(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (B,) int64 and keys (B, 3) int32 of all blocks, ordered by block id."""
        rows = self._grid.hashmap().active_buf_indices().cpu().numpy().astype(np.int64)
        keys = self._grid.hashmap().key_tensor().cpu().numpy()[rows]
        order = np.argsort(block_ids(keys))
        return rows[order], keys[order]

    def add(self, keys: np.ndarray) -> np.ndarray:
        """Adds empty blocks at those of `keys` (B, 3) int32 that have none; (N,) rows of these."""
        if not len(keys):
            return np.zeros(0, np.int64)
        self._reserve(len(self) + len(keys) + CHUNK)
        rows, is_new = self._grid.hashmap().activate(self._tensor(keys))
        new = rows.cpu().numpy()[is_new.cpu().numpy()].astype(np.int64)
        self.write(new, *[np.zeros(1, np.float32)] * len(CHANNELS))
        self.last_seen[new] = 0
        self.changed[new] = True
        return new

    def remove(self, keys: np.ndarray) -> None:
        """Removes the blocks at `keys` (B, 3) int32; their rows are used again."""
        if len(keys):  # Open3D raises an error
            self._grid.hashmap().erase(self._tensor(keys))

    def read(self, rows: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """The values of `rows` (any shape, -1 for none), and their places in them.

        tsdf and weight (R, 8, 8, 8), color (R, 8, 8, 8, 3), float32, are indexed
        [place, z, y, x]. In host memory they are the map itself, without a copy.
        """
        attributes = [self._grid.attribute(name) for name in CHANNELS]
        if self._in_host_memory:
            return [attribute.numpy() for attribute in attributes], rows
        wanted = np.unique(rows[rows >= 0])
        values = [attribute[self._tensor(wanted)].cpu().numpy() for attribute in attributes]
        return values, places_in_sorted(rows, wanted)

    def write(self, rows: np.ndarray, *values: np.ndarray) -> None:
        """Sets tsdf, weight and color of `rows` (B,), shaped as `read` gives them or a constant."""
        for name, value in zip(CHANNELS, values, strict=True):
            attribute = self._grid.attribute(name)
            if self._in_host_memory:
                attribute.numpy()[rows] = value
            elif len(rows):
                shape = (len(rows), *attribute.shape[1:])
                attribute[self._tensor(rows)] = self._tensor(np.broadcast_to(value, shape))

    def touched_by(
        self, depth: np.ndarray, camera: Camera, camera_from_world: np.ndarray
    ) -> np.ndarray:
        """(B, 3) int32 keys of the blocks near the surface in a depth picture (H, W) float32 m."""
        height, width = (size - size % TOUCH_STRIDE for size in depth.shape)
        if not depth[:height:TOUCH_STRIDE, :width:TOUCH_STRIDE].any():
            return np.zeros((0, 3), np.int32)  # Open3D raises an error
        keys = self._grid.compute_unique_block_coordinates(
            self._image(depth),
            core.Tensor(camera.intrinsics),
            core.Tensor(camera_from_world),
            DEPTH_SCALE,
            DEPTH_MAX_M,
            TRUNCATION_VOXELS,
        )
        return keys.cpu().numpy()

    def integrate(
        self,
        keys: np.ndarray,
        depth: np.ndarray,
        color: np.ndarray,
        camera: Camera,
        camera_from_world: np.ndarray,
    ) -> None:
        """Takes a picture into the running means of the blocks at `keys` (B, 3), which must exist.

        depth (H, W) float32 metres, 0 for none, its first row and column are not used; color
        (H, W, 3) uint8.
        """
        if not len(keys):
            return
        depth = depth.copy()
        depth[0] = depth[:, 0] = 0  # in these pixels Open3D loses the colour, which leaves black
        pictures = (
            self._image(depth),
            self._image(np.multiply(color, np.float32(1 / 255), dtype=np.float32)),
        )
        pose = (core.Tensor(camera.intrinsics), core.Tensor(camera_from_world))
        for first in range(0, len(keys), CHUNK):
            chunk = self._tensor(keys[first : first + CHUNK])
            self._grid.integrate(
                chunk, *pictures, *pose, DEPTH_SCALE, DEPTH_MAX_M, TRUNCATION_VOXELS
            )

    def distances(self, rows: np.ndarray) -> Any:
        """A copy of the signed distances of `rows` (B,), in the memory that they are in."""
        tsdf = self._grid.attribute("tsdf")
        return tsdf.numpy()[rows] if self._in_host_memory else tsdf[self._tensor(rows)]

    def cap_weights(
        self, rows: np.ndarray, distances_before: Any, most: float, most_free: float
    ) -> None:
        """Lets no voxel of `rows` (B,) count more than `most` observations.

        One that the last picture showed to be free counts `most_free` at most, so that the next
        ones can do away with a surface that is gone. That picture is found in what it changed:
        `distances_before` are the `distances` of the same rows from before it.
        """
        tsdf, weight = self._grid.attribute("tsdf"), self._grid.attribute("weight")
        if self._in_host_memory:
            _cap_weights(tsdf.numpy(), weight.numpy(), rows, distances_before, most, most_free)
        elif len(rows):
            chosen = self._tensor(rows)
            weights = weight[chosen]
            seen = distances_before + weights * (tsdf[chosen] - distances_before)
            weights = weights.clip(0, most)
            free = (seen - distances_before.clip(-1, 0)).ge(SEEN_FREE_BY)
            weights[free] = weights[free].clip(0, most_free)
            weight[chosen] = weights

    def _reserve(self, capacity: int) -> None:
        """Makes room for `capacity` blocks, or twice that where the plan allows."""
        if capacity <= self.capacity:
            return
        # Twice as fast as Open3D's own growing, which indexes tensors block by block.
        capacity = max(capacity, min(2 * capacity, self.most))
        bigger = VoxelBlocks(self.voxel_size_m, self.most, self._device, capacity)
        rows, keys = self.active()
        (tsdf, weight, color), places = self.read(rows)
        new_rows = bigger.add(keys)
        bigger.write(new_rows, tsdf[places], weight[places], color[places])
        bigger.last_seen[new_rows] = self.last_seen[rows]
        bigger.changed[new_rows] = self.changed[rows]
        self._grid, self.last_seen, self.changed = bigger._grid, bigger.last_seen, bigger.changed

    def _tensor(self, array: np.ndarray) -> Any:
        return core.Tensor(np.ascontiguousarray(array), device=self._device)

    def _image(self, array: np.ndarray) -> Any:
        return geometry.Image(self._tensor(array))


@njit(cache=True)
def _cap_weights(tsdf, weight, rows, distances_before, most, most_free):
    for place, row in enumerate(rows):
        means, weights = tsdf[row].ravel(), weight[row].ravel()  # views
        for voxel, before in enumerate(distances_before[place].ravel()):
            count = weights[voxel]
            if count > most_free:
                seen = before + count * (means[voxel] - before)
                is_free = seen - min(before, 0) >= SEEN_FREE_BY
                weights[voxel] = most_free if is_free else min(count, most)


def block_ids(keys: np.ndarray) -> np.ndarray:
    """(B,) int64 ids of block coordinates (B, 3) int32 (x, y, z), ordered by z, then y, then x."""
    counted = keys.astype(np.int64) + AXIS_OFFSET
    return counted[:, 2] << 2 * AXIS_BITS | counted[:, 1] << AXIS_BITS | counted[:, 0]


def block_keys(ids: np.ndarray) -> np.ndarray:
    """(B, 3) int32 block coordinates of `ids` (B,)."""
    axes = [ids >> axis * AXIS_BITS & (1 << AXIS_BITS) - 1 for axis in range(3)]
    return (np.stack(axes, axis=1) - AXIS_OFFSET).astype(np.int32)


def places_in_sorted(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Index of each of `values` in the ascending array `ordered`, -1 where it is not in it."""
    if not len(ordered):
        return np.full(values.shape, -1, np.int64)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.where(ordered[places] == values, places, -1)
