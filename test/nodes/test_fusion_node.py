import copy
import dataclasses

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from fake_camera import Camera, packed
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo
from unscene_ros.msg import Keyframe, Mesh
from visualization_msgs.msg import Marker, MarkerArray

from unscene_ros.nodes import conversions, qos
from unscene_ros.nodes.diagnostics import diagnostics_from_msg
from unscene_ros.nodes.fusion_node import FusionNode
from unscene_ros.nodes.warm_up import WALL_M, sample_frames
from unscene_ros.scene import InputError

PERIOD_NS = 100_000_000
QUICK = ("mesh_rate_hz:=20.0", "fusion.voxel_size_m:=0.05")


def frames(count, start=1):
    """The sample picture again and again, as a camera stamps it."""
    frame = sample_frames()[0]
    stamps = range(start * PERIOD_NS, (start + count) * PERIOD_NS, PERIOD_NS)
    return [dataclasses.replace(frame, stamp_ns=stamp_ns) for stamp_ns in stamps]


class Receiver(Node):
    """Keeps what a fusion node publishes."""

    def __init__(self):
        super().__init__("receiver")
        self.meshes, self.keyframes, self.markers, self.values = [], [], [], {}
        self.create_subscription(Mesh, "/fusion_node/mesh", self.meshes.append, qos.MAP)
        self.create_subscription(
            Keyframe, "/fusion_node/keyframes", self.keyframes.append, qos.latched(10)
        )
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def watch_markers(self):
        return self.create_subscription(
            MarkerArray, "/fusion_node/mesh_markers", self.markers.append, qos.reliable(10)
        )

    def _on_diagnostics(self, message):
        self.values = diagnostics_from_msg(message)["fusion_node"]


@pytest.fixture
def start(ros):
    def make(*parameters, compressed=False):
        ros.start(*QUICK, *parameters)
        node, camera, receiver = FusionNode(), Camera(compressed), Receiver()
        for each in (node, camera, receiver):
            ros.add(each)
        ros.spin_until(camera.is_connected)
        return node, camera, receiver

    return make


def dropped(node):
    return dict(node.drops.counts)


@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "compressed"])
def test_pictures_and_tf_become_a_mesh_where_the_wall_is(ros, start, compressed):
    node, camera, receiver = start(compressed=compressed)
    for frame in frames(5):
        camera.send(frame)
    last_stamp_ns = 5 * PERIOD_NS
    ros.spin_until(
        lambda: (
            receiver.meshes and conversions.stamp_ns_of(receiver.meshes[-1].header) == last_stamp_ns
        )
    )
    message = receiver.meshes[-1]
    mesh = conversions.mesh_from_msg(message)
    assert message.header.frame_id == "map"
    assert len(mesh.faces) > 500
    assert np.median(mesh.vertices[:, 1]) == pytest.approx(WALL_M, abs=0.02)
    assert dropped(node) == {}


@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "compressed"])
def test_a_camera_that_ends_can_be_followed_by_one_of_the_other_transport(ros, start, compressed):
    node, camera, _ = start(compressed=compressed)
    camera.send(frames(1)[0])
    ros.spin_until(lambda: node.live_map.frames_used == 1)
    for publisher in list(camera.publishers):
        camera.destroy_publisher(publisher)
    other = ros.add(Camera(not compressed))
    ros.spin_until(other.is_connected)
    other.send(frames(1, start=2)[0])
    ros.spin_until(lambda: node.live_map.frames_used == 2)


def test_keyframes_travel_and_late_subscribers_get_map_and_keyframes(ros, start):
    _, camera, receiver = start()
    for frame in frames(4):
        camera.send(frame)
    ros.spin_until(lambda: receiver.meshes and receiver.keyframes)
    late = ros.add(Node("late"))
    got = []
    late.create_subscription(Mesh, "/fusion_node/mesh", got.append, qos.MAP)
    late.create_subscription(Keyframe, "/fusion_node/keyframes", got.append, qos.latched(10))
    ros.spin_until(lambda: len(got) == 2)
    keyframe = conversions.keyframe_from_msg(receiver.keyframes[0])
    np.testing.assert_allclose(keyframe.depth, sample_frames()[0].depth, atol=1e-3)
    assert len(receiver.keyframes) == 1  # the camera did not move


def test_a_viewer_gets_the_mesh_as_markers_and_then_only_changes(ros, start):
    _, camera, receiver = start()
    for frame in frames(4):
        camera.send(frame)
    ros.spin_until(lambda: receiver.meshes)
    receiver.watch_markers()  # joins late
    ros.spin_until(lambda: receiver.markers)
    first = receiver.markers[0].markers
    assert first[0].action == Marker.DELETEALL
    triangles = sum(len(marker.points) // 3 for marker in first)
    assert triangles == len(receiver.meshes[-1].faces) // 3
    ros.spin_for(0.3)
    assert len(receiver.markers) == 1


def test_a_viewer_that_left_and_came_back_gets_the_whole_map_although_nothing_changed(ros, start):
    _, camera, receiver = start()
    view = receiver.watch_markers()
    for frame in frames(4):
        camera.send(frame)
    ros.spin_until(lambda: receiver.markers)
    ros.spin_for(0.3)  # until all of the map has come
    receiver.markers.clear()
    receiver.destroy_subscription(view)
    receiver.watch_markers()  # before the node can see that nobody was there
    ros.spin_until(lambda: receiver.markers)
    again = receiver.markers[0].markers
    assert again[0].action == Marker.DELETEALL
    triangles = sum(len(marker.points) // 3 for marker in again)
    assert triangles == len(receiver.meshes[-1].faces) // 3


def test_the_newest_map_is_published_although_no_more_frames_come(ros, start):
    _, camera, receiver = start("mesh_rate_hz:=2.0")
    for frame in frames(4):
        camera.send(frame)
    ros.spin_until(lambda: receiver.values.get("map", {}).get("frames") == 4)
    counts = {"received": 4, "used": 4, "waiting": 0, "drop_share": 0}
    assert receiver.values["frames"] == counts


def test_pictures_before_their_camera_info_are_not_lost(ros, start):
    node, camera, _ = start()
    sent = frames(4)
    for frame in sent[:2]:
        camera.send_pose(frame)
        camera.send_pictures(frame)
    ros.spin_until(lambda: node._received == 2)
    for frame in sent[2:]:
        camera.send(frame)
    ros.spin_until(lambda: node.live_map.frames_used == 4)
    assert dropped(node) == {}


def test_a_picture_waits_for_its_transform(ros, start):
    node, camera, _ = start()
    [frame] = frames(1)
    camera.send_info(frame)
    camera.send_pictures(frame)
    ros.spin_for(0.3)
    assert node.live_map.frames_used == 0
    camera.send_pose(frame)
    ros.spin_until(lambda: node.live_map.frames_used == 1)
    assert dropped(node) == {}


@pytest.fixture
def warnings(monkeypatch):
    """What the drop log of nodes made from now on says."""
    from unscene_ros.nodes import fusion_node

    said = []
    make = fusion_node.DropLog
    monkeypatch.setattr(fusion_node, "DropLog", lambda _: make(said.append))
    return said


@pytest.mark.parametrize("limit", ["synchronization.max_waiting:=3", "max_wait_s:=0.3"])
def test_without_tf_every_frame_is_dropped_and_the_warning_says_why(ros, start, warnings, limit):
    node, camera, receiver = start(limit)
    for frame in frames(8):
        camera.send_info(frame)
        camera.send_pictures(frame)
        ros.spin_for(0.03)
    ros.spin_until(lambda: dropped(node).get("no transform", 0) >= 4)
    assert "camera_optical" in warnings[0]
    assert "map" in warnings[0]
    assert node.live_map.frames_used == 0
    assert receiver.meshes == []


def test_a_transform_far_from_the_picture_is_named_with_its_gap(ros, start, warnings):
    node, camera, _ = start("synchronization.max_waiting:=2")
    old, *new = frames(1), *frames(5, start=30)
    camera.send_pose(old[0])
    for frame in new:
        camera.send_info(frame)
        camera.send_pictures(frame)
        ros.spin_for(0.03)
    ros.spin_until(lambda: dropped(node).get("no transform", 0) >= 1)
    assert "2900.0 ms" in warnings[0]


def spoiled(message, **fields):
    message = copy.copy(message)
    for name, value in fields.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"step": 3}, "step"),
        ({"data": packed(b"abc")}, "3 bytes"),
        ({"encoding": "yuv422_yuy2"}, "yuv422_yuy2"),
        ({"height": 0}, "size"),
        ({"width": 70000}, "70000"),
    ],
)
def test_a_bad_picture_is_dropped_and_the_next_good_one_is_used(ros, start, warnings, fields, word):
    node, camera, _ = start()
    bad, good = frames(2)
    camera.send_info(bad)
    camera.send_pose(bad)
    camera.color.publish(camera.color_msg(bad))
    camera.depth.publish(spoiled(camera.depth_msg(bad), **fields))
    ros.spin_until(lambda: dropped(node))
    camera.send(good)
    ros.spin_until(lambda: node.live_map.frames_used == 1)
    assert dropped(node) == {"undecodable": 1}
    assert word in warnings[0]


@pytest.mark.parametrize("focal", [float("nan"), float("inf"), 0.0, -100.0])
def test_a_camera_info_without_meaning_is_ignored_until_a_good_one_comes(ros, start, focal):
    node, camera, _ = start()
    bad, good = frames(2)
    intrinsics = bad.camera.intrinsics.copy()
    message = camera.depth_msg(bad)
    camera.send_pose(bad)
    for publisher in (camera.color_info, camera.depth_info):
        info = CameraInfo(width=bad.camera.width, height=bad.camera.height)
        info.k = [focal, *intrinsics.ravel()[1:]]
        publisher.publish(info)
    camera.color.publish(camera.color_msg(bad))
    camera.depth.publish(message)
    ros.spin_until(lambda: node._received == 1)
    camera.send(good)
    ros.spin_until(lambda: node.live_map.frames_used == 2)


def test_colour_that_does_not_fit_the_depth_in_time_is_dropped(ros, start):
    node, camera, _ = start()
    early, late = frames(2)
    camera.send_info(early)
    camera.send_pose(early)
    camera.depth.publish(camera.depth_msg(early))
    camera.color.publish(camera.color_msg(late))
    ros.spin_until(lambda: dropped(node))
    assert dropped(node) == {"no colour partner": 1}


def test_a_recording_that_starts_over_goes_on_being_fused(ros, start):
    node, camera, _ = start()
    for frame in frames(3, start=100):
        camera.send(frame)
    ros.spin_until(lambda: node.live_map.frames_used == 3)
    for frame in frames(3, start=1):
        camera.send(frame)
    ros.spin_until(lambda: node.live_map.frames_used == 6)
    assert dropped(node) == {}


def test_a_parameter_that_does_not_exist_stops_the_node_and_names_the_nearest(ros):
    ros.start("fusion.voxel_size:=0.05")
    with pytest.raises(InputError, match=r"did you mean 'fusion\.voxel_size_m'"):
        FusionNode()
