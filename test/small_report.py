"""A small run for tests of the report: two tiles as objects, its metrics, a picture."""

import numpy as np

from unscene_ros.scene import Camera, Frame, Instances, Mesh, Segments
from unscene_ros.storage import Prediction

METRICS = {
    "recording": "room </script><b>",
    "segmenter": "training-free",
    "frames": {"read": 12, "used": 10, "dropped": {"no depth in range": 2}},
    "map": {"vertices": 400, "segments": 4},
    "instances": 2,
    "latency_ms": {"fusion": {"p50": 12.5, "p95": 20.0, "max": 31.0}},
    "evaluation": None,
    "settings": {"fusion": {"voxel_size_m": 0.04}},
}


def two_tiles(side: int = 10) -> Prediction:
    """Flat squares of `side`² vertices, 1 m apart in y: segments 0 and 1, one instance each."""
    x, y = np.meshgrid(np.arange(side) * 0.1, np.arange(side) * 0.1)
    tile = np.stack((x.ravel(), y.ravel(), np.zeros(side * side)), 1)
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).ravel()
    upper = np.stack((corner, corner + 1, corner + side + 1), 1)
    lower = np.stack((corner, corner + side + 1, corner + side), 1)
    faces = np.concatenate((upper, lower))
    vertices = np.concatenate((tile, tile + np.array([0, side * 0.1 + 1, 0]))).astype(np.float32)
    count = len(vertices)
    mesh = Mesh(
        vertices,
        np.concatenate((faces, faces + side * side)).astype(np.int32),
        np.full((count, 3), (200, 160, 60), np.uint8),
        np.tile(np.array([0, 0, 1], np.float32), (count, 1)),
    )
    of_vertex = np.repeat(np.array([0, 1], np.int32), side * side)
    instances = Instances(
        np.eye(2, dtype=bool), np.array([0.25, 0.75], np.float32), np.array([-1, 3], np.int32)
    )
    segments = Segments(of_vertex, np.zeros((0, 2), np.int32), 2)
    return Prediction(mesh, segments, instances, np.array([7, 9], np.int32))


def empty_prediction() -> Prediction:
    segments = Segments(np.zeros(0, np.int32), np.zeros((0, 2), np.int32), 0)
    return Prediction(Mesh.empty(), segments, Instances.empty(0), np.zeros(0, np.int32))


def frame(world_from_camera: np.ndarray) -> Frame:
    camera = Camera(64, 48, np.array([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]]))
    color = np.full((48, 64, 3), 200, np.uint8)
    return Frame(0, camera, color, np.ones((48, 64), np.float32), world_from_camera)
