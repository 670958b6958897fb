"""ScanNet's .sens streams -> frames, one after the other: a skipped frame costs one seek.

Version 4, little-endian: a header, the frames (pose, time stamps, sizes, colour, depth), and
samples of the inertial sensor, which are left alone.
Dai et al., "ScanNet: Richly-annotated 3D reconstructions of indoor scenes", CVPR 2017.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from training.scans.frame_folder import StoredFrame, is_usable_pose
from unscene_ros.scene import Camera, InputError
from unscene_ros.synchronization import Drops

VERSION = 4
COLOR_FORMATS = {-1: "unknown", 0: "raw", 1: "png", 2: "jpeg"}
DEPTH_FORMATS = {-1: "unknown", 0: "raw_ushort", 1: "zlib_ushort", 2: "occi_ushort"}
# Beyond these a header is damaged: bytes, pixels, and frames (four days of them).
LONGEST_NAME, LARGEST_SIDE, MOST_FRAMES = 1000, 16384, 10_000_000
FRAME_RATE_HZ = 30.0  # of streams without time stamps
# world_from_camera row by row; colour and depth time in microseconds; bytes of colour and of depth
_FRAME = struct.Struct("<16f4Q")
_AFTER_NAME = struct.Struct("<64f2i4IfQ")


@dataclass(frozen=True, slots=True, eq=False)
class SensHeader:
    """What a stream says of all its frames.

    color_extrinsics, depth_extrinsics (4, 4): where the cameras are mounted; equal in ScanNet,
    whose depth is registered to colour.
    depth_units_per_m: of the uint16 values. frame_count: as promised; a damaged file holds fewer.
    """

    sensor: str
    color_camera: Camera
    depth_camera: Camera
    color_extrinsics: np.ndarray
    depth_extrinsics: np.ndarray
    color_format: str
    depth_format: str
    depth_units_per_m: float
    frame_count: int


class SensStream:
    """One .sens file. Opening it reads the header alone."""

    def __init__(self, path: Path) -> None:
        """Raises InputError for a missing, damaged or unknown kind of file."""
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self.header = _read_header(self.path, file)
                self._start = file.tell()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from error

    def frames(self, drops: Drops, every: int = 1) -> Iterator[StoredFrame]:
        """The frames 0, every, 2 every.. in order; what cannot be used is counted in `drops`.

        Reasons: "pose not finite", "pose not rigid", "undecodable", and "cut off" for all frames
        behind the place where a damaged file can no longer be followed.
        """
        try:
            with self.path.open("rb") as file:
                yield from self._frames(file, drops, every)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from error

    def _frames(self, file: BinaryIO, drops: Drops, every: int) -> Iterator[StoredFrame]:
        end = os.fstat(file.fileno()).st_size
        position = self._start
        for number in range(self.header.frame_count):
            file.seek(position)
            head = file.read(_FRAME.size)
            if len(head) < _FRAME.size:
                self._give_up(number, every, drops)
                return
            *pose_values, color_us, _, color_bytes, depth_bytes = _FRAME.unpack(head)
            position += _FRAME.size + color_bytes + depth_bytes
            if position > end:
                self._give_up(number, every, drops)
                return
            if number % every == 0:
                data = file.read(color_bytes), file.read(depth_bytes)
                pose = np.array(pose_values).reshape(4, 4)
                frame = self._decode(number, color_us, pose, *data, drops)
                if frame:
                    yield frame

    def _give_up(self, number: int, every: int, drops: Drops) -> None:
        """Counts this frame and all behind it, of those that were asked for."""
        count = self.header.frame_count
        for _ in range(number + -number % every, count, every):
            drops.add("cut off", f"{self.path}: ends in frame {number} of {count}")

    def _decode(
        self,
        number: int,
        color_us: int,
        pose: np.ndarray,
        color: bytes,
        depth: bytes,
        drops: Drops,
    ) -> StoredFrame | None:
        where = f"{self.path}: frame {number}"
        if not is_usable_pose(pose, where, drops):
            return None
        try:
            depth_mm = self._decode_depth(depth)
        except InputError as error:
            drops.add("undecodable", f"{where}: {error}")
            return None
        # A stamp of 0 means "unknown" here and "now" to many ROS tools.
        stamp_ns = color_us * 1000 or round((number + 1) * 1e9 / FRAME_RATE_HZ)
        return StoredFrame(number, stamp_ns, color, depth_mm, pose)

    def _decode_depth(self, data: bytes) -> np.ndarray:
        """(H, W) uint16 millimetres."""
        camera, units_per_m = self.header.depth_camera, self.header.depth_units_per_m
        size = 2 * camera.width * camera.height
        if self.header.depth_format == "zlib_ushort":
            try:  # no more than fits, however much the data would unfold to
                data = zlib.decompressobj().decompress(data, size + 1)
            except zlib.error as error:
                raise InputError(f"expected depth packed by zlib: {error}") from error
        if len(data) != size:
            raise InputError(f"expected {size} bytes of depth, got {len(data)}")
        values = np.frombuffer(data, "<u2").reshape(camera.height, camera.width)
        if units_per_m == 1000:
            return values
        depth_mm = np.rint(values * (1000 / units_per_m))
        return np.where(depth_mm < 65535, depth_mm, 0).astype(np.uint16)


def _read_header(path: Path, file: BinaryIO) -> SensHeader:
    version, name_length = struct.unpack("<IQ", _read(path, file, 12))
    if version != VERSION:
        raise InputError(
            f"{path}: expected a .sens file of version {VERSION}, got {version}: is it one?"
        )
    if name_length > LONGEST_NAME:
        raise InputError(f"{path}: damaged: its header promises a name of {name_length} bytes")
    sensor = _read(path, file, name_length).decode(errors="replace")
    values = _AFTER_NAME.unpack(_read(path, file, _AFTER_NAME.size))
    matrices = np.array(values[:64]).reshape(4, 4, 4)
    color_format, depth_format, *sides, units_per_m, frame_count = values[64:]
    if not (min(sides) > 0 and max(sides) <= LARGEST_SIDE):
        raise InputError(
            f"{path}: damaged: pictures of {sides[0]}x{sides[1]}, {sides[2]}x{sides[3]}"
        )
    if not 0 < units_per_m < np.inf or frame_count > MOST_FRAMES:
        raise InputError(
            f"{path}: damaged: {frame_count} frames with {units_per_m} depth units per metre"
        )
    if DEPTH_FORMATS.get(depth_format) not in ("raw_ushort", "zlib_ushort"):
        raise _unknown_format(path, "depth", DEPTH_FORMATS, depth_format, "raw_ushort, zlib_ushort")
    if COLOR_FORMATS.get(color_format) not in ("jpeg", "png"):
        raise _unknown_format(path, "colour", COLOR_FORMATS, color_format, "jpeg, png")
    try:
        color_camera = Camera(sides[0], sides[1], matrices[0, :3, :3])
        depth_camera = Camera(sides[2], sides[3], matrices[2, :3, :3])
    except InputError as error:
        raise InputError(f"{path}: damaged: {error}") from error
    return SensHeader(
        sensor=sensor.rstrip("\0"),
        color_camera=color_camera,
        depth_camera=depth_camera,
        color_extrinsics=matrices[1],
        depth_extrinsics=matrices[3],
        color_format=COLOR_FORMATS[color_format],
        depth_format=DEPTH_FORMATS[depth_format],
        depth_units_per_m=units_per_m,
        frame_count=frame_count,
    )


def _read(path: Path, file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise InputError(f"{path}: cut off in its header: download it again")
    return data


def _unknown_format(
    path: Path, what: str, names: dict[int, str], got: int, known: str
) -> InputError:
    return InputError(
        f"{path}: expected {what} as {known}, got {names.get(got, got)}: "
        f"take scannet_frames_25k instead"
    )
