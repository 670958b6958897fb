"""Tiny data sets for tests, in the layouts in which ScanNet and ARKitScenes are downloaded."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np

COLOR_SIZE, DEPTH_SIZE = (24, 18), (16, 12)  # width, height
COLOR_K = np.array([[20.0, 0, 11.5], [0, 20, 8.5], [0, 0, 1]])
DEPTH_K = np.array([[13.0, 0, 7.5], [0, 13, 5.5], [0, 0, 1]])
UNKNOWN_POSE = np.full((4, 4), -np.inf)


def color_picture(number: int) -> np.ndarray:
    """(h, w, 3) uint8 RGB, smooth enough for jpeg, another one for each number."""
    picture = np.zeros((*COLOR_SIZE[::-1], 3), np.uint8)
    picture[..., 0] = 10 * number
    picture[..., 1] = np.arange(COLOR_SIZE[0]) * 8
    return picture


def depth_picture(number: int) -> np.ndarray:
    """(H, W) uint16 millimetres, with a hole of no readings."""
    picture = np.full(DEPTH_SIZE[::-1], 1000 + number, np.uint16)
    picture += np.arange(DEPTH_SIZE[0], dtype=np.uint16)
    picture[0, 0] = 0
    return picture


def pose(number: int) -> np.ndarray:
    """(4, 4) world_from_camera: a step along x for each number."""
    matrix = np.eye(4)
    matrix[:3, 3] = 0.25 * number, 0.5, 1.5
    return matrix


def jpeg(picture: np.ndarray) -> bytes:
    """The picture (h, w, 3) RGB as a file."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 95]
    return cv2.imencode(".jpg", picture[..., ::-1], options)[1].tobytes()


def sens_header(
    frame_count: int,
    version: int = 4,
    name: bytes = b"StructureSensor",
    formats: tuple[int, int] = (2, 1),
    sizes: tuple[int, ...] = (*COLOR_SIZE, *DEPTH_SIZE),
    units_per_m: float = 1000.0,
) -> bytes:
    """The first part of a .sens file."""
    matrices = np.tile(np.eye(4, dtype="<f4"), (4, 1, 1))
    matrices[0, :3, :3], matrices[2, :3, :3] = COLOR_K, DEPTH_K
    return (
        struct.pack("<IQ", version, len(name))
        + name
        + matrices.tobytes()
        + struct.pack("<2i4IfQ", *formats, *sizes, units_per_m, frame_count)
    )


def sens_frame(
    number: int,
    world_from_camera: np.ndarray | None = None,
    color: bytes | None = None,
    depth: bytes | None = None,
    stamp_us: int = 0,
) -> bytes:
    """One frame of a .sens file."""
    matrix = pose(number) if world_from_camera is None else world_from_camera
    color = jpeg(color_picture(number)) if color is None else color
    depth = zlib.compress(depth_picture(number).tobytes()) if depth is None else depth
    head = matrix.astype("<f4").tobytes()
    head += struct.pack("<4Q", stamp_us, stamp_us, len(color), len(depth))
    return head + color + depth


def write_sens(path: Path, count: int = 6, **header: object) -> Path:
    """A whole stream with a sample of the inertial sensor at its end."""
    frames = b"".join(sens_frame(number) for number in range(count))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sens_header(count, **header) + frames + struct.pack("<Q", 1) + bytes(128))
    return path
