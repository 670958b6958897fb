"""Numbers for blocks of 8x8x8 voxels and for the cells in them, that sort by place."""

from __future__ import annotations

import numpy as np

BLOCK = 8  # voxels along the edge of a block; a power of two, because cells are numbered in bits
CELL_BITS = 9
CELLS = BLOCK**3

# A block's id holds 18 bits for each axis: +-10 km at 1 cm. With the cell that makes 63 bits.
AXIS_BITS = 18
AXIS_OFFSET = 1 << (AXIS_BITS - 1)

# From a block to the eight blocks with its cells' corners (itself and the next ones), x fastest.
CORNER_STEPS = np.array([(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)], np.int64)
CORNER_ID_STEPS = CORNER_STEPS @ np.array([1, 1 << AXIS_BITS, 1 << 2 * AXIS_BITS], np.int64)


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
