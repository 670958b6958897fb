"""A folder of pictures and poses -> frames.

color/<n>.jpg|png   depth/<n>.png (uint16 mm, 0 or 65535 = none)
intrinsic.txt or intrinsics.txt (3x3 or 4x4, of the depth camera), intrinsic_color.txt (optional)
pose/<n>.txt (4x4, camera to world) or poses.txt (a line: number and 16 values)
timestamps.txt (optional; a line: number and seconds; else 5 Hz)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from unscene_ros.image_codecs import COLOR_FLAGS, metres
from unscene_ros.registration import Calibration, Registration
from unscene_ros.scene import Camera, Frame, InputError, check_pose
from unscene_ros.synchronization import Drops

_PERIOD_NS = 200_000_000  # between pictures without time stamps
_COLOR_SUFFIXES = (".jpg", ".jpeg", ".png")


class ScanFolder:
    """The frames of one scan folder, readable in order or by index."""

    def __init__(self, path: Path) -> None:
        """Raises InputError naming the file that is missing or has a wrong content."""
        self.warnings: list[str] = []
        self._path = path
        self._depth_paths = _numbered(path / "depth", (".png",))
        self._color_paths = _numbered(path / "color", _COLOR_SUFFIXES)
        if not self._depth_paths or not self._color_paths:
            raise InputError(
                f"scan folder {path}: expected color/<number>.jpg and depth/<number>.png, got "
                f"{len(self._color_paths)} and {len(self._depth_paths)} pictures"
            )
        self._numbers = sorted(self._depth_paths)
        intrinsics_path = _first_existing(path / "intrinsic.txt", path / "intrinsics.txt")
        self._intrinsics = _read_intrinsics(intrinsics_path)
        self._color_intrinsics = None
        if (path / "intrinsic_color.txt").exists():
            self._color_intrinsics = _read_intrinsics(path / "intrinsic_color.txt")
        self._poses = _read_poses(path)
        self._stamps_ns = _read_stamps(path / "timestamps.txt", self._numbers)
        self._registration: Registration | None = None

    def __len__(self) -> int:
        return len(self._numbers)

    def summary(self) -> str:
        """What was found, in a few words."""
        return (
            f"{len(self._numbers)} depth pictures, {len(self._color_paths)} colour pictures, "
            f"{len(self._poses)} poses"
        )

    def frames(self, drops: Drops, every: int = 1) -> Iterator[Frame]:
        """The frames in the order of their numbers; what cannot be used is counted in `drops`.

        every: only each that many-th picture is looked at.
        """
        for index in range(0, len(self._numbers), every):
            number = self._numbers[index]
            pose = self._poses.get(number)
            if number not in self._color_paths:
                drops.add("no colour partner", f"{self._path}: no colour with number {number}")
            elif pose is None:
                drops.add("no transform", f"{self._path}: no pose with number {number}")
            elif not np.isfinite(pose).all():
                drops.add("pose not finite", f"{self._path}: pose {number} is NaN or infinite")
            else:
                try:
                    frame = self.frame(index)
                except InputError as error:
                    drops.add("undecodable", str(error))
                else:
                    yield frame

    def depth_path(self, index: int) -> Path:
        """The depth picture at this place in the order."""
        return self._depth_paths[self._numbers[index]]

    def frame(self, index: int) -> Frame:
        """One frame by its place in the order; raises InputError when it cannot be used."""
        number = self._numbers[index]
        if number not in self._poses or number not in self._color_paths:
            raise InputError(f"{self._path}: expected pose and colour with number {number}")
        pose = self._poses[number]
        check_pose(f"{self._path}: pose {number}", pose)
        bgr = _read_picture(self._color_paths[number], COLOR_FLAGS)
        color = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        depth = _read_depth(self._depth_paths[number])
        registration = self._register(color, depth)
        color, depth = registration.register(color, depth)
        return Frame(self._stamps_ns[number], registration.camera, color, depth, pose)

    def _register(self, color: np.ndarray, depth: np.ndarray) -> Registration:
        """The registration for pictures of these sizes, made anew only when they change."""
        (height, width), (color_height, color_width) = depth.shape, color.shape[:2]
        sizes = (width, height), (color_width, color_height)
        last = self._registration
        if last is None or sizes != (last.depth_calibration.size, last.color_calibration.size):
            depth_camera = Camera(width, height, self._intrinsics)
            color_camera = depth_camera.resized(color_width, color_height)
            if self._color_intrinsics is not None:
                color_camera = Camera(color_width, color_height, self._color_intrinsics)
            last = self._registration = Registration(
                Calibration.pinhole(depth_camera), Calibration.pinhole(color_camera)
            )
        return last


def is_scan_folder(path: Path) -> bool:
    """Whether this path looks like a scan folder."""
    return (path / "color").is_dir() and (path / "depth").is_dir()


def _numbered(folder: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    """The files <number>.<suffix> of a folder by their numbers."""
    files = sorted(folder.iterdir()) if folder.is_dir() else ()
    return {int(f.stem): f for f in files if f.suffix.lower() in suffixes and f.stem.isdecimal()}


def _first_existing(*paths: Path) -> Path:
    return next((path for path in paths if path.exists()), paths[0])


def _read_table(path: Path) -> np.ndarray:
    """The numbers of a text file as (lines, columns) float64; raises InputError naming the file."""
    try:
        return np.loadtxt(path, dtype=np.float64, ndmin=2)
    except OSError as error:
        raise InputError(f"{path}: expected a text file of numbers, got none") from error
    except ValueError as error:
        raise InputError(f"{path}: expected lines of equally many numbers: {error}") from error


def _check_finite(path: Path, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        line = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0]) + 1
        raise InputError(f"{path}: expected finite numbers, got others in line {line}")


def _read_intrinsics(path: Path) -> np.ndarray:
    table = _read_table(path)
    if table.shape not in ((3, 3), (4, 4)):
        raise InputError(f"{path}: expected a 3x3 or 4x4 matrix, got {table.shape}")
    Camera(1, 1, table[:3, :3])  # the same checks
    return table[:3, :3]


def _read_poses(path: Path) -> dict[int, np.ndarray]:
    """world_from_camera (4, 4) by number."""
    if (path / "poses.txt").exists():
        table = _read_table(path / "poses.txt")
        if table.shape[1] != 17:
            raise InputError(
                f"{path / 'poses.txt'}: expected a number and 16 values a line, got "
                f"{table.shape[1]} values"
            )
        _check_finite(path / "poses.txt", table[:, :1])
        return {int(line[0]): line[1:].reshape(4, 4) for line in table}
    poses = {number: _read_table(f) for number, f in _numbered(path / "pose", (".txt",)).items()}
    if not poses:
        raise InputError(f"scan folder {path}: expected poses.txt or pose/<number>.txt, got none")
    for number, pose in poses.items():
        if pose.shape != (4, 4):
            raise InputError(f"{path}: pose {number}: expected a 4x4 matrix, got {pose.shape}")
    return poses


def _read_stamps(path: Path, numbers: list[int]) -> dict[int, int]:
    """Nanoseconds by number."""
    if not path.exists():
        # From one on, since a stamp of 0 means "now" to many ROS tools.
        return {number: _PERIOD_NS * place for place, number in enumerate(numbers, start=1)}
    table = _read_table(path)
    if table.shape[1] != 2:
        raise InputError(f"{path}: expected number and seconds a line, got {table.shape[1]} values")
    _check_finite(path, table)
    stamps = {int(number): round(seconds * 1e9) for number, seconds in table}
    missing = [number for number in numbers if number not in stamps]
    if missing:
        raise InputError(f"{path}: expected a line for every depth picture, got none for {missing}")
    return stamps


def _read_picture(path: Path, flags: int) -> np.ndarray:
    picture = cv2.imread(str(path), flags)
    if picture is None:
        raise InputError(f"{path}: expected a readable picture")
    return picture


def _read_depth(path: Path) -> np.ndarray:
    values = _read_picture(path, cv2.IMREAD_UNCHANGED)
    if values.dtype != np.uint16 or values.ndim != 2:
        raise InputError(
            f"{path}: expected a PNG of one 16-bit channel in millimetres, "
            f"got {values.shape} {values.dtype}"
        )
    return metres(values)
