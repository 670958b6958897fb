"""One scene of scannet_frames_25k, every 100th frame of ScanNet as pictures, -> frames.

color/<n>.jpg   depth/<n>.png   pose/<n>.txt   intrinsics_color.txt   intrinsics_depth.txt
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from training.scans.frame_folder import StoredFrame, is_usable_pose, read_depth
from training.scans.sens import FRAME_RATE_HZ
from unscene_ros.scene import Camera, InputError
from unscene_ros.synchronization import Drops

FULL_COLOR_SIZE = (1296, 968)  # that the colour intrinsics of every scene are made for


def read_cameras(folder: Path) -> tuple[Camera, Camera]:
    """The cameras of colour and depth of a scene in scannet_frames_25k; raises InputError."""
    cameras = []
    for kind in ("color", "depth"):
        intrinsics = _read_matrix(folder / f"intrinsics_{kind}.txt")[:3, :3]
        pictures = (cv2.imread(str(path)) for path in sorted((folder / kind).glob("*.*")))
        first = next((picture for picture in pictures if picture is not None), None)
        if first is None:
            raise InputError(f"{folder / kind}: expected pictures, got none that can be read")
        height, width = first.shape[:2]
        camera = Camera(width, height, intrinsics)
        if kind == "color" and intrinsics[0, 2] >= width:  # of pictures that were shrunk later
            camera = Camera(*FULL_COLOR_SIZE, intrinsics).resized(width, height)
        cameras.append(camera)
    return cameras[0], cameras[1]


def read_frames(folder: Path, drops: Drops, every: int) -> Iterator[StoredFrame]:
    """Frames of a scene in scannet_frames_25k whose number is a multiple of `every`, in order.

    What cannot be used is counted in `drops`.
    """
    for path in sorted((folder / "depth").glob("*.png")):
        if not path.stem.isdecimal() or int(path.stem) % every:
            continue
        number, where = int(path.stem), f"{folder}: frame {path.stem}"
        color, pose_path = (
            folder / "color" / f"{path.stem}.jpg",
            folder / "pose" / f"{path.stem}.txt",
        )
        if not color.exists():
            drops.add("no colour partner", f"{where}: no {color.name}")
        elif not pose_path.exists():
            drops.add("no transform", f"{where}: no {pose_path.name}")
        else:
            try:
                pose, color_file, depth_mm = (
                    _read_matrix(pose_path),
                    color.read_bytes(),
                    read_depth(path),
                )
            except (OSError, InputError) as error:
                drops.add("undecodable", f"{where}: {error}")
                continue
            if is_usable_pose(pose, where, drops):
                stamp_ns = round((number + 1) * 1e9 / FRAME_RATE_HZ)
                yield StoredFrame(number, stamp_ns, color_file, depth_mm, pose)


def _read_matrix(path: Path) -> np.ndarray:
    try:
        matrix = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a file of 4x4 numbers: {error}") from error
    if matrix.shape != (4, 4):
        raise InputError(f"{path}: expected a 4x4 matrix, got {matrix.shape}")
    return matrix
