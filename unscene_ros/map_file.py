"""A whole map as arrays, and its file: to save a map, to go on with it, to know which map it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unscene_ros.scene import InputError
from unscene_ros.storage import Layout, read_arrays, whole_file
from unscene_ros.voxel_blocks import AXIS_OFFSET, BLOCK, CHANNELS, block_ids

FILE_FORMAT = 2  # another number for each change of the arrays, the block or the truncation
RANGES = {"tsdf": (-1.001, 1.001), "weight": (0.0, 1e6), "color": (0.0, 255.1)}  # with rounding
KEYS_SHARE = 0.01  # the arrays beside the voxels are less than this share of their bytes

LAYOUT: Layout = {
    "format": ((), np.int64),
    "map_id": ((16,), np.uint8),
    "voxel_size_m": ((), np.float64),
    "frames": ((), np.int64),
    "keys": (("blocks", 3), np.int32),
    "last_seen": (("blocks",), np.int64),
} | {
    name: (("blocks", BLOCK, BLOCK, BLOCK, *channels), np.float32)
    for name, channels in CHANNELS.items()
}


@dataclass(frozen=True, slots=True, eq=False)
class MapSnapshot:
    """The map at one moment; it shares no memory with the map that goes on.

    map_id: 32 hexadecimal digits. keys (B, 3) int32 and last_seen (B,) int64 of the blocks; tsdf
    and weight (B, 8, 8, 8), color (B, 8, 8, 8, 3), float32, as in `voxel_blocks`.
    """

    map_id: str
    voxel_size_m: float
    frames: int
    keys: np.ndarray
    last_seen: np.ndarray
    tsdf: np.ndarray
    weight: np.ndarray
    color: np.ndarray

    def write(self, path: Path | str) -> None:
        """Writes a .npz file, whole or not at all; raises InputError when that fails."""
        with whole_file(Path(path)) as file:
            np.savez_compressed(
                file,
                format=np.int64(FILE_FORMAT),
                map_id=np.frombuffer(bytes.fromhex(self.map_id), np.uint8),
                voxel_size_m=np.float64(self.voxel_size_m),
                frames=np.int64(self.frames),
                keys=self.keys,
                last_seen=self.last_seen,
                tsdf=self.tsdf,
                weight=self.weight,
                color=self.color,
            )

    @staticmethod
    def read(path: Path | str, max_megabytes: float) -> MapSnapshot:
        """A map file with voxels of at most `max_megabytes`.

        Raises InputError for a file that is missing, damaged, too large or no map.
        """
        arrays = read_arrays(
            Path(path),
            LAYOUT,
            (1 + KEYS_SHARE) * max_megabytes * 1e6,
            "raise fusion.max_megabytes or take a smaller map",
        )
        if (version := arrays.pop("format")) != FILE_FORMAT:
            raise InputError(
                f"{path}: expected maps of format {FILE_FORMAT}, got {version}: map this place anew"
            )
        if wrong := _senseless(arrays):
            raise InputError(f"{path}: expected a sound map, got {wrong}: take an older one")
        return MapSnapshot(
            arrays.pop("map_id").tobytes().hex(),
            float(arrays.pop("voxel_size_m")),
            int(arrays.pop("frames")),
            **arrays,
        )


def _senseless(arrays: dict[str, np.ndarray]) -> str:
    """What no map can hold, or nothing."""
    keys, last_seen, frames = arrays["keys"], arrays["last_seen"], arrays["frames"]
    if np.abs(keys.astype(np.int64)).max(initial=0) >= AXIS_OFFSET - 1:
        return "blocks out of reach"
    if len(np.unique(block_ids(keys))) < len(keys):
        return "a block twice"
    if last_seen.min(initial=0) < 0 or last_seen.max(initial=0) > frames:
        return "blocks of frames to come"
    for name, (least, most) in RANGES.items():
        values = arrays[name]
        # NaN, too, is in no range.
        if not (values.min(initial=least) >= least and values.max(initial=least) <= most):
            return f"{name} out of range"
    return ""
