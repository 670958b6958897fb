"""A scan folder -> a ROS 2 bag as a robot would have recorded it, playable with `ros2 bag play`.

Topics: /camera/color and /camera/depth with CameraInfo beside the pictures, /tf (map to
camera_link, moving) and /tf_static (camera_link to the optical frame of both cameras).
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.progress import track
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import (
    CompressionFormat,
    CompressionMode,
    StoragePlugin,
    Writer,
    WriterError,
)
from rosbags.typesys import Stores, get_typestore
from scipy.spatial.transform import Rotation

from unscene_ros import image_codecs
from unscene_ros.recordings import open_recording
from unscene_ros.scene import Camera, Frame, InputError
from unscene_ros.transforms import inverse_pose, matrix_from_pose

MAP, LINK, OPTICAL = "map", "camera_link", "camera_color_optical_frame"
COLOR_TOPIC, DEPTH_TOPIC = "/camera/color", "/camera/depth"
# REP 103: a link looks along +x with z up, an optical frame along +z with y down.
LINK_FROM_OPTICAL = matrix_from_pose((0.0, 0.0, 0.0), (-0.5, 0.5, -0.5, 0.5))

ColorEncoding = Literal["jpeg", "png", "rgb8", "bgr8", "rgba8", "bgra8", "mono8"]
DepthEncoding = Literal["16UC1", "32FC1", "compressedDepth", "compressedDepth 32FC1"]


@dataclass(frozen=True, slots=True)
class BagFormat:
    """How pictures are stored."""

    color: ColorEncoding = "jpeg"
    depth: DepthEncoding = "compressedDepth"
    jpeg_quality: int = 90
    png_compression: int = 3  # 0 (fast) to 9 (small)
    storage: Literal["mcap", "sqlite3"] = "mcap"


class BagWriter:
    """Writes single messages into a new bag; a context manager."""

    def __init__(self, path: Path, bag_format: BagFormat | None = None) -> None:
        """Raises InputError when something is in the way at `path`."""
        self.format = bag_format or BagFormat()
        self._store = get_typestore(Stores.ROS2_HUMBLE)
        self._connections: dict[str, Connection] = {}
        self._writer = _open(path, StoragePlugin[self.format.storage.upper()])

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def message(self, kind: str, **fields: Any) -> Any:
        """A message of a type such as "sensor_msgs/msg/Image"."""
        return self._store.types[kind](**fields)

    def header(self, frame_id: str, stamp_ns: int) -> Any:
        """A std_msgs/Header."""
        sec, nanosec = divmod(stamp_ns, 1_000_000_000)
        stamp = self.message("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)
        return self.message("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)

    def write(self, topic: str, message: Any, recorded_ns: int) -> None:
        """Appends a message to a topic of its type."""
        kind = message.__msgtype__
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self._store, offered_qos_profiles=[_quality(topic)]
            )
        data = self._store.serialize_cdr(message, kind)
        self._writer.write(self._connections[topic], recorded_ns, data)

    def write_color(self, color: np.ndarray, frame_id: str, stamp_ns: int) -> None:
        """color (H, W, 3) uint8 RGB below COLOR_TOPIC."""
        header, encoding = self.header(frame_id, stamp_ns), self.format.color
        topic = COLOR_TOPIC + "/image_raw"
        if encoding in ("jpeg", "png"):
            data = image_codecs.encode_jpeg(color, self.format.jpeg_quality)
            if encoding == "png":
                data = image_codecs.encode_png(color, self.format.png_compression)
            picture = self._compressed(header, f"rgb8; {encoding} compressed bgr8", data)
            self.write(topic + "/compressed", picture, stamp_ns)
        else:
            data = image_codecs.encode_color(encoding, color)
            self.write(topic, self._raw(header, encoding, color.shape, data), stamp_ns)

    def write_depth(self, depth: np.ndarray, frame_id: str, stamp_ns: int) -> None:
        """depth (H, W) float32 metres below DEPTH_TOPIC."""
        header, encoding = self.header(frame_id, stamp_ns), self.format.depth
        topic = DEPTH_TOPIC + "/image_raw"
        if encoding in ("16UC1", "32FC1"):
            data = image_codecs.encode_depth(encoding, depth)
            self.write(topic, self._raw(header, encoding, depth.shape, data), stamp_ns)
        else:
            values = "32FC1" if encoding.endswith("32FC1") else "16UC1"
            data = image_codecs.encode_compressed_depth(depth, values, self.format.png_compression)
            picture = self._compressed(header, f"{values}; compressedDepth png", data)
            self.write(topic + "/compressedDepth", picture, stamp_ns)

    def write_camera_info(
        self, topic: str, camera: Camera, frame_id: str, stamp_ns: int, **changes: Any
    ) -> None:
        """CameraInfo of a pinhole beside the pictures of `topic`; `changes` are other fields."""
        k = camera.intrinsics
        region = dict(x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
        fields = dict(
            header=self.header(frame_id, stamp_ns),
            height=camera.height,
            width=camera.width,
            distortion_model="plumb_bob",
            d=np.zeros(5),
            k=k.flatten(),
            r=np.eye(3).flatten(),
            p=np.column_stack([k, np.zeros(3)]).flatten(),
            binning_x=0,
            binning_y=0,
            roi=self.message("sensor_msgs/msg/RegionOfInterest", **region),
        )
        info = self.message("sensor_msgs/msg/CameraInfo", **{**fields, **changes})
        self.write(topic + "/camera_info", info, stamp_ns)

    def write_transform(
        self,
        parent: str,
        child: str,
        stamp_ns: int,
        parent_from_child: np.ndarray,
        static: bool = False,
        recorded_ns: int | None = None,
    ) -> None:
        """One transform on /tf or /tf_static, recorded at its stamp unless said otherwise."""
        x, y, z = (float(v) for v in parent_from_child[:3, 3])
        qx, qy, qz, qw = (
            float(v) for v in Rotation.from_matrix(parent_from_child[:3, :3]).as_quat()
        )
        transform = self.message(
            "geometry_msgs/msg/TransformStamped",
            header=self.header(parent, stamp_ns),
            child_frame_id=child,
            transform=self.message(
                "geometry_msgs/msg/Transform",
                translation=self.message("geometry_msgs/msg/Vector3", x=x, y=y, z=z),
                rotation=self.message("geometry_msgs/msg/Quaternion", x=qx, y=qy, z=qz, w=qw),
            ),
        )
        message = self.message("tf2_msgs/msg/TFMessage", transforms=[transform])
        when = stamp_ns if recorded_ns is None else recorded_ns
        self.write("/tf_static" if static else "/tf", message, when)

    def _raw(self, header: Any, encoding: str, shape: tuple[int, ...], data: bytes) -> Any:
        return self.message(
            "sensor_msgs/msg/Image",
            header=header,
            height=shape[0],
            width=shape[1],
            encoding=encoding,
            is_bigendian=0,
            step=len(data) // shape[0],
            data=np.frombuffer(data, np.uint8),
        )

    def _compressed(self, header: Any, image_format: str, data: bytes) -> Any:
        return self.message(
            "sensor_msgs/msg/CompressedImage",
            header=header,
            format=image_format,
            data=np.frombuffer(data, np.uint8),
        )


def write_bag(
    path: Path,
    frames: Iterable[Frame],
    bag_format: BagFormat | None = None,
    map_from_world: np.ndarray | None = None,
) -> None:
    """Writes frames as a new bag folder; `map_from_world` (4, 4) turns the frames' world.

    Raises InputError when something is in the way at `path`.
    """
    map_from_world = np.eye(4) if map_from_world is None else map_from_world
    with BagWriter(path, bag_format) as writer:
        for index, frame in enumerate(frames):
            stamp_ns = frame.stamp_ns
            if index == 0:
                writer.write_transform(LINK, OPTICAL, stamp_ns, LINK_FROM_OPTICAL, static=True)
            map_from_link = (
                map_from_world @ frame.world_from_camera @ inverse_pose(LINK_FROM_OPTICAL)
            )
            writer.write_transform(MAP, LINK, stamp_ns, map_from_link)
            for topic in (COLOR_TOPIC, DEPTH_TOPIC):
                writer.write_camera_info(topic, frame.camera, OPTICAL, stamp_ns)
            writer.write_color(frame.color, OPTICAL, stamp_ns)
            writer.write_depth(frame.depth, OPTICAL, stamp_ns)


def map_from_world_with_up(axis: str) -> np.ndarray:
    """The rotation (4, 4) that turns an axis of a scan's world, such as "-y", to the map's +z."""
    up = np.zeros(3)
    up["xyz".index(axis[-1])] = -1.0 if axis.startswith("-") else 1.0
    rotation = np.eye(4)
    rotation[:3, :3] = Rotation.align_vectors([[0, 0, 1]], [up])[0].as_matrix().round()
    return rotation


def _open(path: Path, storage: StoragePlugin) -> Writer:
    try:
        # Version 8 of the metadata is the newest that all supported ROS releases read.
        writer = Writer(path, version=8, storage_plugin=storage)
        if storage is StoragePlugin.MCAP:
            writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        writer.open()
    except (WriterError, OSError) as error:
        raise InputError(f"bag {path}: cannot be written: {error}") from error
    return writer


def _quality(topic: str) -> Qos:
    """Reliable; fixed transforms are kept for those who come late."""
    static = topic.endswith("tf_static")
    forever = QosTime(2147483647, 4294967295)
    return Qos(
        QosHistory.KEEP_LAST,
        1 if static else 10,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if static else QosDurability.VOLATILE,
        forever,
        forever,
        QosLiveliness.AUTOMATIC,
        forever,
        False,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.scans.to_bag", description=__doc__)
    parser.add_argument("scan", type=Path, help="scan folder, or another bag")
    parser.add_argument("bag", type=Path, help="bag folder to write")
    parser.add_argument("--rate", type=float, help="Hz, instead of the recording's time stamps")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take each N-th frame")
    parser.add_argument("--jpeg-quality", type=int, default=90, help="0 to 100")
    parser.add_argument("--png-compression", type=int, default=3, help="0 (fast) to 9 (small)")
    parser.add_argument(
        "--depth-encoding", choices=["16UC1", "compressedDepth"], default="compressedDepth"
    )
    up_axes = [sign + axis for axis in "xyz" for sign in ("", "-")]
    parser.add_argument(
        "--up", choices=up_axes, default="z", help="the axis of the scan's world that points up"
    )
    options = parser.parse_args()
    bag_format = BagFormat(
        depth=options.depth_encoding,
        jpeg_quality=options.jpeg_quality,
        png_compression=options.png_compression,
    )
    try:
        recording = open_recording(options.scan)
        frames: Iterable[Frame] = itertools.islice(recording, None, None, options.every)
        if options.rate:
            frames = _retimed(frames, options.rate)
        progress = track(frames, "frames", total=math.ceil(len(recording) / options.every))
        write_bag(options.bag, progress, bag_format, map_from_world_with_up(options.up))
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    for warning in recording.warnings:
        print(f"warning: {warning}")
    print(f"{options.bag}: {recording.read} frames read, dropped {recording.dropped or 'none'}")


def _retimed(frames: Iterable[Frame], rate_hz: float) -> Iterator[Frame]:
    for place, frame in enumerate(frames, start=1):  # a stamp of 0 means "now" to many ROS tools
        yield replace(frame, stamp_ns=round(place * 1e9 / rate_hz))


if __name__ == "__main__":
    main()
