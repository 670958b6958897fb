"""Time of the built-in image features: one picture, and 24 keyframes on a mesh of 80k vertices."""

import numpy as np

from benchmarks import row, seconds
from unscene_ros.image_features import lift_to_mesh, load_image_features
from unscene_ros.scene import Camera, Frame, Mesh

AREA = "image features"
RUNS = 9
CAMERA = Camera(320, 240, np.array([[277.0, 0, 159.5], [0, 277, 119.5], [0, 0, 1]]))
RADIUS_M = 2.5


def round_room(count: int) -> Mesh:
    """Vertices all around the origin, on a sphere."""
    height = 1 - 2 * (np.arange(count) + 0.5) / count
    turn = np.arange(count) * np.pi * (3 - 5**0.5)
    ring = np.sqrt(1 - height**2)
    outward = np.stack((ring * np.cos(turn), ring * np.sin(turn), height), axis=1)
    return Mesh(
        (RADIUS_M * outward).astype(np.float32),
        np.zeros((0, 3), np.int32),
        np.zeros((count, 3), np.uint8),
        (-outward).astype(np.float32),
    )


def looking_around(count: int) -> list[Frame]:
    """Frames from the origin, one turn on the spot, each with the sphere's depth and noise."""
    random = np.random.default_rng(0)
    v, u = np.mgrid[: CAMERA.height, : CAMERA.width]
    rays = np.stack(((u - 159.5) / 277, (v - 119.5) / 277, np.ones_like(u)), axis=-1)
    depth = (RADIUS_M / np.linalg.norm(rays, axis=-1)).astype(np.float32)
    frames = []
    for angle in np.linspace(0, 2 * np.pi, count, endpoint=False):
        forward = np.array([np.cos(angle), np.sin(angle), 0])
        pose = np.eye(4)
        pose[:3, :3] = np.stack((np.cross((0, 0, -1), forward), (0, 0, -1), forward), axis=1)
        color = random.integers(0, 256, (CAMERA.height, CAMERA.width, 3), dtype=np.uint8)
        frames.append(Frame(0, CAMERA, color, depth, pose))
    return frames


def rows() -> list[dict]:
    provider = load_image_features()
    mesh, frames = round_room(80_000), looking_around(24)
    seen = float((lift_to_mesh(mesh, frames, provider).view_counts > 0).mean())  # also compiles
    picture_s = seconds(lambda: provider(frames[0].color), RUNS)
    lift_s = seconds(lambda: lift_to_mesh(mesh, frames, provider), RUNS)
    return [
        row(AREA, "filter_features_320x240_ms", 1000 * picture_s, "ms", RUNS),
        row(AREA, "lift_24_frames_80k_s", lift_s, "s", RUNS),
        row(AREA, "lift_24_frames_80k_seen_share", seen, "share", 1),
    ]
