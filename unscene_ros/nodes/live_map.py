"""The map of a running node: a thread fuses into it while others read, save or replace it."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unscene_ros.fusion import FusionConfig, TsdfVolume
from unscene_ros.keyframes import KeyframeConfig, Keyframes
from unscene_ros.latency import Latency
from unscene_ros.scene import Frame, Mesh


@dataclass(frozen=True, slots=True, eq=False)
class MapState:
    """The surface at one moment; `change` and `frames` are what the live map's were then."""

    mesh: Mesh
    map_id: str
    change: int
    frames: int
    stamp_ns: int


class Fused(NamedTuple):
    """Why a frame could not be used, the keyframe if it became one, and of which map."""

    dropped: Counter[str]
    keyframe: Frame | None
    map_id: str


class LiveMap:
    """A volume and its keyframes behind one lock; `change` counts what altered them."""

    def __init__(self, fusion: FusionConfig, keyframes: KeyframeConfig, latency: Latency) -> None:
        self.change = 0
        self.frames_used = 0
        self._latency = latency
        self._lock = threading.Lock()
        self._volume = TsdfVolume(fusion)
        self._keyframes = Keyframes(keyframes)
        self._stamp_ns = 0

    @property
    def map_id(self) -> str:
        """Which map it is: another one after `reset`, and after `load` mostly."""
        return self._volume.map_id

    def integrate(self, frame: Frame) -> Fused:
        """Takes a frame into the map and, perhaps, among the keyframes."""
        with self._lock, self._latency.measure("fusion"):
            keyframes = self._keyframes  # of this map, should another take its place meanwhile
            dropped_before = self._volume.dropped.copy()
            if self._volume.integrate(frame):
                self.frames_used += 1
                self.change += 1
                self._stamp_ns = frame.stamp_ns
            dropped = self._volume.dropped - dropped_before
            map_id = self._volume.map_id
        with self._latency.measure("keyframes"):
            became_one = not dropped and keyframes.offer(frame)
        return Fused(dropped, keyframes.frames[-1] if became_one else None, map_id)

    def extract(self) -> MapState:
        """The surface as it is now."""
        with self._lock, self._latency.measure("meshing"):
            mesh = self._volume.extract_mesh()
            return MapState(
                mesh, self._volume.map_id, self.change, self.frames_used, self._stamp_ns
            )

    def apply(self, fusion: FusionConfig, keyframes: KeyframeConfig) -> None:
        """Settings for the frames to come."""
        with self._lock:
            self._volume.config = fusion
            self._keyframes.config = keyframes

    def reset(self) -> None:
        """An empty map with a new identity."""
        self._replace(TsdfVolume(self._volume.config))

    def load(self, path: Path) -> int:
        """A saved map in place of this one, to be fused further; how many frames it is made of.

        Raises InputError for a file that is no map of the same voxel size, and keeps this one then.
        """
        volume = TsdfVolume.load(path, self._volume.config)
        self._replace(volume)
        return volume.frames

    def save(self, path: Path) -> int:
        """Writes the map, whole or not at all; how many blocks it has. Raises InputError."""
        with self._lock:
            snapshot = self._volume.snapshot()
        snapshot.write(path)  # compressing takes seconds, which fusion does not wait for
        return len(snapshot.keys)

    def clear_around(self, center: np.ndarray, radius_m: float) -> int:
        """Forgets the surface near a point; how many blocks went."""
        with self._lock:
            self.change += 1
            return self._volume.clear_around(center, radius_m)

    def figures(self) -> dict[str, Any]:
        """Size of the map, for diagnostics."""
        volume = self._volume
        return {
            "blocks": volume.block_count,
            "evicted_blocks": volume.evicted_blocks,
            "megabytes": volume.memory_megabytes,
        }

    def _replace(self, volume: TsdfVolume) -> None:
        with self._lock:
            volume.config = self._volume.config  # it may have changed while a file was read
            self._volume = volume
            self._keyframes = Keyframes(self._keyframes.config)
            self.change += 1
