"""A node that publishes the pictures of a made-up camera, right or wrong in a chosen way."""

import array

from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from tf2_msgs.msg import TFMessage

from unscene_ros import image_codecs
from unscene_ros.nodes import qos
from unscene_ros.nodes.conversions import make_header

CAMERA_FRAME = "camera_optical"


def packed(data):
    values = array.array("B")
    values.frombytes(data)
    return values


class Camera(Node):
    """Publishes frames as raw or compressed pictures with CameraInfo and TF."""

    def __init__(self, compressed=False, name="", frame_id=CAMERA_FRAME):
        """The topics of a camera with a name are below it."""
        super().__init__(f"{name}camera")
        self._compressed = compressed
        self.frame_id = frame_id
        image_type = CompressedImage if compressed else Image
        suffixes = ("/compressed", "/compressedDepth") if compressed else ("", "")
        place = f"/{name}" if name else ""
        self.color = self.create_publisher(image_type, f"{place}/rgb/image{suffixes[0]}", 10)
        self.depth = self.create_publisher(image_type, f"{place}/depth/image{suffixes[1]}", 10)
        self.color_info = self.create_publisher(CameraInfo, f"{place}/rgb/camera_info", 10)
        self.depth_info = self.create_publisher(CameraInfo, f"{place}/depth/camera_info", 10)
        self.tf = self.create_publisher(TFMessage, "/tf", qos.TRANSFORMS)

    def is_connected(self):
        publishers = (self.color, self.depth, self.color_info, self.depth_info, self.tf)
        return all(publisher.get_subscription_count() for publisher in publishers)

    def send(self, frame):
        """Everything that belongs to a frame."""
        self.send_info(frame)
        self.send_pose(frame)
        self.send_pictures(frame)

    def send_pictures(self, frame):
        self.color.publish(self.color_msg(frame))
        self.depth.publish(self.depth_msg(frame))

    def send_info(self, frame):
        camera = frame.camera
        info = CameraInfo(header=make_header(self.frame_id, frame.stamp_ns))
        info.width, info.height = camera.width, camera.height
        info.k = camera.intrinsics.ravel()
        self.color_info.publish(info)
        self.depth_info.publish(info)

    def send_pose(self, frame, world_frame="map"):
        self.send_transform(world_frame, self.frame_id, frame.stamp_ns, frame.world_from_camera)

    def send_transform(self, parent, child, stamp_ns, parent_from_child):
        pose = TransformStamped(child_frame_id=child)
        pose.header = make_header(parent, stamp_ns)
        shift, turn = pose.transform.translation, pose.transform.rotation
        shift.x, shift.y, shift.z = parent_from_child[:3, 3]
        rotation = Rotation.from_matrix(parent_from_child[:3, :3])
        turn.x, turn.y, turn.z, turn.w = rotation.as_quat()
        self.tf.publish(TFMessage(transforms=[pose]))

    def color_msg(self, frame):
        header = make_header(self.frame_id, frame.stamp_ns)
        if self._compressed:
            data = packed(image_codecs.encode_png(frame.color))
            return CompressedImage(header=header, format="png", data=data)
        return self._raw(header, frame, "rgb8", image_codecs.encode_color("rgb8", frame.color))

    def depth_msg(self, frame):
        header = make_header(self.frame_id, frame.stamp_ns)
        if self._compressed:
            data = packed(image_codecs.encode_compressed_depth(frame.depth))
            return CompressedImage(header=header, format="16UC1; compressedDepth png", data=data)
        return self._raw(header, frame, "16UC1", image_codecs.encode_depth("16UC1", frame.depth))

    @staticmethod
    def _raw(header, frame, encoding, data):
        return Image(
            header=header,
            width=frame.camera.width,
            height=frame.camera.height,
            encoding=encoding,
            step=len(data) // frame.camera.height,
            data=packed(data),
        )
