"""Pictures of rooms of boxes, rendered by casting rays, and the maps that are fused of them."""

import dataclasses

import numpy as np
import open3d as o3d

from unscene_ros.fusion import FusionConfig, TsdfVolume
from unscene_ros.scene import Camera, Frame, Mesh

CAMERA = Camera(320, 240, np.array([[180.0, 0, 159.5], [0, 180, 119.5], [0, 0, 1]]))
CONFIG = FusionConfig(voxel_size_m=0.05, min_weight=2)
ROOM_M = np.array((4.1, 3.1, 2.7))


def looking(eye, target) -> np.ndarray:
    """World from camera (4, 4), the world's z up."""
    forward = np.subtract(target, eye) / np.linalg.norm(np.subtract(target, eye))
    up = (0, 0, 1) if abs(forward[2]) < 0.9 else (0, 1, 0)
    right = np.cross(forward, up) / np.linalg.norm(np.cross(forward, up))
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = eye
    return pose


def room(
    *boxes: tuple[tuple[float, ...], tuple[float, ...]], size_m: np.ndarray = ROOM_M
) -> o3d.t.geometry.RaycastingScene:
    """A closed room around the origin with boxes (corner, size) in it."""
    scene = o3d.t.geometry.RaycastingScene()
    for corner, size in ((-size_m / 2, size_m), *boxes):
        box = o3d.geometry.TriangleMesh.create_box(*size).translate(corner)
        scene.add_triangles(o3d.t.geometry.TriangleMesh.from_legacy(box))
    return scene


def seen(scene: o3d.t.geometry.RaycastingScene, pose: np.ndarray, noise_m: float = 0) -> Frame:
    """A frame of the scene; the colour tells the direction of the surface."""
    rays = scene.create_rays_pinhole(
        o3d.core.Tensor(CAMERA.intrinsics),
        o3d.core.Tensor(np.linalg.inv(pose)),
        CAMERA.width,
        CAMERA.height,
    )
    hits = scene.cast_rays(rays)
    depth = hits["t_hit"].numpy()
    random = np.random.default_rng(int(1e6 * abs(pose).sum()))
    depth = (depth + random.normal(0, noise_m, depth.shape)).astype(np.float32)
    color = (127 + 100 * np.abs(hits["primitive_normals"].numpy())).astype(np.uint8)
    return Frame(0, CAMERA, color, depth, pose)


def walk(scene: o3d.t.geometry.RaycastingScene, count: int, noise_m: float = 0) -> list[Frame]:
    """Frames from around the middle of the room in all directions, up and down too."""
    frames = []
    for angle in np.linspace(0, 2 * np.pi, count, endpoint=False):
        eye = 0.5 * np.array((np.cos(angle), np.sin(angle), 0))
        target = np.array((-np.cos(angle), -np.sin(angle), (-0.9, 0, 0.9)[len(frames) % 3]))
        frames.append(seen(scene, looking(eye, target), noise_m))
    for height in (-0.3, 0.3):
        frames += [seen(scene, looking((0.1, 0, -height), (0.1, 0.05, height)), noise_m)] * 4
    return frames


def wall(depth_m: float = 2.0, color=(90, 120, 150)) -> Frame:
    """A wall straight ahead."""
    size = (CAMERA.height, CAMERA.width)
    picture = np.broadcast_to(np.uint8(color), (*size, 3)).copy()
    return Frame(0, CAMERA, picture, np.full(size, depth_m, np.float32), np.eye(4))


def moved(frame: Frame, x: float) -> Frame:
    pose = frame.world_from_camera.copy()
    pose[0, 3] += x
    return dataclasses.replace(frame, world_from_camera=pose)


def fused(frames: list[Frame], config: FusionConfig = CONFIG) -> TsdfVolume:
    volume = TsdfVolume(config)
    for frame in frames:
        volume.integrate(frame)
    return volume


def assert_same(first: Mesh, second: Mesh) -> None:
    for name in ("vertices", "faces", "colors", "normals"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
