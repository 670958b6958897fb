"""What RViz and Foxglove show without a plugin: boxes with labels, a coloured cloud, the mesh."""

from __future__ import annotations

import array
import functools
import struct
from collections.abc import Iterable, Sequence

import numpy as np
from geometry_msgs.msg import Point, Pose, Quaternion, Vector3
from rclpy.serialization import serialize_message
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from unscene_ros.instance_mesh import colors_by_instance
from unscene_ros.msg import Instance, InstanceArray
from unscene_ros.nodes.mesh_chunks import MeshChunk
from unscene_ros.palette import class_colors, instance_colors
from unscene_ros.scene import Mesh

BOX_OPACITY = 0.35
LABEL_HEIGHT_M = 0.12
THINNEST_BOX_M = 0.01  # viewers warn about a box without volume

# Name -> how it is held here and how the message calls it, all of four bytes.
_CLOUD_FIELDS = {
    "x": (np.float32, PointField.FLOAT32),
    "y": (np.float32, PointField.FLOAT32),
    "z": (np.float32, PointField.FLOAT32),
    "rgb": (np.uint32, PointField.FLOAT32),  # three bytes that viewers expect in a float
    "label": (np.int32, PointField.INT32),
    "instance": (np.int32, PointField.INT32),
    "confidence": (np.float32, PointField.FLOAT32),
}
CLOUD_POINT = np.dtype([(name, kind) for name, (kind, _) in _CLOUD_FIELDS.items()])


def instances_to_markers(message: InstanceArray, gone_ids: Iterable[int]) -> MarkerArray:
    """A box and a label for each instance, in namespaces `box` and `label`, with its id.

    Boxes have the instance's colour, labels that of its class, white when this is unknown.
    Everything shown before is deleted first, and `gone_ids` by name for those who follow ids.
    """
    header = message.header
    # Who missed an array is right again with the next. Viewers take an array in one piece, so that
    # nothing flickers.
    markers = [Marker(header=header, action=Marker.DELETEALL)]
    for instance_id in gone_ids:
        markers += [
            Marker(header=header, ns=ns, id=instance_id, action=Marker.DELETE)
            for ns in ("box", "label")
        ]
    of_instance = instance_colors(np.array([i.id for i in message.instances], np.int64))
    of_class = class_colors(np.array([i.class_id for i in message.instances], np.int64))
    for instance, box_color, text_color in zip(
        message.instances, of_instance, of_class, strict=True
    ):
        markers += [_box(header, instance, box_color), _label(header, instance, text_color)]
    return MarkerArray(markers=markers)


def _box(header: Header, instance: Instance, color: np.ndarray) -> Marker:
    size = instance.size
    return Marker(
        header=header,
        ns="box",
        id=instance.id,
        type=Marker.CUBE,
        pose=instance.pose,
        scale=Vector3(
            x=max(size.x, THINNEST_BOX_M),
            y=max(size.y, THINNEST_BOX_M),
            z=max(size.z, THINNEST_BOX_M),
        ),
        color=_rgba(color, BOX_OPACITY),
    )


def _label(header: Header, instance: Instance, color: np.ndarray) -> Marker:
    center, size = instance.pose.position, instance.size
    name = f"#{instance.id}  {instance.class_name}" if instance.class_id >= 0 else f"#{instance.id}"
    above = Point(x=center.x, y=center.y, z=center.z + size.z / 2 + LABEL_HEIGHT_M)
    return Marker(
        header=header,
        ns="label",
        id=instance.id,
        type=Marker.TEXT_VIEW_FACING,
        pose=Pose(position=above, orientation=Quaternion(w=1.0)),
        scale=Vector3(z=LABEL_HEIGHT_M),
        color=_rgba(color, 1.0),
        text=f"{name}  {size.x:.1f}×{size.y:.1f}×{size.z:.1f} m  {instance.score:.2f}",
    )


def _rgba(color: np.ndarray, opacity: float) -> ColorRGBA:
    red, green, blue = (color / 255.0).tolist()
    return ColorRGBA(r=red, g=green, b=blue, a=opacity)


def labelled_cloud_to_msg(mesh: Mesh, message: InstanceArray) -> PointCloud2:
    """Every vertex with x y z rgb label instance confidence.

    `instance` is the lasting id and `label` the class, both -1 for none; `rgb` is the instance's
    colour, or the darkened colour of the map; `confidence` the score, 0 outside.
    """
    instance_of_vertex = np.frombuffer(message.instance_of_vertex, np.int32)
    inside = instance_of_vertex >= 0
    index = instance_of_vertex[inside]
    ids = np.array([instance.id for instance in message.instances], np.int32)
    points = np.zeros(len(mesh.vertices), CLOUD_POINT)
    points["x"], points["y"], points["z"] = mesh.vertices.T
    rgb = colors_by_instance(mesh, instance_of_vertex, ids)
    points["rgb"] = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    points["label"] = points["instance"] = -1
    points["label"][inside] = np.array([i.class_id for i in message.instances], np.int32)[index]
    points["instance"][inside] = ids[index]
    points["confidence"][inside] = np.array([i.score for i in message.instances])[index]
    return _cloud(message.header, points)


def _cloud(header: Header, points: np.ndarray) -> PointCloud2:
    fields = [
        PointField(name=name, offset=4 * place, datatype=datatype, count=1)
        for place, (name, (_, datatype)) in enumerate(_CLOUD_FIELDS.items())
    ]
    data = array.array("B")
    data.frombytes(points.tobytes())
    return PointCloud2(
        header=header,
        height=1,
        width=len(points),
        fields=fields,
        point_step=CLOUD_POINT.itemsize,
        row_step=CLOUD_POINT.itemsize * len(points),
        data=data,
        is_dense=True,
    )


def mesh_to_markers(
    chunks: Sequence[MeshChunk], gone_ids: Iterable[int], start_over: bool, header: Header
) -> bytes:
    """A serialised MarkerArray: a TRIANGLE_LIST in namespace `mesh` for each chunk, with its id.

    `gone_ids` are deleted; `start_over` deletes everything that was ever shown first.
    Written as CDR (OMG DDSI-RTPS 10.5) because 100k triangles as lists of Point and ColorRGBA take
    rclpy seconds: the markers are serialised without points, and these are spliced in.
    """
    empty = MeshChunk(0, np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8))
    spliced = [(_chunk_marker(header, 0, Marker.DELETEALL), empty)] if start_over else []
    spliced += [(_chunk_marker(header, chunk, Marker.DELETE), empty) for chunk in gone_ids]
    spliced += [(_chunk_marker(header, chunk.id, Marker.ADD), chunk) for chunk in chunks]
    cdr = bytearray(struct.pack("<I", len(spliced)))
    for marker, chunk in spliced:
        _append_marker(cdr, marker, chunk)
    return _LITTLE_ENDIAN_CDR + bytes(cdr)


_LITTLE_ENDIAN_CDR = b"\x00\x01\x00\x00"


def _chunk_marker(header: Header, chunk_id: int, action: int) -> Marker:
    return Marker(
        header=header,
        ns="mesh",
        id=chunk_id,
        type=Marker.TRIANGLE_LIST,
        action=action,
        pose=Pose(orientation=Quaternion(w=1.0)),
        scale=Vector3(x=1.0, y=1.0, z=1.0),
        color=ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0),
    )


def _append_marker(cdr: bytearray, marker: Marker, chunk: MeshChunk) -> None:
    """Appends the marker with the chunk's corners as its points and colours.

    Values are aligned to their size, counted from the start: a marker begins at a multiple of 4,
    and where it is not one of 8 its doubles lie as in a MarkerArray's first, behind the count.
    """
    cdr += bytes(-len(cdr) % 4)
    if len(cdr) % 8:
        body = serialize_message(MarkerArray(markers=[marker]))[8:]
    else:
        body = serialize_message(marker)[4:]
    tail = len(body) - _bytes_behind_points()
    cdr += body[: tail - 4]
    cdr += struct.pack("<I", len(chunk.points))
    if len(chunk.points):
        cdr += bytes(-len(cdr) % 8)
    cdr += chunk.points.astype("<f8").tobytes()
    cdr += struct.pack("<I", len(chunk.colors))
    rgba = np.ones((len(chunk.colors), 4), "<f4")
    rgba[:, :3] = chunk.colors / np.float32(255)
    cdr += rgba.tobytes()
    cdr += body[tail + 4 :]


@functools.cache
def _bytes_behind_points() -> int:
    """Length of a serialised marker behind its points, from the colours' count on."""
    z = 1.0 / 3.0
    body = serialize_message(Marker(points=[Point(z=z)]))
    return len(body) - body.index(struct.pack("<d", z)) - 8
