"""What the node graph and TF say of a camera."""

from dataclasses import dataclass

import numpy as np
import pytest
from fake_camera import Camera
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from unscene_ros.nodes.conversions import make_header
from unscene_ros.nodes.observation import StillClock, observe
from unscene_ros.nodes.picture_topic import PictureTopic
from unscene_ros.transforms import TransformTree


@dataclass
class Topics:
    name: str
    color: PictureTopic
    depth: PictureTopic
    frame: str = ""


@pytest.fixture
def viewer(ros):
    ros.start()
    node = ros.add(Node("viewer"))

    def ignore(*_):
        return None

    node.camera = Topics(
        "front",
        PictureTopic(node, "rgb", "raw", 1.0, ignore, ignore),
        PictureTopic(node, "depth", "raw", 1.0, ignore, ignore),
    )
    return node


def look(node, transforms=None):
    seen = observe(node, [node.camera], transforms or TransformTree(), "map", 0.0, {})
    return seen.cameras[0]


def test_the_nearest_topic_has_the_type_and_the_kind_and_ends_alike(ros, viewer):
    driver = ros.add(Node("driver"))
    for name in (
        "/camera/infra/image_rect",
        "/camera/depth/image_rect",
        "/camera/depth/camera_info",
        "/camera/color/image",
    ):
        driver.create_publisher(CameraInfo if "info" in name else Image, name, 1)
    driver.create_subscription(Image, "/nobody/sends/rgb/image", lambda message: None, 1)
    ros.spin_until(lambda: viewer.count_publishers("/camera/color/image"))
    camera = look(viewer)
    assert camera.color.nearest == "/camera/color/image"
    assert camera.depth.nearest == "/camera/depth/image_rect"
    assert camera.depth_info.nearest == "/camera/depth/camera_info"
    assert camera.depth.alias == "front/depth/image"
    assert camera.depth.content == "front depth pictures"


def test_publishers_and_our_own_wishes_are_told_with_their_qos(ros, viewer):
    ros.add(Camera())
    ros.spin_until(lambda: viewer.count_publishers("/depth/image"))
    topic = look(viewer).depth
    assert (topic.type, topic.qos) == ("sensor_msgs/msg/Image", "best effort, volatile")
    [publisher] = topic.publishers
    assert (publisher.node, publisher.qos) == ("/camera", "reliable, volatile")
    assert publisher.conflict == ""
    assert topic.nearest == ""
    assert topic.received == 0


def test_the_gap_is_from_each_depth_picture_to_its_nearest_colour_picture(viewer):
    for stamp_ms in (0, 33, 66, 99, 132):
        viewer.camera.color.pictures.add(make_header("color", stamp_ms * 1_000_000))
    for stamp_ms in (38, 71, 137):
        viewer.camera.depth.pictures.add(make_header("depth", stamp_ms * 1_000_000))
    camera = look(viewer)
    assert camera.color_gap_ms == 5.0
    assert camera.depth_stamp_ns == 137_000_000


def test_the_newest_depth_picture_is_looked_for_in_the_world_and_in_the_colour_camera(viewer):
    transforms = TransformTree()
    transforms.add("map", "depth", 0, np.eye(4), static=True)
    viewer.camera.color.pictures.add(Header(frame_id="color"))
    viewer.camera.depth.pictures.add(Header(frame_id="depth"))
    [error] = look(viewer, transforms).pose_errors
    assert "frame 'color' is unknown" in str(error)
    viewer.camera.frame = "depth"  # what the user says counts for both
    assert look(viewer, transforms).pose_errors == ()


def test_a_clock_is_still_since_a_call_saw_it_move(ros):
    ros.start("use_sim_time:=true")
    real_time = Parameter("use_sim_time", value=False)
    simulated = StillClock(ros.add(Node("simulated")))
    real = StillClock(ros.add(Node("real", parameter_overrides=[real_time])))
    for waited_s in (0.1, 0.2):
        ros.spin_for(0.1)
        assert simulated.still_s() >= waited_s
        moved = real.still_s()
    assert moved == 0
