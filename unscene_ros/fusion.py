"""Registered depth frames to a map of truncated signed distances, and the map to a mesh.

Volumetric integration (Curless & Levoy, SIGGRAPH 1996) in sparse blocks of voxels. Objects that
were taken away disappear, the mesh costs work only where the map changed, memory is bounded.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from numba import njit

from unscene_ros.meshing import SurfaceVertices, join, surface_vertices
from unscene_ros.scene import Frame, InputError, Mesh, check_array
from unscene_ros.settings import check_ranges, within
from unscene_ros.storage import whole_file
from unscene_ros.voxel_blocks import (
    AXIS_OFFSET,
    BLOCK,
    BLOCK_BYTES,
    CHANNELS,
    CHUNK,
    CORNER_ID_STEPS,
    TRUNCATION_VOXELS,
    VoxelBlocks,
    block_ids,
    choose_device,
    places_in_sorted,
)

TILE = 16  # pixels along a tile of the coarse depth picture that finds the blocks in view
FILE_FORMAT = 1  # another number for each change of the arrays, the block or the truncation


@dataclass(frozen=True, slots=True)
class FusionConfig:
    """Settings of the map."""

    voxel_size_m: float = within(0.04, 0.001, 1)
    depth_min_m: float = within(0.2, 0)  # nearer and farther readings are ignored
    depth_max_m: float = within(5.0, 0)
    # A voxel seen less often belongs to no surface; more is cleaner, later.
    min_weight: int = within(1, 1)
    # About this many frames are averaged: fewer forget removed things sooner.
    max_weight: int = within(32, 1)
    min_component_triangles: int = within(20, 0)  # smaller loose pieces of surface are noise
    max_radius_m: float = within(30.0, 0)  # blocks farther from the camera are dropped
    # Of voxels; above it, the blocks not seen for longest go first.
    max_megabytes: float = within(1024.0, 32)
    device: Literal["auto", "cuda", "cpu"] = "auto"

    def __post_init__(self) -> None:
        check_ranges(self, "fusion")
        for low, high in (
            ("depth_min_m", "depth_max_m"),
            ("depth_max_m", "max_radius_m"),
            ("min_weight", "max_weight"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise InputError(
                    f"fusion.{low}: expected at most {high}, {getattr(self, high)}, got "
                    f"{getattr(self, low)}"
                )


@dataclass(frozen=True, slots=True)
class FusionStats:
    """What one frame did to the map, in blocks."""

    updated: int
    added: int
    evicted: int


class TsdfVolume:
    """The map: `integrate` frames, `extract_mesh` at any time, `save` and `load`.

    `frames` counts those used and `dropped` those that could not be, by reason; `evicted_blocks`
    counts what was forgotten to bound the memory.
    """

    def __init__(self, config: FusionConfig) -> None:
        self.config = config
        self.frames = 0
        self.dropped: Counter[str] = Counter()
        self.evicted_blocks = 0
        self._max_blocks = int(config.max_megabytes * 1e6 / BLOCK_BYTES)
        self._blocks = VoxelBlocks(
            config.voxel_size_m, self._max_blocks, choose_device(config.device)
        )
        self._block_m = BLOCK * config.voxel_size_m
        # The last extraction: its vertices, and the blocks that there were.
        self._surface = SurfaceVertices.empty()
        self._surface_ids = np.zeros(0, np.int64)

    @property
    def block_count(self) -> int:
        """Blocks in the map."""
        return len(self._blocks)

    @property
    def memory_megabytes(self) -> float:
        """What the voxels occupy, rows in reserve included."""
        return self._blocks.capacity * BLOCK_BYTES / 1e6

    def integrate(self, frame: Frame) -> FusionStats | None:
        """Takes one frame into the map; None when it cannot be used, which `dropped` counts."""
        depth, tiles = _usable_depth(frame.depth, self.config.depth_min_m, self.config.depth_max_m)
        center = frame.world_from_camera[:3, 3]
        if np.abs(center).max() + 2 * self.config.depth_max_m > AXIS_OFFSET * self._block_m:
            self.dropped["camera too far from the origin"] += 1
            return None
        camera_from_world = np.linalg.inv(frame.world_from_camera)
        touched = self._blocks.touched_by(depth, frame.camera, camera_from_world)
        if not len(touched):
            self.dropped["no depth in range"] += 1
            return None
        self.frames += 1
        added = self._blocks.add(touched)
        # With the touched blocks alone, as usual, nothing would ever be seen to be empty again: an
        # object that was taken away stayed. All blocks in view hold the touched ones too.
        rows, keys = self._blocks.active()
        in_view = _in_view(
            keys, self.config.voxel_size_m, tiles, frame.camera.intrinsics, camera_from_world
        )
        updated = rows[in_view]
        self._blocks.integrate(keys[in_view], depth, frame.color, frame.camera, camera_from_world)
        self._blocks.cap_weights(updated, self.config.max_weight)
        self._blocks.changed[updated] = True
        self._blocks.last_seen[updated] = self.frames
        evicted = self._evict(rows, keys, center, spare=2 * len(touched) + CHUNK)
        return FusionStats(updated=len(updated), added=len(added), evicted=evicted)

    def _evict(self, rows: np.ndarray, keys: np.ndarray, center: np.ndarray, spare: int) -> int:
        """Removes the blocks that are far, and the oldest as long as `spare` more do not fit.

        What the last frame updated stays, even if it does not fit alone.
        """
        age = self.frames - self._blocks.last_seen[rows]
        distance = np.linalg.norm((keys + 0.5) * self._block_m - center, axis=1)
        is_far = distance > self.config.max_radius_m
        age[is_far] = self.frames + 1
        excess = max(len(keys) + spare - self._max_blocks, np.count_nonzero(is_far))
        evicted = np.argsort(-age, kind="stable")[: max(excess, 0)]
        evicted = evicted[age[evicted] > 0]
        self._blocks.remove(keys[evicted])
        self.evicted_blocks += len(evicted)
        return len(evicted)

    def extract_mesh(self) -> Mesh:
        """The surface of the whole map; only blocks that changed since the last call cost work."""
        rows, keys = self._blocks.active()
        ids = block_ids(keys)
        gone = np.setdiff1d(self._surface_ids, ids, assume_unique=True)
        touched = np.concatenate([ids[self._blocks.changed[rows]], gone])
        # Cells have corners in the next blocks, so the blocks before a changed one change too.
        stale = np.unique(touched[:, None] - CORNER_ID_STEPS)
        present = stale[places_in_sorted(stale, ids) >= 0]
        places = places_in_sorted(present[:, None] + CORNER_ID_STEPS, ids)
        values, corner_rows = self._blocks.read(np.where(places < 0, -1, rows[places]))
        tsdf, weight, color = values
        config = self.config
        new = surface_vertices(
            tsdf, weight, color, present, corner_rows, config.voxel_size_m, config.min_weight
        )
        self._surface = self._surface.replaced(stale, new)
        self._surface_ids = ids
        self._blocks.changed[rows] = False
        return join(self._surface, config.min_component_triangles)

    def save(self, path: Path | str) -> None:
        """Writes the map to a .npz file, whole or not at all; InputError when that fails."""
        rows, keys = self._blocks.active()
        (tsdf, weight, color), places = self._blocks.read(rows)
        header = {
            "format": FILE_FORMAT,
            "voxel_size_m": self.config.voxel_size_m,
            "frames": self.frames,
        }
        with whole_file(Path(path)) as file:
            np.savez_compressed(
                file,
                header=np.array(json.dumps(header)),
                keys=keys,
                last_seen=self._blocks.last_seen[rows],
                tsdf=tsdf[places],
                weight=weight[places],
                color=color[places],
            )

    @classmethod
    def load(cls, path: Path | str, config: FusionConfig) -> TsdfVolume:
        """A saved map, ready for more frames.

        Raises InputError for a file that is missing, damaged, no map, or of another voxel size.
        """
        header, arrays = _read_map(Path(path))
        if header["voxel_size_m"] != config.voxel_size_m:
            raise InputError(
                f"map file {path}: expected voxels of {config.voxel_size_m} m, got "
                f"{header['voxel_size_m']} m: set fusion.voxel_size_m to that or start a new map"
            )
        volume = cls(config)
        volume.frames = header["frames"]
        rows = volume._blocks.add(arrays["keys"])
        volume._blocks.write(rows, arrays["tsdf"], arrays["weight"], arrays["color"])
        volume._blocks.last_seen[rows] = arrays["last_seen"]
        return volume


def _read_map(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a map file; InputError when they are not those of a whole map."""
    damaged = (ValueError, TypeError, AttributeError, KeyError, EOFError, BadZipFile, zlib.error)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        header = json.loads(str(arrays.pop("header")))
        if header["format"] != FILE_FORMAT:
            raise ValueError(f"format {header['format']} instead of {FILE_FORMAT}")
        header = {"voxel_size_m": float(header["voxel_size_m"]), "frames": int(header["frames"])}
        _check_arrays(arrays)
    except OSError as error:
        raise InputError(f"map file {path}: cannot be read: {error.strerror or error}") from error
    except (*damaged, InputError) as error:
        raise InputError(
            f"map file {path}: expected a whole map, got a damaged or other file ({error}): "
            "save the map again"
        ) from error
    return header, arrays


def _check_arrays(arrays: dict[str, np.ndarray]) -> None:
    keys = arrays["keys"]
    check_array("keys", keys, (None, 3), np.int32)
    if len(np.unique(block_ids(keys))) < len(keys):
        raise ValueError("keys: expected each block once")
    check_array("last_seen", arrays["last_seen"], (len(keys),), np.int64)
    for name, channels in CHANNELS.items():
        check_array(name, arrays[name], (len(keys), BLOCK, BLOCK, BLOCK, *channels), np.float32)
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name}: expected finite values")


@njit(cache=True)
def _usable_depth(depth, depth_min_m, depth_max_m):
    """Depth (H, W) with 0 for all that is out of range or NaN, and the farthest of each tile."""
    height, width = depth.shape
    usable = np.zeros_like(depth)
    tiles = np.zeros(((height + TILE - 1) // TILE, (width + TILE - 1) // TILE), np.float32)
    for v in range(height):
        for u in range(width):
            if depth_min_m <= depth[v, u] <= depth_max_m:
                usable[v, u] = depth[v, u]
                tiles[v // TILE, u // TILE] = max(tiles[v // TILE, u // TILE], depth[v, u])
    return usable, tiles


@njit(cache=True)
def _in_view(keys, voxel_size_m, tiles, intrinsics, camera_from_world):
    """(B,) bool: blocks that may have a voxel before, or not far behind, a reading of the frame.

    A block counts as its circumscribed sphere and a pixel as its tile, so that none is missed.
    """
    radius = 0.5 * np.sqrt(3) * (BLOCK - 1) * voxel_size_m
    truncation = TRUNCATION_VOXELS * voxel_size_m
    rotation = np.ascontiguousarray(camera_from_world[:3, :3])
    in_view = np.zeros(len(keys), np.bool_)
    for b in range(len(keys)):
        middle = (keys[b] * BLOCK + 0.5 * (BLOCK - 1)) * voxel_size_m
        x, y, z = rotation @ middle + camera_from_world[:3, 3]
        if z + radius <= 0:
            continue
        left, right = _covered(x, z, radius, intrinsics[0, 0], intrinsics[0, 2], tiles.shape[1])
        top, bottom = _covered(y, z, radius, intrinsics[1, 1], intrinsics[1, 2], tiles.shape[0])
        farthest = tiles[top:bottom, left:right]
        in_view[b] = farthest.size > 0 and z - radius <= farthest.max() + truncation
    return in_view


@njit(cache=True)
def _covered(x, z, radius, focal, center, tiles):
    """First tile and one after the last that a sphere at (x, z) may cover along an image axis."""
    if z - radius <= 0:
        return 0, tiles
    low = min((x - radius) / (z - radius), (x - radius) / (z + radius)) * focal + center
    high = max((x + radius) / (z - radius), (x + radius) / (z + radius)) * focal + center
    return max(int(low // TILE), 0), min(int(high // TILE) + 1, tiles)
