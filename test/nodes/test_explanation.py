"""Each way in which a camera can be set up wrongly is found, named and told with what to do."""

import dataclasses
from dataclasses import dataclass
from functools import partial

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from fake_camera import Camera, packed
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from unscene_ros.nodes import causes, conversions, qos
from unscene_ros.nodes.diagnostics import Diagnostics, Problem
from unscene_ros.nodes.drop_log import DropLog
from unscene_ros.nodes.explanation import Explanation
from unscene_ros.nodes.picture_topic import PictureTopic
from unscene_ros.nodes.warm_up import sample_frames
from unscene_ros.synchronization import FrameAssembler
from unscene_ros.transforms import TransformTree

PERIOD_NS = 100_000_000
HOUR_NS = 3_600_000_000_000


@dataclass
class Topics:
    """A camera, as the explanation wants it."""

    name: str
    color: PictureTopic
    depth: PictureTopic
    frame: str = ""


class Mapper(Node):
    """Takes pictures and TF as the fusion node does, but only counts the frames."""

    def __init__(self, transport="raw", reliable=False, namespace=""):
        super().__init__("mapper", namespace=namespace)
        self.frames = 0
        self.transforms = TransformTree()
        drops = DropLog(lambda text: None)
        self._assembler = FrameAssembler(
            partial(self.transforms.lookup, "map"),
            self.transforms.lookup,
            drops,
            max_wait_s=0.3,
        )
        take_color = partial(self._on, self._assembler.add_color)
        take_depth = partial(self._on, self._assembler.add_depth)
        options = {"reliable": reliable}
        self.color = PictureTopic(self, "rgb", transport, 0.3, take_color, drops.warn, **options)
        self.depth = PictureTopic(self, "depth", transport, 0.3, take_depth, drops.add, **options)
        for topic, profile, static in (
            ("/tf", qos.TRANSFORMS, False),
            ("/tf_static", qos.STATIC_TRANSFORMS, True),
        ):
            take = partial(self._on_transforms, static)
            self.create_subscription(TFMessage, topic, take, profile)
        cameras = [Topics("", self.color, self.depth)]
        self.explanation = Explanation(self, cameras, self.transforms, "map", drops)

    def _on(self, add, picture):
        add(picture)
        self._count_frames()

    def _on_transforms(self, static, message):
        for transform in conversions.transforms_from_msg(message):
            self.transforms.add(*transform, static)
        self._count_frames()

    def _count_frames(self):
        self.frames += len(list(self._assembler.frames()))

    def explain(self):
        """The first line, and everything."""
        text = self.explanation.sentence(7.0)
        return text.splitlines()[0], text


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(causes, "PAUSE_S", 1.0)


@pytest.fixture
def start(ros):
    def make(*parameters, **options):
        ros.start(*parameters)
        return ros.add(Mapper(**options)), ros.add(Camera())

    return make


@pytest.fixture
def elsewhere():
    """A node as of another process: only there a topic may have another type."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = Node("lidar", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    yield node
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown(context=context)


def frames(count=6, start=1):
    frame = sample_frames()[0]
    stamps = range(start * PERIOD_NS, (start + count) * PERIOD_NS, PERIOD_NS)
    return [dataclasses.replace(frame, stamp_ns=stamp_ns) for stamp_ns in stamps]


def play(ros, mapper, sent, *senders):
    """Sends each frame with each sender, until all of the depth has come."""
    before = mapper.depth.received
    for frame in sent:
        for send in senders:
            send(frame)
        ros.spin_for(0.02)
    ros.spin_until(lambda: mapper.depth.received == before + len(sent))


def publishes(ros, mapper, topic, count=1):
    ros.spin_until(lambda: len(mapper.get_publishers_info_by_topic(topic)) == count)


def test_nothing_is_said_while_frames_come(ros, start):
    mapper, camera = start()
    ros.spin_until(camera.is_connected)
    play(ros, mapper, frames(), camera.send)
    ros.spin_until(lambda: mapper.frames == 6)
    assert mapper.explanation.sentence(4.9) == ""
    first, text = mapper.explain()
    assert first.startswith("no frame for 7 s, likely cause: none that is known")
    assert "also:" not in text


def test_wrong_topic_names_the_nearest_one_under_another_namespace(ros, start):
    mapper, _ = start(namespace="robot")
    publishes(ros, mapper, "/depth/image")
    first, text = mapper.explain()
    assert (
        "nobody publishes '/robot/rgb/image' (colour pictures, sensor_msgs/msg/Image); the nearest "
        "topic with such data is '/rgb/image': remap `rgb/image` to /rgb/image"
    ) in first
    for alias in ("depth/image", "rgb/camera_info", "depth/camera_info"):
        assert f"remap `{alias}` to /{alias}\n" in text


def test_without_any_camera_the_driver_is_asked_for(ros):
    ros.start()
    first, _ = ros.add(Mapper()).explain()
    assert "no other topic has such data: is the driver running" in first


def test_pictures_that_are_only_compressed_want_another_transport(ros):
    ros.start()
    mapper = ros.add(Mapper())
    ros.add(Camera(compressed=True))
    publishes(ros, mapper, "/rgb/image/compressed")
    first, _ = mapper.explain()
    assert first.endswith(
        "'/rgb/image/compressed' is published: set the parameter transport to auto"
    )


def test_wrong_type_names_both_types_and_the_publisher(ros, elsewhere):
    ros.start()
    mapper = ros.add(Mapper())
    elsewhere.create_publisher(PointCloud2, "/depth/image", 1)
    ros.spin_until(lambda: "lidar" in mapper.get_node_names())
    publishes(ros, mapper, "/depth/image")
    _, text = mapper.explain()
    assert (
        "'/depth/image' has sensor_msgs/msg/PointCloud2 from /lidar, but depth pictures have to be "
        "sensor_msgs/msg/Image"
    ) in text


@pytest.mark.parametrize(
    ("topic", "offered", "sides"),
    [
        (
            "/tf",
            QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT),
            (
                "best effort publisher and reliable subscription: /lidar offers best effort, "
                "volatile, this node asks for reliable, volatile"
            ),
        ),
        (
            "/tf_static",
            QoSProfile(depth=1, durability=DurabilityPolicy.VOLATILE),
            (
                "volatile publisher and transient local subscription: /lidar offers reliable, "
                "volatile, this node asks for reliable, transient local"
            ),
        ),
    ],
    ids=["reliability", "durability"],
)
def test_incompatible_qos_names_the_policy_and_both_sides(ros, start, topic, offered, sides):
    mapper, camera = start()
    ros.spin_until(camera.is_connected)
    ros.add(Node("lidar")).create_publisher(TFMessage, topic, offered)
    publishes(ros, mapper, topic, count=2 if topic == "/tf" else 1)
    play(ros, mapper, frames(), camera.send)
    first, _ = mapper.explain()
    assert f"'{topic}' is not delivered, {sides}" in first


def test_pictures_that_are_asked_for_reliably_of_a_best_effort_driver(ros):
    ros.start()
    mapper = ros.add(Mapper(reliable=True))
    offered = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    ros.add(Node("driver")).create_publisher(Image, "/rgb/image", offered)
    publishes(ros, mapper, "/rgb/image")
    first, _ = mapper.explain()
    assert first.endswith(
        "'/rgb/image' is not delivered, best effort publisher and reliable subscription: /driver "
        "offers best effort, volatile, this node asks for reliable, volatile; make the publisher "
        "offer that, or set cameras.reliable to false"
    )


def test_no_tf_at_all(ros, start):
    mapper, camera = start()
    ros.spin_until(camera.is_connected)
    play(ros, mapper, frames(), camera.send_info, camera.send_pictures)
    first, text = mapper.explain()
    assert "no transform has come on '/tf' or '/tf_static', though /camera publishes" in first
    assert "- TF frames: none" in text
    assert "- dropped, no transform: no transform from 'camera_optical' to 'map'" in text


def test_tf_too_old_says_how_far_it_is_behind(ros, start):
    mapper, camera = start()
    ros.spin_until(camera.is_connected)
    camera.send_pose(frames(1)[0])
    play(ros, mapper, frames(start=40), camera.send_info, camera.send_pictures)
    first, text = mapper.explain()
    assert "TF is 4.4 s behind the pictures: no transform from 'camera_optical' to" in first
    assert "the newest transform 4.4 s before it" in text


def test_pictures_that_come_too_late_for_tf(ros, start):
    mapper, camera = start()
    ros.spin_until(camera.is_connected)
    camera.send_pose(frames(1, start=40)[0])
    ros.spin_until(lambda: mapper.transforms.frames)
    play(ros, mapper, frames(), camera.send_info, camera.send_pictures)
    first, _ = mapper.explain()
    assert "the pictures come too late for TF, by 3.4 s" in first


def test_tf_in_another_frame_names_both_frames_and_those_that_exist(ros, start):
    mapper, camera = start()
    ros.spin_until(camera.is_connected)
    play(
        ros,
        mapper,
        frames(),
        camera.send_info,
        partial(camera.send_pose, world_frame="odom"),
        camera.send_pictures,
    )
    first, _ = mapper.explain()
    assert "no transform from 'camera_optical' to 'map': frame 'map' is unknown" in first
    assert "frames that exist: camera_optical, odom. Publish what is missing" in first


def test_unsynchronised_stamps_say_how_far_apart_they_are(ros, start):
    mapper, camera = start()
    ros.spin_until(camera.is_connected)

    def send_color(frame):
        late = dataclasses.replace(frame, stamp_ns=frame.stamp_ns + PERIOD_NS * 45 // 100)
        camera.color.publish(camera.color_msg(late))

    def send_depth(frame):
        camera.depth.publish(camera.depth_msg(frame))

    play(ros, mapper, frames(), camera.send_info, camera.send_pose, send_color, send_depth)
    first, text = mapper.explain()
    assert "'/rgb/image' and '/depth/image' are stamped 45.0 ms apart, allowed are 30.0 ms" in first
    assert "45.0 ms from the nearest colour picture" in text


def test_wrong_depth_encoding(ros, start):
    mapper, camera = start()
    ros.spin_until(camera.is_connected)

    def send_pictures(frame):
        camera.color.publish(camera.color_msg(frame))
        camera.depth.publish(camera.color_msg(frame))

    play(ros, mapper, frames(), camera.send_info, camera.send_pose, send_pictures)
    first, _ = mapper.explain()
    assert "'/depth/image' carries 'rgb8', which depth pictures cannot be: remap" in first


@pytest.mark.parametrize("sent", [False, True], ids=["none", "unusable"])
def test_no_camera_info(ros, start, sent):
    mapper, camera = start()
    ros.spin_until(camera.is_connected)

    def send_info(frame):
        # Without intrinsics, as of a camera that was never calibrated.
        info = CameraInfo(width=frame.camera.width, height=frame.camera.height)
        camera.depth_info.publish(info)
        camera.color_info.publish(info)

    senders = [send_info] if sent else []
    play(ros, mapper, frames(), camera.send_pose, *senders, camera.send_pictures)
    first, _ = mapper.explain()
    expected = (
        "CameraInfo on '/rgb/camera_info' cannot be used: "
        if sent
        else "nothing has come on '/rgb/camera_info' so far, though /camera publishes it"
    )
    assert expected in first


def test_sim_time_without_a_clock(ros, start):
    mapper, camera = start("use_sim_time:=true")
    ros.spin_until(camera.is_connected)
    mapper.explanation.sentence(0.0)
    ros.spin_for(1.1)
    first, text = mapper.explain()
    assert "use_sim_time is true, but nobody publishes '/clock': start the simulation" in first
    assert "- simulated time: '/clock' rosgraph_msgs/msg/Clock (best effort, volatile)" in text


def test_a_clock_that_has_stopped(ros, start):
    mapper, camera = start("use_sim_time:=true")
    clock = ros.add(Node("simulator")).create_publisher(Clock, "/clock", qos.CLOCK)
    ros.spin_until(lambda: camera.is_connected() and clock.get_subscription_count() >= 2)
    clock.publish(Clock(clock=conversions.make_time(12_500_000_000)))
    ros.spin_until(lambda: mapper.get_clock().now().nanoseconds)
    mapper.explanation.sentence(0.0)
    ros.spin_for(1.1)
    first, _ = mapper.explain()
    assert "simulated time has stood still for" in first
    assert "'/clock' is at 12.500 s: is the simulation or the recording paused?" in first


def test_pictures_hours_away_from_tf_are_of_another_clock(ros, start):
    mapper, camera = start()
    ros.spin_until(camera.is_connected)

    def send_pose(frame):
        live = dataclasses.replace(frame, stamp_ns=frame.stamp_ns + 3 * HOUR_NS)
        camera.send_pose(live)

    play(ros, mapper, frames(), camera.send_info, send_pose, camera.send_pictures)
    first, _ = mapper.explain()
    assert "the pictures are stamped 3.0 h before TF, so by different clocks" in first
    assert "`ros2 bag play --clock`" in first


def test_a_camera_that_fell_silent(ros, start):
    mapper, camera = start()
    ros.spin_until(camera.is_connected)
    play(ros, mapper, frames(), camera.send)
    ros.spin_for(1.1)
    first, _ = mapper.explain()
    assert "nothing has come on '/rgb/image' for 1 s, though /camera publishes it" in first


def test_what_else_drops_frames_is_told_as_the_drops_say_it(ros, start):
    mapper, camera = start()
    ros.spin_until(camera.is_connected)

    def send_cut_off(frame):
        camera.color.publish(camera.color_msg(frame))
        message = camera.depth_msg(frame)
        message.data = packed(b"abc")
        camera.depth.publish(message)

    play(ros, mapper, frames(), camera.send_info, camera.send_pose, send_cut_off)
    first, _ = mapper.explain()
    assert "every frame is dropped, undecodable: " in first
    assert "3 bytes" in first


def test_what_was_seen_is_listed_with_publishers_types_qos_and_arrivals(ros, start):
    mapper, camera = start()
    ros.spin_until(camera.is_connected)
    play(ros, mapper, frames(), camera.send)
    _, text = mapper.explain()
    assert (
        "- depth pictures: '/depth/image' sensor_msgs/msg/Image (best effort, volatile); published "
        "by /camera sensor_msgs/msg/Image (reliable, volatile); 6 came, the last 0."
    ) in text
    assert "s ago in frame 'camera_optical' as 16UC1\n" in text
    assert "- stamps of depth pictures: 0.600 s, 0.0 ms from the nearest colour picture" in text
    assert "- TF frames: camera_optical, map" in text


def test_the_log_has_an_explanation_once_and_says_when_frames_come_again(ros, start, monkeypatch):
    mapper, _ = start()
    said = []

    class Logger:
        error = info = said.append

    monkeypatch.setattr(mapper, "get_logger", Logger)
    mapper.explain()
    _, text = mapper.explain()
    assert [each.splitlines()[1:4] for each in said] == [text.splitlines()[1:4]]
    mapper.explanation.sentence(0.1)
    mapper.explanation.sentence(0.1)
    assert said[1:] == ["frames come again"]


def test_the_status_is_an_error_with_the_explanation_as_its_message(ros, start):
    mapper, _ = start(namespace="robot")
    received = []
    mapper.create_subscription(DiagnosticArray, "/diagnostics", received.append, qos.DIAGNOSTICS)
    Diagnostics(mapper, 0.05, dict, lambda: [Problem("error", mapper.explain()[1])])
    ros.spin_until(lambda: received)
    [status] = received[0].status
    assert status.level == DiagnosticStatus.ERROR
    assert status.message.startswith("no frame for 7 s, likely cause: nobody publishes '/robot/rgb")
    assert "seen:\n- colour pictures: '/robot/rgb/image'" in status.message
