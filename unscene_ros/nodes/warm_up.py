"""A made-up corner of a room, to run a stage once before the first real data.

Compiling and loading then happen while the node starts, not while frames wait.
"""

from __future__ import annotations

import numpy as np

from unscene_ros.fusion import FusionConfig, TsdfVolume
from unscene_ros.scene import Camera, Frame, Mesh

WIDTH, HEIGHT, FOCAL_PX = 160, 120, 130.0
WALL_M, BOX_M = 1.6, 1.1


def sample_frames() -> list[Frame]:
    """The same picture of a box before a wall, often enough for a surface."""
    intrinsics = np.array(
        [[FOCAL_PX, 0.0, WIDTH / 2], [0.0, FOCAL_PX, HEIGHT / 2], [0.0, 0.0, 1.0]]
    )
    depth = np.full((HEIGHT, WIDTH), WALL_M, np.float32)
    color = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    box = slice(HEIGHT // 3, 2 * HEIGHT // 3), slice(WIDTH // 3, 2 * WIDTH // 3)
    depth[box], color[box] = BOX_M, (150, 60, 40)
    camera = Camera(WIDTH, HEIGHT, intrinsics)
    # Looks along the world's y, so that the wall stands upright.
    world_from_camera = np.array(
        [[1.0, 0, 0, 0], [0, 0, 1.0, 0], [0, -1.0, 0, 1.0], [0, 0, 0, 1.0]]
    )
    return [Frame(stamp_ns, camera, color, depth, world_from_camera) for stamp_ns in range(5)]


def sample_mesh(config: FusionConfig | None = None) -> Mesh:
    """What fusion makes of these frames."""
    volume = TsdfVolume(config or FusionConfig())
    for frame in sample_frames():
        volume.integrate(frame)
    return volume.extract_mesh()
