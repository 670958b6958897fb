"""Registered depth frames to a map of truncated signed distances, and the map to a mesh.

Volumetric integration (Curless & Levoy, SIGGRAPH 1996) in sparse blocks of voxels. Objects that
were taken away disappear, the mesh costs work only where the map changed, memory is bounded.
"""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numba import njit

from unscene_ros.map_file import MapSnapshot
from unscene_ros.meshing import SurfaceVertices, join, surface_vertices
from unscene_ros.scene import Frame, InputError, Mesh
from unscene_ros.settings import check_ranges, within
from unscene_ros.voxel_blocks import (
    AXIS_OFFSET,
    BLOCK,
    BLOCK_BYTES,
    CHUNK,
    CORNER_ID_STEPS,
    TRUNCATION_VOXELS,
    VoxelBlocks,
    block_ids,
    choose_device,
    places_in_sorted,
)

TILE = 16  # pixels along a tile of the coarse depth pictures that find the blocks in view
OUT_OF_VIEW, AT_SURFACE, BEFORE_FAR = 0, 1, 2  # where a block is for a frame


@dataclass(frozen=True, slots=True)
class FusionConfig:
    """Settings of the map."""

    voxel_size_m: float = within(0.04, 0.001, 1)
    depth_min_m: float = within(0.2, 0)  # nearer readings are ignored;
    depth_max_m: float = within(5.0, 0)  # farther ones only tell that all before them is free
    # A voxel seen less often belongs to no surface; more is cleaner, later.
    min_weight: int = within(1, 1)
    # About this many frames are averaged: more are smoother, fewer follow slow drift sooner.
    max_weight: int = within(32, 1)
    # The same where a frame sees through what the map has: about this many more such frames
    # remove it. Kept between min_weight and max_weight.
    max_weight_seen_free: int = within(6, 1)
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
    counts what was forgotten to bound the memory. `map_id`, 32 hexadecimal digits, is this map's
    alone, and still its own after it was saved and loaded.
    """

    def __init__(self, config: FusionConfig) -> None:
        self.config = config
        self.map_id = uuid.uuid4().hex
        self.frames = 0
        self.dropped: Counter[str] = Counter()
        self.evicted_blocks = 0
        self._blocks = VoxelBlocks(
            config.voxel_size_m, self.max_blocks, choose_device(config.device)
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
    def max_blocks(self) -> int:
        """Blocks that the settings have room for."""
        return int(self.config.max_megabytes * 1e6 / BLOCK_BYTES)

    @property
    def lost_surface(self) -> str:
        """What was forgotten to bound the memory, and which settings do so; empty for nothing."""
        if not self.evicted_blocks:
            return ""
        return (
            f"{self.evicted_blocks} blocks of the surface were dropped, being farther from the "
            f"camera than fusion.max_radius_m ({self.config.max_radius_m:g}) or more than fit into "
            f"fusion.max_megabytes ({self.config.max_megabytes:g}): raise them for a place of this "
            "size"
        )

    @property
    def memory_megabytes(self) -> float:
        """What the voxels occupy, rows in reserve included."""
        return self._blocks.capacity * BLOCK_BYTES / 1e6

    def integrate(self, frame: Frame) -> FusionStats | None:
        """Takes one frame into the map; None when it cannot be used, which `dropped` counts."""
        config, camera = self.config, frame.camera
        center = frame.world_from_camera[:3, 3]
        if np.abs(center).max() + 2 * config.depth_max_m > AXIS_OFFSET * self._block_m:
            self.dropped["camera too far from the origin"] += 1
            return None
        near, near_and_far, farthest_near, nearest_far = _readings(
            frame.depth, config.depth_min_m, config.depth_max_m
        )
        if not near_and_far.any():
            self.dropped["no depth in range"] += 1
            return None
        camera_from_world = np.linalg.inv(frame.world_from_camera)
        touched = self._blocks.touched_by(near, camera, camera_from_world)
        added = self._blocks.add(touched)
        # With the touched blocks alone, as usual, nothing would ever be seen to be empty again: an
        # object that was taken away stayed. All blocks in view hold the touched ones too.
        rows, keys = self._blocks.active()
        places = _places(
            keys,
            config.voxel_size_m,
            farthest_near,
            nearest_far,
            camera.intrinsics,
            camera_from_world,
        )
        updated = rows[places != OUT_OF_VIEW]
        if not len(updated):
            self.dropped["no depth in range"] += 1
            return None
        self.frames += 1
        distances_before = self._blocks.distances(updated)
        for place, depth in ((AT_SURFACE, near), (BEFORE_FAR, near_and_far)):
            self._blocks.integrate(
                keys[places == place], depth, frame.color, camera, camera_from_world
            )
        self._blocks.cap_weights(
            updated,
            distances_before,
            config.max_weight,
            max(config.min_weight, min(config.max_weight_seen_free, config.max_weight)),
        )
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
        excess = max(len(keys) + spare - self.max_blocks, np.count_nonzero(is_far))
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

    def clear_around(self, center: np.ndarray, radius_m: float) -> int:
        """Removes the blocks whose middle is nearer than this to `center` (3,); how many."""
        _, keys = self._blocks.active()
        middles = (keys + 0.5) * self._block_m
        near = keys[np.linalg.norm(middles - center, axis=1) < radius_m]
        self._blocks.remove(near)
        return len(near)

    def snapshot(self) -> MapSnapshot:
        """The map as it is now, to be written while this one goes on."""
        rows, keys = self._blocks.active()
        (tsdf, weight, color), places = self._blocks.read(rows)
        return MapSnapshot(
            self.map_id,
            self.config.voxel_size_m,
            self.frames,
            keys,
            self._blocks.last_seen[rows],
            tsdf[places],
            weight[places],
            color[places],
        )

    def save(self, path: Path | str) -> None:
        """Writes the map to a .npz file, whole or not at all; InputError when that fails."""
        self.snapshot().write(path)

    @classmethod
    def load(cls, path: Path | str, config: FusionConfig) -> TsdfVolume:
        """A saved map, ready for more frames.

        Raises InputError for a file that is missing, damaged, no map, larger than the settings
        allow, or of another voxel size.
        """
        saved = MapSnapshot.read(path, config.max_megabytes)
        if saved.voxel_size_m != config.voxel_size_m:
            raise InputError(
                f"{path}: expected a map of voxels of {config.voxel_size_m} m, got "
                f"{saved.voxel_size_m} m: set fusion.voxel_size_m to that or start a new map"
            )
        volume = cls(config)
        volume.map_id, volume.frames = saved.map_id, saved.frames
        rows = volume._blocks.add(saved.keys)
        volume._blocks.write(rows, saved.tsdf, saved.weight, saved.color)
        volume._blocks.last_seen[rows] = saved.last_seen
        return volume


@njit(cache=True)
def _readings(depth, depth_min_m, depth_max_m):
    """What a depth picture (H, W) says, 0 for nothing: in range alone, and with what is farther.

    For each tile the farthest reading in range, 0 for none, and the nearest beyond, else infinity.
    """
    height, width = depth.shape
    tiles = (height + TILE - 1) // TILE, (width + TILE - 1) // TILE
    near, near_and_far = np.zeros_like(depth), np.zeros_like(depth)
    farthest_near = np.zeros(tiles, np.float32)
    nearest_far = np.full(tiles, np.inf, np.float32)
    for v in range(height):
        for u in range(width):
            reading, tile = depth[v, u], (v // TILE, u // TILE)
            if depth_min_m <= reading <= depth_max_m:
                near[v, u] = near_and_far[v, u] = reading
                farthest_near[tile] = max(farthest_near[tile], reading)
            elif depth_max_m < reading < np.inf:
                near_and_far[v, u] = reading
                nearest_far[tile] = min(nearest_far[tile], reading)
    return near, near_and_far, farthest_near, nearest_far


@njit(cache=True)
def _places(keys, voxel_size_m, farthest_near, nearest_far, intrinsics, camera_from_world):
    """(B,) int8 for each block: may it have a voxel before, or not far behind, a reading?

    BEFORE_FAR: before all readings out of range, and there are some; they cannot touch a surface
    there. A block counts as its circumscribed sphere and a pixel as its tile: none is missed.
    """
    radius = 0.5 * np.sqrt(3) * (BLOCK - 1) * voxel_size_m
    truncation = TRUNCATION_VOXELS * voxel_size_m
    rotation = np.ascontiguousarray(camera_from_world[:3, :3])
    places = np.full(len(keys), OUT_OF_VIEW, np.int8)
    rows, columns = farthest_near.shape
    for b in range(len(keys)):
        middle = (keys[b] * BLOCK + 0.5 * (BLOCK - 1)) * voxel_size_m
        x, y, z = rotation @ middle + camera_from_world[:3, 3]
        if z + radius <= 0:
            continue
        left, right = _covered(x, z, radius, intrinsics[0, 0], intrinsics[0, 2], columns)
        top, bottom = _covered(y, z, radius, intrinsics[1, 1], intrinsics[1, 2], rows)
        if left >= right or top >= bottom:
            continue
        if z + radius + truncation <= nearest_far[top:bottom, left:right].min() < np.inf:
            places[b] = BEFORE_FAR
        elif z - radius <= farthest_near[top:bottom, left:right].max() + truncation:
            places[b] = AT_SURFACE
    return places


@njit(cache=True)
def _covered(x, z, radius, focal, center, tiles):
    """First tile and one after the last that a sphere at (x, z) may cover along an image axis."""
    if z - radius <= 0:
        return 0, tiles
    low = min((x - radius) / (z - radius), (x - radius) / (z + radius)) * focal + center
    high = max((x + radius) / (z - radius), (x + radius) / (z + radius)) * focal + center
    return max(int(low // TILE), 0), min(int(high // TILE) + 1, tiles)
