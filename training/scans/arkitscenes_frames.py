"""The frames of one scene of ARKitScenes: depth, the picture of that moment, and the pose there.

Every picture has intrinsics of its own, since the lens focuses; all are brought to one camera.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from training.scans.frame_folder import StoredFrame, is_usable_pose, read_depth
from unscene_ros.image_codecs import encode_png
from unscene_ros.scene import Camera, InputError
from unscene_ros.synchronization import Drops
from unscene_ros.transforms import interpolate_pose

COLOR_FOLDERS = ("vga_wide", "lowres_wide")  # the sharper first
TRAJECTORY, DEPTH_FOLDER = "lowres_wide.traj", "lowres_depth"
MAX_COLOR_GAP_S = 0.02  # depth and colour are of the same moment, told in milliseconds
MAX_POSE_GAP_S = 0.25  # between two poses, which come at 10 Hz
NEGLIGIBLE_PX = 0.25  # a camera that moves no corner further is the common one


@dataclass(frozen=True, slots=True)
class FrameFiles:
    """Where a scene's frames are."""

    trajectory: Path
    depth: Path
    color: Path

    @staticmethod
    def find(scene: Path) -> FrameFiles | None:
        """In the scene's folder or in its <id>_frames; None where something is missing."""
        for folder in _folders(scene):
            color = next((folder / n for n in COLOR_FOLDERS if (folder / n).is_dir()), None)
            files = (folder / TRAJECTORY, folder / DEPTH_FOLDER)
            if color and all(path.exists() for path in files):
                return FrameFiles(*files, color)
        return None

    @property
    def color_intrinsics(self) -> Path:
        """One .pincam for each picture."""
        return self.color.with_name(f"{self.color.name}_intrinsics")

    @property
    def depth_intrinsics(self) -> Path:
        """Depth is seen through the small colour pictures' camera."""
        folder = self.depth.with_name("lowres_wide_intrinsics")
        return folder if folder.is_dir() else self.color_intrinsics


def missing_files(scene: Path) -> list[str]:
    """What frames lack of which there is a part; nothing where there are none at all, or all."""
    wanted = {
        TRAJECTORY: [TRAJECTORY],
        DEPTH_FOLDER: [DEPTH_FOLDER],
        " or ".join(COLOR_FOLDERS): COLOR_FOLDERS,
    }
    for folder in _folders(scene):
        lacking = [
            what
            for what, names in wanted.items()
            if not any((folder / name).exists() for name in names)
        ]
        if len(lacking) < len(wanted):
            return lacking
    return []


def _folders(scene: Path) -> tuple[Path, Path]:
    """Where frames may be."""
    return scene, scene / f"{scene.name}_frames"


def read_frames(
    files: FrameFiles, drops: Drops, interval_s: float
) -> tuple[tuple[Camera, Camera], Iterator[StoredFrame]]:
    """((camera of colour, of depth), the frames at least `interval_s` apart, in order).

    What cannot be used is counted in `drops`: "no colour partner", "no transform", "pose not
    finite", "pose not rigid", "undecodable". Raises InputError without poses or intrinsics.
    """
    trajectory = _Trajectory(files.trajectory)
    depths, colors = _by_time(files.depth, ".png"), _by_time(files.color, ".png")
    lenses = [_Lenses(folder) for folder in (files.color_intrinsics, files.depth_intrinsics)]
    cameras = (
        lenses[0].typical(_size_of_first(colors)),
        lenses[1].typical(_size_of_first(depths)),
    )

    def frames() -> Iterator[StoredFrame]:
        for number, time_s in _spaced(depths.times, interval_s):
            where = f"{files.depth.parent}: frame {time_s:.3f}"
            color_path = colors.at(time_s, MAX_COLOR_GAP_S)
            pose = trajectory.world_from_camera(time_s)
            if color_path is None:
                drops.add("no colour partner", f"{where}: no picture in {files.color.name}")
            elif pose is None:
                drops.add("no transform", f"{where}: no poses around it in lowres_wide.traj")
            elif is_usable_pose(pose, where, drops):
                try:
                    color = lenses[0].bring(_read_color(color_path), time_s, cameras[0])
                    depth = lenses[1].bring(read_depth(depths.paths[number]), time_s, cameras[1])
                except InputError as error:
                    drops.add("undecodable", f"{where}: {error}")
                    continue
                yield StoredFrame(number, round(time_s * 1e9), encode_png(color, 1), depth, pose)

    return cameras, frames()


@dataclass(frozen=True, slots=True, eq=False)
class _ByTime:
    """Files <id>_<seconds>.<suffix>, in the order of time."""

    times: np.ndarray
    paths: list[Path]

    def at(self, time_s: float, max_gap_s: float) -> Path | None:
        """The file nearest in time, if near enough."""
        if not len(self.times):
            return None
        nearest = int(np.abs(self.times - time_s).argmin())
        return self.paths[nearest] if abs(self.times[nearest] - time_s) <= max_gap_s else None


def _by_time(folder: Path, suffix: str) -> _ByTime:
    found = []
    for path in folder.glob(f"*{suffix}"):
        try:
            found.append((float(path.stem.rpartition("_")[2]), path))
        except ValueError:
            continue
    found.sort()
    return _ByTime(np.array([time_s for time_s, _ in found]), [path for _, path in found])


def _spaced(times: np.ndarray, interval_s: float) -> Iterator[tuple[int, float]]:
    """(index, time) of the first picture and of those that follow the last one by the interval."""
    last = -np.inf
    for number, time_s in enumerate(times.tolist()):
        if time_s >= last + interval_s - 1e-6:
            last = time_s
            yield number, time_s


class _Trajectory:
    """The poses in lowres_wide.traj: seconds, rotation vector and shift, camera from world."""

    def __init__(self, path: Path) -> None:
        try:
            rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
            table = np.array(rows, np.float64)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: expected lines of 7 numbers: {error}") from error
        if table.ndim != 2 or table.shape[1] != 7:
            raise InputError(f"{path}: expected lines of 7 numbers, got {table.shape}")
        table = table[np.argsort(table[:, 0], kind="stable")]
        self._times = table[:, 0]
        camera_from_world = np.tile(np.eye(4), (len(table), 1, 1))
        known = np.isfinite(table).all(axis=1)
        camera_from_world[known, :3, :3] = Rotation.from_rotvec(table[known, 1:4]).as_matrix()
        camera_from_world[:, :3, 3] = table[:, 4:7]
        self._poses = np.full_like(camera_from_world, np.nan)
        self._poses[known] = np.linalg.inv(camera_from_world[known])

    def world_from_camera(self, time_s: float) -> np.ndarray | None:
        """(4, 4) interpolated, NaN where it is told as unknown; None too far from any pose."""
        after = int(np.searchsorted(self._times, time_s - 1e-6))
        if after < len(self._times) and abs(self._times[after] - time_s) < 1e-3:
            return self._poses[after]
        if not 0 < after < len(self._times):
            return None
        start, end = self._times[after - 1 : after + 1]
        if end - start > MAX_POSE_GAP_S:
            return None
        first, second = self._poses[after - 1 : after + 1]
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            return np.full((4, 4), np.nan)
        return interpolate_pose(first, second, (time_s - start) / (end - start))


class _Lenses:
    """The cameras of the pictures in a folder, one .pincam each: width height fx fy cx cy."""

    def __init__(self, folder: Path) -> None:
        self._files = _by_time(folder, ".pincam")
        if not self._files.paths:
            raise InputError(f"{folder}: expected a .pincam for each picture, got none")

    def typical(self, size: tuple[int, int]) -> Camera:
        """The median over all pictures that have one, for pictures of this size."""
        cameras = []
        for path in self._files.paths:
            try:
                cameras.append(_read_pincam(path).resized(*size).intrinsics)
            except InputError:
                continue  # told where it is needed
        if not cameras:
            raise InputError(f"{self._files.paths[0].parent}: no .pincam can be read")
        return Camera(*size, np.median(cameras, axis=0))

    def bring(self, picture: np.ndarray, time_s: float, common: Camera) -> np.ndarray:
        """The picture taken at this time as the common camera sees it; raises InputError."""
        size = common.width, common.height
        if picture.shape[1::-1] != size:
            raise InputError(
                f"expected a picture of {size[0]}x{size[1]}, got {picture.shape[1::-1]}"
            )
        path = self._files.at(time_s, MAX_COLOR_GAP_S)
        if path is None:
            raise InputError("no .pincam for it")
        own = _read_pincam(path).resized(*size)
        own_from_common = own.intrinsics @ np.linalg.inv(common.intrinsics)
        corners = np.array([[0, 0, 1.0], [size[0], size[1], 1.0]]).T
        if np.abs(own_from_common @ corners - corners).max() <= NEGLIGIBLE_PX:
            return picture
        is_depth = picture.ndim == 2
        how = cv2.INTER_NEAREST if is_depth else cv2.INTER_LINEAR
        border = cv2.BORDER_CONSTANT if is_depth else cv2.BORDER_REPLICATE
        return cv2.warpAffine(
            picture, own_from_common[:2], size, flags=how | cv2.WARP_INVERSE_MAP, borderMode=border
        )


def _read_pincam(path: Path) -> Camera:
    try:
        width, height, fx, fy, cx, cy = map(float, path.read_text().split())
        return Camera(int(width), int(height), np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]))
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: expected width height fx fy cx cy: {error}") from error


def _read_color(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise InputError(f"{path}: expected a readable picture")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _size_of_first(files: _ByTime) -> tuple[int, int]:
    """Width and height of the first picture that can be read."""
    for path in files.paths:
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if picture is not None:
            return picture.shape[1], picture.shape[0]
    raise InputError("expected pictures, got none that can be read")
