"""Pictures and poses of a data set -> the frames of a scan, in the layout of a scan folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from unscene_ros.image_codecs import decode_compressed_color, encode_jpeg, encode_png
from unscene_ros.scene import Camera, InputError, check_pose
from unscene_ros.storage import whole_file
from unscene_ros.synchronization import Drops

JPEG_QUALITY = 95
_JPEG_START = b"\xff\xd8\xff"
_FILES = ("intrinsic.txt", "intrinsic_color.txt", "timestamps.txt")


@dataclass(frozen=True, slots=True, eq=False)
class StoredFrame:
    """One frame as a data set stores it; the sizes of colour and depth may differ.

    color: the bytes of a jpeg or png file; depth_mm (H, W) uint16, 0 none;
    world_from_camera (4, 4) float64.
    """

    number: int
    stamp_ns: int
    color: bytes
    depth_mm: np.ndarray
    world_from_camera: np.ndarray


def is_usable_pose(pose: np.ndarray, where: str, drops: Drops) -> bool:
    """Whether a pose (4, 4) is finite and rigid; if not, one more frame is counted in `drops`."""
    if not np.isfinite(pose).all():
        drops.add("pose not finite", f"{where}: its pose is NaN or infinite")
        return False
    try:
        check_pose(f"{where}: pose", pose)
    except InputError as error:
        drops.add("pose not rigid", str(error))
        return False
    return True


def read_depth(path: Path) -> np.ndarray:
    """(H, W) uint16 millimetres of a PNG; raises InputError."""
    depth_mm = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if depth_mm is None or depth_mm.dtype != np.uint16 or depth_mm.ndim != 2:
        raise InputError(f"{path}: expected depth as a PNG of one 16-bit channel")
    return depth_mm


def write_frames(
    folder: Path,
    frames: Iterable[StoredFrame],
    cameras: tuple[Camera, Camera],
    drops: Drops,
    image_width: int = 0,
    world_from_source: np.ndarray | None = None,
) -> int:
    """Writes the frames in place of those that are there; returns how many could be used.

    cameras: of colour and of depth, with one viewpoint, at the sizes of the stored pictures.
    image_width: wider pictures are shrunk to it, with their intrinsics; 0 keeps every size.
    world_from_source (4, 4) turns the poses. What cannot be used is counted in `drops`; without a
    single frame nothing stays. Raises InputError when a file cannot be written.
    """
    remove_frames(folder)
    color_camera, depth_camera = (_shrunk(camera, image_width) for camera in cameras)
    sizes = [(camera.width, camera.height) for camera in (*cameras, color_camera, depth_camera)]
    stamps: list[str] = []
    for frame in frames:
        try:
            color, suffix = _color_file(frame.color, sizes[0], sizes[2])
            depth = _depth_file(frame.depth_mm, sizes[1], sizes[3])
        except InputError as error:
            drops.add("undecodable", f"frame {frame.number}: {error}")
            continue
        pose = frame.world_from_camera
        if world_from_source is not None:
            pose = world_from_source @ pose
        name = f"{frame.number:06d}"
        _write(folder / "color" / f"{name}{suffix}", color)
        _write(folder / "depth" / f"{name}.png", depth)
        _write(folder / "pose" / f"{name}.txt", _text(pose))
        stamps.append(f"{frame.number} {frame.stamp_ns / 1e9:.9f}\n")
    if stamps:
        _write(folder / "intrinsic.txt", _text(depth_camera.intrinsics))
        _write(folder / "intrinsic_color.txt", _text(color_camera.intrinsics))
        _write(folder / "timestamps.txt", "".join(stamps).encode())
    return len(stamps)


def remove_frames(folder: Path) -> None:
    """Removes the frames of an earlier, perhaps longer, import."""
    for name in ("color", "depth", "pose"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)


def _shrunk(camera: Camera, width: int) -> Camera:
    if not 0 < width < camera.width:
        return camera
    return camera.resized(width, max(round(camera.height * width / camera.width), 1))


def _color_file(data: bytes, size: tuple[int, int], new_size: tuple[int, int]) -> tuple[bytes, str]:
    """(picture file, its suffix): the very bytes of a jpeg that keeps its size."""
    color = decode_compressed_color("jpeg", data)
    _check_size("colour", color, size)
    if size == new_size and data.startswith(_JPEG_START):
        return data, ".jpg"
    if size != new_size:
        color = cv2.resize(color, new_size, interpolation=cv2.INTER_AREA)
    return encode_jpeg(color, JPEG_QUALITY), ".jpg"


def _depth_file(depth_mm: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]) -> bytes:
    _check_size("depth", depth_mm, size)
    if size != new_size:  # nearest: a mean over an edge is a surface that is not there
        depth_mm = cv2.resize(depth_mm, new_size, interpolation=cv2.INTER_NEAREST)
    return encode_png(depth_mm)


def _check_size(what: str, picture: np.ndarray, size: tuple[int, int]) -> None:
    if picture.shape[1::-1] != size:
        raise InputError(
            f"expected a {what} picture of {size[0]}x{size[1]}, "
            f"got {picture.shape[1]}x{picture.shape[0]}"
        )


def _text(matrix: np.ndarray) -> bytes:
    return "".join(" ".join(f"{value:.9f}" for value in row) + "\n" for row in matrix).encode()


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be made ({error.strerror})") from error
    with whole_file(path) as file:
        file.write(data)
