"""A run -> one html file that opens offline: the map and its instances in 3D, and all figures.

The page is `report.html` beside this file; here it gets its data. Everything is turned so that z is
up in the view, whatever the recording's world is.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.spatial import cKDTree

from unscene_ros.boxes import upright_box
from unscene_ros.palette import instance_colors
from unscene_ros.scene import Frame
from unscene_ros.storage import Prediction, whole_file

TEMPLATE = Path(__file__).with_name("report.html")
DATA_MARK = "__REPORT_DATA__"
# A larger map is shown coarser, so that the file stays under 15 MB and turns smoothly.
MAX_VERTICES, MAX_FACES = 250_000, 550_000
PICTURES, PICTURE_WIDTH = 8, 480
CAMERA_LENGTH_M = 0.25  # of the pyramids that stand for cameras


def write_report(
    path: Path,
    metrics: dict[str, Any],
    prediction: Prediction,
    keyframes: Sequence[Frame] = (),
    received: dict[str, Any] | None = None,
) -> None:
    """Writes the report of one run; raises InputError when the file cannot be written.

    metrics: as in metrics.json; what is missing is left out.
    keyframes: a few pictures of the place; how they were held tells which way is up, else z is.
    received: what a subscriber of the live nodes got: {"first_instances_s": seconds from the first
    frame or None, "topics": {name: {"messages": count, "rate_hz": number,
    "latency_ms": {"p50", "p95", "max"} or None}}}.
    """
    shown_from_world = _upright(keyframes)
    vertices = prediction.mesh.vertices @ shown_from_world.T
    data = {
        "title": metrics.get("recording") or Path(path).resolve().parent.name,
        "subtitle": f"segmented by {metrics['segmenter']}" if "segmenter" in metrics else "",
        "metrics": metrics,
        "received": received,
        "mesh": _mesh_data(prediction, vertices, shown_from_world),
        "instances": _instance_data(prediction, vertices),
        "cameras": [_camera_data(frame, shown_from_world) for frame in _some(keyframes)],
        "pictures": [{"jpeg": _jpeg(frame.color)} for frame in _some(keyframes)],
    }
    # An escaped < cannot end the script element that holds the data.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    with whole_file(path) as file:
        file.write(TEMPLATE.read_text(encoding="utf-8").replace(DATA_MARK, text).encode())


def _upright(keyframes: Sequence[Frame]) -> np.ndarray:
    """(3, 3) rotation from the world so that the world axis nearest to up becomes z."""
    if not keyframes:
        return np.eye(3)
    up = -np.mean([frame.world_from_camera[:3, 1] for frame in keyframes], axis=0)
    axis = int(np.abs(up).argmax())
    rows = np.roll(np.eye(3), 2 - axis, axis=0)  # cyclic, so it stays a rotation
    return rows if up[axis] > 0 else np.diag([1.0, -1.0, -1.0]) @ rows


def _some(keyframes: Sequence[Frame]) -> list[Frame]:
    """At most PICTURES of them, evenly spread."""
    count = min(len(keyframes), PICTURES)
    return [keyframes[i] for i in np.linspace(0, len(keyframes) - 1, count).astype(int)]


def _mesh_data(
    prediction: Prediction, vertices: np.ndarray, shown_from_world: np.ndarray
) -> dict[str, Any]:
    """What the view uploads: little arrays in base64, positions as 16 bits of the span."""
    kept, faces = _coarser(vertices, prediction.mesh.faces)
    shown = vertices[kept]
    low = shown.min(axis=0) if len(shown) else np.zeros(3)
    span = np.maximum(shown.max(axis=0) - low, 1e-6) if len(shown) else np.ones(3)
    # The view starts on the bulk of the place: a few stray pieces would make it small.
    near, far = np.percentile(shown, (3, 97), axis=0) if len(shown) else (low, low)
    normals = prediction.mesh.normals[kept] @ shown_from_world.T
    return {
        "center": ((near + far) / 2).tolist(),
        "extent": (far - near).tolist(),
        "low": low.tolist(),
        "span": span.tolist(),
        "vertexCount": len(shown),
        "segmentCount": prediction.segments.count,
        "spacing": _spacing(shown) if not len(faces) else 0.0,
        "positions": _base64(np.rint((shown - low) / span * 65535), "<u2"),
        "normals": _base64(np.rint(normals * 127), "<i1"),
        "colors": _base64(prediction.mesh.colors[kept], "<u1"),
        "segments": _base64(prediction.segments.of_vertex[kept], "<u4"),
        "faces": _base64(faces, "<u4"),
    }


def _coarser(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(vertices to keep, faces between them): one vertex a cell, in cells as large as needed."""
    kept: np.ndarray = np.arange(len(vertices))
    new_faces = faces
    cell_m = 0.01
    while len(kept) > MAX_VERTICES or len(new_faces) > MAX_FACES:
        cells = np.floor(vertices / cell_m).astype(np.int64)
        _, kept, cell_of_vertex = np.unique(cells, axis=0, return_index=True, return_inverse=True)
        corners = cell_of_vertex.reshape(-1)[faces]
        flat = (corners == np.roll(corners, 1, axis=1)).any(axis=1)
        new_faces = corners[~flat]
        cell_m *= 1.3
    return kept, new_faces


def _spacing(points: np.ndarray) -> float:
    """Usual distance in metres between neighbours of a point cloud."""
    if len(points) < 2:
        return 0.01
    some = points[:: max(1, len(points) // 2000)]
    return float(np.median(cKDTree(points).query(some, 2)[0][:, 1]))


def _instance_data(prediction: Prediction, vertices: np.ndarray) -> list[dict[str, Any]]:
    instances = prediction.instances
    colors = instance_colors(prediction.track_ids)
    listed = []
    for index, mask in enumerate(instances.masks):
        points = vertices[mask[prediction.segments.of_vertex]]
        box = upright_box(points)
        listed.append(
            {
                "id": int(prediction.track_ids[index]),
                "score": round(float(instances.scores[index]), 4),
                "classId": int(instances.class_ids[index]),
                "vertices": len(points),
                "box": {
                    "center": np.round(box.center, 3).tolist(),
                    "size": np.round(box.size, 3).tolist(),
                    "yaw": round(box.yaw_rad, 4),
                },
                "color": colors[index].tolist(),
                "segments": np.flatnonzero(mask).tolist(),
            }
        )
    return listed


def _camera_data(frame: Frame, shown_from_world: np.ndarray) -> dict[str, Any]:
    """Where the camera stood, where it looked, and the far corners of its pyramid."""
    shown_from_camera = shown_from_world @ frame.world_from_camera[:3, :3]
    place = shown_from_world @ frame.world_from_camera[:3, 3]
    width, height = frame.camera.width, frame.camera.height
    pixels = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], np.float64)
    corners = CAMERA_LENGTH_M * pixels @ np.linalg.inv(frame.camera.intrinsics).T
    return {
        "place": np.round(place, 4).tolist(),
        "forward": np.round(shown_from_camera[:, 2], 5).tolist(),
        "corners": np.round(place + corners @ shown_from_camera.T, 4).tolist(),
    }


def _jpeg(color: np.ndarray) -> str:
    """The picture as a small jpeg data URI."""
    height, width = color.shape[:2]
    scale = min(1.0, PICTURE_WIDTH / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.cvtColor(cv2.resize(color, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def _base64(values: np.ndarray, stored_type: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values).astype(stored_type).tobytes()).decode()
