"""A tiny scan for tests: two boxes on a floor, seen by a camera that moves past, with truth."""

from pathlib import Path

import numpy as np
import open3d as o3d

from unscene_ros.scene import Camera, Frame

CAMERA = Camera(160, 120, np.array([[140.0, 0, 79.5], [0, 140, 59.5], [0, 0, 1]]))
FLOOR = (np.array([-1.2, -1.0, -0.05]), np.array([1.2, 1.0, 0.0]))
BOXES = (
    (np.array([-0.7, -0.2, 0.0]), np.array([-0.3, 0.2, 0.4])),
    (np.array([0.3, -0.2, 0.0]), np.array([0.7, 0.2, 0.3])),
)
COLORS = np.array([[120, 110, 100], [200, 40, 40], [40, 60, 200]], np.uint8)


def small_frames(count: int = 12) -> list[Frame]:
    """Frames at 5 Hz from the second on which the clock shows 1; z is up in the world."""
    scene = _scene()
    return [_frame(scene, index, count) for index in range(count)]


def small_truth(folder: Path) -> Path:
    """gt.npz: the visible sides of the boxes as objects 0 and 1, the floor as stuff."""
    points = [_grid(FLOOR[0], FLOOR[1], axis=2, at=0.0)]
    labels = [np.full(len(points[0]), -2, np.int32)]
    for index, (low, high) in enumerate(BOXES):
        sides = [_grid(low, high, axis=2, at=high[2])]
        sides += [_grid(low, high, axis, at) for axis in (0, 1) for at in (low[axis], high[axis])]
        points.append(np.concatenate(sides))
        labels.append(np.full(len(points[-1]), index, np.int32))
    path = folder / "gt.npz"
    np.savez(path, points=np.concatenate(points), instance=np.concatenate(labels))
    return path


def _scene() -> o3d.t.geometry.RaycastingScene:
    scene = o3d.t.geometry.RaycastingScene()
    for low, high in (FLOOR, *BOXES):
        box = o3d.geometry.TriangleMesh.create_box(*(high - low))
        scene.add_triangles(o3d.t.geometry.TriangleMesh.from_legacy(box.translate(low)))
    return scene


def _frame(scene: o3d.t.geometry.RaycastingScene, index: int, count: int) -> Frame:
    angle = 2 * np.pi * index / count
    eye = np.array([1.3 * np.cos(angle), 1.3 * np.sin(angle), 1.2])
    forward = -eye / np.linalg.norm(eye)
    right = np.cross(forward, (0, 0, 1)) / np.linalg.norm(np.cross(forward, (0, 0, 1)))
    pose = np.eye(4)
    pose[:3] = np.column_stack((right, np.cross(forward, right), forward, eye))
    rays = scene.create_rays_pinhole(
        CAMERA.intrinsics, np.linalg.inv(pose), CAMERA.width, CAMERA.height
    )
    hit = scene.cast_rays(rays)
    # The rays' third component is 1 along the camera's axis, so the distance is the depth.
    depth = hit["t_hit"].numpy()
    known = np.isfinite(depth)
    what = np.where(known, hit["geometry_ids"].numpy(), 0).astype(np.int64)
    stamp_ns = 1_000_000_000 + index * 200_000_000
    return Frame(stamp_ns, CAMERA, COLORS[what], np.where(known, depth, 0).astype("f4"), pose)


def _grid(low: np.ndarray, high: np.ndarray, axis: int, at: float) -> np.ndarray:
    """Points 2 cm apart on one side of a box, float32."""
    ranges = [np.arange(low[a] + 0.01, high[a], 0.02) if a != axis else [at] for a in range(3)]
    return np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, 3).astype(np.float32)
