"""ROS messages <-> scene types: the only file that knows message layouts.

Everything that arrives is checked here: a message that lies about itself raises InputError, and
the node drops it. Array fields are filled from `array.array`, which rclpy takes over in one copy;
any other sequence is checked element by element. Markers and clouds are in `display.py`.
"""

from __future__ import annotations

import array
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, Quaternion, Vector3
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from unscene_ros import image_codecs
from unscene_ros.boxes import upright_box
from unscene_ros.msg import Instance, InstanceArray, Keyframe
from unscene_ros.msg import Mesh as MeshMsg
from unscene_ros.registration import Calibration
from unscene_ros.scene import Camera, Frame, InputError, Instances, Mesh, Segments
from unscene_ros.synchronization import StampedPicture
from unscene_ros.transforms import matrix_from_pose

try:
    from cv_bridge import CvBridge, CvBridgeError
except (ImportError, AttributeError):  # AttributeError: a cv_bridge built for another numpy
    CvBridge = None

KEYFRAME_JPEG_QUALITY = 90
UNKNOWN_CLASS = "object"


# Headers


def stamp_ns_of(header: Header) -> int:
    """The header's stamp in nanoseconds."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def make_time(stamp_ns: int) -> Time:
    """A stamp in ROS's two integers."""
    sec, nanosec = divmod(stamp_ns, 1_000_000_000)
    return Time(sec=sec, nanosec=nanosec)


def make_header(frame_id: str, stamp_ns: int) -> Header:
    """A header of this frame and instant."""
    return Header(frame_id=frame_id, stamp=make_time(stamp_ns))


# Sensor messages


def color_from_msg(message: Image | CompressedImage) -> np.ndarray:
    """(H, W, 3) uint8 RGB; raises InputError for an unknown encoding or data of a wrong size."""
    if isinstance(message, CompressedImage):
        return image_codecs.decode_compressed_color(message.format, message.data)
    if CvBridge is not None and message.encoding in image_codecs.COLOR_ENCODINGS:
        return _cv_bridge_picture(message, "rgb8")
    return image_codecs.decode_color(*_image_fields(message))


def depth_from_msg(message: Image | CompressedImage) -> np.ndarray:
    """(H, W) float32 metres, 0 for no reading; the encoding tells the unit (REP 118)."""
    if isinstance(message, CompressedImage):
        return image_codecs.decode_compressed_depth(message.format, message.data)
    if CvBridge is not None and message.encoding in image_codecs.DEPTH_ENCODINGS:
        return image_codecs.metres(_cv_bridge_picture(message, "passthrough"))
    return image_codecs.decode_depth(*_image_fields(message))


def picture_from_msg(
    kind: Literal["rgb", "depth"], message: Image | CompressedImage, calibration: Calibration
) -> StampedPicture:
    """A picture that is decoded when its frame is complete."""
    decode = functools.partial(color_from_msg if kind == "rgb" else depth_from_msg, message)
    header = message.header
    return StampedPicture(stamp_ns_of(header), header.frame_id, calibration, decode)


def transforms_from_msg(message: TFMessage) -> Iterator[tuple[str, str, int, np.ndarray]]:
    """Parent, child, stamp_ns and parent_from_child (4, 4) of each transform."""
    for stamped in message.transforms:
        shift, turn = stamped.transform.translation, stamped.transform.rotation
        matrix = matrix_from_pose((shift.x, shift.y, shift.z), (turn.x, turn.y, turn.z, turn.w))
        yield stamped.header.frame_id, stamped.child_frame_id, stamp_ns_of(stamped.header), matrix


def _image_fields(message: Image) -> tuple[str, int, int, int, int, Any]:
    return (
        message.encoding,
        message.height,
        message.width,
        message.step,
        message.is_bigendian,
        message.data,
    )


def _cv_bridge_picture(message: Image, encoding: str) -> np.ndarray:
    try:
        return CvBridge().imgmsg_to_cv2(message, encoding)
    except (CvBridgeError, ValueError, TypeError) as error:
        raise InputError(
            f"image {message.width}x{message.height} {message.encoding}, step {message.step}, "
            f"{len(message.data)} bytes: {error}"
        ) from error


# The map


def mesh_to_msg(mesh: Mesh, header: Header, revision: int, map_id: str = "") -> MeshMsg:
    """The whole mesh as flat arrays; `header` says its world frame and its newest frame."""
    return MeshMsg(
        header=header,
        map_id=map_id,
        revision=revision,
        vertices=_packed("f", mesh.vertices),
        normals=_packed("f", mesh.normals),
        colors=_packed("B", mesh.colors),
        faces=_packed("I", mesh.faces),
    )


def mesh_from_msg(message: MeshMsg) -> Mesh:
    """The mesh, its arrays still in the message's memory; raises InputError for wrong lengths."""
    return Mesh(
        _triples("Mesh.vertices", message.vertices, np.float32),
        _triples("Mesh.faces", message.faces, np.int32),
        _triples("Mesh.colors", message.colors, np.uint8),
        _triples("Mesh.normals", message.normals, np.float32),
    )


def keyframe_to_msg(frame: Frame, world_frame: str, map_id: str = "") -> Keyframe:
    """Colour as jpeg, depth as png of millimetres."""
    return Keyframe(
        header=make_header(world_frame, frame.stamp_ns),
        map_id=map_id,
        width=frame.camera.width,
        height=frame.camera.height,
        intrinsics=frame.camera.intrinsics.ravel(),
        world_from_camera=frame.world_from_camera.ravel(),
        color=_packed("B", image_codecs.encode_jpeg(frame.color, KEYFRAME_JPEG_QUALITY)),
        depth=_packed("B", image_codecs.encode_png(image_codecs.millimetres(frame.depth), 1)),
    )


def keyframe_from_msg(message: Keyframe) -> Frame:
    """The picture with its pose; raises InputError when a part does not fit."""
    intrinsics = np.array(message.intrinsics).reshape(3, 3)
    return Frame(
        stamp_ns_of(message.header),
        Camera(message.width, message.height, intrinsics),
        image_codecs.decode_compressed_color("jpeg", message.color),
        image_codecs.decode_compressed_depth("16UC1; png", message.depth),
        np.array(message.world_from_camera).reshape(4, 4),
    )


# Instances


def instances_to_msg(
    map_message: MeshMsg,
    mesh: Mesh,
    segments: Segments,
    instances: Instances,
    track_ids: np.ndarray,
    gone_ids: Iterable[int] = (),
    class_names: Sequence[str] = (),
) -> InstanceArray:
    """Everything known about the objects of one published map, with track_ids (N,) as their ids.

    `gone_ids` are of objects whose surface has vanished; `class_names` are indexed by class id.
    """
    return InstanceArray(
        header=map_message.header,
        map_id=map_message.map_id,
        map_revision=map_message.revision,
        instances=[
            Instance(
                id=int(track_id),
                class_id=int(class_id),
                class_name=class_name(int(class_id), class_names),
                score=float(score),
                last_seen=map_message.header.stamp,
                **_extent(mesh.vertices[mask[segments.of_vertex]]),
            )
            for mask, score, class_id, track_id in zip(
                instances.masks, instances.scores, instances.class_ids, track_ids, strict=True
            )
        ],
        gone_ids=list(gone_ids),
        instance_of_vertex=_packed("i", instances.of_vertex(segments)),
        segment_of_vertex=_packed("i", segments.of_vertex),
    )


def instances_from_msg(message: InstanceArray) -> tuple[Segments, Instances, np.ndarray]:
    """Segments, instances and track ids (N,) int32.

    The message holds one instance for each vertex and no neighbours: masks that overlapped come
    back disjoint, `Segments.neighbors` empty.
    """
    segment_of_vertex = np.frombuffer(message.segment_of_vertex, np.int32)
    instance_of_vertex = np.frombuffer(message.instance_of_vertex, np.int32)
    if len(segment_of_vertex) != len(instance_of_vertex):
        raise InputError(
            f"InstanceArray: expected one instance for each of {len(segment_of_vertex)} vertices, "
            f"got {len(instance_of_vertex)}"
        )
    segment_count = int(segment_of_vertex.max(initial=-1)) + 1
    segments = Segments(segment_of_vertex, np.zeros((0, 2), np.int32), segment_count)
    found = message.instances
    if instance_of_vertex.max(initial=-1) >= len(found):
        raise InputError(
            f"InstanceArray.instance_of_vertex: expected indices below {len(found)}, "
            f"got {instance_of_vertex.max()}"
        )
    masks = np.zeros((len(found), segment_count), bool)
    inside = instance_of_vertex >= 0
    masks[instance_of_vertex[inside], segment_of_vertex[inside]] = True
    scores = np.array([instance.score for instance in found], np.float32)
    class_ids = np.array([instance.class_id for instance in found], np.int32)
    track_ids = np.array([instance.id for instance in found], np.int32)
    return segments, Instances(masks, scores, class_ids), track_ids


def class_name(class_id: int, class_names: Sequence[str]) -> str:
    """What to call an object of this class, also where nobody has named it."""
    if class_id < 0:
        return UNKNOWN_CLASS
    return class_names[class_id] if class_id < len(class_names) else f"class {class_id}"


def _extent(points: np.ndarray) -> dict[str, Any]:
    """The fields of an Instance that tell where it is and how large."""
    box = upright_box(points)
    x, y, z = box.center
    width, depth, height = box.size
    return {
        "vertex_count": len(points),
        "pose": Pose(
            position=Point(x=x, y=y, z=z),
            orientation=Quaternion(z=np.sin(box.yaw_rad / 2), w=np.cos(box.yaw_rad / 2)),
        ),
        "size": Vector3(x=width, y=depth, z=height),
    }


# Arrays


def _packed(typecode: str, values: np.ndarray | bytes) -> array.array:
    packed = array.array(typecode)
    packed.frombytes(values if isinstance(values, bytes) else values.tobytes())
    return packed


def _triples(name: str, values: array.array, dtype: type) -> np.ndarray:
    if len(values) % 3:
        raise InputError(f"{name}: expected a multiple of 3 values, got {len(values)}")
    return np.frombuffer(values, dtype).reshape(-1, 3)
