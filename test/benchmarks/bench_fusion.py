"""Time and memory of fusion and of map updates on the bundled recording, against plain Open3D.

The pictures are scaled to 640x480. The peer is Open3D's VoxelBlockGrid as it comes: blocks of 16,
truncation 8 voxels, 16-bit depth, only blocks at the surface, and the whole mesh at each update.
Memory is that of the blocks in use.
"""

import dataclasses
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import open3d as o3d

from benchmarks import row, seconds
from unscene_ros.fusion import FusionConfig, TsdfVolume
from unscene_ros.recordings import open_recording
from unscene_ros.scene import Frame
from unscene_ros.voxel_blocks import BLOCK_BYTES

RECORDING = Path(__file__).parents[1] / "data" / "office_kitchen"
SIZE = 640, 480
UPDATES = 15


class PlainOpen3D:
    """The peer."""

    def __init__(self, config: FusionConfig) -> None:
        core = o3d.core
        self.config = config
        self.grid = o3d.t.geometry.VoxelBlockGrid(
            ("tsdf", "weight", "color"),
            (core.float32, core.uint16, core.uint16),
            ((1), (1), (3)),
            config.voxel_size_m,
            16,
            10_000,
        )

    def integrate(self, frame: Frame) -> None:
        image = o3d.t.geometry.Image
        depth = image(o3d.core.Tensor((frame.depth * 1000).astype(np.uint16)))
        color = image(o3d.core.Tensor(frame.color))
        view = (
            o3d.core.Tensor(frame.camera.intrinsics),
            o3d.core.Tensor(np.linalg.inv(frame.world_from_camera)),
            1000.0,
            self.config.depth_max_m,
            8.0,
        )
        blocks = self.grid.compute_unique_block_coordinates(depth, *view)
        self.grid.integrate(blocks, depth, color, *view)

    def extract_mesh(self) -> None:
        self.grid.extract_triangle_mesh(self.config.min_weight, -1)

    @property
    def used_bytes(self) -> int:
        return self.grid.hashmap().size() * 16**3 * (4 + 2 + 6)


def frames() -> list[Frame]:
    """The recording at SIZE."""
    return [
        dataclasses.replace(
            frame,
            camera=frame.camera.resized(*SIZE),
            color=cv2.resize(frame.color, SIZE, interpolation=cv2.INTER_AREA),
            depth=cv2.resize(frame.depth, SIZE, interpolation=cv2.INTER_NEAREST),
        )
        for frame in open_recording(RECORDING)
    ]


def compared(name: str, unit: str, ours: list[float], theirs: list[float]) -> dict:
    """Medians of both."""
    value, peer_value = statistics.median(ours), statistics.median(theirs)
    peer = "Open3D VoxelBlockGrid"
    return row("fusion", name, value, unit, len(ours), peer, peer_value, peer_value / value)


def rows() -> Iterator[dict]:
    recording = frames()
    for voxel_cm in (4, 2):
        config = FusionConfig(voxel_size_m=voxel_cm / 100, device="cpu")
        warm_up = TsdfVolume(config)
        for frame in recording[:3]:
            warm_up.integrate(frame)
        warm_up.extract_mesh()

        ours, theirs = TsdfVolume(config), PlainOpen3D(config)
        times: tuple[list[float], list[float]] = [], []
        for frame in recording:
            for volume, taken in zip((ours, theirs), times, strict=True):
                taken.append(1000 * seconds(partial(volume.integrate, frame)))
        yield compared(f"fusion_{voxel_cm}cm_ms", "ms", *times)

        ours.extract_mesh()
        times = [], []
        for frame in recording[:: len(recording) // UPDATES]:
            ours.integrate(frame)
            for volume, taken in zip((ours, theirs), times, strict=True):
                taken.append(1000 * seconds(volume.extract_mesh))
        yield compared(f"map_update_{voxel_cm}cm_ms", "ms", *times)
        used = ours.block_count * BLOCK_BYTES / 1e6, theirs.used_bytes / 1e6
        yield compared(f"fusion_{voxel_cm}cm_megabytes", "MB", [used[0]], [used[1]])
